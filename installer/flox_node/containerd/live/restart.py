"""Restarting a containerd: whether that is safe here, how often it was done, and doing it with all that hangs on it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from flox_node.containerd.live.cri import CriStatus
from flox_node.containerd.live.daemon import Daemon, config_argument, cri
from flox_node.errors import BusyError, FloxNodeError, OutsideError, RefusedError
from flox_node.host import Host
from flox_node.host.systemd import UnitSettings

HOUR_S = 3600.0
_SPENT = "/run/flox-node/restarts.json"  # a boot forgets it, and so does the clock that it counts with
_KILLS_PODS = ("control-group", "mixed")


class RestartBudgetError(BusyError):
    """containerd was restarted too often within the last hour."""

    code = "restart-budget"
    default_remedy = "Find out what keeps changing its configuration, or raise --restarts-per-hour."


def require_safe(host: Host, found: Daemon, *, per_hour: int | None = None) -> None:
    """Make sure that a restart of this containerd can be done, undone and survived by its pods. Writes nothing.

    Raises:
        RefusedError: why it cannot.
        RestartBudgetError: it was restarted `per_hour` times within the last hour.
    """
    try:
        settings = host.systemd.settings(found.unit)
        state = host.systemd.status(found.unit).active
    except OutsideError as error:
        raise RefusedError(
            f"flox-node restarts containerd over the node's systemd and cannot reach it: {error.cause}",
            remedy="Bring the node's system bus up (`systemctl start dbus`), then run the command again.",
        ) from error
    if settings.stale:
        raise RefusedError(
            f"The files of {found.unit} were changed since systemd read them: a restart would do what was never tried.",
            remedy=f"Run `systemctl daemon-reload` and `systemctl restart {found.unit}` yourself first.",
        )
    if state != "active":
        raise RefusedError(
            f"{found.unit} is {state}, so it cannot be told whether it works as it should.",
            remedy=f"Wait until `systemctl is-active {found.unit}` says active.",
        )
    if not settings.manual_restart:
        raise RefusedError(f"{found.unit} may not be restarted by hand: RefuseManualStart or RefuseManualStop is set.")
    _require_same_configuration(found, settings)
    if settings.kill_mode in _KILLS_PODS and (pods := _ready_pods(host, found)):
        raise RefusedError(
            f"KillMode={settings.kill_mode} of {found.unit} ({_file_that_sets(host, settings, 'KillMode')}): "
            f"restarting it would kill the {pods} pods of this node.",
            remedy="Set KillMode=process as containerd's own unit does, or drain the node first.",
        )
    if per_hour is not None and len(_recent(host)) >= per_hour:
        raise _over_budget(per_hour)


def spend(host: Host, *, per_hour: int) -> None:
    """Count a restart.

    Raises:
        RestartBudgetError: there were `per_hour` within the last hour.
    """
    recent = _recent(host)
    if len(recent) >= per_hour:
        raise _over_budget(per_hour)
    host.files.write_atomic(_SPENT, json.dumps([*recent, _now()]).encode(), 0o600)


def active_units(host: Host, found: Daemon) -> tuple[str, ...]:
    """The units bound to this containerd's that are active now."""
    bound = host.systemd.bound_units(found.unit)
    return tuple(unit for unit in bound if host.systemd.status(unit).active == "active")


def restart(host: Host, found: Daemon, units: Sequence[str], patience_s: float) -> CriStatus:
    """Restart the daemon's unit, wait until the CRI answers, and start again which of `units` systemd stopped along.

    Raises:
        OutsideError: not all of it happened within `patience_s` seconds.
    """
    end = time.monotonic() + patience_s
    host.systemd.restart(found.unit, timeout=patience_s)
    status = cri(host, found.socket).wait(max(0.0, end - time.monotonic()))
    _start(host, units, end)
    return status


def start_again(host: Host, unit: str, socket: str, patience_s: float) -> CriStatus:
    """Start a containerd's unit anew that does not answer, with all that is bound to it, and wait until the CRI does.

    Raises:
        OutsideError: it does not within `patience_s` seconds.
    """
    end = time.monotonic() + patience_s
    host.systemd.restart(unit, timeout=patience_s)
    status = cri(host, socket).wait(max(0.0, end - time.monotonic()))
    _start(host, host.systemd.bound_units(unit), end)
    return status


def require_former(before: CriStatus, after: CriStatus, *, but: str = "") -> None:
    """Make sure that every handler but one is as it was.

    Raises:
        OutsideError: which are not.
    """
    lost = [
        name
        for name, handler in before.handlers.items()
        if name != but
        and (
            name not in after.handlers
            or (after.handlers[name].runtime_type, dict(after.handlers[name].options))
            != (handler.runtime_type, dict(handler.options))
        )
    ]
    if lost:
        raise OutsideError(f"containerd restarted, but lost or changed the handler {', '.join(sorted(lost))}.")


def _start(host: Host, units: Sequence[str], end: float) -> None:
    for unit in units:
        # EKS' kubelet Requires=containerd: systemd stops it along, and a restart after a failed start leaves it down.
        if host.systemd.status(unit).active != "active":
            host.systemd.start(unit, timeout=max(1.0, end - time.monotonic()))


def running_containers(host: Host, found: Daemon) -> frozenset[str]:
    """The ids of the containers that run."""
    return frozenset(container.id for container in cri(host, found.socket).containers() if not container.exited)


def _require_same_configuration(found: Daemon, settings: UnitSettings) -> None:
    command = settings.start_command
    if not command or command[0].rpartition("/")[2] != "containerd":
        return  # k3s and the like start containerd themselves
    started_with = config_argument(command)
    if started_with is not None and "$" not in started_with and started_with != found.config_path:
        raise RefusedError(
            f"containerd runs with {found.config_path}, but {found.unit} would start it with {started_with}.",
            remedy=f"Restart {found.unit} yourself first, or correct {settings.files[-1]}.",
        )


def _ready_pods(host: Host, found: Daemon) -> int:
    return sum(sandbox.ready for sandbox in cri(host, found.socket).sandboxes())


def _file_that_sets(host: Host, settings: UnitSettings, name: str) -> str:
    for file in reversed(settings.files):
        text = (host.files.read_optional(file) or b"").decode(errors="replace")
        if any(line.strip().startswith(f"{name}=") for line in text.splitlines()):
            return file
    return f"systemd's default, set in none of {', '.join(settings.files)}"


def _recent(host: Host) -> list[float]:
    try:
        spent = json.loads(host.files.read_optional(_SPENT) or b"[]")
        return [float(at) for at in spent if 0 <= _now() - at < HOUR_S]
    except (TypeError, ValueError):
        return []  # damaged: it only counts


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)  # setting the node's time must not grant restarts, nor deny them


def _over_budget(per_hour: int) -> FloxNodeError:
    return RestartBudgetError(f"containerd was restarted {per_hour} times by flox-node within the last hour.")
