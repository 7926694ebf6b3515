"""Teach a model a field that it does not know, without touching what it knows.

    python examples/new_field.py --output runs/smoke --tiny      # a stand-in model and data
    python examples/new_field.py --model walrus-1.3b --data my_smoke.hdf5 --field smoke --output runs/smoke

`add_fields` grows the vocabulary: forecasts of the old fields stay as they were. `fit(new_fields=...)` does the same,
and trains the new columns of encoder and decoder beside the adapter, as parameters of their own.
"""

import argparse
from pathlib import Path

import numpy as np
from finetune_lora import make_tiny

from walrus_hf import WalrusPipeline, load_well, save_well
from walrus_hf.finetuning import add_fields, fit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--data", help="a file of The Well's format that holds the field")
    parser.add_argument("--field", default="smoke", help="its name there")
    parser.add_argument("--like", default="tracer", help="the known field that it starts as")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--max-steps", type=int, default=500)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    if given.tiny:
        stand_in = given.output.with_name(f"{given.output.name}-stand-in")
        given.model, known = make_tiny(stand_in)
        runs = [load_well(known, number) for number in range(2)]
        for run in runs:
            run.fields["smoke"] = np.roll(run.fields["pressure"], 3, axis=1)
        given.data, given.max_steps = str(save_well(runs, stand_in / "smoke.hdf5", overwrite=True)), 2

    pipe = WalrusPipeline.from_pretrained(given.model)
    simulation = load_well(given.data)
    old = load_well(given.data)
    del old.fields[given.field]
    grown = WalrusPipeline(*add_fields(pipe.model, pipe.processor, [given.field], like=given.like))
    before, after = (p.predict(old, 1, seed=0, progress=False) for p in (pipe, grown))
    apart = max(np.abs(before.fields[name] - after.fields[name]).max() for name in old.fields)
    print(f"forecasts of the old fields differ by {apart:.1e} at most, which is rounding")
    first = grown.predict(simulation, 1, seed=0, progress=False)
    print(f"{given.field} is forecast untrained, as {given.like} would be: {first}")

    tuned = fit(given.model, given.data, given.output, new_fields={given.field: given.like}, max_steps=given.max_steps)
    print(tuned.predict(simulation, 4, seed=0, progress=False))
    print(f"written: {given.output}; WalrusPipeline.from_pretrained({str(given.output)!r}) knows {given.field} again")


if __name__ == "__main__":
    main()
