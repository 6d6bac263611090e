"""What a pod's environment costs before its sandbox: asked for, fetched by one for many, fetched beside `nix copy`.

Programs run on a node with a real Nix store, beside a hub and a cache on loopback (tests/containerd/environments).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from flox_node.environments import floxhub, grants, index, roots
from flox_node.environments.deadline import Deadline
from flox_node.environments.index import Question, Resolution
from flox_node.environments.paths import Paths
from flox_node.environments.reference import Reference
from flox_node.environments.resolve import system
from flox_node.payload.own import program_text
from tests.bed import environment as bed
from tests.bed import releases, store
from tests.bed.environment import script
from tests.bed.scope import Scope
from tests.bench.rows import Measurement, Row, ratio, row
from tests.containerd import test_shim_runc as shim
from tests.containerd.environments.store_node import StoreNode, answer
from tests.doubles.hub import Hub, HubData, catalog_package, lockfile, serve, store_path_package

_INSTALLER = Path(__file__).parents[2] / "installer"
ROUNDS = 50
POD_COUNT = 50
FETCH_S = 5
FETCH_ROUNDS = 3
FETCH_BYTES = 300 << 20


def resolve() -> Sequence[Row]:
    """Milliseconds until an environment that is on the node is found to be allowed and live, one request included."""
    samples = []
    with _node() as (node, hub, data):
        node.policy(hub.git_url)
        data.publish("demo", "hello", lockfile([store_path_package("hello", node.hello)]))
        _must(node, "demo/hello")
        for _ in range(ROUNDS):
            entering = _ms(lambda: node.run(f"{node.busybox}/bin/busybox", "true"))
            samples.append(_ms(lambda: _must(node, "demo/hello")) - entering)
    return (row("env.resolve_ms", samples, unit="ms", goal=100),)


def tenant() -> Sequence[Row]:
    """How long a refusal takes a tenant for somebody else's environment that is on the node, beside one that is not."""
    there: list[float] = []
    gone: list[float] = []
    with _node() as (node, hub, data):
        node.policy(hub.git_url)
        for name in ("there", "gone"):
            data.publish("demo", name, lockfile([store_path_package("hello", node.hello)], variables={"NAME": name}))
        data.restrict("demo", "flox_right")
        volume = node.real("/var/lib/kubelet/pods/0/volumes/kubernetes.io~secret/flox")
        volume.mkdir(parents=True)
        (volume / "floxhub-token").write_text("flox_right")
        _must(node, "demo/there")
        (volume / "floxhub-token").write_text("flox_other")
        for number in range(2 * ROUNDS):
            pair = [("demo/there", there), ("demo/gone", gone)]
            for name, samples in pair if number % 2 else reversed(pair):
                samples.append(_ms(lambda name=name: _refused(node, name)))  # type: ignore[misc]
    return (
        row("tenant.refused_ms", there, unit="ms", goal=None),
        ratio("tenant.refused_ratio", there, gone, goal=1.1),
    )


def _refused(node: StoreNode, environment: str) -> None:
    assert node.realise(environment)["code"] == "access-denied"


def sandbox() -> Sequence[Row]:
    """Milliseconds of a sandbox's create beside the inner runtime alone, for an environment that is on the node: its
    token was granted it a moment ago; and the hub, on loopback, is asked.
    """
    with tempfile.TemporaryDirectory(prefix="flox-node-bench-") as scratch:
        node, data = shim.make_node(Path(scratch)), HubData(Path(scratch, "hub"))
        reference, paths = Reference("demo", "hello"), Paths(str(node.dir))
        data.publish(reference.owner, reference.name, lockfile([]))
        node.path("/var/lib/kubelet/pods/b9a1e0d4/volumes").mkdir(parents=True)  # as the kubelet has made them by then
        with serve(data) as hub:
            commit = floxhub.tip(reference, git_url=hub.git_url, token=None, deadline=Deadline.after(60))
            resolution = Resolution(reference.environment, 1, commit, "run", system(), bed.ENVIRONMENT)
            roots.add(resolution.key, resolution.store_path, paths)
            index.record(Question(hub.git_url, reference, commit, "run", system()), resolution, paths)
            grants.record(grants.Grant(hub.git_url, reference, "run", system(), None), resolution, paths)
            node.answer("exit 1")  # nobody is asked
            fresh = _extra(node, hub, freshness_s=3600)
            program = program_text([str(_INSTALLER)], "flox_node.environments.__main__", "realise_main")
            prepared = f"from flox_node.environments.paths import Paths; Paths.__init__.__defaults__ = ({scratch!r},)"
            script(
                node.path("/opt/flox-node/bin/flox-node-realise"),
                f"#!{os.path.realpath(sys.executable)} -ISXpycache_prefix={scratch}/compiled\n"
                + program.replace("gc.freeze()", prepared),
            )
            checked = _extra(node, hub, freshness_s=0)
    return (
        row("sandbox.fresh_extra_ms", fresh, unit="ms", goal=10),
        row("sandbox.checked_extra_ms", checked, unit="ms", goal=120),
    )


