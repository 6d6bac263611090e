"""The registry of Debian's package docker-registry: what an image goes through between its build and a node."""

from __future__ import annotations

from pathlib import Path

from tests.bed import cache, debian

PORT = 5005
ADDRESS = f"localhost:{PORT}"  # containerd and buildah ask a registry of this machine without TLS


def program() -> Path:
    """The registry's program, which runs on this machine."""
    return cache.artefact("docker-registry", {"suite": "bookworm", "revision": 1}, _unpack) / "usr/bin/docker-registry"


def command(folder: Path, port: int = PORT) -> list[str | Path]:
    """What serves a registry on 127.0.0.1 whose images are in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yml"
    config.write_text(
        "version: 0.1\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'images'}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    return [program(), "serve", config]


def _unpack(folder: Path) -> None:
    debian.unpack("bookworm", ["docker-registry"], folder, closure=False)
