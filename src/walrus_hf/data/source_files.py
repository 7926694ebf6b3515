"""The files of a source: where they lie, and the manifest of each, or why there is none.

source -> folders of its splits -> their files -> manifests
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote

from tqdm.auto import tqdm

from .flowbench import GEOMETRY_SUFFIX, warn_of_licence
from .manifest import PARALLEL, SUFFIXES, FileManifest, Manifest, index_file, load_manifest
from .remote import ChangedFileError, Identity, join_inside, list_files, open_range_file
from .scenarios import SPLITS, Scenario, find_scenario


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder, file or manifest, and the parts of file names to leave out."""

    url: str
    exclude: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a source lies: a folder for each split or one for all, and the folder of `stats.yaml` where one belongs."""

    folders: tuple[Folder, ...]
    home: str | None = None
    scenario: Scenario | None = None


@dataclasses.dataclass(frozen=True)
class FileList:
    """Files below `root` before any is opened; `indexed` is what a manifest, if they come from one, says of them."""

    root: str
    paths: tuple[str, ...]
    geometries: frozenset[str] = frozenset()
    indexed: tuple[FileManifest, ...] = ()


def locate_source(
    source: str | os.PathLike,
    split: str | None = None,
    base_path: str | os.PathLike | None = None,
    storage_options: dict | None = None,
) -> Location:
    """The folders of a source; without a split those of all three.

    A path that exists comes first, then a URL, then a scenario. A source without folders `data/<split>` is one folder.
    With a base path the source is a scenario's name, even where
    a folder of that name is at hand.

    Raises:
        ValueError: no such scenario or split, or data that need a conversion.
        OSError: a store that cannot be reached.
    """
    location, splits = os.fspath(source), SPLITS if split is None else (split,)
    if base_path is None and (location.endswith(".json") or os.path.exists(location) or "://" in location):
        location = location.rstrip("/") or "/"
        names = tuple(dict.fromkeys((*SPLITS, *splits)))  # each is a listing
        is_file = location.endswith((*SUFFIXES, ".json"))  # some stores call it an error to list one
        if is_file or not _has_splits(f"{location}/data", names, storage_options):
            _check_split(split)
            if split is not None and not is_file and _has_splits(location, SPLITS, storage_options):
                raise ValueError(
                    f"{location}: expected a folder with data/{split} in it, or one without splits, found splits in it "
                    "themselves; move them into a folder `data`, name the folder above that, or name one of them"
                )
            return Location((Folder(location),))
        return Location(tuple(Folder(f"{location}/data/{name}") for name in splits), location)
    if base_path is None and (location.startswith((".", "~")) or "/" in location or location.endswith(SUFFIXES)):
        raise FileNotFoundError(
            f"{location}: expected a file or a folder, found none; check the path, or give the name of a scenario alone"
        )
    _check_split(split)
    scenario = find_scenario(location)
    if base_path is not None:
        home = f"{os.fspath(base_path).rstrip('/')}/{scenario.name}"
        urls = [f"{home}/data/{name}" for name in splits]
    else:
        urls = [scenario.url(name) for name in splits]
        home = urls[0].removesuffix("/" + scenario.folder.format(split=splits[0]))
    folders = tuple(Folder(url, scenario.exclusions(name)) for url, name in zip(urls, splits))
    return Location(folders, None if scenario.format == "flowbench" else home, scenario)


def _check_split(split: str | None) -> None:
    """A folder may have splits of its own; other sources have these alone, and a misspelt one would be passed over."""
    if split is not None and split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, found {split!r}")


def _has_splits(location: str, names: Sequence[str], storage_options: dict | None) -> bool:
    if location.startswith(("http://", "https://")):  # cannot be listed
        return False
    for name in names:
        try:
            if list_files(f"{location}/{name}", SUFFIXES, storage_options, recursive=True):
                return True
        except FileNotFoundError:
            pass
    return False


def open_source(
    source: str | os.PathLike,
    split: str = "train",
    base_path: str | os.PathLike | None = None,
    storage_options: dict | None = None,
    skip_damaged: bool = False,
    progress: bool = False,
) -> tuple[Manifest, Scenario | None]:
    """The manifest of one split of a source, and its scenario where it was given by name, or its manifest was made so.

    Args:
        skip_damaged, progress: as in `build_manifest`.

    Raises:
        The errors of `locate_source` and `build_manifest`.
    """
    place = locate_source(source, split, base_path, storage_options)
    (folder,) = place.folders
    if folder.url.endswith(".json"):
        manifest = load_manifest(folder.url, None, storage_options)
        return manifest, None if manifest.scenario is None else find_scenario(manifest.scenario)
    manifest = build_manifest(folder.url, folder.exclude, storage_options, True, skip_damaged, progress)
    if place.scenario is None:
        return manifest, None
    return dataclasses.replace(manifest, scenario=place.scenario.name), place.scenario


def build_manifest(
    url: str | os.PathLike,
    exclude: Sequence[str] = (),
    storage_options: dict | None = None,
    cache: bool = True,
    skip_damaged: bool = False,
    progress: bool = False,
) -> Manifest:
    """Index all files in a folder, or one file; what was indexed before comes from the cache on disk.

    Args:
        url: a folder or file, local or any URL; folders behind http(s) cannot be listed.
        exclude: parts of file names to leave out.
        skip_damaged: leave damaged files out with a warning, as long as one is whole, instead of raising.
        progress: show a bar over the files.

    Raises:
        FileNotFoundError: no such folder, or no file in it.
        OSError, ValueError: the first file that cannot be read; it is named.
    """
    location = os.fspath(url).rstrip("/") or "/"
    files = list_folder(Folder(location, tuple(exclude)), storage_options)
    entries = []
    for entry in index_files(files, storage_options, cache, progress):
        if isinstance(entry, FileManifest):
            entries.append(entry)
        elif skip_damaged and isinstance(entry, ValueError):
            warnings.warn(f"left out a damaged file: {entry}", stacklevel=2)
        else:
            raise entry
    if not entries:
        raise ValueError(f"{location}: expected a whole file, found {len(files.paths)} damaged ones")
    if any(entry.format == "flowbench" for entry in entries):
        warn_of_licence()
    return Manifest(files.root, tuple(entries))


def list_folder(folder: Folder, storage_options: dict | None = None) -> FileList:
    """The files of a folder, on the Hub those of this moment's commit.

    Raises:
        FileNotFoundError: no such folder, or no file in it.
        OSError, ValueError: a folder that cannot be listed.
    """
    location = folder.url
    if location.endswith(".json"):
        manifest = load_manifest(location, None, storage_options)
        geometries = frozenset(entry.geometry for entry in manifest.files if entry.geometry is not None)
        return FileList(manifest.root, tuple(e.path for e in manifest.files), geometries, manifest.files)
    whole_folder = not location.endswith(SUFFIXES)
    found = list_files(location, SUFFIXES, storage_options, recursive=whole_folder)
    if whole_folder and found == [location]:
        # walrus_hf.finetuning_arrays reads those.
        remedy = "; fine-tuning reads .npy through a YAML file beside it that says what it holds: give that file"
        remedy = remedy if location.endswith(".npy") else ""
        raise ValueError(
            f"{location}: expected a folder, or a file ending in {', '.join(SUFFIXES)}, found another file{remedy}"
        )
    parent = location.rpartition("/")[0] if "://" in location else os.path.dirname(location)
    root = location if whole_folder else parent or "."
    if "://" in root:
        paths = [file.removeprefix(f"{root}/") for file in found]
    else:
        paths = [os.path.relpath(file, root).replace(os.sep, "/") for file in found]
    if root.startswith(("file://", "http://", "https://")):
        paths = [unquote(path) for path in paths]  # `join_inside` quotes them again
    geometries = frozenset(path for path in paths if path.endswith(GEOMETRY_SUFFIX))
    paths = [p for p in paths if p not in geometries and not any(part in f"/{p}" for part in folder.exclude)]
    if not paths:
        raise FileNotFoundError(f"{location}: expected files ending in {', '.join(SUFFIXES)}, found none")
    if root.startswith("hf://"):
        pinned = open_range_file(f"{root}/{paths[0]}", storage_options=storage_options).pinned_url()
        root = pinned.removesuffix(f"/{paths[0]}")
    return FileList(root, tuple(paths), geometries)


def index_files(
    files: FileList, storage_options: dict | None = None, cache: bool = True, progress: bool = False
) -> Iterator[FileManifest | ValueError | OSError]:
    """The manifest of each file in their order, or the error that stands in its way."""

    def index(path: str) -> FileManifest | ValueError | OSError:
        beside = "/".join([*path.split("/")[:-1], GEOMETRY_SUFFIX])
        try:
            entry = index_file(join_inside(files.root, path), path, storage_options, cache)
            if files.indexed:
                _refuse_another(files.indexed[files.paths.index(path)], entry)
            return dataclasses.replace(entry, geometry=beside if beside in files.geometries else None)
        except (ValueError, OSError) as error:
            return error

    with (
        ThreadPoolExecutor(PARALLEL) as pool,
        tqdm(total=len(files.paths), desc="index", unit="file", leave=False, disable=None if progress else True) as bar,
    ):
        for entry in pool.map(index, files.paths):
            yield entry
            bar.update()


def _refuse_another(expected: FileManifest, found: FileManifest) -> None:
    """The file must be the one that a manifest was made of."""
    if Identity(expected.size, expected.version).differs(Identity(found.size, found.version)):
        raise ChangedFileError(
            f"expected the file that was indexed ({expected.size} bytes, version {expected.version!r}), found another "
            f"one ({found.size} bytes, version {found.version!r}); index it again"
        )
    if _layout(expected) != _layout(found):
        raise ValueError("expected the layout in the manifest, found another one in the file; index it again")


def _layout(entry: FileManifest) -> list[dict[str, Any]]:
    return [
        {**vars(field), "chunk_offsets": None if field.chunk_offsets is None else field.chunk_offsets.tolist()}
        for field in entry.fields
    ]
