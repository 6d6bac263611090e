"""`flox-node kind` against programs that answer as the real ones: every command line, and every bad answer's text."""

import io
import json
import re
import tarfile
from pathlib import Path

import pytest

from flox_node.errors import FloxNodeError, OutsideError, RefusedError
from flox_node.host.terminal import Answer
from flox_node.kind import engine as engines
from flox_node.kind import laptop as laptops
from flox_node.kind.cluster_file import Shape
from flox_node.kind.laptop import Image, Laptop, down, require_tools, status, up
from flox_node.kind.makers import maker
from tests.unit.kind.laptop import GIB, FakeTerminal, docker_info, podman_info

IMAGE = Image("flox-node:1.0.0")


def laptop(terminal: FakeTerminal, *, with_: str = "kind", dry_run: bool = False, **shape: object) -> Laptop:
    engine = engines.find(terminal, {})
    made = Shape(**shape)  # type: ignore[arg-type]
    return Laptop(terminal, engine, maker(with_, engine), made, "amd64", lambda _: None, dry_run=dry_run)


def lines(done: list[str]) -> list[str]:
    return [re.sub(r"/tmp/flox-node-[^/ ]+/|/[^ ]*(?=demo.yaml)", "", line) for line in done]


DOCKER = [
    "kind create cluster --name=flox --config=cluster.yaml --wait=120s",
    "docker save --platform=linux/amd64 --output=image.tar flox-node:1.0.0",
    (
        "docker exec -i flox-control-plane ctr --namespace=k8s.io images import --digests --platform=linux/amd64 "
        "--snapshotter=native - <FILE"
    ),
    "docker exec flox-control-plane sh -c 'echo sha256:1111 >/var/lib/flox-node.image'",
    "flox-node cluster install --context=kind-flox --image=flox-node:1.0.0 --image-pull-policy=Never",
    "kubectl --context=kind-flox apply --filename=demo.yaml",
    "kubectl --context=kind-flox wait --for=condition=Available --timeout=10m deployment --selector=flox.dev/demo=web",
]


def test_up_from_nothing_with_docker() -> None:
    terminal = FakeTerminal("docker")
    up(laptop(terminal), IMAGE)
    assert lines(terminal.done) == DOCKER


@pytest.mark.parametrize(
    ("engine", "save", "image"),
    [
        ("nerdctl", "nerdctl save --platform=linux/amd64 --output=image.tar flox-node:1.0.0", "flox-node:1.0.0"),
        ("finch", "finch save --platform=linux/amd64 --output=image.tar flox-node:1.0.0", "flox-node:1.0.0"),
        (
            "podman",
            "podman save --format=docker-archive --output=image.tar flox-node:1.0.0",
            "localhost/flox-node:1.0.0",
        ),
    ],
)
def test_up_names_another_engine_to_kind_and_asks_it_for_one_platform(engine: str, save: str, image: str) -> None:
    terminal = FakeTerminal(engine)
    up(laptop(terminal), IMAGE, demo=False)
    done = lines(terminal.done)
    assert done[0] == f"env KIND_EXPERIMENTAL_PROVIDER={engine} {DOCKER[0]}"
    assert done[1] == save
    assert done[2].startswith(f"{engine} exec -i ")
    assert done[-1] == f"flox-node cluster install --context=kind-flox --image={image} --image-pull-policy=Never"


def test_a_docker_that_cannot_be_asked_for_a_platform_is_not_asked() -> None:
    old = engines.Engine("docker", "27.5.1", 2, 8 * GIB, rootless=False)
    assert old.save("a:1", "f", "arm64") == ("docker", "save", "--output=f", "a:1")


def test_a_second_up_changes_nothing_that_is_right() -> None:
    terminal = FakeTerminal("docker")
    up(laptop(terminal), IMAGE)
    terminal.done.clear()
    up(laptop(terminal), IMAGE)
    wait_for_nodes = "kubectl --context=kind-flox wait --for=condition=Ready --timeout=3m nodes --all"
    assert lines(terminal.done) == [wait_for_nodes, *DOCKER[-3:]], "nothing is made, saved or imported again"


