"""The FloxHub of the tests: a real git server with Basic authentication that holds floxmeta repositories.

    DIR/<owner>/floxmeta/         a bare repository with one branch per environment
    DIR/access/<owner>.json       who may read it: {"tokens": [...], "hidden": bool}; no file = everybody
    DIR/fault.json                what is wrong with the server just now: {"kind": "status"|"hang"|"slow", ...}

The server reads all of it anew for every request, so a test publishes and breaks things through `HubData` while the
server runs in a thread (`serve`) or elsewhere (`python -m tests.doubles.hub --port N --data DIR [--cache DIR]`, for
example in a node box's network namespace). `/cache/` serves a static Nix binary cache, `/git/<owner>/floxmeta` the
repositories.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.server
import json
import select
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.doubles import git_http

SYSTEM = "x86_64-linux"
Json = dict[str, Any]

# What an environment holds


def store_path_package(install_id: str, store_path: str, *, system: str = SYSTEM, priority: int = 5) -> Json:
    """A lock entry that names a store path: nothing can substitute it, it must be there."""
    return {"install_id": install_id, "store_path": store_path, "system": system, "priority": priority}


def catalog_package(install_id: str, outputs: Mapping[str, str], *, system: str = SYSTEM, priority: int = 5) -> Json:
    """A lock entry of Flox's catalog: its outputs come from a binary cache."""
    return {
        "attr_path": install_id,
        "broken": False,
        "derivation": "/nix/store/" + "0" * 32 + f"-{install_id}.drv",
        "install_id": install_id,
        "locked_url": "https://github.com/flox/nixpkgs?rev=" + "0" * 40,
        "name": f"{install_id}-1.0",
        "pname": install_id,
        "rev": "0" * 40,
        "rev_count": 1,
        "rev_date": "2026-01-01T00:00:00Z",
        "scrape_date": "2026-01-01T00:00:00Z",
        "unfree": False,
        "version": "1.0",
        "outputs_to_install": list(outputs),
        "outputs": dict(outputs),
        "system": system,
        "group": "toplevel",
        "priority": priority,
    }


def flake_package(install_id: str, *, system: str = SYSTEM) -> Json:
    """A lock entry of a flake install: evaluated and built where it is realised."""
    return {
        "install_id": install_id,
        "locked-url": f"github:someone/{install_id}/" + "0" * 40,
        "locked-flake-attr-path": f"packages.{system}.default",
        "derivation": "/nix/store/" + "0" * 32 + f"-{install_id}.drv",
        "outputs": {"out": "/nix/store/" + "0" * 32 + f"-{install_id}"},
        "output-names": ["out"],
        "package-system": system,
        "system": system,
        "name": install_id,
        "priority": 5,
    }


def lockfile(
    packages: Sequence[Json] = (),
    *,
    variables: Mapping[str, str] | None = None,
    hook: str = "",
    systems: Sequence[str] = (SYSTEM,),
) -> Json:
    """A manifest.lock with these packages. `hook` is the shell text of `[hook] on-activate`."""
    manifest: Json = {"version": 1, "install": {package["install_id"]: _descriptor(package) for package in packages}}
    if variables:
        manifest["vars"] = dict(variables)
    if hook:
        manifest["hook"] = {"on-activate": hook}
    manifest["options"] = {"systems": list(systems)}
    return {"lockfile-version": 1, "manifest": manifest, "packages": list(packages)}


def published_package(install_id: str, outputs: Mapping[str, str], catalog: str = "mycat") -> Json:
    """A locked package of a custom catalog, which a user published."""
    package = catalog_package(install_id, outputs)
    return {**package, "attr_path": f"{catalog}/{install_id}", "locked_url": "https://git.example.com/own?rev=0"}


def _descriptor(package: Json) -> Json:
    if "store_path" in package:
        return {"store-path": package["store_path"]}
    if "locked-url" in package:
        return {"flake": package["locked-url"]}
    return {"pkg-path": package["attr_path"]}


