"""What a resolution and a realisation go by: the policy, the pod's token, the node's files."""

from __future__ import annotations

import os
from dataclasses import dataclass

from flox_node.environments.paths import Paths
from flox_node.state.policy import Policy


@dataclass(frozen=True)
class Access:
    """Whose question it is. `token` None: the pod has none."""

    policy: Policy
    paths: Paths
    token: str | None = None

    @property
    def ca_file(self) -> str | None:
        """The certificate authorities to believe: the policy's file, or the node's own."""
        given = self.policy.network.ca_file
        if given:
            return self.paths.on_disk(given)
        return next((file for file in self.paths.ca_files if os.path.exists(file)), None)
