"""Which platform a node is: facts gathered once, and a pure decision over them."""

from __future__ import annotations

import fnmatch
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

from flox_node.containerd.live import daemon
from flox_node.errors import RefusedError
from flox_node.host import Host
from flox_node.platforms.platform import LIVE, Layer, Platform, Sign, SignKind
from flox_node.platforms.registry import all_platforms, by_name


@dataclass(frozen=True)
class NodeFacts:
    """What signs are looked for in. Texts are empty where the node has no such thing.

    `config` is the configuration that the process behind the CRI socket was started with, `files` those of the paths
    that platforms look for and that are there, `os_release` the lines of /etc/os-release without quotes.
    """

    socket: str
    unit: str = ""
    program: str = ""
    config: str = ""
    files: frozenset[str] = frozenset()
    os_release: frozenset[str] = frozenset()
    root_source: str = ""


@dataclass(frozen=True)
class Detection:
    """A platform, and the signs by which it was found (none where an administrator named it)."""

    platform: Platform
    signs: tuple[Sign, ...]


def recognise(host: Host, *, socket: str | None = None, named: str | None = None) -> Detection:
    """What this node is. `socket` and `named` are the administrator's choice, found where None.

    Raises:
        RefusedError: kubelets or signs contradict each other.
        UsageError: no platform is called `named`.
    """
    return detect(gather(host, daemon.cri_socket(host, socket)), named)


def gather(host: Host, socket: str) -> NodeFacts:
    """Look at the node. Never raises for what it finds: no process behind the socket is a fact, too."""
    process = host.processes.socket_owner(socket)
    paths = (
        path
        for platform in all_platforms()
        for sign in platform.signs
        if sign.kind is SignKind.FILE
        for path in sign.pattern.split("|")
    )
    return NodeFacts(
        socket=socket,
        unit=(process.unit or "") if process else "",
        program=process.exe if process else "",
        config=(daemon.config_argument(process.argv) or daemon.DEFAULT_CONFIG) if process else "",
        files=frozenset(path for path in paths if host.files.exists(path)),
        os_release=_os_release(host),
        root_source=_root_source(host),
    )


def detect(facts: NodeFacts, named: str | None = None) -> Detection:
    """The platform that the signs agree on; `named` overrides them.

    Raises:
        RefusedError: signs contradict each other; the error names both.
        UsageError: no platform is called `named`.
    """
    if named is not None:
        return Detection(by_name(named), ())
    held = {
        platform.name: tuple(sign for sign in platform.signs if _holds(sign, facts)) for platform in all_platforms()
    }
    found = [platform for platform in all_platforms() if len(held[platform.name]) >= platform.needed]
    best = found[0]  # the fallback needs no sign
    rivals = [platform for platform in found[1:] if platform.layer == best.layer]
    if rivals and best.layer is not Layer.REFUSED:
        raise _contradiction(best, held[best.name][0], rivals[0], held[rivals[0].name][0])
    for platform in all_platforms():
        # What runs now says something that nothing else confirms: then something is not what it looks like.
        live = [sign for sign in held[platform.name] if sign.kind in LIVE]
        if platform in found or platform.layer <= best.layer or not live:
            continue
        against = next(sign for sign in platform.signs if sign not in held[platform.name])
        raise RefusedError(
            f"The signs of this node contradict each other: {live[0]} is {platform.name}'s, but there is no {against}.",
            remedy="Name the platform with --platform.",
        )
    unconfirmed = _alien_live_sign(best, held)
    if unconfirmed is not None:
        other, sign = unconfirmed
        raise _contradiction(best, held[best.name][0], other, sign)
    return Detection(best, held[best.name])


def _alien_live_sign(best: Platform, held: dict[str, tuple[Sign, ...]]) -> tuple[Platform, Sign] | None:
    """A sign of what runs now that belongs to another distribution and not to `best`."""
    if best.layer is not Layer.DISTRIBUTION:
        return None
    for other in all_platforms():
        if other.layer is Layer.DISTRIBUTION and other is not best:
            for sign in held[other.name]:
                if sign.kind in LIVE and all(sign.kind is not own.kind for own in held[best.name]):
                    return other, sign
    return None


def _contradiction(one: Platform, sign: Sign, other: Platform, contrary: Sign) -> RefusedError:
    return RefusedError(
        f"The signs of this node contradict each other: {sign} is {one.name}'s, {contrary} is {other.name}'s.",
        remedy=f"Name the platform: --platform {one.name} or --platform {other.name}.",
    )


def _holds(sign: Sign, facts: NodeFacts) -> bool:
    values: Iterable[str]
    match sign.kind:
        case SignKind.SOCKET:
            values = (facts.socket,)
        case SignKind.UNIT:
            values = (facts.unit,)
        case SignKind.PROGRAM:
            values = (facts.program,)
        case SignKind.CONFIG:
            values = (facts.config,)
        case SignKind.ROOT:
            values = (facts.root_source,)
        case SignKind.FILE:
            values = facts.files
        case SignKind.OS:
            return any(
                all(line in facts.os_release for line in wanted.split("&")) for wanted in sign.pattern.split("|")
            )
    return any(fnmatch.fnmatchcase(value, pattern) for pattern in sign.pattern.split("|") for value in values)


def _os_release(host: Host) -> frozenset[str]:
    text = host.files.read_optional("/etc/os-release") or host.files.read_optional("/usr/lib/os-release") or b""
    lines = set()
    for line in text.decode(errors="replace").splitlines():
        name, equals, value = line.partition("=")
        if not equals or name.startswith("#"):
            continue
        try:
            lines.add(f"{name.strip()}={' '.join(shlex.split(value))}")
        except ValueError:
            continue
    return frozenset(lines)


def _root_source(host: Host) -> str:
    """The source of the root mount in PID 1's table: "composefs" where the root is one."""
    table = (host.files.read_optional("/proc/1/mounts") or b"").decode(errors="replace")
    rows = [line.split() for line in table.splitlines()]
    return next((row[0] for row in reversed(rows) if len(row) > 2 and row[1] == "/"), "")