def manifest_toml(lock: Json) -> str:
    """The manifest.toml that belongs to a lock."""
    manifest = lock["manifest"]
    lines = ["version = 1", "", "[install]"]
    for name, descriptor in manifest["install"].items():
        lines += [f"{json.dumps(name)}.{key} = {json.dumps(value)}" for key, value in descriptor.items()]
    for table in ("vars", "hook", "options"):
        lines += ["", f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in manifest.get(table, {}).items())]
    return "\n".join(lines) + "\n"


# The data of the server


class HubData:
    """The folder a hub serves: publishing environments, restricting and breaking them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "access").mkdir(parents=True, exist_ok=True)

    def publish(
        self, owner: str, name: str, lock: Json, *, generation: int | None = None, timestamp: int | None = None
    ) -> str:
        """Add a generation (or write `generation` anew, as only a forced push can) and make it the live one.

        Returns the branch's new commit.
        """
        metadata = self._metadata(owner, name)
        number = generation if generation is not None else metadata["total_generations"] + 1
        metadata["total_generations"] = max(number, metadata["total_generations"])
        files = {
            f"{number}/env/manifest.toml": manifest_toml(lock),
            f"{number}/env/manifest.lock": json.dumps(lock, indent=2) + "\n",
        }
        return self._commit(owner, name, metadata, "edit" if number > 1 else "initialize", number, files, timestamp)

    def switch(self, owner: str, name: str, generation: int) -> str:
        """Make an existing generation the live one; the branch's new commit."""
        return self._commit(owner, name, self._metadata(owner, name), "switch_generation", generation, {}, None)

    def delete(self, owner: str, name: str) -> None:
        """Remove an environment, not its owner."""
        self._git(owner, "update-ref", "-d", f"refs/heads/{name}")

    def commit(self, owner: str, name: str) -> str:
        """The commit at the tip of an environment's branch."""
        return self._git(owner, "rev-parse", f"refs/heads/{name}").decode().strip()

    def restrict(self, owner: str, *tokens: str, hidden: bool = False) -> None:
        """Only these tokens may read the owner's environments; others get 403, or 404 where it is `hidden`."""
        self._write(self.folder / "access" / f"{owner}.json", {"tokens": list(tokens), "hidden": hidden})

    def open_to_all(self, owner: str) -> None:
        """Everybody may read the owner's environments."""
        (self.folder / "access" / f"{owner}.json").unlink(missing_ok=True)

    def offer(self, *paths: str, url: str, tokens: Sequence[str] = ()) -> None:
        """The API says that published store paths are at `url`; to these tokens only, if there are any."""
        known = self._read(self.folder / "stores.json") or {}
        self._write(
            self.folder / "stores.json", {**known, **{path: {"url": url, "tokens": list(tokens)} for path in paths}}
        )

    def locations(self, paths: Sequence[str], token: str | None) -> Json:
        """What the API tells a token."""
        known = self._read(self.folder / "stores.json") or {}
        seen = {path: known[path] for path in paths if path in known}
        return {
            path: [{"url": seen[path]["url"]}] if path in seen and token in (seen[path]["tokens"] or [token]) else []
            for path in paths
        }

    def break_with(self, kind: str, **details: object) -> None:
        """From now on `kind`; with after=N only after N more requests.

        "status" (status=500, location=URL for a redirect), "hang" (accept, never answer), "slow" (seconds=1.5 before
        an answer), "cut" (end in the middle of an answer), "throttle" (files at bytes_per_s).
        """
        self._write(self.folder / "fault.json", {"kind": kind, **details})

    def repair(self) -> None:
        """No fault any more."""
        (self.folder / "fault.json").unlink(missing_ok=True)

    def access(self, owner: str) -> Json | None:
        """Who may read; None means everybody."""
        return self._read(self.folder / "access" / f"{owner}.json")

    def fault(self) -> Json | None:
        """What is wrong with the server just now."""
        return self._read(self.folder / "fault.json")

    def repository(self, owner: str) -> Path:
        """The owner's bare repository."""
        return self.folder / owner / "floxmeta"

    def _metadata(self, owner: str, name: str) -> Json:
        if self.repository(owner).exists() and self._has(owner, name):
            loaded: Json = json.loads(self._git(owner, "show", f"refs/heads/{name}:metadata.json"))
            return loaded
        return {"version": 2, "total_generations": 0, "history": []}

    def _has(self, owner: str, name: str) -> bool:
        return bool(self._git(owner, "for-each-ref", f"refs/heads/{name}"))

    def _commit(
        self, owner: str, name: str, metadata: Json, kind: str, live: int, files: Json, timestamp: int | None
    ) -> str:
        repository = self.repository(owner)
        if not repository.exists():
            repository.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["git", "init", "-q", "--bare", str(repository)], env=git_http.ENVIRONMENT, check=True)
        when = timestamp if timestamp is not None else int(time.time())
        previous = metadata["history"][-1]["current_generation"] if metadata["history"] else None
        metadata["history"].append(
            {
                "kind": kind,
                "author": "tester",
                "hostname": "hub",
                "timestamp": when,
                "command": None,
                "previous_generation": previous,
                "current_generation": str(live),
            }
        )
        contents = {"metadata.json": json.dumps(metadata, indent=2) + "\n", **files}
        stream = [f"commit refs/heads/{name}\ncommitter tester <tester@hub> {when} +0000\n".encode(), _data(kind)]
        if self._has(owner, name):
            stream.append(f"from refs/heads/{name}^0\n".encode())
        for path, text in contents.items():
            stream += [f"M 100644 inline {path}\n".encode(), _data(text)]
        self._git(owner, "fast-import", "--quiet", input=b"".join([*stream, b"done\n"]))
        return self.commit(owner, name)

    def _git(self, owner: str, *arguments: str, input: bytes = b"") -> bytes:
        command = ["git", "--git-dir", str(self.repository(owner)), *arguments]
        return subprocess.run(command, env=git_http.ENVIRONMENT, input=input, stdout=subprocess.PIPE, check=True).stdout

    @staticmethod
    def _write(path: Path, value: Json) -> None:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(value))
        temporary.rename(path)

    @staticmethod
    def _read(path: Path) -> Json | None:
        try:
            loaded: Json = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        return loaded


