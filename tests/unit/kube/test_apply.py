"""Server-side apply: its order, its dry run, and other managers."""

from __future__ import annotations

from typing import Any

import pytest

from flox_node.errors import RefusedError
from flox_node.kube.api import ApiError, Object
from flox_node.kube.apply import Verb, apply, delete, in_order
from flox_node.kube.manifests import Options, objects
from flox_node.kube.resources import listed, path_of
from tests.unit.kube.fake_api import FakeApi
from tests.unit.kube.fake_cluster import DAEMON_SET, FakeCluster, node

ALL = objects(Options(pod_monitor=True))


def written(api: FakeApi) -> list[str]:
    return [path for method, path, query in api.requests if method != "GET" and "dryRun" not in query]


def test_every_object_that_we_have_can_be_found() -> None:
    assert all(path_of(each).startswith("/api") for each in ALL)


def test_what_confines_the_pods_is_there_before_them_and_the_namespace_before_all() -> None:
    kinds = [each["kind"] for each in in_order(list(reversed(ALL)))]
    assert kinds[0] == "Namespace"
    assert kinds[-1] == "DaemonSet"
    assert kinds.index("ValidatingAdmissionPolicy") < kinds.index("ValidatingAdmissionPolicyBinding")
    assert kinds.index("ValidatingAdmissionPolicyBinding") < kinds.index("ServiceAccount")


def test_an_install_creates_everything_and_a_second_one_changes_nothing() -> None:
    api = FakeCluster()
    assert {each.change for each in apply(api, ALL)} == {Verb.CREATED}
    assert {each.change for each in apply(api, ALL)} == {Verb.UNCHANGED}
    assert written(api) == [path_of(each) for each in in_order(ALL)] * 2


def test_a_dry_run_leaves_nothing_and_needs_no_namespace() -> None:
    api = FakeCluster()
    before = dict(api.objects)
    assert [each.change for each in apply(api, ALL, dry_run=True)] == [Verb.CREATED] * len(ALL)
    assert written(api) == []
    assert api.objects == before


def test_a_dry_run_tells_what_would_change() -> None:
    api = FakeCluster()
    list(apply(api, ALL))
    changed = list(apply(api, objects(Options(image="flox-node:2", pod_monitor=True)), dry_run=True))
    assert [each.kind for each in changed if each.change is Verb.CHANGED] == ["DaemonSet"]


def test_a_conflict_names_the_manager_before_anything_is_written() -> None:
    api = FakeCluster()
    list(apply(api, ALL))
    theirs = api.request("GET", DAEMON_SET)
    theirs["spec"]["revisionHistoryLimit"] = 3
    theirs["spec"]["template"]["spec"]["containers"] = [{"name": "node", "image": "mirror/flox-node:1"}]
    api.put(DAEMON_SET, theirs, manager="helm")
    api.requests.clear()

    with pytest.raises(RefusedError) as caught:
        list(apply(api, ALL))
    assert "helm" in caught.value.cause
    assert ".spec.template.spec.containers" in caught.value.cause
    assert "--force-conflicts" in caught.value.remedy
    assert written(api) == []

    list(apply(api, ALL, force=True))
    assert len(api.objects[DAEMON_SET]["spec"]["template"]["spec"]["containers"]) == 2
    assert api.objects[DAEMON_SET]["spec"]["revisionHistoryLimit"] == 3


def test_what_we_changed_ourselves_in_a_live_object_is_no_conflict() -> None:
    api = FakeCluster()
    list(apply(api, ALL))
    theirs = api.request("GET", DAEMON_SET)
    for container in theirs["spec"]["template"]["spec"]["containers"]:
        container["args"][-1] = "--mode=uninstall"
    api.put(DAEMON_SET, theirs, manager="flox-node")

    changed = [each.kind for each in apply(api, ALL) if each.change is Verb.CHANGED]
    assert changed == ["DaemonSet"]
    assert api.objects[DAEMON_SET]["spec"]["template"]["spec"]["containers"][0]["args"][-1] == "--mode=install"


def test_another_refusal_is_passed_on() -> None:
    class Forbidding(FakeCluster):
        def request(self, method: str, path: str, *arguments: Any, **given: Any) -> Object:
            if method == "PATCH" and "clusterroles" in path:
                raise ApiError("forbidden", status=403, reason="Forbidden")
            return super().request(method, path, *arguments, **given)

    api = Forbidding()
    with pytest.raises(ApiError, match="forbidden"):
        list(apply(api, ALL))
    assert written(api) == []


def test_what_is_not_there_is_not_deleted() -> None:
    api = FakeCluster()
    list(apply(api, ALL))
    assert delete(api, ALL[0]) is True
    assert delete(api, ALL[0]) is False


def test_long_lists_come_in_pages() -> None:
    api = FakeApi(page=2)
    for index in range(5):
        api.put(f"/api/v1/nodes/n{index}", node(f"n{index}"))
    assert [each["metadata"]["name"] for each in listed(api, "/api/v1/nodes")] == [f"n{index}" for index in range(5)]
    assert len(api.requests) == 3
