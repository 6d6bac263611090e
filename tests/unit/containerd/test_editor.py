"""One handler in one file, every other byte as before."""

import tomllib

import pytest

from flox_node.containerd.config import schema
from flox_node.containerd.config.editor import Handler, Patch, register, remove
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import RefusedError

V1_6, V1_7, V2_1, V2_3 = (ContainerdVersion.parse(text) for text in ("1.6.20", "1.7.24", "2.1.9", "2.3.4"))
ALL = [V1_6, V1_7, V2_1, V2_3]
OURS = Handler()
CRI = f'plugins."{schema.CRI_GRPC}"'
RUNC = f'version = 2\n[{CRI}.containerd.runtimes.runc]\nruntime_type = "io.containerd.runc.v2"\n'.encode()


def flox(patch: Patch) -> dict[str, object]:
    data = tomllib.loads(patch.result.decode())
    return schema.table(data, "plugins", patch.plugin_id, "containerd", "runtimes", "flox")


def test_the_handler_inherits_options_and_base_spec_of_the_default_runtime_and_hands_over_its_binary() -> None:
    source = f"""version = 2
[{CRI}.containerd]
default_runtime_name = "crun"
[{CRI}.containerd.runtimes.crun]
runtime_type = "io.containerd.runc.v2"
base_runtime_spec = "/etc/containerd/base.json"
[{CRI}.containerd.runtimes.crun.options]
BinaryName = "/usr/bin/crun"
SystemdCgroup = true
Root = "/run/crun"
""".encode()
    patch = register(source, OURS, V1_7)
    assert patch.inner_runtime == "/usr/bin/crun"
    assert patch.inherited_from == "crun"
    assert patch.inherited == {
        "options": {"SystemdCgroup": True, "Root": "/run/crun"},
        "base_runtime_spec": "/etc/containerd/base.json",
    }
    assert flox(patch) == {
        "runtime_type": "io.containerd.runc.v2",
        "pod_annotations": ["flox.dev/*"],
        "container_annotations": ["flox.dev/*"],
        "base_runtime_spec": "/etc/containerd/base.json",
        "options": {"BinaryName": "/opt/flox-node/bin/flox-runtime", "SystemdCgroup": True, "Root": "/run/crun"},
    }
    assert patch.result.startswith(source)


@pytest.mark.parametrize("kind", ["io.containerd.kata.v2", "io.containerd.runsc.v1"])
def test_a_default_that_is_not_runc_is_passed_over_for_runc_else_refused(kind: str) -> None:
    default = f"""[{CRI}.containerd]
default_runtime_name = "other"
[{CRI}.containerd.runtimes.other]
runtime_type = "{kind}"
[{CRI}.containerd.runtimes.other.options]
ConfigPath = "/x"
""".encode()
    patch = register(RUNC + default, OURS, V1_7)
    assert (patch.inherited_from, patch.inherited) == ("runc", {})
    with pytest.raises(RefusedError, match="is of type"):
        register(b"version = 2\n" + default, OURS, V1_7)
    assert register(b"version = 2\n" + default, OURS, V2_1).inherited_from == "runc"  # built in on 2.x


@pytest.mark.parametrize("containerd", [V1_6, V1_7])
def test_on_1x_a_file_without_runtimes_gets_runc_too_and_removal_takes_both(containerd: ContainerdVersion) -> None:
    source = f'version = 2\n[{CRI}]\nsandbox_image = "pause:3.9"'.encode()  # no newline at its end
    patch = register(source, OURS, containerd)
    assert patch.added_runc
    assert b"runtimes.runc]" in patch.result
    assert remove(patch.result, OURS, containerd).result == source


def test_a_runc_that_we_added_stays_when_somebody_came_to_rely_on_it() -> None:
    first = register(b"version = 2\n", OURS, V1_7)
    kata = f'[{CRI}.containerd.runtimes.kata]\nruntime_type = "io.containerd.kata.v2"\n'.encode()
    left = remove(first.result + kata, OURS, V1_7).result
    runtimes = tomllib.loads(left.decode())["plugins"][schema.CRI_GRPC]["containerd"]["runtimes"]
    assert set(runtimes) == {"runc", "kata"}
    assert b"flox" not in left


def test_a_runc_that_we_added_and_somebody_edited_stays() -> None:
    patch = register(b"version = 2\n", OURS, V1_7)
    head = f"[{CRI}.containerd.runtimes.runc]\n".encode()
    edited = patch.result.replace(head, head + b"snapshotter = 'native'\n")
    left = tomllib.loads(remove(edited, OURS, V1_7).result.decode())
    assert left["plugins"][schema.CRI_GRPC]["containerd"]["runtimes"]["runc"]["snapshotter"] == "native"


