"""The proof before a restart, by real containerds over real configurations: right edits pass, wrong ones are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from flox_node.containerd.config.edit import Edit
from flox_node.containerd.config.editor import Handler
from flox_node.containerd.config.registration import Plain
from flox_node.containerd.live import proof
from flox_node.containerd.live.daemon import Daemon
from flox_node.errors import FloxNodeError, RefusedError
from flox_node.host import Host
from tests.bed import releases
from tests.bed.config import node_config
from tests.conftest import FULL
from tests.containerd.dumps import RELEASES, version
from tests.unit.containerd.corpus import files

HANDLER = Handler()
HOST = Host.at("/")
Prove = Callable[[str, Path, tuple[Edit, ...]], str]


@pytest.fixture
def prove(bed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prove:
    """Prove edits of a root file with a release of the bed."""
    monkeypatch.setattr(proof, "FOLDER", str(tmp_path / "proof"))

    def run(release: str, root: Path, edits: tuple[Edit, ...]) -> str:
        exe = str(releases.program(release, "containerd"))
        found = Daemon("/none", 1, exe, str(root), "containerd.service", ())
        told = proof.prove(HOST, found, version(release), edits, HANDLER, str(root))
        assert not (tmp_path / "proof").exists(), "no copy of a configuration is left"
        return told

    return run


def _edits(release: str, root: Path) -> tuple[Edit, ...]:
    return Plain(str(root)).edits(HOST.files, version(release), HANDLER, adopt=False)


@pytest.mark.parametrize("release", RELEASES)
def test_what_we_write_into_real_configurations_is_proven(release: str, prove: Prove, tmp_path: Path) -> None:
    proven = 0
    for file in sorted(files())[:: 1 if FULL else 9]:
        root = tmp_path / "config.toml"
        root.write_bytes(file.read_bytes())
        try:
            edits = _edits(release, root)
        except FloxNodeError:
            continue  # refused by the model before it comes to a proof
        if edits:
            assert prove(release, root, edits) == "", file.name
            proven += 1
    assert proven


def _node(tmp_path: Path) -> Path:
    root = tmp_path / "config.toml"
    version_line, rest = node_config().split("\n", 1)
    root.write_text(f'{version_line}\nimports = ["conf.d/*.toml"]\n{rest}')
    (tmp_path / "conf.d").mkdir()
    return root


def test_a_drop_in_is_proven_without_lying_in_its_place(prove: Prove, tmp_path: Path) -> None:
    root = _node(tmp_path)
    edits = _edits("2.1", root)
    assert [edit.path for edit in edits] == [str(tmp_path / "conf.d/50-flox-node.toml")]
    assert prove("2.1", root, edits) == ""
    assert list((tmp_path / "conf.d").iterdir()) == []


def test_a_drop_in_of_the_wrong_schema_is_refused_though_the_dump_says_nothing(prove: Prove, tmp_path: Path) -> None:
    """containerd 2.1 takes it, and silently drops the whole CRI table of a root with schema 2."""
    root = _node(tmp_path)
    (right,) = _edits("2.1", root)
    assert right.after is not None
    wrong = b"version = 3\n" + right.after.replace(b"io.containerd.grpc.v1.cri", b"io.containerd.cri.v1.runtime")
    with pytest.raises(RefusedError, match=r"different schemas|not read|would be"):
        prove("2.1", root, (Edit(right.path, None, wrong),))


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("SystemdCgroup = false", "SystemdCgroup = true", "SystemdCgroup would be True"),
        ('sandbox_image = "flox.test/pause:1"', "", "would be"),
        ("restrict_oom_score_adj = true", "", "restrict_oom_score_adj would be None and not True"),
        ("runtimes.flox.options]", "runtimes.fl0x.options]", "would"),
        ("BinaryName", "BinaryNames", "would not start /opt/flox-node/bin/flox-runtime"),
        ('default_runtime_name = "runc"', 'default_runtime_name = "flox"', "default_runtime_name would be 'flox'"),
        ("[plugins", "[[plugins", "is not TOML"),
    ],
)
def test_an_edit_that_changes_anything_else_is_refused_by_name(
    prove: Prove, tmp_path: Path, release: str, old: str, new: str, says: str
) -> None:
    root = tmp_path / "config.toml"
    root.write_text(node_config())
    (right,) = _edits(release, root)
    assert right.after is not None
    assert old.encode() in right.after
    wrong = Edit(right.path, right.before, right.after.replace(old.encode(), new.encode(), 1))
    with pytest.raises(RefusedError, match=says):
        prove(release, root, (wrong,))


@pytest.mark.parametrize("release", RELEASES)
def test_an_import_that_leads_nowhere_is_found_although_the_dump_may_hide_it(
    prove: Prove, tmp_path: Path, release: str
) -> None:
    root = tmp_path / "config.toml"
    root.write_text(node_config())
    (right,) = _edits(release, root)
    assert right.after is not None
    wrong = Edit(right.path, right.before, b'imports = ["/nowhere/at/all.toml"]\n' + right.after)
    with pytest.raises(RefusedError, match="does not exist"):
        prove(release, root, (wrong,))
