"""Ranges of files behind http(s) and on the Hugging Face Hub (see remote.py).

The Hub answers for a file with a redirect to a signed address that holds for an hour or so, and it counts those
answers: 3,000 in five minutes for an anonymous user. So the way to a file is walked once, and its end is kept for all
ranges until it expires or is refused. Redirects are followed by hand: what the user sends to a host (the Hub's token,
headers of his own) goes to no other one.
"""

from __future__ import annotations

import calendar
import http.client
import os
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urljoin, urlsplit

import requests
import urllib3
from huggingface_hub import HfApi, hf_hub_url, is_offline_mode
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers

from .remote import ChangedFileError, Identity, Lock, RangeFile, Retries, Transient, brief, check_relative

_HOPS = 10
# A signed address that is refused with one of these has expired.
_REFUSED = (401, 403, 404, 410)
_REDIRECTS = (301, 302, 303, 307, 308)
_PIECE = 2**18
# Less than this in the time of a timeout is a connection that stands still.
_SLOWEST = 2**16
_TROUBLE = (requests.RequestException, urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)
_HUB = re.compile(
    r"hf://(?:(datasets|spaces|models)/)?([^/@]+/[^/@]+)(?:@(refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(.*))?", re.DOTALL
)


class _OfThisThread(threading.local):
    process = 0
    session: Any = None


_here = _OfThisThread()


def _session() -> requests.Session:
    """Connections of this thread in this process, kept open from one request to the next."""
    if _here.process != os.getpid():
        session = requests.Session()
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        # An empty authentication keeps requests from sending what ~/.netrc holds instead of our headers.
        session.auth = lambda request: request
        _here.process, _here.session = os.getpid(), session
    return _here.session


@dataclass(frozen=True)
class _Target:
    """The end of the redirects. `version` is what the start said of it, if it did; then it counts, not the ETag."""

    url: str
    version: str | None
    expires: float