@pytest.mark.parametrize("containerd", ALL)
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\n\n", b"\n# last words", b"\n\t "])
def test_whatever_ends_a_file_comes_back(containerd: ContainerdVersion, end: bytes) -> None:
    source = RUNC.rstrip() + end
    patch = register(source, OURS, containerd)
    assert patch.changed
    assert remove(patch.result, OURS, containerd).result == source
    again = register(patch.result, OURS, containerd)
    assert (again.changed, again.result) == (False, patch.result)


def test_the_block_has_the_line_ends_of_the_file() -> None:
    patch = register(RUNC.replace(b"\n", b"\r\n"), OURS, V2_1)
    assert patch.result.count(b"\n") == patch.result.count(b"\r\n")


def test_what_others_append_after_us_stays_when_we_go() -> None:
    later = b"[proxy_plugins.nydus]\ntype = 'snapshot'\naddress = '/run/nydus'\n"
    for source in (RUNC, RUNC.rstrip()):
        patch = register(source, OURS, V1_7)
        assert remove(patch.result + later, OURS, V1_7).result == RUNC + later


def test_our_table_is_found_and_removed_when_a_tool_dropped_our_marks() -> None:
    patch = register(RUNC, OURS, V1_7)
    bare = b"".join(line for line in patch.result.splitlines(keepends=True) if not line.startswith(b"#"))
    assert not register(bare, OURS, V1_7).changed
    assert remove(bare, OURS, V1_7).result == RUNC


def test_a_stale_table_of_ours_is_replaced_where_it_stands() -> None:
    old = register(RUNC, Handler(binary_name="/old/bin/flox-runtime"), V1_7)
    later = b"[debug]\nlevel = 'info'\n"
    new = register(old.result + later, OURS, V1_7)
    assert new.result == register(RUNC, OURS, V1_7).result + later


def test_lines_that_somebody_put_between_our_marks_stay() -> None:
    patch = register(RUNC, OURS, V1_7)
    theirs = b"[debug]\nlevel = 'info'\n"
    mixed = patch.result.replace(b"# flox-node: end", theirs + b"# flox-node: end")
    assert remove(mixed, OURS, V1_7).result == RUNC + theirs


FOREIGN = f"""[{CRI}.containerd.runtimes.flox]
  # of the vendor's installer
  runtime_type = "io.containerd.runc.v2"
  runtime_path = "/usr/local/bin/containerd-shim-flox-v2"
  [{CRI}.containerd.runtimes.flox.options]
    SystemdCgroup = true
""".encode()


@pytest.mark.parametrize("after", [b"", b"\n# words\n[debug]\nlevel = 'info'\n"])
@pytest.mark.parametrize("change", ["as it is", "CRLF", "mixed", "no newline", "odd characters"])
def test_a_foreign_flox_handler_is_refused_by_name_and_adoption_can_be_undone(after: bytes, change: str) -> None:
    foreign = {
        "as it is": FOREIGN,
        "CRLF": FOREIGN.replace(b"\n", b"\r\n"),
        "mixed": FOREIGN.replace(b"installer\n", b"installer\r\n"),
        "no newline": FOREIGN if after else FOREIGN.rstrip(),
        "odd characters": FOREIGN.replace(b"vendor's", "a\u2028b\x85c".encode()),
    }[change]
    source = RUNC + foreign + after
    with pytest.raises(RefusedError, match="containerd-shim-flox-v2") as refused:
        register(source, OURS, V1_7)
    assert "--adopt" in refused.value.remedy
    patch = register(source, OURS, V1_7, adopt=True)
    assert flox(patch)["options"] == {"BinaryName": "/opt/flox-node/bin/flox-runtime"}
    assert patch.adopted.encode() == foreign
    assert not register(patch.result, OURS, V1_7).changed
    assert remove(patch.result, OURS, V1_7).result == source
    assert remove(source, OURS, V1_7).result == source  # a foreign one is not ours to remove
    later = b"[proxy_plugins.x]\n"
    joint = b"" if source.endswith(b"\n") else b"\n"
    assert remove(patch.result + later, OURS, V1_7).result == source + joint + later


def test_a_handler_with_its_own_shim_is_known_by_the_shims_path() -> None:
    shim = Handler(binary_name=None, runtime_path="/usr/local/bin/containerd-shim-flox-v2")
    patch = register(RUNC + FOREIGN, shim, V1_7)
    assert not patch.adopted
    assert remove(patch.result, shim, V1_7).result == RUNC


