"""The node's systemd over its system bus: no systemctl, which refuses to serve a foreign PID namespace."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from flox_node.errors import OutsideError
from flox_node.host.files import HostFiles

if TYPE_CHECKING:
    from jeepney.io.blocking import DBusConnection

BUS_SOCKET = "/run/dbus/system_bus_socket"
_NAME = "org.freedesktop.systemd1"
_MANAGER_PATH = "/org/freedesktop/systemd1"
_MANAGER = "org.freedesktop.systemd1.Manager"
_CALL_TIMEOUT_S = 10.0
_RELOAD_TIMEOUT_S = 60.0  # it runs every generator of the node


@dataclass(frozen=True)
class UnitStatus:
    """What systemd says of a unit."""

    active: str
    sub: str


@dataclass(frozen=True)
class UnitSettings:
    """How a service unit is set up: what decides whether restarting it is safe.

    `start_command` is the argv of the first ExecStart; `files` the unit's file and its drop-ins, the last one winning.
    """

    kill_mode: str
    stale: bool  # its files changed since systemd read them: a restart may not do what they say
    manual_restart: bool
    start_command: tuple[str, ...]
    files: tuple[str, ...]


class Systemd(Protocol):
    """The service manager of a node."""

    def status(self, unit: str) -> UnitStatus:
        """What systemd says of `unit`."""
        ...

    def restart(self, unit: str, *, timeout: float) -> None:
        """Restart `unit` and wait for the job's result."""
        ...

    def start(self, unit: str, *, timeout: float) -> None:
        """Start `unit` and wait for the job's result."""
        ...

    def stop(self, unit: str, *, timeout: float) -> None:
        """Stop `unit`, if systemd knows it, and wait for the job's result."""
        ...

    def bound_units(self, unit: str) -> list[str]:
        """The units that systemd stops along with `unit` (RequiredBy, BoundBy, ConsistsOf), such as EKS' kubelet."""
        ...

    def settings(self, unit: str) -> UnitSettings:
        """How `unit` is set up."""
        ...

    def reload(self) -> None:
        """Have systemd read its unit files anew."""
        ...

    def run_later(self, name: str, delay_s: float, argv: Sequence[str], description: str) -> None:
        """Run a program of the node `delay_s` seconds from now, as `<name>.service` started by `<name>.timer`.

        Both live in systemd's memory until a boot. The clock is monotonic: setting the time moves nothing. A program
        that fails is run again. What ran under this name before is replaced.
        """
        ...


class StoppedSystemd:
    """The service manager of an image: it reads the units, and starts those that are enabled, when a node boots."""

    def status(self, unit: str) -> UnitStatus:
        """See Systemd: nothing runs."""
        return UnitStatus("inactive", "dead")

    def restart(self, unit: str, *, timeout: float) -> None:
        """See Systemd: what runs at the boot runs anew."""

    def start(self, unit: str, *, timeout: float) -> None:
        """See Systemd: the boot does."""

    def stop(self, unit: str, *, timeout: float) -> None:
        """See Systemd: nothing runs."""

    def bound_units(self, unit: str) -> list[str]:
        """See Systemd: nothing runs that could be bound."""
        return []

    def settings(self, unit: str) -> UnitSettings:
        """Raises OutsideError: nobody has read the units."""
        raise OutsideError(f"In an image, nobody knows how {unit} is set up.")

    def reload(self) -> None:
        """See Systemd: the boot reads all."""

    def run_later(self, name: str, delay_s: float, argv: Sequence[str], description: str) -> None:
        """Raises OutsideError: there is no later in an image."""
        raise OutsideError(f"In an image, {argv[0]} cannot be run later.")


