"""What flox-node does to a node: one module per kind of action.

An action is a frozen dataclass; its fields are what the receipt holds of it. A new one is a module like this and a line
in `plan.planner`; drift, the agent's watch, a repair's SELinux types and the undo find out from it what they need:

    from collections.abc import Iterable
    from dataclasses import dataclass
    from typing import ClassVar

    from flox_node.actions.base import Action, Before, Gap, Owned, Progress, register
    from flox_node.host import Host

    PATH = "/etc/motd.d/flox-node"

    @register
    @dataclass(frozen=True)
    class Announce(Action[Gap]):
        kind: ClassVar[str] = "announce"

        text: str

        def describe(self) -> str:
            return f"say {self.text!r} to whoever logs in"

        def inspect(self, host: Host) -> Gap | None:
            is_there = host.files.read_optional(PATH) == self.text.encode()
            return None if is_there else Gap(f"{PATH} does not say it", (PATH,))

        def execute(self, host: Host, gap: Gap, progress: Progress) -> None:
            host.files.write_atomic(PATH, self.text.encode())

        def revert(self, host: Host, before: Before, progress: Progress, *, purge: bool) -> None:
            host.files.remove(PATH)

        def owns(self, host: Host, before: Before) -> Iterable[Owned]:
            yield Owned(PATH)
"""

from flox_node.actions.base import (
    Action,
    Before,
    Gap,
    Kept,
    Owned,
    Progress,
    action_from_json,
    action_to_json,
    register,
)
from flox_node.actions.create_directory import CreateDirectory
from flox_node.actions.import_image import ImportImage
from flox_node.actions.install_units import InstallUnits
from flox_node.actions.mount_nix import MountNix
from flox_node.actions.place_payload import PlacePayload
from flox_node.actions.register_handler import RegisterHandler
from flox_node.actions.switch_payload import SwitchPayload
from flox_node.actions.write_policy import WritePolicy

__all__ = [
    "Action",
    "Before",
    "CreateDirectory",
    "Gap",
    "ImportImage",
    "InstallUnits",
    "Kept",
    "MountNix",
    "Owned",
    "PlacePayload",
    "Progress",
    "RegisterHandler",
    "SwitchPayload",
    "WritePolicy",
    "action_from_json",
    "action_to_json",
    "register",
]
