"""
A Hub on this machine, for the real client of `huggingface_hub`: a server that speaks the part of the Hub's HTTP API by which
repositories of models are made, pushed to, and read at any of their revisions.

Written after the client's source: `hf_api.py`, `_commit_api.py`, `lfs.py`, `file_download.py` and `utils/_http.py`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


OWNER, TOKEN = "anna", "hf_of_anna"
Files = dict[str, bytes]


@dataclass
class Repository:
    """Revisions by their sha, each with all its files, and the branches that point to them."""

    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: Files, message: str) -> str:
        content = repr((self.branches.get(branch), sorted(files.items()), message))
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha], self.branches[branch] = files, sha
        return sha

    def sha(self, revision: str) -> str:
        sha = self.branches.get(revision, revision)
        if sha not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return sha


class Refusal(Exception):
    """An answer that is an error: the client tells which by the status and the code."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.headers = status, {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class LoopbackHub(ThreadingHTTPServer):
    """The server; `with LoopbackHub() as hub:` runs it in a thread, at `hub.endpoint`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.storage = (
            f"http://localhost:{self.server_address[1]}"  # for the client another host, to which no token goes
        )
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}  # by the sha256 of their content, as Git LFS has them
        self.log: list[tuple[str, str, int]] = []  # method, path and status of every request

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()

    def files(self, repo_id: str, revision: str = "main") -> Files:
        repository = self.repositories[repo_id]
        return repository.commits[repository.sha(revision)]


ROUTES: list[tuple[str, re.Pattern[str], Callable]] = []
REPO = r"(?P<repo_id>[\w.-]+/[\w.-]+)"


def route(method: str, pattern: str) -> Callable:
    def add(answer: Callable) -> Callable:
        ROUTES.append((method, re.compile(pattern), answer))
        return answer

    return add


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LoopbackHub

    def answer(self) -> None:
        path = urlsplit(self.path).path
        self.body = self.read_body()
        method = "GET" if self.command == "HEAD" else self.command
        status, headers, content = 404, {}, b""
        for known, pattern, function in ROUTES:
            match = pattern.fullmatch(path)
            if match and known == method:
                try:
                    parts = {name: unquote(part) for name, part in match.groupdict().items() if part}
                    status, headers, content = function(self, **parts)
                except Refusal as refusal:
                    status, headers, content = refusal.status, refusal.headers, {"error": str(refusal)}
                break
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json", **headers}
        self.server.log.append((self.command, path, status))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, *args: object) -> None:
        """Tests are silent."""

    # --------------------------------------------------------------------------------------------------------- who may

    @property
    def is_owner(self) -> bool:
        sent = self.headers.get("Authorization")
        if sent not in (None, f"Bearer {TOKEN}"):
            raise Refusal(401, "Invalid credentials in Authorization header")
        return sent is not None

    def must_write(self) -> None:
        if not self.is_owner:
            raise Refusal(401, "Invalid username or password.")

    def repository(self, repo_id: str, write: bool = False) -> Repository:
        if write:
            self.must_write()
        found = self.server.repositories.get(repo_id)
        if found is None or (found.private and not self.is_owner):
            raise Refusal(404 if self.is_owner else 401, "Repository not found", "RepoNotFound")
        return found


# ---------------------------------------------------------------------------------------------------------------- making


@route("POST", "/api/repos/create")
def create(request: Handler):
    request.must_write()
    asked = json.loads(request.body)
    repo_id = f"{asked['organization'] or OWNER}/{asked['name']}"
    url = {"url": f"{request.server.endpoint}/{repo_id}"}
    if not repo_id.startswith(f"{OWNER}/"):
        raise Refusal(403, f"You don't have the rights to create a model under the namespace {asked['organization']}")
    if repo_id in request.server.repositories:
        return 409, {}, url | {"error": "You already created this model repo"}
    # The client said `private` before it said `visibility`.
    private = asked.get("visibility") == "private" or asked.get("private") is True
    repository = request.server.repositories[repo_id] = Repository(private)
    repository.commit(
        "main", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, "initial commit"
    )
    return 200, {}, url


@route("POST", f"/api/models/{REPO}/branch/(?P<branch>[^/]+)")
def create_branch(request: Handler, repo_id: str, branch: str):
    repository = request.repository(repo_id, write=True)
    if branch in repository.branches:
        raise Refusal(409, f"Reference already exists: {branch}")
    repository.branches[branch] = repository.sha("main")
    return 201, {}, {}


# --------------------------------------------------------------------------------------------------------------- pushing


@route("POST", "/api/validate-yaml")
def validate_yaml(request: Handler):
    """A few of the rules by which the Hub takes or refuses a card's metadata."""
    found = re.match(r"---\n(.*?)\n---\n", json.loads(request.body)["content"], re.DOTALL)
    data = yaml.safe_load(found.group(1)) if found else {}
    errors, base_model = [], data.get("base_model")
    if base_model is not None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base_model):
        errors.append(
            f'"base_model" with value "{base_model}" is not valid. Use a model id from https://hf.co/models.'
        )
    if not all(isinstance(tag, str) for tag in data.get("tags", [])):
        errors.append('"tags" must be an array of strings')
    for model in data.get("model-index", []):
        for result in model["results"]:
            if not result["task"].get("type") or not {"type", "name"} <= result["dataset"].keys():
                errors.append('"model-index[0].results[0].dataset" needs a type and a name')
            if not all({"type", "value"} <= metric.keys() for metric in result["metrics"]):
                errors.append('"model-index[0].results[0].metrics" need a type and a value')
    answer = {"errors": [{"message": error} for error in errors], "warnings": []}
    return 400 if errors else 200, {}, answer


