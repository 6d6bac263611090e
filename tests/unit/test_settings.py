"""The ConfigMap's settings: what is not said has its default, what is wrong is named."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from flox_node.cli.output import Result, application, command
from flox_node.cli.settings import with_settings
from flox_node.errors import UsageError
from flox_node.settings import Settings, load, slots, wants_purge
from tests.unit.command import call


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
    assert found.policy == "[realise]\nwait_s = 20\n"


def test_nothing_and_zero_mean_that_the_node_finds_out(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text('platform = ""\nnix_dir = ""\ndeadline_s = 0\n')
    found = load(tmp_path)
    assert (found.platform, found.nix_dir, found.deadline_s) == (None, None, None)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("platform = ", "no TOML"),
        ("platfrom = 'k3s'", "platfrom is not known"),
        ("adopt = 'yes'", "adopt = 'yes' is not of the type bool"),
        ("restarts_per_hour = true", "restarts_per_hour = True is not of the type int"),
        ("restarts_per_hour = -1", "restarts_per_hour = -1 is less than 1"),
        ("restarts_per_hour = 0", "restarts_per_hour = 0 is less than 1"),
        ("deadline_s = 9.5", "deadline_s = 9.5 is less than 10"),
        ("deadline_s = nan", "deadline_s = nan is less than 10"),
        ("deadline_s = inf", "deadline_s = inf is no number of seconds"),
        ("rollout = 3", "rollout is not known"),
        ("[rollout]\nspeed = 3", "rollout.speed is not known"),
        ("share = '3'", "share is not known"),
        ("[rollout]\nadopt = true", "rollout.adopt is not known"),
        ("[adopt]\nyes = true", "adopt = {'yes': True} is not of the type bool"),
        ("repair = true", "repair is not known"),
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
    ("share", "nodes", "expected"), [("10%", 1, 1), ("10%", 11, 2), ("10%", 1000, 100), ("3", 1000, 3), ("100%", 7, 7)]
)
def test_a_share_of_the_nodes_is_at_least_one(share: str, nodes: int, expected: int) -> None:
    assert slots(share, nodes) == expected


def test_another_text_has_another_digest(tmp_path: Path) -> None:
    before = load(tmp_path).digest
    (tmp_path / "policy.toml").write_text("[realise]\nwait_s = 20\n")
    assert load(tmp_path).digest != before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("purge = true", True),
        ('"purge" = true\nspeed = 3', True),
        ("", False),
        ("purge = 1", False),
        ("purge =", False),
    ],
)
def test_whether_to_purge_can_be_read_beside_mistakes(tmp_path: Path, text: str, expected: bool) -> None:
    assert wants_purge(tmp_path) is False
    (tmp_path / "settings.toml").write_text(text)
    assert wants_purge(tmp_path) is expected


def test_the_reference_names_each_key_of_the_file_and_each_variable() -> None:
    text = (Path(__file__).parents[2] / "docs/reference.md").read_text()
    text = text.partition("\n## Settings\n")[2].partition("\n## ")[0]
    keys = {f"`[{told['toml']}]` `{name}`" if told["toml"] else f"`{name}`" for name, told in _settings().items()}
    rows = re.findall(
        r"^\| ((?:`\[\w+\]` )?`\w+`) \| [^|]+ \| ([^|]+) \|", text.partition("\n## ")[0], flags=re.MULTILINE
    )
    assert {key for key, _ in rows} == keys
    options = {f"FLOX_NODE_{name.removesuffix('_s').upper()}" for name, told in _settings().items() if told["help"]}
    assert {name for _, what in rows for name in re.findall(r"`(FLOX_NODE_\w+)`", what)} == options


def _settings() -> dict[str, Any]:
    return {each.name: each.metadata for each in dataclasses.fields(Settings) if each.metadata}


def chosen(*words: str | Path) -> dict[str, Any]:
    """The settings that a command gets, beside the defaults."""
    example = application("An example.")

    @command(example, example="flox-node other")
    def other() -> Result:
        """Do nothing."""
        return Result()

    def show(settings: Settings) -> Result:
        """Show the settings."""
        given = dataclasses.asdict(dataclasses.replace(settings, digest=""))
        return Result({name: value for name, value in given.items() if value != getattr(Settings(), name)})

    command(example, example="flox-node show")(with_settings(show))
    done = call("show", *words, "--json", of=example)
    assert done.exit_code == 0, done.stdout
    body: dict[str, Any] = json.loads(done.stdout)
    return {name: value for name, value in body.items() if name not in ("exit_code", "error")}


def test_options_go_before_variables_and_these_before_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings.toml").write_text('platform = "k3s"\nadopt = true\nnix_dir = "/data"\ndeadline_s = 90\n')
    (tmp_path / "policy.toml").write_text("[realise]\n")
    told = {"platform": "k3s", "adopt": True, "nix_dir": "/data", "deadline_s": 90, "policy": "[realise]\n"}
    assert chosen() == {}
    assert chosen("--settings", tmp_path) == told
    monkeypatch.setenv("FLOX_NODE_SETTINGS", str(tmp_path))
    assert chosen() == told
    monkeypatch.setenv("FLOX_NODE_PLATFORM", "rke2")
    monkeypatch.setenv("FLOX_NODE_DEADLINE", "120")
    monkeypatch.setenv("FLOX_NODE_RESTARTS_PER_HOUR", "2")
    assert chosen() == {**told, "platform": "rke2", "deadline_s": 120, "restarts_per_hour": 2}
    assert chosen("--platform=plain", "--restarts-per-hour=6") == {**told, "platform": "plain", "deadline_s": 120}
    (tmp_path / "other.toml").write_text("[nix]\n")
    assert chosen("--policy", tmp_path / "other.toml")["policy"] == "[nix]\n"


def test_a_mistake_in_a_variable_or_the_folder_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "settings.toml").write_text("speed = 3")
    for words in (
        ("--settings", str(tmp_path)),
        ("--settings", str(tmp_path / "none")),
        ("--deadline", "nan"),
        ("--deadline", "inf"),
        ("--deadline", "3"),
        ("--policy", str(tmp_path / "none")),
    ):
        assert call("plan", "--payload", tmp_path, *words).exit_code == 2
    monkeypatch.setenv("FLOX_NODE_DEADLINE", "soon")
    done = call("plan", "--payload", tmp_path)
    assert done.exit_code == 2
    assert "FLOX_NODE_DEADLINE" in done.stderr


def test_what_cannot_be_read_is_named_and_keeps_nobody_from_an_uninstall(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").mkdir()
    with pytest.raises(UsageError, match=r"settings\.toml cannot be read"):
        load(tmp_path)
    assert not wants_purge(tmp_path)
