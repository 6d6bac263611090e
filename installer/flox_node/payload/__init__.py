"""The payload: what one version of flox-node puts on a node. Built, inspected, verified and placed here."""

from flox_node.payload.archive import open_payload
from flox_node.payload.manifest import Manifest, PayloadFile, StorePath
from flox_node.payload.place import Placed, Survey, changed_files, damaged, place, survey, unplace
from flox_node.payload.source import Payload
from flox_node.payload.verify import verify

__all__ = [
    "Manifest",
    "Payload",
    "PayloadFile",
    "Placed",
    "StorePath",
    "Survey",
    "changed_files",
    "damaged",
    "open_payload",
    "place",
    "survey",
    "unplace",
    "verify",
]
