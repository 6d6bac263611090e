from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from flox_node.environments.flox_cli import hub_variables
from flox_node.errors import CorruptError, UsageError
from flox_node.state import policy, policy_text
from flox_node.state.policy import Namespace, Policy
from tests.unit.command import call

SCHEMA = json.loads((Path(__file__).parents[3] / "installer/flox_node/state/schemas/policy.schema.json").read_text())
TOML = """
[floxhub]
git_url = "https://hub.example.com/git/"
[nix]
substituters = ["https://cache.example.com"]
trusted_public_keys = ["example-1:AAAA="]
[realise]
wait_s = 30
[namespaces."team-*"]
owners = ["team"]
nix_mutable = false
"""


def of(text: str) -> Policy:
    return policy.parse(policy_text.applied(text, None))


def test_no_file_is_the_default_policy() -> None:
    assert policy.parse(None) == Policy()
    assert policy.parse(b"{}") == Policy()
    assert Policy().realise.wait_s == 90


def test_the_default_policy_and_every_applied_one_follow_the_schema() -> None:
    validator = Draft202012Validator(SCHEMA)
    validator.validate(Policy().as_dict())
    validator.validate(json.loads(policy_text.applied(TOML, None)))


def test_the_schema_has_the_keys_of_the_policy_and_no_others() -> None:
    def names(table: object) -> set[str]:
        assert isinstance(table, dict)
        return set(table["properties"])

    tables = {**policy.sections(), "namespaces": Namespace}
    assert names(SCHEMA) == {"schema_version", *tables, *(key.name for key in policy.keys_of())}
    for name, kind in tables.items():
        table = SCHEMA["properties"][name]
        assert names(table.get("additionalProperties", table)) == {key.name for key in policy.keys_of(kind)}


def test_an_applied_policy_is_read_back() -> None:
    read = of(TOML)
    assert read.git_url == "https://hub.example.com/git"
    assert read.substituters == ("https://cache.example.com",)
    assert read.trusted_public_keys == ("example-1:AAAA=",)
    assert read.realise.wait_s == 30
    assert read.inner_runtime is None
    assert read.namespaces == {"team-*": Namespace(owners=("team",), nix_mutable=False)}


@pytest.mark.parametrize(
    ("text", "hub", "git", "api"),
    [
        ("", "https://hub.flox.dev", "https://api.flox.dev/git", "https://api.flox.dev"),
        ('url = "https://hub.x.flox.dev"', "https://hub.x.flox.dev", "https://api.x.flox.dev/git", "https://api.x.flox.dev"),
        ('url = "http://hub.example.com:8080/"', "http://hub.example.com:8080", "http://hub.example.com:8080/git",
         "http://hub.example.com:8080"),
        ('git_url = "https://git.example.com/git"', "https://git.example.com", "https://git.example.com/git",
         "https://git.example.com"),
        ('git_url = "https://api.flox.dev/git"', "https://hub.flox.dev", "https://api.flox.dev/git", "https://api.flox.dev"),
        ('url = "https://a.com"\ngit_url = "https://b.com/g"\napi_url = "https://c.com"', "https://a.com",
         "https://b.com/g", "https://c.com"),
    ],
)  # fmt: skip
def test_git_and_api_follow_from_the_hub(text: str, hub: str, git: str, api: str) -> None:
    read = of(f"[floxhub]\n{text}")
    assert (read.hub_url, read.git_url, read.api_url) == (hub, git, api)


def test_caches_and_keys_are_given_instead_of_the_defaults_or_added_to_them() -> None:
    added = of('[nix]\nextra_substituters = ["https://a"]\nextra_trusted_public_keys = ["a-1:AAAA"]')
    assert added.substituters == ("https://a", *Policy().substituters)
    assert added.trusted_public_keys == (*Policy().trusted_public_keys, "a-1:AAAA")
    assert of('[nix]\nsubstituters = ["https://a"]').substituters == ("https://a",)


