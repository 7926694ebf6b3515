"""Data sets of simulations on disk, in The Well's format and layout of folders."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm.auto import tqdm

from ...fields import Trajectory
from ..well_writer import save_well
from .acoustics import CLOSED, acoustic_scattering
from .convection import rayleigh_benard
from .euler import euler_channel, euler_layers, euler_multi_quadrants
from .incompressible import kolmogorov_flow, turbulence_2d, turbulence_3d
from .patterns import reaction_diffusion, swift_hohenberg
from .periodic import gray_scott, shear_flow
from .spectral import advection_diffusion_3d, burgers, wave

# Every simulation of the package by name: `simulation(seed, **parameters)` is one trajectory.
SIMULATIONS: dict[str, Callable[..., Trajectory]] = {
    "acoustic_scattering": acoustic_scattering,
    "acoustic_scattering_closed": functools.partial(acoustic_scattering, boundary_conditions=CLOSED),
    "advection_diffusion_3d": advection_diffusion_3d,
    "burgers": burgers,
    "euler_channel": euler_channel,
    "euler_layers_periodic": functools.partial(euler_layers, boundary="periodic"),
    "euler_layers_wall": functools.partial(euler_layers, boundary="wall"),
    "euler_multi_quadrants_open": functools.partial(euler_multi_quadrants, boundary="open"),
    "euler_multi_quadrants_periodic": functools.partial(euler_multi_quadrants, boundary="periodic"),
    "euler_multi_quadrants_wall": functools.partial(euler_multi_quadrants, boundary="wall"),
    "gray_scott": gray_scott,
    "kolmogorov_flow": kolmogorov_flow,
    "rayleigh_benard": rayleigh_benard,
    "reaction_diffusion": reaction_diffusion,
    "shear_flow": shear_flow,
    "swift_hohenberg": swift_hohenberg,
    "turbulence_2d": turbulence_2d,
    "turbulence_3d": turbulence_3d,
    "wave": wave,
}
SPLITS = ("train", "valid", "test")
RECORD = "simulated_with"  # attribute of a file: the seed and all parameters, as JSON


def write_simulations(
    name: str,
    output_dir: str | os.PathLike,
    trajectories: int,
    seed: int = 0,
    split: str = "train",
    trajectories_per_file: int = 8,
    overwrite: bool = False,
    skip_existing: bool = False,
    progress: bool = False,
    **parameters: Any,
) -> list[Path]:
    """Simulate trajectories and write them as `<output_dir>/<name>/data/<split>/<name>_<i>.hdf5`.

    Trajectory number n of a split is the same however many are asked for, and no two splits share one; see
    `trajectory_seed`. One file's trajectories are held in memory at a time.

    Args:
        name: one of `SIMULATIONS`.
        output_dir: made where it is missing.
        trajectories: how many to simulate.
        seed: another one gives other trajectories.
        split: `train`, `valid` or `test`.
        trajectories_per_file: the last file has fewer where the numbers do not divide.
        overwrite: replace files that are there.
        skip_existing: leave them as they are, and write the others: what a stop interrupted goes on. Files tell what
            they were made with; those from before they did tell grid, frames, step and number alone.
        progress: show a bar on stderr.
        **parameters: of the simulation, such as `grid` and `frames`.

    Returns:
        The files, in order. Trajectories are named `<name>_<number>`.

    Raises:
        ValueError: no such simulation or split, unusable numbers, or a solution that diverged.
        TypeError: a parameter that the simulation does not have.
        FileExistsError: one of the files is there and neither is asked for, or is to stay and was made with other
            parameters; then nothing is simulated.
        ImportError: the simulation needs the extra `sim` and it is not installed.
        OSError: a file cannot be written. Files before it are complete.
    """
    simulate = _simulation(name)
    if min(trajectories, trajectories_per_file) < 1:
        raise ValueError(
            "trajectories and trajectories_per_file: expected at least 1, "
            f"found {trajectories} and {trajectories_per_file}"
        )
    _check_parameters(name, simulate, parameters)
    seeds = [trajectory_seed(seed, split, number) for number in range(trajectories)]
    folder = Path(output_dir) / name / "data" / split
    files = {
        folder / f"{name}_{i}.hdf5": range(first, min(first + trajectories_per_file, trajectories))
        for i, first in enumerate(range(0, trajectories, trajectories_per_file))
    }
    there = [file for file in files if file.exists() and not overwrite]
    if there and not skip_existing:
        raise FileExistsError(
            f"{there[0]}: expected no file, found one; pass overwrite=True to replace it, skip_existing=True to keep it"
        )
    made_with = _made_with(simulate, seed, parameters)
    for file in there:
        _check_file(file, {**made_with, "trajectories": len(files[file])})
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=trajectories, desc=f"{name} {split}", disable=not progress) as bar:
        for file, numbers in files.items():
            if file in there:
                bar.update(len(numbers))
                continue
            batch = []
            for number in numbers:
                # The Well wants one name in a folder, whatever regime a simulation puts into its own.
                batch.append(dataclasses.replace(simulate(seeds[number], **parameters), name=f"{name}_{number}"))
                bar.update()
            save_well(batch, file, overwrite, {RECORD: json.dumps(made_with)})
    return list(files)


def trajectory_seed(seed: int, split: str, number: int) -> int:
    """The seed that `write_simulations` gives to trajectory `number` of a split: `SIMULATIONS[name](seed)` is the same.

    64 bits drawn from all three, so that neither splits nor seeds share trajectories.
    """
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")
    if seed < 0:
        raise ValueError(f"seed: expected a number that is not negative, found {seed}")
    sequence = np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), number))
    return int(sequence.generate_state(1, np.uint64)[0])


def _simulation(name: str) -> Callable[..., Trajectory]:
    if name in SIMULATIONS:
        return SIMULATIONS[name]
    near = [known for known in SIMULATIONS if name in known] or difflib.get_close_matches(name, SIMULATIONS, cutoff=0.4)
    expected = f"perhaps {' or '.join(map(repr, near))}" if near else f"one of {', '.join(SIMULATIONS)}"
    raise ValueError(f"expected the name of a simulation, {expected}, found {name!r}")


def _check_parameters(name: str, simulate: Callable[..., Trajectory], parameters: dict[str, Any]) -> None:
    fixed = {"seed", *(simulate.keywords if isinstance(simulate, functools.partial) else ())}
    known = [parameter for parameter in inspect.signature(simulate).parameters if parameter not in fixed]
    for parameter in parameters:
        if parameter not in known:
            raise TypeError(f"{name}: expected parameters among {', '.join(known)}, found {parameter!r}")


def _made_with(simulate: Callable[..., Trajectory], seed: int, parameters: dict[str, Any]) -> dict[str, Any]:
    """The seed of a data set and all parameters of its simulation, defaults too, as they come back from JSON."""
    known = inspect.signature(simulate).parameters.values()
    defaults = {p.name: p.default for p in known if p.default is not p.empty}
    numbers = {**defaults, **parameters, "seed": seed}
    return json.loads(json.dumps(numbers, default=lambda value: np.asarray(value).tolist()))


def _check_file(path: Path, expected: dict[str, Any]) -> None:
    """`FileExistsError` for a file that was made with other parameters, as far as it tells them."""
    remedy = "delete it, or write to another folder"
    try:
        with h5py.File(path) as file:
            found = json.loads(file.attrs[RECORD]) if RECORD in file.attrs else _shape_of(file)
            found["trajectories"] = int(file.attrs["n_trajectories"])
    except (OSError, KeyError, ValueError) as error:
        raise FileExistsError(f"{path}: expected a file of simulations, found an unreadable one; {remedy}") from error
    for name, value in expected.items():
        if name in found and found[name] != value:
            raise FileExistsError(
                f"{path}: expected a file that was made with {name} {value}, found one with {found[name]}; {remedy}"
            )


def _shape_of(file: Any) -> dict[str, Any]:
    """What every file tells of its parameters."""
    dimensions = file["dimensions"]
    return {
        "grid": [len(dimensions[axis]) for axis in dimensions.attrs["spatial_dims"]],
        "frames": dimensions["time"].shape[-1],
        "dt": float(np.ravel(dimensions["time"].attrs["dt"])[0]),
    }