@pytest.mark.parametrize(
    ("source", "containerd", "why"),
    [
        (b'disabled_plugins = ["cri"]\n', V1_7, "CRI plugin is disabled"),
        (b'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n', V2_1, "CRI plugin is disabled"),
        (b'version = 3\ndisabled_plugins = ["io.containerd.cri.v1.runtime"]\n', V2_3, "CRI plugin is disabled"),
        (f'version = 2\n[{CRI}.containerd]\ndefault_runtime_name = "x"\n'.encode(), V1_7, "even without us"),
        (b"version = 3\n", V1_7, "reads up to 2"),
        (b"version = 4\n", V2_1, "reads up to 3"),
        (b"version = 5\n", V2_3, "reads up to 4"),
        (b'{{ template "base" . }}\n', V2_1, "not TOML"),
        (b"\xef\xbb\xbfversion = 2\n", V2_1, "byte order mark"),
        (b"# x\ry\nversion = 2\n", V2_3, "not TOML"),
        (b"[a]\n[a]\n", V1_7, "not TOML"),
        (f"version = 2\n[{CRI}.containerd]\nruntimes = {{}}\n".encode(), V2_1, "inline table"),
        (f"version = 2\n[[{CRI}.containerd.runtimes]]\nx = 1\n".encode(), V2_1, "no table"),
        (b"version = 2\n[plugins.cri]\n", V1_7, "refuses the plugin name"),
        (b"version = 2\n", ContainerdVersion.parse("1.5.18"), "not supported"),
    ],
)
def test_registering_is_refused_where_it_would_be_wrong(source: bytes, containerd: ContainerdVersion, why: str) -> None:
    with pytest.raises(RefusedError, match=why) as refused:
        register(source, OURS, containerd)
    assert refused.value.remedy


def test_1_6_reads_any_version_as_schema_2() -> None:
    assert register(b"version = 3\n", OURS, V1_6).plugin_id == schema.CRI_GRPC


def test_a_first_runtime_does_not_switch_on_what_2x_ignored_without_one() -> None:
    # Schema 2's snapshotter counts on 2.x only where that table has `runtimes`.
    source = f'version = 2\n[{CRI}.containerd]\nsnapshotter = "native"\n'.encode()
    assert register(source, OURS, V2_1).plugin_id == schema.CRI_RUNTIME
    assert register(source, OURS, V1_7).plugin_id == schema.CRI_GRPC
    harmless = source.replace(b"native", b"overlayfs")
    assert register(harmless, OURS, V2_1).plugin_id == schema.CRI_GRPC


def test_a_version_3_file_whose_handlers_stand_under_the_old_id_keeps_them() -> None:
    source = RUNC.replace(b"version = 2", b"version = 3") + b"snapshotter = 'native'\n"
    assert register(source, OURS, V2_3).plugin_id == schema.CRI_GRPC  # 2.3 migrates such a file
    assert register(source, OURS, V2_1).plugin_id == schema.CRI_RUNTIME  # 2.1 does not read that table


def test_the_handler_cannot_be_removed_while_it_is_the_default() -> None:
    patch = register(RUNC, OURS, V1_7)
    chosen = patch.result + f'[{CRI}.containerd]\ndefault_runtime_name = "flox"\n'.encode()
    with pytest.raises(RefusedError, match="is the default runtime"):
        remove(chosen, OURS, V1_7)


def test_a_runtime_path_and_another_name_are_written_when_asked_for() -> None:
    other = Handler(name="flox.dev", binary_name=None, runtime_path="/opt/shim")
    patch = register(RUNC, other, V2_1)
    assert b'runtimes."flox.dev"]' in patch.result
    assert b'runtime_path = "/opt/shim"' in patch.result
    assert remove(patch.result, other, V2_1).result == RUNC


def test_our_marks_inside_a_string_are_no_block() -> None:
    source = RUNC + b'[debug]\nlevel = """\n# flox-node: begin handler flox\n# flox-node: end handler flox\n"""\n'
    patch = register(source, OURS, V2_1)
    assert patch.result.startswith(source)
    assert remove(patch.result, OURS, V2_1).result == source


def test_the_oldest_runc_hands_over_what_it_has() -> None:
    source = b"""version = 1
[plugins.cri.containerd.runtimes.runc]
runtime_type = "io.containerd.runtime.v1.linux"
[plugins.cri.containerd.runtimes.runc.options]
Runtime = "/usr/bin/runc"
"""
    patch = register(source, OURS, V1_7)
    assert (patch.plugin_id, patch.inner_runtime) == (schema.CRI, "/usr/bin/runc")


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("first_line", ["\n", ""])
def test_a_file_that_a_tool_wrote_anew_is_what_it_would_have_written_without_us(last: bool, first_line: str) -> None:
    """NVIDIA's toolkit serialises the root: no comments, a blank line before each table.

    `containerd config dump` sets one between tables, and none below their parent.
    """
    tables = {
        "runc": '    runtime_type = "io.containerd.runc.v2"\n\n    [{0}.runc.options]\n      SystemdCgroup = true\n',
        "flox": '    runtime_type = "io.containerd.runc.v2"\n\n    [{0}.flox.options]\n'
        '      BinaryName = "/opt/flox-node/bin/flox-runtime"\n',
    }
    parent = f"{CRI}.containerd.runtimes"

    def written(*names: str) -> bytes:
        each = "\n".join(f"  [{parent}.{name}]\n{tables[name].format(parent)}" for name in names)
        return f"version = 2\n\n[{parent}]\n{first_line}{each}".encode()

    source = written("runc", "flox") if last else written("flox", "runc")
    assert remove(source, OURS, V1_7).result == written("runc")
