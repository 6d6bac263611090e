"""Run the Flox CLI: `flox pull --copy -g N -d FRESH owner/name`, in an environment of its own.

Never `flox activate` (it runs the tenant's hook as root, on the node), and never `--force` (it makes failures look like
success). The private folder is the CLI's HOME and TMPDIR; it is gone when the caller is done, token or not.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flox_node.environments.closure import is_store_path
from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import (
    AccessDeniedError,
    BuildFailedError,
    ConflictError,
    DiskFullError,
    EnvironmentNotFoundError,
    NetworkError,
    NotBuiltError,
    NotTrustedError,
    TokenExpiredError,
    UnsupportedError,
)
from flox_node.environments.paths import Paths
from flox_node.environments.reference import Reference
from flox_node.errors import FloxNodeError
from flox_node.host.children import run_group
from flox_node.state.policy import FloxHub, Policy

# What Flox 1.14 says in English on stderr, as patterns, in the order in which it is looked for (it has no other error
# codes). What is final must be said by Flox itself: git and Nix, whom it quotes, say that things do not exist, too.
# Most of it is seen only when the hub changes between our own questions and the two of Flox (clone, fetch).
_MEANINGS: tuple[tuple[str, type[FloxNodeError], str], ...] = (
    ("No space left on device", DiskFullError, "the node's disk is full."),
    ("Disk quota exceeded", DiskFullError, "the node's disk is full."),
    ("Access denied to the remote environment", AccessDeniedError, "FloxHub refuses the pod's token."),
    ("Could not access the environment", TokenExpiredError, "FloxHub refuses the pod's token: it has expired."),
    (
        r"Failed to create a new generation: generation \d+ not found",
        EnvironmentNotFoundError,
        "FloxHub has no such generation of it.",
    ),
    (r"The environment \S+ does not exist\.", EnvironmentNotFoundError, "FloxHub does not show it to the pod's token."),
    ("is not yet compatible with your system", UnsupportedError, "it is not made for this node's system."),
    ("is not locked for your system", UnsupportedError, "it is not made for this node's system."),
    ("Environment metadata of version", UnsupportedError, "it was written by a newer Flox than the node's."),
    (
        "failed to parse lockfile JSON",
        UnsupportedError,
        "it was written by a newer Flox than the node's.",
    ),
    (
        r"Found a reference cycle in the '\[vars\]' section",
        UnsupportedError,
        "its [vars] refer to each other in a circle.",
    ),
    ("Could not find package with install_id", UnsupportedError, "its manifest.lock does not belong to its manifest."),
    ("Resolve by uninstalling one of the conflicting", ConflictError, "two of its packages hold the same file."),
    ("Failed to open environment metadata", NetworkError, "Flox could not fetch it from FloxHub."),
    # Of other versions.
    ("You do not have permission to pull this environment", AccessDeniedError, "FloxHub refuses the pod's token."),
    ("not found in FloxHub", EnvironmentNotFoundError, "FloxHub does not show it to the pod's token."),
    ("Failed to get latest version of remote environment", NetworkError, "Flox could not fetch it from FloxHub."),
    ("Failed to fetch updates for environment", NetworkError, "Flox could not fetch it from FloxHub."),
    ("Unexpected error calling the catalog client", NetworkError, "FloxHub's API did not answer properly."),
    # Only of packages of custom catalogs: the others are in the store before Flox is called.
    ("is not signed by a trusted key", NotTrustedError, "a published package is not signed by a key of the policy."),
    ("Can't find download location for package", NotBuiltError, "a published package is not in its catalog's store."),
    (
        "Couldn't download package",
        NetworkError,
        "a published package could not be downloaded from its catalog's store.",
    ),
    ("authentication error", AccessDeniedError, "a published package needs a FloxHub token that may read its catalog."),
)
_STALLED_S = "30"
_STRANGE = re.compile(r"[^\x20-\x7e]+")
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


@dataclass(frozen=True)
class Built:
    """What a pull left: the store paths by mode, and the lock that it built from."""

    store_paths: Mapping[str, str]
    lock: Mapping[str, Any]


def private_environment(folder: str, policy: Policy, *, token: str | None, ca_file: str | None) -> dict[str, str]:
    """The whole environment of every program that a realisation runs; makes its folders below `folder`.

    Nothing of ours or of the node's is inherited: no variable of containerd's, no /etc/flox.toml, no nix.conf, netrc or
    registry of root's must decide what a pod gets. What is needed of them stands in the policy.
    """
    home = f"{folder}/home"
    environment = {
        "PATH": "/usr/bin:/bin", "LC_ALL": "C", "NO_COLOR": "1", "SHELL": "/bin/sh",
        # Flox takes HOME from passwd unless USER is the name of the effective user.
        "USER": "root", "LOGNAME": "root", "HOME": home, "TMPDIR": f"{folder}/tmp",
        "XDG_RUNTIME_DIR": f"{home}/run",
        "FLOX_DISABLE_METRICS": "true", "FLOX_AUTH_NOTIFICATIONS": "false", "FLOX_UPGRADE_NOTIFICATIONS": "false",
        "FLOX_AUTO_ACTIVATE": "disabled", "_FLOX_DISABLE_KEYRING": "1", "_FLOX_TESTING_DISABLE_BG_SIDE_EFFECTS": "true",
        "FLOX_SYSTEM_CONFIG_DIR": "",
        # A hub that stalls costs what a cache that stalls costs, not the whole time of a fetch.
        "GIT_HTTP_LOW_SPEED_LIMIT": "1", "GIT_HTTP_LOW_SPEED_TIME": _STALLED_S,
        "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
        "NIX_CONF_DIR": f"{home}/nix", "NIX_USER_CONF_FILES": "", "NIX_CONFIG": nix_config(policy),
        **hub_variables(policy), **_proxies(policy),
    }  # fmt: skip
    for kind in ("config", "cache", "data", "state"):
        environment[f"XDG_{kind.upper()}_HOME"] = f"{home}/{kind}"
        environment[f"FLOX_{kind.upper()}_DIR"] = f"{home}/{kind}/flox"
    if token is not None:
        environment["FLOX_FLOXHUB_TOKEN"] = token
    if ca_file is not None:
        environment |= dict.fromkeys(("SSL_CERT_FILE", "NIX_SSL_CERT_FILE", "GIT_SSL_CAINFO"), ca_file)
    for name in ("HOME", "TMPDIR", "XDG_RUNTIME_DIR", "NIX_CONF_DIR"):
        os.makedirs(environment[name], mode=0o700, exist_ok=True)
    return environment


def hub_variables(policy: Policy) -> dict[str, str]:
    """The hub for git and for everything else: the pod's token goes there and nowhere else."""
    variables = {"FLOX_FLOXHUB_URL": policy.hub_url, "FLOX_CATALOG_URL": policy.api_url}
    if policy.git_url != Policy(floxhub=FloxHub(url=policy.hub_url)).git_url:
        variables["_FLOX_FLOXHUB_GIT_URL"] = policy.git_url
    return variables


