"""A store with latency and bandwidth, over a local folder: what a Hub is to a reader, without a network."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

LATENCY = 0.05  # s a request
BANDWIDTH = 50e6  # bytes/s of one stream; streams do not slow each other down


class SlowFileSystem(AbstractFileSystem):
    """`slow://` followed by a local path; each request takes its time and is counted."""

    protocol = "slow"
    cachable = False
    requests = 0
    transferred = 0
    _counting = threading.Lock()

    @classmethod
    def reset(cls) -> None:
        cls.requests = cls.transferred = 0

    @classmethod
    def serve(cls, path: str, start: int, end: int) -> bytes:
        """One request."""
        with open(path, "rb") as file:
            file.seek(start)
            content = file.read(end - start)
        time.sleep(LATENCY + len(content) / BANDWIDTH)
        with cls._counting:
            cls.requests += 1
            cls.transferred += len(content)
        return content

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        path = self._strip_protocol(path)
        if not os.path.exists(path):
            raise FileNotFoundError(path)
        names = [os.path.join(path, name) for name in sorted(os.listdir(path))] if os.path.isdir(path) else [path]
        entries = [self._entry(name) for name in names]
        return entries if detail else [entry["name"] for entry in entries]

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return self._entry(self._strip_protocol(path))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        path = self._strip_protocol(path)
        return self.serve(path, start or 0, os.path.getsize(path) if end is None else end)

    def _open(self, path: str, mode: str = "rb", block_size: Any = None, **kwargs: Any) -> AbstractBufferedFile:
        return _SlowFile(self, path, mode, block_size or "default", **kwargs)

    @staticmethod
    def _entry(path: str) -> dict[str, Any]:
        found = os.stat(path)
        kind = "directory" if os.path.isdir(path) else "file"
        return {"name": path, "size": found.st_size, "type": kind, "mtime": found.st_mtime_ns}


class _SlowFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        return SlowFileSystem.serve(self.path, start, end)
