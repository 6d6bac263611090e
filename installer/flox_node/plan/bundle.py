"""The support bundle of a node: what a helper needs to know about it, with no secret in it.

Configurations go in as parsed data, because a key tells what its
value is; comments stay out. Backups of other tools' files, which the receipt holds, go in as their digests only.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import platform
from collections.abc import Callable, Iterator
from typing import Any

from flox_node import __version__
from flox_node.containerd.config.editor import Handler
from flox_node.containerd.config.effective import Effective
from flox_node.containerd.config.explain import report
from flox_node.containerd.live import daemon
from flox_node.errors import FloxNodeError
from flox_node.host import Host, event_log
from flox_node.host.probes import space
from flox_node.names import HANDLER, SHIM
from flox_node.plan.doctor import examine
from flox_node.plan.doctor.node import Node
from flox_node.plan.status import status
from flox_node.platforms import facts
from flox_node.redact import MASK, Redactor, is_secret_key, secrets_in
from flox_node.settings import Settings
from flox_node.state.ledger import JOURNAL, RECEIPT
from flox_node.state.policy import PATH as POLICY
from flox_node.support import Bundle, bundle

_TAIL = 512 << 10  # bytes of a log
_LINES = "2000"  # of a unit's journal
_TOKEN = "floxhub-token"


def collect(host: Host, settings: Settings) -> Bundle:
    """Look at the node and pack it. Writes nothing on it but the doctor's probe files."""
    node = Node(host, settings)
    return bundle(_members(node, settings), Redactor(_known_secrets(node)))


def _members(node: Node, settings: Settings) -> dict[str, Callable[[], Any]]:
    host = node.host
    units = [*facts(lambda platform: platform.units)]
    units += [name for name in host.files.listdir("/etc/systemd/system") if name.startswith("flox-node-")]
    units += ["nix.mount"]
    return {
        "versions.json": lambda: _versions(node),
        "status.json": lambda: dataclasses.asdict(status(host, settings)),
        "doctor.json": lambda: [dataclasses.asdict(result) for result in examine(host, settings)],
        "receipt.json": lambda: _without_backups(json.loads(host.files.read(RECEIPT))),
        "journal.json": lambda: [_without_backups(json.loads(line)) for line in _whole_lines(host, JOURNAL)],
        "policy.json": lambda: json.loads(host.files.read(POLICY)),
        "configuration/explained.json": lambda: _explained(node),
        "configuration/files.json": lambda: _files(node.effective),
        "configuration/running.json": lambda: node.status.config,
        "pods/sandboxes.json": lambda: _sandboxes(node),
        "pods/containers.json": lambda: list(map(dataclasses.asdict, daemon.cri(host, node.socket).containers())),
        "pods/runtime.jsonl": lambda: _text(event_log.tail(host.files, _TAIL) or b""),
        "mounts.txt": lambda: _text(host.files.read("/proc/1/mountinfo")),
        "disks.json": lambda: [dataclasses.asdict(space(host, folder)) for folder in _disks(host)],
        **{
            f"logs{path}": functools.partial(_tail, host, path)
            for path in facts(lambda platform: platform.logs)
            if host.files.exists(path)
        },
        **{f"units/{unit}.txt": _unit_log(host, unit) for unit in dict.fromkeys(units)},
    }


def _versions(node: Node) -> dict[str, object]:
    release = _text(node.host.files.read_optional("/etc/os-release") or b"")
    found: dict[str, object] = {
        "flox-node": __version__,
        "python": platform.python_version(),
        "kernel": _text(node.host.files.read("/proc/version")).strip(),
        "machine": platform.machine(),
        "os": dict(line.split("=", 1) for line in release.splitlines() if line.startswith(("ID=", "VERSION_ID="))),
        "kubelets": [process.exe for process in node.kubelets],
    }
    try:
        found["containerd_exe"] = node.daemon.exe
        found["containerd"] = node.status.version
    except FloxNodeError as error:
        found["containerd"] = error.cause
    return found


def _explained(node: Node) -> dict[str, Any]:
    told = report(node.effective, node.host.files, Handler(HANDLER, SHIM))
    for setting in told["settings"]:
        if any(map(is_secret_key, setting["path"])):
            setting["value"] = MASK
    return told


def _files(effective: Effective) -> dict[str, object]:
    return {
        file.path: {
            "sha256": hashlib.sha256(file.document.source).hexdigest(),
            "bytes": len(file.document.source),
            "data": file.document.data,
        }
        for file in effective.files
    }


def _sandboxes(node: Node) -> list[dict[str, object]]:
    # Other annotations are none of our business, and some tools put credentials into theirs.
    return [
        {
            **dataclasses.asdict(sandbox),
            "annotations": {key: value for key, value in sandbox.annotations.items() if key.startswith("flox.dev/")},
        }
        for sandbox in node.sandboxes
    ]


def _disks(host: Host) -> list[str]:
    return [folder for folder in ("/", "/nix", "/opt", "/var/lib", "/run") if host.files.is_dir(folder)]


def _tail(host: Host, path: str) -> str:
    return _text(host.files.read_end(path, _TAIL) or b"")


def _unit_log(host: Host, unit: str) -> Callable[[], str]:
    command = ["journalctl", "--no-pager", "--quiet", "--output=short-iso", f"--lines={_LINES}", f"--unit={unit}"]
    return lambda: _text(host.processes.run(command, timeout=30).stdout)


def _whole_lines(host: Host, path: str) -> Iterator[bytes]:
    yield from (line for line in (host.files.read_optional(path) or b"").split(b"\n")[:-1] if line)


def _without_backups(value: Any) -> Any:
    """The records without the bytes of other tools' files: base64 would carry credentials past every pattern."""
    if isinstance(value, dict):
        return {
            key: _digest(item) if key == "bytes" and isinstance(item, str) else _without_backups(item)
            for key, item in value.items()
        }
    return [_without_backups(item) for item in value] if isinstance(value, list) else value


def _digest(text: str) -> str:
    return f"{len(text)} characters of base64, sha256 {hashlib.sha256(text.encode()).hexdigest()}"


def _known_secrets(node: Node) -> Iterator[str]:
    """What is known to be secret here: registry credentials of the configuration, and the tokens of Flox pods."""
    try:
        yield from secrets_in(node.effective.merged)
        for file in node.effective.files:
            yield from secrets_in(file.document.data)
    except FloxNodeError:
        pass
    files = node.host.files
    for pods in facts(lambda platform: [f"{platform.kubelet_root}/pods"]):
        for pod in files.listdir(pods):
            for kind in files.listdir(f"{pods}/{pod}/volumes"):
                for volume in files.listdir(f"{pods}/{pod}/volumes/{kind}"):
                    token = files.read_optional(f"{pods}/{pod}/volumes/{kind}/{volume}/{_TOKEN}")
                    if token:
                        yield _text(token).strip()


def _text(data: bytes) -> str:
    return data.decode(errors="replace")
