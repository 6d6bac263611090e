from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from flox_node.cli.policy import app
from flox_node.errors import CorruptError, UsageError
from flox_node.state import policy
from flox_node.state.policy import Policy

SCHEMA = json.loads((Path(__file__).parents[3] / "installer/flox_node/state/schemas/policy.schema.json").read_text())
TOML = """
[floxhub]
git_url = "https://hub.example.com/git/"
[nix]
substituters = ["https://cache.example.com"]
trusted_public_keys = ["example-1:AAAA="]
[realise]
timeout_s = 30
"""


def test_no_file_is_the_default_policy() -> None:
    assert policy.parse(None) == Policy()
    assert policy.parse(b"{}") == Policy()
    assert Policy().timeout_s == 90


def test_the_default_policy_and_every_applied_one_follow_the_schema() -> None:
    validator = Draft202012Validator(SCHEMA)
    validator.validate(Policy().as_dict())
    validator.validate(json.loads(policy.applied(TOML, None)))


def test_an_applied_policy_is_read_back() -> None:
    read = policy.parse(policy.applied(TOML, None))
    assert read.git_url == "https://hub.example.com/git"
    assert read.substituters == ("https://cache.example.com",)
    assert read.trusted_public_keys == ("example-1:AAAA=",)
    assert read.timeout_s == 30
    assert read.inner_runtime is None


def test_only_what_was_said_is_written_so_that_defaults_can_change() -> None:
    assert json.loads(policy.applied("[realise]\ntimeout_s = 30", None)) == {
        "schema_version": 1,
        "realise": {"timeout_s": 30},
    }


def test_the_inner_runtime_that_an_install_found_stays_unless_the_administrator_names_one() -> None:
    before = b'{"schema_version": 1, "inner_runtime": "/usr/bin/crun"}'
    assert policy.parse(policy.applied("", before)).inner_runtime == "/usr/bin/crun"
    assert policy.parse(policy.applied('inner_runtime = "/x/runc"', before)).inner_runtime == "/x/runc"


def test_a_newer_versions_keys_are_ignored_when_read() -> None:
    assert policy.parse(b'{"schema_version": 1, "later": 1, "nix": {"later": 2}}') == Policy()


@pytest.mark.parametrize(
    "text", ["later = 1", "[nix]\nlater = 1", "[realise]\ntimeout = 3", "[floxhub.git_url]\na = 1"]
)
def test_unknown_keys_are_refused_when_written(text: str) -> None:
    with pytest.raises(UsageError):
        policy.applied(text, None)


@pytest.mark.parametrize(
    "raw",
    [
        "not json",
        "[]",
        '{"schema_version": 2}',
        '{"nix": []}',
        '{"nix": {"substituters": "https://x"}}',
        '{"nix": {"substituters": ["https://x\\nbuild-users-group = x"]}}',
        '{"nix": {"substituters": ["https://x y"]}}',
        '{"nix": {"substituters": ["x"]}}',
        '{"nix": {"trusted_public_keys": [""]}}',
        '{"floxhub": {"git_url": "file:///x"}}',
        '{"floxhub": {"git_url": "https://user:password@x/git"}}',
        '{"floxhub": {"git_url": "https://x/git?y"}}',
        '{"floxhub": {"git_url": 3}}',
        '{"realise": {"timeout_s": 0}}',
        '{"realise": {"timeout_s": 231}}',
        '{"realise": {"timeout_s": "90"}}',
        '{"realise": {"timeout_s": true}}',
        '{"inner_runtime": "runc"}',
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(raw: str) -> None:
    with pytest.raises(CorruptError, match="damaged"):
        policy.parse(raw.encode())


def test_apply_and_show_work_below_a_host_root(tmp_path: Path) -> None:
    (tmp_path / "node/etc").mkdir(parents=True)
    (tmp_path / "policy.toml").write_text(TOML)
    where = ["--host-root", str(tmp_path / "node")]
    runner = CliRunner()
    assert "in force" in runner.invoke(app, ["apply", str(tmp_path / "policy.toml"), *where]).output
    assert "Nothing to do" in runner.invoke(app, ["apply", str(tmp_path / "policy.toml"), *where]).output
    shown = json.loads(runner.invoke(app, ["show", *where]).output)
    assert shown["floxhub"]["git_url"] == "https://hub.example.com/git"
    assert shown["realise"]["timeout_s"] == 30
