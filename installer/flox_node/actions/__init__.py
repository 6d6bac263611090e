"""What flox-node does to a node: one module per kind of action, each with inspect, execute, revert and describe."""

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
