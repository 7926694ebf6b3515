"""What lies where in a file: the manifest that lets frames be read by exact byte ranges, without opening HDF5 again.

source (folder, URL, scenario) -> manifest of each file -> blocks of windows (index.py) -> descriptors -> batches

A manifest holds a file's path below its root, its size and version, and for each field the place of its frames. It is
built once, by h5py over ranges of the file, kept in a cache on disk, and can be shipped as one JSON file a source.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
from pathlib import Path
from typing import IO, Any, cast

import h5py
import numpy as np

from ..fields import BoundaryCondition
from ..safe_files import write_text
from . import flowbench
from .remote import BufferedRangeFile, Identity, RangeFile, join_inside, open_range_file
from .well import (
    FIELD_GROUPS,
    StoredField,
    axes_and_grid,
    boundary_conditions,
    check_stored,
    count_frames,
    count_trajectories,
    dataset_name,
    stored_fields,
    text_of,
)
from .well_opening import one_line, open_well_file

VERSION = 1
SUFFIXES = (".hdf5", ".h5", ".npz")
# Files indexed at the same time: HDF5 works on one at a time, so this only hides the waiting for their first bytes.
PARALLEL = 8
Sides = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class FieldLayout:
    """One field: its shape, and where its frames lie.

    Attributes:
        name, rank: 0 scalar, 1 vector, 2 tensor.
        dtype: numpy's text with the byte order, e.g. `"<f4"`.
        sample_varying, time_varying: whether each trajectory, each frame has values of its own.
        stored: shape over the axes, 1 for an axis along which the field does not vary.
        kind: `"contiguous"` and `"chunked"` are read by byte ranges, `"library"` by h5py (compressed or oddly chunked).
        offset: first byte of a contiguous field.
        chunk_frames, chunk_offsets: for chunks of whole frames of one trajectory: frames a chunk, and first byte of
            chunk `[trajectory, n]` as an array `(trajectories, chunks)`.
    """

    name: str
    rank: int
    dtype: str
    sample_varying: bool
    time_varying: bool
    stored: tuple[int, ...]
    kind: str
    offset: int = 0
    chunk_frames: int = 1
    chunk_offsets: np.ndarray | None = None

    @property
    def path(self) -> str:
        return f"{FIELD_GROUPS[self.rank]}/{self.name}"

    @property
    def frame_shape(self) -> tuple[int, ...]:
        return (*self.stored, *(len(self.stored),) * self.rank)

    @property
    def frame_bytes(self) -> int:
        return math.prod(self.frame_shape) * np.dtype(self.dtype).itemsize

    def ranges(self, trajectory: int, first: int, stop: int, frames: int) -> list[tuple[int, int]]:
        """Byte ranges `(start, stop)` of frames `first:stop` of a trajectory of `frames` frames, in order."""
        row = trajectory if self.sample_varying else 0
        if not self.time_varying:
            first, stop, frames = 0, 1, 1
        if self.chunk_offsets is None:
            start = self.offset + (row * frames + first) * self.frame_bytes
            return [(start, start + (stop - first) * self.frame_bytes)]
        found: list[tuple[int, int]] = []
        while first < stop:
            chunk, inside = divmod(first, self.chunk_frames)
            last = min(stop, (chunk + 1) * self.chunk_frames)
            start = int(self.chunk_offsets[row, chunk]) + inside * self.frame_bytes
            end = start + (last - first) * self.frame_bytes
            if found and found[-1][1] == start:
                found[-1] = (found[-1][0], end)
            else:
                found.append((start, end))
            first = last
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class FileManifest:
    """One file, of The Well or FlowBench.

    `boundaries` holds ids `((low, high), ...)`, one entry for all trajectories or one for each; `geometry` is the path
    of the file with FlowBench's obstacle. Paths are below the manifest's root.
    """

    path: str
    size: int
    version: str
    format: str
    dataset_name: str
    grid_type: str
    axes: tuple[str, ...]
    grid: tuple[int, ...]
    trajectories: int
    frames: int
    boundaries: tuple[Sides, ...]
    fields: tuple[FieldLayout, ...]
    attributes: dict[str, Any]
    geometry: str | None = None

    def boundaries_of(self, trajectory: int) -> Sides:
        return self.boundaries[trajectory if len(self.boundaries) > 1 else 0]

    def check(self) -> None:
        """`ValueError` where the numbers contradict each other: a manifest may come from anywhere."""
        dims = len(self.axes)
        if self.format not in ("well", "flowbench") or not 1 <= dims <= 3 or len(self.grid) != dims:
            raise ValueError(f"{self.path}: expected a format and 1 to 3 axes with their cells, found {self.grid}")
        if min(*self.grid, self.trajectories, self.frames, self.size) < 1:
            raise ValueError(
                f"{self.path}: expected positive sizes, found {self.grid} and {self.trajectories} trajectories"
            )
        if max(self.trajectories, self.frames) > self.size:  # no file has more of them than bytes
            raise ValueError(
                f"{self.path}: expected trajectories and frames that fit into {self.size} bytes, found "
                f"{self.trajectories} and {self.frames}"
            )
        kinds = {kind for sides in self.boundaries for pair in sides for kind in pair}
        if len(self.boundaries) not in (1, self.trajectories) or not kinds <= set(BoundaryCondition):
            raise ValueError(f"{self.path}: expected boundary kinds 0 to 2, found {self.boundaries[:2]}")
        if any(len(sides) != dims or any(len(pair) != 2 for pair in sides) for sides in self.boundaries):
            raise ValueError(f"{self.path}: expected boundary kinds of {dims} axes, found {self.boundaries[:2]}")
        names = [field.name for field in self.fields]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"{self.path}: expected different fields, found {names}")
        for field in self.fields:
            self._check_field(field)

    def _check_field(self, field: FieldLayout) -> None:
        whole = tuple(n if stored != 1 else 1 for n, stored in zip(self.grid, field.stored))
        known = field.kind in ("contiguous", "chunked", "library") and 0 <= field.rank <= 2
        if field.stored != whole or len(whole) != len(self.grid) or not known:
            raise ValueError(f"{self.path}: field {field.name!r} does not fit the grid {self.grid}")
        if np.dtype(field.dtype).kind not in "biuf":
            raise ValueError(f"{self.path}: field {field.name!r}: expected real numbers, found {field.dtype!r}")
        rows = self.trajectories if field.sample_varying else 1
        frames = self.frames if field.time_varying else 1
        first, last = field.offset, field.offset + rows * frames * field.frame_bytes
        if field.kind == "library":  # deflate makes at most a thousandth of anything
            first, last = 0, rows * frames * field.frame_bytes // 2000
        elif (field.kind == "chunked") != (field.chunk_offsets is not None) or field.chunk_frames < 1:
            raise ValueError(f"{self.path}: field {field.name!r}: expected a table of chunks for a chunked field alone")
        elif field.chunk_offsets is not None:
            if field.chunk_offsets.shape != (rows, -(-frames // field.chunk_frames)):
                raise ValueError(f"{self.path}: field {field.name!r}: expected a table of {rows} rows of chunks")
            first = int(field.chunk_offsets.min())
            last = int(field.chunk_offsets.max()) + field.chunk_frames * field.frame_bytes
        if first < 0 or last > self.size:
            raise ValueError(
                f"{self.path}: field {field.name!r}: expected its bytes within the file's {self.size}, "
                f"found {first} to {last}; index the file anew"
            )


@dataclasses.dataclass(frozen=True, eq=False)
class Manifest:
    """The files of one source below `root`, a folder or URL that ends without a slash.

    `scenario`: the name of the scenario that they are of, where they were asked for by it.
    """

    root: str
    files: tuple[FileManifest, ...]
    scenario: str | None = None

    def url(self, number: int) -> str:
        return join_inside(self.root, self.files[number].path)

    def open(self, number: int, storage_options: dict | None = None) -> tuple[RangeFile, RangeFile | None]:
        """The file, which must still be the one that was indexed, and the file of its obstacle, if it has one."""
        entry = self.files[number]
        source = open_range_file(self.url(number), storage_options=storage_options)
        source.expect(Identity(entry.size, entry.version))
        if entry.geometry is None:
            return source, None
        return source, open_range_file(join_inside(self.root, entry.geometry), storage_options=storage_options)

    def save(self, path: str | os.PathLike, overwrite: bool = False) -> Path:
        """Write one JSON file; where it lies inside `root`'s folder, the folder may move along with it."""
        target = Path(path)
        if target.exists() and not overwrite:
            raise FileExistsError(f"{target}: expected no file, found one; pass overwrite=True to replace it")
        root = self.root
        if "://" not in root:
            root = "." if target.absolute().parent == Path(root).absolute() else os.path.abspath(root)
        files = [_to_json(entry) for entry in self.files]
        content = {"walrus_hf_manifest": VERSION, "scenario": self.scenario, "root": root, "files": files}
        _write_json(target, content)
        return target


