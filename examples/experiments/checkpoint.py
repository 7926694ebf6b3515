"""What the experiments on one trained checkpoint share: loading it, saying what it is, and forecasts by a given plan.

Shapes: B batch, T frames, C channels, H W D space.
"""

import argparse
import dataclasses
import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Results, Windows
from common import parser as common_parser
from torch import Tensor

from walrus_hf import Trajectory, WalrusPipeline, checkpoints
from walrus_hf.checkpoints import locate
from walrus_hf.jitter import TokenizationPlan, make_plan
from walrus_hf.strides import Strides

PACKAGED, PACKAGED_FOLDER = "walrus-nano", Path(checkpoints.__file__).parent
CARDS = Path(__file__).parents[2] / "model_cards"
TINY = ("wave", "acoustic_scattering")  # scenarios of `--tiny`, which need no JAX
# Lead times that errors are averaged over; those of the published evaluation of unseen data.
WINDOWS = {"1": (1, 1), "1:10": (1, 10), "11:30": (11, 30)}


def parser(doc: str | None) -> argparse.ArgumentParser:
    made = common_parser(doc)
    made.add_argument("--model", default=PACKAGED, help="a packaged checkpoint, or a folder")
    return made


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A trained model, and what a result says about it.

    Attributes:
        digest: of the weights.
        trained: how long it was trained, in words.
    """

    pipe: WalrusPipeline
    name: str
    digest: str
    trained: str

    @classmethod
    def load(cls, given: argparse.Namespace) -> "Checkpoint":
        """Raises ValueError where nobody knows how long it was trained: a result would not say what it is about."""
        warnings.filterwarnings("ignore", message=".*outside the published stride table")
        trained = training_text(Path(locate(given.model)))
        if trained is None:
            raise ValueError(
                f"{given.model}: expected metrics.jsonl in the folder or the one above, which tells how long it was "
                "trained, found none; give the folder `model` of a pretraining run, or a packaged checkpoint"
            )
        pipe = WalrusPipeline.from_pretrained(given.model, device="cpu")
        whole = hashlib.sha256()
        for name, values in sorted(pipe.model.state_dict().items()):
            whole.update(name.encode() + values.float().numpy().tobytes())
        path = Path(given.model)
        name = path.name if path.name != "model" else path.resolve().parent.name
        return cls(pipe, name, whole.hexdigest()[:12], trained)

    def results(self, folder: Path, tiny: bool, **settings: Any) -> Results:
        """What was measured of these weights with these settings; other weights have a file of their own."""
        return Results(folder / f"{self.digest}.json", tiny=tiny, **settings)

    def text(self) -> str:
        millions = sum(p.numel() for p in self.pipe.model.parameters()) / 1e6
        size = f"{millions:.1f} million parameters"
        return f"`{self.name}`: {size}, {self.trained}; digest of names and values {self.digest}"

    def record(self) -> dict[str, Any]:
        """As it stands in the small JSON files."""
        return {"model": self.name, "trained": self.trained, "weights": self.digest}


def training_text(folder: Path) -> str | None:
    """Steps and time of the training: from the metrics beside a model or the card of a packaged one; else None."""
    for file in (folder / "metrics.jsonl", folder.parent / "metrics.jsonl"):
        if file.is_file():
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            seconds = {row["step"]: row["seconds"] for row in rows if "seconds" in row}
            return f"trained for {len(seconds):,} steps in {sum(seconds.values()):,.0f} s"
    card = CARDS / folder.name / "results.json"
    if folder.parent == PACKAGED_FOLDER and card.is_file():
        training = json.loads(card.read_text())["training"]
        tokens = ", ".join(map(str, training["tokens"] or []))
        drawn = f", at the end with tokens an axis of planes drawn from {tokens}" if tokens else ""
        return f"trained for {training['steps']:,} steps in {training['minutes']:,} minutes of one core{drawn}"
    return None


# --- forecasting


def windows_of(pipe: WalrusPipeline, whole: Sequence[Trajectory], firsts: Sequence[int], steps: int) -> Windows:
    """Forecasts of `steps` frames from each of the frames `firsts` on, of trajectories on one grid.

    Planes and volumes are forecast from as many frames as `WalrusPipeline.predict` takes.
    """
    context = pipe.processor.most_frames(whole[0].grid)
    contexts = [t.frames(max(first - context, 0), first) for t in whole for first in firsts]
    truths = [t.frames(first, first + steps) for t in whole for first in firsts]
    parts = [pipe.processor(context) for context in contexts]
    inputs = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Windows(inputs, contexts, truths, pipe.processor)


def plan_for(
    windows: Windows,
    tokens: int | None = None,
    strides: Sequence[Strides] | None = None,
    jitter: bool | None = None,
    generator: torch.Generator | None = None,
) -> TokenizationPlan:
    """The plan that all windows of a batch share; None is the processor's setting."""
    processor = windows.processor
    return make_plan(
        windows.inputs["field_values"].shape[3:],
        windows.inputs["boundary_conditions"][0].tolist(),
        tokens or processor.tokens_per_axis,
        tokens or processor.tokens_per_axis_3d,
        processor.jitter if jitter is None else jitter,
        processor.num_hidden_layers,
        strides,
        generator,
    )


def forecast(
    pipe: WalrusPipeline,
    windows: Windows,
    steps: int,
    seed: int = 0,
    tokens: int | None = None,
    strides: Sequence[Strides] | None = None,
    jitter: bool | None = None,
    **rollout: Any,
) -> Tensor:
    """`(B, steps, C, H, W, D)`; `rollout` goes to `WalrusForPrediction.rollout`."""
    generator = torch.Generator().manual_seed(seed)
    plan = plan_for(windows, tokens, strides, jitter, generator)
    rollout = {"hold_scales": pipe.processor.hold_scales, **rollout}
    return pipe.model.predict(**windows.inputs, num_steps=steps, plan=plan, generator=generator, **rollout)


def means(curves: np.ndarray, windows: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Of errors `(windows, steps)`: the mean over lead times, then the median over windows."""
    return {
        name: float(np.median(curves[:, first - 1 : last].mean(1)))
        for name, (first, last) in windows.items()
        if last <= curves.shape[1]
    }
