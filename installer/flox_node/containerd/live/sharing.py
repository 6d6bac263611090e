"""Other containerds that read files of the kubelet's one: what is registered there is registered for them, too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from flox_node.containerd.config.effective import MapReader, load
from flox_node.containerd.live.daemon import DEFAULT_CONFIG, Running, config_argument
from flox_node.host import Host


@dataclass(frozen=True)
class Sharing:
    """Another containerd whose configuration, with the root file `config`, takes in `path`."""

    path: str
    config: str
    pid: int

    def __str__(self) -> str:
        return f"{self.path} is read by another containerd as well (pid {self.pid}, {self.config})"


def find(host: Host, running: Running, paths: Iterable[str]) -> Iterator[Sharing]:
    """The other containerds that read one of these files, or will as soon as it is there."""
    wanted = tuple(paths)
    new = MapReader({path: b"" for path in wanted if not host.files.exists(path)}, host.files)
    for process in host.processes.named("containerd"):
        if process.pid == running.daemon.pid:
            continue
        config = config_argument(process.argv) or DEFAULT_CONFIG
        read = {file.path for file in load(config, new, running.version).files}
        yield from (Sharing(path, config, process.pid) for path in wanted if path in read)
