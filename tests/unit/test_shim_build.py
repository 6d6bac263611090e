"""The hook that compiles the shim while the wheel is built."""

from __future__ import annotations

import os
from pathlib import Path

import hatch_build
import pytest

from tests.bed import golang


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small program, and a Go to compile it with on machines that have none."""
    monkeypatch.setenv("PATH", f"{Path(golang.go()).parent}:{os.environ['PATH']}")
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "go.mod").write_text("module example\n\ngo 1.22\n")
    (folder / "main.go").write_text("package main\n\nfunc main() {}\n")
    return folder


def test_both_architectures_are_built_to_the_same_bytes_each_time(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    hatch_build.build_shim(source, tmp_path / "one", said.append)
    monkeypatch.setenv("GOFLAGS", "-ldflags=-X=main.x=y")
    monkeypatch.setenv("CGO_ENABLED", "1")
    moved = source.rename(tmp_path / "elsewhere")
    hatch_build.build_shim(moved, tmp_path / "two", said.append)
    assert len(said) == 4
    for arch in hatch_build.ARCHITECTURES:
        one, two = (tmp_path / folder / f"flox-runtime-{arch}" for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        assert one.stat().st_mode & 0o777 == 0o755
    machines = [(tmp_path / "one" / f"flox-runtime-{arch}").read_bytes()[18] for arch in ("amd64", "arm64")]
    assert machines == [0x3E, 0xB7], "the machine field of the ELF header"


def test_nothing_is_compiled_again_until_the_source_changes(source: Path, tmp_path: Path) -> None:
    said: list[str] = []
    target = tmp_path / "target"
    hatch_build.build_shim(source, target, said.append)
    (source / "main_test.go").write_text("package main\n")
    hatch_build.build_shim(source, target, said.append)
    assert len(said) == 2
    (source / "main.go").write_text('package main\n\nfunc main() { println("x") }\n')
    hatch_build.build_shim(source, target, said.append)
    assert len(said) == 4
    (target / "flox-runtime-arm64").unlink()
    hatch_build.build_shim(source, target, said.append)
    assert len(said) == 6


def test_a_source_that_does_not_compile_leaves_no_record_of_a_build(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    (source / "main.go").write_text("package main\n\nfunc main() { nonsense }\n")
    with pytest.raises(Exception, match="returned non-zero exit status"):
        hatch_build.build_shim(source, target, print)
    assert not list(target.iterdir())
