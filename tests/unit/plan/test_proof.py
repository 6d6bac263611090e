"""What is judged of two dumps of a node's containerd before a change is written."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from flox_node.containerd.config.editor import Handler
from flox_node.containerd.live import proof
from flox_node.errors import RefusedError
from flox_node.host import Completed
from flox_node.payload import Payload
from flox_node.plan import install
from flox_node.settings import Settings
from tests.unit.fake_node import KUBEADM, FakeNode

CRI = "io.containerd.grpc.v1.cri"
HANDLER = Handler("flox", "/opt/flox-node/bin/flox-runtime")
Dump = dict[str, Any]


def dump(**handlers: Dump) -> Dump:
    return {
        "root": "/var/lib/containerd",
        "imports": ["/etc/containerd/config.toml"],
        "plugins": {CRI: {"sandbox_image": "pause", "containerd": {"runtimes": {"runc": {"options": {}}, **handlers}}}},
    }


OURS = {"options": {"BinaryName": HANDLER.binary_name}}


def test_the_handler_and_the_list_of_files_are_no_difference() -> None:
    new = {**dump(flox=OURS), "imports": ["elsewhere"]}
    assert proof.differences(dump(), new, HANDLER) == []


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda new: new["plugins"][CRI]["containerd"]["runtimes"].pop("flox"), "would not know the handler flox"),
        (
            lambda new: new["plugins"][CRI]["containerd"]["runtimes"]["flox"]["options"].update(BinaryName="/bin/runc"),
            "the handler flox would not start /opt/flox-node/bin/flox-runtime",
        ),
        (lambda new: new.update(root="/data"), "root would be '/data' and not '/var/lib/containerd'"),
        (lambda new: new.pop("root"), "root would be None and not '/var/lib/containerd'"),
        (
            lambda new: new["plugins"][CRI]["containerd"]["runtimes"]["runc"]["options"].update(SystemdCgroup=True),
            "runtimes.runc.options.SystemdCgroup would be True and not None",
        ),
    ],
)
def test_whatever_else_is_another_is_named(edit: Callable[[Dump], object], problem: str) -> None:
    new = copy.deepcopy(dump(flox=OURS))
    edit(new)
    (found,) = proof.differences(dump(), new, HANDLER)
    assert problem in found


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Completed(1, b"", b"containerd: invalid plugin config\n"), "refuses .*: containerd: invalid plugin config"),
        (Completed(0, b"no toml at all", b""), "prints what is no TOML"),
    ],
)
def test_a_containerd_that_refuses_what_would_be_written_is_believed(
    node: FakeNode, payload: Payload, monkeypatch: pytest.MonkeyPatch, answer: Completed, why: str
) -> None:
    run = node.processes.run

    def with_an_answer(argv: list[str], **options: Any) -> Completed:
        copies = node.root / proof.FOLDER.lstrip("/")
        if "config" not in argv:
            return run(argv, **options)
        assert copies.stat().st_mode & 0o777 == 0o700, "the copies may hold passwords"
        return answer

    monkeypatch.setattr(node.processes, "run", with_an_answer)
    with pytest.raises(RefusedError, match=why):
        install(node.host, payload, Settings(), lambda _: None)
    assert node.config.read_text() == KUBEADM
    assert node.containerd.restarts == 0
    assert not (node.root / proof.FOLDER.lstrip("/")).exists()
