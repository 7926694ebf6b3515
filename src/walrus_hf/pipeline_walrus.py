"""Model and processor as one object: `WalrusPipeline.from_pretrained(name).predict(trajectory)`."""

from __future__ import annotations

import contextlib
import operator
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from .adapter_files import (
    RECORD_FILE,
    AdapterRecord,
    adapter_config,
    adapter_folder,
    attach_adapter,
    check_base,
    described_fields,
    fingerprint,
)
from .adapters import bare_model, configs_of, join_columns, restored_on_error
from .checkpoints import locate
from .fields import Trajectory, check_trajectory
from .loading import load_model, load_processor, processor_for, usable_device
from .metrics import every_frame, lead_time_windows, matching_frames, score
from .modeling_walrus import WalrusForPrediction
from .processing_walrus import WalrusProcessor
from .rollouts import hidden_changes, member_rollouts, not_finite, other_stride, small_changes

BASE = "base"  # in `predict(adapter=)`: the model without any adapter
# Lead times that the published evaluation averages over (arXiv 2511.15684, section 7), first and last step.
WINDOWS = ((1, 1), (1, 10), (11, 30), (1, 20), (21, 60))


class WalrusPipeline:
    """Forecasts of trajectories in their own names, units and grid.

    Args:
        model: a [`WalrusForPrediction`], or one with PEFT adapters.
        processor: its [`WalrusProcessor`]; None makes one that fits the model's configuration.
        adapter_record: what is known of the base of its adapters; `fit` and `from_pretrained` give it.
        base: the pipeline that the adapters were added to, for what the model reads without them; they give it too.

    Raises:
        ValueError: a model that cannot forecast, is a wrapper of `torch.compile`, or holds adapters that PEFT did not
            put around it; a processor of another vocabulary.
    """

    def __init__(
        self,
        model: WalrusForPrediction,
        processor: WalrusProcessor | None = None,
        adapter_record: AdapterRecord | None = None,
        base: WalrusPipeline | None = None,
    ):
        _check_model(model)
        self.model: Any = model.eval()
        own = processor or processor_for(model.config)
        self.adapter_record = adapter_record
        # By adapter; under BASE those of the model without any.
        self._processors = {BASE: own if base is None else base.processor, **dict.fromkeys(self._adapters(), own)}
        here = model.config.scale_eps
        self._scale_eps: dict[str, float] = {
            BASE: here if base is None else base._scale_eps[BASE],
            **dict.fromkeys(self._adapters(), here),
        }
        known = model.config.field2id or {}
        for name, i in self.processor.field2id.items():
            if known.get(name) != i:
                raise ValueError(
                    f"processor: its vocabulary gives {name!r} the id {i}, the model's gives {known.get(name)}; load "
                    "both from one checkpoint, or make the processor with field2id=model.config.field2id"
                )

    @property
    def processor(self) -> WalrusProcessor:
        """That of the active adapter, or of a model without one."""
        return self._processors.get(self._active(), self._processors[BASE])

    @processor.setter
    def processor(self, processor: WalrusProcessor) -> None:
        self._processors[self._active()] = processor

    def _active(self) -> str:
        return self.model.active_adapter if self._adapters() else BASE

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
    ) -> WalrusPipeline:
        """Load a folder of `save_pretrained`, an adapter folder, a packaged checkpoint, or a Hub id.

        Args:
            name_or_path: a path that exists, else the name of a checkpoint in the package (`"walrus-nano"`), else a Hub
                id. The base model of an adapter is found by itself.
            revision: branch, tag or commit of a Hub repository.
            dtype: of the weights; "auto" takes what the checkpoint's config.json says: float32 of walrus-nano, whose
                file is bfloat16 to be small, so that forecasts on a CPU are neither coarse nor slow.
            device: where the model goes; None takes a GPU if there is one.

        Raises:
            ValueError: a checkpoint of another model type, a damaged or incomplete one, a device that is not there.
            FileNotFoundError: neither a folder of that name nor a Hub repository that can be reached.
        """
        device = usable_device(device)
        name = locate(name_or_path)
        adapter = adapter_folder(name, revision)
        if adapter is not None:
            return cls._from_adapter(adapter, dtype, device)
        model: Any = load_model(name, revision or "main", dtype)
        if not Path(name_or_path).expanduser().exists():
            model.name_or_path = str(name_or_path)  # where the package lies, only this machine knows
        return cls(model.to(device), load_processor(name, revision or "main"))

    @classmethod
    def _from_adapter(cls, folder: Path, dtype: str | torch.dtype, device: torch.device) -> WalrusPipeline:
        adapter = adapter_config(folder)
        base = cls.from_pretrained(adapter.base_model_name_or_path, adapter.revision, dtype, "cpu")
        record = check_base(folder, fingerprint(base.model), adapter.base_model_name_or_path)
        if record is not None:
            record.extension.apply(base.model, separate=True)
        own = (folder / "preprocessor_config.json").is_file()
        processor = load_processor(str(folder), "main") if own else base.processor
        return cls(attach_adapter(base.model, folder, "default").to(device), processor, record, base)

    def load_adapter(self, folder: str | Path, name: str) -> None:
        """Load one more adapter of the same base; `predict(adapter=name)` takes it.

        Args:
            folder: of the adapter, local or on the Hub.
            name: what this pipeline calls it.

        Raises:
            ValueError: an adapter of another base, one that extends the base otherwise than this pipeline's, or a name
                that is taken.
        """
        found = adapter_folder(str(Path(folder).expanduser()), None) or adapter_folder(str(folder), None)
        if found is None:
            raise FileNotFoundError(f"{folder}: expected the folder of an adapter, found no adapter_config.json")
        adapted = self._adapters()
        if name == BASE or name in adapted:
            raise ValueError(f"name: expected one that is not taken, found {name!r} beside {', '.join(adapted)}")
        known = self.adapter_record.base if self.adapter_record is not None else fingerprint(bare_model(self.model))
        record = check_base(found, known, "this pipeline")
        if not adapted:
            self._scale_eps[BASE] = self.model.config.scale_eps
        extension = None if record is None else record.extension
        loaded = None if self.adapter_record is None else self.adapter_record.extension
        if adapted and extension is not None and extension != loaded:
            raise ValueError(
                f"{folder}: extends its base by other fields or parameters than the adapters that are loaded; give it "
                "a pipeline of its own with WalrusPipeline.from_pretrained"
            )
        own = (found / "preprocessor_config.json").is_file()
        processor = load_processor(str(found), "main") if own else self._processors[BASE]
        device = next(self.model.parameters()).device
        with restored_on_error(self.model):
            if extension is not None and not adapted:
                extension.apply(self.model, separate=True)
            self.model = attach_adapter(self.model, found, name).to(device).eval()
        self.adapter_record = self.adapter_record if adapted else record
        self._processors[name] = processor
        self._scale_eps[name] = self._scale_eps[BASE] if extension is None else extension.scale_eps

    def merge_adapter(self) -> WalrusPipeline:
        """A pipeline whose model has the active adapter merged into its weights, to rounding; this one is used up.

        Raises:
            ValueError: no adapter is loaded.
        """
        active = self._adapters()
        if not active:
            raise ValueError("merge_adapter: expected a pipeline with an adapter, found none")
        processor, scale_eps = self.processor, self._scale_eps[self._active()]
        merged = self.model.merge_and_unload(safe_merge=True)
        join_columns(merged)
        for config in configs_of(merged):
            config.scale_eps = scale_eps
        return WalrusPipeline(merged, processor)

    def _adapters(self) -> list[str]:
        _check_model(self.model)
        return [] if isinstance(self.model, WalrusForPrediction) else list(self.model.peft_config)

    @contextlib.contextmanager
    def _using(self, adapter: str | None) -> Iterator[WalrusProcessor]:
        """The processor that goes with an adapter, which is active inside the block."""
        known = self._adapters()
        if not known and adapter in (None, BASE):
            yield self.processor
        elif adapter is None:
            with self._smallest_scale(self._active()):
                yield self.processor
        elif adapter == BASE:
            with self.model.disable_adapter(), self._without_position(), self._smallest_scale(BASE):
                yield self._processors[BASE]
        elif adapter not in known:
            raise ValueError(f"adapter: expected one of {', '.join([BASE, *known])}, found {adapter!r}")
        else:
            active = self.model.active_adapter
            self.model.set_adapter(adapter, inference_mode=True)
            try:
                with self._smallest_scale(adapter):
                    yield self._processors.get(adapter, self._processors[BASE])
            finally:
                self.model.set_adapter(active, inference_mode=True)

    @contextlib.contextmanager
    def _smallest_scale(self, adapter: str) -> Iterator[None]:
        """Fine-tuning has a smaller `scale_eps` than its base, and all share one configuration."""
        configs, before = list(configs_of(self.model)), self.model.config.scale_eps
        for config in configs:
            config.scale_eps = self._scale_eps.get(adapter, before)
        try:
            yield
        finally:
            for config in configs:
                config.scale_eps = before

    @contextlib.contextmanager
    def _without_position(self) -> Iterator[None]:
        """PEFT keeps what fine-tuning added as the base's own: the first draw of a position embedding, on one grid."""
        added = self.adapter_record is not None and self.adapter_record.extension.absolute_position_shape is not None
        inner = bare_model(self.model).model
        position = inner.absolute_position
        inner.absolute_position = None if added else position
        try:
            yield
        finally:
            inner.absolute_position = position

    def save_pretrained(self, directory: str | Path, max_shard_size: str = "50GB") -> None:
        """Configuration, weights (safetensors) and processor in one folder; of adapters the active one.

        Raises:
            FileExistsError: a whole model is there and this would be an adapter, or the other way round.
            ValueError: an adapter on a base to which fields were added that would not be saved.
        """
        folder, adapted = Path(directory), bool(self._adapters())
        _refuse_other_kind(folder, adapted)
        if adapted:
            self._refuse_lost_fields(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if adapted:
            self._save_adapter(folder)
        else:
            self.model.save_pretrained(folder, max_shard_size=max_shard_size)
        self.processor.save_pretrained(folder)

    def _refuse_lost_fields(self, folder: Path) -> None:
        """New columns that neither the base nor the record describes would be left out in silence."""
        name = self.model.active_adapter
        known = described_fields(self.adapter_record, self.model.peft_config[name])
        lost = [field for field in self.model.config.field2id or {} if known is not None and field not in known]
        if lost:
            raise ValueError(
                f"{folder}: expected an adapter of a base that knows all its fields, found {', '.join(lost)} added to "
                "the base before it, which a folder of an adapter does not hold; save what merge_adapter() gives, or "
                "save the base with the new fields first, and put the adapter on what is loaded from there"
            )

    def _save_adapter(self, folder: Path) -> None:
        """The active adapter at the top, where `from_pretrained` looks; PEFT gives named ones folders of their own."""
        name = self.model.active_adapter
        with tempfile.TemporaryDirectory(prefix=".adapter-", dir=folder) as aside:
            # Where new fields have grown the vocabulary, PEFT would store whole encoders beside an adapter.
            self.model.save_pretrained(aside, selected_adapters=[name], save_embedding_layers=False)
            written = Path(aside) if name == "default" else Path(aside) / name
            for file in written.iterdir():
                if file.name != "README.md":
                    os.replace(file, folder / file.name)
            if not (folder / "README.md").exists():
                os.replace(Path(aside) / "README.md", folder / "README.md")
        if self.adapter_record is not None:
            self.adapter_record.save(folder)
        else:
            (folder / RECORD_FILE).unlink(missing_ok=True)  # of the adapter that was there

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        max_shard_size: str = "5GB",
        **kwargs: Any,
    ) -> str:
        """Upload model, processor, code and card in one commit; of a model with an adapter, the adapter.

        Args:
            repo_id: `ORG/NAME`; made where there is none.
            private: None follows the owner's default for a new repository.
            token: None takes the one of `hf auth login` or `HF_TOKEN`.
            revision: branch to push to.
            max_shard_size: of a file of weights.
            kwargs: `base_model`, `license`, `datasets` and `results`, as in `walrus_hf.hub.prepare_upload`.

        Returns:
            Address of the commit.
        """
        from .hub import prepare_upload, push

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, max_shard_size)
            upload = prepare_upload(folder, repo_id, **kwargs)
            return push(upload, private=private, token=token, revision=revision, commit_message=commit_message)

    def predict(
        self,
        trajectory: Trajectory,
        prediction_length: int = 50,
        ensemble_size: int = 1,
        seed: int | None = None,
        jitter: bool | None = None,
        tokens_per_axis: int | None = None,
        use_cache: bool = False,
        cache_steps: int = 1,
        progress: bool = True,
        frames: int | None = None,
        frame_stride: int | None = None,
        adapter: str | None = None,
    ) -> Trajectory:
        """Forecast the frames that follow a trajectory.

        Args:
            trajectory: at least two frames; the last `frames` are used.
            prediction_length: frames to forecast; frame k is k times `frame_stride * trajectory.dt` after the last
                given one.
            ensemble_size: members that differ in their random jitter alone; the result is their mean, and the members
                stand in its `.ensemble`. They show the effect of jitter, not the uncertainty of the forecast.
            seed: of the jitter; None draws from torch's default generator.
            jitter: None takes the processor's setting.
            tokens_per_axis: the compute dial; None takes the processor's setting.
            use_cache: hold scales and jitter for `cache_steps` steps, of which all but the first compute the newest
                frame alone: several times faster, at some cost in accuracy (`WalrusForPrediction.rollout`).
            cache_steps: steps between two renewals.
            progress: show a progress bar.
            frames: most frames to forecast from, at least 2; None takes the processor's `context_frames`
                (`context_frames_3d` for volumes).
            frame_stride: read every so many frames, and forecast frames as far apart. None is 1, with a warning where
                the model was fine-tuned on frames farther apart; 1 says that these are.
            adapter: name of the adapter to use, `"base"` for none; None takes the active one.

        Returns:
            The forecast frames only. Frames after a NaN or overflow are NaN, with a warning.

        Raises:
            ValueError: fields, frames or a grid that the model cannot take.
        """
        check_trajectory(trajectory)
        with self._using(adapter) as processor:
            jitter = processor.jitter if jitter is None else jitter
            stride = 1 if frame_stride is None else frame_stride
            _check_request(trajectory, prediction_length, ensemble_size, jitter, frames, stride)
            line = other_stride(processor)
            if line is not None and frame_stride is None:
                warnings.warn(line, stacklevel=2)
            recent = _last_frames(trajectory, frames or processor.most_frames(trajectory.grid), stride)
            held = {"use_cache": use_cache, "cache_steps": cache_steps}
            return self._forecast(processor, recent, prediction_length, ensemble_size, seed, jitter, tokens_per_axis,
                                  held, progress)  # fmt: skip

    def _forecast(
        self,
        processor: WalrusProcessor,
        recent: Trajectory,
        prediction_length: int,
        ensemble_size: int,
        seed: int | None,
        jitter: bool,
        tokens_per_axis: int | None,
        held: dict[str, Any],
        progress: bool,
    ) -> Trajectory:
        inputs = processor(recent)
        eps = self.model.config.scale_eps
        for field, change in small_changes(processor, inputs, recent, eps).items():
            warnings.warn(
                f"field {field!r} changes by {change:.1e} a frame, below the model's smallest scale of {eps:g}: its "
                "forecast will be noise; give it in smaller units",
                stacklevel=3,
            )
        for field in hidden_changes(processor, inputs, recent):
            warnings.warn(
                f"field {field!r} changes by less a frame than float32 tells apart at its magnitude: its forecast will "
                "be noise; subtract a constant from it, such as its mean",
                stacklevel=3,
            )
        seeds = [None if seed is None else operator.index(seed) + i for i in range(ensemble_size)]  # NumPy's, too
        generators = [None if own is None else torch.Generator().manual_seed(own) for own in seeds]
        members = member_rollouts(
            self.model, processor, inputs, recent, prediction_length, generators, tokens_per_axis, jitter, **held
        )
        shape = (ensemble_size, prediction_length, *inputs["field_values"].shape[2:])
        forecast = np.full(shape, np.nan, dtype=np.float32)
        bar = tqdm(total=ensemble_size * prediction_length, desc="forecast", unit="step", disable=not progress)
        with bar:
            for member in range(ensemble_size):
                # Taken off the list: a rollout that is left at a NaN must not keep its window and cache.
                for step, state in enumerate(members.pop(0)):
                    # Each step leaves the device at once, so memory there does not grow with the steps.
                    values = state[0].float().cpu().numpy()
                    reason = not_finite(processor, values, recent)
                    if reason is not None:
                        who = f" of member {member + 1}" if ensemble_size > 1 else ""
                        message = f"the forecast{who} {reason} from step {step + 1} on; those frames are NaN"
                        warnings.warn(message, stacklevel=3)
                        break
                    forecast[member, step] = values
                    bar.update()
        return processor.postprocess(torch.from_numpy(forecast), recent)

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