def test_a_namespaces_rules_are_those_of_the_most_exact_pattern() -> None:
    read = of(
        '[pods]\nowners = ["flox"]\n[namespaces."team-*"]\nowners = ["team"]\n'
        '[namespaces.team-a]\nmodes = ["run"]\n[namespaces."*"]\nwithout_environment = "plain"'
    )
    assert read.in_namespace("team-b").owners == ("team",)
    assert read.in_namespace("team-a").owners == ("flox",)
    assert read.in_namespace("team-a").modes == ("run",)
    assert read.in_namespace("x").without_environment == "plain"
    assert Policy().in_namespace("x") == Policy().pods


def test_only_what_was_said_is_written_so_that_defaults_can_change() -> None:
    assert json.loads(policy_text.applied("[realise]\nwait_s = 30", None)) == {
        "schema_version": 1,
        "realise": {"wait_s": 30},
    }


def test_a_keys_former_name_still_counts() -> None:
    assert of("[realise]\ntimeout_s = 30").realise.wait_s == 30


def test_the_inner_runtime_that_an_install_found_stays_unless_the_administrator_names_one() -> None:
    before = b'{"schema_version": 1, "inner_runtime": "/usr/bin/crun"}'
    assert policy.parse(policy_text.applied("", before)).inner_runtime == "/usr/bin/crun"
    assert policy.parse(policy_text.applied('inner_runtime = "/x/runc"', before)).inner_runtime == "/x/runc"
    assert policy.parse(policy_text.applied("", b"damaged")).inner_runtime is None


def test_a_newer_versions_keys_are_ignored_when_read() -> None:
    assert policy.parse(b'{"schema_version": 1, "later": 1, "nix": {"later": 2}}') == Policy()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("\nlater = 1", "line 2: later is no key"),
        ("[nix]\n# a comment\nlater = 1", "line 3: nix.later is no key"),
        ("[realise]\ntimeout = 3", "line 2: realise.timeout is no key"),
        ("[floxhub.git_url]\na = 1", "line 1: floxhub.git_url"),
        ("[pods]\nowners = [\n  'a',\n  'b c',\n]\n", "line 2: pods.owners"),
        ("[realise]\nfreshness_s = 1\nwait_s = 300", "line 3: realise.wait_s is not between 1 and 230 seconds"),
        ("[namespaces.'a[b]']\nmodes = []", "line 1: namespaces"),
        ("[namespaces.a]\nmodes = ['x']", "line 2: namespaces.a.modes"),
        ("[nix]\nbuilds = 1\n", "line 2: nix.builds is neither true nor false"),
        ("[nix]\nsubstituters = ['https://user:secret@cache.example.com']\n", "nix.netrc"),
        ("[nix\n", "line 1"),
    ],
)
def test_a_bad_policy_is_refused_with_its_line(text: str, fault: str) -> None:
    with pytest.raises(UsageError) as refused:
        policy_text.applied(text, None)
    assert fault in refused.value.cause


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
        '{"nix": {"netrc": "netrc"}}',
        '{"floxhub": {"git_url": "file:///x"}}',
        '{"floxhub": {"git_url": "https://user:password@x/git"}}',
        '{"floxhub": {"url": "https://x/git?y"}}',
        '{"floxhub": {"git_url": 3}}',
        '{"network": {"https_proxy": "socks5://x"}}',
        '{"network": {"no_proxy": ["a b"]}}',
        '{"pods": {"without_environment": "run"}}',
        '{"pods": {"modes": ["prod"]}}',
        '{"realise": {"wait_s": 0}}',
        '{"realise": {"wait_s": 231}}',
        '{"realise": {"wait_s": "90"}}',
        '{"realise": {"wait_s": true}}',
        '{"realise": {"grace_s": -1}}',
        '{"inner_runtime": "runc"}',
        '{"namespaces": {"a/b": {}}}',
    ],
)
def test_a_value_that_cannot_be_meant_is_refused(raw: str) -> None:
    with pytest.raises(CorruptError, match="damaged"):
        policy.parse(raw.encode())


