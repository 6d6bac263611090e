from __future__ import annotations

import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from flox_node.environments import flox_cli, protocol
from flox_node.environments.errors import BadRequestError, BuildFailedError, NetworkError
from flox_node.environments.flox_cli import explain, nix_config, private_environment
from flox_node.environments.paths import Paths
from flox_node.environments.protocol import Request
from flox_node.state.policy import FloxHub, Network, Nix, Policy

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "tests/unit/records").glob("realise-request.*.json"))


@pytest.mark.parametrize(
    ("stderr", "code"),
    [
        ("✘ ERROR: The environment demo/x does not exist.", "environment-not-found"),
        ("✘ ERROR: Environment not found in FloxHub.", "environment-not-found"),
        ("✘ ERROR: Failed to create a new generation: generation 9 not found", "environment-not-found"),
        ("✘ ERROR: You do not have permission to pull this environment", "access-denied"),
        ("✘ ERROR: Could not access the environment o/n. Try re-authenticating", "token-expired"),
        ("✘ ERROR: Access denied to the remote environment.\n\nThis can happen if", "access-denied"),
        ("✘ ERROR: Failed to open environment metadata: Failed to clone environment: Git failed with: …", "network"),
        ("Unexpected error calling the catalog client: Communication Error: error sending request", "network"),
        (
            "✘ ERROR: failed to parse lockfile JSON: manifest had invalid schema version '9.9.9' at line 9",
            "unsupported",
        ),
        ("✘ ERROR: failed to parse lockfile JSON: unknown field `x`, expected one of", "unsupported"),
        ("✘ ERROR: Found a reference cycle in the '[vars]' section: A → B → A.", "unsupported"),
        ("✘ ERROR: Could not find package with install_id 'hello' in manifest", "unsupported"),
        ("✘ ERROR: Failed to construct environment: error: writing to file: No space left on device", "disk-full"),
        ("✘ ERROR: This environment is not yet compatible with your system (x86_64-linux).", "unsupported"),
        ("✘ ERROR: Environment metadata of version '3' is not supported", "unsupported"),
        ("Failed to get latest version of remote environment: ... Git failed with: [exit code 128]", "network"),
        ("✘ ERROR: Failed to build environment: Couldn't download package 'x'", "network"),
        ("✘ ERROR: Package 'x' is not signed by a trusted key", "not-trusted"),
        ("✘ ERROR: Can't find download location for package 'x'", "not-built"),
        ("Resolve by uninstalling one of the conflicting packages", "conflict"),
        ("✘ ERROR: Failed to construct environment: error: path '/nix/store/x' does not exist.", "build-failed"),
        ("✘ ERROR: Failed to create a new generation: could not write", "build-failed"),
        ("✘ ERROR: Failed to open environment metadata: … stderr: fatal: the ref does not exist.", "network"),
        ("something new", "build-failed"),
        ("", "build-failed"),
    ],
)
def test_what_flox_says_is_understood(stderr: str, code: str) -> None:
    error = explain(stderr, None)
    assert error.code == code
    assert error.cause
    assert error.remedy


def test_an_unknown_error_is_quoted_in_one_clean_line_without_the_token() -> None:
    error = explain("start\n✘ ERROR: \x1b[31mboom\x1b[0m\tflox_secret\n  more\x07 " + "x" * 2000, "flox_secret")
    assert error.cause.startswith("Flox failed: ERROR: boom [token] more")
    assert len(error.cause) < 500
    assert error.cause.isprintable()


def test_the_environment_of_a_call_is_exactly_the_private_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/evil.so")
    env = private_environment(str(tmp_path), Policy(), token=None, ca_file="/ca.crt")
    folders = ("CONFIG", "CACHE", "DATA", "STATE")
    assert set(env) == {
        *("PATH", "LC_ALL", "NO_COLOR", "SHELL", "USER", "LOGNAME", "HOME", "TMPDIR", "XDG_RUNTIME_DIR", "NIX_CONFIG"),
        *(f"XDG_{folder}_HOME" for folder in folders),
        *(f"FLOX_{folder}_DIR" for folder in folders),
        *("FLOX_DISABLE_METRICS", "FLOX_AUTH_NOTIFICATIONS", "FLOX_UPGRADE_NOTIFICATIONS", "FLOX_AUTO_ACTIVATE"),
        *("FLOX_SYSTEM_CONFIG_DIR", "FLOX_FLOXHUB_URL", "FLOX_CATALOG_URL", "NIX_CONF_DIR", "NIX_USER_CONF_FILES"),
        *("_FLOX_DISABLE_KEYRING", "_FLOX_TESTING_DISABLE_BG_SIDE_EFFECTS"),
        *(
            "GIT_TERMINAL_PROMPT",
            "GIT_HTTP_LOW_SPEED_LIMIT",
            "GIT_HTTP_LOW_SPEED_TIME",
            "GIT_CONFIG_GLOBAL",
            "GIT_CONFIG_SYSTEM",
        ),
        *("SSL_CERT_FILE", "NIX_SSL_CERT_FILE", "GIT_SSL_CAINFO"),
    }
    outside = [
        name for name, value in env.items() if name.endswith(("_DIR", "_HOME", "HOME")) and str(tmp_path) not in value
    ]
    assert outside == ["FLOX_SYSTEM_CONFIG_DIR"]
    assert env["FLOX_SYSTEM_CONFIG_DIR"] == env["NIX_USER_CONF_FILES"] == ""
    with_token = private_environment(
        str(tmp_path), Policy(floxhub=FloxHub(git_url="http://hub/git")), token="flox_t", ca_file=None
    )
    assert with_token["FLOX_FLOXHUB_TOKEN"] == "flox_t"