def _check_model(model: Any) -> None:
    """`ValueError` for a model that gives no forecast, or whose adapters or compilation would be passed over."""
    if hasattr(model, "_orig_mod"):
        raise ValueError(
            "model: expected the model itself, found a wrapper of torch.compile, around whose forecasts nothing would "
            "be compiled; call model.compile(), which compiles in place, and give the model"
        )
    if isinstance(model, WalrusForPrediction):
        if getattr(model, "_hf_peft_config_loaded", False):
            raise ValueError(
                "model: expected one without adapters, or with PEFT's around it, found adapters that transformers put "
                "inside; give the bare model, then call WalrusPipeline.load_adapter(folder, name)"
            )
    elif not hasattr(model, "peft_config") or not any(isinstance(m, WalrusForPrediction) for m in model.modules()):
        raise ValueError(
            f"model: expected a WalrusForPrediction, or one with PEFT adapters, found {type(model).__name__}, which "
            "cannot forecast; load it with WalrusForPrediction.from_pretrained"
        )


def _refuse_other_kind(folder: Path, adapted: bool) -> None:
    """A whole model beside an adapter would not be loaded, and an adapter beside a whole model hides that."""
    whole = ("config.json", "model.safetensors", "model.safetensors.index.json")
    found = [name for name in (whole if adapted else ("adapter_config.json",)) if (folder / name).exists()]
    if found:
        wanted, other = ("an adapter", "a whole model") if adapted else ("a whole model", "an adapter")
        raise FileExistsError(
            f"{folder}: expected a folder to save {wanted} in, found {other} there ({found[0]}); choose another "
            "folder, or delete the old files first"
        )


def _check_request(
    trajectory: Trajectory, steps: int, members: int, jitter: bool, frames: int | None, stride: int
) -> None:
    if steps < 1 or members < 1:
        raise ValueError(f"expected at least 1 step and 1 member, found {steps} and {members}")
    if stride < 1 or (frames is not None and frames < 2):
        raise ValueError(f"expected at least 2 frames and a frame_stride of at least 1, found {frames} and {stride}")
    if trajectory.num_frames < 1 + stride:
        every = f" every {stride}" if stride > 1 else ""
        raise ValueError(
            f"expected at least 2 frames{every} to forecast from (their change sets the scale), found "
            f"{trajectory.num_frames}"
        )
    if members > 1 and not jitter:
        raise ValueError("ensemble_size: without jitter all members are equal; switch jitter on or ask for one")


def _last_frames(trajectory: Trajectory, most: int, stride: int) -> Trajectory:
    """At most so many frames, each `stride` after the one before, the last being the trajectory's last."""
    count = min(most, (trajectory.num_frames - 1) // stride + 1)
    return every_frame(trajectory.frames(trajectory.num_frames - 1 - (count - 1) * stride), stride)
