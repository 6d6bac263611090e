"""The ConfigMap's settings: what is not said has its default, what is wrong is named."""

from pathlib import Path

import pytest

from flox_node.errors import UsageError
from flox_node.kube.settings import Settings, load


def test_an_empty_configmap_means_the_defaults(tmp_path: Path) -> None:
    found = load(tmp_path)
    assert found == Settings(digest=found.digest)


def test_what_is_said_is_taken(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(
        'platform = "k3s"\nadopt = true\ndeadline_s = 90\nrestarts_per_hour = 2\n[rollout]\nshare = "3"\n'
    )
    (tmp_path / "policy.toml").write_text("[realise]\nwait_s = 20\n")
    found = load(tmp_path)
    assert (found.platform, found.adopt, found.deadline_s, found.restarts_per_hour) == ("k3s", True, 90, 2)
    assert found.share == "3"
    assert found.policy == tmp_path / "policy.toml"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("platform = ", "no TOML"),
        ("platfrom = 'k3s'", "platfrom is not known"),
        ("adopt = 'yes'", "adopt = 'yes' is not of the type bool"),
        ("restarts_per_hour = true", "restarts_per_hour = True is not of the type int"),
        ("restarts_per_hour = -1", "is negative"),
        ("rollout = 3", "[rollout]"),
        ("[rollout]\nspeed = 3", "[rollout]"),
        ("[rollout]\nshare = '0%'", "share"),
        ("[rollout]\nshare = 'all'", "share"),
        ("policy = '/etc/shadow'", "policy is not known"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "settings.toml").write_text(text)
    with pytest.raises(UsageError, match=r"settings\.toml") as caught:
        load(tmp_path)
    assert named in caught.value.cause
    assert "ConfigMap" in caught.value.remedy


@pytest.mark.parametrize(
    ("share", "nodes", "slots"), [("10%", 1, 1), ("10%", 11, 2), ("10%", 1000, 100), ("3", 1000, 3), ("100%", 7, 7)]
)
def test_a_share_of_the_nodes_is_at_least_one(share: str, nodes: int, slots: int) -> None:
    assert Settings(share=share).slots(nodes) == slots


def test_another_text_has_another_digest(tmp_path: Path) -> None:
    before = load(tmp_path).digest
    (tmp_path / "policy.toml").write_text("[realise]\nwait_s = 20\n")
    assert load(tmp_path).digest != before
