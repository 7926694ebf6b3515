"""Small files in The Well's format for tests of streams: every layout, known numbers, an oracle beside the reader."""

import functools

import h5py
import numpy as np
import torch

from walrus_hf import WalrusProcessor
from walrus_hf.data.well import load_well
from walrus_hf.data.well_writer import save_well
from walrus_hf.fields import Trajectory

GRID = (10, 12)


def trajectory(seed, frames=20, grid=GRID, name="flow", constant=True, sides=None, offset=0.0):
    """Normal numbers: pressure, velocity, and a constant field of its own for each seed."""
    rng = np.random.default_rng(seed)
    axes = ("x", "y", "z")[: len(grid)]
    return Trajectory(
        fields={
            "pressure": rng.normal(size=(frames, *grid)).astype(np.float32) + np.float32(offset),
            "velocity": rng.normal(size=(frames, *grid, len(grid))).astype(np.float32),
        },
        constant_fields={"speed_of_sound": rng.normal(size=grid).astype(np.float32)} if constant else {},
        boundary_conditions=sides or dict(zip(axes, ("periodic", ("wall", "open"), "open"))),
        axes=axes,
        name=f"{name}_{seed}",
    )


def write_source(folder, files=2, trajectories=3, frames=20, first_seed=0, split="train", **kwargs):
    """`<folder>/data/<split>/<n>.hdf5`, each of some trajectories; the folder."""
    place = folder / "data" / split
    place.mkdir(parents=True)
    for n in range(files):
        seeds = range(first_seed + n * trajectories, first_seed + (n + 1) * trajectories)
        length = frames[n] if isinstance(frames, tuple | list) else frames
        save_well([trajectory(seed, length, **kwargs) for seed in seeds], place / f"{n}.hdf5")
    return folder


def restore(path, **layout):
    """Write the fields of a file anew with another layout: keyword arguments of h5py's `create_dataset`.

    `chunks` may be a function of the shape; `dtype` changes the numbers' type.
    """
    with h5py.File(path, "r+") as file:
        for group in ("t0_fields", "t1_fields"):
            for name in list(file[group]):
                values, attributes = file[group][name][()], dict(file[group][name].attrs)
                del file[group][name]
                settings = dict(layout)
                if callable(settings.get("chunks")):
                    settings["chunks"] = settings["chunks"](values.shape, attributes)
                dataset = file[group].create_dataset(name, data=values.astype(settings.pop("dtype", "<f4")), **settings)
                dataset.attrs.update(attributes)


@functools.lru_cache(maxsize=32)
def whole_trajectory(path, changed, number):
    return load_well(path, number)


def expected(folder, window, frames=7, processor=None):
    """The model inputs of one window by another way: h5py reads the file, the processor makes the tensors."""
    path = folder / "data" / "train" / window["file"]
    whole = whole_trajectory(path, path.stat().st_mtime_ns, window["trajectory"])
    kept = window["start"] + window["stride"] * np.arange(frames)
    part = Trajectory(
        fields={name: values[kept] for name, values in whole.fields.items()},
        constant_fields=whole.constant_fields,
        boundary_conditions=whole.boundary_conditions,
        axes=whole.axes,
        obstacle_mask=whole.obstacle_mask,
        grid_type=whole.grid_type,
    )
    return (processor or WalrusProcessor())(part)


def assert_rows_match(folder, batch, frames=7, processor=None):
    """Every row of a batch, bit for bit, against `expected`."""
    for row, window in enumerate(batch["window"]):
        inputs = dict(expected(folder, window, frames, processor))
        values = inputs.pop("field_values")[0]
        assert torch.equal(batch["field_values"][row], values[:-1])
        assert torch.equal(batch["labels"][row], values[1:])
        for name, tensor in inputs.items():
            assert torch.equal(batch[name][row], tensor[0]), name


def address(window):
    return window["file"], window["trajectory"], window["start"]


def addresses(batches):
    return [address(window) for batch in batches for window in batch["window"]]
