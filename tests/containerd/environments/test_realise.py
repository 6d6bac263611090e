"""Environments out of real store paths, by real git and real Nix, through the program that the shim calls."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

from flox_node.environments import notices
from flox_node.environments.paths import Paths
from tests.bed import store
from tests.conftest import FULL
from tests.containerd.environments import alone
from tests.containerd.environments.store_node import StoreNode, answer
from tests.doubles.hub import (
    Hub,
    HubData,
    catalog_package,
    flake_package,
    lockfile,
    published_package,
    serve,
    store_path_package,
)


def resolution(reply: dict[str, Any]) -> dict[str, Any]:
    assert reply["ok"], reply["message"]
    loaded: dict[str, Any] = reply["resolution"]
    return loaded


def failure(reply: dict[str, Any], code: str) -> str:
    assert not reply["ok"], reply
    assert reply["code"] == code, reply
    assert "demo/" in reply["message"]
    return str(reply["message"])


def fetches(hub: Hub) -> int:
    """How many times git fetched something; asking for the refs is none."""
    return sum(1 for method, path, _ in list(hub.requests) if method == "POST" and path.endswith("git-upload-pack"))


def in_container(node: StoreNode, store_path: str, *command: str) -> str:
    """Run a command where only the closure is below /nix, as in a container."""
    (node.real("/tmp/container") / "nix").mkdir(parents=True, exist_ok=True)
    script = 'for path in $0; do mkdir -p "$1$path" && mount --bind "$path" "$1$path"; done; '
    script += 'root=$1 && shift && exec chroot "$root" "$@"'
    busybox = f"{node.busybox}/bin/busybox"
    for applet in ("mkdir", "mount", "chroot"):
        script = script.replace(f"{applet} ", f"{busybox} {applet} ")
    return node.run(
        busybox, "sh", "-c", script, " ".join(closure(node, store_path)), "/tmp/container", *command,
        env={"FLOX_ENV_CACHE": "/tmp"},
    )  # fmt: skip


def closure(node: StoreNode, store_path: str) -> list[str]:
    """What the shim shows a container."""
    listed = node.real(f"{store_path}/requisites.txt").read_text().split()
    return sorted({store_path, *listed})


def test_an_environments_command_runs_from_its_closure_alone(node: StoreNode) -> None:
    made = resolution(node.realise("demo/hello"))
    assert made["generation"] == 1
    assert made["environment"] == "demo/hello"
    greeting = in_container(
        node,
        made["store_path"],
        f"{made['store_path']}/activate",
        "--env",
        made["store_path"],
        "--mode",
        "run",
        "--",
        "hello",
    )
    assert greeting == "Hello, world!\n"


def test_a_container_is_shown_the_closure_that_nix_knows_and_no_other_path(node: StoreNode) -> None:
    made = resolution(node.realise("demo/hello"))
    known = node.run(node.nix_store, "--query", "--requisites", made["store_path"]).split()
    assert closure(node, made["store_path"]) == sorted(known)
    assert len(os.listdir(node.real("/nix/store"))) > len(known)


def test_a_second_pod_is_answered_from_the_index_but_the_hub_is_asked_again(node: StoreNode, hub: Hub) -> None:
    first = node.realise("demo/hello")
    asked, fetched = len(hub.requests), fetches(hub)
    assert node.realise("demo/hello") == first
    assert len(hub.requests) == asked + 1
    assert fetches(hub) == fetched


def test_fifty_pods_at_once_are_one_realisation(node: StoreNode, hub: Hub, data: HubData) -> None:
    data.publish("demo", "alone", lockfile([store_path_package("hello", node.hello)], variables={"A": "1"}))
    resolution(node.realise("demo/alone"))
    of_one = fetches(hub)
    running = [node.start("demo/hello") for _ in range(50)]
    replies = [resolution(answer(process)) for process in running]
    assert all(reply == replies[0] for reply in replies)
    assert fetches(hub) == 2 * of_one


def test_a_push_and_a_switch_are_followed_and_a_pinned_generation_is_not_moved(
    node: StoreNode, hub: Hub, data: HubData
) -> None:
    first = resolution(node.realise("demo/hello"))
    pinned = resolution(node.realise("demo/hello", generation=1))
    assert pinned["store_path"] == first["store_path"]
    data.publish("demo", "hello", lockfile([store_path_package("hello", node.hello)], variables={"NEW": "yes"}))
    second = resolution(node.realise("demo/hello"))
    assert second["generation"] == 2
    assert second["store_path"] != first["store_path"]
    fetched = fetches(hub)
    assert resolution(node.realise("demo/hello", generation=1)) == pinned
    assert fetches(hub) == fetched
    commit = data.switch("demo", "hello", 1)
    back = resolution(node.realise("demo/hello"))
    assert (back["generation"], back["commit"]) == (1, commit)
    assert back["store_path"] == first["store_path"]


def test_a_generation_that_is_not_the_live_one_is_built_from_its_own_lock(node: StoreNode, data: HubData) -> None:
    data.publish("demo", "hello", lockfile([], variables={"NEW": "yes"}))
    made = resolution(node.realise("demo/hello", generation=1))
    lock = json.loads(node.run(f"{node.busybox}/bin/cat", f"{made['store_path']}/manifest.lock"))
    assert [package["install_id"] for package in lock["packages"]] == ["hello"]


def test_run_and_dev_are_two_environments_of_one_generation(node: StoreNode) -> None:
    made = {mode: resolution(node.realise("demo/hello", mode=mode)) for mode in ("run", "dev")}
    assert made["run"]["store_path"].endswith("-environment-run")
    assert made["dev"]["store_path"].endswith("-environment-dev")


def test_a_garbage_collection_takes_nothing_of_a_cached_environment(node: StoreNode) -> None:
    made = resolution(node.realise("demo/hello"))
    deleted = node.run(node.nix_store, "--gc")
    assert "environment-dev" in deleted or not [
        n for n in os.listdir(node.real("/nix/store")) if "environment-dev" in n
    ]
    node.run(node.nix_store, "--verify", "--check-contents")
    assert node.real(made["store_path"]).is_dir()
    assert resolution(node.realise("demo/hello")) == made


def test_an_environment_that_was_collected_by_force_is_made_again(node: StoreNode) -> None:
    made = resolution(node.realise("demo/hello"))
    for root in node.real("/nix/var/nix/gcroots/flox-node").glob("env-*"):
        root.unlink()
    node.run(node.nix_store, "--delete", made["store_path"])
    assert resolution(node.realise("demo/hello")) == made
    assert node.real(made["store_path"]).is_dir()


def test_nothing_private_is_left_behind_and_no_build_ran_as_root(node: StoreNode, data: HubData) -> None:
    resolution(node.realise("demo/hello"))
    node.fault("fail")
    data.publish("demo", "hello", lockfile([], variables={"B": "2"}))
    failure(node.realise("demo/hello"), "build-failed")
    assert node.pulls() == []
    pool = node.real("/nix/var/nix/userpool2")
    assert pool.is_dir(), "Nix allocates users of its own for builds"
    assert os.listdir(pool)


def test_packages_of_the_catalog_come_from_the_policys_caches_if_a_trusted_key_signed_them(
    node: StoreNode, hub: Hub, data: HubData
) -> None:
    known = store.binary_cache()
    node.run(node.nix_store, "--delete", node.hello)
    data.publish("demo", "cached", lockfile([catalog_package("hello", {"out": known.hello_store_path})]))
    assert "no binary cache of the node's policy has package hello" in failure(node.realise("demo/cached"), "not-built")
    node.policy(hub.git_url, nix={"substituters": [hub.cache_url], "trusted_public_keys": [f"other-1:{'A' * 43}="]})
    message = failure(node.realise("demo/cached"), "not-trusted")
    assert f"signed by {known.public_key.partition(':')[0]}" in message
    assert not node.real(node.hello).exists()
    node.policy(hub.git_url, nix={"substituters": ["http://127.0.0.1:9/cache"]})
    assert "the binary cache 127.0.0.1:9 cannot be used" in failure(node.realise("demo/cached"), "network")
    built = node.real("/run/flox-double.built-from-source")
    assert not built.exists(), "nothing is ever built on a node"
    node.policy(hub.git_url, nix={"substituters": [], "builds": True})
    assert "Failed to realise 'hello'" in failure(node.realise("demo/cached"), "build-failed")
    assert built.read_text() == "hello\n", "but where the policy says so"
    built.unlink()
    limited = {"substituters": [hub.cache_url], "trusted_public_keys": [known.public_key], "builds": True}
    node.policy(hub.git_url, nix=limited, realise={"free_mib": 1 << 30})
    failure(node.realise("demo/cached"), "disk-full")
    node.policy(hub.git_url, nix={"substituters": [hub.cache_url], "trusted_public_keys": [known.public_key]})
    made = resolution(node.realise("demo/cached"))
    assert node.real(node.hello).is_dir()
    assert node.hello in closure(node, made["store_path"])


def test_what_is_not_supported_is_refused_before_anything_is_built(node: StoreNode, hub: Hub, data: HubData) -> None:
    data.publish("demo", "flake", lockfile([flake_package("evil")]))
    assert "evil" in failure(node.realise("demo/flake"), "unsupported")
    data.publish("demo", "mac", lockfile([], systems=("aarch64-darwin",)))
    assert "system" in failure(node.realise("demo/mac"), "unsupported")


def test_refusals_name_environment_generation_cause_and_remedy(node: StoreNode, hub: Hub, data: HubData) -> None:
    assert "demo/nothing" in failure(node.realise("demo/nothing"), "environment-not-found")
    assert "generation 7" in failure(node.realise("demo/hello", generation=7), "environment-not-found")
    data.restrict("demo", "flox_right")
    assert "token" in failure(node.realise("demo/hello"), "access-denied")
    data.open_to_all("demo")
    data.break_with("status", status=503)
    assert "503" in failure(node.realise("demo/hello"), "network")


def test_permission_that_was_taken_away_ends_the_use_of_the_cache(node: StoreNode, data: HubData) -> None:
    resolution(node.realise("demo/hello"))
    data.restrict("demo", "flox_right")
    failure(node.realise("demo/hello"), "access-denied")


def test_a_private_environment_opens_for_the_pods_own_token_which_is_left_nowhere(
    node: StoreNode, data: HubData
) -> None:
    token = f"flox_{uuid.uuid4().hex}"
    data.restrict("demo", token)
    volume = node.real("/var/lib/kubelet/pods/0/volumes/kubernetes.io~secret/flox")
    volume.mkdir(parents=True)
    (volume / "floxhub-token").write_text("flox_wrong\n")
    assert "flox_wrong" not in failure(node.realise("demo/hello"), "access-denied")
    (volume / "floxhub-token").write_text(f"{token}\n")
    resolution(node.realise("demo/hello"))
    assert_nowhere(node, token.encode())


@pytest.mark.parametrize(
    ("fault", "text"),
    [("no-links", "built no environment"), ("fail", "the moon is in the way"), ("relock", "was changed on FloxHub")],
)
def test_a_flox_that_fails_in_odd_ways_leaves_no_entry_in_the_index(node: StoreNode, fault: str, text: str) -> None:
    node.fault(fault)
    assert text in failure(node.realise("demo/hello"), "build-failed")
    assert (
        not list(node.real("/var/lib/flox-node/envs/index").glob("*"))
        or not node.real("/var/lib/flox-node/envs").exists()
    )
    node.fault(None)
    resolution(node.realise("demo/hello"))


def test_the_link_names_of_older_versions_are_understood(node: StoreNode) -> None:
    node.fault("dot-names")
    resolution(node.realise("demo/hello"))


def test_two_packages_with_one_file_are_an_error_of_the_environment(node: StoreNode, data: HubData) -> None:
    busybox = store_path_package("busybox", node.busybox)
    data.publish("demo", "clash", lockfile([busybox, store_path_package("again", f"{node.busybox}")]))
    assert "same file" in failure(node.realise("demo/clash"), "conflict")


def test_a_fetch_outlives_those_who_wait_for_it_and_a_retry_joins_it(node: StoreNode, hub: Hub, data: HubData) -> None:
    data.publish("demo", "alone", lockfile([store_path_package("hello", node.hello)], variables={"A": "1"}))
    resolution(node.realise("demo/alone"))
    of_one = fetches(hub)
    node.policy(hub.git_url, realise={"wait_s": 4})
    node.fault("slow:8")
    failure(node.realise("demo/hello"), "fetching")
    assert node.processes(), "the fetch goes on"
    for _ in range(60):
        reply = node.realise("demo/hello")
        if reply["ok"]:
            break
        assert "its last fetch" not in failure(reply, "fetching")
    resolution(reply)
    assert fetches(hub) == 2 * of_one
    wait_for(lambda: not node.processes())
    assert node.pulls() == []


def test_a_fetch_ends_at_the_policys_limit_with_all_that_it_started(node: StoreNode, hub: Hub) -> None:
    node.policy(hub.git_url, realise={"time_s": 3})
    node.fault("slow:300")
    assert "time_s" in failure(node.realise("demo/hello"), "timeout")
    wait_for(lambda: not node.processes())
    assert node.pulls() == []
    node.fault(None)
    node.policy(hub.git_url)
    resolution(node.realise("demo/hello"))


def test_no_more_fetches_run_at_once_than_the_policy_says(node: StoreNode, hub: Hub, data: HubData) -> None:
    node.policy(hub.git_url, realise={"wait_s": 4, "fetches": 1})
    data.publish("demo", "other", lockfile([store_path_package("hello", node.hello)], variables={"A": "1"}))
    node.fault("slow:300")
    failure(node.realise("demo/hello"), "fetching")
    assert "waits for its turn" in failure(node.realise("demo/other"), "fetching")


def test_the_policys_limits_are_looked_at_before_a_byte_is_fetched(node: StoreNode, hub: Hub, data: HubData) -> None:
    known = store.binary_cache()
    node.run(node.nix_store, "--delete", node.hello)
    data.publish("demo", "cached", lockfile([catalog_package("hello", {"out": known.hello_store_path})]))
    nix = {"substituters": [hub.cache_url], "trusted_public_keys": [known.public_key]}
    node.policy(hub.git_url, nix=nix, realise={"free_mib": 1 << 29})
    assert "has no room" in failure(node.realise("demo/cached"), "disk-full")
    assert not any("/nar/" in path for _, path, _ in hub.requests)


def test_those_who_wait_for_a_slow_realisation_get_its_result(node: StoreNode) -> None:
    node.fault("slow:2")
    running = [node.start("demo/hello") for _ in range(3)]
    assert len({json.dumps(resolution(answer(process))) for process in running}) == 1


def test_what_flox_leaves_in_the_background_ends_with_the_realisation(node: StoreNode) -> None:
    node.fault("leak")
    resolution(node.realise("demo/hello"))
    assert not node.processes()


def test_a_fetch_that_is_ended_from_outside_leaves_nothing_and_is_told(node: StoreNode) -> None:
    node.fault("slow:300")
    process = node.start("demo/hello")
    wait_for(lambda: any(node.pulls()) and flox_of(node))
    for pid in node.fetchers():
        os.kill(pid, signal.SIGTERM)
    assert "was ended before it was done" in failure(answer(process), "build-failed")
    wait_for(lambda: not node.processes())
    assert node.pulls() == []


@pytest.mark.parametrize("delay", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
def test_a_realisation_that_was_killed_is_finished_by_the_next(node: StoreNode, delay: float) -> None:
    process = node.start("demo/hello")
    time.sleep(delay)
    process.kill()
    process.communicate()
    made = resolution(node.realise("demo/hello"))
    roots = os.listdir(node.real("/nix/var/nix/gcroots/flox-node"))
    assert [name for name in roots if name.startswith("env-")] == [f"env-{made['store_path'][11:43]}"]
    wait_for(lambda: not node.processes())
    assert node.pulls() == []
    node.run(node.nix_store, "--verify", "--check-contents")


def test_whatever_is_killed_and_whenever_no_half_environment_is_used_and_no_token_stays(
    node: StoreNode, data: HubData
) -> None:
    token = f"flox_{uuid.uuid4().hex}"  # nobody else's: it is looked for in all processes
    data.restrict("demo", token)
    with_token(node, token)
    moments = random.Random(4)  # a seed: a moment that fails can be had again
    for number in range(200 if FULL else 5):
        packages = [store_path_package("hello", node.hello)]
        data.publish("demo", "hello", lockfile(packages, variables={"NUMBER": str(number)}))
        process = node.start("demo/hello")
        time.sleep(moments.uniform(0.1, 2.0))
        if number % 3 == 1:  # one of them; the others go on
            for victim in moments.sample(sorted(node.processes()), min(1, len(node.processes()))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
        else:
            node.stop()
            if number % 3 == 2:  # the machine, with all that lies in memory
                shutil.rmtree(node.real("/run/flox-node"), ignore_errors=True)
        process.communicate()
        if number % 10 == 9:
            assert resolution(node.realise("demo/hello"))["generation"] == number + 2, "one was there before"
    made = resolution(node.realise("demo/hello"))
    node.run(node.nix_store, "--verify", "--check-contents")
    listed = node.real(f"{made['store_path']}/requisites.txt").read_text().split()
    assert all(node.real(path).exists() for path in listed)
    wait_for(lambda: not node.processes())
    assert node.pulls() == []
    assert_nowhere(node, token.encode())


def assert_nowhere(node: StoreNode, token: bytes) -> None:
    """No file of the node but the pod's own holds it, no process of this machine was given it."""
    for folder, _, files in os.walk(node.root):
        for file in (Path(folder, name) for name in files):
            if file.is_file() and not file.is_symlink() and file.name != "floxhub-token":
                assert token not in file.read_bytes(), file
    for process in Path("/proc").glob("[0-9]*"):
        for what in ("environ", "cmdline"):
            with contextlib.suppress(OSError):
                assert token not in (process / what).read_bytes(), process


