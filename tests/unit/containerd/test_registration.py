"""Registrations on platforms that make containerd's configuration themselves: what is written where, and taken back."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

import pytest

from flox_node.containerd.config.editor import Handler
from flox_node.containerd.config.effective import MapReader
from flox_node.containerd.config.registration import (
    Copied,
    Edit,
    Imported,
    K0s,
    NodeConfig,
    Plain,
    Rancher,
    Registration,
    Relocated,
    Template,
    from_json,
    to_json,
)
from flox_node.containerd.config.registration.nodeadm import CACHE, FRAGMENT
from flox_node.containerd.config.version import ContainerdVersion
from flox_node.errors import CorruptError, RefusedError
from flox_node.platforms.flatcar import PLATFORM as FLATCAR

V2, V3 = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"
FLOX = Handler()
K3S = "/var/lib/rancher/k3s/agent/etc/containerd"
LIVE = "/etc/containerd/config.toml"
UNIT_FILE = "/etc/systemd/system/containerd.service.d/90-flox-node.conf"
BASE = '{{ template "base" . }}\n'

Files = dict[str, bytes]


def config(plugin: str, version: int = 2, head: str = "") -> bytes:
    return f"""version = {version}
{head}
[plugins."{plugin}".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."{plugin}".containerd.runtimes.runc.options]
    SystemdCgroup = true
