"""Stands in for the Hugging Face hub: the part of its HTTP API that huggingface_hub uploads and downloads models by.

It checks what the hub checks: the token and its rights, the front matter of a card, sizes and digests of large files,
that a commit names no large file which was not uploaded. What was committed is in `Hub.repos`.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
import yaml

TOKEN, READ_ONLY = "hf_writes", "hf_reads"
OWNER = "me"


@dataclasses.dataclass
class Repo:
    """A repository: its branches, each with the content of its files, and the commits as (branch, summary)."""

    private: bool = False
    branches: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=lambda: {"main": {}})
    commits: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.branches["main"]

    def sha(self) -> str:
        return hashlib.sha1(repr((self.commits, sorted(self.branches))).encode()).hexdigest()


class Hub(ThreadingHTTPServer):
    """The server, in threads of this process.

    Attributes:
      failures: statuses that the next commits are answered with.
      requests: (method, path) of all.
      large: smallest size of a file that goes through LFS.
    """

    daemon_threads = True

    def __init__(self, large: int = 10_000):
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.failures: list[int] = []
        self.requests: list[tuple[str, str]] = []
        self.large = large

    def commits(self, name: str = f"{OWNER}/model") -> list[str]:
        return [summary for _, summary in self.repos[name].commits]


@contextmanager
def running(**options: int) -> Iterator[Hub]:
    """A server while the block runs."""
    hub = Hub(**options)
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()


def connect(hub: Hub, monkeypatch: pytest.MonkeyPatch, token: str | None = TOKEN) -> None:
    """Lets huggingface_hub in this process talk to the server, by LFS and not by Xet's own servers."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere")
    if token is None:
        monkeypatch.delenv("HF_TOKEN", raising=False)
    else:
        monkeypatch.setenv("HF_TOKEN", token)


class Refusal(Exception):
    """Answers with a status and the hub's words."""

    def __init__(self, status: int, message: str = "", code: str = "", **fields: str):
        self.status, self.message, self.code, self.fields = status, message, code, fields