class HttpFile(RangeFile):
    """A file behind http(s). Every answer is checked against what the file must be before a byte of it counts."""

    def __init__(self, url: str, storage_options: dict[str, Any], retries: Retries) -> None:
        super().__init__(url, retries)
        self._options = storage_options
        self._target: _Target | None = None
        self._lost: Transient | None = None
        self._resolving = Lock()
        self._check_options()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_target": None, "_lost": None}

    def _check_options(self) -> None:
        _refuse_options(self.url, self._options, ("headers",))
        if urlsplit(self.url).username is not None:
            raise ValueError("expected an address without a password; pass storage_options={'headers': {...}}")

    def _address(self) -> str:
        """Where the way to the file begins."""
        return self.url

    def _headers(self) -> Mapping[str, str]:
        """What is sent to the host of `_address` alone."""
        return self._options.get("headers", {})

    def _seen(self, headers: Mapping[str, str]) -> None:
        """Called with the headers of every answer of that host."""

    def _refused(self, status: int, message: str) -> OSError:
        if status in (401, 403):
            return PermissionError(
                f"{self.url}: expected a file that you may read, found HTTP {status}{message}; pass the token or key "
                "that the server wants: storage_options={'headers': {'Authorization': ...}}"
            )
        return FileNotFoundError(f"{self.url}: expected a file, found HTTP {status}{message}; check the address")

    def _ask(self) -> Identity:
        def step() -> Identity:
            response, found = self._open(0, 1, None)
            response.close()
            return found

        return self._persist(0, step)

    def _fetch(self, start: int, view: memoryview, reference: Identity) -> None:
        done = 0

        def step() -> None:
            nonlocal done
            response, _ = self._open(start + done, start + len(view), reference)
            before, mark, since = done, done, time.monotonic()
            try:
                while done < len(view):
                    piece = response.raw.read1(min(_PIECE, len(view) - done), decode_content=False)
                    if not piece:
                        raise Transient("the connection closed early", progress=done - before)
                    view[done : done + len(piece)] = piece
                    done += len(piece)
                    now = time.monotonic()
                    if now - since > self.retries.timeout:
                        if done - mark < _SLOWEST and done < len(view):
                            raise Transient("a connection that stands still", progress=done - before)
                        mark, since = done, now
            except _TROUBLE as error:
                raise Transient(f"{type(error).__name__}: {brief(error)}", progress=done - before) from error
            finally:
                self._count(bytes=done - before)
                response.close()

        self._persist(start, step)

    def _open(self, start: int, stop: int, reference: Identity | None) -> tuple[Any, Identity]:
        """The checked answer to a request for the range, its body unread, and what it says the file is."""
        lost = self._lost
        while True:
            with self._resolving:  # one thread walks, the others use what it finds
                target = self._target
                if target is None or time.monotonic() > target.expires:
                    if self._lost is not None and self._lost is not lost:  # it failed meanwhile
                        raise Transient(str(self._lost), wait=self._lost.wait)
                    try:
                        return self._walk(start, stop, reference)
                    except Transient as trouble:
                        self._lost = Transient(str(trouble), wait=trouble.wait)  # without the calls and their buffers
                        raise
            response = self._get(target.url, start, stop)
            if response.status_code not in (*_REFUSED, *_REDIRECTS):
                return self._checked(response, start, stop, reference, target.version)
            response.close()
            self._count(retries=1)
            with self._resolving:
                if self._target is target:
                    self._target = None

    def _walk(self, start: int, stop: int, reference: Identity | None) -> tuple[Any, Identity]:
        """Follow the redirects from the start, keep their end."""
        self._target = None
        url, version = self._address(), None
        for hop in range(_HOPS):
            response = self._get(url, start, stop)
            if _origin(url) == _origin(self._address()):
                self._seen(response.headers)
            if response.status_code not in _REDIRECTS:
                if response.status_code in (200, 206) or (hop and response.status_code not in _REFUSED):
                    self._target = _Target(url, version, time.monotonic() + _seconds_left(url))
                return self._checked(response, start, stop, reference, version)
            response.close()
            version = _version(response.headers.get("X-Linked-Etag")) or version
            try:
                following = urljoin(url, response.headers.get("Location", ""))
                scheme = _origin(following)[0]
            except ValueError:
                scheme = ""
            if scheme not in (("https",) if url.startswith("https:") else ("http", "https")):
                raise OSError(f"{self.url}: expected a redirect to an address as safe as this one, found another")
            url = following
        raise OSError(f"{self.url}: expected at most {_HOPS} redirects, found more; check the address")

    def _get(self, url: str, start: int, stop: int) -> Any:
        headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-{stop - 1}"}
        if _origin(url) == _origin(self._address()):
            headers = {**self._headers(), **headers}
        self._count(requests=1)
        timeout = self.retries.timeout
        try:
            return _session().get(url, headers=headers, stream=True, allow_redirects=False, timeout=(timeout, timeout))
        except ValueError as error:  # addresses, headers and redirects that requests cannot read
            raise OSError(
                f"{self.url}: expected an address that can be opened, found {brief(error)}; check address and headers"
            ) from error
        except _TROUBLE as error:
            raise Transient(f"{type(error).__name__}: {brief(error)}") from error

    def _checked(
        self, response: Any, start: int, stop: int, reference: Identity | None, version: str | None
    ) -> tuple[Any, Identity]:
        """The answer itself if it is the one that was asked for, and what it says the file is."""
        try:
            self._check_status(response, reference)
            headers = response.headers
            if headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
                raise OSError(
                    f"{self.url}: expected the bytes of the file, found them encoded "
                    f"({headers['Content-Encoding']}) by the server, which ranges cannot be read from"
                )
            if version is None:
                version = _version(headers.get("ETag")) or headers.get("Last-Modified", "")
            found = Identity(self._total(response, start, stop, reference), version)
            if reference is not None and reference.differs(found):
                changed = self._changed(reference, found)
                if reference.differs(Identity(reference.size, found.version)):
                    raise changed
                raise Transient(brief(changed), wrong=ChangedFileError)
            length = headers.get("Content-Length")
            if response.status_code == 206 and length is not None and length != str(stop - start):
                raise Transient(f"a body of {length} bytes", wrong=OSError)
            return response, found
        except BaseException:
            response.close()
            raise

    def _check_status(self, response: Any, reference: Identity | None) -> None:
        status = response.status_code
        said = response.headers.get("X-Error-Message")
        message = f" ({' '.join(said.split())[:200]})" if said else ""
        if status in (408, 429) or status >= 500:
            raise Transient(f"HTTP {status}{message}", wait=_asked_wait(response.headers))
        if status in _REFUSED:
            raise self._refused(status, message)
        if status == 412 or (status == 416 and reference is not None):
            raise ChangedFileError(
                f"{self.url}: expected the file that was indexed, found one without these bytes (HTTP {status}); "
                "index it again"
            )
        if status not in (200, 206, 416):
            raise OSError(f"{self.url}: expected a range of the file, found HTTP {status}{message}; check the address")

    def _total(self, response: Any, start: int, stop: int, reference: Identity | None) -> int:
        """Size of the whole file, as the answer has it; the range in it must be the one asked for."""
        given = response.headers.get("Content-Range", "")
        if response.status_code == 416:  # there is no first byte
            if given.replace(" ", "") != "bytes*/0":
                raise OSError(f"{self.url}: expected a range of the file, found HTTP 416; check the address")
            return 0
        if response.status_code == 200:
            length = response.headers.get("Content-Length", "")
            if not re.fullmatch(r"\d{1,18}", length):
                raise OSError(f"{self.url}: expected a server that tells the size of the file, found none")
            if reference is not None and (start, stop) != (0, reference.size):
                raise OSError(
                    f"{self.url}: expected the bytes {start} to {stop}, found the whole file: the server ignores "
                    "ranges; download the file and read it from disk"
                )
            return int(length)
        match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", given.strip())
        if match is None or (int(match[1]), int(match[2]) + 1) != (start, stop):
            raise Transient(f"the answer to another question (Content-Range: {given[:100]!r})", wrong=OSError)
        return int(match[3])


