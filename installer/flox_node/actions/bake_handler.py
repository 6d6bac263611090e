"""The handler in an image: what a platform makes containerd's configuration of, where no containerd runs yet."""

from __future__ import annotations

from dataclasses import dataclass

from flox_node.actions.base import Progress
from flox_node.actions.register_handler import HandlerGap, RegisterHandler
from flox_node.containerd.config.edit import Edit
from flox_node.containerd.config.registration import NodeConfig
from flox_node.containerd.config.registration.nodeadm import FRAGMENTS
from flox_node.containerd.live import nodeadm_check
from flox_node.containerd.live.change import write_all
from flox_node.containerd.live.cri import CriStatus
from flox_node.containerd.live.daemon import Running
from flox_node.host import Host


@dataclass(frozen=True)
class BakeHandler(RegisterHandler):
    """What RegisterHandler does to the files, and none of what it does to a containerd.

    The record is RegisterHandler's: a node that boots from the image has that action done.
    """

    def describe(self) -> str:
        return f"register the handler {self.handler} with the containerd that the image's nodes will run"

    def preflight(self, host: Host, gap: HandlerGap) -> None:
        """Nothing is restarted."""

    def execute(self, host: Host, gap: HandlerGap, progress: Progress) -> None:
        """Write what the image's nodes will start with.

        Raises:
            RefusedError: the image's nodeadm does not accept the fragment.
        """
        nodeadm_check.require_accepted(host, gap.edits, FRAGMENTS)
        write_all(host, gap.edits)

    def _edits(self, host: Host, running: Running) -> tuple[Edit, ...]:
        if isinstance(self.registration, NodeConfig):  # nodeadm has written no configuration yet
            return self.registration.baked(host.files, running.version, self._handler())
        return super()._edits(host, running)

    def _is_live(self, status: CriStatus) -> bool:
        return True  # it will be, once a node boots from the image
