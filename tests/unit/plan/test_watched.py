"""What a node's identity is made of: another one means that the node may have been registered anew."""

from flox_node.host import RunningProcess
from flox_node.plan import watched
from tests.unit.fake_node import FakeNode


def test_the_identity_is_that_of_one_kubelet_in_one_boot_whatever_the_clock_does(node: FakeNode) -> None:
    node.processes.others = [RunningProcess(7, "/usr/bin/kubelet", ("/usr/bin/kubelet",), None, ())]
    node.processes.ticks[7] = 1234
    first = watched.find(node.host).identity
    node.processes.booted_at = 1.0  # the clock was set
    node.containerd.started_at += 3600
    assert watched.find(node.host).identity == first
    node.processes.ticks[7] = 1235
    assert watched.find(node.host).identity != first, "another one, with the same number"


def test_a_kubelet_that_ends_while_we_look_is_no_error(node: FakeNode) -> None:
    node.processes.others = [RunningProcess(7, "/usr/bin/kubelet", ("/usr/bin/kubelet",), None, ())]
    assert "/proc/7" in watched.find(node.host).paths
