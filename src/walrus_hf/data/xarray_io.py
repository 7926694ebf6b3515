"""`Trajectory` to and from `xarray.Dataset` (extra `xarray`).

The convention, the same in both directions:

* A field is a data variable with the dimension `time` and one dimension an axis; a data variable without `time` is a
  constant field. The axes, and their order, are the dimensions of space of the first variable with `time`.
* Vectors have one more dimension `component`, tensors two, `component_i` and `component_j`. Components follow the order
  of the axes; if the dimension has a coordinate, it holds the names of the axes and the components are sorted by it.
* The members of an ensemble forecast are `<field>_ensemble` with the dimension `member`; `<field>` is their mean.
* The constant `obstacle_mask` is True, or 1, inside obstacles.
* The coordinate `time` gives `dt` and the time of the first frame, in its own units; for `datetime64` and `timedelta64`
  these are seconds, for dates since 1970. Without it `dt` is 1. One-dimensional coordinates of the axes are kept.
* `attrs` may hold `boundary_conditions` (JSON: `{"x": ["periodic", "periodic"], "y": ["wall", "open"]}`), `name`,
  `grid_type` and `dt`. All are types that netCDF holds, so that datasets survive `to_netcdf` and `open_dataset`.

The order of a variable's dimensions does not matter.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..fields import Trajectory
from .well import axis_problems, time_step

TIME, MEMBER, OBSTACLE_MASK, ENSEMBLE_SUFFIX = "time", "member", "obstacle_mask", "_ensemble"
COMPONENTS: tuple[tuple[str, ...], ...] = ((), ("component",), ("component_i", "component_j"))  # by rank
NO_AXES = {TIME, MEMBER, "component", "component_i", "component_j"}


def from_xarray(dataset: Any, boundary_conditions: Mapping[str, Any] | None = None) -> Trajectory:
    """A `Trajectory` from an `xarray.Dataset` that follows the convention of this module.

    Args:
        dataset: the dataset. Leave out of it (`drop_vars`) what is no field on the grid.
        boundary_conditions: axis -> kind or (low, high), as in `Trajectory`; None takes them from `dataset.attrs`.

    Returns:
        Fields (T, *grid), (T, *grid, d) and (T, *grid, d, d), in the numbers' own type and units. Cells of different
        widths and coordinates that fall are warned about.

    Raises:
        ImportError: xarray is not installed.
        ValueError: the dataset does not follow the convention, or boundary conditions are missing.
    """
    xarray = _import_xarray()
    if not isinstance(dataset, xarray.Dataset):
        raise ValueError(
            f"expected an xarray.Dataset, found {type(dataset).__name__}; call to_dataset(name=...) on a DataArray"
        )
    axes = _axes(dataset)
    fields, constants, ensemble = {}, {}, {}
    for name, variable in dataset.data_vars.items():
        values = _values(variable, axes)
        if MEMBER in variable.dims:
            ensemble[str(name).removesuffix(ENSEMBLE_SUFFIX)] = values
            _check_members(str(name), variable, dataset)
        elif TIME in variable.dims:
            fields[str(name)] = values
        else:
            constants[str(name)] = values
    obstacles = constants.pop(OBSTACLE_MASK, None)
    if OBSTACLE_MASK in fields:
        raise ValueError(f"{OBSTACLE_MASK}: expected dimensions without {TIME!r}, for obstacles stand still")
    time, dt = _time_and_step(dataset)
    trajectory = Trajectory(
        fields=fields,
        constant_fields=constants,
        boundary_conditions=_boundary_conditions(dataset) if boundary_conditions is None else boundary_conditions,
        axes=axes,
        dt=dt,
        time=time,
        name=dataset.attrs.get("name"),
        coordinates={axis: dataset[axis].values for axis in axes if axis in dataset.coords},
        obstacle_mask=obstacles,
        ensemble=ensemble or None,
        grid_type=str(dataset.attrs.get("grid_type", "cartesian")),
    )
    for problem in axis_problems(trajectory.coordinates, trajectory.grid_type):
        warnings.warn(problem, stacklevel=2)
    return trajectory


def to_xarray(trajectory: Trajectory) -> Any:
    """An `xarray.Dataset` that follows the convention of this module; `from_xarray` gives the same trajectory back.

    The arrays are those of the trajectory, not copies.

    Raises:
        ImportError: xarray is not installed.
        ValueError: a field or an axis has a name that the convention uses otherwise.
    """
    xarray = _import_xarray()
    _check_names(trajectory)
    axes = trajectory.axes
    variables: dict[str, tuple[tuple[str, ...], np.ndarray]] = {}
    for name, values in trajectory.fields.items():
        variables[name] = ((TIME, *axes, *COMPONENTS[trajectory.rank(name)]), values)
    for name, values in trajectory.constant_fields.items():
        variables[name] = ((*axes, *COMPONENTS[trajectory.rank(name)]), values)
    for name, values in (trajectory.ensemble or {}).items():
        variables[name + ENSEMBLE_SUFFIX] = ((MEMBER, TIME, *axes, *COMPONENTS[trajectory.rank(name)]), values)
    if trajectory.obstacle_mask is not None:
        variables[OBSTACLE_MASK] = (axes, trajectory.obstacle_mask)

    coordinates: dict[str, Any] = {TIME: trajectory.time + trajectory.dt * np.arange(trajectory.num_frames)}
    coordinates |= {axis: np.asarray(trajectory.coordinates[axis]) for axis in axes if axis in trajectory.coordinates}
    used = {dim for dims, _ in variables.values() for dim in dims}
    coordinates |= {dim: list(axes) for dims in COMPONENTS for dim in dims if dim in used}
    sides = {axis: [side.name.lower() for side in trajectory.boundary_conditions[axis]] for axis in axes}
    attrs: dict[str, Any] = {
        "boundary_conditions": json.dumps(sides),
        "grid_type": trajectory.grid_type,
        "dt": float(trajectory.dt),
    }
    if trajectory.name is not None:
        attrs["name"] = trajectory.name
    return xarray.Dataset(variables, coords=coordinates, attrs=attrs)


def _import_xarray() -> Any:
    try:
        import xarray
    except ImportError:
        raise ImportError("this function needs xarray: pip install 'walrus-hf[xarray]'") from None
    return xarray


def _axes(dataset: Any) -> tuple[str, ...]:
    for variable in dataset.data_vars.values():
        axes = tuple(str(dim) for dim in variable.dims if dim not in NO_AXES)
        if TIME in variable.dims and axes:
            return axes
    raise ValueError(
        f"expected a data variable with the dimension {TIME!r} and one for each axis, found the dimensions "
        f"{sorted(map(str, dataset.dims))}; "
        f"rename the dimension of time to {TIME!r}"
    )


def _values(variable: Any, axes: tuple[str, ...]) -> np.ndarray:
    """([members], [T], *grid, [d], [d]) of one variable, components in the order of the axes."""
    lead = tuple(dim for dim in (MEMBER, TIME) if dim in variable.dims)
    expected = [(*lead, *axes, *components) for components in COMPONENTS]
    dims = next((dims for dims in expected if set(dims) == set(variable.dims)), None)
    if dims is None:
        raise ValueError(
            f"variable {variable.name!r}: expected the dimensions {(*lead, *axes)}, with 'component' for a vector or "
            f"'component_i' and 'component_j' for a tensor, found {variable.dims}; rename them or drop the variable"
        )
    for component in dims[len(lead) + len(axes) :]:
        if component in variable.coords:
            labels = [str(label) for label in variable.coords[component].values]
            if sorted(labels) != sorted(axes):
                raise ValueError(f"coordinate {component!r}: expected the names of the axes {axes}, found {labels}")
            variable = variable.isel({component: [labels.index(axis) for axis in axes]})
    values = variable.transpose(*dims).values
    return values.astype(values.dtype.newbyteorder("="), copy=False)  # torch reads no other byte order


def _check_members(name: str, variable: Any, dataset: Any) -> None:
    field = name.removesuffix(ENSEMBLE_SUFFIX)
    mean = dataset.data_vars.get(field)
    if field == name or mean is None or set(variable.dims) != {MEMBER, *mean.dims} or TIME not in mean.dims:
        raise ValueError(
            f"variable {name!r}: expected the members of a field to be named <field>{ENSEMBLE_SUFFIX} beside <field>, "
            f"their mean, and to have its dimensions and {MEMBER!r}; choose one member with isel, or add the mean"
        )


def _time_and_step(dataset: Any) -> tuple[float, float]:
    stated = dataset.attrs.get("dt")
    try:
        stated = None if stated is None else float(stated)
    except (TypeError, ValueError):
        raise ValueError(
            f"attribute 'dt': expected a number, found {stated!r}; its units are those of {TIME!r}"
        ) from None
    if not dataset.sizes[TIME]:
        raise ValueError(f"dimension {TIME!r}: expected at least one frame, found none")
    if TIME not in dataset.coords:
        return 0.0, 1.0 if stated is None else stated
    times = dataset[TIME].values
    first: Any = times[0]
    if times.dtype.kind in "mM":
        zero: Any = np.timedelta64(0, "s") if times.dtype.kind == "m" else np.datetime64(0, "s")
        first = (first - zero) / np.timedelta64(1, "s")
        times = (times - times[0]) / np.timedelta64(1, "s")
    if times.dtype.kind not in "iuf":
        raise ValueError(
            f"coordinate {TIME!r}: expected numbers or datetime64, found dtype {times.dtype}; "
            "open the file with decode_times=False or convert it"
        )
    return float(first), time_step(times, stated)


def _boundary_conditions(dataset: Any) -> Mapping[str, Any]:
    text = dataset.attrs.get("boundary_conditions")
    if text is None:
        raise ValueError(
            "expected boundary_conditions, found none in the call and none in dataset.attrs; pass them, such as "
            "boundary_conditions={'x': 'periodic', 'y': ('wall', 'open')}, or give a file the attribute "
            "boundary_conditions, as JSON: " + '{"x": "periodic", "y": ["wall", "open"]}'
        )
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        raise ValueError(
            f"attribute 'boundary_conditions': expected JSON, found {text!r}; pass boundary_conditions in the call"
        ) from None


def _check_names(trajectory: Trajectory) -> None:
    names = [*trajectory.fields, *trajectory.constant_fields, *(n + ENSEMBLE_SUFFIX for n in trajectory.ensemble or {})]
    taken = {*trajectory.axes, *NO_AXES, OBSTACLE_MASK}
    clashes = {name for name in names if name in taken or names.count(name) > 1} | NO_AXES.intersection(trajectory.axes)
    if clashes:
        raise ValueError(
            f"{', '.join(sorted(clashes))}: expected names of fields and axes that differ from each other and from "
            f"{', '.join(sorted(NO_AXES))} and {OBSTACLE_MASK}; rename them"
        )
