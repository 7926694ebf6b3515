"""Model and processor as one object: `WalrusPipeline.from_pretrained(name).predict(trajectory)`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tqdm.auto import tqdm
from transformers.configuration_utils import PreTrainedConfig

from .configuration_walrus import WalrusConfig
from .fields import Trajectory
from .metrics import lead_time_windows, score
from .modeling_walrus import WalrusForPrediction
from .normalization import delta_scales
from .processing_walrus import WalrusProcessor

# Lead times that the published evaluation averages over (arXiv 2511.15684, section 7), first and last step.
WINDOWS = ((1, 1), (1, 10), (11, 30), (31, 60))


class WalrusPipeline:
    """Forecasts of trajectories in their own names, units and grid.

    Args:
        model: a [`WalrusForPrediction`], or one with PEFT adapters.
        processor: its [`WalrusProcessor`]; None makes one that fits the model's configuration.
    """

    def __init__(self, model: WalrusForPrediction, processor: WalrusProcessor | None = None):
        self.model = model.eval()
        self.processor = processor or processor_for(model.config)
        known = model.config.field2id or {}
        for name, i in self.processor.field2id.items():
            if known.get(name) != i:
                raise ValueError(
                    f"processor: its vocabulary gives {name!r} the id {i}, the model's gives {known.get(name)}; load "
                    "both from one checkpoint, or make the processor with field2id=model.config.field2id"
                )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
    ) -> WalrusPipeline:
        """Load a folder of `save_pretrained`, an adapter folder (its base model is found by itself), or a Hub id.

        Args:
            revision: branch, tag or commit of a Hub repository.
            dtype: of the weights; "auto" keeps the checkpoint's.
            device: where the model goes; None takes a GPU if there is one.

        Raises:
            ValueError: a checkpoint of another model type, a damaged or incomplete one, a device that is not there.
            FileNotFoundError: neither a folder of that name nor a Hub repository that can be reached.
        """
        device = usable_device(device)
        folder = Path(name_or_path).expanduser()
        if (folder / "adapter_config.json").is_file():
            model, processor = _load_adapter(folder, dtype)
        else:
            name = str(folder) if folder.exists() else str(name_or_path)
            model = _load_model(name, revision or "main", dtype)
            processor = _load_processor(name, revision or "main")
        return cls(model.to(device), processor)

    def save_pretrained(self, directory: str | Path) -> None:
        """Configuration, weights (safetensors) and processor in one folder."""
        self.model.save_pretrained(directory)
        self.processor.save_pretrained(directory)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> None:
        """Upload model and processor; keywords as in `PreTrainedModel.push_to_hub` (`private`, `token`, ...)."""
        self.model.push_to_hub(repo_id, **kwargs)
        self.processor.push_to_hub(repo_id, **kwargs)

    def predict(
        self,
        trajectory: Trajectory,
        prediction_length: int = 50,
        ensemble_size: int = 1,
        seed: int | None = None,
        jitter: bool | None = None,
        tokens_per_axis: int | None = None,
        progress: bool = True,
    ) -> Trajectory:
        """Forecast the frames that follow a trajectory.

        Args:
            trajectory: at least two frames; the last `processor.context_frames` (`context_frames_3d` for volumes) are
                used.
            prediction_length: frames to forecast; frame k is k times `trajectory.dt` after the last given one.
            ensemble_size: members that differ in their random jitter alone; the result is their mean, and the members
                stand in its `.ensemble`. They show the effect of jitter, not the uncertainty of the forecast.
            seed: of the jitter; None draws from torch's default generator.
            jitter: None takes the processor's setting.
            tokens_per_axis: the compute dial; None takes the processor's setting.
            progress: show a progress bar.

        Returns:
            The forecast frames only. Frames after a NaN or overflow are NaN, with a warning.

        Raises:
            ValueError: fields, frames or a grid that the model cannot take.
        """
        jitter = self.processor.jitter if jitter is None else jitter
        if prediction_length < 1 or ensemble_size < 1:
            raise ValueError(f"expected at least 1 step and 1 member, found {prediction_length} and {ensemble_size}")
        if trajectory.num_frames < 2:
            raise ValueError("expected at least 2 frames to forecast from (their change sets the scale), found 1")
        if ensemble_size > 1 and not jitter:
            raise ValueError("ensemble_size: without jitter all members are equal; switch jitter on or ask for one")
        volume = sum(n > 1 for n in trajectory.grid) == 3
        context = self.processor.context_frames_3d if volume else self.processor.context_frames
        recent = trajectory.frames(max(trajectory.num_frames - context, 0))
        inputs = self.processor(recent)
        self._warn_of_small_changes(inputs, recent)
        # Weights that are offloaded stand on no device.
        devices = [p.device for p in self.model.parameters() if p.device.type != "meta"]
        inputs = inputs.to(devices[0] if devices else "cpu")
        inputs.pop("boundary_conditions")  # the plan holds them
        generators = [None if seed is None else torch.Generator().manual_seed(seed + i) for i in range(ensemble_size)]
        plans = [
            self.processor.plan(
                recent.grid, recent.boundary_conditions, tokens_per_axis, jitter,
                seed=int(torch.randint(2**62, (1,), generator=generator)),
            )
            for generator in generators
        ]  # fmt: skip
        shape = (ensemble_size, prediction_length, *inputs["field_values"].shape[2:])
        forecast = np.full(shape, np.nan, dtype=np.float32)
        bar = tqdm(total=ensemble_size * prediction_length, desc="forecast", unit="step", disable=not progress)
        with bar:
            for member, (plan, generator) in enumerate(zip(plans, generators)):
                steps = self.model.rollout(**inputs, num_steps=prediction_length, plan=plan, generator=generator)
                for step, state in enumerate(steps):
                    # Each step leaves the device at once, so memory there does not grow with the steps.
                    values = state[0].float().cpu().numpy()
                    if not np.isfinite(values).all():
                        who = f" of member {member + 1}" if ensemble_size > 1 else ""
                        message = f"the forecast{who} is not finite from step {step + 1} on; those frames are NaN"
                        warnings.warn(message, stacklevel=2)
                        break
                    forecast[member, step] = values
                    bar.update()
        return self.processor.postprocess(torch.from_numpy(forecast), recent)

    def _warn_of_small_changes(self, inputs: Any, recent: Trajectory) -> None:
        """Scales are at least `scale_eps`, so a field in very large units is forecast as noise of that size."""
        eps = self.model.config.scale_eps
        if "change_scales" in inputs:
            return
        changes = delta_scales(inputs["field_values"], 0.0)[0]
        for channel, change in zip(self.processor.channels(recent), changes.tolist()):
            if 0 < change < eps:
                warnings.warn(
                    f"field {channel.field!r} changes by {change:.1e} a frame, below the model's smallest scale of "
                    f"{eps:g}: its forecast will be noise; give it in smaller units",
                    stacklevel=3,
                )

    def evaluate(
        self, forecast: Trajectory, truth: Trajectory, windows: tuple[tuple[int, int], ...] | None = None
    ) -> dict[str, dict[str, float]]:
        """VRMSE of each field over windows of lead time, and their mean under `"all fields"`.

        Args:
            forecast: what `predict` returned.
            truth: a trajectory that covers the forecast's times.
            windows: first and last step, counted from 1; None takes those of the published protocol that fit.

        Returns:
            field -> `"1:10"` -> mean VRMSE over the steps of the window (1 is as good as the spatial mean).
        """
        scores = score(forecast, matching_frames(truth, forecast))
        scores["all fields"] = np.mean(list(scores.values()), axis=0)
        if windows is None:
            windows = tuple((first, last) for first, last in WINDOWS if last <= forecast.num_frames)
            windows += ((1, forecast.num_frames),) if (1, forecast.num_frames) not in windows else ()
        return lead_time_windows(scores, windows)


def matching_frames(truth: Trajectory, forecast: Trajectory) -> Trajectory:
    """The frames of `truth` at the times of `forecast`."""
    steps = forecast.num_frames
    start = round((forecast.time - truth.time) / truth.dt)
    ends = truth.time + truth.dt * np.array([start, start + steps - 1])
    apart = np.abs(ends - forecast.time - forecast.dt * np.array([0, steps - 1])).max()
    if apart > 1e-2 * abs(truth.dt) or start < 0 or start + steps > truth.num_frames:
        last = truth.time + (truth.num_frames - 1) * truth.dt
        raise ValueError(
            f"expected a truth with the forecast's {steps} frames from time {forecast.time:g} on, every "
            f"{forecast.dt:g}; found frames from {truth.time:g} to {last:g}, every {truth.dt:g}"
        )
    return truth.frames(start, start + steps)


def processor_for(config: WalrusConfig) -> WalrusProcessor:
    """A processor with the vocabulary and the tokenization of a model configuration."""
    return WalrusProcessor(
        field2id=config.field2id,
        tokens_per_axis=config.tokens_per_axis,
        tokens_per_axis_3d=config.tokens_per_axis_3d,
        jitter=config.jitter,
        num_hidden_layers=config.num_hidden_layers,
    )


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or a GPU if there is one; `ValueError` for one that this machine lacks."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device: expected one that this machine has, such as 'cpu', found {str(device)!r} ({_first_line(error)})"
        ) from error


def check_model_type(name: str, revision: str | None = None) -> None:
    """`ValueError` for a checkpoint of another architecture, `FileNotFoundError` where there is none."""
    path = Path(name).expanduser()
    if path.is_file():
        raise ValueError(f"{name}: expected the folder of a checkpoint, found a file")
    if path.is_dir() and not (path / "config.json").is_file():
        raise ValueError(f"{name}: expected the folder of a checkpoint, found one without a config.json")
    if not path.is_dir() and (path.is_absolute() or name[:1] in ("~", ".") or name.count("/") > 1):
        raise FileNotFoundError(f"{name}: expected the folder of a checkpoint, found none; check the path")
    try:
        config, _ = PreTrainedConfig.get_config_dict(name, revision=revision or "main")
        found = config.get("model_type")
    except (OSError, AttributeError, TypeError) as error:  # the latter two: JSON, but no mapping
        if path.is_dir():
            raise ValueError(f"{name}: expected a config.json with settings, found an unreadable one") from error
        raise FileNotFoundError(
            f"{name}: expected a folder or a Hub repository with a Walrus checkpoint, found no such folder and nothing "
            f"on the Hub ({_first_line(error)}); check the name and the connection"
        ) from error
    if found != WalrusConfig.model_type:
        raise ValueError(f"{name}: expected a checkpoint of model type 'walrus', found {found!r}")


def _load_model(name: str, revision: str, dtype: str | torch.dtype) -> WalrusForPrediction:
    """The model, with every weight from the checkpoint: transformers would fill missing ones with random numbers."""
    check_model_type(name, revision)
    try:
        loaded: Any = WalrusForPrediction.from_pretrained(
            name, revision=revision, dtype=dtype, use_safetensors=True, ignore_mismatched_sizes=True,
            output_loading_info=True,
        )  # fmt: skip
    except (OSError, SafetensorError, StrictDataclassError) as error:
        reason = _first_line(error.__cause__ or error)
        raise ValueError(
            f"{name}: expected a whole checkpoint of safetensors, found one that cannot be loaded ({reason}); "
            "save or download it again"
        ) from error
    model, report = loaded
    problems = [
        f"{len(report[kind])} {kind.partition('_')[0]} such as {_weight_name(sorted(report[kind])[0])}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        if report[kind]
    ]
    if problems:
        raise ValueError(
            f"{name}: expected the weights that its config.json describes, found {'; '.join(problems)}; "
            "save or download the folder again"
        )
    return model


def _load_processor(name: str, revision: str) -> WalrusProcessor:
    try:
        return WalrusProcessor.from_pretrained(name, revision=revision)
    except OSError as error:
        raise ValueError(
            f"{name}: expected a preprocessor_config.json beside the weights, found none that can be read; write it "
            "with the save_pretrained of the model's WalrusProcessor"
        ) from error


def _load_adapter(folder: Path, dtype: str | torch.dtype) -> tuple[Any, WalrusProcessor]:
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise ImportError(f"{folder} holds an adapter: pip install 'walrus-hf[finetune]' to load it") from error
    try:
        adapter = PeftConfig.from_pretrained(str(folder))
        base_name = adapter.base_model_name_or_path
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder}: expected an adapter_config.json of PEFT, found an unreadable one") from error
    if not base_name:
        raise ValueError(f"{folder}: expected the name of the base model in adapter_config.json, found none")
    base = WalrusPipeline.from_pretrained(base_name, adapter.revision, dtype, "cpu")
    own = (folder / "preprocessor_config.json").is_file()
    processor = _load_processor(str(folder), "main") if own else base.processor
    try:
        return PeftModel.from_pretrained(base.model, str(folder)), processor
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: expected an adapter for {base_name}, found one that cannot be loaded ({_first_line(error)})"
        ) from error


def _weight_name(key: Any) -> str:
    return key if isinstance(key, str) else str(key[0])  # mismatched ones come with their shapes


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
