"""What is written on a Node: applied to the object as the API server would."""

import copy
from typing import Any

import pytest

from flox_node.kube import node
from flox_node.kube.names import CONDITION, ENABLED, NOT_READY, Reason
from flox_node.settings import STARTUP_TAINTS

NOW = "2026-01-02T03:04:05Z"
LIVE = node.Wanted(True, Reason.INSTALLED, "live", platform="plain", versions={"shim": "1", "containerd": "2.1.9"})
BROKEN = node.Wanted(False, Reason.ROLLED_BACK, "no", down=True)
GONE = node.Wanted(False, Reason.UNINSTALLED, "", gone=True)
OTHER_TAINT = {"key": "a", "value": "b", "effect": "NoExecute"}
OURS = {"key": NOT_READY, "effect": "NoSchedule"}


def a_node(**spec: Any) -> dict[str, Any]:
    metadata = {"name": "n", "labels": {"kubernetes.io/os": "linux"}, "annotations": {"a": "b"}}
    return {"metadata": metadata, "spec": spec, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}


def applied(found: dict[str, Any], wanted: node.Wanted, keys: tuple[str, ...] = STARTUP_TAINTS) -> dict[str, Any]:
    result = copy.deepcopy(found)
    for operation in node.patch(found, wanted, keys):
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        where = result
        for part in parents:
            where = where[part]
        match operation["op"]:
            case "test":
                assert where[last] == operation["value"]
            case "remove":
                del where[last]
            case "replace":
                assert last in where
                where[last] = operation["value"]
            case "add":
                where[last] = operation["value"]
    return result


def test_a_live_node_gets_the_label_the_versions_and_loses_the_startup_taint() -> None:
    after = applied(a_node(taints=[OTHER_TAINT, OURS]), LIVE)
    assert after["metadata"]["labels"] == {"kubernetes.io/os": "linux", ENABLED: "true"}
    assert after["metadata"]["annotations"] == {
        "a": "b",
        "flox.dev/shim-version": "1",
        "flox.dev/containerd-version": "2.1.9",
        "flox.dev/platform": "plain",
        node.STARTUP_TAINT: NOT_READY,
    }
    assert after["spec"]["taints"] == [OTHER_TAINT]


def test_a_node_without_labels_annotations_and_taints_can_be_patched() -> None:
    after = applied({"metadata": {"name": "n"}, "spec": {}}, LIVE)
    assert after["metadata"]["labels"] == {ENABLED: "true"}
    assert "taints" not in after["spec"]


def test_a_node_that_is_as_it_should_be_is_not_patched() -> None:
    assert node.patch(applied(a_node(taints=[OURS]), LIVE), LIVE) == []


def test_a_label_that_a_node_group_preset_stays() -> None:
    preset = a_node()
    preset["metadata"]["labels"][ENABLED] = "true"
    assert applied(preset, BROKEN)["metadata"]["labels"][ENABLED] == "true"


def test_a_node_that_never_worked_gets_nothing_but_the_condition() -> None:
    assert node.patch(a_node(taints=[OURS]), BROKEN) == []


def test_a_node_that_works_no_more_keeps_its_label_and_gets_the_taint_back_that_it_had() -> None:
    worked = applied(a_node(taints=[OURS, OTHER_TAINT]), LIVE)
    after = applied(worked, BROKEN)
    assert after["metadata"]["labels"][ENABLED] == "true"
    assert after["spec"]["taints"] == [OTHER_TAINT, OURS]
    assert node.patch(after, BROKEN) == []
    assert applied(after, LIVE)["spec"]["taints"] == [OTHER_TAINT]


AUTOSCALERS = {"key": "startup-taint.cluster-autoscaler.kubernetes.io/flox", "effect": "NoSchedule"}
CONTROLLERS = {"key": "readiness.k8s.io/flox-not-ready", "effect": "NoSchedule"}
FOREIGN = {"key": "startup-taint.cluster-autoscaler.kubernetes.io/gpu", "effect": "NoSchedule"}