""".encode()


def register(registration: Registration, files: Files, containerd: str, **options: Any) -> tuple[Edit, ...]:
    version = ContainerdVersion.parse(containerd)
    return registration.edits(MapReader(files), version, FLOX, **{"adopt": False, **options})


def applied(files: Files, edits: tuple[Edit, ...]) -> Files:
    after: dict[str, bytes | None] = {**files, **{edit.path: edit.after for edit in edits}}
    return {path: data for path, data in after.items() if data is not None}


def withdraw(registration: Registration, files: Files, containerd: str) -> Files:
    version = ContainerdVersion.parse(containerd)
    return applied(files, registration.withdrawals(MapReader(files), version, FLOX))


def runtimes(text: bytes | str, plugin: str) -> Mapping[str, Any]:
    data = tomllib.loads(text if isinstance(text, str) else text.decode())
    found: Mapping[str, Any] = data["plugins"][plugin]["containerd"]["runtimes"]
    return found


def fragment_text(fragment: bytes) -> str:
    lines = fragment.decode().partition("    config: |\n")[2].splitlines()
    assert all(line.startswith("      ") for line in lines)
    return "\n".join(line[6:] for line in lines)


REGISTRATIONS: list[tuple[Registration, Files, str]] = [
    (Plain(LIVE), {LIVE: config(V2)}, "1.7.24"),
    (Copied(LIVE, "/etc/eks/c.toml"), {LIVE: config(V2), "/etc/eks/c.toml": config(V2)}, "1.7.24"),
    (Rancher(f"{K3S}/config.toml"), {f"{K3S}/config.toml": config(V2)}, "1.7.24"),
    (Rancher(f"{K3S}/config.toml"), {f"{K3S}/config.toml": config(V3, 3)}, "2.1.4"),
    (
        Rancher(f"{K3S}/config.toml"),
        {f"{K3S}/config.toml": config(V3, 3, f'imports = ["{K3S}/config-v3.toml.d/*.toml"]')},
        "2.1.4",
    ),
    (
        Rancher(f"{K3S}/config.toml"),
        {f"{K3S}/config.toml": config(V2), f"{K3S}/config.toml.tmpl": f"# mine\n{BASE}# no newline".encode()},
        "1.7.24",
    ),
    (
        K0s("/etc/k0s/containerd.toml", "/etc/k0s/containerd.d"),
        {
            "/etc/k0s/containerd.toml": b'version = 2\nimports = ["/run/k0s/containerd-cri.toml"]\n',
            "/run/k0s/containerd-cri.toml": config(V2),
        },
        "1.7.24",
    ),
    (
        K0s("/etc/k0s/containerd.toml", "/etc/k0s/containerd.d"),
        {"/etc/k0s/containerd.toml": config(V3, 3, 'imports = ["/etc/k0s/containerd.d/*.toml"]')},
        "2.3.4",
    ),
    (NodeConfig(LIVE), {LIVE: config(V3, 3), "/etc/eks/nodeadm.d/.keep": b""}, "2.1.4"),
    (
        Template("/var/snap/config.toml", "/var/snap/template.toml"),
        {"/var/snap/config.toml": config(V2), "/var/snap/template.toml": config(V2).replace(b"runc.v2", b"runc.v2")},
        "2.1.4",
    ),
    (
        Imported("/usr/share/containerd/config.toml"),
        {"/usr/share/containerd/config.toml": config(V3, 3, 'imports = ["/etc/containerd/conf.d/*.toml"]')},
        "2.1.4",
    ),
    (
        Relocated(LIVE, "/usr/share/containerd/config.toml", UNIT_FILE),
        {"/usr/share/containerd/config.toml": config(V2)},
        "1.7.24",
    ),
]


@pytest.mark.parametrize(("registration", "files", "containerd"), REGISTRATIONS)
def test_what_was_registered_is_there_once_and_goes_without_a_trace(
    registration: Registration, files: Files, containerd: str
) -> None:
    edits = register(registration, files, containerd)
    assert edits
    after = applied(files, edits)
    assert register(registration, after, containerd) == ()
    assert withdraw(registration, after, containerd) == files
    assert withdraw(registration, files, containerd) == files


@pytest.mark.parametrize(("registration", "files", "containerd"), REGISTRATIONS)
def test_a_registration_survives_the_receipt(registration: Registration, files: Files, containerd: str) -> None:
    assert from_json(json.loads(json.dumps(to_json(registration)))) == registration


def test_a_registration_of_a_newer_version_is_an_error_with_a_remedy() -> None:
    with pytest.raises(CorruptError):
        from_json({"kind": "telepathy"})


@pytest.mark.parametrize(
    ("containerd", "rendered", "existing", "template", "plugin"),
    [
        ("1.7.24", config(V2), {}, "config.toml.tmpl", V2),
        ("2.1.4", config(V3, 3), {}, "config-v3.toml.tmpl", V3),
        ("2.1.4", config(V2), {"config.toml.tmpl": BASE}, "config.toml.tmpl", V2),
        ("2.1.4", config(V3, 3), {"config.toml.tmpl": BASE, "config-v3.toml.tmpl": BASE}, "config-v3.toml.tmpl", V3),
    ],
)
def test_k3s_gets_the_table_behind_its_base_in_the_template_that_it_uses(
    containerd: str, rendered: bytes, existing: dict[str, str], template: str, plugin: str
) -> None:
    files = {f"{K3S}/config.toml": rendered, **{f"{K3S}/{name}": text.encode() for name, text in existing.items()}}
    (edit,) = register(Rancher(f"{K3S}/config.toml"), files, containerd)
    assert edit.path == f"{K3S}/{template}"
    text = (edit.after or b"").decode()
    assert text.count(BASE.strip()) == 1
    assert runtimes(text.partition(BASE)[2], plugin)["flox"]["options"]["SystemdCgroup"] is True
    assert [live.path for live in edit.live] == [f"{K3S}/config.toml"], "what it will render is what is proven"


def test_a_template_of_k3s_without_base_is_appended_to() -> None:
    files = {f"{K3S}/config.toml": config(V2), f"{K3S}/config.toml.tmpl": config(V2)}
    (edit,) = register(Rancher(f"{K3S}/config.toml"), files, "1.7.24")
    assert (edit.after or b"").startswith(config(V2))
    assert "{{" not in (edit.after or b"").decode()
    assert set(runtimes(edit.after or b"", V2)) == {"runc", "flox"}


def test_others_lines_in_a_template_stay_when_ours_go() -> None:
    registration = Rancher(f"{K3S}/config.toml")
    files = {f"{K3S}/config.toml": config(V2)}
    after = applied(files, register(registration, files, "1.7.24"))
    after[f"{K3S}/config.toml.tmpl"] += b"# theirs\n"
    left = withdraw(registration, after, "1.7.24")[f"{K3S}/config.toml.tmpl"].decode()
    assert BASE in left
    assert left.endswith("# theirs\n")
    assert 'flox"' not in left


USERS = (
    "apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec:\n  containerd:\n    config: |\n      [plugins.'{}']\n"
)


@pytest.mark.parametrize(
    ("containerd", "others", "user_data", "plugin"),
    [
        ("1.7.24", "", "", V2),
        ("2.1.4", "", "", V3),
        ("2.1.4", USERS.format(V2), "", V2),
        ("2.1.4", USERS.format(V3), "", V3),
        ("2.1.4", USERS.format(V2) + f"      [plugins.'{V3}']\n", "", V3),
        ("2.1.4", "", f"[plugins.'{V2}'.registry]", V2),
        ("2.1.4", "", '[debug]\nlevel = "debug"', V3),
    ],
)
def test_a_fragment_for_nodeadm_follows_the_plugin_id_of_the_others(
    containerd: str, others: str, user_data: str, plugin: str
) -> None:
    live = config(V2) if containerd.startswith("1") else config(V3, 3)
    spec = {"spec": {"containerd": {"config": user_data}}}
    files = {LIVE: live, "/etc/eks/nodeadm.d/40-user.yaml": others.encode(), CACHE: json.dumps(spec).encode()}
    fragment = applied(files, register(NodeConfig(LIVE), files, containerd))[FRAGMENT]
    assert re.search(rb"^apiVersion: node\.eks\.aws/v1alpha1\nkind: NodeConfig\nspec:\n", fragment, re.MULTILINE)
    assert runtimes(fragment_text(fragment), plugin)["flox"]["options"]["SystemdCgroup"] is True


def test_what_nodeadm_wrote_with_our_fragment_needs_no_further_edit() -> None:
    files = {LIVE: config(V3, 3), "/etc/eks/nodeadm.d/.keep": b""}
    after = applied(files, register(NodeConfig(LIVE), files, "2.1.4"))
    written = config(V3, 3).decode() + fragment_text(after[FRAGMENT]).replace("[plugins.", "\n[plugins.", 1).replace(
        "pod_annotations", "runtime_path = ''\nsnapshotter = ''\npod_annotations"
    )
    assert register(NodeConfig(LIVE), {**after, LIVE: written.encode()}, "2.1.4") == ()


FOREIGN = """[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.flox]
runtime_type = 'io.containerd.runc.v2'
runtime_path = '/usr/local/bin/containerd-shim-flox-v2'
"""


def cached(text: str) -> bytes:
    return json.dumps({"spec": {"cluster": {"name": "demo"}, "containerd": {"config": text}}}).encode()


def after_a_boot(files: Files, user_data: str = "") -> Files:
    """What nodeadm-run.service leaves once our fragment is there: the merged sources in its cache."""
    merged = "\n".join((fragment_text(files[FRAGMENT]).replace('"', "'"), user_data))
    return {**files, CACHE: cached(merged)}


@pytest.mark.parametrize("user_data", ["", f"[plugins.'{V2}'.registry]\nconfig_path = '/etc/containerd/certs.d'\n"])
def test_our_own_handler_in_the_cache_of_nodeadm_is_no_strangers(user_data: str) -> None:
    files = {LIVE: config(V3, 3), "/etc/eks/nodeadm.d/.keep": b"", CACHE: cached(user_data)}
    first = applied(files, register(NodeConfig(LIVE), files, "2.1.4"))
    booted = after_a_boot(first, user_data)
    assert register(NodeConfig(LIVE), booted, "2.1.4") == ()
    upgraded = {**booted, LIVE: booted[LIVE].replace(b"SystemdCgroup = true", b"SystemdCgroup = false")}
    (edit,) = (edit for edit in register(NodeConfig(LIVE), upgraded, "2.1.4") if edit.path == FRAGMENT)
    assert b"SystemdCgroup = true" not in (edit.after or b""), "a repair goes through"
    assert re.search((V2 if user_data else V3).encode(), edit.after or b""), "and follows the others, not ourselves"
    moved = applied(booted, NodeConfig(LIVE).withdrawals(MapReader(booted), ContainerdVersion.parse("2.1.4"), FLOX))
    assert FRAGMENT not in moved


def test_a_strangers_handler_that_nodeadm_merged_with_ours_is_refused() -> None:
    files = {LIVE: config(V3, 3), "/etc/eks/nodeadm.d/.keep": b""}
    with pytest.raises(RefusedError, match=r"config\.json"):
        register(NodeConfig(LIVE), {**files, CACHE: cached(FOREIGN)}, "2.1.4")
    first = applied(files, register(NodeConfig(LIVE), files, "2.1.4"))
    mixed = cached(FOREIGN + f"[plugins.'{V3}'.containerd.runtimes.flox.options]\nBinaryName = '{FLOX.binary_name}'\n")
    with pytest.raises(RefusedError, match=r"config\.json"):
        register(NodeConfig(LIVE), {**first, CACHE: mixed}, "2.1.4")


def test_our_handler_in_a_fragment_of_another_name_is_no_strangers() -> None:
    files = {LIVE: config(V3, 3), "/etc/eks/nodeadm.d/.keep": b""}
    first = applied(files, register(NodeConfig(LIVE), files, "2.1.4"))
    baked = {**files, "/etc/eks/nodeadm.d/60-image.yaml": first[FRAGMENT]}
    assert applied(baked, register(NodeConfig(LIVE), baked, "2.1.4"))[FRAGMENT] == first[FRAGMENT]


def test_a_migrated_configuration_that_spells_defaults_out_changes_nothing() -> None:
    files = {LIVE: config(V3, 3), "/etc/eks/nodeadm.d/.keep": b""}
    first = applied(files, register(NodeConfig(LIVE), files, "2.1.4"))
    spelt = first[LIVE].replace(b'runtime_type = "io', b'sandboxer = "podsandbox"\nruntime_type = "io')
    assert register(NodeConfig(LIVE), {**first, LIVE: spelt}, "2.1.4") == ()


def test_a_handler_in_somebody_elses_fragment_is_refused_even_to_be_adopted() -> None:
    others = USERS.format(V3) + f"      [plugins.'{V3}'.containerd.runtimes.flox]\n"
    files = {LIVE: config(V3, 3), "/etc/eks/nodeadm.d/40-user.yaml": others.encode()}
    with pytest.raises(RefusedError, match=r"40-user\.yaml"):
        register(NodeConfig(LIVE), files, "2.1.4", adopt=True)


def test_without_a_folder_of_fragments_only_the_live_file_is_edited() -> None:
    (edit,) = register(NodeConfig(LIVE), {LIVE: config(V3, 3)}, "2.1.4")
    assert edit.path == LIVE


def test_a_copy_on_flatcar_that_others_edited_stays_and_stays_in_use() -> None:
    vendor = "/usr/share/containerd/config.toml"
    registration = Relocated(LIVE, vendor, UNIT_FILE)
    files = {vendor: config(V2)}
    after = applied(files, register(registration, files, "1.7.24"))
    assert f"CONTAINERD_CONFIG={LIVE}".encode() in after[UNIT_FILE]
    assert Relocated.found_in(MapReader(after), LIVE, UNIT_FILE) == registration
    after[LIVE] += b"# theirs\n"
    assert withdraw(registration, after, "1.7.24") == {
        **files,
        LIVE: config(V2) + b"# theirs\n",
        UNIT_FILE: after[UNIT_FILE],
    }


def test_flatcar_whose_image_imports_a_folder_gets_one_file_there_and_stays_fresh() -> None:
    """https://github.com/flatcar/scripts/pull/4150"""
    vendor = "/usr/share/containerd/config.toml"
    files = {vendor: config(V2, head='imports = ["/etc/containerd/conf.d/*.toml"]')}
    files["/etc/containerd/conf.d/50-log.toml"] = f'[plugins."{V2}"]\nmax_container_log_line_size = 65536\n'.encode()
    for containerd in ("2.1.4", "2.4.2"):
        registration = FLATCAR.register(vendor, MapReader(files), ContainerdVersion.parse(containerd))
        after = applied(files, register(registration, files, containerd))
        assert after.keys() - files.keys() == {"/etc/containerd/conf.d/50-flox-node.toml"}
        assert register(registration, after, containerd) == ()
        assert withdraw(registration, after, containerd) == files
    on_1x = FLATCAR.register(vendor, MapReader(files), ContainerdVersion.parse("1.7.24"))
    assert isinstance(on_1x, Relocated), "a file of ours would replace the image's whole CRI table"


