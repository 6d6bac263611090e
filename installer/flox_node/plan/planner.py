"""From what a node is to the actions that make it a Flox node. Reads, never writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flox_node.actions import (
    Action,
    CreateDirectory,
    ImportImage,
    InstallUnits,
    MountNix,
    PlacePayload,
    RegisterHandler,
    SwitchPayload,
    WritePolicy,
    mount_nix,
)
from flox_node.actions.install_units import WANTS
from flox_node.containerd.live import daemon
from flox_node.containerd.live.daemon import Running
from flox_node.errors import RefusedError
from flox_node.host import Host
from flox_node.names import BIN, HANDLER, PREFIX, SHIM
from flox_node.payload import Payload
from flox_node.payload.manifest import EMPTY_IMAGE
from flox_node.plan.detect import Detection, recognise
from flox_node.platforms import Platform
from flox_node.settings import Settings

_LINKED = ("flox", "flox-node", "flox-node-realise")


@dataclass(frozen=True)
class Plan:
    """What this node is, the containerd that was seen on it, and the actions that make it a Flox node."""

    detection: Detection
    running: Running
    actions: tuple[Action[Any], ...]


def plan_install(host: Host, payload: Payload, settings: Settings) -> Plan:
    """The actions of an install, in order: first what no one uses yet, last the one that makes it live.

    The node is looked at once: what was seen of its containerd goes along with the plan.

    Raises:
        RefusedError: a platform where nothing can be done, signs of platforms that contradict each other, no containerd
            behind the socket, or no inner runtime on the node.
        OutsideError: the CRI does not answer.
    """
    socket = daemon.cri_socket(host, settings.socket)
    detection = recognise(host, socket=socket, named=settings.platform)
    platform = detection.platform
    if platform.refusal is not None:
        raise RefusedError(platform.refusal.reason, remedy=platform.refusal.instead)
    running = daemon.look(host, socket, patience_s=10.0)
    actions = (
        *placing(host, payload, settings, running),
        *([ImportImage(socket)] if any(file.path == EMPTY_IMAGE for file in payload.manifest.files) else []),
        *units(running),
        RegisterHandler(**registering(host, platform, settings, running), running=running),
    )
    return Plan(detection, running, actions)


def placing(host: Host, payload: Payload, settings: Settings, running: Running) -> tuple[Action[Any], ...]:
    """The actions that put our own files on a node, or into an image of one.

    Raises:
        RefusedError: no inner runtime is there, or /nix cannot be had.
    """
    return (
        CreateDirectory("/opt"),
        CreateDirectory(PREFIX),
        CreateDirectory(BIN),
        CreateDirectory(f"{PREFIX}/payloads"),
        CreateDirectory("/etc/flox-node", keep=True),
        *_nix(host, settings, running.daemon.unit),
        PlacePayload.of(payload, repair=settings.repair),
        SwitchPayload(payload.manifest.id, _programs(payload)),
        WritePolicy(inner_runtime(host, running), settings.policy),
    )


def units(running: Running) -> tuple[Action[Any], ...]:
    """The actions that have our units in systemd."""
    return (*(CreateDirectory(folder) for folder in WANTS), InstallUnits(running.daemon.unit))


def registering(host: Host, platform: Platform, settings: Settings, running: Running) -> dict[str, Any]:
    """The fields of the action that registers the handler."""
    return {
        "registration": platform.register(running.daemon.config_path, host.files, running.version),
        "socket": running.daemon.socket,
        "handler": HANDLER,
        "binary_name": SHIM,
        "adopt": settings.adopt,
        "deadline_s": settings.deadline_s or platform.restart_deadline_s,
        "unit": running.daemon.unit,
        "program": running.daemon.exe,
        "version": running.status.version,
        "restarts_per_hour": settings.restarts_per_hour,
    }


def _nix(host: Host, settings: Settings, containerd_unit: str) -> tuple[Action[Any], ...]:
    """How /nix comes to be there: made, found (and then never removed), or bound from elsewhere.

    Raises:
        RefusedError: it is a symlink, or the folder to bind cannot be.
    """
    for path in ("/nix", "/nix/store"):
        if (target := host.files.readlink(path)) is not None:
            raise RefusedError(
                f"{path} is a symlink to {target}, and Nix does not work with a store behind a symlink.",
                remedy=f"Remove the link, then run `flox-node install --nix-dir {target}`: it mounts the folder there.",
            )
    folder = settings.nix_dir or mount_nix.mounted_folder(host)
    if folder is None:
        return (CreateDirectory("/nix", keep=True),)
    mount_nix.require_usable(host, folder)
    return (
        CreateDirectory(folder, keep=True),
        CreateDirectory(mount_nix.WANTS),
        MountNix(folder, containerd_unit),
    )


def _programs(payload: Payload) -> tuple[str, ...]:
    # The payload's other entry points (git, nix-store) are for its own use and get no stable name.
    return ("flox-runtime", *(name for name in _LINKED if name in payload.manifest.entry_points))


def inner_runtime(host: Host, running: Running) -> str:
    """The absolute path of the OCI runtime that the node's default handler uses.

    Raises:
        RefusedError: containerd would not find one itself.
    """
    found, status = running.daemon, running.status
    default = status.handlers.get(status.default_handler)
    name = (default.binary_name if default is not None else "") or "runc"
    if name.startswith("/"):
        return name
    path = host.processes.which(name, found.search_path)
    if path is None:
        raise RefusedError(
            f"The node's default runtime {name} is not on containerd's PATH ({':'.join(found.search_path)}).",
            remedy=f"Install {name} on the node first.",
        )
    return path
