"""Simulations that are not in The Well's format, as trajectories: netCDF through xarray, and `.npy` with a YAML file.

The YAML file stands beside the arrays and says what they are:

    fields:                            # own name -> file (trajectories, frames, *grid[, d[, d]])
      density: density.npy
      velocity: velocity.npy
    axes: [x, y]
    boundary_conditions: {x: periodic, y: [wall, open]}
    dt: 0.1
    constant_fields: {height: h.npy}   # optional: (trajectories, *grid[, d[, d]])
    obstacle_mask: mask.npy            # optional: (trajectories, *grid)

Arrays are memory-mapped: a simulation larger than the memory can be read window by window.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .data.xarray_io import from_xarray
from .fields import Trajectory

NETCDF = (".nc", ".nc4", ".netcdf", ".cdf")
YAML = (".yaml", ".yml")
REQUIRED = ("fields", "axes", "boundary_conditions")
KNOWN = (*REQUIRED, "dt", "name", "constant_fields", "obstacle_mask")


def is_own_arrays(source: str | os.PathLike) -> bool:
    """Whether a source is a netCDF or YAML file, or a local folder of netCDF files, by its name."""
    path = Path(source)
    return path.suffix.lower() in (*NETCDF, *YAML) or (path.is_dir() and bool(_netcdf_files(path)))


def load_own_arrays(source: str | os.PathLike) -> list[tuple[str, Trajectory]]:
    """Every trajectory of a netCDF file, of a folder of them, or of the arrays that a YAML file describes.

    Returns:
        Where each comes from, for messages, and the trajectory.

    Raises:
        FileNotFoundError: no such file.
        ValueError: arrays whose shapes do not fit the description, or a description that is none.
        ImportError: netCDF, and xarray is not installed.
    """
    path = Path(source)
    if path.is_dir():
        return [found for file in _netcdf_files(path) for found in load_own_arrays(file)]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file, found none; check the path")
    return _load_netcdf(path) if path.suffix.lower() in NETCDF else _load_npy(path)


def _netcdf_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in NETCDF)


def _load_netcdf(path: Path) -> list[tuple[str, Trajectory]]:
    try:
        import xarray
    except ImportError:
        raise ImportError(f"{path}: netCDF files need xarray: pip install 'walrus-hf[xarray]'") from None
    try:
        with xarray.open_dataset(path) as dataset:
            return [(str(path), from_xarray(dataset.load()))]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def _load_npy(path: Path) -> list[tuple[str, Trajectory]]:
    settings = _read_description(path)
    try:
        fields = {name: _open_array(path, file) for name, file in settings["fields"].items()}
        constants = {name: _open_array(path, file) for name, file in settings.get("constant_fields", {}).items()}
        mask = _open_array(path, settings["obstacle_mask"]) if "obstacle_mask" in settings else None
        counts = {name: len(values) for name, values in {**fields, **constants}.items()}
        counts |= {} if mask is None else {"obstacle_mask": len(mask)}
        if len(set(counts.values())) > 1:
            raise ValueError(f"expected as many trajectories in each array along the first axis, found {counts}")
        return [
            (
                f"{path}, trajectory {n}",
                Trajectory(
                    fields={name: values[n] for name, values in fields.items()},
                    constant_fields={name: values[n] for name, values in constants.items()},
                    boundary_conditions=settings["boundary_conditions"],
                    axes=tuple(settings["axes"]),
                    dt=float(settings.get("dt", 1.0)),
                    name=str(settings.get("name", path.stem)),
                    obstacle_mask=None if mask is None else mask[n],
                ),
            )
            for n in range(next(iter(counts.values())))
        ]
    except (ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"{path}: {' '.join(str(error).split())}; arrays are (trajectories, frames, *grid[, components]): give a "
            "single trajectory as array[None]"
        ) from error


def _read_description(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML, found {' '.join(str(error).split())}") from None
    if not isinstance(settings, Mapping) or not set(REQUIRED) <= set(settings) <= set(KNOWN):
        found = sorted(settings) if isinstance(settings, Mapping) else type(settings).__name__
        raise ValueError(
            f"{path}: expected {', '.join(REQUIRED)} and of {', '.join(KNOWN[3:])} what is there, found {found}"
        )
    for kind in ("fields", "constant_fields"):
        files = settings.get(kind, {})
        if not isinstance(files, Mapping) or (kind == "fields" and not files):
            raise ValueError(f"{path}: expected under {kind!r} a file for each name, found {files!r}")
    return dict(settings)


def _open_array(description: Path, file: Any) -> np.ndarray:
    path = description.parent / str(file)
    if not path.is_file():
        raise FileNotFoundError(f"{description}: expected the array {path}, found no such file")
    values = np.load(path, mmap_mode="r", allow_pickle=False)
    if values.ndim < 2:
        raise ValueError(f"{path}: expected at least two axes, found shape {values.shape}")
    return values