def test_a_file_that_flatcar_does_not_read_is_not_taken_into_use() -> None:
    vendor = "/usr/share/containerd/config.toml"
    with pytest.raises(RefusedError, match="does not read it"):
        register(Relocated(LIVE, vendor, UNIT_FILE), {vendor: config(V2), LIVE: b"version = 2\n"}, "1.7.24")


def test_a_template_whose_table_hides_the_rendered_roots_runtimes_is_put_right() -> None:
    """Ours was written for another schema than the one that k3s renders now: it is not what has to be kept."""
    rancher, rendered = Rancher(f"{K3S}/config.toml"), f"{K3S}/config.toml"
    (edit,) = register(rancher, {rendered: config(V2)}, "2.1.9")
    (made,) = edit.live
    assert edit.after is not None
    assert made.after is not None
    old, new = f'{V2}".containerd.runtimes.flox'.encode(), f'{V3}".containerd.runtimes.flox'.encode()
    stale = {rendered: made.after.replace(old, new), edit.path: edit.after.replace(old, new)}
    assert stale[rendered] != made.after
    (again,) = register(rancher, stale, "2.1.9")
    assert (again.path, again.after) == (edit.path, edit.after)
    assert [each.after for each in again.live] == [made.after]


K0S = K0s("/etc/k0s/containerd.toml", "/etc/k0s/containerd.d")
K0S_OWN = "/etc/k0s/containerd.d/50-flox-node.toml"
K0S_NODES: dict[str, Files] = {
    "1.7.24": {
        "/etc/k0s/containerd.toml": b'version = 2\nimports = ["/run/k0s/containerd-cri.toml"]\n',
        "/run/k0s/containerd-cri.toml": config(V2),
    },
    "2.1.9": {"/etc/k0s/containerd.toml": config(V3, 3, 'imports = ["/etc/k0s/containerd.d/*.toml"]')},
}


