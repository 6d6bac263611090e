"""Hashes that Nix 2.26 itself gave (`nix-hash --type sha256`) for the same trees."""

from pathlib import Path

import pytest

from flox_node.host.trees import CHUNK, walk
from flox_node.payload.nar import nar_of


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "sub/deep").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "sub/deep/file").write_bytes(b"12345678")
    (top / "sub/script").write_bytes(b"#!/bin/sh\n")
    (top / "sub/script").chmod(0o755)
    (top / "sub-before").write_bytes(b"")
    (top / "link").symlink_to("sub/../nowhere")
    (top / "large").write_bytes(b"0123456789abcdef" * ((CHUNK // 16) + 1) + b"x")
    return top


def test_a_tree_has_the_hash_that_nix_gives_it(tree: Path) -> None:
    found = nar_of(walk(tree))
    assert found.nar_hash == "sha256:869144f6551f4113e96161cb45a41b7356414dcbc7454a23aee0d392e29d0c42"
    assert found.nar_size == 263768


def test_a_single_file_and_a_single_link_are_trees_too(tree: Path) -> None:
    assert (
        nar_of(walk(tree / "sub/script")).nar_hash
        == "sha256:6283c1668260f903d1a895c0cd6b822fa4b68762bb0b17cedef2d39d97e26554"
    )
    assert (
        nar_of(walk(tree / "link")).nar_hash
        == "sha256:570b7ff0520064cb755d2987c32f20e87c808dbf6ac428729ffc18432af81c53"
    )


def test_a_device_is_no_tree() -> None:
    with pytest.raises(OSError, match="neither a file nor a folder"):
        nar_of(walk(Path("/dev/null")))