@route("POST", f"/api/models/{REPO}/preupload/(?P<revision>[^/]+)")
def preupload(request: Handler, repo_id: str, revision: str):
    repository = request.repository(repo_id, write=True)
    files = repository.commits[repository.sha(revision)]
    asked = [file["path"] for file in json.loads(request.body)["files"]]
    there = {path: oid(path, files[path]) if path in files else None for path in asked}
    modes = [
        {"path": path, "uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False, "oid": there[path]}
        for path in asked
    ]
    return 200, {}, {"files": modes}


@route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
def large_batch(request: Handler, repo_id: str):
    request.repository(repo_id, write=True)
    objects = json.loads(request.body)["objects"]
    for each in objects:
        if each["oid"] not in request.server.large:
            each["actions"] = {"upload": {"href": f"{request.server.storage}/large/{each['oid']}"}}
    return 200, {}, {"transfer": "basic", "objects": objects}


@route("PUT", "/large/(?P<sha256>[0-9a-f]{64})")
def put_large(request: Handler, sha256: str):
    assert "Authorization" not in request.headers
    if hashlib.sha256(request.body).hexdigest() != sha256:
        raise Refusal(400, "The content is not what was announced")
    request.server.large[sha256] = request.body
    return 200, {}, b""


@route("POST", f"/api/models/{REPO}/commit/(?P<revision>[^/]+)")
def commit(request: Handler, repo_id: str, revision: str):
    repository = request.repository(repo_id, write=True)
    lines = [json.loads(line) for line in request.body.splitlines()]
    files = dict(repository.commits[repository.sha(revision)])
    for line in lines:
        path = line["value"].get("path")
        if line["key"] == "file":
            files[path] = base64.b64decode(line["value"]["content"])
        elif line["key"] == "lfsFile":
            files[path] = request.server.large[line["value"]["oid"]]
        elif line["key"] == "deletedFile":
            del files[path]
    branch = revision
    if parse_qs(urlsplit(request.path).query).get("create_pr"):
        branch = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in repository.branches)}"
    sha = repository.commit(branch, files, lines[0]["value"]["summary"])
    url = f"{request.server.endpoint}/{repo_id}"
    pull_request = f"{url}/discussions/{branch.rpartition('/')[2]}"
    return 200, {}, {"commitUrl": f"{url}/commit/{sha}", "commitOid": sha, "pullRequestUrl": pull_request}


# --------------------------------------------------------------------------------------------------------------- reading


@route("GET", f"/api/models/{REPO}(/revision/(?P<revision>[^/]+))?")
def info(request: Handler, repo_id: str, revision: str = "main"):
    repository = request.repository(repo_id)
    sha = repository.sha(revision)
    siblings = [{"rfilename": path} for path in sorted(repository.commits[sha])]
    return 200, {}, {"id": repo_id, "sha": sha, "private": repository.private, "siblings": siblings}


@route("GET", f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(request: Handler, repo_id: str, revision: str, path: str):
    repository = request.repository(repo_id)
    sha = repository.sha(revision)
    content = repository.commits[sha].get(path)
    if content is None:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    headers = {"X-Repo-Commit": sha, "ETag": f'"{oid(path, content)}"'}
    if not is_large(path):
        return 200, headers, content
    large = {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(content))}
    location = {"Location": f"{request.server.storage}/large/{oid(path, content)}"}
    return 302, headers | large | location, b""


@route("GET", "/large/(?P<sha256>[0-9a-f]{64})")
def get_large(request: Handler, sha256: str):
    assert "Authorization" not in request.headers
    return 200, {"ETag": f'"{sha256}"'}, request.server.large[sha256]


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def oid(path: str, content: bytes) -> str:
    """By which the client knows whether it has a file: as Git LFS names it, or as Git does."""
    if is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
