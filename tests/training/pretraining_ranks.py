"""Run by test_loop.py on two processes with gloo: several runs in one launch. Rank 0 writes what it saw as JSON.

accelerate launch --multi_gpu --num_processes 2 tests/training/pretraining_ranks.py FOLDER
"""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import gather_object

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.training.small_runs import GRIDS, settings
from walrus_hf.training import loop

train_step = loop.train_step


def digest(run):
    states = [p.detach().numpy().tobytes() for p in run.bare.parameters()]
    return hashlib.sha256(b"".join(states)).hexdigest()


def main():
    folder, report, digests = Path(sys.argv[1]), {}, []
    data = folder / "data"
    torch.set_num_threads(1)

    def watched(run, plan, batches, step):
        row = train_step(run, plan, batches, step)
        digests.append(digest(run))
        return row

    loop.train_step = watched
    loop.pretrain(settings(data, folder / "two", groups=2, strategy="ddp"))
    report["digests"] = gather_object([digests])
    rank = PartialState().process_index

    def signalled(run, plan, batches, step):
        if step == 2 and rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(run, plan, batches, step)

    loop.train_step = signalled
    stopped = loop.pretrain(settings(data, folder / "stopped", groups=2, save_steps=100))
    report["stopped"] = gather_object([stopped.name])

    counts = []

    def counted(run, plan, batches, step):
        counts.append([len(group) for group in plan.step(step).groups])
        return train_step(run, plan, batches, step)

    loop.train_step = counted
    # One source as dear as the others together.
    loop.micro_batch_cost = lambda geometry, *_, **__: 3.0 if geometry.grid == GRIDS["deep"] else 1.0
    loop.pretrain(settings(data, folder / "variable", groups=2, mode="variable", max_steps=3, validation_steps=0))
    report["counts"] = counts
    if rank == 0:
        (folder / "report.json").write_text(json.dumps(report))
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
