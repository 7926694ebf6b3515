"""Ranges of files on a disk and in the stores of fsspec, and the lists of files there (see remote.py)."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from .remote import Identity, RangeFile, Retries, Transient, brief, join_inside

# What tells the versions of a file apart in fsspec's answers, the best first. Times of the last access are not here.
_VERSIONS = ("ETag", "etag", "content_md5", "md5Hash", "checksum", "mtime", "LastModified", "last_modified", "created")


class LocalFile(RangeFile):
    """A file on a disk, opened for each read: no descriptor stays open, and a file that was replaced is noticed."""

    def __init__(self, url: str, path: str, retries: Retries) -> None:
        super().__init__(url, retries)
        self._path = path

    def _ask(self) -> Identity:
        try:
            found = os.stat(self._path)
        except OSError as error:
            raise self._refusal(error, 0) from None
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(f"{self.url}: expected a file, found a directory; name one file in it")
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{self.url}: expected a plain file, found a device or a pipe; check the path")
        return Identity(found.st_size, str(found.st_mtime_ns))

    def _fetch(self, start: int, view: memoryview, reference: Identity) -> None:
        done, piece = 0, 1
        try:
            with open(self._path, "rb", buffering=0) as file:
                file.seek(start)
                while done < len(view) and piece:
                    piece = file.readinto(view[done:]) or 0
                    done += piece
                after = os.fstat(file.fileno())
        except OSError as error:
            raise self._refusal(error, start) from None
        self._count(requests=1, bytes=done)
        found = Identity(after.st_size, str(after.st_mtime_ns))
        if reference.differs(found):
            raise self._changed(reference, found)
        if done < len(view):
            raise OSError(f"{self.url}: expected {len(view)} bytes from {start} on, found {done}; check the disk")

    def _refusal(self, error: OSError, start: int) -> OSError:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return FileNotFoundError(f"{self.url}: expected a file, found none; check the path")
        if isinstance(error, PermissionError):
            return PermissionError(f"{self.url}: expected a file that you may read, found no permission")
        return OSError(f"{self.url}: expected to read from byte {start} on, found {brief(error)}; check the disk")


class FsspecFile(RangeFile):
    """A file in any store that fsspec knows. Its version is asked once: what changes later is noticed by its size."""

    def __init__(self, url: str, storage_options: dict[str, Any], retries: Retries) -> None:
        super().__init__(url, retries)
        self._options = storage_options
        self._filesystem()

    def _refusal(self, error: Exception) -> Exception:
        refusal = fsspec_refusal(self.url, error)
        return Transient(f"{type(error).__name__}: {brief(error)}") if type(refusal) is OSError else refusal

    def _filesystem(self) -> tuple[Any, str]:
        """fsspec keeps one file system for each process, so that none is carried into a pickle or over a fork."""
        return fsspec_filesystem(self.url, self._options)

    def _ask(self) -> Identity:
        def step() -> dict[str, Any]:
            self._count(requests=1)
            filesystem, path = self._filesystem()
            try:
                return filesystem.info(path)
            except Exception as error:  # every protocol has its own
                raise self._refusal(error) from error

        found = self._persist(0, step)
        if found.get("type") == "directory":
            raise IsADirectoryError(f"{self.url}: expected a file, found a directory; name one file in it")
        if not isinstance(found.get("size"), int):
            raise OSError(f"{self.url}: expected a store that tells the size of its files, found none")
        version = next((str(found[key]) for key in _VERSIONS if found.get(key) is not None), "")
        return Identity(found["size"], version)

    def _fetch(self, start: int, view: memoryview, reference: Identity) -> None:
        if reference.differs(self.identity()):
            raise self._changed(reference, self.identity())

        def step() -> None:
            self._count(requests=1)
            filesystem, path = self._filesystem()
            try:
                found = filesystem.cat_file(path, start, start + len(view))
            except Exception as error:  # every protocol has its own
                raise self._refusal(error) from error
            self._count(bytes=len(found))
            if len(found) != len(view):
                raise Transient(f"{len(found)} of {len(view)} bytes")
            view[:] = found

        self._persist(start, step)


def fsspec_refusal(url: str, error: Exception) -> Exception:
    """What a store's error means to us; every protocol has its own."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{url}: expected a file, found none; check the address")
    if isinstance(error, PermissionError):
        return PermissionError(f"{url}: expected a file that you may read, found {brief(error)}; check your access")
    if isinstance(error, ImportError | IsADirectoryError):
        return error
    return OSError(
        f"{url}: expected an address that can be opened, found {type(error).__name__}: {brief(error)}; "
        "check the address, the connection and your access rights"
    )


def fsspec_filesystem(url: str, storage_options: dict[str, Any]) -> tuple[Any, str]:
    """fsspec's file system for the address, and the path in it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url, **storage_options)
    except ValueError as error:  # a protocol that it does not know
        raise ValueError(f"{url}: expected an address that can be opened, found {brief(error)}") from error
    except Exception as error:
        raise fsspec_refusal(url, error) from error


def list_local(url: str, path: str, suffixes: tuple[str, ...], recursive: bool) -> list[str]:
    if os.path.isfile(path):
        return [url]
    if not os.path.isdir(path):
        raise FileNotFoundError(f"{url}: expected a folder or a file, found none; check the path")
    found: list[str] = []
    for folder, folders, names in os.walk(path):
        if not recursive:
            folders.clear()
        found += [os.path.join(folder, name) for name in names if name.endswith(suffixes)]
    found = sorted(name for name in found if os.path.isfile(name))
    return [Path(name).as_uri() for name in found] if url.startswith("file://") else found


def list_in_fsspec(url: str, suffixes: tuple[str, ...], options: dict[str, Any], recursive: bool) -> list[str]:
    filesystem, root = fsspec_filesystem(url, options)
    try:
        if filesystem.info(root)["type"] == "file":
            return [url]
        names = filesystem.find(root, maxdepth=None if recursive else 1)
    except Exception as error:  # every protocol has its own
        raise fsspec_refusal(url, error) from error
    start = len(root.rstrip("/")) + 1
    return sorted(join_inside(url, name[start:]) for name in names if name.endswith(suffixes))
