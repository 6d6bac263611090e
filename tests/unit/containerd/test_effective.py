"""The effective configuration of several files: the table of `facts`, findings, and where our handler belongs."""

from dataclasses import replace
from typing import Any

import pytest

from flox_node.containerd.config import schema
from flox_node.containerd.config.editor import Handler, register
from flox_node.containerd.config.effective import Effective, MapReader, glob, load
from flox_node.containerd.config.placement import PlacedEdit, place, prove, withdraw
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError

ROOT = "/etc/containerd/config.toml"
DROP = "/etc/containerd/conf.d/99-x.toml"
GRPC, RUNTIME = schema.CRI_GRPC, schema.CRI_RUNTIME
IMPORTS = 'imports = ["/etc/containerd/conf.d/*.toml"]\n'


def version(text: str) -> ContainerdVersion:
    return ContainerdVersion.parse(text)


def runtime(plugin: str, name: str, options: str = "") -> str:
    path = f'plugins."{plugin}".containerd.runtimes.{name}'
    return f'[{path}]\nruntime_type = "io.containerd.runc.v2"\n[{path}.options]\n{options}\n'


def effective(containerd: str, **files: str) -> Effective:
    paths = {"root": ROOT, "drop": DROP, "other": "/etc/containerd/conf.d/10-y.toml"}
    reader = MapReader({paths[name]: text.encode() for name, text in files.items()})
    return load(ROOT, reader, version(containerd))


ROOT_2 = "version = 2\n" + IMPORTS + runtime(GRPC, "runc", "SystemdCgroup = true")
ROOT_3 = "version = 3\n" + IMPORTS + runtime(RUNTIME, "runc", "SystemdCgroup = true")


def outcome(found: Effective) -> str:
    """refused, dead, "flox" (there, runc as before), "runc lost" or "no flox"."""
    if found.cri is None or found.state != "ok":
        return found.state
    kept = found.cri.runtimes["runc"].get("options") == {"SystemdCgroup": True}
    if "flox" not in found.cri.runtimes:
        return "no flox"
    return "flox" if kept else "runc lost"


@pytest.mark.parametrize(
    ("root", "drop_in", "expected"),
    [
        # root, drop-in -> 1.7, 2.1, 2.3.4, 2.4 (facts/platforms.md 2.4, measured)
        (ROOT_2, "version = 2\n" + runtime(GRPC, "flox"), ["dead", "flox", "flox", "flox"]),
        (ROOT_2, runtime(GRPC, "flox"), ["dead", "flox", "flox", "flox"]),
        (ROOT_2, "version = 3\n" + runtime(RUNTIME, "flox"), ["refused", "runc lost", "refused", "flox"]),
        (ROOT_2, runtime(RUNTIME, "flox"), ["no flox", "runc lost", "flox", "flox"]),
        (ROOT_3, "version = 3\n" + runtime(RUNTIME, "flox"), ["refused", "flox", "flox", "flox"]),
        (ROOT_3, runtime(RUNTIME, "flox"), ["refused", "flox", "flox", "flox"]),
        (ROOT_3, "version = 2\n" + runtime(GRPC, "flox"), ["dead", "no flox", "flox", "flox"]),
        (ROOT_3, runtime(GRPC, "flox"), ["refused", "no flox", "flox", "flox"]),
        (ROOT_3, "version = 4\n" + runtime(RUNTIME, "flox"), ["refused", "refused", "refused", "flox"]),
    ],
)
def test_versions_of_root_and_drop_in_clash_as_measured(root: str, drop_in: str, expected: list[str]) -> None:
    found = [outcome(effective(release, root=root, drop=drop_in)) for release in ("1.7.24", "2.1.9", "2.3.4", "2.4.0")]
    assert found == expected


def codes(found: Effective) -> dict[str, str]:
    return {finding.code: finding.file for finding in found.findings}


