"""The payload: what one version of flox-node puts on a node. Built, inspected, verified and placed here."""

from flox_node.payload.archive import open_payload
from flox_node.payload.manifest import Manifest, PayloadFile, StorePath
from flox_node.payload.source import Payload

__all__ = ["Manifest", "Payload", "PayloadFile", "StorePath", "open_payload"]
