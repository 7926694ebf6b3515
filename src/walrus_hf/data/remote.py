"""Byte ranges of files, wherever they are: on a disk, behind http(s), on the Hub, or in any store that fsspec knows.

`open_range_file` gives a `RangeFile`, which answers one question: the bytes from here to there, all of them and of the
file that was seen first, or an error that names the file and the offset. `BufferedRangeFile` makes a file object of it
for h5py, zipfile and numpy. `list_files` and `join_inside` find the files of a folder and keep paths inside it.
"""

from __future__ import annotations

import functools
import importlib
import io
import os
import re
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote, unquote, urlsplit
from urllib.request import url2pathname

T = TypeVar("T")

_sleep = time.sleep
# A try that brought this much is progress, and the counting of tries starts anew.
_PROGRESS = 2**20


class ChangedFileError(OSError):
    """The file is not the one that was indexed."""


@dataclass(frozen=True)
class Identity:
    """What tells one file from another: its size in bytes, and a version.

    The version is the ETag (on the Hub a hash of the content) or the time of the last change; "" if a store has none.
    """

    size: int
    version: str

    def differs(self, other: Identity) -> bool:
        """True where one of both shows that they are not the same file."""
        return self.size != other.size or bool(self.version and other.version and self.version != other.version)


@dataclass(frozen=True)
class Retries:
    """How often and how long to try. The waits, in seconds, double from `first_wait` to `longest_wait`.

    `timeout` is for the connection and for each silence of the server. A wait that the server asks for is granted up
    to ten times `longest_wait`.
    """

    attempts: int = 6
    first_wait: float = 0.5
    longest_wait: float = 30.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.first_wait < 0 or self.longest_wait < 0 or self.timeout <= 0:
            raise ValueError(f"expected at least one attempt, waits from 0 s and a timeout above 0 s, found {self}")

    def wait(self, failures: int, asked: float | None) -> float:
        """Seconds to wait after so many failures in a row; `asked` is what the server asks for."""
        usual = min(self.first_wait * 2 ** min(failures - 1, 60), self.longest_wait)
        return usual if asked is None else max(usual, min(asked, 10 * self.longest_wait))


class Lock:
    """A lock that a forked process finds open, and that a pickle leaves behind."""

    def __init__(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()

    def __enter__(self) -> None:
        if self._process != os.getpid():
            self._process, self._lock = os.getpid(), threading.Lock()
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type[Lock], tuple[()]]:
        return Lock, ()


