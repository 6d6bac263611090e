"""A node for unit tests: a folder as its root, and a CRI server that reads its configuration as containerd does.

The CRI server speaks real gRPC over a real socket, so the product's own client is what is tested; what is fake is that
"restarting" it means reading its files again, with the product's model of that release: the model is held to the real
daemons by tests of its own. As the real one it runs on without a CRI where that does not load, and exits where it
refuses a file.
"""

from __future__ import annotations

import copy
import json
import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc

from flox_node.containerd.config.effective import Effective, load
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.containerd.live.grpc import ProtocolError, as_bytes, fields
from flox_node.errors import OutsideError
from flox_node.host import Completed, Host, HostFiles, RunningProcess, UnitSettings, UnitStatus
from flox_node.host.children import Finish

CONFIG = "/etc/containerd/config.toml"
_FILES_CLOCK = 5  # CLOCK_REALTIME_COARSE, from which the kernel takes the times of files
SOCKET = "/run/containerd/containerd.sock"
UNIT = "containerd.service"
_NO_CRI = "unknown service runtime.v1.RuntimeService"
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
        self.images = FakeImages()
        self.restarts = 0
        self.ignore_handlers: set[str] = set()  # with flox in its configuration it does not bring these up
        self.refuses_to_start = False
        self.loads_cri = True
        self.config_path = CONFIG
        self.status_calls = 0
        self.config: dict[str, Any] = {}
        self.read_config()

    def read_config(self) -> None:
        """What a start does."""
        if self.refuses_to_start:
            raise OutsideError("containerd does not start")
        effective = self.effective()
        if effective.cri is None:
            raise OutsideError(f"containerd does not start: {effective.refused}")
        self.started_at = time.time()
        # A file's times are up to a tick behind: what is written from now on has a later one.
        while time.clock_gettime(_FILES_CLOCK) <= self.started_at:
            time.sleep(0.0005)
        self.loads_cri = effective.cri.state == "ok"
        self.default = effective.cri.default_runtime
        table = effective.cri.runtimes
        self.handlers = {
            name: {"runtimeType": runtime.get("runtime_type"), "options": runtime.get("options")}
            for name, runtime in table.items()
            if name not in self.ignore_handlers or "flox" not in table
        }
        settings = {each.path[2:]: each.value for each in effective.settings if each.path[0] == "plugins"}
        self.config = {_camel(path[0]): value for path, value in settings.items() if len(path) == 1}

    def effective(self) -> Effective:
        """What this release makes of the files as they are."""
        return load(self.config_path, HostFiles(self.root), ContainerdVersion.parse(self.version))

    def answer(self, method: str) -> bytes:
        """The answer to one call, in protobuf's wire format."""
        if method == "Version":
            return _field(2, b"containerd") + _field(3, self.version.encode()) + _field(4, b"v1")
        if method == "Status":
            self.status_calls += 1
            config = {**self.config, "containerd": {"defaultRuntimeName": self.default, "runtimes": self.handlers}}
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

    def call(self, _socket: Path, method: str, _message: bytes, *, timeout: float) -> bytes:
        """In the place of the product's client, where a test would make tens of thousands of calls."""
        if not self.loads_cri:
            raise ProtocolError(_NO_CRI)
        return self.answer(method.rpartition("/")[2])

    def _answered(self, method: str, context: Any) -> bytes:
        if not self.loads_cri:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, _NO_CRI)
        return self.answer(method)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Listen on the node's CRI socket."""
        (self.root / "run/containerd").mkdir(parents=True)
        server = grpc.server(ThreadPoolExecutor(max_workers=2))
        methods = {
            name: grpc.unary_unary_rpc_method_handler(
                lambda _request, context, name=name: self._answered(name, context)
            )
            for name in ("Version", "Status", "ListPodSandbox", "ListContainers")
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("runtime.v1.RuntimeService", methods),))
        for service, names in self.images.services().items():
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, names),))
        server.add_insecure_port(f"unix://{self.root}{SOCKET}")
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait()