def test_a_second_up_repairs_a_stopped_node_and_brings_a_new_build() -> None:
    terminal = FakeTerminal("docker")
    up(laptop(terminal), IMAGE)
    terminal.done.clear()
    terminal.stopped.add("flox-control-plane")
    terminal.images["flox-node:1.0.0"] = "sha256:2222"
    up(laptop(terminal), IMAGE)
    assert "docker start flox-control-plane" in terminal.done
    assert terminal.loaded == {"flox-control-plane": "sha256:2222"}


def test_a_cluster_that_is_not_ours_is_never_touched() -> None:
    terminal = FakeTerminal("docker")
    terminal.clusters["flox"] = False
    with pytest.raises(RefusedError, match="did not make"):
        up(laptop(terminal), IMAGE)
    with pytest.raises(RefusedError, match="did not make"):
        down(laptop(terminal))
    assert [line for line in terminal.done if "wait" not in line] == []


def test_a_cluster_that_does_not_answer_is_not_taken_for_ours() -> None:
    terminal = FakeTerminal("docker")
    terminal.clusters["flox"] = True
    terminal.api_answers = False
    with pytest.raises(RefusedError, match="does not answer") as refused:
        down(laptop(terminal))
    assert "kind delete cluster --name=flox" in (refused.value.remedy or "")


def test_down_leaves_nothing_and_is_done_where_nothing_is() -> None:
    terminal = FakeTerminal("docker")
    up(laptop(terminal), IMAGE)
    assert down(laptop(terminal))
    assert terminal.done[-1] == "kind delete cluster --name=flox"
    assert not down(laptop(terminal))
    assert not status(laptop(terminal)).cluster


def test_status_says_what_is_there() -> None:
    terminal = FakeTerminal("docker")
    up(laptop(terminal), IMAGE)
    found = status(laptop(terminal))
    assert (found.cluster, found.ours, found.context, found.demo) == (True, True, "kind-flox", True)
    assert found.nodes == {"flox-control-plane": False}


def test_a_dry_run_prints_every_command_and_runs_none() -> None:
    terminal = FakeTerminal("docker")
    dry = laptop(terminal, dry_run=True, nodes=2)
    up(dry, IMAGE)
    assert terminal.done == []
    printed = "\n".join(lines(dry.printed))
    for line in (DOCKER[0], DOCKER[1], *DOCKER[4:]):
        assert line in printed
    assert "docker exec -i flox-worker ctr" in printed


def test_an_archive_needs_no_engine_s_image_and_no_network(tmp_path: Path) -> None:
    archive = _archive(tmp_path / "flox-node.tar", "docker.io/library/flox-node:1.0.0")
    terminal = FakeTerminal("podman")
    terminal.images.clear()
    up(laptop(terminal), Image("flox-node:1.0.0", archive), demo=False)
    assert not [line for line in terminal.done if " save " in line]
    assert "--image=flox-node:1.0.0" in terminal.done[-1], "the archive's own name, not podman's"
    with pytest.raises(RefusedError, match="cannot be read"):
        up(laptop(terminal), Image("flox-node:1.0.0", tmp_path / "nothing"), demo=False)


def _archive(path: Path, name: str, *, oci: bool = True) -> Path:
    index = {"manifests": [{"annotations": {"io.containerd.image.name": name}}]}
    files = {"index.json": index} if oci else {"manifest.json": [{"RepoTags": [name]}]}
    with tarfile.open(path, "w") as archive:
        for table, content in files.items():
            member = tarfile.TarInfo(table)
            member.size = len(data := json.dumps(content).encode())
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("oci", [True, False])
def test_an_archive_of_another_image_is_told_before_a_cluster_is_made(oci: bool, tmp_path: Path) -> None:
    terminal = FakeTerminal("docker")
    archive = _archive(tmp_path / "image.tar", "localhost/flox-node:2", oci=oci)
    with pytest.raises(RefusedError, match=r"holds localhost/flox-node:2, not flox-node:1\.0\.0") as refused:
        up(laptop(terminal), Image("flox-node:1.0.0", archive))
    assert refused.value.remedy == "Say which: --image localhost/flox-node:2."
    up(laptop(terminal), Image("localhost/flox-node:2", archive), demo=False)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x00" * 10240])
