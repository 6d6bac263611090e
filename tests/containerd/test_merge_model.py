"""The model of the effective configuration against real daemons, on generated files."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from flox_node.containerd.config import block, schema
from flox_node.containerd.config.effective import MapReader, load
from flox_node.host import HostFiles
from tests.conftest import FULL
from tests.containerd.dumps import EXAMPLES, RELEASES, disagreements, dump, version

NAMES = ("runc", "nvidia", "kata", "flox")
COMMON = (
    ("containerd", "snapshotter"),
    ("registry", "config_path"),
    ("cni", "conf_dir"),
    ("sandbox_image",),
    ("max_container_log_line_size",),
    ("enable_selinux",),
)
V3_IMAGES = (("snapshotter",), ("registry", "config_path"), ("pinned_images", "sandbox"))
V3_RUNTIME = (("cni", "conf_dir"), ("cni", "bin_dirs"), ("max_container_log_line_size",), ("enable_selinux",))


def compared(release: str) -> tuple[tuple[str, ...], ...]:
    if release.startswith("1."):
        return tuple((schema.CRI_GRPC, *path) for path in (*COMMON, ("cni", "bin_dir")))
    return (
        *((schema.CRI_IMAGES, *path) for path in V3_IMAGES),
        *((schema.CRI_RUNTIME, *path) for path in V3_RUNTIME),
    )


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), strategy)


runtime = st.fixed_dictionaries(
    {},
    optional={
        "runtime_type": st.sampled_from(["io.containerd.runc.v2", "io.containerd.kata.v2", ""]),
        "base_runtime_spec": st.sampled_from(["/spec/a.json", ""]),
        "runtime_path": st.just("/shim"),
        "pod_annotations": st.lists(st.sampled_from(["a/*", "b/*"]), max_size=2),
        "options": st.fixed_dictionaries(
            {},
            optional={
                "SystemdCgroup": st.booleans(),
                "BinaryName": st.sampled_from(["/usr/bin/a", "/usr/bin/b", ""]),
            },
        ),
    },
)
containerd_section = st.fixed_dictionaries(
    {},
    optional={
        "default_runtime_name": st.sampled_from([*NAMES, ""]),
        "runtimes": st.dictionaries(st.sampled_from(NAMES), runtime, max_size=3),
        "snapshotter": st.sampled_from(["native", "overlayfs"]),
    },
)
cri_table = st.fixed_dictionaries(
    {},
    optional={
        "containerd": containerd_section,
        "sandbox_image": st.sampled_from(["pause:1", "pause:2", ""]),
        "registry": st.fixed_dictionaries({"config_path": st.sampled_from(["/certs", ""])}),
        "cni": st.fixed_dictionaries(
            {}, optional={"bin_dir": st.sampled_from(["/cni/a", "/cni/b"]), "conf_dir": st.sampled_from(["/net", ""])}
        ),
        "max_container_log_line_size": st.sampled_from([0, 1000]),
        "enable_selinux": st.booleans(),
    },
)
runtime_table = st.fixed_dictionaries(
    {},
    optional={
        "containerd": containerd_section,
        "cni": st.fixed_dictionaries({}, optional={"bin_dirs": st.just(["/cni/c"]), "conf_dir": st.just("/net3")}),
        "max_container_log_line_size": st.sampled_from([0, 2000]),
        "enable_selinux": st.booleans(),
    },
)
images_table = st.fixed_dictionaries(
    {},
    optional={
        "snapshotter": st.just("native"),
        "pinned_images": st.fixed_dictionaries({"sandbox": st.sampled_from(["pause:3", ""])}),
        "registry": st.fixed_dictionaries({"config_path": st.just("/certs3")}),
    },
)
plugins = st.fixed_dictionaries(
    {},
    optional={
        schema.CRI: cri_table,
        schema.CRI_GRPC: cri_table,
        schema.CRI_RUNTIME: runtime_table,
        schema.CRI_IMAGES: images_table,
    },
)
likely_plugins = st.one_of(
    st.fixed_dictionaries({schema.CRI_GRPC: cri_table}),
    st.fixed_dictionaries({schema.CRI_RUNTIME: runtime_table}, optional={schema.CRI_IMAGES: images_table}),
    plugins,
)
file_content = st.fixed_dictionaries(
    # Both old names in one file: Go's random map order decides which of them 2.x keeps, there is nothing to agree with.
    {"plugins": likely_plugins.filter(lambda tables: not {schema.CRI, schema.CRI_GRPC} <= tables.keys())},
    optional={
        "version": st.sampled_from([1, 2, 2, 2, 3, 3, 4, 5]),
        "root": st.sampled_from(["/r/a", "/r/b"]),
        "oom_score": st.sampled_from([0, -5, 7]),
        "disabled_plugins": st.lists(
            st.sampled_from([schema.CRI_GRPC, "io.containerd.internal.v1.opt", schema.CRI, schema.CRI_RUNTIME]),
            max_size=2,
        ),
    },
)


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """File name -> content: a root and up to two files that it may import, by pattern, by name, nested or in a loop."""
    files: dict[str, dict[str, Any]] = {"config.toml": draw(file_content)}
    style = draw(st.sampled_from(["glob", "glob", "names", "reversed", "nested", "loop", "missing", "both"]))
    names = ["conf.d/10-a.toml", "conf.d/20-b.toml"][: draw(st.integers(0, 2))]
    for name in names:
        files[name] = draw(file_content)
    root = files["config.toml"]
    match style:
        case "glob":
            root["imports"] = ["conf.d/*.toml"]
        case "names" | "reversed":
            root["imports"] = names if style == "names" else names[::-1]
        case "nested":
            root["imports"] = names[:1]
            if len(names) == 2:
                files[names[0]]["imports"] = ["20-*.toml"]
        case "loop":
            root["imports"] = ["conf.d/../config.toml", "conf.d/*.toml"]
            for name in names:
                files[name]["imports"] = ["../config.toml"]
        case "missing":
            root["imports"] = ["conf.d/*.toml", *(["absent.toml"] if draw(st.booleans()) else [])]
        case "both":
            root["imports"] = ["conf.d/*.toml", *names]
    return files


def write(folder: Path, files: dict[str, dict[str, Any]]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(toml(content))
        note(f"--- {name}\n{path.read_text()}")
    return folder / "config.toml"


def toml(content: dict[str, Any]) -> str:
    head = "".join(f"{key} = {block.value(value)}\n" for key, value in content.items() if not isinstance(value, dict))
    tables: dict[tuple[str, ...], dict[str, Any]] = {
        (name, key): table for name in ("plugins",) for key, table in content.get(name, {}).items()
    }
    return head + block.tables_text(tables, "\n")


@pytest.mark.parametrize("release", RELEASES)
def test_the_model_agrees_with_the_real_daemon_on_generated_files(release: str, tmp_path: Path) -> None:
    containerd = version(release)
    settings_compared = compared(release)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=not FULL,
        suppress_health_check=list(HealthCheck),
    )
    @given(configurations())
    def agrees(files: dict[str, dict[str, Any]]) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            root = write(Path(folder), files)
            # A dump does not read base specifications; test_cri_state starts the daemon without one.
            reader = MapReader({"/spec/a.json": b"{}"}, HostFiles("/"))
            effective = load(str(root), reader, containerd)
            real = dump(release, root)
        dangling = effective.state == "refused" and "does not exist" in (effective.refused or "")
        if dangling and containerd.major >= 2:
            return  # `config dump` hides it; test_daemons starts the daemon
        if real.error:
            assert effective.state == "refused", real.error
            return
        assert effective.cri is not None, f"the model refuses it: {effective.refused}"
        assert disagreements(effective, real, settings_compared) == []
        if effective.state != "disabled":
            assert (effective.state == "dead") == real.cri_is_dead

    agrees()
