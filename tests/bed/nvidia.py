"""NVIDIA's container toolkit: `nvidia-ctk`, which registers their runtime, and what its pod has that do."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from tests.bed import cache, golang
from tests.bed.box import NodeBox

_MODULE = golang.TOOLS / "nvidia-ctk"
DROP_IN = "etc/containerd/conf.d/99-nvidia.toml"


def program(name: Literal["nvidia-ctk", "nvidia-container-runtime"]) -> Path:
    """One of the programs. They load the driver's library when they need it, hence the lazy linking."""

    def build(folder: Path) -> None:
        golang.build(_MODULE, "tool", into=folder, ldflags="-extldflags=-Wl,-z,lazy", cgo=True)

    return cache.artefact("nvidia-ctk", {"sources": golang.sources(_MODULE), "revision": 1}, build) / name


def put_ctk(box: NodeBox) -> None:
    """Have the program on the box, which is off."""
    programs = box.folder / "disk/usr/bin"
    programs.mkdir(parents=True, exist_ok=True)
    shutil.copy(program("nvidia-ctk"), programs)


def configure(box: NodeBox, source: Literal["command", "file"], *, default: bool = False) -> None:
    """Write the drop-in, from `containerd config dump` or from the root file, as the toolkit's pod does at its start.

    The caller restarts containerd, as the toolkit does after it.
    """
    words = ["--runtime=containerd", "--config=/etc/containerd/config.toml", f"--drop-in-config=/{DROP_IN}"]
    words += [f"--config-source={source}", "--executable-path=/usr/bin/containerd"]
    box.run(["nvidia-ctk", "runtime", "configure", *words, *(["--set-as-default"] if default else [])])
