"""Realisations beside a hub in trouble, a hub that moves under them, and tenants beside each other."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.bed import store
from tests.conftest import FULL
from tests.containerd.environments.store_node import StoreNode, answer
from tests.containerd.environments.test_realise import failure, resolution, with_token
from tests.doubles.hub import Hub, HubData, catalog_package, lockfile, serve, store_path_package

ASKED_BY_FLOX = 3  # the refs are told for our question, for our git, and then for Flox' clone


def greeting(node: StoreNode, text: str) -> dict[str, Any]:
    return lockfile([store_path_package("hello", node.hello)], variables={"GREETING": text})


def greets(node: StoreNode, made: dict[str, Any]) -> str:
    link = os.readlink(node.real(f"{made['store_path']}/manifest.lock"))  # leads to where the node has it
    lock = json.loads(node.real(link).read_text())
    return str(lock["manifest"]["vars"]["GREETING"])


def test_a_hub_that_answers_late_is_waited_for(node: StoreNode, data: HubData) -> None:
    data.break_with("slow", seconds=1)
    resolution(node.realise("demo/hello"))


def test_a_hub_that_stalls_costs_a_sandbox_no_more_than_the_policys_wait(
    node: StoreNode, hub: Hub, data: HubData
) -> None:
    node.policy(hub.git_url, realise={"wait_s": 5})
    data.break_with("hang")
    assert "time" in failure(node.realise("demo/hello"), "network")
    data.repair()
    node.policy(hub.git_url)
    resolution(node.realise("demo/hello"))


@pytest.mark.skipif(
    not FULL, reason="only in `make test-full`: takes the half minute after which a transfer counts as stalled"
)
def test_a_hub_that_stalls_in_the_middle_ends_the_fetch_and_not_only_those_who_wait(
    node: StoreNode, data: HubData
) -> None:
    data.break_with("hang", after=1)
    began = time.monotonic()
    assert "too slow" in failure(node.realise("demo/hello"), "network")
    assert time.monotonic() - began < 80
    data.repair()
    resolution(node.realise("demo/hello"))


def test_a_push_while_flox_pulls_is_the_next_pods(node: StoreNode, hub: Hub, data: HubData) -> None:
    def push(asked: int) -> None:
        if asked == ASKED_BY_FLOX:
            data.publish("demo", "hello", greeting(node, "later"))

    hub.before = push
    first = resolution(node.realise("demo/hello"))
    assert first["generation"] == 1
    second = resolution(node.realise("demo/hello"))
    assert (second["generation"], greets(node, second)) == (2, "later")


def test_a_branch_that_is_rewritten_while_flox_pulls_gives_no_environment_that_nobody_looked_at(
    node: StoreNode, hub: Hub, data: HubData
) -> None:
    def rewrite(asked: int) -> None:
        if asked == ASKED_BY_FLOX:
            busybox = [store_path_package("busybox", node.busybox)]
            data.publish("demo", "hello", lockfile(busybox, variables={"GREETING": "new"}), generation=1)

    hub.before = rewrite
    assert "was changed on FloxHub" in failure(node.realise("demo/hello"), "build-failed")
    made = resolution(node.realise("demo/hello"))
    assert (made["generation"], greets(node, made)) == (1, "new")


def test_an_environment_that_is_deleted_while_flox_pulls_is_not_found(node: StoreNode, hub: Hub, data: HubData) -> None:
    hub.before = lambda asked: data.delete("demo", "hello") if asked == ASKED_BY_FLOX else None
    failure(node.realise("demo/hello"), "environment-not-found")
    assert not list(node.real("/var/lib/flox-node/envs/index").glob("*"))


def test_a_generation_that_is_switched_back_and_forth_is_followed(node: StoreNode, data: HubData) -> None:
    made: dict[int, str] = {}
    for number in (1, 2):
        data.publish("demo", "switched", greeting(node, str(number)))
    for number in (1, 2) * (5 if FULL else 1):
        data.switch("demo", "switched", number)
        told = resolution(node.realise("demo/switched"))
        assert (told["generation"], greets(node, told)) == (number, str(number))
        assert made.setdefault(number, told["store_path"]) == told["store_path"]


def test_many_environments_each_get_their_own(node: StoreNode, hub: Hub, data: HubData) -> None:
    names = [f"e{number}" for number in range(200 if FULL else 4)]
    for name in names:
        data.publish("demo", name, greeting(node, name))
    for start in range(0, len(names), 4):
        running = [(name, node.start(f"demo/{name}")) for name in names[start : start + 4]]
        for name, process in running:
            assert greets(node, resolution(answer(process))) == name
    roots = [name for name in os.listdir(node.real("/nix/var/nix/gcroots/flox-node")) if name.startswith("env-")]
    assert len(roots) == len(names)
    asked = len(hub.requests)
    for name in names:
        assert greets(node, resolution(node.realise(f"demo/{name}"))) == name
    assert len(hub.requests) == asked + len(names)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The certificate of an authority that only this test's hub knows, and the hub's own with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("did NOT run: this machine has no openssl")
    folder = tmp_path_factory.mktemp("authority")
    key = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500"
    by_it = "-CA ca.pem -CAkey ca.key -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=CA:FALSE"
    for words in (
        f"{key} -subj /CN=own-authority -keyout ca.key -out ca.pem",
        f"{key} -subj /CN=hub -keyout hub.key -out hub.pem {by_it}",
    ):
        subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)
    return folder


def test_a_hub_and_a_cache_of_a_private_authority_are_believed_where_the_policy_names_it(
    node: StoreNode, data: HubData, authority: Path
) -> None:
    known = store.binary_cache()
    node.run(node.nix_store, "--delete", node.hello)
    data.publish("demo", "cached", lockfile([catalog_package("hello", {"out": known.hello_store_path})]))
    data.restrict("demo", "flox_right")
    with_token(node, "flox_right")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "hub.pem", authority / "hub.key")
    with serve(data, cache=known.cache_dir, tls=context) as hub:
        nix = {"substituters": [hub.cache_url], "trusted_public_keys": [known.public_key]}
        node.policy(hub.git_url, nix=nix)
        assert "certificate" in failure(node.realise("demo/cached"), "network")
        assert {user for _, _, user in hub.requests} <= {None}, "a token goes to nobody who is not believed"
        shutil.copy(authority / "ca.pem", node.real("/etc/own-authority.pem"))
        node.policy(hub.git_url, nix=nix, network={"ca_file": "/etc/own-authority.pem"})
        resolution(node.realise("demo/cached"))
        assert any("/nar/" in path for _, path, _ in hub.requests)


def test_whether_a_private_environment_is_on_the_node_is_told_to_nobody_else(node: StoreNode, data: HubData) -> None:
    """Nor by how long the refusal takes (tests/bench/environments): the hub refuses before anybody looks."""
    data.publish("demo", "there", greeting(node, "secret"))
    data.publish("demo", "gone", greeting(node, "other"))
    data.restrict("demo", "flox_right")
    with_token(node, "flox_right")
    resolution(node.realise("demo/there"))
    with_token(node, "flox_other")
    replies = [node.realise(f"demo/{name}") for name in ("there", "gone")]
    assert len({json.dumps(reply).replace("demo/there", "demo/gone") for reply in replies}) == 1
    failure(replies[0], "access-denied")
    data.break_with("status", status=503)
    replies = [node.realise(f"demo/{name}") for name in ("there", "gone")]
    assert len({json.dumps(reply).replace("demo/there", "demo/gone") for reply in replies}) == 1
    failure(replies[0], "network")