def test_nvidias_drop_in_shadows_the_root_on_1_7_and_is_merged_on_2x() -> None:
    nvidia = "version = 2\n" + runtime(GRPC, "runc") + runtime(GRPC, "nvidia")
    assert codes(effective("1.7.24", root=ROOT_2, drop=nvidia)) == {"shadowed": ROOT}
    assert codes(effective("2.1.9", root=ROOT_2, drop=nvidia)) == {}


def test_findings_name_what_a_reader_would_not_expect() -> None:
    both = "version = 2\n" + runtime(GRPC, "runc") + runtime(RUNTIME, "crun")
    assert codes(effective("2.1.9", root=both)).keys() == {"two-plugin-ids", "ignored-table"}
    assert codes(effective("2.1.9", root="version = 2\n", drop="")) == {"not-imported": ROOT}
    clash = effective("2.1.9", root=ROOT_2, drop="version = 3\n" + runtime(RUNTIME, "kata"))
    assert codes(clash).keys() == {"version-clash", "ignored-table"}
    missing = effective("2.1.9", root='version = 2\nimports = ["absent.toml"]\n')
    assert missing.state == "refused"
    assert "/etc/containerd/absent.toml" in (missing.refused or "")
    assert codes(effective("1.6.20", root='version = 2\nimports = ["conf.d/*.toml"]\n'))["relative-pattern"] == ROOT


MIRRORS = f'version = 2\n[plugins."{GRPC}".registry.mirrors."docker.io"]\nendpoint = ["https://mirror.example"]\n'


@pytest.mark.parametrize(
    ("containerd", "state"),
    [("2.1.9", "ok"), ("2.2.0", "dead"), ("2.2.1", "dead"), ("2.2.2", "ok"), ("2.2.7", "ok"), ("2.4.2", "ok")],
)
def test_two_releases_take_a_folder_of_hosts_for_granted_that_mirrors_exclude(containerd: str, state: str) -> None:
    """https://github.com/containerd/containerd/issues/12612"""
    found = effective(containerd, root=MIRRORS)
    assert found.state == state
    assert "mirrors" in found.cri.reason if found.cri and state == "dead" else found.findings == ()
    empty = MIRRORS.replace("[plugins", f'[plugins."{GRPC}".registry]\nconfig_path = ""\n[plugins', 1)
    assert effective(containerd, root=empty).state == "ok"


def test_a_base_specification_is_missed_only_where_the_whole_node_is_known() -> None:
    text = runtime(GRPC, "runc").replace("runc.v2", 'runc.v2"\nbase_runtime_spec = "/spec.json').encode()
    memory = MapReader({ROOT: b"version = 2\n" + text})
    assert load(ROOT, memory, version("2.1.9")).state == "ok"

    class Node(MapReader):
        is_whole = True

    (finding,) = load(ROOT, Node({ROOT: b"version = 2\n" + text}), version("2.1.9")).findings
    assert (finding.code, "/spec.json" in finding.text) == ("cri-dead", True)
    whole = Node({ROOT: b"version = 2\n" + text, "/spec.json": b"{}"})
    assert load(ROOT, whole, version("2.1.9")).state == "ok"


NVIDIA_4 = "version = 4\n" + runtime(RUNTIME, "nvidia", 'BinaryName = "/usr/bin/nvidia-container-runtime"')


@pytest.mark.parametrize("containerd", ["2.1.9", "2.2.7", "2.3.4"])
def test_a_refused_schema_is_told_with_its_file_and_nvidias_with_the_toolkits_own_way_out(containerd: str) -> None:
    (finding,) = effective(containerd, root=ROOT_3, drop=NVIDIA_4).findings
    assert finding.file == DROP
    assert finding.text.startswith(f"{DROP}: ")
    assert "RUNTIME_CONFIG_SOURCE=file" in finding.text
    assert "ENABLE_NRI_PLUGIN" in finding.text
    (other,) = effective(containerd, root=ROOT_3, drop="version = 9\n").findings
    assert other.file == DROP
    assert "RUNTIME_CONFIG" not in other.text