def test_what_is_no_archive_is_told_before_a_cluster_is_made(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(content)
    terminal = FakeTerminal("docker")
    with pytest.raises(RefusedError, match="cannot be read"):
        up(laptop(terminal), Image("flox-node:1.0.0", tmp_path / "image.tar"))
    assert terminal.done == []


def test_the_demo_is_where_the_cluster_was_made_to_answer() -> None:
    terminal = FakeTerminal("docker")
    up(laptop(terminal, port=9090), IMAGE)
    terminal.ports["flox-control-plane"] = "127.0.0.1:9090"
    assert laptops.demo_port(laptop(terminal)) == 9090, "what was asked for at first, not the default of now"
    terminal.ports.clear()
    assert laptops.demo_port(laptop(terminal, port=7000)) == 7000


def test_more_nodes_than_the_cluster_has_are_told_and_not_forgotten() -> None:
    terminal = FakeTerminal("docker")
    said: list[str] = []
    up(laptop(terminal), IMAGE, demo=False)
    more = laptop(terminal, nodes=3)
    more.say = said.append
    up(more, IMAGE, demo=False)
    assert any("1 of 3 nodes are there" in line for line in said)


def test_an_image_that_is_nowhere_is_told_before_a_cluster_is_made() -> None:
    terminal = FakeTerminal("docker")
    with pytest.raises(RefusedError, match="no image other:1") as refused:
        up(laptop(terminal), Image("other:1"))
    assert "make image ARCH=amd64 BUILDER=docker" in (refused.value.remedy or "")
    assert terminal.done == []


def test_a_step_that_fails_names_its_command() -> None:
    terminal = FakeTerminal("docker")
    terminal.failing = "docker save"
    with pytest.raises(OutsideError, match=r"docker save --platform=linux/amd64 .* failed with 1"):
        up(laptop(terminal), IMAGE)
    terminal.failing = ""
    up(laptop(terminal), IMAGE)


@pytest.mark.parametrize(
    ("installed", "said", "error", "text"),
    [
        ((), None, RefusedError, "no container engine"),
        (
            ("docker",),
            Answer(
                1, docker_info(ServerErrors=["Cannot connect to the Docker daemon at unix:///var/run/docker.sock."]), ""
            ),
            OutsideError,
            "does not answer: Cannot connect",
        ),
        (
            ("docker",),
            Answer(1, "", "permission denied while trying to connect to the Docker daemon socket\n"),
            OutsideError,
            "does not let this user in",
        ),
        (("nerdctl",), Answer(1, "", 'level=fatal msg="no space left on device"\n'), OutsideError, "disk is full"),
        (("podman",), Answer(125, "", "Cannot connect to Podman.\n"), OutsideError, "does not answer"),
        (("docker",), Answer(0, "this is no JSON", ""), OutsideError, "does not answer"),
    ],
)
def test_an_engine_that_does_not_work_is_told_with_what_helps(
    installed: tuple[str, ...], said: Answer | None, error: type[FloxNodeError], text: str
) -> None:
    with pytest.raises(error, match=text) as raised:
        engines.find(FakeTerminal(*installed, info=said), {})
    assert raised.value.remedy


@pytest.mark.parametrize(
    ("installed", "info", "text"),
    [
        ("docker", docker_info(CgroupVersion="1"), "version 1 of cgroups"),
        ("docker", docker_info(SecurityOptions=["name=seccomp,profile=builtin", "name=rootless"]), "rootless"),
        ("podman", podman_info(rootless=True), "rootless"),
    ],
)
def test_an_engine_that_carries_no_flox_node_is_told_before_the_work(installed: str, info: str, text: str) -> None:
    terminal = FakeTerminal(installed, info=Answer(0, info, ""))
    with pytest.raises(RefusedError, match=text):
        up(laptop(terminal), IMAGE)
    assert terminal.done == []


def test_an_older_kubernetes_runs_on_the_first_version_of_cgroups() -> None:
    old = engines.Engine("docker", "24.0.7", 1, 8 * GIB, rootless=False)
    engines.require_usable(old, "1.34.2")
    for kubernetes in ("", "1.35.0", "v1.37.0"):
        with pytest.raises(RefusedError, match="cgroups"):
            engines.require_usable(old, kubernetes)


def test_too_little_memory_is_a_warning() -> None:
    small = engines.Engine("docker", "29.1.0", 2, 2 * GIB, rootless=False)
    assert "2.0 GiB" in engines.complaints(small, 3)[0]
    assert engines.complaints(engines.Engine("docker", "29.1.0", 2, 8 * GIB, rootless=False), 3) == []


def test_the_engine_is_kind_s_own_choice() -> None:
    both = FakeTerminal("docker", "podman")
    both.called["docker"] = "podman version 5.4.2"  # of the package podman-docker
    assert engines.find(both, {}).name == "podman"
    both.called.clear()
    assert engines.find(both, {}).name == "docker"
    assert engines.find(both, {"KIND_EXPERIMENTAL_PROVIDER": "podman"}).name == "podman"
    with pytest.raises(RefusedError, match="nerdctl"):
        engines.find(both, {"KIND_EXPERIMENTAL_PROVIDER": "nerdctl"})


def test_missing_and_old_tools_are_named_with_advice() -> None:
    terminal = FakeTerminal("docker", programs=("kubectl",))
    with pytest.raises(RefusedError, match="kind is not on the PATH"):
        require_tools(terminal, laptop(terminal).maker)
    terminal.installed.add("kind")
    assert require_tools(terminal, laptop(terminal).maker) == {"kind": "v0.33.0", "kubectl": "v1.37.2"}
    terminal.kind_version = "kind v0.20.0 go1.20.4 linux/amd64"
    with pytest.raises(RefusedError, match=r"v0\.20\.0 is too old"):
        require_tools(terminal, laptop(terminal).maker)
    terminal.kind_version = "kind v0.27.0 go1.24.4 linux/amd64"
    terminal.kubectl_version = "Client Version: v1.20.2\n"
    with pytest.raises(RefusedError, match=r"kubectl v1\.20\.2 is too old"):
        require_tools(terminal, laptop(terminal).maker)


def test_minikube_differs_in_its_words_alone() -> None:
    terminal = FakeTerminal("docker", programs=("minikube", "kubectl"))
    made = laptop(terminal, with_="minikube", kubernetes="1.36.1", nodes=2)
    assert made.context == "flox"
    assert made.maker.create(made.shape, "unused") == (
        *("minikube", "start", "--profile=flox", "--driver=docker", "--container-runtime=containerd", "--nodes=2"),
        *("--kubernetes-version=v1.36.1", "--extra-config=kubelet.node-labels=flox.dev/made-by=flox-node-kind"),
    )
    profiles = Answer(0, json.dumps({"valid": [{"Name": "flox"}], "invalid": [{"Name": "old"}]}), "")
    assert made.maker.parse_clusters(profiles) == ["flox", "old"]
    assert made.maker.parse_clusters(Answer(1, "* Exiting", "")) == []


def test_k3d_is_refused_by_name_with_the_reason() -> None:
    with pytest.raises(RefusedError, match="systemd"):
        laptop(FakeTerminal("docker"), with_="k3d")


def test_the_demo_is_the_example_of_the_docs() -> None:
    assert laptops.DEMO.read_text() == (Path(__file__).parents[3] / "docs/examples/web.yaml").read_text()
