"""Whatever a tenant, a neighbour or a torn disk puts where the Python side reads: an answer or an error of ours."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from flox_node.environments import closure, index, roots, tokens
from flox_node.environments.annotations import annotation_faults, judge
from flox_node.environments.errors import BadRequestError, BuildFailedError, TokenExpiredError
from flox_node.environments.index import Question, Resolution
from flox_node.environments.paths import Paths
from flox_node.environments.reference import Reference
from tests.conftest import FULL

KEY = "a" * 32
STORE_PATH = f"/nix/store/{KEY}-environment-run"
OUTSIDE = b"flox_of_the_node"
UID = "b9a1e0d4-0d3c-4a8e-9d0e-0c1f2a3b4c5d"
RESOLUTION = Resolution("demo/hello", 3, "1" * 40, "run", "x86_64-linux", STORE_PATH)
QUESTION = Question("https://hub/git", Reference("demo", "hello"), "1" * 40, "run", "x86_64-linux")

some = settings(max_examples=5000 if FULL else 40, deadline=None, derandomize=not FULL, database=None)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)
names = st.sampled_from([*Resolution.__dataclass_fields__, "schema_version", "hub"])
targets = st.lists(
    st.sampled_from(["..", ".", "..data", "..1", "floxhub-token", "/etc", "/", "a", "etc", "mount"]),
    min_size=1,
    max_size=9,
).map("/".join)


@some
@given(st.dictionaries(names, values, max_size=2) | st.binary(max_size=50))
def test_an_entry_of_the_index_is_the_answer_to_the_question_or_none(damage: dict[str, Any] | bytes) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        paths = Paths(scratch)
        os.makedirs(paths.on_disk(STORE_PATH))
        roots.add(KEY, STORE_PATH, paths)
        index.record(QUESTION, RESOLUTION, paths)
        (file,) = Path(paths.index).iterdir()
        entry = json.loads(file.read_bytes())
        file.write_bytes(damage if isinstance(damage, bytes) else json.dumps({**entry, **damage}).encode())
        found = index.lookup(QUESTION, paths)
        if found is not None:
            assert type(found.generation) is int
            assert found.generation >= 1
            assert Resolution(**{**vars(found), "generation": 3}) == RESOLUTION
        index.last_took("demo/hello", paths)


@some
@given(
    st.lists(st.sampled_from([STORE_PATH, "/etc", "\r", "\n", "\0", " ", "/..", "-o", "\u2028"]) | st.text(max_size=3))
)
def test_a_closure_is_of_the_store_or_refused(pieces: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        paths = Paths(scratch)
        os.makedirs(paths.on_disk(STORE_PATH))
        Path(paths.on_disk(f"{STORE_PATH}/requisites.txt")).write_bytes(
            "".join(pieces).encode("utf-8", "surrogatepass")
        )
        try:
            assert closure.requisites(STORE_PATH, paths) == (STORE_PATH,)
        except BuildFailedError as error:
            said = str(error)
            assert said.isprintable()


@some
@given(targets, targets, targets, st.sampled_from(["a", "..", ".", "-o", "a b"]))
def test_nothing_outside_of_a_pods_volumes_is_its_token(token: str, data: str, mount: str, name: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        etc = Path(scratch, "etc")
        etc.mkdir()
        (etc / "floxhub-token").write_bytes(OUTSIDE)
        volumes = Path(scratch, "var/lib/kubelet/pods", UID, "volumes")
        secret, csi = volumes / "kubernetes.io~secret/a", volumes / "kubernetes.io~csi/c"
        for folder in (secret / "..1", csi, volumes / "kubernetes.io~projected"):
            folder.mkdir(parents=True)
        (secret / "..1/floxhub-token").write_bytes(b"flox_of_the_pod")
        links = {
            secret / "floxhub-token": token,
            secret / "..data": data,
            csi / "mount": mount,
            volumes / "kubernetes.io~projected" / name: mount,
        }
        for link, target in links.items():
            if not os.path.lexists(link):
                link.symlink_to(target.replace("/etc", str(etc)))
        try:
            assert tokens.find(UID, Paths(scratch)) in (None, "flox_of_the_pod")
        except BadRequestError as error:
            said = str(error)
            assert OUTSIDE.decode() not in said


@some
@given(st.binary(max_size=60) | st.text('abc.eyJ=_-{}":0123 ', max_size=60).map(str.encode))
def test_what_is_no_token_is_never_shown(data: bytes) -> None:
    try:
        assert tokens.checked(data, "it").encode() == data.strip()
    except (BadRequestError, TokenExpiredError) as error:
        said = str(error)
        assert said.isprintable()


@some
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "environment",
                "activate-mode",
                "nix-mutable",
                "skip-containers",
                "skip-containers-exec",
                "only-containers",
                "x",
            ]
        ).map("flox.dev/{}".format),
        st.text("ab/:1*?[],. \n\0-é", max_size=12) | st.text(max_size=12),
    ),
    st.text(max_size=5),
)
def test_any_annotations_are_judged(annotations: dict[str, str], container: str) -> None:
    wishes = judge(annotations)
    wishes.skipped(container)
    wishes.exec_skipped(container)
    for fault in annotation_faults(annotations, "flox"):
        assert fault.isprintable()
