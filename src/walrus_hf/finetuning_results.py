"""What `fit` leaves behind: forecasts before and after, the result's folder with its card and pictures."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from .finetuning_arguments import FinetuningArguments
from .finetuning_data import Windows
from .finetuning_loop import Tuning
from .hub import STATE
from .metrics import every_frame, persistence, score
from .model_card import finetuned_card
from .pipeline_walrus import WalrusPipeline
from .safe_files import remove_folder, write_json, write_text

RESULTS, CHECKPOINTS, CARD = "results.json", "checkpoints", "README.md"


@dataclasses.dataclass
class Rollouts:
    """Forecasts of held-out trajectories, to compare models by."""

    windows: Windows
    numbers: list[int]
    first: list[int]
    steps: int

    def parts(self, place: int) -> tuple[Any, Any]:
        """Context and truth, frames `stride` apart."""
        windows = self.windows
        whole = windows.trajectory(self.numbers[place]).frames(self.first[place])
        whole = every_frame(whole, windows.stride)
        steps = min(self.steps, whole.num_frames - windows.frames)
        return whole.frames(0, windows.frames), whole.frames(windows.frames, windows.frames + steps)

    def errors(self, accelerator: Accelerator, pipe: WalrusPipeline) -> dict[str, list[float]]:
        """VRMSE at each lead time, mean over fields and trajectories, of a model and of persistence.

        All ranks share the work.
        """
        pipe.model.eval()
        own = [
            (place, *(np.mean(list(score(forecast, truth).values()), axis=0).tolist() for forecast in forecasts))
            for place, truth, forecasts in self._forecasts(accelerator, pipe)
        ]
        _, *curves = zip(*sorted(gather_object(own)))
        shortest = min(len(curve) for curve in curves[0])
        means = (np.mean([curve[:shortest] for curve in who], axis=0).tolist() for who in curves)
        return dict(zip(("model", "persistence"), means))

    def _forecasts(self, accelerator: Accelerator, pipe: WalrusPipeline) -> Iterator[tuple[int, Any, list[Any]]]:
        """Of this rank's trajectories the truth, and what the model and persistence make of it."""
        for place in range(len(self.numbers))[accelerator.process_index :: accelerator.num_processes]:
            context, truth = self.parts(place)
            steps = truth.num_frames
            forecast = pipe.predict(context, steps, seed=place, progress=False, frame_stride=1)
            yield place, truth, [forecast, persistence(context, steps)]


def check_folder(folder: Path | None, given: FinetuningArguments) -> bool:
    """Refuse an output folder with something in it; whether `overwrite` has to make room in it (`clear_folder`)."""
    if folder is None:
        if given.resume:
            raise ValueError("resume: expected an output_dir that holds a checkpoint, found none")
        return False
    if folder.is_file():
        raise ValueError(f"{folder}: expected a folder, found a file")
    if not folder.is_dir() or not any(folder.iterdir()):
        return False
    finished = (folder / RESULTS).is_file()
    interrupted = (folder / CHECKPOINTS).is_dir()  # a run that is to replace a finished one stands beside its result
    # Logs may be there already; a model or a card is somebody's.
    is_new = not finished and not any(STATE.fullmatch(path.name) or path.name == CARD for path in folder.iterdir())
    if given.resume and (interrupted or is_new):
        return False
    if given.overwrite and (finished or interrupted):
        return True
    expected = "an interrupted run" if given.resume else "an empty folder"
    found = "an interrupted run" if interrupted else "a finished run" if finished else "other files"
    remedies = ["choose another one"]
    if finished or interrupted:
        remedies.append("replace it with overwrite=True (--overwrite)")
    if interrupted:
        remedies.append("go on with resume=True (--resume)")
    raise FileExistsError(f"{folder}: expected {expected}, found {found}; {', or '.join(remedies)}")


def clear_folder(folder: Path) -> None:
    """Take away the checkpoints of a former run. Its result stays until there is a new one."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def write_results(
    folder: Path, result: WalrusPipeline, tuning: Tuning, rollout: Rollouts, base_name: str, data: str,
    given: FinetuningArguments,
) -> None:  # fmt: skip
    """The result beside its checkpoints: first aside, then moved, `results.json` last; then the checkpoints go."""
    aside = folder / ".result"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    result.save_pretrained(aside)
    progress = tuning.progress
    best = min(progress.validations, key=lambda row: row["step"] != progress.best_step)
    trained = sum(p.numel() for p in result.model.parameters() if p.requires_grad)
    results = {
        "base": base_name, "data": data, "settings": given.identity() | {"learning_rate": given.rate},
        "frames": rollout.windows.frames, "steps": progress.step,
        "best_step": progress.best_step, "trained_parameters": trained,
        "parameters": sum(p.numel() for p in result.model.parameters()),
        "vrmse": {"before": progress.validations[0]["vrmse"], "after": best["vrmse"],
                  "persistence": best["persistence"]},
        "rollout_vrmse": {"before": progress.notes["before"]["model"], "after": progress.notes["after"]["model"],
                          "persistence": progress.notes["after"]["persistence"]},
        "held_out": {"windows": tuning.held_count, "scored": len(tuning.held)},
        "validations": progress.validations,
    }  # fmt: skip
    (aside / CARD).write_text(finetuned_card(results), encoding="utf-8")
    _draw(aside, result, results["rollout_vrmse"], rollout)
    _replace_state(folder, aside)
    metrics = folder / CHECKPOINTS / "metrics.jsonl"
    if metrics.is_file():
        write_text(folder / "metrics.jsonl", metrics.read_text(encoding="utf-8"))
    # Before the checkpoints go: with them, whoever is killed in between can finish later.
    write_json(folder / RESULTS, results)
    remove_folder(folder / CHECKPOINTS)  # half removed, they would make the run look interrupted


def _replace_state(folder: Path, aside: Path) -> None:
    """Move a result in, after whatever a model is loaded from has gone: an old adapter would win over new weights."""
    for old in folder.iterdir():
        if STATE.fullmatch(old.name):
            old.unlink()
    for new in sorted(aside.iterdir()):
        os.replace(new, folder / new.name)
    aside.rmdir()


def read_results(folder: Path) -> dict[str, Any] | None:
    """The content of `results.json`; None where a run has not finished, though it be one that replaces another."""
    file = folder / RESULTS
    if not file.is_file() or (folder / CHECKPOINTS).is_dir():
        return None
    return json.loads(file.read_text(encoding="utf-8"))


def _draw(folder: Path, pipe: WalrusPipeline, curves: Mapping[str, list[float]], rollout: Rollouts) -> None:
    """Error growth before and after, and a forecast beside the truth; without matplotlib none."""
    if find_spec("matplotlib") is None:
        return
    from .plotting import plot_error_growth, plot_panels

    named = {"before": "before fine-tuning", "after": "after fine-tuning", "persistence": "persistence"}
    plot_error_growth({named[who]: np.array(curve) for who, curve in curves.items()}, folder / "error_growth.png")
    context, truth = rollout.parts(0)
    forecast = pipe.predict(context, truth.num_frames, seed=0, progress=False, frame_stride=1)
    plot_panels(forecast, truth, folder / "forecast.png")