def _proxies(policy: Policy) -> dict[str, str]:
    network = policy.network
    values = {
        "http_proxy": network.http_proxy,
        "https_proxy": network.https_proxy,
        "no_proxy": ",".join(network.no_proxy) or None,
    }
    # Programs disagree about upper and lower case.
    return {name: value for key, value in values.items() if value for name in (key, key.upper())}


def nix_config(policy: Policy) -> str:
    """Nix' whole configuration for a realisation; the node's own nix.conf is not read."""
    settings = {
        "experimental-features": "nix-command flakes auto-allocate-uids",
        "build-users-group": "",  # the node has no group nixbld, and gets no users,
        "auto-allocate-uids": "true",  # but no build runs as root
        "substituters": " ".join(policy.substituters),
        "trusted-public-keys": " ".join(policy.trusted_public_keys),
        "extra-substituters": "",
        "extra-trusted-public-keys": "",
        "require-sigs": "true",
        "builders": "",
        "flake-registry": "",
        "sandbox": "true",
        "sandbox-fallback": "false",
        "min-free": "0",  # no garbage collection in the middle of a realisation
        "connect-timeout": "10",
        "stalled-download-timeout": _STALLED_S,
        **({"netrc-file": policy.nix.netrc} if policy.nix.netrc else {}),
    }
    return "".join(f"{name} = {value}\n" for name, value in settings.items())


def pull(
    reference: Reference,
    *,
    folder: str,
    env: Mapping[str, str],
    token: str | None,
    system: str,
    deadline: Deadline,
    paths: Paths,
) -> Built:
    """Realise a generation: its packages and the environment made of them are in the store afterwards.

    The links in `folder` root it only as long as the folder is there.

    Raises:
        DeadlineError: it took too long; FloxNodeError: one of `errors`, by what Flox said.
    """
    target = f"{folder}/environment"
    os.mkdir(target, 0o700)
    arguments = ["pull", "--copy"]
    if reference.generation is not None:
        arguments += ["-g", str(reference.generation)]
    done = run_group(
        [paths.flox, *arguments, "-d", target, reference.environment], env=env, timeout=deadline.left(), cwd=folder
    )
    if done.timed_out:
        deadline.left()
    if done.returncode:
        raise explain(done.stderr.decode("utf-8", "replace"), token)
    store_paths = {
        mode: path for mode in ("run", "dev") if (path := _link(target, f"{system}.{reference.name}", mode, paths))
    }
    try:
        with open(f"{target}/.flox/env/manifest.lock", "rb") as file:
            lock = json.loads(file.read())
    except (OSError, ValueError) as error:
        raise BuildFailedError("Flox said that it succeeded, but left no manifest.lock.") from error
    return Built(store_paths, lock)


def explain(stderr: str, token: str | None) -> FloxNodeError:
    """What a failed call means. The text is ours; of what Flox said, only an unknown error's last words are shown."""
    for text, kind, cause in _MEANINGS:
        if re.search(text, stderr):
            return kind(cause)
    if token:
        stderr = stderr.replace(token, "[token]")
    lines = [_STRANGE.sub(" ", _ESCAPES.sub("", line)).strip() for line in stderr.splitlines()]
    said = [line for line in lines if line]
    start = next((i for i, line in enumerate(said) if "ERROR" in line), max(0, len(said) - 3))
    # Of a long text, what Nix calls an error says more than what it began with.
    errors = [line for line in said[start + 1 :] if line.startswith("error:")]
    words = " ".join([said[start], *errors[-2:]] if errors and said else said[start:])[:400]
    return BuildFailedError(f"Flox failed: {words}" if words else "Flox failed and said nothing.")


def _link(target: str, name: str, mode: str, paths: Paths) -> str | None:
    # Flox 1.13 renamed the links from ".run" to "-run".
    for link in (f"{target}/.flox/run/{name}-{mode}", f"{target}/.flox/run/{name}.{mode}"):
        try:
            path = os.readlink(link)
        except OSError:
            continue
        if not is_store_path(path):
            raise BuildFailedError(f"Flox left a link to {path[:120]!a}, which is no store path.")
        for needed in ("activate", "manifest.lock"):
            if not os.path.lexists(paths.on_disk(f"{path}/{needed}")):
                raise BuildFailedError(f"the environment that Flox built ({path}) holds no {needed}.")
        return path
    return None
