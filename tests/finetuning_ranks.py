"""Run by test_finetuning_ranks.py on two processes with gloo. Rank 0 writes what both saw as JSON.

accelerate launch --multi_gpu --num_processes 2 tests/finetuning_ranks.py FOLDER
"""

import hashlib
import json
import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.finetuning_runs import QUICK, RUNS
from walrus_hf import finetuning, finetuning_loop
from walrus_hf.finetuning import fit

SETTINGS = {**QUICK, "max_steps": 4, "validation_steps": 2, "save_steps": 1}


def digest(pipe) -> str:
    state = sorted(pipe.model.state_dict().items())
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for _, tensor in state)).hexdigest()


def message(function, *arguments, **settings) -> str:
    try:
        function(*arguments, **settings)
    except (ValueError, OSError) as error:
        return str(error)
    return "no error"


def forbidden(*_):
    raise AssertionError("only rank 0 writes")


def interrupted(base: Path, folder: Path, rank: int):
    """A run whose second process gets a signal in its second step, and the rest of it."""
    step = finetuning_loop.Tuning._step

    def told(self, number):
        row = step(self, number)
        if (number, rank) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return row

    finetuning_loop.Tuning._step = told
    fit(base, RUNS, folder, **SETTINGS)
    finetuning_loop.Tuning._step = step
    kept = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    Accelerator().wait_for_everyone()
    return kept, fit(base, RUNS, folder, resume=True, **SETTINGS)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder, report = Path(sys.argv[1]), {}
    state = Accelerator()
    base, rank = folder / "base", state.process_index
    if rank:
        finetuning.write_results = finetuning.clear_folder = forbidden
    whole = fit(base, RUNS, folder / "two", **SETTINGS)
    kept, rest = interrupted(base, folder / "cut", rank)
    early = {**QUICK, "max_steps": 30, "validation_steps": 1, "patience": 2, "learning_rate": 30.0}
    stopped = fit(base, RUNS, folder / "early", method="full", **early)
    refusal = message(fit, base, RUNS, folder / "early", method="full", **early)
    again = fit(base, RUNS, folder / "early", overwrite=True, **SETTINGS)
    for name, value in {
        "weights": [digest(pipe) for pipe in (whole, rest, stopped, again)], "checkpoints": kept, "refusal": refusal,
    }.items():  # fmt: skip
        report[name] = gather_object([value])
    if state.is_main_process:
        (folder / "report.json").write_text(json.dumps(report))
    state.wait_for_everyone()
    state.end_training()


if __name__ == "__main__":
    main()