class HubFile(HttpFile):
    """A file of a repository on the Hub, at the commit that its revision stood for when it was first seen.

    The version is the Hub's ETag, a hash of the content: a commit that does not touch the file does not change it.
    """

    def _check_options(self) -> None:
        _refuse_options(self.url, self._options, ("token", "endpoint"))
        self._kind, self._repository, self._revision, self._path = _hub_parts(self.url)
        self._commit: str | None = None
        check_relative(self.url, self._path)

    def pinned_url(self) -> str:
        if self._commit is None:
            self.identity()
        return _hub_url(self._kind, self._repository, self._commit or self._revision, self._path)

    def _address(self) -> str:
        return hf_hub_url(
            self._repository,
            self._path,
            repo_type=self._kind,
            revision=self._commit or self._revision,
            endpoint=self._options.get("endpoint"),
        )

    def _headers(self) -> Mapping[str, str]:
        return build_hf_headers(token=self._options.get("token"))

    def _walk(self, start: int, stop: int, reference: Identity | None) -> tuple[Any, Identity]:
        _refuse_offline(self.url)
        return super()._walk(start, stop, reference)

    def _seen(self, headers: Mapping[str, str]) -> None:
        commit = headers.get("X-Repo-Commit", "")
        if self._commit is None and re.fullmatch(r"[0-9a-f]{40,64}", commit):
            self._commit = commit

    def _refused(self, status: int, message: str) -> OSError:
        return hub_refusal(self.url, status, message)


def hub_refusal(url: str, status: int, message: str) -> OSError:
    if status in (401, 403):
        return PermissionError(
            f"{url}: expected a file that you may read, found HTTP {status}{message}; check the address, accept the "
            "terms of the data set on its page, and give a token that may read it (hf auth login, or HF_TOKEN)"
        )
    return FileNotFoundError(f"{url}: expected a file on the Hub, found HTTP {status}{message}; check the address")