def test_a_torn_file_of_ours_on_k0s_is_written_anew() -> None:
    """What it keeps down is judged without it."""
    files = {**K0S_NODES["2.1.9"], K0S_OWN: b"# flox-node: this\n[plugins"}
    (edit,) = register(K0S, files, "2.1.9")
    assert edit.path == K0S_OWN
    assert "flox" in runtimes(applied(files, (edit,))[K0S_OWN], V3)


def test_what_k0s_merged_of_ours_is_no_default_to_inherit_from() -> None:
    """An administrator made ours the default: it has what the runtime has that is the default without us."""
    files = dict(K0S_NODES["1.7.24"])
    merged = files["/run/k0s/containerd-cri.toml"]
    ours = f'[plugins."{V2}".containerd.runtimes.flox]\nruntime_type = "io.containerd.runc.v2"\n'
    ours += f'[plugins."{V2}".containerd.runtimes.flox.options]\nBinaryName = "/opt/flox-node/bin/flox-runtime"\n'
    default = f'[plugins."{V2}".containerd]\ndefault_runtime_name = "flox"\n'
    files["/run/k0s/containerd-cri.toml"] = merged + (ours + default).encode()
    (edit,) = register(K0S, files, "1.7.24")
    assert runtimes(edit.after or b"", V2)["flox"]["options"]["SystemdCgroup"] is True