class DbusSystemd:
    """systemd over D-Bus. A connection lives for one call: the bus itself may be restarted between two."""

    def __init__(self, files: HostFiles) -> None:
        self._files = files

    def status(self, unit: str) -> UnitStatus:
        """See `Systemd.status`.

        Raises:
            OutsideError: no bus, or no such unit.
        """
        with self._bus() as bus:
            path = _call(bus, "LoadUnit", "s", unit)[0]
            return UnitStatus(
                active=_property(bus, path, f"{_NAME}.Unit", "ActiveState"),
                sub=_property(bus, path, f"{_NAME}.Unit", "SubState"),
            )

    def restart(self, unit: str, *, timeout: float) -> None:
        """See `Systemd.restart`.

        The start limit is reset first: systemd refuses the sixth restart within ten seconds, and the unit stays down.

        Raises:
            OutsideError: the job failed or did not end within `timeout` seconds.
        """
        with self._bus() as bus:
            _call(bus, "ResetFailedUnit", "s", unit, tolerate="NoSuchUnit")
            _job(bus, "RestartUnit", unit, timeout)

    def start(self, unit: str, *, timeout: float) -> None:
        """See `Systemd.start`.

        Raises:
            OutsideError: the job failed or did not end within `timeout` seconds.
        """
        with self._bus() as bus:
            _call(bus, "ResetFailedUnit", "s", unit, tolerate="NoSuchUnit")
            _job(bus, "StartUnit", unit, timeout)

    def stop(self, unit: str, *, timeout: float) -> None:
        """See `Systemd.stop`.

        Raises:
            OutsideError: the job failed or did not end within `timeout` seconds.
        """
        with self._bus() as bus:
            _job(bus, "StopUnit", unit, timeout, tolerate="NoSuchUnit")

    def settings(self, unit: str) -> UnitSettings:
        """See `Systemd.settings`.

        Raises:
            OutsideError: no bus, or no such service unit.
        """
        with self._bus() as bus:
            # NeedDaemonReload goes by systemd's cache of unit folders, which does not know a folder made since
            # (containerd.service.d). Asking for a name that it never heard of makes it look again.
            _call(bus, "LoadUnit", "s", f"flox-node-{uuid.uuid4().hex}.service")
            path = _call(bus, "LoadUnit", "s", unit)[0]

            def of_unit(name: str) -> Any:
                return _property(bus, path, f"{_NAME}.Unit", name)

            commands = _property(bus, path, f"{_NAME}.Service", "ExecStart")
            return UnitSettings(
                kill_mode=_property(bus, path, f"{_NAME}.Service", "KillMode"),
                stale=of_unit("NeedDaemonReload"),
                manual_restart=not of_unit("RefuseManualStart") and not of_unit("RefuseManualStop"),
                start_command=tuple(commands[0][1]) if commands else (),
                files=tuple(file for file in (of_unit("FragmentPath"), *of_unit("DropInPaths")) if file),
            )

    def reload(self) -> None:
        """See `Systemd.reload`.

        Raises:
            OutsideError: no bus, or systemd cannot read its units.
        """
        with self._bus() as bus:
            _call(bus, "Reload", "", timeout=_RELOAD_TIMEOUT_S)

    def run_later(self, name: str, delay_s: float, argv: Sequence[str], description: str) -> None:
        """See `Systemd.run_later`.

        Raises:
            OutsideError: no bus, or systemd refuses the unit.
        """
        timer, service = f"{name}.timer", f"{name}.service"
        with self._bus() as bus:
            for unit in (timer, service):
                _job(bus, "StopUnit", unit, _CALL_TIMEOUT_S, tolerate="NoSuchUnit")
                _call(bus, "ResetFailedUnit", "s", unit, tolerate="NoSuchUnit")
            when = [
                ("Description", ("s", description)),
                ("TimersMonotonic", ("a(st)", [("OnActiveSec", int(delay_s * 1e6))])),
                ("AccuracyUSec", ("t", 100_000)),
                ("RemainAfterElapse", ("b", False)),
            ]
            what = [
                ("Description", ("s", description)),
                ("Type", ("s", "simple")),  # before systemd 244 a oneshot is not restarted
                ("ExecStart", ("a(sasb)", [(argv[0], list(argv), False)])),
                ("Restart", ("s", "on-failure")),
                ("RestartUSec", ("t", 2_000_000)),
                ("StartLimitIntervalUSec", ("t", 0)),  # again and again: giving up would leave the node half done
                ("CollectMode", ("s", "inactive-or-failed")),
            ]
            _call(bus, "StartTransientUnit", "ssa(sv)a(sa(sv))", timer, "replace", when, [(service, what)])

    def run_now(
        self, unit: str, argv: Sequence[str], description: str, *, slice: str, memory: int, seconds: float
    ) -> None:
        """Run a program of the node as the transient service `unit`, which takes second place to what else runs.

        `memory` is its limit in bytes, `seconds` that of its life. Nothing of it stays once it ended.

        Raises:
            OutsideError: no bus, or systemd refuses the unit; a unit of this name that runs is a reason.
        """
        properties = [
            ("Description", ("s", description)),
            ("Slice", ("s", slice)),
            ("ExecStart", ("a(sasb)", [(argv[0], list(argv), False)])),
            ("CollectMode", ("s", "inactive-or-failed")),
            ("RuntimeMaxUSec", ("t", int(seconds * 1e6))),
            ("MemoryMax", ("t", memory)),
            ("TasksMax", ("t", 4096)),
            ("CPUWeight", ("t", 50)),
            ("IOWeight", ("t", 50)),
            ("OOMScoreAdjust", ("i", 500)),
            ("UMask", ("u", 0o022)),
        ]
        with self._bus() as bus:
            _call(bus, "StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", properties, [])

    def bound_units(self, unit: str) -> list[str]:
        """See `Systemd.bound_units`."""
        with self._bus() as bus:
            path = _call(bus, "LoadUnit", "s", unit)[0]
            names: set[str] = set()
            for name in ("RequiredBy", "BoundBy", "ConsistsOf"):
                names.update(_property(bus, path, f"{_NAME}.Unit", name))
            return sorted(names)

    @contextlib.contextmanager
    def _bus(self) -> Iterator[DBusConnection]:
        from jeepney.io.blocking import open_dbus_connection  # slow import, and most commands never talk to systemd

        address = f"unix:path={self._files.real(BUS_SOCKET)}"
        try:
            connection = open_dbus_connection(bus=address, auth_timeout=_CALL_TIMEOUT_S)
        except (OSError, TimeoutError) as error:
            raise OutsideError(
                f"The node's system bus ({BUS_SOCKET}) does not answer: {error}.",
                remedy="Check `systemctl status dbus` on the node.",
            ) from error
        with contextlib.closing(connection):
            yield connection