def test_the_streaming_servers_keys_are_read_under_the_id_of_schema_2_by_every_schema() -> None:
    server = f'[plugins."{GRPC}"]\nstream_server_port = "10010"\n'
    for root in (ROOT_2, ROOT_3):
        assert effective("2.1.9", root=root, drop=server).findings == ()
    assert codes(effective("2.1.9", root=ROOT_3, drop=server + "enable_selinux = true\n")) == {"ignored-table": DROP}


def test_every_value_is_traced_to_its_file_and_line() -> None:
    drop_in = f'[plugins."{GRPC}".containerd.runtimes.runc.options]\nBinaryName = "/usr/bin/crun"\n'
    found = effective("2.1.9", root=ROOT_2, drop=drop_in)
    where = {setting.path[-1]: (setting.value, setting.file, setting.line) for setting in found.settings}
    assert where["SystemdCgroup"] == (True, ROOT, 6)
    assert where["BinaryName"] == ("/usr/bin/crun", DROP, 2)


def test_files_load_in_containerds_order_and_loops_end() -> None:
    reader = MapReader(
        {
            ROOT: b'imports = ["conf.d/*.toml", "last.toml"]\n',
            "/etc/containerd/conf.d/b.toml": b'imports = ["../config.toml", "nested/*.toml"]\n',
            "/etc/containerd/conf.d/.a.toml": b"",
            "/etc/containerd/conf.d/nested/n.toml": b"",
            "/etc/containerd/last.toml": b"",
        }
    )
    found = load(ROOT, reader, version("2.1.9"))
    assert [file.path.removeprefix("/etc/containerd/") for file in found.files] == [
        "config.toml",
        "conf.d/.a.toml",
        "conf.d/b.toml",
        "last.toml",
        "conf.d/nested/n.toml",
    ]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [("/d/*.toml", [".c.toml", "a.toml", "b.toml"]), ("/d/[ab].*", ["a.toml", "b.toml"]), ("/*/a.toml*", ["a.toml"])],
)
def test_patterns_match_by_gos_rules(pattern: str, names: list[str]) -> None:
    reader = MapReader({f"/d/{name}": b"" for name in ("a.toml", "b.toml", ".c.toml", "x.conf")})
    assert glob(pattern, reader) == [f"/d/{name}" for name in names]


def edits(containerd: str, files: dict[str, str], **options: Any) -> tuple[PlacedEdit, ...]:
    reader = MapReader({path: text.encode() for path, text in files.items()})
    return place(load(ROOT, reader, version(containerd)), reader, Handler(), **options)


def test_on_1x_the_table_goes_into_the_file_that_counts_and_into_the_root_it_shadows() -> None:
    nvidia = "version = 2\n" + runtime(GRPC, "runc") + runtime(GRPC, "nvidia")
    assert [edit.path for edit in edits("1.7.24", {ROOT: ROOT_2, DROP: nvidia})] == [DROP, ROOT]
    assert [edit.path for edit in edits("1.7.24", {ROOT: ROOT_2})] == [ROOT]


@pytest.mark.parametrize(
    ("containerd", "root", "plugin"),
    [
        *[(containerd, ROOT_2, GRPC) for containerd in ("2.0.11", "2.1.9", "2.2.7", "2.3.4", "2.4.2")],
        *[(containerd, ROOT_3, RUNTIME) for containerd in ("2.3.4", "2.4.2")],
    ],
)
def test_on_2x_our_own_file_goes_where_the_root_imports_from(containerd: str, root: str, plugin: str) -> None:
    (edit,) = edits(containerd, {ROOT: root})
    assert (edit.path, edit.kind, edit.before) == ("/etc/containerd/conf.d/50-flox-node.toml", "drop-in", None)
    assert edit.after is not None
    assert b"version" not in edit.after
    assert edit.patch.plugin_id == plugin
    assert edit.patch.inherited == {"options": {"SystemdCgroup": True}}
    (again,) = edits(containerd, {ROOT: root, edit.path: edit.after.decode()})
    assert not again.changed