# A realisation that finds systemd: its unit starts our program as a service manager does, in nobody's session and with
# nothing but its arguments.
_WITH_SYSTEMD = """
import subprocess, sys
sys.path.append('/app')
from flox_node.environments import __main__
from flox_node.host.systemd import DbusSystemd

start = "import sys; sys.path.append('/app'); from flox_node.environments import __main__; __main__.realise_main()"

def run_now(self, unit, argv, description, *, slice, memory, seconds):
    assert "flox_right" not in f"{unit} {argv} {description}"
    with open("/run/unit", "w") as told:
        told.write(f"{unit} {slice} {memory} {argv[0]}")
    subprocess.Popen([sys.executable, "-IBS", "-c", start, *argv[1:]], env={"PATH": "/usr/bin:/bin"},
                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)

DbusSystemd.run_now = run_now
__main__.realise_main()
"""


def test_half_a_package_that_a_kill_left_is_no_package(node: StoreNode, data: HubData) -> None:
    path = cached(node, "big", 3 << 20)
    data.publish("demo", "big", lockfile([catalog_package("big", {"out": path})]))
    with serve(data, cache=node.real("/tmp/cache")) as hub:
        data.break_with("throttle", bytes_per_s=400_000)
        node.policy(hub.git_url, nix={"substituters": [hub.cache_url]})
        process = node.start("demo/big")
        wait_for(lambda: node.real(path).exists())
        node.stop()
        process.communicate()
        assert node.real(path).exists()
        data.repair()
        resolution(node.realise("demo/big"))
    assert node.real(f"{path}/content").stat().st_size == 3 << 20
    node.run(node.nix_store, "--verify", "--check-contents")