def load_manifest(path: str | os.PathLike, root: str | None = None, storage_options: dict | None = None) -> Manifest:
    """A manifest that `save` wrote; `root` says where its files lie now, if not where they lay then.

    Args:
        path: a local file or a URL.

    Raises:
        FileNotFoundError, OSError: there is none, or it cannot be had.
        ValueError: no manifest, one of another version, or one whose paths leave the root or whose numbers are off.
    """
    location = os.fspath(path)
    source = open_range_file(location, storage_options=storage_options)
    text = source.read(0, source.identity().size)
    try:
        content = json.loads(text)
        if content["walrus_hf_manifest"] != VERSION:
            raise ValueError(f"version {content['walrus_hf_manifest']}")
        files = tuple(_from_json(entry) for entry in content["files"])
        found = root or str(content["root"])
        beside = (location.rpartition("/")[0] if "://" in location else os.path.dirname(location)) or "."
        manifest = Manifest(beside if found == "." else found.rstrip("/"), files, content["scenario"])
        if not files:
            raise ValueError("no files")
        for number, entry in enumerate(files):  # paths that leave the root are refused here, not when they are read
            manifest.url(number)
            if entry.geometry is not None:
                join_inside(manifest.root, entry.geometry)
    except UNUSABLE as error:
        raise ValueError(
            f"{location}: expected a manifest of version {VERSION}, found {one_line(error)}; "
            "write it anew with `walrus-hf data index`"
        ) from error
    return manifest


