"""NVIDIA's own `nvidia-ctk` beside us: what it does to the root and to its drop-in, from either of its sources.

It serialises the root anew where it adds its import, comments and our marks gone, and its source `command` copies
whatever the daemon has, our handler too.
"""

from __future__ import annotations

import itertools
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bed import nvidia, releases
from tests.conftest import FULL
from tests.containerd.dumps import dump
from tests.containerd.test_changes import Act, Story, root
from tests.containerd.test_neighbours import Node, is_live

RELEASES = (*releases.DEFAULT, *(releases.NEWER if FULL else ()))
SOURCES = (("command",), ("file",), ("command", "file"), ("file", "command"))


@dataclass(frozen=True)
class Toolkit:
    """The toolkit's pod starts: `nvidia-ctk runtime configure` with these words."""

    source: str
    default: bool

    def __call__(self, node: Node) -> None:
        words = ["--runtime=containerd", f"--config={node.root}", f"--config-source={self.source}"]
        words += [f"--drop-in-config={node.folder}/conf.d/99-nvidia.toml"]
        words += [f"--executable-path={self._containerd(node)}", *(["--set-as-default"] if self.default else [])]
        done = subprocess.run(
            [nvidia.program("nvidia-ctk"), "runtime", "configure", *words], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr

    def _containerd(self, node: Node) -> Path:
        """A containerd whose configuration is this node's: nvidia-ctk asks it for a dump without naming one."""
        program = node.folder.with_suffix(".sh")
        containerd = releases.program(node.release, "containerd")
        program.write_text(f'#!/bin/sh\nexec {containerd} --config {node.root} "$@"\n')
        program.chmod(0o755)
        return program


def cases() -> list[Any]:
    found = itertools.product(RELEASES, (2, 3), (True, False), (True, False), (True, False), SOURCES)
    return [
        pytest.param(
            release,
            root(number, imports=imports),
            [Toolkit(source, default) for source in sources],
            first,
            id=f"{release}-schema{number}-{'imports' if imports else 'alone'}-{'default' if default else 'beside'}-"
            f"{'we' if first else 'they'}-first-{'-'.join(sources)}",
        )
        for index, (release, number, imports, default, first, sources) in enumerate(found)
        if (number == 2 or release >= "2") and (FULL or index % 11 == 0)
    ]


@pytest.mark.parametrize(("release", "written", "starts", "first"), cases())
def test_nobody_loses_anything_to_the_toolkit_and_it_finds_its_files_as_without_us(
    tmp_path: Path, release: str, written: Act, starts: list[Toolkit], first: bool
) -> None:
    story = Story(tmp_path, release, written)
    if first:
        story.install()
    for start in starts:
        story.both(start)
        story.install()
        assert is_live(story.ours.dump())
    story.uninstall()
    assert "nvidia" in dump(release, story.ours.root).handlers
    ours, control = (
        {str(Path(path).relative_to(node.folder)): data for path, data in node.files().items()}
        for node in (story.ours, story.control)
    )
    here, there = (f"{node.folder}/".encode() for node in (story.ours, story.control))
    assert {path: data.replace(here, there) for path, data in ours.items()} == control