def _data(text: str) -> bytes:
    raw = text.encode()
    return f"data {len(raw)}\n".encode() + raw + b"\n"


# The server


@dataclass
class Hub:
    """A running hub. `requests` holds what was asked, as (method, path, user or None); never a password. `before` is
    called before the refs of a repository are told, with how often they were asked for so far.
    """

    data: HubData
    url: str
    cache: Path | None = None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    before: Callable[[int], None] | None = None
    stopping: threading.Event = field(default_factory=threading.Event)

    @property
    def git_url(self) -> str:
        """The base of the repositories, as the policy's `floxhub.git_url` names it."""
        return f"{self.url}/git"

    @property
    def cache_url(self) -> str:
        """The static binary cache."""
        return f"{self.url}/cache"


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # fifty pods may ask at once
    hub: Hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event; anything else is an error of the double and shown."""
        if not isinstance(sys.exception(), ConnectionError | ssl.SSLError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing on stderr: `Hub.requests` is the log."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        hub = self.server.hub
        user, password = self._credentials()
        hub.requests.append((self.command, self.path, user))
        body = (
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not self._chunked()
            else self._read_chunks()
        )
        if hub.before and url.path.endswith("/info/refs"):
            hub.before(sum("/info/refs" in path for _, path, _ in list(hub.requests)))
        if self._is_broken(hub):
            return
        parts = [part for part in path.split("/") if part]
        if ".." in parts:
            self._status(400)
        elif len(parts) >= 4 and parts[0] == "git" and parts[2] == "floxmeta":
            self._git(hub, parts, url.query, user, password, body)
        elif parts == ["api", "v1", "catalog", "store"] and self.command == "POST":
            self._store(hub, body)
        elif parts[:1] == ["cache"] and hub.cache is not None:
            self._file(hub.cache.joinpath(*parts[1:]))
        else:
            self._status(404)

    def _is_broken(self, hub: Hub) -> bool:
        fault = hub.data.fault()
        if fault is None:
            return False
        if fault.get("after", 0) > 0:
            hub.data.break_with(**{**fault, "after": fault["after"] - 1})
            return False
        if fault["kind"] == "throttle":
            return False
        if fault["kind"] == "cut":
            self.send_response(200)
            self.send_header("Content-Type", "application/x-git-upload-pack-advertisement")
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"001e# service=git-upload-pack\n0000")
            self.close_connection = True
            return True
        if fault["kind"] == "slow":
            hub.stopping.wait(fault["seconds"])
            return False
        if fault["kind"] == "hang":
            while not hub.stopping.wait(0.05) and hub.data.fault() == fault and not self._client_is_gone():
                pass
            self.close_connection = True
            return True
        self._status(fault["status"], {"Location": fault["location"]} if "location" in fault else None)
        return True

    def _client_is_gone(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        return bool(readable)

    def _credentials(self) -> tuple[str | None, str | None]:
        kind, _, encoded = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "basic":
            return None, None
        try:
            user, _, password = base64.b64decode(encoded).decode().partition(":")
        except ValueError:
            return None, None
        return user, password

    def _git(self, hub: Hub, parts: list[str], query: str, user: str | None, password: str | None, body: bytes) -> None:
        owner = parts[1]
        rule = hub.data.access(owner)
        if rule is not None:
            if user is None or not password:
                self._status(401, {"WWW-Authenticate": 'Basic realm="FloxHub"'})
                return
            if user != "oauth" or password not in rule["tokens"]:
                self._status(404 if rule["hidden"] else 403)
                return
        if not hub.data.repository(owner).is_dir():
            self._status(404)
            return
        self._backend(hub, "/" + "/".join(parts[1:]), query, user, body)

    def _store(self, hub: Hub, body: bytes) -> None:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        items = hub.data.locations(json.loads(body)["outpaths"], token if kind.lower() == "bearer" else None)
        self._status(200, {"Content-Type": "application/json"}, json.dumps({"items": items}).encode())

    def _backend(self, hub: Hub, path: str, query: str, user: str | None, body: bytes) -> None:
        status, fields, content = git_http.answer(self, hub.data.folder, path, query, body, user or "")
        self._status(status, fields, content)

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._status(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(path.stat().st_size))
        self.end_headers()
        if self.command != "HEAD":
            fault = self.server.hub.data.fault() or {}
            rate = fault.get("bytes_per_s")
            with path.open("rb") as file:
                while chunk := file.read(rate // 10 if rate else 1 << 18):
                    self.wfile.write(chunk)
                    if rate:
                        self.server.hub.stopping.wait(0.1)

    def _status(self, status: int, fields: Mapping[str, str] | None = None, content: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (fields or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _chunked(self) -> bool:
        return "chunked" in self.headers.get("Transfer-Encoding", "")

    def _read_chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body


def _start(data: HubData, host: str, port: int, cache: Path | None, tls: ssl.SSLContext | None = None) -> _Server:
    server = _Server((host, port), _Handler)
    address, number = server.server_address[:2]
    server.hub = Hub(data, f"{'https' if tls else 'http'}://{address!s}:{number}", cache)
    if tls:
        # Each client's own thread shakes hands with it.
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return server


@contextlib.contextmanager
def serve(
    data: HubData,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    cache: Path | None = None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Hub]:
    """A hub in a thread of this process; port 0 takes a free one."""
    server = _start(data, host, port, cache, tls)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.hub
    finally:
        server.hub.stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()


def main() -> None:
    """Serve until killed; the base URL is printed when it answers."""
    parser = argparse.ArgumentParser(description="The FloxHub of the tests.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cache", type=Path)
    options = parser.parse_args()
    server = _start(HubData(options.data), options.host, options.port, options.cache)
    sys.stdout.write(server.hub.url + "\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
