"""The policy that an install writes: the inner runtime that it found, and what an administrator gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flox_node.actions import Gap, WritePolicy, action_to_json
from flox_node.actions.write_policy import FORMER_RUNTIMES
from flox_node.errors import UsageError
from flox_node.host import Host
from flox_node.state.policy import PATH

GIVEN = "[realise]\nwait_s = 20\n"


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "etc/flox-node").mkdir(parents=True)
    return Host.at(tmp_path)


def written(host: Host) -> Any:
    return json.loads(host.files.read(PATH))


def execute(host: Host, action: WritePolicy) -> None:
    action.execute(host, Gap("not as wanted"), lambda _: None)
    assert action.inspect(host) is None


def test_what_an_administrator_wrote_stays_beside_the_inner_runtime(host: Host) -> None:
    host.files.write_atomic(PATH, b'{"schema_version": 1, "realise": {"wait_s": 30}}')
    execute(host, WritePolicy("/usr/bin/runc"))
    assert written(host) == {"schema_version": 1, "realise": {"wait_s": 30}, "inner_runtime": "/usr/bin/runc"}


def test_a_policy_that_is_given_replaces_what_was_there(host: Host) -> None:
    host.files.write_atomic(PATH, b'{"schema_version": 1, "floxhub": {"git_url": "https://old"}}')
    missing = WritePolicy("/usr/bin/runc", GIVEN).inspect(host)
    assert missing is not None
    execute(host, WritePolicy("/usr/bin/runc", GIVEN))
    assert written(host) == {"schema_version": 1, "realise": {"wait_s": 20}, "inner_runtime": "/usr/bin/runc"}


def test_an_inner_runtime_that_the_policy_names_wins(host: Host) -> None:
    execute(host, WritePolicy("/usr/bin/runc", 'inner_runtime = "/usr/bin/crun"\n'))
    assert written(host)["inner_runtime"] == "/usr/bin/crun"


def test_a_policy_that_cannot_be_meant_is_refused_and_nothing_written(host: Host) -> None:
    with pytest.raises(UsageError):
        WritePolicy("/usr/bin/runc", "speed = 3\n").execute(host, Gap("not as wanted"), lambda _: None)
    assert not host.files.lexists(PATH)


def test_a_later_policy_apply_is_no_drift(host: Host) -> None:
    assert "policy" not in action_to_json(WritePolicy("/usr/bin/runc", GIVEN))


def test_the_runtimes_of_earlier_policies_are_remembered_for_what_runs(host: Host) -> None:
    (host.files.root / "run").mkdir()
    for runtime in ("/usr/bin/runc", "/usr/bin/runc", "/usr/bin/crun", "/opt/runc", "/usr/bin/crun"):
        execute(host, WritePolicy(runtime))
    assert host.files.read(FORMER_RUNTIMES) == b"/usr/bin/runc\n/usr/bin/crun\n/opt/runc\n"


def test_another_inner_runtime_says_that_running_containers_keep_theirs(host: Host, tmp_path: Path) -> None:
    host.files.write_atomic(PATH, b'{"schema_version": 1, "inner_runtime": "/usr/bin/runc"}')
    (tmp_path / "run").mkdir()
    told: list[str] = []
    WritePolicy("/usr/bin/crun").execute(host, Gap("not as wanted"), told.append)
    assert told == []
    bundle = tmp_path / "run/containerd/io.containerd.runtime.v2.task/k8s.io/c0ffee"
    bundle.mkdir(parents=True)
    (bundle / "options.json").write_text('{"binary_name": "/opt/flox-node/bin/flox-runtime"}')
    WritePolicy("/usr/bin/runc").execute(host, Gap("not as wanted"), told.append)
    assert told == ["1 running containers and sandboxes keep /usr/bin/crun as their inner runtime"]
