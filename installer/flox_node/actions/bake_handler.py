"""The handler in an image: what a platform makes containerd's configuration of, where no containerd runs yet."""

from __future__ import annotations

from dataclasses import dataclass

from flox_node.actions.register_handler import HandlerGap, RegisterHandler
from flox_node.containerd.config.edit import Edit
from flox_node.containerd.config.registration import NodeConfig
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

    def _edits(self, host: Host, running: Running) -> tuple[Edit, ...]:
        assert isinstance(self.registration, NodeConfig), "the planner refuses other platforms"
        return self.registration.baked(host.files, running.version, self._handler())

    def _is_live(self, status: CriStatus) -> bool:
        return True  # it will be, once a node boots from the image