class FakeImages:
    """containerd's images by name, each as the message that it was made with."""

    def __init__(self) -> None:
        self.by_name: dict[bytes, bytes] = {}
        self.blobs: set[bytes] = set()

    def services(self) -> dict[str, dict[str, Any]]:
        one = grpc.unary_unary_rpc_method_handler
        stream = grpc.stream_stream_rpc_method_handler
        return {
            "containerd.services.images.v1.Images": {
                "List": one(lambda request, _: self._list(request)),
                "Create": one(lambda request, _: self._put(request)),
                "Update": one(lambda request, _: self._put(request)),
            },
            "containerd.services.leases.v1.Leases": {name: one(lambda *_: b"") for name in ("Create", "Delete")},
            "containerd.services.content.v1.Content": {
                "Info": one(self._info),
                "Write": stream(lambda requests, _: map(self._write, requests)),
            },
            "runtime.v1.ImageService": {"RemoveImage": one(lambda request, _: self._remove(request))},
        }

    def _list(self, request: bytes) -> bytes:
        name = bytes(as_bytes(dict(fields(request))[1])).removeprefix(b"name==")
        return _field(1, self.by_name[name]) if name in self.by_name else b""

    def _put(self, request: bytes) -> bytes:
        image = as_bytes(dict(fields(request))[1])
        self.by_name[as_bytes(dict(fields(image))[1])] = image
        return b""

    def _remove(self, request: bytes) -> bytes:
        self.by_name.pop(as_bytes(dict(fields(as_bytes(dict(fields(request))[1])))[1]), None)
        return b""

    def _info(self, request: bytes, context: Any) -> bytes:
        if dict(fields(request))[1] not in self.blobs:
            context.abort(grpc.StatusCode.NOT_FOUND, "content: not found")
        return b""

    def _write(self, request: bytes) -> bytes:
        self.blobs.add(as_bytes(dict(fields(request))[4]))
        return b""


_SYSTEMCTL = """\
#!/bin/sh
[ "$1" = is-active ] && exit 1
echo "$*" >>"$0.log"
[ ! -e "$0.fails" ]
"""


class FakeSystemd:
    """systemd with two units: containerd, and a kubelet that is bound to it as on EKS.

    What is to run later is the real script with the real `sh`, below the node's root; only its systemctl is a stub.
    """

    def __init__(self, containerd: FakeContainerd) -> None:
        self._containerd = containerd
        self._timers: dict[str, threading.Timer] = {}
        self.active = {UNIT: True, "kubelet.service": True}
        self.unit = UnitSettings("process", False, True, ("/usr/bin/containerd",), ("/lib/containerd.service",))
        self.reloads = 0
        self._systemctl = containerd.root.parent / f"{containerd.root.name}-bin/systemctl"
        self._systemctl.parent.mkdir()
        self._systemctl.write_text(_SYSTEMCTL)
        self._systemctl.chmod(0o755)

    def status(self, unit: str) -> UnitStatus:
        active = self.active.get(unit, False)
        return UnitStatus("active" if active else "inactive", "running" if active else "dead")

    def restart(self, unit: str, *, timeout: float) -> None:
        assert unit == UNIT
        self.active["kubelet.service"] = False  # a failed start leaves what Requires= it down
        self._containerd.restarts += 1
        self._containerd.read_config()

    def start(self, unit: str, *, timeout: float) -> None:
        self.active[unit] = True

    def stop(self, unit: str, *, timeout: float) -> None:
        self.active.pop(unit, None)
        if timer := self._timers.pop(unit.removesuffix(".timer"), None):
            timer.cancel()

    def settings(self, unit: str) -> UnitSettings:
        return self.unit

    def reload(self) -> None:
        self.reloads += 1

    def run_later(self, name: str, delay_s: float, argv: Sequence[str], description: str) -> None:
        self.stop(f"{name}.timer", timeout=1)
        timer = self._timers[name] = threading.Timer(delay_s, self._run, [argv])
        timer.daemon = True
        timer.start()

    def fire(self, name: str) -> None:
        """The time of this timer has come."""
        timer = self._timers.pop(name)
        timer.cancel()
        timer.function(*timer.args)

    def _run(self, argv: Sequence[str]) -> None:
        shell, script, mode = argv
        root = self._containerd.root
        fails = self._systemctl.with_name("systemctl.fails")
        if self._containerd.refuses_to_start:
            fails.touch()
        environment = {"PATH": f"{self._systemctl.parent}:{os.environ['PATH']}"}
        subprocess.run([shell, f"{root}{script}", mode, root], env=environment, check=False, capture_output=True)
        if mode == "now" and not fails.exists():
            self.restart(UNIT, timeout=1)
            self.active["kubelet.service"] = True

    def bound_units(self, unit: str) -> list[str]:
        return ["kubelet.service"]


