"""A node for unit tests: a folder as its root, and a CRI server that reads its configuration as containerd does.

The CRI server speaks real gRPC over a real socket, so the product's own client is what is tested; what is fake is that
"restarting" it means reading config.toml again.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc

from flox_node.errors import OutsideError
from flox_node.host import Completed, Host, HostFiles, RunningProcess, UnitStatus

CONFIG = "/etc/containerd/config.toml"
SOCKET = "/run/containerd/containerd.sock"
PLUGIN = "io.containerd.grpc.v1.cri"
KUBEADM = f"""\
# written by an administrator
version = 2

[plugins."{PLUGIN}"]
  sandbox_image = "registry.k8s.io/pause:3.9"   # pinned
  [plugins."{PLUGIN}".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."{PLUGIN}".containerd.runtimes.runc.options]
      SystemdCgroup = true
"""


class FakeContainerd:
    """Serves Version, Status and ListPodSandbox from the handlers of the configuration that it last read."""

    def __init__(self, root: Path, version: str) -> None:
        self.root, self.version = root, version
        self.handlers: dict[str, Any] = {}
        self.sandboxes: list[tuple[str, str]] = []  # name, handler
        self.restarts = 0
        self.ignore_handlers: set[str] = set()  # a daemon that does not bring these up
        self.refuses_to_start = False
        self.read_config()

    def read_config(self) -> None:
        """What a start does."""
        if self.refuses_to_start:
            raise OutsideError("containerd does not start")
        data = tomllib.loads((self.root / CONFIG.lstrip("/")).read_text())
        table = data.get("plugins", {}).get(PLUGIN, {}).get("containerd", {}).get("runtimes", {})
        self.handlers = {
            name: {"runtimeType": runtime.get("runtime_type"), "options": runtime.get("options")}
            for name, runtime in table.items()
            if name not in self.ignore_handlers
        }

    def answer(self, method: str) -> bytes:
        """The answer to one call, in protobuf's wire format."""
        if method == "Version":
            return _field(2, b"containerd") + _field(3, self.version.encode()) + _field(4, b"v1")
        if method == "Status":
            config = {"containerd": {"defaultRuntimeName": "runc", "runtimes": self.handlers}}
            return _field(2, _field(1, b"config") + _field(2, json.dumps(config).encode()))
        if method == "ListContainers":
            return b""
        return b"".join(
            _field(
                1,
                _field(1, b"id-" + name.encode())
                + _field(2, _field(1, name.encode()) + _field(3, b"default"))
                + _field(7, handler.encode()),
            )
            for name, handler in self.sandboxes
        )

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Listen on the node's CRI socket."""
        (self.root / "run/containerd").mkdir(parents=True)
        server = grpc.server(ThreadPoolExecutor(max_workers=2))
        methods = {
            name: grpc.unary_unary_rpc_method_handler(lambda _request, _context, name=name: self.answer(name))
            for name in ("Version", "Status", "ListPodSandbox", "ListContainers")
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("runtime.v1.RuntimeService", methods),))
        server.add_insecure_port(f"unix://{self.root}{SOCKET}")
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()


class FakeSystemd:
    """systemd with two units: containerd, and a kubelet that is bound to it as on EKS."""

    def __init__(self, containerd: FakeContainerd) -> None:
        self._containerd = containerd
        self.active = {"containerd.service": True, "kubelet.service": True}

    def status(self, unit: str) -> UnitStatus:
        active = self.active[unit]
        return UnitStatus("active" if active else "inactive", "running" if active else "dead", 1 if active else 0)

    def restart(self, unit: str, *, timeout: float) -> None:
        assert unit == "containerd.service"
        self.active["kubelet.service"] = False  # a failed start leaves what Requires= it down
        self._containerd.restarts += 1
        self._containerd.read_config()

    def start(self, unit: str, *, timeout: float) -> None:
        self.active[unit] = True

    def bound_units(self, unit: str) -> list[str]:
        return ["kubelet.service"]


class FakeProcesses:
    """Runs `containerd config dump` and `nix-store --load-db` as far as an install needs them."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.others: list[RunningProcess] = []  # beside containerd
        self.booted_at: float | None = None

    def run(
        self, argv: Sequence[str], *, input: bytes = b"", env: Mapping[str, str] | None = None, timeout: float = 60.0
    ) -> Completed:
        if argv[-1] == "--load-db":
            self._load_db(input)
            return Completed(0, b"", b"")
        if (program := self._root / argv[0].lstrip("/")).is_file():  # what was really written to the node
            return Completed(subprocess.run([program], check=False).returncode, b"", b"")
        assert list(argv[-2:]) == ["config", "dump"]
        try:
            tomllib.loads((self._root / argv[2].lstrip("/")).read_text())
        except tomllib.TOMLDecodeError as error:
            return Completed(1, b"", f"containerd: failed to load TOML: {error}".encode())
        return Completed(0, b"", b"")

    def which(self, name: str, search_path: Sequence[str]) -> str | None:
        return f"/usr/sbin/{name}"

    def socket_owner(self, socket: str) -> RunningProcess | None:
        if socket != SOCKET:
            return None
        return RunningProcess(
            321, "/usr/bin/containerd", ("/usr/bin/containerd",), "containerd.service", ("/usr/sbin",)
        )

    def named(self, *names: str) -> list[RunningProcess]:
        return [process for process in self.others if process.argv[0].rpartition("/")[2] in names]

    def started_at(self, pid: int) -> float | None:
        return self.booted_at

    def _load_db(self, registration: bytes) -> None:
        database = self._root / "nix/var/nix/db/db.sqlite"
        lines = iter(registration.decode().splitlines())
        with closing(sqlite3.connect(database)) as connection, connection:
            connection.executescript(
                "create table if not exists ValidPaths"
                " (id integer primary key, path text unique, hash text, narSize int);"
                "create table if not exists Refs (referrer int, reference int);"
            )
            for path in lines:
                nar_hash, size, _deriver, count = next(lines), next(lines), next(lines), int(next(lines))
                for _ in range(count):
                    next(lines)
                connection.execute(
                    "insert or replace into ValidPaths (path, hash, narSize) values (?, ?, ?)",
                    (path, f"sha256:{nar_hash}", int(size)),
                )


class FakeNode:
    """A node below `root`, with containerd running."""

    def __init__(self, root: Path, version: str = "1.7.24", config: str = KUBEADM) -> None:
        self.root = root
        for folder in ("etc/containerd", "run", "var/lib", "opt"):
            (root / folder).mkdir(parents=True)
        (root / "etc/machine-id").write_text("0123456789abcdef\n")
        self.config = root / CONFIG.lstrip("/")
        self.config.write_text(config)
        self.containerd = FakeContainerd(root, version)
        self.systemd = FakeSystemd(self.containerd)
        self.processes = FakeProcesses(root)
        self.host = Host(HostFiles(root), self.processes, self.systemd)  # type: ignore[arg-type]

    def tree(self) -> dict[str, tuple[int, bytes]]:
        """Every path with its mode and content, `/run` left out: what "to the byte" compares."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if name.startswith("run"):
                continue
            content = (
                str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
            )
            found[name] = (path.lstat().st_mode, content)
        return found


def _field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])
