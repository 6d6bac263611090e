"""The only door to the node: its files, processes and systemd, all below one host root."""

from flox_node.host.children import Completed
from flox_node.host.files import HostFiles
from flox_node.host.host import Host
from flox_node.host.processes import Processes, RunningProcess
from flox_node.host.systemd import Systemd, UnitSettings, UnitStatus

__all__ = ["Completed", "Host", "HostFiles", "Processes", "RunningProcess", "Systemd", "UnitSettings", "UnitStatus"]