def test_somebody_elses_lines_in_our_file_on_k0s_stay() -> None:
    theirs = f'[plugins."{V2}".containerd.runtimes.kata]\nruntime_type = "io.containerd.kata.v2"\n'.encode()
    files = {**K0S_NODES["1.7.24"], K0S_OWN: theirs}
    with pytest.raises(RefusedError, match="somebody else says something"):
        register(K0S, files, "1.7.24")
    assert withdraw(K0S, files, "1.7.24") == files
    ours = register(K0S, K0S_NODES["1.7.24"], "1.7.24")[0].after or b""
    assert withdraw(K0S, {**files, K0S_OWN: ours + theirs}, "1.7.24") == files
    # Newer ones read the file itself, where ours can stand beside theirs.
    both = {**K0S_NODES["2.1.9"], K0S_OWN: theirs.replace(V2.encode(), V3.encode())}
    after = applied(both, register(K0S, both, "2.1.9"))
    assert set(runtimes(after[K0S_OWN], V3)) == {"kata", "flox"}
    assert withdraw(K0S, after, "2.1.9") == both


def test_a_fragment_of_our_name_that_is_not_ours_is_refused_and_left() -> None:
    files = {LIVE: config(V3, 3), FRAGMENT: b"apiVersion: node.eks.aws/v1alpha1\n", "/etc/eks/nodeadm.d/a": b""}
    with pytest.raises(RefusedError, match="somebody else's file"):
        register(NodeConfig(LIVE), files, "2.1.9")
    assert withdraw(NodeConfig(LIVE), files, "2.1.9") == files


