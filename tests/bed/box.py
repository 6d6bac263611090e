"""A node box: a throw-away node with systemd as PID 1, a real containerd unit and a kubelet stand-in bound to it."""

import contextlib
import os
import signal
import subprocess
import time
import uuid
from typing import Self

from tests.bed import images
from tests.bed.machine import Machine
from tests.bed.processes import PATIENCE_S


class NodeBox(Machine):
    """One node, off until `boot`. As a context manager it is booted on entry and removed on exit.

    What is on its disk (/etc, /nix, /opt, /var, ...) outlives a power cut; /run and /tmp do not, as on a node.
    """

    def __init__(self, containerd: str = "1.7", *, config: str | None = None) -> None:
        """containerd: the release ("1.6", "1.7", "2.1", "2.3", "2.4").

        config: the text of /etc/containerd/config.toml, by default a plain node's (see `config.node_config`).
        """
        super().__init__("node", containerd, config)
        self.boot_seconds = 0.0
        self._images_loaded = False
        self.write("etc/machine-id", f"{uuid.uuid4().hex}\n")
        self.write("etc/hostname", "node\n")

    def boot(self, timeout: float = PATIENCE_S) -> Self:
        """Switch the node on, wait until its units have settled and, the first time, load the standard images."""
        started = time.monotonic()
        nspawn = self._power_on("--boot")
        try:
            while not self._has_settled():
                if nspawn.poll() is not None or time.monotonic() > started + timeout:
                    raise RuntimeError(f"The node does not boot.\n{self.logs()}")
                time.sleep(0.01)
        except BaseException:
            self.cut_power()
            raise
        self.boot_seconds = time.monotonic() - started
        if not self._images_loaded:
            self.load(*images.standard())
            self._images_loaded = True
        return self

    start = boot

    def reboot(self) -> Self:
        """Cut the power and boot again from the same disk."""
        self.cut_power()
        return self.boot()

    def halt(self, timeout: float = 20) -> None:
        """Shut the node down in order, as `systemctl poweroff` does; after `timeout` seconds cut the power."""
        os.kill(self.pid, signal.SIGRTMIN + 4)
        if self._nspawn is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._nspawn.wait(timeout)
        self.cut_power()

    def main_pid(self, unit: str) -> int:
        """The main process of a unit, as the node counts; 0 if it has none."""
        return int(self.run(["systemctl", "show", "--property=MainPID", "--value", unit]).stdout)

    def logs(self) -> str:
        """As of a machine, with the end of the journal if the node is on."""
        if not self._pid:
            return super().logs()
        journal = self.run(["journalctl", "--no-pager", "--lines=300"], check=False).stdout
        return f"{super().logs()}\n--- journal\n{journal}"

    def _has_settled(self) -> bool:
        if not self._is_on() or not (self.root / "run/systemd/private").exists():
            return False
        state = self.run(["systemctl", "is-system-running", "--wait"], check=False).stdout.strip()
        return state in ("running", "degraded")
