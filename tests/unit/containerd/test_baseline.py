"""Meaning, not letters; and the configuration without us is what everything is judged against, never our leftovers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from flox_node.containerd.config import block, schema
from flox_node.containerd.config.editor import Handler, table_for
from flox_node.containerd.config.effective import Effective, MapReader, load
from flox_node.containerd.config.ours import is_ours_alone, shaped_by_us, withdraw, without_us
from flox_node.containerd.config.placement import place
from flox_node.containerd.config.version import ContainerdVersion

ROOT = "/etc/containerd/config.toml"
OURS = "/etc/containerd/conf.d/50-flox-node.toml"
NVIDIAS = "/etc/containerd/conf.d/99-nvidia.toml"
FLOX = Handler()
SYSTEMD = {"runtime_type": schema.RUNC_V2, "options": {"SystemdCgroup": True}}
RUNC = {"runc": SYSTEMD}
NVIDIA = {"runtime_type": schema.RUNC_V2, "options": {"BinaryName": "/usr/bin/nvidia-container-runtime"}}
WANTED = table_for(FLOX, SYSTEMD)
IDS = {2: schema.CRI_GRPC, 3: schema.CRI_RUNTIME}
SPELT_OUT = {
    "cni_conf_dir": "",
    "cni_max_conf_num": 0,
    "io_type": "",
    "privileged_without_host_devices": False,
    "runtime_path": "",
    "sandboxer": "podsandbox",
    "snapshotter": "",
}

Files = dict[str, bytes]
Tables = Mapping[str, Mapping[str, Any]]


def spelt_out(values: Mapping[str, Any]) -> dict[str, Any]:
    """A runtime's table as `containerd config dump` tells it: every key, sorted."""
    options = {"CriuPath": "", "NoPivotRoot": False, "ShimCgroup": "", **values.get("options", {})}
    return dict(sorted({**SPELT_OUT, **values, "options": dict(sorted(options.items()))}.items()))


def file(number: int, runtimes: Tables, *, imports: bool = False, head: bool = True) -> bytes:
    line = 'imports = ["/etc/containerd/conf.d/*.toml"]\n' if imports else ""
    tables: dict[tuple[str, ...], Mapping[str, Any]] = {
        ("plugins", IDS[number], "containerd", "runtimes", name): values for name, values in runtimes.items()
    }
    return ((f"version = {number}\n{line}" if head else "") + block.tables_text(tables, "\n")).encode()


def loaded(release: str, files: Files) -> Effective:
    return load(ROOT, MapReader(files), ContainerdVersion.parse(release))


def placed(release: str, files: Files) -> tuple[list[str], Files]:
    """The paths that are written, and the files then."""
    found = loaded(release, files)
    changed = [edit for edit in place(found, found.reader, FLOX) if edit.changed]
    after: dict[str, bytes | None] = {**files, **{edit.path: edit.after for edit in changed}}
    return [edit.path for edit in changed], {path: data for path, data in after.items() if data is not None}


# Meaning, not letters


@pytest.mark.parametrize("release", ["1.7.24", "2.1.9", "2.3.7", "2.4.2"])
def test_a_dump_that_a_tool_writes_back_with_our_handler_in_it_is_ours_and_there_already(release: str) -> None:
    _, files = placed(release, {ROOT: file(2, RUNC, imports=True)})
    number = 2 if release < "2" else 3
    if release < "2.3":  # until then the dump's schema would make the root's and ours dead text
        files[ROOT] = file(number, RUNC, imports=True)
        _, files = placed(release, files)
    runtimes = {"flox": WANTED, "nvidia": NVIDIA, "runc": SYSTEMD}
    dumped = {name: spelt_out(values) for name, values in sorted(runtimes.items())}
    files[NVIDIAS] = file(number, dumped, head=release < "2.3")
    assert placed(release, files)[0] == []


@pytest.mark.parametrize(
    ("release", "imports"), [("1.7.24", False), ("2.1.9", False), ("2.1.9", True), ("2.4.2", True)]
)
def test_our_table_in_other_words_is_there_already(release: str, imports: bool) -> None:
    """Somebody's formatter, `config migrate`: other order and quoting, defaults spelt out, no comments."""
    root = file(2, RUNC, imports=imports)
    if imports:
        files = {ROOT: root, OURS: file(2, {"flox": spelt_out(WANTED)}, head=False)}
    else:
        files = {ROOT: file(2, {**RUNC, "flox": spelt_out(WANTED)})}
    quoted = {path: data.replace(b'"podsandbox"', b"'podsandbox'") for path, data in files.items()}
    assert quoted != files
    assert placed(release, quoted)[0] == []


