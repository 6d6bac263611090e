from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import pytest

from flox_node.environments import tokens
from flox_node.environments.errors import BadRequestError, TokenExpiredError
from flox_node.environments.paths import Paths

UID = "b9a1e0d4-0d3c-4a8e-9d0e-0c1f2a3b4c5d"


def secret(root: Path, name: str, content: bytes, kind: str = "secret", kubelet: str = "var/lib/kubelet") -> Path:
    """A volume as the kubelet lays it out."""
    volume = root / kubelet / "pods" / UID / "volumes" / f"kubernetes.io~{kind}" / name
    (volume / "..2026_01_01").mkdir(parents=True)
    (volume / "..2026_01_01/floxhub-token").write_bytes(content)
    (volume / "..data").symlink_to("..2026_01_01")
    (volume / "floxhub-token").symlink_to("..data/floxhub-token")
    return volume


def find(root: Path, uid: str = UID) -> str | None:
    return tokens.find(uid, Paths(str(root)))


def test_a_pod_without_volumes_has_no_token(tmp_path: Path) -> None:
    assert find(tmp_path) is None
    assert find(tmp_path, "") is None


@pytest.mark.parametrize("kind", ["secret", "projected"])
@pytest.mark.parametrize("kubelet", ["var/lib/kubelet", "var/lib/k0s/kubelet"])
def test_the_token_is_found_without_its_line_end(tmp_path: Path, kind: str, kubelet: str) -> None:
    secret(tmp_path, "flox", b"flox_abc\n", kind, kubelet)
    assert find(tmp_path) == "flox_abc"


def test_another_pods_token_is_not_taken(tmp_path: Path) -> None:
    secret(tmp_path, "flox", b"flox_abc")
    assert find(tmp_path, "another-pod") is None


def test_the_same_token_twice_is_one_and_two_are_an_error(tmp_path: Path) -> None:
    secret(tmp_path, "a", b"flox_abc\n")
    secret(tmp_path, "b", b"flox_abc", "projected")
    assert find(tmp_path) == "flox_abc"
    secret(tmp_path, "c", b"flox_xyz")
    with pytest.raises(BadRequestError, match="2 different") as refused:
        find(tmp_path)
    assert "flox_xyz" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"two words", b"two\nlines", b"\xff", b"a\0b"])
def test_what_is_no_token_is_an_error_that_does_not_show_it(tmp_path: Path, content: bytes) -> None:
    secret(tmp_path, "flox", content)
    with pytest.raises(BadRequestError, match="is no token") as refused:
        find(tmp_path)
    assert "words" not in str(refused.value)


def test_a_link_out_of_the_volume_is_not_followed(tmp_path: Path) -> None:
    volume = secret(tmp_path, "flox", b"x")
    (tmp_path / "elsewhere").write_text("flox_stolen")
    (volume / "floxhub-token").unlink()
    (volume / "floxhub-token").symlink_to(tmp_path / "elsewhere")
    assert find(tmp_path) is None


def jwt(**claims: object) -> bytes:
    header = {"alg": "RS256", "typ": "JWT"}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in (header, claims)]
    return b".".join([*parts, b"c2lnbmF0dXJl"])


def test_a_csi_volumes_token_lies_in_its_mount(tmp_path: Path) -> None:
    mount = tmp_path / "var/lib/kubelet/pods" / UID / "volumes/kubernetes.io~csi/flox/mount"
    mount.mkdir(parents=True)
    (mount / "floxhub-token").write_bytes(b"flox_csi\n")
    assert find(tmp_path) == "flox_csi"


def test_the_policys_kubelet_root_is_the_only_one(tmp_path: Path) -> None:
    secret(tmp_path, "flox", b"flox_abc", kubelet="data/kubelet")
    assert find(tmp_path) is None
    assert tokens.find(UID, Paths(str(tmp_path)), "/data/kubelet") == "flox_abc"


def test_a_users_token_is_a_jwt_and_an_expired_one_is_told(tmp_path: Path) -> None:
    good = jwt(**{"https://flox.dev/handle": "demo", "exp": time.time() + 60})
    volume = secret(tmp_path, "flox", good)
    assert find(tmp_path) == good.decode()
    (volume / "..data/floxhub-token").write_bytes(jwt(exp=1700000000))
    with pytest.raises(TokenExpiredError, match=r"expired at 2023-11-14 22:13 UTC"):
        find(tmp_path)


@pytest.mark.parametrize("content", [b"a.b.c", b"Z2hwX3NlY3JldA==", b"ghp_secret", b"e30.e30.e30", b"flox_"])
def test_another_secret_under_this_name_is_never_sent(tmp_path: Path, content: bytes) -> None:
    secret(tmp_path, "flox", content)
    with pytest.raises(BadRequestError, match="is no token"):
        find(tmp_path)


def test_a_link_out_of_a_volume_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "floxhub-token").write_bytes(b"flox_host")
    volume = tmp_path / "var/lib/kubelet/pods" / UID / "volumes/kubernetes.io~csi/flox/mount"
    volume.mkdir(parents=True)
    (volume / "floxhub-token").symlink_to(tmp_path / "floxhub-token")
    assert find(tmp_path) is None


def test_a_folder_of_that_name_is_no_token(tmp_path: Path) -> None:
    """`items: [{key: token, path: floxhub-token/x}]` of a secret makes one."""
    volume = secret(tmp_path, "flox", b"flox_abc")
    (volume / "floxhub-token").unlink()
    (volume / "floxhub-token").symlink_to("..data")
    assert find(tmp_path) is None


@pytest.mark.parametrize("place", ["kubernetes.io~projected/link", "kubernetes.io~csi/c/mount"])
def test_a_volume_that_is_a_link_leads_nowhere(tmp_path: Path, place: str) -> None:
    secret(tmp_path, "flox", b"flox_abc")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/floxhub-token").write_bytes(b"flox_of_the_node")
    link = tmp_path / "var/lib/kubelet/pods" / UID / "volumes" / place
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "etc")
    assert find(tmp_path) == "flox_abc"


def test_the_kubelets_root_may_be_a_link(tmp_path: Path) -> None:
    secret(tmp_path, "flox", b"flox_abc", kubelet="data/kubelet")
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / "var/lib/kubelet").symlink_to(tmp_path / "data/kubelet")
    assert find(tmp_path) == "flox_abc"