@pytest.mark.parametrize("containerd", ["2.0.11", "2.1.9", "2.2.7"])
def test_until_2_2_a_root_of_schema_3_is_edited_because_a_file_of_ours_would_hide_its_successors_runtimes(
    containerd: str,
) -> None:
    (edit,) = edits(containerd, {ROOT: ROOT_3})
    assert (edit.path, edit.kind, edit.patch.plugin_id) == (ROOT, "in-place", RUNTIME)
    # What a file of ours would do as soon as the root is written anew with schema 2:
    ours = runtime(RUNTIME, "flox", 'BinaryName = "/opt/flox-node/bin/flox-runtime"')
    assert outcome(effective(containerd, root=ROOT_2, drop=ours)) == "runc lost"


def test_on_2x_without_an_imported_folder_the_root_is_edited() -> None:
    (edit,) = edits("2.1.9", {ROOT: "version = 2\n" + runtime(GRPC, "runc")})
    assert (edit.path, edit.kind) == (ROOT, "in-place")


def test_a_missing_root_file_is_created_and_removed_empty() -> None:
    (edit,) = edits("2.1.9", {})
    assert (edit.before, edit.path) == (None, ROOT)


def test_nothing_is_placed_where_containerd_has_no_cri() -> None:
    with pytest.raises(RefusedError, match="disabled"):
        edits("2.1.9", {ROOT: 'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n'})
    with pytest.raises(RefusedError, match="declares version"):
        edits("2.3.4", {ROOT: ROOT_2, DROP: "version = 3\n"})


def test_a_foreign_handler_in_another_file_is_refused_and_adopted_only_when_told() -> None:
    foreign = runtime(GRPC, "flox", 'BinaryName = "/usr/bin/other"')
    for where in (ROOT, DROP):
        files = {ROOT: ROOT_2, where: (ROOT_2 if where == ROOT else "") + foreign}
        with pytest.raises(RefusedError, match=rf"{where}: .* not ours"):
            edits("2.1.9", files)
        # Replaced where it stands: a drop-in of ours would be mixed with what the other says.
        (edit,) = edits("2.1.9", files, adopt=True)
        assert (edit.path, edit.kind) == (where, "in-place")
        placed = MapReader({**{path: text.encode() for path, text in files.items()}, where: edit.after})
        found = load(ROOT, placed, version("2.1.9"))
        assert found.cri is not None
        assert found.cri.runtimes["flox"]["options"]["BinaryName"] == Handler().binary_name
        (back,) = withdraw(found, placed, Handler())
        assert (back.path, back.after) == (where, files[where].encode())


@pytest.mark.parametrize("containerd", ["1.7.24", "2.1.9", "2.3.4"])
def test_withdrawing_gives_back_every_byte(containerd: str) -> None:
    files = {ROOT: ROOT_2, DROP: "version = 2\n" + runtime(GRPC, "runc") + runtime(GRPC, "nvidia")}
    before = {path: text.encode() for path, text in files.items()}
    placed = {**before, **{edit.path: edit.after or b"" for edit in edits(containerd, files)}}
    reader = MapReader(placed)
    gone = withdraw(load(ROOT, reader, version(containerd)), reader, Handler())
    after: dict[str, bytes | None] = {**placed, **{edit.path: edit.after for edit in gone}}
    assert {path: content for path, content in after.items() if content is not None} == before
    assert withdraw(load(ROOT, MapReader(before), version(containerd)), MapReader(before), Handler()) == ()


_OTHER = runtime(GRPC, "other")
_DEFAULT = f'[plugins."{GRPC}".containerd]\ndefault_runtime_name = "flox"\n'
_REGISTRY = f'[plugins."{GRPC}".registry]\nconfig_path = "/elsewhere"\n'


@pytest.mark.parametrize(
    ("containerd", "added"),
    [("1.7.24", _OTHER), ("1.7.24", _DEFAULT), ("2.1.9", _OTHER), ("2.1.9", _DEFAULT), ("2.1.9", _REGISTRY)],
)
def test_an_edit_that_changes_another_setting_is_refused_before_it_is_written(containerd: str, added: str) -> None:
    found = effective(containerd, root=ROOT_2.replace(IMPORTS, ""))
    handler = Handler("flox", "/opt/flox-node/bin/flox-runtime")
    (edit,) = place(found, found.reader, handler)
    assert edit.after is not None
    prove(found, found, handler, (edit,))
    with pytest.raises(RefusedError, match="would change other settings"):
        prove(found, found, handler, (replace(edit, after=edit.after + added.encode()),))