def test_half_a_published_package_is_fetched_again_from_where_it_was_published(node: StoreNode, data: HubData) -> None:
    known = store.binary_cache()
    node.run(node.nix_store, "--delete", node.hello)
    node.real(f"{node.hello}/bin").mkdir(parents=True)
    data.publish("demo", "mine", lockfile([published_package("pkg", {"out": known.hello_store_path})]))
    with serve(data, cache=known.cache_dir) as hub:
        node.policy(hub.git_url, nix={"substituters": [], "trusted_public_keys": [known.public_key]})
        data.offer(known.hello_store_path, url=hub.cache_url)
        resolution(node.realise("demo/mine"))
    assert node.real(f"{node.hello}/bin/hello").exists()


def cached(node: StoreNode, name: str, size: int) -> str:
    """A package that only the cache in the node's /tmp/cache has."""
    content = node.real(f"/tmp/{name}/content")
    content.parent.mkdir()
    content.write_bytes(os.urandom(size))
    path = node.run(node.nix_store, "--add", f"/tmp/{name}").strip()
    nix = [node.nix_store.removesuffix("-store"), "--extra-experimental-features", "nix-command"]
    node.run(*nix, "copy", "--to", "file:///tmp/cache?compression=none", path)
    node.run(node.nix_store, "--delete", path)
    return path


