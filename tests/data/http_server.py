"""Local HTTP/1.1 servers of ranges for tests and benchmarks, which fail on request.

    with RangeServer({"a.bin": data}) as server:
        server.script("a.bin", Fault(status=503), None)     # the first answer fails, the second is good, and so on
        open_range_file(server.url("a.bin")).read(0, 10)
        assert (server.requests, server.sent) == ...

`SignedStore` hands out addresses that expire, `RangeServer(..., store=...)` redirects to it, and `HubServer` answers as
the Hub does to those who resolve and list files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit


@dataclasses.dataclass(frozen=True)
class Fault:
    """One answer that goes wrong; what is left alone is as in the good answer.

    Attributes:
        status: sent with an empty body.
        headers: sent over the good ones; None takes one away.
        cut: the connection is cut after so many bytes of the body.
        delay: seconds before the answer.
        bandwidth: bytes/s of the body.
        whole: the range is ignored.
        body: sent instead of the good one.
    """

    status: int | None = None
    headers: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    cut: int | None = None
    delay: float = 0.0
    bandwidth: float | None = None
    whole: bool = False
    body: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Request:
    """What arrived: path without the leading slash, query, headers in lower case, status and body bytes sent back."""

    path: str
    query: dict[str, str]
    headers: dict[str, str]
    status: int
    sent: int

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclasses.dataclass
class Answer:
    status: int
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    body: bytes = b""


class RangeServer:
    """A server over `files`, a dict of path and content, which may be changed while it runs.

    Args:
        files: the ETag of each is a hash of its content.
        latency: seconds before each answer.
        bandwidth: bytes/s of each connection.
        token: answer 401 unless the request brings `Authorization: Bearer <token>`.
        store: redirect requests for its files to that store.
        port: 0 takes a free one.
    """

    def __init__(
        self,
        files: Mapping[str, bytes] | None = None,
        *,
        latency: float = 0.0,
        bandwidth: float | None = None,
        token: str | None = None,
        store: SignedStore | None = None,
        port: int = 0,
    ) -> None:
        self.files = dict(files or {})
        self.latency, self.bandwidth, self.token, self.store = latency, bandwidth, token, store
        self.log: list[Request] = []
        self._scripts: dict[str, list[Fault | None]] = {}
        self._always: dict[str, Fault] = {}
        self._lock = threading.Lock()
        self._etags: dict[tuple[str, int], str] = {}
        self._http = _Server(("127.0.0.1", port), _handler(self))
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return self._http.server_address[1]

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        return f"{self.root}/{quote(path)}"

    def script(self, path: str, *faults: Fault | None) -> None:
        """The next answers for `path`, one after the other; None is a good one."""
        self._scripts[path] = list(faults)

    def always(self, path: str, fault: Fault | None) -> None:
        """Every answer for `path` that has no script."""
        if fault is None:
            self._always.pop(path, None)
        else:
            self._always[path] = fault

    @property
    def requests(self) -> int:
        return len(self.log)

    @property
    def sent(self) -> int:
        """Bytes of all bodies."""
        return sum(request.sent for request in self.log)

    def forget(self) -> None:
        """Count from zero."""
        with self._lock:
            self.log.clear()

    def etag(self, path: str) -> str:
        data = self.files[path]
        key = (path, id(data))
        if key not in self._etags:
            self._etags[key] = hashlib.sha256(data).hexdigest()
        return self._etags[key]

    # What the handler calls

    def next_fault(self, path: str) -> Fault:
        with self._lock:
            script = self._scripts.get(path)
            fault = script.pop(0) if script else self._always.get(path)
        return fault or Fault()

    def authorized(self, headers: dict[str, str]) -> bool:
        return self.token is None or headers.get("authorization") == f"Bearer {self.token}"

    def answer(self, path: str, query: dict[str, str], headers: dict[str, str], body: bytes, whole: bool) -> Answer:
        if not self.authorized(headers):
            return Answer(401)
        if self.store is not None and path in self.store.files:
            return Answer(302, {"Location": self.store.sign(path)})
        return self.file_answer(path, headers, whole)

    def file_answer(self, path: str, headers: dict[str, str], whole: bool) -> Answer:
        if path not in self.files:
            return Answer(404)
        data = self.files[path]
        common = {"ETag": f'"{self.etag(path)}"', "Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("range", ""))
        if match is None or whole:
            return Answer(200, common, data)
        start, stop = int(match[1]), min(int(match[2]) + 1, len(data))
        if start >= len(data):
            return Answer(416, {**common, "Content-Range": f"bytes */{len(data)}"})
        return Answer(206, {**common, "Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, data[start:stop])


class SignedStore(RangeServer):
    """Serves only under addresses that it signed, each `uses` times; then it answers 403. `lasts`: seconds in them."""

    def __init__(
        self, files: Mapping[str, bytes] | None = None, *, uses: int = 10**9, lasts: float | None = None, **kwargs
    ):
        super().__init__(files, **kwargs)
        self.uses, self.lasts = uses, lasts
        self._left: dict[str, int] = {}

    def sign(self, path: str) -> str:
        with self._lock:
            signature = f"secret{len(self._left)}"
            self._left[signature] = self.uses
        expires = "" if self.lasts is None else f"&Expires={time.time() + self.lasts:.2f}"
        return f"{self.url(path)}?signature={signature}{expires}"

    def revoke(self) -> None:
        """All addresses handed out so far expire now."""
        with self._lock:
            self._left = dict.fromkeys(self._left, 0)

    def authorized(self, headers: dict[str, str]) -> bool:
        return True

    def etag(self, path: str) -> str:
        return f"{super().etag(path)[:8]}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"  # as its own as a store's

    def answer(self, path: str, query: dict[str, str], headers: dict[str, str], body: bytes, whole: bool) -> Answer:
        with self._lock:
            signature = query.get("signature", "")
            self._left[signature] = self._left.get(signature, 0) - 1
            good = self._left[signature] >= 0
        return self.file_answer(path, headers, whole) if good else Answer(403)


class HubServer(RangeServer):
    """What the Hub answers for the files of data sets: `HF_ENDPOINT` may point to `root`.

    Files of `large` bytes or more are redirected to `store`, smaller ones are served at once, as on the Hub.
    `page` entries are in one answer of a listing.
    """

    def __init__(self, *, store: SignedStore | None = None, large: int = 1000, page: int = 1000, **kwargs):
        super().__init__(store=store, **kwargs)
        self.large, self.page = large, page
        self.branches: dict[tuple[str, str], str] = {}
        self.commits: dict[tuple[str, str], dict[str, bytes]] = {}

    def commit(self, repository: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """The branch holds these files from now on. Returns the commit."""
        commit = hashlib.sha1(f"{repository}{len(self.commits)}".encode()).hexdigest()
        self.commits[repository, commit] = dict(files)
        self.branches[repository, branch] = commit
        return commit

    def answer(self, path: str, query: dict[str, str], headers: dict[str, str], body: bytes, whole: bool) -> Answer:
        match = re.fullmatch(r"datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.*)", path) or re.fullmatch(
            r"api/datasets/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", path
        )
        if match is None:
            return Answer(404)
        if not self.authorized(headers):
            return Answer(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        repository, revision, name = match[1], unquote(match[2]), unquote(match[3] or "")
        if not any(known == repository for known, _ in self.commits):
            return Answer(404, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        commit = self.branches.get((repository, revision), revision)
        if (repository, commit) not in self.commits:
            return Answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        files = self.commits[repository, commit]
        if path.startswith("api/"):
            return self.tree(path, query, files, name)
        if name not in files:
            return Answer(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        return self.resolve(repository, commit, name, files[name], headers, whole)

    def resolve(
        self, repository: str, commit: str, name: str, data: bytes, headers: dict[str, str], whole: bool
    ) -> Answer:
        key = f"{repository}/{commit}/{name}"
        if self.store is not None and len(data) >= self.large:
            self.store.files.setdefault(key, data)
            linked = {"X-Linked-Size": str(len(data)), "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"'}
            return Answer(302, {"Location": self.store.sign(key), "X-Repo-Commit": commit, **linked})
        self.files.setdefault(key, data)
        answer = self.file_answer(key, headers, whole)
        answer.headers["X-Repo-Commit"] = commit
        return answer

    def tree(self, path: str, query: dict[str, str], files: dict[str, bytes], folder: str) -> Answer:
        inside = f"{folder}/" if folder else ""
        names = {name: data for name, data in files.items() if name.startswith(inside)}
        if not names:
            return Answer(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": f"{folder} does not exist"})
        entries: dict[str, dict[str, object]] = {}
        for name, data in names.items():
            parts = name[len(inside) :].split("/")
            deepest = len(parts) if query.get("recursive", "").lower() == "true" else 1
            for depth in range(1, deepest + 1):
                here = inside + "/".join(parts[:depth])
                oid = hashlib.sha1(here.encode()).hexdigest()
                kind = "file" if depth == len(parts) else "directory"
                entries[here] = {"type": kind, "path": here, "size": len(data) * (kind == "file"), "oid": oid}
        first = int(query.get("cursor", "0"))
        listed = list(entries.values())[first : first + self.page]
        headers = {"Content-Type": "application/json"}
        if first + self.page < len(entries):
            recursive = query.get("recursive", "False")
            following = f"{self.root}/{path}?recursive={recursive}&cursor={first + self.page}"
            headers["Link"] = f'<{following}>; rel="next"'
        return Answer(200, headers, json.dumps(listed).encode())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request, client_address) -> None:
        """Readers that hang up are no news."""


def _handler(server: RangeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            # Escaped slashes stay: a revision such as refs%2Fpr%2F1 is one part of the path.
            path = unquote(re.sub("%2f", "%252F", parts.path.lstrip("/"), flags=re.IGNORECASE))
            query = {name: values[0] for name, values in parse_qs(parts.query).items()}
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            fault = server.next_fault(path)
            time.sleep(server.latency + fault.delay)
            answer = server.answer(path, query, headers, body, fault.whole)
            if fault.status is not None:
                answer = Answer(fault.status)
            if fault.body is not None:
                answer.body = fault.body
            usual = {"Date": self.date_time_string(), "Content-Length": str(len(answer.body))}
            given = {**usual, **answer.headers, **fault.headers}
            content = answer.body if fault.cut is None else answer.body[: fault.cut]
            with server._lock:
                server.log.append(Request(path, query, headers, answer.status, len(content)))
            self.send_response_only(answer.status)
            for name, value in given.items():
                if value is not None:
                    self.send_header(name, value)
            self.end_headers()
            self.send_body(content, fault.bandwidth or server.bandwidth)
            if fault.cut is not None or given["Content-Length"] != str(len(content)):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

        do_HEAD = do_POST = do_GET

        def send_body(self, content: bytes, bandwidth: float | None) -> None:
            if self.command == "HEAD":
                return
            if bandwidth is None:
                self.wfile.write(content)
                return
            piece = max(1, int(bandwidth * 0.01))
            begin = time.monotonic()
            for start in range(0, len(content), piece):
                self.wfile.write(content[start : start + piece])
                ahead = (start + piece) / bandwidth - (time.monotonic() - begin)
                if ahead > 0:
                    time.sleep(ahead)

    return Handler