@pytest.mark.parametrize("text", ["", TOML, '[network]\nca_file = "/etc/ca.pem"\n[realise]\ngrace_s = 0'])
def test_what_is_shown_is_taken_back(text: str) -> None:
    assert of(policy_text.rendered(of(text))) == of(text)


def test_what_has_its_default_is_shown_as_a_comment_and_so_stays_ours() -> None:
    written = json.loads(policy_text.applied(policy_text.rendered(Policy()), None))
    assert all(value == {} for key, value in written.items() if key != "schema_version")


def test_every_shown_default_is_a_value_that_the_key_may_have() -> None:
    text = re.sub(r"(?m)^# (?=\w+ = )", "", policy_text.rendered(Policy()).partition("\n# What pods of some")[0])
    assert of(text).realise == Policy().realise
    assert of(text).git_url == Policy().git_url


def test_apply_show_check_and_explain_work_below_a_host_root(tmp_path: Path) -> None:
    (tmp_path / "node/etc").mkdir(parents=True)
    file = tmp_path / "policy.toml"
    file.write_text(TOML)
    where = ["--host-root", str(tmp_path / "node")]
    assert "is a policy" in call("policy", "check", file).stdout
    assert not (tmp_path / "node" / policy.PATH[1:]).exists()
    assert "in force" in call("policy", "apply", file, *where).stdout
    assert "Nothing to do" in call("policy", "apply", file, *where).stdout
    shown = call("policy", "show", *where).stdout
    assert "\nwait_s = 30\n" in shown
    assert of(shown) == of(TOML)
    assert json.loads(call("policy", "show", "--json", *where).stdout)["policy"]["realise"]["wait_s"] == 30
    assert "in force: 30" in call("policy", "explain", "realise.wait_s", *where).stdout
    assert "team" in call("policy", "explain", "namespaces.*.owners", *where).stdout


def test_a_bad_policy_leaves_the_last_good_one_in_force(tmp_path: Path) -> None:
    (tmp_path / "node/etc").mkdir(parents=True)
    (tmp_path / "policy.toml").write_text(TOML)
    where = ["--host-root", str(tmp_path / "node")]
    call("policy", "apply", str(tmp_path / "policy.toml"), *where)
    before = (tmp_path / "node" / policy.PATH[1:]).read_bytes()
    (tmp_path / "policy.toml").write_text("[realise]\nwait_s = 0\n")
    assert call("policy", "apply", str(tmp_path / "policy.toml"), *where).exit_code
    assert (tmp_path / "node" / policy.PATH[1:]).read_bytes() == before


def test_an_unknown_key_is_explained_by_those_that_are_like_it() -> None:
    with pytest.raises(UsageError) as refused:
        policy_text.explained("realise.wait", Policy())
    assert "realise.wait_s" in refused.value.remedy


def test_the_shims_default_caches_and_keys_are_ours() -> None:
    source = (Path(__file__).parents[3] / "shim/internal/node/policy.go").read_text()
    default = Policy()
    for word in (*default.substituters, *default.trusted_public_keys):
        assert f'"{word}"' in source


CASES = json.loads((Path(__file__).parent / "policies.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=[case["what"] for case in CASES])
def test_a_policy_means_what_it_means_to_the_shim(case: dict[str, Any]) -> None:
    """The shim reads the same cases (shim/internal/node/node_test.go)."""
    read = policy.from_dict(case["file"])
    means = read.as_dict()
    assert {name: means[name] for name in case["means"]} == case["means"]
    assert {name: getattr(read.in_namespace(case["namespace"]), name) for name in case["pods"]} == {
        name: tuple(value) if isinstance(value, list) else value for name, value in case["pods"].items()
    }
    assert hub_variables(read) == case["hub"]
    assert read.git_url == case["git_url"]
