"""What others have armed: edits that nobody has restarted containerd for, and that our restart would make live.

A restart is proven for our edit alone; the rollback goes back to what lies on disk, not to what ran. So before any
restart two questions are asked of the files as they are without us. Would this containerd start with them? And if one
of them was changed after the daemon was started: do they mean what the daemon was started with, as far as its CRI
tells? What the CRI does not tell cannot be compared.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flox_node.containerd.config.editor import Handler
from flox_node.containerd.config.effective import Effective, MapReader, Reader, Setting, load
from flox_node.containerd.config.ours import waiting_for
from flox_node.containerd.config.registration import NextStart, Registration
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.containerd.live.cri import CriStatus
from flox_node.containerd.live.daemon import Running
from flox_node.errors import RefusedError
from flox_node.host import Host

# `bin_dir` became `bin_dirs` in 2.1, and the status tells of either in its own way.
_TOLD_OTHERWISE = {("containerd", "defaultruntimename"), ("cni", "bindir"), ("cni", "bindirs")}


@dataclass(frozen=True)
class Pending:
    """Why a restart would do more than we want; `line` is None where it cannot be told."""

    file: str
    line: int | None
    cause: str

    def __str__(self) -> str:
        return f"{self.file}{f', line {self.line}' if self.line else ''}: {self.cause}"


def find(host: Host, running: Running, registration: Registration, handler: Handler) -> tuple[Pending, ...]:
    """What a restart of this containerd would change beside the handler; () where it would come back as it is."""
    coming = registration.next_start(host.files, running.version, handler)
    then = next_start(host.files, running.version, registration, handler)
    changed = list(_changed_since(host, running, then, coming))
    if then.cri is None or then.cri.state != "ok":
        worst = next(finding for finding in then.findings if finding.severity == "error")
        file = next(iter({*changed} & {*coming.inputs}), worst.file)
        return (Pending(file, worst.line, f"containerd would not start with it as it is now: {worst.text}"),)
    if not changed:
        return ()
    if untold := [path for path in changed if path in coming.untold]:
        why = "it was changed since containerd was started, and"
        return tuple(Pending(path, None, f"{why} {coming.untold[path]}") for path in untold)
    return tuple(differences(then, running.status, handler.name, changed[0]))


def next_start(reader: Reader, version: ContainerdVersion, registration: Registration, handler: Handler) -> Effective:
    """The configuration that a restart would have without us."""
    coming = registration.next_start(reader, version, handler)
    withdrawn = {edit.path: edit.after for edit in registration.withdrawals(reader, version, handler)}
    files = MapReader({**coming.files, **withdrawn}, reader)
    return waiting_for(load(coming.root or registration.config, files, version), handler)


def refusal(found: Sequence[Pending], unit: str) -> RefusedError:
    """The error of a restart that would make these live."""
    shown = "; ".join(str(each).rstrip(".") for each in found[:3])
    return RefusedError(
        f"A restart of containerd would make changes live that are not flox-node's: {shown}.",
        remedy=f"Correct or take back that change, or make it live yourself (`systemctl restart {unit}`) and see that "
        "the node is well; then run the command again.",
    )


def _changed_since(host: Host, running: Running, then: Effective, coming: NextStart) -> Iterator[str]:
    """The inputs of the configuration that were changed after the daemon was started."""
    started = host.processes.started_at(running.daemon.pid)
    if started is None:
        return
    files = [file.path for file in then.files]
    folders = [
        posixpath.dirname(posixpath.normpath(posixpath.join(posixpath.dirname(file.path), entry)))
        for file in then.files
        for entry in file.document.data.get("imports", ())
    ]
    for path in dict.fromkeys([*coming.inputs, *(file for file in files if file not in coming.files), *folders]):
        changed_at = host.files.changed_at(path)
        if changed_at is not None and changed_at > started:
            yield path


def differences(then: Effective, status: CriStatus, ours: str, changed: str) -> Iterator[Pending]:
    """What a configuration that loads says otherwise than a running CRI, ours apart. `changed` is a newer file."""
    assert then.cri is not None, "the caller checked it"
    # From 2.0 on the images' side is a plugin of its own, of which the CRI's status tells nothing.
    settings = [setting for setting in then.settings if setting.path[:2] == ("plugins", then.cri.plugin)]
    for name, handler in status.handlers.items():
        if name == ours:
            continue
        table = then.cri.runtimes.get(name)
        if table is None:
            yield Pending(changed, None, f'the handler "{name}", which containerd serves, is in no file any more')
            continue
        place = _place(settings, name, changed)
        if _said(table.get("runtime_type")) != _said(handler.runtime_type) or _said(table.get("options")) != _said(
            handler.options
        ):
            yield Pending(*place, f'the handler "{name}" is another one than the one that containerd serves')
    for name in then.cri.runtimes.keys() - status.handlers.keys() - {ours}:
        yield Pending(*_place(settings, name, changed), f'the handler "{name}" is not served yet')
    if then.cri.default_runtime != status.default_handler:
        places = ((each.file, each.line) for each in settings if each.path[-1] == "default_runtime_name")
        yield Pending(*next(places, (changed, None)), f'the default runtime is "{status.default_handler}" yet')
    told = dict(_leaves(status.config))
    for setting in settings:
        name_ = _words(setting.path[2:])
        if "runtimes" in setting.path or name_ in _TOLD_OTHERWISE or name_ not in told:
            continue
        if _said(told[name_]) != _said(setting.value):
            key = ".".join(setting.path[2:])
            yield Pending(setting.file, setting.line, f"`{key}` is not what containerd was started with")


def _place(settings: Iterable[Setting], runtime: str, otherwise: str) -> tuple[str, int | None]:
    places = ((each.file, each.line) for each in settings if ("runtimes", runtime) == each.path[3:5])
    return next(places, (otherwise, None))


def _leaves(value: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, item in value.items():
        if isinstance(item, dict) and item:
            yield from _leaves(item, (*path, key))
        else:
            yield _words((*path, key)), item


def _words(path: Iterable[str]) -> tuple[str, ...]:
    """A setting's name without what differs between the file (snake case) and the CRI (camel case)."""
    return tuple(part.replace("_", "").lower() for part in path)


def _said(value: Any) -> Any:
    """A value without what says nothing: daemons spell out what is empty or false."""
    if isinstance(value, Mapping):
        return {key: said for key, item in value.items() if (said := _said(item))} or None
    return value or None