# The configuration without us

LEFT_BEHIND = [
    pytest.param({ROOT: file(2, RUNC, imports=True)}, {OURS: file(3, {"flox": WANTED}, head=False)}, id="own file"),
    pytest.param(
        {ROOT: file(2, RUNC, imports=True)},
        {ROOT: file(2, RUNC, imports=True) + file(3, {"flox": WANTED}, head=False)},
        id="table in the root",
    ),
]


@pytest.mark.parametrize("release", ["2.0.11", "2.1.9", "2.2.7"])
@pytest.mark.parametrize(("bare", "ours"), LEFT_BEHIND)
def test_what_our_leftovers_hide_of_the_root_is_in_force_again(release: str, bare: Files, ours: Files) -> None:
    """Ours was written for a schema that is gone since: what is in force now is of our making, and no baseline."""
    files = {**bare, **ours}
    before = loaded(release, files)
    assert before.cri is not None
    assert before.cri.runtimes["runc"].get("options") is None, "ours hides it"
    assert shaped_by_us(before, without_us(before, FLOX), FLOX) == {"runc"}
    assert without_us(before, FLOX).cri == loaded(release, bare).cri
    changed, files = placed(release, files)
    after = loaded(release, files)
    assert changed
    assert after.cri is not None
    assert after.cri.runtimes == {"runc": SYSTEMD, "flox": WANTED}


@pytest.mark.parametrize("release", ["2.0.11", "2.1.9", "2.4.2"])
def test_a_torn_file_of_ours_that_keeps_containerd_down_is_written_anew(release: str) -> None:
    files = {ROOT: file(2, RUNC, imports=True), OURS: b"[plugins"}
    assert loaded(release, files).state == "refused"
    changed, files = placed(release, files)
    assert (changed, loaded(release, files).state) == ([OURS], "ok")


@pytest.mark.parametrize("release", ["1.7.24", "2.1.9", "2.4.2"])
def test_an_administrator_who_makes_ours_the_default_does_not_make_it_the_baseline(release: str) -> None:
    """Options are inherited from what is the default without us, and the install is not refused."""
    files = {ROOT: file(2, {**RUNC, "flox": WANTED})}
    files[ROOT] += f'[plugins."{schema.CRI_GRPC}".containerd]\ndefault_runtime_name = "flox"\n'.encode()
    assert placed(release, files)[0] == []


@pytest.mark.parametrize("release", ["1.7.24", "2.1.9", "2.4.2"])
def test_a_copy_of_ours_in_a_folder_that_no_root_imports_any_more_goes_too(release: str) -> None:
    """An import of it would bring us back. What others say there stays, and a file without us is not touched."""
    copy = file(2, {"flox": spelt_out(WANTED), "nvidia": NVIDIA})
    stranger = b"not [ TOML, and no flox"
    files = {ROOT: file(2, RUNC), NVIDIAS: copy, "/etc/containerd/conf.d/z.toml": stranger}
    edits = withdraw(loaded(release, files), MapReader(files), FLOX)
    assert [(edit.path, edit.kind) for edit in edits] == [(NVIDIAS, "in-place")]
    assert edits[0].after == file(2, {"nvidia": NVIDIA})


@pytest.mark.parametrize(
    ("text", "ours"),
    [
        (b"", True),
        (b"[plugins", True),
        (file(2, {"flox": WANTED}, head=False), True),
        (file(2, {"flox": WANTED}), True),
        (file(2, {"flox": {**WANTED, "options": {"BinaryName": "/usr/bin/other"}}}), False),
        (b"# flox-node: this file is written\n" + file(2, {"flox": {"runtime_type": "x"}}), True),
        (file(2, {"flox": WANTED, "kata": NVIDIA}), False),
        (b'[debug]\nlevel = "debug"\n', False),
        (b"# a note of somebody's\n", False),
    ],
)
def test_a_file_is_ours_alone_where_it_says_nothing_else(text: bytes, ours: bool) -> None:
    assert is_ours_alone(text, ContainerdVersion.parse("2.1.9"), "flox") is ours
