"""EKS on Amazon Linux 2023: nodeadm writes the configuration anew at every boot, out of user data and of fragments.

nodeadm picks its template by looking for plugin ids in the text that users gave it: with ids of schema 3 it takes that
schema as it is, and what stands under an id of schema 2 is dead text then. So ours follows the others'.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from flox_node.containerd.config import block, schema
from flox_node.containerd.config.document import Path
from flox_node.containerd.config.edit import Edit, SourceEdit
from flox_node.containerd.config.editor import Handler, inherited_table, table_for
from flox_node.containerd.config.effective import Effective, Reader, load
from flox_node.containerd.config.registration.base import changed, known, require_cri
from flox_node.containerd.config.registration.plain import Plain
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError

FRAGMENTS = "/etc/eks/nodeadm.d"
FRAGMENT = f"{FRAGMENTS}/50-flox-node.yaml"
USER_DATA = "/run/eks/nodeadm/config.json"
"""What nodeadm-config.service found in the instance's user data at this boot."""


@known
@dataclass(frozen=True)
class NodeConfig:
    """`fragment` for the boots to come, and `config` itself for now.

    An image older than October 2025 has no folder of fragments, and making one would not have it read: there the
    configuration has to be registered again after each boot.
    """

    kind: ClassVar[str] = "nodeadm"

    config: str
    fragment: str = FRAGMENT

    def edits(self, reader: Reader, version: ContainerdVersion, handler: Handler, *, adopt: bool) -> tuple[Edit, ...]:
        """See Registration."""
        effective = load(self.config, reader, version)
        require_cri(effective)
        others = list(self._others(reader))
        foreign = re.compile(rf"""runtimes\s*\.\s*["']?{re.escape(handler.name)}["']?\s*[\].]""")
        for path, text in others:
            if foreign.search(text):
                raise RefusedError(
                    f'{path}: a handler "{handler.name}" that is not ours is registered already.',
                    remedy="Take it out of the node group's user data or of that file: nodeadm would mix the two.",
                )
        text = self._text(effective, handler, _plugin([text for _, text in others], version))
        source = SourceEdit(self.fragment, reader.read_optional(self.fragment), text.encode())
        fragments = (source,) if self._is_read(reader) else ()
        live = () if _is_served(effective, handler) else Plain(self.config).edits(reader, version, handler, adopt=adopt)
        return changed((*fragments, *live))

    def withdrawals(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> tuple[Edit, ...]:
        """See Registration."""
        live = Plain(self.config).withdrawals(reader, version, handler)
        return changed((SourceEdit(self.fragment, reader.read_optional(self.fragment), None), *live))

    def _is_read(self, reader: Reader) -> bool:
        folder = posixpath.dirname(self.fragment)
        return posixpath.basename(folder) in reader.listdir(posixpath.dirname(folder))

    def _others(self, reader: Reader) -> Iterator[tuple[str, str]]:
        folder = posixpath.dirname(self.fragment)
        for name in reader.listdir(folder):
            path = posixpath.join(folder, name)
            if path != self.fragment and name.lower().endswith((".yaml", ".yml", ".json")):
                yield path, (reader.read_optional(path) or b"").decode(errors="replace").replace('\\"', '"')
        try:
            spec = json.loads(reader.read_optional(USER_DATA) or b"{}").get("spec", {})
            yield USER_DATA, str(spec.get("containerd", {}).get("config", ""))
        except (ValueError, AttributeError):
            return

    def _text(self, effective: Effective, handler: Handler, plugin: str) -> str:
        assert effective.cri is not None, "edits() checked it"
        _, parent = inherited_table(effective.cri, handler.name)
        # A migrated configuration spells every default out; only what says something is worth to be said again.
        path: Path = ("plugins", plugin, "containerd", "runtimes", handler.name)
        tables = {path: table_for(handler, _meaning(parent))}
        lines = block.tables_text(tables, "\n").splitlines()
        return (
            "# flox-node: this file is written and removed by flox-node.\n"
            "apiVersion: node.eks.aws/v1alpha1\n"
            "kind: NodeConfig\n"
            "spec:\n"
            "  containerd:\n"
            "    config: |\n" + "".join(f"      {line}\n" for line in lines)
        )


def _plugin(others: list[str], version: ContainerdVersion) -> str:
    """The id that nodeadm makes something of, beside what others wrote."""
    if version.major == 1:
        return schema.CRI_GRPC
    text = "\n".join(others)
    has_new_id = schema.CRI_RUNTIME in text or schema.CRI_IMAGES in text
    return schema.CRI_GRPC if schema.CRI_GRPC in text and not has_new_id else schema.CRI_RUNTIME


def _is_served(effective: Effective, handler: Handler) -> bool:
    """Whether nodeadm has put the handler into the configuration already, in whatever spelling."""
    assert effective.cri is not None, "edits() checked it"
    here = effective.cri.runtimes.get(handler.name)
    if here is None:
        return False
    _, parent = inherited_table(effective.cri, handler.name)
    return bool(_meaning(here) == _meaning(table_for(handler, parent)))


def _meaning(value: Any) -> Any:
    """A table without what is empty or false."""
    if not isinstance(value, dict):
        return value
    cleaned = {name: _meaning(item) for name, item in value.items()}
    return {name: item for name, item in cleaned.items() if item not in ("", [], {}, False, 0, None)}