def test_on_k0s_ours_is_a_file_of_its_own_beside_the_toolkits_whole_cri() -> None:
    """https://github.com/k0sproject/k0s/issues/6547"""
    whole = f"""version = 2
[plugins."{V2}"]
  sandbox_image = "registry.k8s.io/pause:3.8"
[plugins."{V2}".containerd]
  default_runtime_name = "nvidia"
[plugins."{V2}".containerd.runtimes.nvidia]
  base_runtime_spec = ""
  pod_annotations = []
  runtime_type = "io.containerd.runc.v2"
[plugins."{V2}".containerd.runtimes.nvidia.options]
  BinaryName = "/usr/local/nvidia/toolkit/nvidia-container-runtime"
  SystemdCgroup = true
""".encode()
    toolkits = "/etc/k0s/containerd.d/nvidia.toml"
    files = {**K0S_NODES["1.7.24"], "/run/k0s/containerd-cri.toml": whole, toolkits: whole}
    (edit,) = register(K0S, files, "1.7.24")
    assert edit.path == K0S_OWN
    assert set(runtimes(edit.after or b"", V2)) == {"flox"}
    assert runtimes(edit.after or b"", V2)["flox"]["options"] == {
        "BinaryName": FLOX.binary_name,
        "SystemdCgroup": True,
    }
    assert withdraw(K0S, applied(files, (edit,)), "1.7.24") == files


@pytest.mark.parametrize("containerd", ["2.1.9", "2.3.4"])
def test_ours_on_k0s_has_its_own_schema_whatever_others_write_there(containerd: str) -> None:
    """k0s does not start beside a table of schema 2."""
    theirs = b"version = 2\n" + f'[plugins."{V2}".containerd.runtimes.x]\nruntime_type = "x"\n'.encode()
    (edit,) = register(K0S, {**K0S_NODES["2.1.9"], "/etc/k0s/containerd.d/90-x.toml": theirs}, containerd)
    assert set(tomllib.loads((edit.after or b"").decode())["plugins"]) == {V3}