def test_nix_trusts_what_the_policy_trusts_and_nothing_more() -> None:
    config = nix_config(Policy(nix=Nix(substituters=("https://a", "https://b"), trusted_public_keys=("k:1",))))
    settings = dict(line.split(" =", 1) for line in config.splitlines())
    assert settings["substituters"].split() == ["https://a", "https://b"]
    assert settings["trusted-public-keys"].split() == ["k:1"]
    assert settings["extra-substituters"].strip() == settings["extra-trusted-public-keys"].strip() == ""
    assert settings["require-sigs"].strip() == settings["sandbox"].strip() == "true"


def test_a_lack_of_links_is_no_success(tmp_path: Path) -> None:
    (tmp_path / ".flox/run").mkdir(parents=True)
    (tmp_path / ".flox/run/x86_64-linux.hello-run").symlink_to("/etc")
    with pytest.raises(BuildFailedError, match="no store path"):
        flox_cli._link(str(tmp_path), "x86_64-linux.hello", "run", Paths())
    assert flox_cli._link(str(tmp_path), "x86_64-linux.hello", "dev", Paths()) is None


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_request_is_accepted_when_its_schema_accepts_it(path: Path) -> None:
    if ".valid." in path.name:
        raw = json.loads(path.read_text())
        parsed = Request.parse(path.read_bytes())
        assert (str(parsed.reference), parsed.mode, parsed.pod_uid) == (
            raw["reference"],
            raw["mode"],
            raw["pod"]["uid"],
        )
    else:
        with pytest.raises(BadRequestError):
            Request.parse(path.read_bytes())


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"1", b"x" * 70000, b"\xff", b'{"schema_version": 1}'])
def test_a_request_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(BadRequestError):
        Request.parse(data)


def test_a_failure_is_one_short_line_and_follows_the_schema() -> None:
    schema = json.loads((ROOT / "installer/flox_node/state/schemas/realise-answer.schema.json").read_text())
    for error in (NetworkError("a\nb\r\u2028c" + "é" * 3000), ValueError("secret"), BadRequestError("x", remedy="y")):
        answer = protocol.failure(error, "demo/hello:3")
        Draft202012Validator(schema).validate(answer)
        assert len(answer["message"].encode()) <= 1024
        assert answer["message"].splitlines() == [answer["message"]]
        assert "demo/hello:3" in answer["message"]
    assert protocol.failure(ValueError("secret"), None)["code"] == "bug"
    assert "secret" not in protocol.failure(ValueError("secret"), None)["message"]


@pytest.mark.parametrize(
    ("hub", "variables"),
    [
        (FloxHub(), {"FLOX_FLOXHUB_URL": "https://hub.flox.dev", "FLOX_CATALOG_URL": "https://api.flox.dev"}),
        (FloxHub(url="https://h.org"), {"FLOX_FLOXHUB_URL": "https://h.org", "FLOX_CATALOG_URL": "https://h.org"}),
        (
            FloxHub(git_url="https://git.org/git"),
            {"FLOX_FLOXHUB_URL": "https://git.org", "FLOX_CATALOG_URL": "https://git.org"},
        ),
        (
            FloxHub(url="https://h.org", git_url="https://g.org/x", api_url="https://a.org"),
            {
                "FLOX_FLOXHUB_URL": "https://h.org",
                "FLOX_CATALOG_URL": "https://a.org",
                "_FLOX_FLOXHUB_GIT_URL": "https://g.org/x",
            },
        ),
    ],
)
def test_flox_asks_the_policys_hub_and_its_api_and_nobody_else(
    tmp_path: Path, hub: FloxHub, variables: dict[str, str]
) -> None:
    env = private_environment(str(tmp_path), Policy(floxhub=hub), token="flox_t", ca_file=None)
    assert {name: value for name, value in env.items() if "_URL" in name} == variables


def test_proxies_of_the_policy_reach_every_program(tmp_path: Path) -> None:
    network = Network(https_proxy="http://proxy:3128", no_proxy=("example.com", ".cluster.local"))
    env = private_environment(str(tmp_path), Policy(network=network), token=None, ca_file=None)
    assert env["https_proxy"] == env["HTTPS_PROXY"] == "http://proxy:3128"
    assert env["no_proxy"] == env["NO_PROXY"] == "example.com,.cluster.local"
    assert "http_proxy" not in env
