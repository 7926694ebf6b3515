"""A Hub on this machine: the endpoints that huggingface_hub uses to make, fill, list and read model repositories.

Large files travel through the LFS protocol (batch, put, verify) and are served as on the Hub: a HEAD answers with
`X-Linked-Etag`, `X-Linked-Size` and a redirect to a content store, which knows ranges. Connections can be cut.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

WRITER, READER = "hf_writer", "hf_reader"  # the tokens that it knows


@dataclasses.dataclass
class Repository:
    private: bool
    commits: list[tuple[str, dict[str, str]]]  # id, and path -> SHA-256 of its content
    branches: dict[str, int]  # name -> place in `commits`
    large: set[str] = dataclasses.field(default_factory=set)  # SHA-256 of files that came through LFS

    def at(self, revision: str) -> tuple[str, dict[str, str]] | None:
        if revision in self.branches:
            return self.commits[self.branches[revision]]
        return next((commit for commit in self.commits if commit[0] == revision), None)


class LocalHub(ThreadingHTTPServer):
    """Serves on a free port of this machine in a thread of its own.

    Attributes:
        repositories: by name.
        blobs: content by SHA-256.
        requests: (method, path, Range header) of all requests, in their order.
        tokens_elsewhere: tokens that came to the content store, which is another host and must not see them.
        cut_reads: SHA-256 -> bytes after which the next read of that content breaks off.
        puts_left: how many uploads of large files it takes before all others break off; None takes them all.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.tokens_elsewhere: list[str] = []
        self.cut_reads: dict[str, int] = {}
        self.puts_left: int | None = None
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds."""
        commit = self.repositories[name].at(revision)
        assert commit is not None
        return {path: self.blobs[digest] for path, digest in commit[1].items()}

    def handle_error(self, request, client_address) -> None:
        """Clients that go away are part of the game."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LocalHub

    def log_message(self, *args) -> None:
        """Keeps the output of tests readable."""

    def answer(self, status: int, content: bytes | dict | list = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    @property
    def token(self) -> str | None:
        given = self.headers.get("Authorization")
        return given.removeprefix("Bearer ") if given else None

    def do_HEAD(self) -> None:
        self.route()

    def do_GET(self) -> None:
        self.route()

    def do_POST(self) -> None:
        self.route()

    def do_PUT(self) -> None:
        self.route()

    def route(self) -> None:
        path = urlsplit(self.path).path
        with self.server.lock:
            self.server.requests.append((self.command, path, self.headers.get("Range")))
        content = self.body()
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if path == "/control":  # a test in another process cuts connections
            asked = json.loads(content)
            self.server.puts_left = asked.get("puts_left")
            self.server.cut_reads.update(asked.get("cut_reads", {}))
            self.answer(200)
        elif parts[0] == "store":
            self.server.tokens_elsewhere += [self.token] if self.token else []
            self.store(parts[1], content)
        elif self.token not in (None, WRITER, READER):
            self.refuse(401, "", "Invalid credentials in Authorization header")
        elif parts[0] == "verify":
            kept = self.server.blobs.get(parts[1])
            self.answer(200 if kept is not None and len(kept) == json.loads(content)["size"] else 404)
        elif path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.create(json.loads(content))
        elif parts[:2] == ["api", "models"] and len(parts) >= 4:
            self.api("/".join(parts[2:4]), parts[4:], content)
        elif parts[2:] == ["info", "lfs", "objects", "batch"]:
            self.batch(f"{parts[0]}/{parts[1].removesuffix('.git')}", json.loads(content))
        elif len(parts) > 4 and parts[2] == "resolve":
            self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self.refuse(404, "", f"this hub has no {self.command} {path}")

    def repository(self, name: str, write: bool = False) -> Repository | None:
        """The repository, or a refusal as the Hub words it."""
        found = self.server.repositories.get(name)
        if found is None or (found.private and self.token is None):
            # The Hub does not tell strangers whether a repository exists.
            self.refuse(404 if self.token else 401, "RepoNotFound", "Repository not found")
            return None
        if write and self.token != WRITER:
            self.refuse(403, "", "You do not have write access")
            return None
        return found

    def create(self, asked: dict) -> None:
        if self.token != WRITER:
            return self.refuse(403 if self.token else 401, "", "You may not make repositories")
        name = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.server.url}/{name}"}
        if name in self.server.repositories:
            return self.answer(409, {"error": "You already created this model repo", **url})
        first = {".gitattributes": self.keep(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")}
        private = asked.get("visibility") == "private" or asked.get("private") is True
        repository = Repository(private, [(commit_id(name, 0), first)], {"main": 0})
        self.server.repositories[name] = repository
        return self.answer(200, url)

    def keep(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self.server.blobs[digest] = content
        return digest

    def api(self, name: str, rest: list[str], content: bytes) -> None:
        action, revision = rest[0] if rest else "revision", rest[1] if len(rest) > 1 else "main"
        repository = self.repository(name, write=action in ("preupload", "commit", "branch"))
        if repository is None:
            return
        if action == "branch":
            if revision in repository.branches:
                return self.refuse(409, "", "Reference already exists")
            repository.branches[revision] = repository.branches["main"]
            return self.answer(200, {})
        commit = repository.at(revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if action == "revision":
            siblings = [{"rfilename": path} for path in commit[1]]
            found = {"id": name, "sha": commit[0], "private": repository.private, "siblings": siblings, "tags": []}
            return self.answer(200, found)
        if action == "tree":
            return self.answer(200, [self.entry(repository, path, digest) for path, digest in commit[1].items()])
        if action == "preupload":
            return self.preupload(commit[1], json.loads(content))
        if action == "commit":
            return self.commit(name, repository, revision, content)
        return self.refuse(404, "", f"this hub has no {action}")

    def entry(self, repository: Repository, path: str, digest: str) -> dict:
        size = len(self.server.blobs[digest])
        found = {"type": "file", "path": path, "size": size, "oid": git_id(self.server.blobs[digest])}
        if digest in repository.large:
            found["lfs"] = {"oid": digest, "size": size, "pointerSize": 134}
        return found

    def preupload(self, there: dict[str, str], asked: dict) -> None:
        files = []
        for file in asked["files"]:
            large = file["path"].endswith(".safetensors")
            old = self.server.blobs.get(there.get(file["path"], ""))
            oid = None if old is None else hashlib.sha256(old).hexdigest() if large else git_id(old)
            mode = "lfs" if large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.answer(200, {"files": files})

    def batch(self, name: str, asked: dict) -> None:
        if self.repository(name, write=True) is None:
            return
        objects = []
        for found in asked["objects"]:
            store = f"{self.server.url}/store/{found['oid']}"
            actions = {"upload": {"href": store}, "verify": {"href": f"{self.server.url}/verify/{found['oid']}"}}
            objects.append(found if found["oid"] in self.server.blobs else {**found, "actions": actions})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, digest: str, content: bytes) -> None:
        """Large contents by their SHA-256: put, and reads with ranges."""
        if self.command == "PUT":
            with self.server.lock:
                broken = self.server.puts_left == 0
                if self.server.puts_left:
                    self.server.puts_left -= 1
            if broken:
                self.close_connection = True
                return None
            return self.answer(200 if self.keep(content) == digest else 400)
        return self.send(self.server.blobs[digest], digest)

    def commit(self, name: str, repository: Repository, revision: str, content: bytes) -> None:
        files = dict(repository.commits[repository.branches[revision]][1])
        for line in content.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = self.keep(base64.b64decode(value["content"]))
            elif item["key"] == "lfsFile":
                if value["oid"] not in self.server.blobs:
                    return self.refuse(400, "", f"LFS pointer to a file that was not uploaded: {value['path']}")
                files[value["path"]] = value["oid"]
                repository.large.add(value["oid"])
            elif item["key"] == "deletedFile":
                del files[value["path"]]
        repository.commits.append((commit_id(name, len(repository.commits)), files))
        repository.branches[revision] = len(repository.commits) - 1
        oid = repository.commits[-1][0]
        url = f"{self.server.url}/{name}/commit/{oid}"
        return self.answer(200, {"commitUrl": url, "commitOid": oid, "success": True})

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.repository(name)
        if repository is None:
            return None
        commit = repository.at(revision)
        if commit is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        oid, files = commit
        if path not in files:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=oid)
        digest, content = files[path], self.server.blobs[files[path]]
        if digest in repository.large:
            return self.answer(
                302,
                Location=f"http://localhost:{self.server.server_port}/store/{digest}",  # another host, as on the Hub
                X_Repo_Commit=oid,
                X_Linked_Etag=f'"{digest}"',
                X_Linked_Size=str(len(content)),
            )
        return self.send(content, git_id(content), X_Repo_Commit=oid)

    def send(self, content: bytes, etag: str, **headers: str) -> None:
        """A file or the part asked for; breaks off where a cut is due."""
        asked = self.headers.get("Range")
        start = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
        size = len(content)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        for name, value in {"ETag": f'"{etag}"', "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = self.server.cut_reads.pop(etag, None)
        self.wfile.write(content[start:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


def git_id(content: bytes) -> str:
    """The name that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def commit_id(name: str, number: int) -> str:
    return hashlib.sha1(f"{name} {number}".encode()).hexdigest()
