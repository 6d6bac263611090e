"""buildah with a folder of its own for all it keeps, so that nothing of the machine's own is seen or touched."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# What every build says: no namespace that this machine may lack, and no registry is asked for a base.
BUILD = ("build", "--isolation=chroot", "--pull-never", "--layers")

_EXPORT = 'container=$0 into=$1; shift; cp -a "$("$@" mount "$container")/." "$into"'


@dataclass(frozen=True)
class Buildah:
    """folder: on a file system that overlayfs can lie on. enter: what goes before the command, such as nsenter's."""

    folder: Path
    enter: Sequence[str | Path] = ()

    @property
    def layers(self) -> Path:
        """Where the layers are, which grow."""
        return self.folder / "layers"

    def __call__(self, *arguments: str | Path) -> str:
        """Run buildah; what it printed. RuntimeError with its errors."""
        return self._run(*self._words, *arguments)

    def commit(self, reference: str, content: Path, *configuration: str, base: str = "scratch") -> None:
        """An image of a folder's content on top of another image. configuration: options of `buildah config`."""
        container = self("from", "--pull-never", base)
        try:
            self("copy", "--quiet", container, content, "/")
            if configuration:
                self("config", *configuration, container)
            self("commit", "--quiet", container, reference)
        finally:
            self("rm", container)

    def export(self, reference: str, into: Path) -> None:
        """The whole root file system of an image, into a new folder."""
        container = self("from", "--pull-never", reference)
        try:
            into.mkdir()
            self._run("sh", "-euc", _EXPORT, container, into, *self._words)
        finally:
            self("rm", container)

    @property
    def _words(self) -> tuple[str | Path, ...]:
        return ("buildah", "--root", self.layers, "--runroot", self.folder / "run", "--storage-driver=overlay")

    def _run(self, *command: str | Path) -> str:
        # In a mount namespace of its own: what is mounted is gone with it, however it ends.
        words = list(map(str, [*self.enter, "unshare", "--mount", *command]))
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout.strip()
