"""A hub on this machine: what `huggingface_hub` asks of one to make a repository, fill it and load it; and faults."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

USER, GOOD, READ = "someone", "hf_" + "g" * 34, "hf_" + "r" * 34
"""The user of both tokens: one may write, one may read."""


def git_name(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Fault:
    """What happens instead, `times` times, where "METHOD /path" matches: a status, or `cut`, the connection ends."""

    where: str
    what: int | str
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


EMPTY = "0" * 40


@dataclass
class Repository:
    """Commits by their names, and which one each branch is at."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {EMPTY: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": EMPTY})
    messages: list[str] = field(default_factory=list)
    large: dict[str, str] = field(default_factory=dict)

    def commit(self, revision: str) -> str:
        return self.branches.get(revision, revision)

    def files(self, revision: str) -> dict[str, bytes]:
        return self.commits[self.commit(revision)]


class Hub(ThreadingHTTPServer):
    """Serves until the block ends."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.faults: list[Fault] = []

    def __enter__(self) -> Hub:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that was cut is no news."""

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, request)) for request in self.requests)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""

    def answer(self, status: int, value: Any = None, body: bytes = b"", **headers: str) -> None:
        content = json.dumps(value).encode() if value is not None else body
        self.send_response(status)
        for name, text in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str = "", **headers: str) -> None:
        self.answer(status, {"error": code or str(status)}, X_Error_Code=code, **headers)

    def handle_request(self) -> None:
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.server.requests.append(request)
        length = int(self.headers.get("Content-Length") or 0)
        for fault in self.server.faults:
            if fault.times and re.search(fault.where, request):
                fault.times -= 1
                if fault.what == "cut":
                    self.rfile.read(length // 2)
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                self.rfile.read(length)
                self.refuse(int(fault.what), **fault.headers)
                return
        body = self.rfile.read(length)
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in (GOOD, READ) and not path.startswith("/lfs/"):
            self.refuse(401)
            return
        if token == READ and self.command == "POST" and "validate-yaml" not in path:
            self.refuse(403)
            return
        for pattern, method in ROUTES:
            if match := re.fullmatch(pattern, request):
                method(self, body, *match.groups())
                return
        self.refuse(404, "RepoNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def create(self, body: bytes) -> None:
        wanted = json.loads(body)
        name = f"{wanted['organization'] or USER}/{wanted['name']}"
        if name in self.server.repositories:
            url = f"{self.server.url}/{name}"
            self.answer(409, {"error": "You already created this repo", "url": url}, X_Error_Code="RepoAlreadyExists")
            return
        self.server.repositories[name] = Repository(wanted.get("visibility") == "private")
        self.answer(200, {"url": f"{self.server.url}/{name}", "name": name})

    def repository(self, name: str) -> Repository | None:
        found = self.server.repositories.get(name)
        if found is None:
            self.refuse(404, "RepoNotFound")
        return found

    def branch(self, body: bytes, name: str, revision: str) -> None:
        if repository := self.repository(name):
            if revision in repository.branches:
                self.refuse(409)
                return
            repository.branches[revision] = repository.branches["main"]
            self.answer(200, {})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        if repository := self.repository(name):
            files = [
                {"path": file["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if file["path"].endswith((".safetensors", "tokenizer.json")) else "regular",
                 "oid": self.oid(repository, revision, file["path"])}
                for file in json.loads(body)["files"]
            ]  # fmt: skip
            self.answer(200, {"files": files})

    def oid(self, repository: Repository, revision: str, path: str) -> str | None:
        content = repository.files(revision).get(path)
        return None if content is None else repository.large.get(path) or git_name(content)

    def batch(self, body: bytes, name: str) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            here = {"href": f"{self.server.url}/lfs/{wanted['oid']}"}
            actions = {} if wanted["oid"] in self.server.stored else {"actions": {"upload": here, "verify": here}}
            objects.append({"oid": wanted["oid"], "size": wanted["size"], **actions})
        self.answer(200, {"transfer": "basic", "objects": objects})

    def store(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            self.refuse(400)
            return
        self.server.stored[oid] = body
        self.answer(200, {})

    def verify(self, body: bytes, oid: str) -> None:
        self.answer(200 if oid in self.server.stored else 404, {})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        repository = self.repository(name)
        if repository is None:
            return
        files = dict(repository.files(revision))
        for line in body.splitlines():
            entry = json.loads(line)
            value, path = entry["value"], entry["value"].get("path")
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[path] = base64.b64decode(value["content"])
                repository.large.pop(path, None)
            elif entry["key"] == "lfsFile":
                files[path] = self.server.stored[value["oid"]]
                repository.large[path] = value["oid"]
            elif entry["key"] == "deletedFile":
                del files[path]
        repository.messages.append(message)
        commit = f"{len(repository.messages):040d}"
        repository.commits[commit], repository.branches[revision] = files, commit
        self.answer(200, {"commitOid": commit, "commitUrl": f"{self.server.url}/{name}/commit/{commit}"})

    def tree(self, body: bytes, name: str, revision: str, folder: str = "") -> None:
        if repository := self.repository(name):
            if folder and not any(path.startswith(f"{folder}/") for path in repository.files(revision)):
                self.refuse(404, "EntryNotFound")
                return
            entries = [
                {"type": "file", "path": path, "size": len(content), "oid": git_name(content),
                 **({"lfs": {"oid": repository.large[path], "size": len(content), "pointerSize": 134}}
                    if path in repository.large else {})}
                for path, content in repository.files(revision).items() if path.startswith(folder)
            ]  # fmt: skip
            self.answer(200, entries)

    def info(self, body: bytes, name: str, revision: str = "main") -> None:
        if repository := self.repository(name):
            siblings = [{"rfilename": path} for path in repository.files(revision)]
            facts = {"id": name, "modelId": name, "sha": repository.commit(revision), "private": repository.private}
            self.answer(200, {**facts, "siblings": siblings, "tags": [], "downloads": 0})

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        if repository := self.repository(name):
            content = repository.files(revision).get(path)
            if content is None:
                self.refuse(404, "EntryNotFound", X_Repo_Commit=repository.commit(revision))
                return
            oid = repository.large.get(path) or git_name(content)
            self.answer(
                200, body=content, ETag=f'"{oid}"', X_Repo_Commit=repository.commit(revision), Accept_Ranges="bytes"
            )

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        try:
            metadata = yaml.safe_load(content.split("---")[1])
            errors = [] if isinstance(metadata, dict) else [{"message": "no metadata"}]
        except (yaml.YAMLError, IndexError) as error:
            errors = [{"message": str(error)}]
        self.answer(400 if errors else 200, {"errors": errors, "warnings": []})


_NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"POST /api/repos/create", Handler.create),
    (r"POST /api/validate-yaml", Handler.validate),
    (rf"POST /api/models/{_NAME}/branch/(.+)", Handler.branch),
    (rf"POST /api/models/{_NAME}/preupload/(.+)", Handler.preupload),
    (rf"POST /{_NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (r"PUT /lfs/(\w+)", Handler.store),
    (r"POST /lfs/(\w+)", Handler.verify),
    (rf"POST /api/models/{_NAME}/commit/(.+)", Handler.commit),
    (rf"GET /api/models/{_NAME}/tree/([^/]+)/?(.*)", Handler.tree),
    (rf"GET /api/models/{_NAME}/revision/(.+)", Handler.info),
    (rf"GET /api/models/{_NAME}", Handler.info),
    (rf"(?:GET|HEAD) /{_NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
]
