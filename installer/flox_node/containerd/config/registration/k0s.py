"""k0s: files in /etc/k0s/containerd.d, which the root imports (containerd 2) or k0s merges into one (containerd 1)."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import ClassVar

from flox_node.containerd.config import placement, schema
from flox_node.containerd.config.document import parse
from flox_node.containerd.config.edit import Edit, SourceEdit
from flox_node.containerd.config.editor import Handler, is_our_binary, strip
from flox_node.containerd.config.effective import Reader, load
from flox_node.containerd.config.ours import is_ours_alone, without_head, without_us
from flox_node.containerd.config.registration.base import NextStart, changed, known
from flox_node.containerd.config.registration.plain import Plain
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError


@known
@dataclass(frozen=True)
class K0s:
    """Our own file in `folder`. k0s notices it by itself and starts containerd again."""

    kind: ClassVar[str] = "k0s"

    config: str
    folder: str

    @property
    def _own(self) -> str:
        return posixpath.join(self.folder, placement.DROP_IN)

    def edits(self, reader: Reader, version: ContainerdVersion, handler: Handler, *, adopt: bool) -> tuple[Edit, ...]:
        """See Registration."""
        effective = load(self.config, reader, version)
        bare = without_us(effective, handler)
        placement.require_cri(bare)
        if version.merges_deeply:
            if placement.drop_in_path(effective) != self._own:
                raise RefusedError(
                    f"{self.config} does not import {self.folder}, where a handler would outlive k0s' next start.",
                    remedy="Update k0s, or manage that file yourself (take `# k0s_managed=true` out of it).",
                )
            return changed(placement.place(effective, reader, handler, rendered=True))
        self._refuse_foreign(reader, version, handler)
        self._require_own(reader, version, handler)
        edit = placement.drop_in(bare, reader, self._own, handler, schema.CRI_GRPC)
        # k0s merges it key by key into a file that the root imports, so nothing there is replaced.
        return changed((SourceEdit(edit.path, edit.before, edit.after),))

    def withdrawals(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> tuple[Edit, ...]:
        """See Registration. On 1.x the merged file is k0s' own to write, out of the files in the folder."""
        if version.merges_deeply:
            return Plain(self.config).withdrawals(reader, version, handler)
        own = reader.read_optional(self._own)
        alone = own is not None and is_ours_alone(own, version, handler.name)
        edits = [SourceEdit(self._own, own, None)] if alone else []
        for path in [*([] if alone or own is None else [self._own]), *self._others(reader)]:
            source = reader.read_optional(path) or b""
            edits.append(SourceEdit(path, source, without_head(path, strip(source, handler, version).result)))
        return changed(tuple(edits))

    def _require_own(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> None:
        here = reader.read_optional(self._own)
        if here is not None and not is_ours_alone(here, version, handler.name):
            raise RefusedError(
                f"{self._own} is flox-node's to write, and somebody else says something in it.",
                remedy="Move those lines to a file of another name.",
            )

    def _others(self, reader: Reader) -> list[str]:
        paths = [posixpath.join(self.folder, name) for name in reader.listdir(self.folder)]
        return [path for path in paths if path != self._own and path.endswith(".toml")]

    def next_start(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> NextStart:
        """See Registration. On 2.x the root imports the folder: the files themselves are what counts.

        But k0s 1.36 and newer do not start containerd beside a file of another schema than their own, nor beside a
        table of schema 2 (https://github.com/k0sproject/k0s/issues/7689).
        """
        if version.merges_deeply:
            root = self._schema(reader, self.config, version)
            odd = tuple(path for path in self._others(reader) if self._is_refused(reader, path, version, root))
            why = "its schema is not the one of k0s' own file, which newer releases of k0s refuse to start with"
            return NextStart(odd, untold=dict.fromkeys(odd, why))
        others = tuple(self._others(reader))
        return NextStart(others, untold=dict.fromkeys(others, "k0s merges it into containerd's at its next start"))

    def _is_refused(self, reader: Reader, path: str, version: ContainerdVersion, root: int) -> bool:
        if self._schema(reader, path, version) not in (0, root):
            return True
        data = parse(reader.read_optional(path) or b"", version).data
        return root >= 3 and schema.CRI_GRPC in schema.table(data, "plugins")

    def _schema(self, reader: Reader, path: str, version: ContainerdVersion) -> int:
        try:
            return parse(reader.read_optional(path) or b"", version).version
        except RefusedError:
            return -1  # no containerd reads it

    def _refuse_foreign(self, reader: Reader, version: ContainerdVersion, handler: Handler) -> None:
        for path in self._others(reader):
            data = parse(reader.read_optional(path) or b"", version).data
            table = schema.table(data, "plugins", schema.CRI_GRPC, "containerd", "runtimes", handler.name)
            if table and not is_our_binary(schema.table(table, "options").get("BinaryName"), handler):
                raise RefusedError(
                    f'{path}: a handler "{handler.name}" that is not ours is registered already.',
                    remedy="Remove it with the tool that installed it.",
                )
