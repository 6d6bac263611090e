"""The only door to the node: its files, processes and systemd, all below one host root.

Environments have a door of their own, `environments.paths`: a pod waits for that process, and it imports nothing of
this package where the index has the answer. What both need of files and locks is `atomic`.
"""

from flox_node.host.children import Completed
from flox_node.host.files import HostFiles
from flox_node.host.host import Host
from flox_node.host.processes import Processes, RunningProcess
from flox_node.host.systemd import Systemd, UnitSettings, UnitStatus

__all__ = ["Completed", "Host", "HostFiles", "Processes", "RunningProcess", "Systemd", "UnitSettings", "UnitStatus"]