class Handler(BaseHTTPRequestHandler):
    """Answers one request after the other."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        """Writes no log."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((method, path))
        try:
            for pattern, handle in ROUTES:
                if match := re.fullmatch(pattern, f"{method} {path}"):
                    return self._send(200, *handle(self, body, *match.groups()))
            raise Refusal(404, f"no route for {method} {path}", "EntryNotFound")
        except Refusal as refusal:
            said = {"error": refusal.message, "errors": [{"message": refusal.message}]}
            content = json.dumps(said | refusal.fields).encode()
            headers = {"X-Error-Message": refusal.message}
            self._send(refusal.status, content, headers | ({"X-Error-Code": refusal.code} if refusal.code else {}))

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def token(self, owner: str | None = None) -> None:
        """Checks the token, and that it may write what belongs to an owner."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token not in (TOKEN, READ_ONLY):
            raise Refusal(401, "Invalid username or password.")
        if owner is not None and (token != TOKEN or owner != OWNER):
            raise Refusal(403, f"You don't have the rights to write to {owner}")

    def repo(self, name: str) -> Repo:
        if name not in self.server.repos:
            raise Refusal(404, "Repository not found", "RepoNotFound")
        return self.server.repos[name]

    def branch(self, name: str, revision: str) -> dict[str, bytes]:
        repo = self.repo(name)
        if revision == repo.sha():
            return repo.files
        if revision not in repo.branches:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repo.branches[revision]


def reply(value: object) -> tuple[bytes, dict[str, str]]:
    return json.dumps(value).encode(), {"Content-Type": "application/json"}


def create(handler: Handler, body: bytes):
    asked = json.loads(body)
    handler.token(asked["organization"])
    name = f"{asked['organization']}/{asked['name']}"
    if name in handler.server.repos:
        raise Refusal(409, "You already created this model repo", url=f"{handler.server.endpoint}/{name}")
    handler.server.repos[name] = Repo(private=asked.get("visibility") == "private")
    return reply({"url": f"{handler.server.endpoint}/{name}"})


def check_write(handler: Handler, body: bytes, name: str):
    handler.repo(name)
    handler.token(name.partition("/")[0])
    return reply({})


def create_branch(handler: Handler, body: bytes, name: str, branch: str):
    handler.token(name.partition("/")[0])
    if branch in handler.repo(name).branches:
        raise Refusal(409, "branch exists")
    handler.repo(name).branches[branch] = dict(handler.repo(name).files)
    return reply({})


def info(handler: Handler, body: bytes, name: str, revision: str | None = None):
    files = handler.branch(name, revision or "main")
    repo = handler.repo(name)
    siblings = [{"rfilename": path} for path in sorted(files)]
    return reply({"id": name, "sha": repo.sha(), "private": repo.private, "siblings": siblings, "tags": []})


def tree(handler: Handler, body: bytes, name: str, revision: str):
    files = handler.branch(name, revision)
    return reply(
        [
            {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
            for path, content in files.items()
        ]
    )


def validate(handler: Handler, body: bytes):
    asked = json.loads(body)
    match = re.match(r"---\n(.*?)\n---\n", asked["content"], re.DOTALL)
    fields = yaml.safe_load(match[1]) if match else {}
    if not isinstance(fields.get("license", ""), str) or not isinstance(fields.get("tags", []), list):
        raise Refusal(400, "license and tags are malformed")
    warnings = [] if fields else [{"message": "empty or missing yaml metadata in repo card"}]
    return reply({"errors": [], "warnings": warnings})


def preupload(handler: Handler, body: bytes, name: str, revision: str):
    handler.token(name.partition("/")[0])
    here = handler.branch(name, revision)
    files = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if file["size"] >= handler.server.large else "regular",
            "shouldIgnore": False,
            "oid": blob_id(here[file["path"]]) if file["path"] in here else None,
        }
        for file in json.loads(body)["files"]
    ]
    return reply({"files": files})


def lfs_batch(handler: Handler, body: bytes, name: str):
    handler.token(name.partition("/")[0])
    asked = json.loads(body)
    assert asked["hash_algo"] == "sha256"
    objects = []
    for wanted in asked["objects"]:
        entry = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in handler.server.lfs:
            links = {"upload": f"/lfs/{wanted['oid']}", "verify": f"/lfs/{wanted['oid']}/verify"}
            entry["actions"] = {kind: {"href": handler.server.endpoint + path} for kind, path in links.items()}
        objects.append(entry)
    return reply({"transfer": "basic", "objects": objects})


def lfs_put(handler: Handler, body: bytes, oid: str):
    if hashlib.sha256(body).hexdigest() != oid:
        raise Refusal(400, "the content does not have the digest")
    handler.server.lfs[oid] = body
    return reply({})


def lfs_verify(handler: Handler, body: bytes, oid: str):
    handler.token()
    if len(handler.server.lfs[oid]) != json.loads(body)["size"]:
        raise Refusal(400, "another size")
    return reply({})


def commit(handler: Handler, body: bytes, name: str, revision: str):
    handler.token(name.partition("/")[0])
    if handler.server.failures:
        raise Refusal(handler.server.failures.pop(0), "the hub is out of order")
    files, header, *lines = dict(handler.branch(name, revision)), *map(json.loads, body.splitlines())
    for line in lines:
        key, value = line["key"], line["value"]
        if key == "file":
            assert value["encoding"] == "base64"
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            if value["oid"] not in handler.server.lfs:
                raise Refusal(400, f"{value['path']} was not uploaded")
            files[value["path"]] = handler.server.lfs[value["oid"]]
        elif key == "deletedFile":
            del files[value["path"]]
        else:
            raise Refusal(400, f"unknown operation {key}")
    repo = handler.repo(name)
    repo.branches[revision] = files
    repo.commits.append((revision, header["value"]["summary"]))
    return reply({"commitUrl": f"{handler.server.endpoint}/{name}/commit/{repo.sha()}", "commitOid": repo.sha()})


def resolve(handler: Handler, body: bytes, name: str, revision: str, path: str):
    repo, files = handler.repo(name), handler.branch(name, revision)
    if path not in files:
        raise Refusal(404, "Entry not found", "EntryNotFound")
    headers = {"ETag": f'"{blob_id(files[path])}"', "X-Repo-Commit": repo.sha()}
    return files[path], headers


def blob_id(content: bytes) -> str:
    """Git's name of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_MODEL = r"/api/models/([^/]+/[^/]+)"
ROUTES = [
    ("POST /api/repos/create", create),
    ("POST /api/validate-yaml", validate),
    (f"GET {_MODEL}/auth-check/write", check_write),
    (f"POST {_MODEL}/branch/(.+)", create_branch),
    (f"POST {_MODEL}/preupload/(.+)", preupload),
    (f"POST {_MODEL}/commit/(.+)", commit),
    (f"GET {_MODEL}/tree/([^/]+)", tree),
    (f"GET {_MODEL}/revision/(.+)", info),
    (f"GET {_MODEL}", info),
    (r"POST /([^/]+/[^/]+)\.git/info/lfs/objects/batch", lfs_batch),
    (r"POST /lfs/(\w+)/verify", lfs_verify),
    (r"PUT /lfs/(\w+)", lfs_put),
    (r"(?:GET|HEAD) /([^/]+/[^/]+)/resolve/([^/]+)/(.+)", resolve),
]