class TransferCounter:
    """Requests sent, bytes that arrived in answer to reads, and tries that were repeated."""

    def __init__(self) -> None:
        self.requests = self.bytes = self.retries = 0
        self._lock = Lock()

    def add(self, requests: int = 0, bytes: int = 0, retries: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.bytes += bytes
            self.retries += retries

    def reset(self) -> None:
        with self._lock:
            self.requests = self.bytes = self.retries = 0

    def __reduce__(self) -> tuple[type[TransferCounter], tuple[()]]:
        return TransferCounter, ()  # what another process moves is counted there


TRANSFERS = TransferCounter()
"""The sum over all files of this process."""


class Transient(Exception):
    """A failure worth another try. `wrong`: the answer itself was wrong, which is worth one more try and no more."""

    def __init__(
        self, reason: str, wait: float | None = None, progress: int = 0, wrong: type[OSError] | None = None
    ) -> None:
        super().__init__(reason)
        self.wait, self.progress, self.wrong = wait, progress, wrong


class RangeFile:
    """One file of which ranges of bytes are read.

    It opens nothing before the first read, holds no open handle between reads, and can be used by several threads,
    pickled, and used after a fork. What is known of the file is asked of the store once; a file that changes after
    that is noticed where the store tells (a local file and http(s): at every read).

    Attributes:
        url: the address as it was given.
        counter: what this file cost so far; `TRANSFERS` holds the sum over all files.
    """

    def __init__(self, url: str, retries: Retries) -> None:
        self.url = url
        self.retries = retries
        self.counter = TransferCounter()
        self._identity: Identity | None = None
        self._expected: Identity | None = None
        self._asking = Lock()
        self._told: OSError | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_told": None}

    def identity(self) -> Identity:
        """Size and version, asked once.

        Raises:
            FileNotFoundError, IsADirectoryError, PermissionError: as the name says.
            OSError: the store cannot be reached or does not tell.
        """
        told = self._told
        if self._identity is None:
            with self._asking:
                if self._told is not told:  # what another thread was told while this one waited
                    raise self._told or OSError(self.url)
                if self._identity is None:
                    try:
                        self._identity = self._ask()
                    except OSError as error:
                        self._told = type(error)(*error.args)  # without the calls that led to it
                        raise
        return self._identity

    def expect(self, identity: Identity) -> None:
        """Let later reads raise `ChangedFileError` where the file is another one than `identity` says."""
        self._expected = identity

    def pinned_url(self) -> str:
        """The address at the revision found at first sight, for the Hub; for other stores the address as it is."""
        return self.url

    def read(self, start: int, stop: int) -> bytes:
        """The bytes from `start` up to `stop`. Raises the errors of `read_into`."""
        self._check_inside(start, stop)
        buffer = bytearray(stop - start)
        self.read_into(start, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill the buffer with the bytes from `start` on.

        Raises:
            ChangedFileError: the file is not the expected one, or not the one that was seen first.
            FileNotFoundError, PermissionError: as the name says.
            OSError: a range outside the file, or one that could not be read, with the offset and the last reason.
        """
        view = memoryview(buffer)
        reference = self._check_inside(start, start + view.nbytes)
        if view.nbytes:
            self._fetch(start, view.cast("B"), reference)

    def _check_inside(self, start: int, stop: int) -> Identity:
        """What the file must be; the range must lie in it."""
        if self._expected is not None and self._identity is not None and self._expected.differs(self._identity):
            raise self._changed(self._expected, self._identity)
        reference = self._expected or self.identity()
        if not 0 <= start <= stop <= reference.size:
            raise OSError(f"{self.url}: expected a range inside its {reference.size} bytes, found {start} to {stop}")
        return reference

    def _ask(self) -> Identity:
        raise NotImplementedError

    def _fetch(self, start: int, view: memoryview, reference: Identity) -> None:
        raise NotImplementedError

    def _count(self, requests: int = 0, bytes: int = 0, retries: int = 0) -> None:
        self.counter.add(requests, bytes, retries)
        TRANSFERS.add(requests, bytes, retries)

    def _changed(self, expected: Identity, found: Identity) -> ChangedFileError:
        return ChangedFileError(
            f"{self.url}: expected the file that was indexed ({expected.size} bytes, version {expected.version!r}), "
            f"found another one ({found.size} bytes, version {found.version!r}); index it again"
        )

    def _persist(self, start: int, step: Callable[[], T]) -> T:
        """What `step` returns, tried again after failures that may pass."""
        failures = wrong = 0
        while True:
            try:
                return step()
            except Transient as trouble:
                failures = 1 if trouble.progress >= _PROGRESS else failures + 1
                wrong += trouble.wrong is not None
                if failures >= self.retries.attempts or wrong > 1:
                    raise (trouble.wrong or OSError)(
                        f"{self.url}: expected the bytes from {start} on, found {trouble} ({failures} tries); "
                        "try again later"
                    ) from trouble
                self._count(retries=1)
                _sleep(self.retries.wait(failures, trouble.wait))


def open_range_file(
    url: str, *, storage_options: dict[str, Any] | None = None, retries: Retries | None = None
) -> RangeFile:
    """A file to read ranges of bytes from. Nothing is sent before the first question.

    Args:
        url: a local path, `file://`, `http(s)://`, `hf://[datasets/|spaces/]OWNER/NAME[@REVISION]/PATH`, or what
            fsspec knows.
        storage_options: for `hf://` `token` and `endpoint`, for `http(s)://` `headers`, which are sent to the host of
            `url` alone; for other stores what fsspec's file system takes.
        retries: how often to try; `Retries()` if None.

    Raises:
        ValueError: an address or an option that its store cannot have.
        OSError: a protocol that nobody knows.
        ImportError: requests, fsspec or its part for that protocol is not installed.
    """
    url, options, retries = os.fspath(url), dict(storage_options or {}), retries or Retries()
    from .stores import FsspecFile, LocalFile  # they stand on this module

    path = local_path(url)
    if path is not None:
        return LocalFile(url, path, retries)
    need_for_urls(url)
    if url.startswith(("http://", "https://", "hf://")):
        from .http import HttpFile, HubFile

        return (HubFile if url.startswith("hf://") else HttpFile)(url, options, retries)
    return FsspecFile(url, options, retries)


def need_for_urls(url: str) -> None:
    """Refuse an address that needs what is not installed."""
    for package in ("fsspec", "requests"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise ImportError(f"{url}: reading from a URL needs {package}: pip install 'walrus-hf[data]'") from None


def local_path(url: str) -> str | None:
    """The path on this machine, None for what is elsewhere."""
    if "://" not in url:
        return url
    if not url.startswith("file://"):
        return None
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost"):
        raise ValueError(f"{url}: expected a file on this machine, file:///path, found the host {parts.netloc!r}")
    return url2pathname(parts.path)


class BufferedRangeFile(io.RawIOBase):
    """A `RangeFile` as a file object for h5py, zipfile and `numpy.load`: read-only and seekable.

    Small reads are served from blocks, of which at most `blocks` of `block_size` bytes are kept; larger reads go to
    the file itself. h5py can pass over a failure or turn it into an error of its own, so the first one is kept in
    `failure`, and every later read fails with it at once. Give it to h5py inside `with`, see `__exit__`.
    """

    def __init__(self, file: RangeFile, block_size: int = 2**20, blocks: int = 32) -> None:
        super().__init__()
        self.file = file
        self.failure: OSError | None = None
        self._size = file.identity().size
        self._position = 0
        self._block_size = block_size
        self._block = functools.lru_cache(blocks)(self._read_block)

    def _read_block(self, number: int) -> bytes:
        start = number * self._block_size
        return self.file.read(start, min(start + self._block_size, self._size))

    def close(self) -> None:
        self._block.cache_clear()
        super().close()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Close, and forget the local variables of the calls that failed.

        h5py's calls hold what HDF5 frees when the process ends. If an error, kept by the user or by an interactive
        session, holds them until then, HDF5 calls Python when Python is gone, and the process crashes.
        """
        errors, seen = [error], set()
        while errors:
            failed = errors.pop()
            if failed is not None and id(failed) not in seen:
                seen.add(id(failed))
                traceback.clear_frames(failed.__traceback__)
                errors += [failed.__cause__, failed.__context__]
        super().__exit__(kind, error, trace)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"{self.file.url}: expected a position from 0 on, found {base + offset}")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if self.closed:
            raise ValueError(f"{self.file.url}: expected an open file, found it closed")
        if self.failure is not None:
            raise type(self.failure)(*self.failure.args)
        start, stop = self._position, min(self._position + len(view), self._size)
        if start >= stop:
            return 0
        try:
            if stop - start >= self._block_size:
                self.file.read_into(start, view[: stop - start])
            else:
                first, last = start // self._block_size, (stop - 1) // self._block_size
                blocks = b"".join(self._block(number) for number in range(first, last + 1))
                view[: stop - start] = memoryview(blocks)[start - first * self._block_size :][: stop - start]
        except OSError as error:
            self.failure = type(error)(*error.args)  # without the calls that led to it
            raise
        self._position = stop
        return stop - start


def list_files(
    url: str, suffixes: tuple[str, ...], storage_options: dict[str, Any] | None = None, recursive: bool = False
) -> list[str]:
    """Addresses of the files with these endings right in the folder, sorted; a file gives itself.

    Args:
        url: a folder or a file, of the stores of `open_range_file`. A file behind http(s) is not asked for here.
        suffixes: endings such as `(".hdf5", ".h5")`.
        storage_options: as in `open_range_file`.
        recursive: the folders in the folder too.

    Raises:
        FileNotFoundError, PermissionError: as the name says.
        OSError: the store cannot be reached.
        ValueError: a folder behind http(s), which cannot be listed, or names that would leave the folder.
    """
    from .stores import list_in_fsspec, list_local

    url, options = os.fspath(url), dict(storage_options or {})
    path = local_path(url)
    if path is not None:
        return list_local(url, path, suffixes, recursive)
    need_for_urls(url)
    if url.startswith("hf://"):
        from .http import list_hub_files

        return list_hub_files(url, suffixes, options, recursive)
    if url.startswith(("http://", "https://")):
        if not urlsplit(url).path.endswith(suffixes):
            raise ValueError(
                f"{url}: expected the address of a file, found a folder, which cannot be listed over http; "
                "pass the addresses of the files, or a manifest"
            )
        return [url]
    return list_in_fsspec(url, suffixes, options, recursive)


def join_inside(root: str, relative: str) -> str:
    """The address of `relative`, a path with `/` from a manifest or a repository, under the folder `root`.

    Raises:
        ValueError: a path that could leave the root: absolute, with `..`, a drive, a scheme, a backslash, hidden in
            percent signs, or over a symbolic link. Links of the Hub's cache into its own blobs are no such links.
    """
    check_relative(root, relative)
    path = local_path(root)
    if path is None:
        if root.startswith(("http://", "https://")):
            if "?" in root or "#" in root:
                raise ValueError(f"{root}: expected the address of a folder, found one with a query")
            relative = quote(relative)
        return f"{root.rstrip('/')}/{relative}"
    joined = os.path.join(path, *relative.split("/"))
    real, target = os.path.realpath(path), os.path.realpath(joined)
    if not any(os.path.commonpath([place, target]) == place for place in (real, *_blobs(real))):
        raise ValueError(f"{root}: expected a path that stays inside, found {relative!r}, a link out of it")
    return f"{root.rstrip('/')}/{quote(relative)}" if root.startswith("file://") else joined


def _blobs(real: str) -> list[str]:
    """Where the files of a folder in the Hub's cache really lie: `<repository>/snapshots/<commit>/...` are links."""
    repository, found, _ = real.partition(f"{os.sep}snapshots{os.sep}")
    name = os.path.basename(repository)
    return [os.path.join(repository, "blobs")] if found and name.startswith(("datasets--", "models--")) else []


def check_relative(root: str, relative: str) -> None:
    """Refuse a path that could leave its root, whatever reads it."""
    plain, previous = relative, None
    while plain != previous:  # %252e is %2e is a dot
        plain, previous = unquote(plain), plain
    # A colon after several letters is one of a file's name, such as run:3.hdf5, until a slash follows.
    elsewhere = re.match(r"[A-Za-z]:|[A-Za-z][A-Za-z0-9+.-]*:/", plain) or "::" in plain
    bad = (
        not all(part.strip(". ") for part in plain.split("/"))
        or "\\" in plain
        or elsewhere
        or plain.count("/") != relative.count("/")
        or any(ord(character) < 32 or ord(character) == 127 for character in plain)
    )
    if bad:
        why = ", which reads as a drive or an address; rename it" if elsewhere else ""
        raise ValueError(
            f"{root}: expected the path of a file inside, such as data/train/a.hdf5, found {relative!r}{why}"
        )


def brief(error: BaseException) -> str:
    """The error's message in one line, without what signs an address."""
    return re.sub(r"\?[^\s'\"]+", "?...", " ".join(str(error).split()))[:300] or type(error).__name__