def index_file(url: str, path: str, storage_options: dict | None = None, cache: bool = True) -> FileManifest:
    """The manifest of one file, from the cache where size and version are the same."""
    source = open_range_file(url, storage_options=storage_options)
    identity = source.identity()
    kept = cache_path(url, identity)
    if cache and identity.version:
        try:
            entry = dataclasses.replace(_from_json(json.loads(kept.read_text(encoding="utf-8"))), path=path)
            if (entry.size, entry.version) == (identity.size, identity.version):
                return entry
        except (OSError, *UNUSABLE):
            pass  # not there, or damaged: build it anew
    entry = flowbench_manifest(source, path) if url.endswith(".npz") else well_manifest(source, path)
    if cache and identity.version:
        with contextlib.suppress(OSError):  # a home that cannot be written is no reason not to read
            kept.parent.mkdir(parents=True, exist_ok=True)
            _write_json(kept, _to_json(entry))
    return entry


def cache_path(url: str, identity: Identity) -> Path:
    """Where the manifest of a file is kept: `$WALRUS_HF_CACHE`, or `walrus_hf` in the folder of Hugging Face."""
    from huggingface_hub.constants import HF_HOME

    folder = Path(os.environ.get("WALRUS_HF_CACHE") or Path(HF_HOME) / "walrus_hf")
    # On the Hub the version is a hash of the content: a commit that leaves the file as it is changes nothing.
    location = re.sub(r"@[^/]+", "", url) if url.startswith("hf://") else url if "://" in url else os.path.abspath(url)
    key = hashlib.sha256(f"{VERSION}\n{location}\n{identity.size}\n{identity.version}".encode()).hexdigest()
    return folder / "manifests" / f"{key[:40]}.json"


def well_manifest(source: RangeFile, path: str) -> FileManifest:
    """Read the layout of a file of The Well; its fields are checked but not read."""
    identity = source.identity()
    with BufferedRangeFile(source) as opened, open_well_file(source.url, opened) as file:
        axes, grid = axes_and_grid(file)
        count = count_trajectories(file)
        per_sample = any(np.all(group.attrs.get("sample_varying", False)) for group in _boundary_groups(file))
        sides = [boundary_conditions(file, number) for number in range(count if per_sample else 1)]
        boundaries = tuple(tuple((int(low), int(high)) for low, high in found.values()) for found in sides)
        manifest = FileManifest(
            path=path,
            size=identity.size,
            version=identity.version,
            format="well",
            dataset_name=dataset_name(file),
            grid_type=text_of(file.attrs.get("grid_type", "cartesian")),
            axes=axes,
            grid=grid,
            trajectories=count,
            frames=count_frames(file),
            boundaries=boundaries[:1] if len(set(boundaries)) == 1 else boundaries,
            fields=tuple(_field_layout(field) for field in stored_fields(file)),
            attributes=_attributes(file),
        )
    manifest.check()
    return manifest


def flowbench_manifest(source: RangeFile, path: str) -> FileManifest:
    """Read the layout of a FlowBench archive, one trajectory; it is always read whole."""
    identity = source.identity()
    with BufferedRangeFile(source) as opened:
        layout = flowbench.flowbench_layout(cast(IO[bytes], opened))
    fields = [("velocity", 1), ("pressure", 0)]
    manifest = FileManifest(
        path=path,
        size=identity.size,
        version=identity.version,
        format="flowbench",
        dataset_name=flowbench.DATASET_NAME,
        grid_type="cartesian",
        axes=("x", "y"),
        grid=layout.grid,
        trajectories=1,
        frames=layout.frames,
        boundaries=(flowbench.BOUNDARY_IDS,),
        fields=tuple(FieldLayout(name, rank, "<f4", True, True, layout.grid, "library") for name, rank in fields),
        attributes={"licence": flowbench.LICENCE},
    )
    manifest.check()
    return manifest