def test_every_startup_taint_of_the_settings_goes_and_comes_back_and_no_other() -> None:
    fresh = a_node(taints=[AUTOSCALERS, FOREIGN, OURS, CONTROLLERS])
    worked = applied(fresh, LIVE)
    assert worked["spec"]["taints"] == [FOREIGN, CONTROLLERS]
    broken = applied(worked, BROKEN)
    assert broken["spec"]["taints"] == [FOREIGN, CONTROLLERS, AUTOSCALERS, OURS]
    assert node.patch(broken, BROKEN) == []
    every = (*STARTUP_TAINTS, CONTROLLERS["key"])
    assert applied(fresh, LIVE, every)["spec"]["taints"] == [FOREIGN]


def test_a_startup_taint_that_somebody_sets_again_is_lifted_again() -> None:
    worked = applied(a_node(taints=[OURS]), LIVE)
    worked["spec"]["taints"] = [OURS, AUTOSCALERS]
    after = applied(worked, LIVE)
    assert after["spec"]["taints"] == []
    assert applied(after, BROKEN)["spec"]["taints"] == [OURS, AUTOSCALERS]


def test_what_an_earlier_version_lifted_comes_back() -> None:
    worked = applied(a_node(taints=[OURS]), LIVE)
    worked["metadata"]["annotations"][node.STARTUP_TAINT] = "lifted"
    assert applied(worked, BROKEN)["spec"]["taints"] == [OURS]


def test_a_node_that_serves_the_handler_is_not_tainted_whatever_else_is_wrong() -> None:
    worked = applied(a_node(taints=[OURS]), LIVE)
    assert node.patch(worked, node.Wanted(False, Reason.INVALID_SETTINGS, "speed is not known")) == []


def test_a_node_that_had_no_startup_taint_gets_none() -> None:
    worked = applied(a_node(), LIVE)
    assert node.patch(worked, BROKEN) == []


def test_an_uninstall_leaves_nothing_of_ours() -> None:
    before = a_node(taints=[OTHER_TAINT])
    assert applied(applied(before, LIVE), GONE) == before


@pytest.mark.parametrize(
    ("handlers", "lacks"),
    [(None, False), ([], False), ([{"name": ""}, {"name": "runc"}], True), ([{"name": ""}, {"name": "flox"}], False)],
)
def test_a_kubelet_that_reports_handlers_has_to_report_ours(handlers: Any, lacks: bool) -> None:
    assert node.lacks_handler({"status": {"runtimeHandlers": handlers}}) is lacks


def test_the_condition_is_written_when_it_changes_and_keeps_the_time_of_its_last_transition() -> None:
    found = a_node()
    first = node.condition(found, BROKEN, NOW)
    assert first is not None
    [entry] = first["status"]["conditions"]
    assert (entry["type"], entry["status"], entry["reason"]) == (CONDITION, "False", "RolledBack")
    found["status"]["conditions"].append(entry)
    assert node.condition(found, BROKEN, "2027-01-01T00:00:00Z") is None
    waiting = node.condition(found, node.Wanted(False, Reason.WAITING, "w"), "2027-01-01T00:00:00Z")
    assert waiting is not None
    assert waiting["status"]["conditions"][0]["lastTransitionTime"] == NOW
    live = node.condition(found, LIVE, "2027-01-01T00:00:00Z")
    assert live is not None
    assert live["status"]["conditions"][0]["lastTransitionTime"] == "2027-01-01T00:00:00Z"


def test_an_uninstall_takes_the_condition_away() -> None:
    found = a_node()
    assert node.condition(found, GONE, NOW) is None
    found["status"]["conditions"].append({"type": CONDITION, "status": "True"})
    assert node.condition(found, GONE, NOW) == {"status": {"conditions": [{"$patch": "delete", "type": CONDITION}]}}
