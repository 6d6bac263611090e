"""The errors of flox-node: one small tree, each with a cause and a remedy.

    FloxNodeError            1  a bug of ours
    ├── UsageError           2  the call is wrong
    ├── RefusedError         3  unsupported or unsafe; nothing was written
    ├── RolledBackError      4  failed, and what was done is undone
    ├── BusyError            5  another run holds the lock
    ├── InUseError           6  Flox pods run here
    ├── DriftError           7  the node is not what the receipt says
    ├── CorruptError         8  a payload or our state is damaged
    └── OutsideError         9  the network, a hub, containerd or the API server failed

The number is the exit code of the command; `code` is the same as a stable string for `--json`.
"""

from __future__ import annotations

from typing import ClassVar


class FloxNodeError(Exception):
    """Something failed. `cause` says what and why, `remedy` what to do now (a command where there is one).

    `action` is the key of the step of an install or an uninstall that failed, where it was one.
    """

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "bug"
    default_remedy: ClassVar[str] = "This is a bug of flox-node: please report it with the output of this command."

    def __init__(self, cause: str, *, remedy: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.remedy = remedy or self.default_remedy
        self.action = ""

    def as_dict(self) -> dict[str, object]:
        """The error as `--json` prints it."""
        body = {"error": self.code, "exit_code": self.exit_code, "cause": self.cause, "remedy": self.remedy}
        return {**body, "action": self.action} if self.action else body


class UsageError(FloxNodeError):
    """The command was called wrongly."""

    exit_code = 2
    code = "usage"
    default_remedy = "See --help of this command."


class RefusedError(FloxNodeError):
    """Unsupported or unsafe here; nothing was written."""

    exit_code = 3
    code = "refused"
    default_remedy = "Nothing was changed."


class RolledBackError(FloxNodeError):
    """A step failed and what had been done was undone."""

    exit_code = 4
    code = "rolled-back"
    default_remedy = "The node is as before. See `journalctl -u containerd` for the reason, then run the command again."


class BusyError(FloxNodeError):
    """Another run of flox-node holds the lock."""

    exit_code = 5
    code = "busy"
    default_remedy = "Wait for the other run to end, then run the command again."


class InUseError(FloxNodeError):
    """Flox pods run on this node."""

    exit_code = 6
    code = "in-use"
    default_remedy = "Drain the pods with runtimeClassName flox first (kubectl drain), or use --force."


class DriftError(FloxNodeError):
    """The node is not what the receipt says."""

    exit_code = 7
    code = "drift"
    default_remedy = "`flox-node plan` shows the difference, `flox-node install` repairs it."


class CorruptError(FloxNodeError):
    """A payload or our own state is damaged."""

    exit_code = 8
    code = "corrupt"
    default_remedy = "Fetch the payload again; `flox-node payload verify PATH` tells what is damaged."


class OutsideError(FloxNodeError):
    """The network, a hub, containerd or the API server failed."""

    exit_code = 9
    code = "outside"
    default_remedy = "Try again when it answers."
