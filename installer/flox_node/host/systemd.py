"""The node's systemd over its system bus: no systemctl, which refuses to serve a foreign PID namespace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
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


@dataclass(frozen=True)
class UnitStatus:
    """What systemd says of a unit. `main_pid` is 0 when it has none."""

    active: str
    sub: str
    main_pid: int


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

    def bound_units(self, unit: str) -> list[str]:
        """The units that systemd stops along with `unit` (RequiredBy, BoundBy, ConsistsOf), such as EKS' kubelet."""
        ...


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
                main_pid=_property(bus, path, f"{_NAME}.Service", "MainPID"),
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


def _call(bus: DBusConnection, method: str, signature: str, *arguments: object, tolerate: str = "") -> tuple[Any, ...]:
    from jeepney import DBusAddress, MessageType, new_method_call

    address = DBusAddress(_MANAGER_PATH, bus_name=_NAME, interface=_MANAGER)
    reply = bus.send_and_get_reply(
        new_method_call(address, method, signature or None, arguments), timeout=_CALL_TIMEOUT_S
    )
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
    reply = bus.send_and_get_reply(Properties(address).get(name), timeout=_CALL_TIMEOUT_S)
    if reply.header.message_type is MessageType.error:
        raise OutsideError(f"systemd does not tell {name} of {path}: {reply.body}")
    return reply.body[0][1]


def _job(bus: DBusConnection, method: str, unit: str, timeout: float) -> None:
    """Queue a job for a unit and wait for what becomes of it.

    systemd sends JobRemoved only to subscribed clients, and the bus routes it only to those with a match rule.
    """
    from jeepney import MatchRule, message_bus

    rule = MatchRule(type="signal", interface=_MANAGER, member="JobRemoved", path=_MANAGER_PATH)
    bus.send_and_get_reply(message_bus.AddMatch(rule), timeout=_CALL_TIMEOUT_S)
    _call(bus, "Subscribe", "")
    with bus.filter(rule, bufsize=1024) as removed:
        job = _call(bus, method, "ss", unit, "replace")[0]
        while True:
            try:
                signal = bus.recv_until_filtered(removed, timeout=timeout)
            except TimeoutError as error:
                raise OutsideError(f"systemd did not end {method} of {unit} within {timeout:.0f} s.") from error
            if signal.body[1] == job:
                break
    if signal.body[3] != "done":
        raise OutsideError(
            f"systemd could not carry out {method} of {unit}: {signal.body[3]}.",
            remedy=f"See `journalctl -u {unit}` on the node.",
        )