def list_hub_files(url: str, suffixes: tuple[str, ...], options: dict[str, Any], recursive: bool) -> list[str]:
    """`list_files` for the Hub; the addresses keep the revision as it was given."""
    _refuse_options(url, options, ("token", "endpoint"))
    kind, repository, revision, path = _hub_parts(url.rstrip("/"))
    if path:
        check_relative(url, path)
    _refuse_offline(url)
    single = path.endswith(suffixes)
    folder = path.rpartition("/")[0] if single else path
    try:
        entries = list(
            HfApi(endpoint=options.get("endpoint"), token=options.get("token")).list_repo_tree(
                repository, folder or None, recursive=recursive and not single, revision=revision, repo_type=kind
            )
        )
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        status = error.response.status_code if isinstance(error, RepositoryNotFoundError) else 404
        raise hub_refusal(url, 403 if isinstance(error, GatedRepoError) else status, "") from error
    except ValueError:
        raise
    except Exception as error:  # httpx and the Hub's client have their own
        raise OSError(
            f"{url}: expected an address that can be opened, found {type(error).__name__}: {brief(error)}; "
            "check the address, the connection and your access rights"
        ) from error
    found = sorted(entry.path for entry in entries if isinstance(entry, RepoFile) and entry.path.endswith(suffixes))
    for name in found:
        check_relative(url, name)
    if single:
        if path not in found:
            raise hub_refusal(url, 404, "")
        return [url]
    return [_hub_url(kind, repository, revision, name) for name in found]


def _hub_parts(url: str) -> tuple[str, str, str | None, str]:
    """Kind, repository, revision and path of `hf://datasets/OWNER/NAME@REVISION/PATH`."""
    match = _HUB.fullmatch(url)
    if match is None or match[2].startswith("buckets/"):
        raise ValueError(f"{url}: expected hf://datasets/OWNER/NAME[@REVISION]/PATH, found another form")
    revision = None if match[3] is None else unquote(match[3])
    return (match[1] or "models").removesuffix("s"), match[2], revision, match[4] or ""


def _hub_url(kind: str, repository: str, revision: str | None, path: str) -> str:
    prefix = "" if kind == "model" else f"{kind}s/"
    special = revision is not None and re.fullmatch(r"refs/(?:convert|pr)/[^/]+", revision)
    at = "" if revision is None else f"@{revision if special else quote(revision, safe='')}"
    return f"hf://{prefix}{repository}{at}/{path}"


def _refuse_options(url: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{url}: expected storage_options among {known}, found {unknown}")


def _refuse_offline(url: str) -> None:
    if is_offline_mode():
        raise OSError(f"{url}: expected the Hub, found offline mode; unset HF_HUB_OFFLINE or read files on disk")


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _version(etag: str | None) -> str:
    return (etag or "").strip().removeprefix("W/").strip('"')


def _asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that the server asks to wait: `Retry-After` (seconds or a date), or the Hub's `RateLimit`."""
    asked = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,18}", asked):
        return float(asked)
    try:
        until = parsedate_to_datetime(asked).timestamp()
        now = parsedate_to_datetime(headers["Date"]).timestamp() if "Date" in headers else time.time()
        return max(0.0, until - now)
    except ValueError:
        pass
    limit = re.search(r";\s*t=(\d{1,18})", headers.get("RateLimit", ""))
    return float(limit[1]) if limit else None


def _seconds_left(url: str) -> float:
    """How long a signed address will hold, less a minute; for ever where it does not say, or says what cannot be."""
    query = {name.lower(): values[0] for name, values in parse_qs(urlsplit(url).query).items()}
    try:
        if "expires" in query:
            end = float(query["expires"])
        else:
            signer = "x-amz" if "x-amz-date" in query else "x-goog"
            begin = calendar.timegm(time.strptime(query[f"{signer}-date"], "%Y%m%dT%H%M%SZ"))
            end = begin + float(query[f"{signer}-expires"])
    except (KeyError, ValueError):
        return float("inf")
    left = end - time.time() - 60
    return left if left > 0 else float("inf")  # this machine's clock is wrong; the server will say when it expires