def _boundary_groups(file: Any) -> list[Any]:
    return [group for group in file["boundary_conditions"].values() if isinstance(group, h5py.Group)]


def _field_layout(field: StoredField) -> FieldLayout:
    dataset = field.dataset
    check_stored(dataset)
    base = {
        "name": field.name, "rank": field.rank, "dtype": dataset.dtype.str, "sample_varying": field.sample_varying,
        "time_varying": field.time_varying, "stored": field.stored,
    }  # fmt: skip
    plain = dataset.dtype.kind in "iuf" and not dataset.id.get_create_plist().get_nfilters()
    if plain and not dataset.chunks and dataset.id.get_offset() is not None:
        return FieldLayout(**base, kind="contiguous", offset=dataset.id.get_offset())
    if plain and dataset.chunks:
        table = _chunk_table(field)
        if table is not None:
            return FieldLayout(**base, kind="chunked", chunk_frames=table[0], chunk_offsets=table[1])
    return FieldLayout(**base, kind="library")


def _chunk_table(field: StoredField) -> tuple[int, np.ndarray] | None:
    """Frames a chunk and first bytes (rows, chunks), where every chunk holds whole frames of one trajectory."""
    dataset = field.dataset
    lead = field.sample_varying + field.time_varying
    chunk, shape = dataset.chunks, dataset.shape
    if chunk[lead:] != shape[lead:] or (field.sample_varying and chunk[0] != 1):
        return None
    rows = shape[0] if field.sample_varying else 1
    frames = shape[lead - 1] if field.time_varying else 1
    per_chunk = chunk[lead - 1] if field.time_varying else 1
    offsets = np.full((rows, -(-frames // per_chunk)), -1, dtype=np.int64)

    def note(stored: Any) -> None:
        place = stored.chunk_offset
        row = place[0] if field.sample_varying else 0
        offsets[row, place[lead - 1] // per_chunk if field.time_varying else 0] = stored.byte_offset

    dataset.id.chunk_iter(note)
    return (per_chunk, offsets) if (offsets >= 0).all() else None


def _attributes(file: Any) -> dict[str, Any]:
    """The file's simulation parameters and other small attributes, as JSON can hold them."""
    found: dict[str, Any] = {}
    for name, value in file.attrs.items():
        if isinstance(value, h5py.Empty) or np.size(value) > 64:
            continue
        plain = np.asarray(value).tolist()
        found[name] = [text_of(v) if isinstance(v, bytes) else v for v in plain] if isinstance(plain, list) else plain
        if isinstance(plain, bytes):
            found[name] = text_of(plain)
        try:
            json.dumps(found[name], allow_nan=False)
        except (TypeError, ValueError):
            found[name] = str(value)
    return found


def _to_json(entry: FileManifest) -> dict[str, Any]:
    content = {field.name: vars(entry)[field.name] for field in dataclasses.fields(entry)}
    content["fields"] = [
        {**vars(layout), "chunk_offsets": None if layout.chunk_offsets is None else layout.chunk_offsets.tolist()}
        for layout in entry.fields
    ]
    return content


def _from_json(content: dict[str, Any]) -> FileManifest:
    """The checked manifest of a file; one of `UNUSABLE` where it is none."""
    fields = []
    for entry in content["fields"]:
        table = entry["chunk_offsets"]
        if table is not None:
            table = np.array([[_whole(offset) for offset in row] for row in table], dtype=np.int64)
        numbers = {name: _whole(entry[name]) for name in ("rank", "offset", "chunk_frames")}
        texts = {name: _text(entry[name]) for name in ("name", "dtype", "kind")}
        flags = {name: _flag(entry[name]) for name in ("sample_varying", "time_varying")}
        stored = tuple(_whole(n) for n in entry["stored"])
        fields.append(FieldLayout(**{**entry, **numbers, **texts, **flags, "stored": stored, "chunk_offsets": table}))
    boundaries = tuple(tuple((_whole(low), _whole(high)) for low, high in sides) for sides in content["boundaries"])
    numbers = {name: _whole(content[name]) for name in ("size", "trajectories", "frames")}
    texts = {name: _text(content[name]) for name in ("path", "version", "format", "dataset_name", "grid_type")}
    changed = {
        "axes": tuple(_text(axis) for axis in content["axes"]), "grid": tuple(_whole(n) for n in content["grid"]),
        "boundaries": boundaries, "fields": tuple(fields),
        "geometry": None if content["geometry"] is None else _text(content["geometry"]),
    }  # fmt: skip
    entry = FileManifest(**{**content, **numbers, **texts, **changed})
    entry.check()
    return entry


# What comes of content that is no manifest.
UNUSABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, IndexError)


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"expected a whole number, found {value!r}")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise TypeError(f"expected a text, found {value!r}")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise TypeError(f"expected true or false, found {value!r}")
    return value


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, separators=(",", ":")) + "\n")