def test_with_systemd_a_fetch_is_a_unit_and_gets_its_token_through_a_pipe(node: StoreNode, data: HubData) -> None:
    data.restrict("demo", "flox_right")
    with_token(node, "flox_right")
    bus = node.real("/run/dbus/system_bus_socket")
    bus.parent.mkdir()
    bus.touch()
    request = {
        "schema_version": 2,
        "reference": "demo/hello",
        "mode": "run",
        "pod": {"namespace": "default", "name": "pod", "uid": "0", "sandbox_id": "sandbox"},
    }
    done = subprocess.run(
        node.command(node.python, "-IBS", "-c", _WITH_SYSTEMD), input=json.dumps(request), capture_output=True,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["ok"]
    unit, below, memory, program = node.real("/run/unit").read_text().split()
    assert (below, memory, program) == ("flox-realise.slice", str(4 << 30), "/opt/flox-node/bin/flox-node-realise")
    assert unit.startswith("flox-realise-")
    assert [path.suffix for path in node.real("/run/flox-node/fetches").iterdir()] == [".json"]


def test_an_answer_is_in_the_index_only_once_the_private_folder_is_wiped(node: StoreNode) -> None:
    """Whoever finds the answer there does not look into what a killed realisation left."""
    index = node.real("/var/lib/flox-node/envs/index")
    process = node.start("demo/hello")
    while not (index.exists() and any(index.iterdir())):
        assert process.poll() in (None, 0)
    process.kill()
    process.communicate()
    assert node.pulls() == []


def test_a_damaged_payload_is_told_with_what_to_do_about_it(node: StoreNode) -> None:
    node.real("/opt/flox-node/payloads/test/manifest.json").write_text("{}")
    reply = node.realise("demo/hello")
    assert "flox-node install" in failure(reply, "corrupt")


def flox_of(node: StoreNode) -> bool:
    return any("flox.py" in line for line in node.processes().values())


def wait_for(condition: Any, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.02)


def with_token(node: StoreNode, token: str) -> None:
    volume = node.real("/var/lib/kubelet/pods/0/volumes/kubernetes.io~secret/flox")
    volume.mkdir(parents=True, exist_ok=True)
    (volume / "floxhub-token").write_text(f"{token}\n")


def test_a_published_package_comes_from_where_the_hubs_api_says_and_nobody_else_is_asked(
    node: StoreNode, data: HubData, tmp_path: Path
) -> None:
    known = store.binary_cache()
    node.run(node.nix_store, "--delete", node.hello)
    data.publish("demo", "mine", lockfile([published_package("pkg", {"out": known.hello_store_path})]))
    data.restrict("demo", "flox_right")
    with_token(node, "flox_right")
    policy = {"nix": {"substituters": [], "trusted_public_keys": [known.public_key]}}
    data.offer(known.hello_store_path, url=f"{alone.URL}/cache", tokens=["flox_right"])
    fields = {name: value for name, value in vars(node).items() if name != "root"}
    done = subprocess.run(
        ["unshare", "--net", "--", sys.executable, "-m", "tests.containerd.environments.alone", str(node.root),
         json.dumps(fields), str(data.folder), json.dumps(policy), "demo/mine"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    made = resolution(told["reply"])
    assert os.path.basename(known.hello_store_path) in {
        os.path.basename(line) for line in node.real(f"{made['store_path']}/requisites.txt").read_text().split()
    }
    assert set(told["names"]) == {"hub.example.com"}
    assert told["connections"] == []
    assert ["POST", "/api/v1/catalog/store", None] in told["asked"]


def test_nothing_of_the_node_decides_what_a_pod_gets(node: StoreNode, hub: Hub) -> None:
    node.real("/etc/flox.toml").write_text('floxhub_url = "http://127.0.0.1:9"\nfloxhub_token = "flox_node"\nbroken')
    node.real("/etc/nix").mkdir()
    node.real("/etc/nix/nix.conf").write_text(
        "store = daemon\nmax-jobs = 0\nrestrict-eval = true\nplugin-files = /missing.so\npre-build-hook = /bin/false\n"
        "include /missing.conf\nnonsense\n"
    )
    node.real("/root/.config/nix").mkdir(parents=True)
    node.real("/root/.config/nix/nix.conf").write_text("nonsense\n")
    node.real("/root/.netrc").write_text("nonsense")
    resolution(node.realise("demo/hello"))
    assert {user for _, _, user in hub.requests} == {None}


def test_while_the_hub_is_away_a_token_keeps_what_it_was_granted_for_the_policys_grace(
    node: StoreNode, hub: Hub, data: HubData
) -> None:
    data.restrict("demo", "flox_right", "flox_other")
    with_token(node, "flox_right")
    made = resolution(node.realise("demo/hello"))
    data.break_with("status", status=503)
    reply = node.realise("demo/hello")
    assert resolution(reply) == made
    assert "503" in reply["warning"]
    (notice,) = notices.recent(Paths(str(node.root)))
    assert (notice.kind, notice.pod) == (notices.HUB_UNREACHABLE, "pod")
    assert "503" in notice.message
    assert "granted" in notice.message
    data.break_with("hang")
    node.policy(hub.git_url, realise={"wait_s": 13})
    assert resolution(node.realise("demo/hello")) == made
    data.break_with("status", status=503)
    with_token(node, "flox_other")
    failure(node.realise("demo/hello"), "network")
    with_token(node, "flox_right")
    node.policy(hub.git_url, realise={"grace_s": 0})
    failure(node.realise("demo/hello"), "network")
    node.policy(hub.git_url)
    data.repair()
    data.restrict("demo", "flox_other")
    failure(node.realise("demo/hello"), "access-denied")
    data.break_with("status", status=503)
    failure(node.realise("demo/hello"), "network")


def test_what_has_a_token_leaves_no_core_dump(node: StoreNode, data: HubData) -> None:
    data.restrict("demo", "flox_right")
    with_token(node, "flox_right")
    node.fault("slow:2")
    process = node.start("demo/hello")
    limits = set()
    while process.poll() is None:
        for pid, command in node.processes().items():
            if "flox.py" in command:
                with contextlib.suppress(OSError):
                    limits |= {line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core" in line}
    assert [line.split()[4] for line in limits] == ["1"]
    resolution(answer(process))


@pytest.mark.parametrize("after", [1, 2, 3, 4] if FULL else [1, 4])
def test_a_hub_that_fails_between_two_requests_is_told_as_the_network(
    node: StoreNode, data: HubData, after: int
) -> None:
    data.break_with("status", status=502, after=after)
    failure(node.realise("demo/hello"), "network")
    data.repair()
    resolution(node.realise("demo/hello"))


@pytest.mark.parametrize(
    "fault", [{"kind": "status", "status": 302, "location": "https://login.example.com/"}, {"kind": "cut"}]
)
def test_a_hub_that_redirects_or_ends_in_the_middle_is_told_as_the_network(
    node: StoreNode, data: HubData, fault: dict[str, Any]
) -> None:
    data.break_with(**fault)
    failure(node.realise("demo/hello"), "network")


def test_a_lock_as_flox_1_14_writes_it_is_realised_for_this_system_alone(node: StoreNode, data: HubData) -> None:
    """No `version`, empty options, an included environment; locked for four systems, with outputs nobody installs."""
    hello = catalog_package("hello", {"out": node.hello, "doc": node.activations})
    elsewhere = f"/nix/store/{'0' * 32}-hello"
    others = [
        {**hello, "system": system, "outputs": {"out": elsewhere, "doc": elsewhere}}
        for system in ("aarch64-darwin", "aarch64-linux", "x86_64-darwin")
    ]
    lock = lockfile([{**hello, "outputs_to_install": ["out"]}, *others])
    manifest = {**lock["manifest"], "schema-version": "1.14.0", "options": {}}
    del manifest["version"]
    lock = {**lock, "manifest": manifest, "compose": {"composer": manifest, "include": [{"name": "base"}]}}
    data.publish("demo", "real", lock)
    made = resolution(node.realise("demo/real"))
    assert node.hello in closure(node, made["store_path"])
    assert node.activations in closure(node, made["store_path"]), "flox-activations is of every environment"


def test_an_environment_of_a_newer_flox_or_a_circle_of_variables_is_not_supported(
    node: StoreNode, data: HubData
) -> None:
    newer = lockfile([store_path_package("hello", node.hello)])
    newer["manifest"]["schema-version"] = "9.9.9"
    data.publish("demo", "newer", newer)
    failure(node.realise("demo/newer"), "unsupported")
    circle = lockfile([store_path_package("hello", node.hello)], variables={"A": "$B", "B": "${A}"})
    data.publish("demo", "circle", circle)
    assert "circle" in failure(node.realise("demo/circle"), "unsupported")


def test_the_policy_says_whose_environments_and_which_modes_a_namespace_may_have(node: StoreNode, hub: Hub) -> None:
    node.policy(hub.git_url, namespaces={"default": {"owners": ["team", "dem?"], "modes": ["run"]}})
    resolution(node.realise("demo/hello"))
    failure(node.realise("demo/hello", mode="dev"), "not-allowed")
    node.policy(hub.git_url, namespaces={"def*": {"owners": ["team"]}})
    failure(node.realise("demo/hello"), "not-allowed")


def test_a_package_that_takes_longer_than_a_sandbox_waits_comes_by_one_download_and_is_told_on_the_way(
    node: StoreNode, data: HubData
) -> None:
    size, bytes_per_s = (140 << 20, 1_000_000) if FULL else (3 << 20, 400_000)
    path = cached(node, "big", size)
    data.publish("demo", "big", lockfile([catalog_package("big", {"out": path})]))
    with serve(data, cache=node.real("/tmp/cache")) as hub:
        data.break_with("throttle", bytes_per_s=bytes_per_s)
        node.policy(hub.git_url, nix={"substituters": [hub.cache_url]}, realise={"wait_s": 6})
        told = []
        for _ in range(200):
            reply = node.realise("demo/big")
            if reply["ok"]:
                break
            told.append(failure(reply, "fetching"))
        resolution(reply)
        assert any(f" of {size >> 20}.0 MiB are here (" in said and "s are left" in said for said in told), told
        assert sum("/nar/" in path for _, path, _ in hub.requests) == 1