def _extra(node: shim.Node, hub: Hub, freshness_s: float) -> list[float]:
    rules = {"freshness_s": freshness_s}
    node.policy(inner_runtime=str(releases.runc()), floxhub={"git_url": hub.git_url}, realise=rules)
    runc = replace(node, shim=Path(releases.runc()), containers=node.containers)
    extra = []
    try:
        for _ in range(ROUNDS + 1):
            alone, ours = (kind.sandbox(environment="demo/hello") for kind in (runc, node))
            theirs = _ms(lambda alone=alone: _created(alone))  # type: ignore[misc]
            extra.append(_ms(lambda ours=ours: _created(ours)) - theirs)  # type: ignore[misc]
            for each in (alone, ours):
                each.call("delete", "--force", each.id)
            node.containers.clear()
    finally:
        node.close()
    return extra[1:]  # the first one compiles


def _created(container: shim.Container) -> None:
    assert container.create() == 0, container.error


def burst() -> Sequence[Row]:
    """The slowest of many sandboxes of one environment that the node does not have, beside one alone."""
    with _node() as (node, hub, data):
        node.policy(hub.git_url)
        for name in ("alone", "burst"):
            data.publish("demo", name, lockfile([store_path_package("hello", node.hello)], variables={"NAME": name}))
        node.fault(f"slow:{FETCH_S}")
        alone = _ms(lambda: _must(node, "demo/alone"))
        began = time.monotonic()
        running = [node.start("demo/burst") for _ in range(POD_COUNT)]
        for process in running:
            assert answer(process)["ok"]
        slowest = (time.monotonic() - began) * 1000
    return (ratio("burst.cold_slowest_ratio", [slowest], [alone], goal=2),)


def fetch() -> Sequence[Row]:
    """A large package from a cache on loopback beside `nix copy` of it: the step of a realisation that brings
    its packages, limits looked at before; and all of it, with reading the lock and putting the environment together.
    """
    ours, whole, theirs = [], [], []
    with _node() as (node, _, data):
        nix = [node.nix_store.removesuffix("-store"), "--extra-experimental-features", "nix-command"]
        folder = node.real("/tmp/big")
        folder.mkdir()
        with serve(data, cache=node.real("/tmp/cache")) as hub:
            node.policy(hub.git_url, nix={"substituters": [hub.cache_url]})
            for number in range(FETCH_ROUNDS):
                (folder / "content").write_bytes(os.urandom(FETCH_BYTES))
                path = node.run(node.nix_store, "--add", "/tmp/big").strip()
                node.run(*nix, "copy", "--to", "file:///tmp/cache?compression=none", path)
                node.run(node.nix_store, "--delete", path)
                data.publish("demo", f"big{number}", lockfile([catalog_package("big", {"out": path})]))
                copy = [*nix, "copy", "--from", hub.cache_url, path]
                entering = _ms(lambda: node.run(f"{node.busybox}/bin/busybox", "true"))
                theirs.append(_ms(lambda copy=copy: node.run(*copy)) - entering)  # type: ignore[misc]
                node.run(node.nix_store, "--delete", path)
                _must(node, f"demo/big{number}")
                log = node.real("/var/log/flox-node/runtime.jsonl").read_text().splitlines()
                phases = json.loads(log[-2])["phases"]
                ours.append(phases["fetch"])
                whole.append(sum(phases.values()))
    return (
        ratio("fetch.vs_nix_copy_ratio", ours, theirs, goal=1.1),
        ratio("fetch.whole_vs_nix_copy_ratio", whole, theirs, goal=None),
    )


@contextmanager
def _node() -> Iterator[tuple[StoreNode, Hub, HubData]]:
    scope = Scope("store")
    with tempfile.TemporaryDirectory(prefix="flox-node-bench-") as scratch:
        data = HubData(Path(scratch))
        try:
            (scope.folder / "root").mkdir()
            node = StoreNode.copy(scope.folder / "root")
            with serve(data, cache=store.binary_cache().cache_dir) as hub:
                yield node, hub, data
            node.stop()
        finally:
            scope.close()


def _must(node: StoreNode, environment: str) -> None:
    reply = node.realise(environment)
    assert reply["ok"], reply


def _ms(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return (time.monotonic() - began) * 1000


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {
    resolve: ("env.resolve_ms",),
    tenant: ("tenant.refused_ms", "tenant.refused_ratio"),
    sandbox: ("sandbox.fresh_extra_ms", "sandbox.checked_extra_ms"),
    burst: ("burst.cold_slowest_ratio",),
    fetch: ("fetch.vs_nix_copy_ratio", "fetch.whole_vs_nix_copy_ratio"),
}
