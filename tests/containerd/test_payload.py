"""The payload of the tests on a node with nothing else: real Nix, real programs, kills at any time."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from flox_node.errors import UsageError
from flox_node.host import Host
from flox_node.host.trees import remove_tree, walk
from flox_node.payload import Payload, open_payload
from flox_node.payload import manifest as manifests
from flox_node.payload.build import build
from flox_node.payload.nar import nar_of
from flox_node.payload.place import DATABASE, STAGING, place, survey, unplace
from flox_node.payload.verify import verify
from tests.bed import payload as bed_payload
from tests.bed import store
from tests.conftest import FULL

_PLACE = """
import sys
from pathlib import Path
from flox_node.payload import open_payload
from flox_node.payload.place import place
from tests.bed import store
place(store.host(Path(sys.argv[2])), open_payload(Path(sys.argv[1])))
"""
_PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def payload(bed: Path) -> Payload:
    return open_payload(bed_payload.folder())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    (tmp_path / "node").mkdir()
    return store.host(tmp_path / "node")


def test_the_payload_is_whole_in_both_forms(payload: Payload) -> None:
    assert verify(payload) == verify(open_payload(bed_payload.archive()))


def test_the_same_wheels_and_the_same_python_give_the_same_payload(payload: Payload, tmp_path: Path) -> None:
    recipe = bed_payload.recipe(tmp_path / "wheels")
    assert build(recipe, tmp_path / "payload").id == payload.manifest.id


def test_wheels_that_do_not_load_in_the_payloads_python_give_no_payload(bed: Path, tmp_path: Path) -> None:
    recipe = bed_payload.recipe(tmp_path / "wheels")
    next((tmp_path / "wheels").glob("mdurl-*")).unlink()
    with pytest.raises(UsageError, match="No module named 'mdurl'"):
        build(recipe, tmp_path / "payload")
    assert not (tmp_path / "payload").exists()


def test_nix_finds_nothing_wrong_and_nothing_to_collect_after_placing(host: Host, payload: Payload) -> None:
    place(host, payload)
    _nix(host, payload, "--verify", "--check-contents")
    assert _nix(host, payload, "--gc", "--print-dead") == ""
    _nix(host, payload, "--gc")
    assert survey(host, payload.manifest).complete


def test_what_is_unplaced_is_garbage_to_nix(host: Host, payload: Payload) -> None:
    place(host, payload)
    unplace(host, payload.manifest.id)
    dead = _nix(host, payload, "--gc", "--print-dead").split()
    assert set(dead) == {path.path for path in payload.manifest.store_paths}


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("flox", ["--version"], "1.14.1"),
        ("flox-node", ["--version"], "0.1.0"),
        ("git", ["--version"], "git version"),
        ("nix", ["--version"], "nix (Nix)"),
    ],
)
def test_its_programs_run_where_there_is_no_library_of_the_node(
    host: Host, payload: Payload, name: str, arguments: list[str], said: str
) -> None:
    place(host, payload)
    done = host.processes.run(
        [f"/opt/flox-node/payloads/{payload.manifest.id}/bin/{name}", *arguments], env=_ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr.decode()
    assert said in done.stdout.decode()


def test_running_its_programs_leaves_the_store_as_it_is(host: Host, payload: Payload) -> None:
    """Root may write into a store; a Python that caches what it compiles would."""
    place(host, payload)
    for name, arguments in (("flox-node", ["payload", "--help"]), ("flox", ["--version"]), ("flox-node-realise", [])):
        host.processes.run([payload.manifest.entry_points[name], *arguments])
    for path in payload.manifest.store_paths:
        assert nar_of(walk(host.files.real(path.path, follow=False))).nar_hash == path.nar_hash


def test_git_of_the_payload_speaks_https(host: Host, payload: Payload) -> None:
    place(host, payload)
    git = payload.manifest.entry_points["git"]
    done = host.processes.run([git, "ls-remote", "https://localhost:1/owner/floxmeta"])
    assert b"Failed to connect" in done.stderr  # and not: "git: 'remote-https' is not a git command"


def test_a_store_that_was_there_before_keeps_its_paths_and_their_registration(host: Host, payload: Payload) -> None:
    """A node with a Nix of its own, of which it has one path from another build than ours: other bytes, other hash."""
    place(host, payload)
    glibc = next(path for path in payload.manifest.store_paths if "-glibc-" in path.path)
    other = manifests.StorePath(glibc.path, "sha256:" + "0" * 64, 1, ())
    host.processes.run(
        [payload.manifest.entry_points["nix-store"], "--load-db"],
        input=manifests.registration([other]),
        env=_ENVIRONMENT,
    )
    shutil.rmtree(host.files.root / "opt")
    place(host, payload)
    assert _nix(host, payload, "--query", "--hash", glibc.path) == "sha256:" + "0" * 52


@pytest.mark.parametrize("has_nix", [False, True], ids=["first", "upgrade"])
def test_kill_at_any_time_then_the_next_run_finishes(payload: Payload, tmp_path: Path, has_nix: bool) -> None:
    """SIGKILL of the whole process group, Nix included, somewhere within the time that placing takes."""
    root = tmp_path / "node"
    host = store.host(root)
    chance = random.Random(2)
    root.mkdir()

    def clear() -> None:
        if has_nix:  # what an upgrade leaves
            needed = payload.manifest.needed_by(payload.manifest.entry_points["nix-store"])
            for path in payload.manifest.store_paths:
                if path.path not in needed:
                    remove_tree(root / path.path.lstrip("/"))
            remove_tree(root / "opt")
        else:
            remove_tree(root)
            root.mkdir()

    if has_nix:
        place(host, payload)
        clear()
    whole = _seconds(_start(root))
    killed = 0
    for _ in range(60 if FULL else 6):
        clear()
        for _ in range(2):  # a kill, and one while the next run cleans up after it
            child = _start(root)
            try:
                whole = min(whole, _seconds(child, chance.uniform(0.2, 1.0) * whole))  # the first one met a cold disk
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                killed += 1
            child.wait()
        place(host, payload)
        assert survey(host, payload.manifest).complete
        assert host.files.listdir(STAGING) == []
        _nix(host, payload, "--verify", "--check-contents")
    assert killed > 3


@pytest.mark.parametrize("schema", [None, "", "10"], ids=["no schema", "empty schema", "schema"])
@pytest.mark.parametrize("tables", [None, 1, 4], ids="{} tables".format)
def test_a_database_that_nix_was_killed_over_is_made_whole(
    host: Host, payload: Payload, tables: int | None, schema: str | None
) -> None:
    """Nix makes the file, its tables one by one, then the schema file; a power cut may leave the last one alone."""
    place(host, payload)
    database = host.files.real(DATABASE)
    with closing(sqlite3.connect(database)) as connection:
        query = "select sql from sqlite_master where type = 'table' and name != 'sqlite_sequence' order by rowid"
        made = [sql for (sql,) in connection.execute(query)]
    remove_tree(database.parent)
    database.parent.mkdir()
    if tables is not None:
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            connection.execute("pragma journal_mode = wal")
            for sql in made[:tables]:
                connection.execute(sql)
    if schema is not None:
        (database.parent / "schema").write_text(schema)
    place(host, payload)
    assert survey(host, payload.manifest).complete
    _nix(host, payload, "--verify", "--check-contents")


def test_a_node_fetches_from_the_signed_binary_cache_only_with_its_key(host: Host, payload: Payload) -> None:
    place(host, payload)
    binary_cache = store.binary_cache()
    shutil.copytree(binary_cache.cache_dir, host.files.root / "cache")
    fetch = [payload.manifest.entry_points["nix"], "build", "--no-link", binary_cache.hello_store_path]
    settings = "build-users-group =\nexperimental-features = nix-command\nsubstituters = file:///cache\n"
    refused = host.processes.run(fetch, env=_ENVIRONMENT | {"NIX_CONFIG": settings + "trusted-public-keys =\n"})
    assert refused.returncode != 0
    keys = f"trusted-public-keys = {binary_cache.public_key}\n"
    done = host.processes.run(fetch, env=_ENVIRONMENT | {"NIX_CONFIG": settings + keys})
    assert done.returncode == 0, done.stderr.decode()
    assert host.processes.run([f"{binary_cache.hello_store_path}/bin/hello"]).stdout == b"Hello, world!\n"
    _nix(host, payload, "--verify", "--check-contents")


_ENVIRONMENT = {
    "HOME": "/nonexistent",
    "NIX_CONF_DIR": "/nonexistent",
    "NIX_CONFIG": "build-users-group =\n",
    "NIX_REMOTE": "local",
}


def _nix(host: Host, payload: Payload, *arguments: str) -> str:
    done = host.processes.run([payload.manifest.entry_points["nix-store"], *arguments], env=_ENVIRONMENT)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def _seconds(child: subprocess.Popen[bytes], timeout: float | None = None) -> float:
    """Wait for a program; how long that took."""
    started = time.monotonic()
    child.wait(timeout)
    return time.monotonic() - started


def _start(root: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _PLACE, str(bed_payload.folder()), str(root)]
    environment = {**os.environ, "PYTHONPATH": f"{_PROJECT / 'installer'}:{_PROJECT}"}
    return subprocess.Popen(command, cwd=_PROJECT, env=environment, start_new_session=True)