def test_a_file_of_ours_that_would_hide_the_root_once_a_neighbours_goes_is_refused() -> None:
    """On 1.x the neighbour's file hides the root's runtimes; as soon as it goes, those must be there again."""
    neighbours = "version = 2\n" + runtime(GRPC, "runc") + runtime(GRPC, "nvidia")
    found = effective("1.7.24", root=ROOT_2 + runtime(GRPC, "kata"), other=neighbours)
    handler = Handler("flox", "/opt/flox-node/bin/flox-runtime")
    beside = next(edit for edit in place(found, found.reader, handler) if edit.path != ROOT)
    with pytest.raises(RefusedError, match=f"would be lost as soon as {beside.path} goes away"):
        prove(found, found, handler, (replace(beside, path=DROP, before=None),))


def test_a_table_that_would_hide_the_root_once_all_neighbours_are_gone_is_refused() -> None:
    """Two files of schema 3 over a root of schema 2: as long as one of them is there, the newer id hides nothing."""
    neighbours = {name: "version = 3\n" + runtime(RUNTIME, name) for name in ("drop", "other")}
    found = effective("2.1.9", root=ROOT_2, **neighbours)
    patch = register(ROOT_2.encode(), Handler(), version("2.1.9"), context=found.cri, plugin=RUNTIME)
    mine = PlacedEdit(ROOT, ROOT_2.encode(), patch.result, "in-place", patch)
    with pytest.raises(RefusedError, match=r"as soon as \S+/10-y\.toml and \S+/99-x\.toml go away"):
        prove(found, found, Handler(), (mine,))


@pytest.mark.parametrize("containerd", ["2.0.11", "2.1.9", "2.2.7"])
def test_what_was_placed_between_neighbours_of_another_schema_stays_where_it_is(containerd: str) -> None:
    """NVIDIA's toolkit writes a dump with its own default and a copy of ours, then another file of schema 3 comes."""
    (ours,) = edits(containerd, {ROOT: ROOT_2})
    assert ours.after is not None
    dump = (
        f'version = 3\n[plugins."{RUNTIME}".containerd]\ndefault_runtime_name = "nvidia"\n'
        + runtime(RUNTIME, "runc", "SystemdCgroup = true")
        + runtime(RUNTIME, "nvidia", 'BinaryName = "/usr/bin/nvidia-container-runtime"')
        + runtime(RUNTIME, "flox", f'BinaryName = "{Handler().binary_name}"\nSystemdCgroup = true')
    )
    files = {ROOT: ROOT_2, ours.path: ours.after.decode(), DROP: dump}
    files["/etc/containerd/conf.d/60-other.toml"] = "version = 3\n" + runtime(RUNTIME, "kata")
    placed = edits(containerd, files)
    assert [(edit.path, edit.patch.plugin_id) for edit in placed] == [(ours.path, GRPC), (DROP, RUNTIME)]
    files |= {edit.path: (edit.after or b"").decode() for edit in placed}
    assert [edit.path for edit in edits(containerd, files) if edit.changed] == []


@pytest.mark.parametrize("containerd", ["1.7.24", "2.1.9", "2.4.0"])
def test_an_empty_value_of_an_imported_file_hides_nothing_of_the_root(containerd: str) -> None:
    """As the daemons do it: https://github.com/containerd/containerd/blob/main/cmd/containerd/server/config/config.go"""
    root = f'version = 2\nroot = "/data"\noom_score = -999\n{IMPORTS}[grpc]\naddress = "/run/other.sock"\n'
    found = effective(containerd, root=root, drop='version = 2\nroot = ""\noom_score = 0\n[grpc]\naddress = ""\n')
    assert (found.merged["root"], found.merged["oom_score"]) == ("/data", -999)
    assert found.merged["grpc"]["address"] == "/run/other.sock"
