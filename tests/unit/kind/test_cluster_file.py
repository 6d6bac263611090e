"""The cluster file that kind is given; tests/containerd holds the patches to kind's own code and real daemons."""

import tomllib

import yaml

from flox_node.kind.cluster_file import Baked, Shape, cluster_file, patches


def test_a_cluster_has_our_mark_on_every_node_and_one_port() -> None:
    made = yaml.safe_load(cluster_file(Shape(name="flox", nodes=3, port=9090)))
    assert [node["role"] for node in made["nodes"]] == ["control-plane", "worker", "worker"]
    assert all(node["labels"]["flox.dev/made-by"] == "flox-node-kind" for node in made["nodes"])
    ports = [node.get("extraPortMappings") for node in made["nodes"]]
    assert ports == [[{"containerPort": 30080, "hostPort": 9090, "listenAddress": "127.0.0.1"}], None, None]
    (registries,) = map(tomllib.loads, made["containerdConfigPatches"])
    assert list(registries["plugins"]["io.containerd.grpc.v1.cri"]) == ["registry"]


def test_a_node_with_a_mounted_store_gets_the_handler_from_kind() -> None:
    made = yaml.safe_load(cluster_file(Shape(), Baked("/srv/nix", "/srv/flox-node", (0, 33))))
    assert [tomllib.loads(patch).get("version") for patch in made["containerdConfigPatches"]] == [None, 2, 3]
    (node,) = made["nodes"]
    assert {mount["containerPath"]: mount.get("readOnly", False) for mount in node["extraMounts"]} == {
        "/nix": False,
        "/opt/flox-node": True,
    }
    assert node["labels"]["flox.dev/enabled"] == "true"


def test_patches_follow_the_release_of_kind() -> None:
    (old,) = patches((0, 31))
    assert "version" not in tomllib.loads(old), "up to 0.31 every patch is merged, and the file is version 2"
    flox = tomllib.loads(old)["plugins"]["io.containerd.grpc.v1.cri"]["containerd"]["runtimes"]["flox"]
    assert flox["options"] == {"BinaryName": "/opt/flox-node/bin/flox-runtime", "SystemdCgroup": True}
    assert flox["base_runtime_spec"] == "/etc/containerd/cri-base.json"
    second, third = map(tomllib.loads, patches((0, 32)))
    assert (second["version"], third["version"]) == (2, 3)
    assert list(third["plugins"]) == ["io.containerd.cri.v1.runtime"]