def _call(
    bus: DBusConnection,
    method: str,
    signature: str,
    *arguments: object,
    tolerate: str = "",
    timeout: float = _CALL_TIMEOUT_S,
) -> tuple[Any, ...]:
    from jeepney import DBusAddress, MessageType, new_method_call

    address = DBusAddress(_MANAGER_PATH, bus_name=_NAME, interface=_MANAGER)
    try:
        reply = bus.send_and_get_reply(new_method_call(address, method, signature or None, arguments), timeout=timeout)
    except (OSError, TimeoutError) as error:
        raise OutsideError(f"systemd did not answer {method}: {error or type(error).__name__}.") from error
    if reply.header.message_type is MessageType.error:
        from jeepney import HeaderFields

        name = reply.header.fields.get(HeaderFields.error_name, "")
        if tolerate and name.endswith(tolerate):
            return ()
        text = reply.body[0] if reply.body else name
        raise OutsideError(f"systemd refused {method} {' '.join(map(str, arguments))}: {text}")
    return reply.body  # type: ignore[no-any-return]


def _property(bus: DBusConnection, path: str, interface: str, name: str) -> Any:
    from jeepney import DBusAddress, MessageType, Properties

    address = DBusAddress(path, bus_name=_NAME, interface=interface)
    try:
        reply = bus.send_and_get_reply(Properties(address).get(name), timeout=_CALL_TIMEOUT_S)
    except (OSError, TimeoutError) as error:
        raise OutsideError(f"systemd does not tell {name}: {error or type(error).__name__}.") from error
    if reply.header.message_type is MessageType.error:
        raise OutsideError(f"systemd does not tell {name} of {path}: {reply.body}")
    return reply.body[0][1]


def _job(bus: DBusConnection, method: str, unit: str, timeout: float, *, tolerate: str = "") -> None:
    """Queue a job for a unit and wait, all in all `timeout` seconds, for what becomes of it.

    systemd sends JobRemoved only to subscribed clients, and the bus routes it only to those with a match rule.
    """
    from jeepney import MatchRule, message_bus

    rule = MatchRule(type="signal", interface=_MANAGER, member="JobRemoved", path=_MANAGER_PATH)
    end = time.monotonic() + timeout
    try:
        bus.send_and_get_reply(message_bus.AddMatch(rule), timeout=_CALL_TIMEOUT_S)
        _call(bus, "Subscribe", "", tolerate="AlreadySubscribed")
        with bus.filter(rule, bufsize=1024) as removed:
            answer = _call(bus, method, "ss", unit, "replace", tolerate=tolerate)
            while answer:
                signal = bus.recv_until_filtered(removed, timeout=max(0.0, end - time.monotonic()))
                if signal.body[1] == answer[0]:
                    result = signal.body[3]
                    break
            else:
                return
    except TimeoutError as error:
        raise OutsideError(f"systemd did not end {method} of {unit} within {timeout:.0f} s.") from error
    except OSError as error:
        raise OutsideError(f"The node's system bus went away during {method} of {unit}: {error}.") from error
    if result != "done":
        failed = _failed_needs(bus, unit) if result == "dependency" else []
        because = f", because {' and '.join(failed)} failed, which it requires" if failed else ""
        raise OutsideError(
            f"systemd could not carry out {method} of {unit}: {result}{because}.",
            remedy=f"See `journalctl -u {(failed or [unit])[0]}` on the node.",
        )


def _failed_needs(bus: DBusConnection, unit: str) -> list[str]:
    """What a unit requires and what failed; with EKS' FastImagePull containerd requires its snapshotter."""
    needs: set[str] = set()
    path = _call(bus, "LoadUnit", "s", unit)[0]
    for kind in ("Requires", "Requisite", "BindsTo"):
        needs.update(_property(bus, path, f"{_NAME}.Unit", kind))
    paths = {need: _call(bus, "LoadUnit", "s", need)[0] for need in sorted(needs)}
    return [need for need, at in paths.items() if _property(bus, at, f"{_NAME}.Unit", "ActiveState") == "failed"]
