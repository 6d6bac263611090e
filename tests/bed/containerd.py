"""A stand-alone containerd: one real daemon over a node's files, without systemd, for any release and configuration."""

import os
import subprocess
import time
from collections.abc import Sequence
from typing import Self

from tests.bed import images
from tests.bed.cri import CriError
from tests.bed.machine import CONFIG, Machine
from tests.bed.processes import PATIENCE_S

# PID 2 of the machine; the version 1 controllers, which nspawn mounts read-only, are made writable as on a node.
DAEMON = """
status=0
for c in /sys/fs/cgroup/*; do ! mountpoint -q "$c" || mount -o remount,bind,rw "$c"; done
containerd || status=$?
while [ -e /run/restart ]; do rm /run/restart; status=0; containerd || status=$?; done
exit $status
"""
# How a command runs on the machine while it is off.
OFFLINE = """
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/disk,workdir=$1/work" "$1/root"
mount --rbind /dev "$1/root/dev"
folder=$1; shift 2
exec chroot "$folder/root" "$@"
"""


class Containerd(Machine):
    """One daemon, off until `start`. As a context manager it is started on entry and removed on exit.

    Its configuration is /etc/containerd/config.toml as on a node; write it and its drop-ins with `write`, on or off.
    """

    def __init__(self, release: str, *, config: str | None = None) -> None:
        """release: "1.6", "1.7", "2.1", "2.3" or "2.4". config: the configuration's text, by default a plain node's."""
        super().__init__("containerd", release, config)
        self.start_seconds = 0.0

    def start(self, timeout: float = PATIENCE_S) -> Self:
        """Start the daemon and wait for it to answer; RuntimeError with its log if it does not.

        A daemon whose CRI plugin does not load counts as started: ask `has_cri`.
        """
        started = time.monotonic()
        nspawn = self._power_on("--as-pid2", "--", "/bin/sh", "-euc", DAEMON)
        try:
            while not self._answers():
                if nspawn.poll() is not None or time.monotonic() > started + timeout:
                    raise RuntimeError(f"containerd does not start.\n{self.logs()}")
                time.sleep(0.01)
        except BaseException:
            self.cut_power()
            raise
        self.start_seconds = time.monotonic() - started
        return self

    def stop(self, timeout: float = PATIENCE_S) -> None:
        """Stop the daemon with SIGTERM; its pods end with it."""
        if self._nspawn is None:
            return
        self.run("kill $(pgrep -o -x containerd)", check=False)  # dies with the machine that it ends
        self._nspawn.wait(timeout)
        self.cut_power()

    def restart(self) -> None:
        """Stop the daemon and start it again; its pods go on."""
        self.write("/run/restart", "")
        old = self.run("pgrep -o -x containerd").stdout
        self.run("kill $(pgrep -o -x containerd)")
        while self.run("pgrep -o -x containerd", check=False).stdout in (old, ""):
            time.sleep(0.05)
        self.cri.wait_ready()

    def has_cri(self) -> bool:
        """Whether the CRI plugin of the running daemon is loaded."""
        try:
            self.cri.status()
        except CriError as error:
            if error.code == "UNIMPLEMENTED":
                return False
            raise
        return True

    def load_images(self) -> None:
        """Load the standard images, which pods need."""
        self.load(*images.standard())

    def config_dump(self, path: str = f"/{CONFIG}") -> subprocess.CompletedProcess[str]:
        """What the release makes of a configuration file of the machine: `containerd config dump`, on or off."""
        return self.run(["containerd", "--config", path, "config", "dump"], check=False)

    def _answers(self) -> bool:
        if not self._is_on():
            return False
        try:
            self.cri.version()
        except CriError as error:
            return error.code == "UNIMPLEMENTED"
        return True

    def _enter(self, command: str | Sequence[str]) -> list[str]:
        if self._pid:
            return super()._enter(command)
        argv = ["sh", "-c", command] if isinstance(command, str) else list(command)
        return ["unshare", "--mount", "sh", "-euc", OFFLINE, "sh", os.fspath(self.folder), self.layers, *argv]
