"""Open HDF5 files that come from anywhere: local or remote, none of them believed to keep to itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import h5py

from .remote import BufferedRangeFile, open_range_file


@contextlib.contextmanager
def open_well(path: str | os.PathLike) -> Iterator[Any]:
    """The open file, checked for references to other files; every error inside is one line that names the file."""
    location = os.fspath(path)
    with _open_source(location) as source, open_well_file(location, source) as file:
        yield file


@contextlib.contextmanager
def open_well_file(location: str, source: Any) -> Iterator[Any]:
    """The same over a path or a file object that is open already."""
    try:
        with h5py.File(source, "r") as file:
            _refuse_other_files(file)
            yield file
    except PermissionError:
        raise
    except ValueError as error:
        raise ValueError(f"{location}: {one_line(error)}") from error
    except Exception as error:  # h5py lets OSError, RuntimeError, KeyError and more out of a damaged file
        failure = source.failure if isinstance(source, BufferedRangeFile) else None
        if failure is not None:  # the file may be whole, only its bytes did not come
            raise failure from error
        raise ValueError(
            f"{location}: expected a whole HDF5 file in The Well's format, found one that cannot be read "
            f"({type(error).__name__}: {one_line(error)}); download or write it again"
        ) from error


@contextlib.contextmanager
def _open_source(location: str) -> Iterator[Any]:
    """What h5py shall open: the local path itself, or the open remote file."""
    if "://" not in location:
        if os.path.isdir(location):
            raise IsADirectoryError(f"{location}: expected an HDF5 file, found a directory; name one file in it")
        if not os.path.isfile(location):
            raise FileNotFoundError(f"{location}: expected an HDF5 file, found none; check the path")
        yield location
        return
    # HDF5 jumps between its index and the data: kept blocks save most of the requests.
    with BufferedRangeFile(open_range_file(location)) as file:
        try:
            yield file
        except Exception as error:
            if file.failure not in (None, error):  # what h5py made of it, such as a missing group, is not the cause
                raise file.failure from error
            raise
        if file.failure is not None:
            raise file.failure


def _refuse_other_files(file: Any) -> None:
    """A downloaded file must not read the user's disk: refuse what HDF5 would follow into another file.

    Only hard links are followed here. Soft links name a path in this file, which hard links reach as well.
    """
    groups, seen = [file["/"]], set()
    while groups:
        group = groups.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:  # hard links can form a ring
            continue
        seen.add(address)
        for name in group:
            link = group.get(name, getlink=True)
            where = f"{group.name.rstrip('/')}/{name}"
            if isinstance(link, h5py.ExternalLink):
                raise ValueError(f"{where}: expected data in this file, found a link into {link.filename!r}; {_COPY}")
            if not isinstance(link, h5py.HardLink):
                continue
            item = group[name]
            if isinstance(item, h5py.Group):
                groups.append(item)
            elif isinstance(item, h5py.Dataset):
                # The layout is asked first: even the shape of a virtual data set may open its sources.
                created = item.id.get_create_plist()
                if created.get_layout() == h5py.h5d.VIRTUAL or created.get_external_count():
                    raise ValueError(f"{where}: expected data in this file, found data kept in another file; {_COPY}")


_COPY = "if you trust the file, copy the data into one file"


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