class FakeProcesses:
    """Runs `containerd config dump` and `nix-store --load-db` as far as an install needs them."""

    def __init__(self, root: Path, containerd: FakeContainerd | None = None) -> None:
        self._root, self._containerd = root, containerd
        self.others: list[RunningProcess] = []  # beside containerd
        self.booted_at: float | None = None
        self.ticks: dict[int, int] = {}  # pid -> when it was started

    def run(
        self, argv: Sequence[str], *, input: bytes = b"", env: Mapping[str, str] | None = None, timeout: float = 60.0
    ) -> Completed:
        if argv[-1] == "--load-db":
            if (self._root / "proc").is_dir() and not (self._root / "proc/self/exe").is_symlink():
                said = b"error: filesystem error: read_symlink: No such file or directory [/proc/self/exe]\n"
                return Completed(1, b"", said)
            self._load_db(input)
            return Completed(0, b"", b"")
        if list(argv[1:]) == ["features"] and argv[0] == "/opt/flox-node/bin/flox-runtime":
            return Completed(0, b"{}", b"")
        if list(argv) == ["/opt/flox-node/bin/flox", "--version"]:
            return Completed(0, b"1.14.1\n", b"")
        if (program := self._root / argv[0].lstrip("/")).is_file():  # what was really written to the node
            return Completed(subprocess.run([program], check=False).returncode, b"", b"")
        if argv[0] != "/usr/bin/containerd":
            raise OutsideError(f"{argv[0]} is not on this node.")
        assert self._containerd is not None
        if list(argv[1:]) == ["--version"]:
            return Completed(
                0, f"containerd github.com/containerd/containerd {self._containerd.version} abc\n".encode(), b""
            )
        assert list(argv[-2:]) == ["config", "dump"]
        dumped = load(argv[2], HostFiles(self._root), ContainerdVersion.parse(self._containerd.version))
        if dumped.refused:
            return Completed(1, b"", f"containerd: failed to load TOML: {dumped.refused}".encode())
        merged = copy.deepcopy(dumped.merged)
        if dumped.cri is not None and dumped.cri.state == "ok":  # the built-in runtime is in a dump, too
            section = merged["plugins"].setdefault(dumped.cri.plugin, {}).setdefault("containerd", {})
            section["runtimes"] = {**dumped.cri.runtimes, **section.get("runtimes", {})}
        return Completed(0, "".join(f"{_toml(k)} = {_toml(v)}\n" for k, v in merged.items()).encode(), b"")

    @contextmanager
    def started(self, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> Iterator[Finish]:
        yield lambda data: self.run(argv, input=data, env=env)

    def which(self, name: str, search_path: Sequence[str]) -> str | None:
        return "/usr/bin/containerd" if name == "containerd" else f"/usr/sbin/{name}"

    def socket_owner(self, socket: str) -> RunningProcess | None:
        if socket != SOCKET:
            return None
        config = self._containerd.config_path if self._containerd else CONFIG
        argv = ("/usr/bin/containerd", *(["--config", config] if config != CONFIG else []))
        return RunningProcess(321, "/usr/bin/containerd", argv, UNIT, ("/usr/sbin",))

    def named(self, *names: str) -> list[RunningProcess]:
        return [process for process in self.others if process.argv[0].rpartition("/")[2] in names]

    def started_at(self, pid: int) -> float | None:
        return self.booted_at if pid == 1 or self._containerd is None else self._containerd.started_at

    def started_at_tick(self, pid: int) -> int | None:
        return self.ticks.get(pid)

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
        for folder in ("etc/containerd", "etc/systemd/system", "run", "var/lib", "opt"):
            (root / folder).mkdir(parents=True)
        (root / "etc/machine-id").write_text("0123456789abcdef\n")
        self.config = root / CONFIG.lstrip("/")
        self.config.write_text(config)
        self.containerd = FakeContainerd(root, version)
        self.systemd = FakeSystemd(self.containerd)
        self.processes = FakeProcesses(root, self.containerd)
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


def _camel(key: str) -> str:
    first, *others = key.split("_")
    return first + "".join(map(str.capitalize, others))


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(_toml, value)) + "]" if isinstance(value, list) else json.dumps(value)


def _field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])
