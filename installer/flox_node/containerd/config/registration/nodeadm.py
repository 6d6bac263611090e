"""EKS on Amazon Linux 2023: nodeadm writes the configuration anew at every boot, out of user data and of fragments.

nodeadm picks its template by looking for plugin ids in the text that users gave it: with ids of schema 3 it takes that
schema as it is, and what stands under an id of schema 2 is dead text then. So ours follows the others'.

nodeadm-config.service reads the user data alone and keeps what it read in a cache. nodeadm-run.service then reads the
fragments too, and where that says more than the cache, it configures again *and saves the merged result over the
cache*: from the first boot with our fragment on, the cache holds our own handler.
"""

from __future__ import annotations

import json
import posixpath
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from flox_node.containerd.config import block, schema
from flox_node.containerd.config.document import Path
from flox_node.containerd.config.edit import Edit, SourceEdit
from flox_node.containerd.config.editor import Handler, inherited_table, is_our_binary, table_for
from flox_node.containerd.config.effective import Effective, Reader, load
from flox_node.containerd.config.ours import HEAD
from flox_node.containerd.config.placement import require_cri
from flox_node.containerd.config.registration.base import NextStart, changed, known
from flox_node.containerd.config.registration.plain import Plain
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError

FRAGMENTS = "/etc/eks/nodeadm.d"
FRAGMENT = f"{FRAGMENTS}/50-flox-node.yaml"
CACHE = "/run/eks/nodeadm/config.json"
"""What nodeadm found at this boot: in the user data alone, or in them and in all fragments (see the top)."""
_TEMPLATES_RUNTIME = {
    "runtime_type": schema.RUNC_V2,
    "base_runtime_spec": "/etc/containerd/base-runtime-spec.json",
    "options": {"SystemdCgroup": True},
}
"""The default runtime of all of nodeadm's templates, but for its BinaryName: runc's, or NVIDIA's.

https://github.com/awslabs/amazon-eks-ami/tree/main/nodeadm/internal/containerd
"""
_OUR_KEYS = {"runtime_type", "pod_annotations", "container_annotations", "base_runtime_spec", "options"}


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
        assert effective.cri is not None, "require_cri checked it"
        _, parent = inherited_table(effective.cri, handler.name)
        text = _fragment(parent, handler, _plugin(self._others(reader, handler), version))
        source = self._source(reader, text)
        fragments = (source,) if self._is_read(reader) else ()
        live = () if _is_served(effective, handler) else Plain(self.config).edits(reader, version, handler, adopt=adopt)
        return changed((*fragments, *live))

    def baked(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> tuple[Edit, ...]:
        """The fragment in an image, where nodeadm has written no configuration yet: see Registration.edits.

        Raises:
            RefusedError: the image's nodeadm reads no fragments, or one of them registers another handler of that name.
        """
        if not self._is_read(reader):
            raise RefusedError(
                f"This image has no {posixpath.dirname(self.fragment)}: its nodeadm reads no fragments.",
                remedy="Start from an EKS-optimised image of October 2025 or newer.",
            )
        text = _fragment(_TEMPLATES_RUNTIME, handler, _plugin(self._others(reader, handler), version))
        return changed((self._source(reader, text),))

    def withdrawals(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> tuple[Edit, ...]:
        """See Registration."""
        live = Plain(self.config).withdrawals(reader, version, handler)
        here = reader.read_optional(self.fragment)
        is_ours = here is not None and here.startswith(HEAD)
        return changed((*([SourceEdit(self.fragment, here, None)] if is_ours else []), *live))

    def next_start(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> NextStart:
        """See Registration."""
        return NextStart()

    def _source(self, reader: Reader, text: bytes) -> SourceEdit:
        here = reader.read_optional(self.fragment)
        if here is not None and not here.startswith(HEAD):
            raise RefusedError(
                f"{self.fragment} is flox-node's to write, and somebody else's file is there.",
                remedy="Give that file another name.",
            )
        return SourceEdit(self.fragment, here, text)

    def _is_read(self, reader: Reader) -> bool:
        folder = posixpath.dirname(self.fragment)
        return posixpath.basename(folder) in reader.listdir(posixpath.dirname(folder))

    def _others(self, reader: Reader, handler: Handler) -> list[str]:
        """What the other sources say about containerd, without what is ours in them.

        Raises:
            RefusedError: one of them registers a handler of that name that is not ours.
        """
        said = []
        for path, text in self._sources(reader):
            rest, foreign = _merged(text, handler) if path == CACHE else (text, _is_foreign(text, handler))
            if foreign:
                raise RefusedError(
                    f'{path}: a handler "{handler.name}" that is not ours is registered already.',
                    remedy="Take it out of the node group's user data or of that file: nodeadm would mix the two.",
                )
            said.append(rest)
        return said

    def _sources(self, reader: Reader) -> Iterator[tuple[str, str]]:
        folder = posixpath.dirname(self.fragment)
        for name in reader.listdir(folder):
            path = posixpath.join(folder, name)
            if path != self.fragment and name.lower().endswith((".yaml", ".yml", ".json")):
                yield path, (reader.read_optional(path) or b"").decode(errors="replace").replace('\\"', '"')
        try:
            spec = json.loads(reader.read_optional(CACHE) or b"{}").get("spec", {})
            yield CACHE, str(spec.get("containerd", {}).get("config", ""))
        except (ValueError, AttributeError):
            return


def fragment(handler: Handler, version: ContainerdVersion) -> bytes:
    """The NodeConfig that registers the handler beside nodeadm's own templates, where no other source says anything."""
    return _fragment(_TEMPLATES_RUNTIME, handler, _plugin([], version))


def _fragment(parent: Mapping[str, Any], handler: Handler, plugin: str) -> bytes:
    """The NodeConfig that registers the handler under this plugin id, with what it inherits from `parent`."""
    path: Path = ("plugins", plugin, "containerd", "runtimes", handler.name)
    # A migrated configuration spells every default out; only what says something is worth to be said again.
    tables = {path: table_for(handler, schema.meaning(parent))}
    lines = block.tables_text(tables, "\n").splitlines()
    text = (
        "# flox-node: this file is written and removed by flox-node.\n"
        "apiVersion: node.eks.aws/v1alpha1\n"
        "kind: NodeConfig\n"
        "spec:\n"
        "  containerd:\n"
        "    config: |\n" + "".join(f"      {line}\n" for line in lines)
    )
    return text.encode()


def _plugin(others: list[str], version: ContainerdVersion) -> str:
    """The id that nodeadm makes something of, beside what others wrote."""
    if version.major == 1:
        return schema.CRI_GRPC
    text = "\n".join(others)
    has_new_id = schema.CRI_RUNTIME in text or schema.CRI_IMAGES in text
    return schema.CRI_GRPC if schema.CRI_GRPC in text and not has_new_id else schema.CRI_RUNTIME


def _merged(text: str, handler: Handler) -> tuple[str, bool]:
    """What others say in nodeadm's merged text, for its plugin ids, and whether a foreign handler is in it."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return text, _is_foreign(text, handler)
    plugins = schema.table(data, "plugins")
    foreign = False
    for plugin in list(plugins):
        runtimes = schema.table(plugins, plugin, "containerd", "runtimes")
        if handler.name in runtimes:
            foreign = foreign or not _is_ours(runtimes.pop(handler.name), handler)
            if not schema.meaning(plugins[plugin]):
                del plugins[plugin]
    return json.dumps(data, default=str), foreign


def _is_ours(table: object, handler: Handler) -> bool:
    """Whether this is our table and nothing that another source mixed into it."""
    if not isinstance(table, dict) or not isinstance(table.get("options"), dict):
        return False
    return is_our_binary(table["options"].get("BinaryName"), handler) and set(schema.meaning(table)) <= _OUR_KEYS


def _is_foreign(text: str, handler: Handler) -> bool:
    """Whether a file in YAML or JSON registers a handler of our name that does not lead to our shim."""
    found = re.search(rf"""runtimes\s*\.\s*["']?{re.escape(handler.name)}["']?\s*[\].]""", text)
    if found is None:
        return False
    table = text[found.end() :]
    binary = re.search(r"""BinaryName\s*=\s*["']([^"']+)["']""", table)
    path = re.search(r"""runtime_path\s*=\s*["'][^"']""", table)
    return binary is None or path is not None or not is_our_binary(binary[1], handler)


def _is_served(effective: Effective, handler: Handler) -> bool:
    """Whether nodeadm has put the handler into the configuration already, in whatever spelling."""
    assert effective.cri is not None, "edits() checked it"
    here = effective.cri.runtimes.get(handler.name)
    if here is None:
        return False
    _, parent = inherited_table(effective.cri, handler.name)
    return schema.meaning(here) == schema.meaning(table_for(handler, parent))
