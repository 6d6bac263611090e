"""The administrator's policy: which hub, which binary caches, how long a realisation may take.

The file is `/etc/flox-node/policy.json`. A key that it does not hold has its default; keys of a newer version are
ignored when it is read, and refused when it is written (`flox-node policy apply FILE.toml`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from flox_node.errors import CorruptError, UsageError

SCHEMA_VERSION = 1
PATH = "/etc/flox-node/policy.json"
DEFAULT_GIT_URL = "https://api.flox.dev/git"

# The caches of a Flox installation (its flox.conf) and of Nixpkgs.
_SUBSTITUTERS = ("https://cache.nixos.org", "https://cache.flox.dev")
_TRUSTED_PUBLIC_KEYS = (
    "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",
    "flox-cache-public-1:7F4OyH7ZCnFhcze3fJdfyXYLQw/aV7GEed86nQ7IsOs=",
    "floxhub-1:0QOAlcobcEvq1mqEf4qAYCaWnTTOXpyoRv/PmqfSixM=",
)
# The kubelet gives up on a sandbox after four minutes: an answer after that reaches nobody.
_LONGEST_TIMEOUT_S = 230.0
_KEYS: Mapping[str, frozenset[str]] = {
    "floxhub": frozenset({"git_url"}),
    "nix": frozenset({"substituters", "trusted_public_keys"}),
    "realise": frozenset({"timeout_s"}),
}


@dataclass(frozen=True)
class Policy:
    """The policy with its defaults filled in. `inner_runtime` None: the shim looks for one itself.

    `substituters` and `trusted_public_keys` replace the defaults as a whole where they are given.
    """

    inner_runtime: str | None = None
    git_url: str = DEFAULT_GIT_URL
    substituters: tuple[str, ...] = _SUBSTITUTERS
    trusted_public_keys: tuple[str, ...] = _TRUSTED_PUBLIC_KEYS
    timeout_s: float = 90.0

    def as_dict(self) -> dict[str, Any]:
        """The policy in the form of its file, defaults included."""
        return {
            "schema_version": SCHEMA_VERSION,
            "inner_runtime": self.inner_runtime,
            "floxhub": {"git_url": self.git_url},
            "nix": {
                "substituters": list(self.substituters),
                "trusted_public_keys": list(self.trusted_public_keys),
            },
            "realise": {"timeout_s": self.timeout_s},
        }


def parse(data: bytes | None) -> Policy:
    """The policy in the bytes of its file; None (no file) is the default policy.

    Raises:
        CorruptError: not JSON, of a newer schema, or a value that cannot be meant.
    """
    if data is None:
        return Policy()
    try:
        return _policy(_object(json.loads(data), "the policy"))
    except (TypeError, ValueError) as error:
        raise CorruptError(
            f"{PATH} is damaged: {error}.",
            remedy="Write it anew with `flox-node policy apply FILE.toml`, or remove it.",
        ) from error


def applied(text: str, before: bytes | None) -> bytes:
    """The policy file for an administrator's TOML text: only what it says, so that defaults stay ours to improve.

    The inner runtime that an install found out (`before`) stays when the text does not name one.

    Raises:
        UsageError: not TOML, an unknown key, or a value that cannot be meant.
    """
    import tomllib  # only `policy apply` needs it, the shim's side does not

    try:
        raw = tomllib.loads(text)
        _refuse_unknown(raw)
        _policy(raw)
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"This is no policy: {error}.", remedy="`flox-node policy show` prints a complete one."
        ) from error
    kept = parse(before).inner_runtime
    runtime = {"inner_runtime": kept} if kept else {}
    return json.dumps({"schema_version": SCHEMA_VERSION, **runtime, **raw}, indent=1).encode() + b"\n"


def _policy(raw: Mapping[str, Any]) -> Policy:
    if raw.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise ValueError(f"schema_version {raw['schema_version']!r} is not {SCHEMA_VERSION}")
    hub, nix, realise = (_object(raw.get(name, {}), name) for name in ("floxhub", "nix", "realise"))
    default = Policy()
    return Policy(
        inner_runtime=_runtime(raw.get("inner_runtime")),
        git_url=_hub_url(hub.get("git_url", default.git_url)),
        substituters=_words(nix.get("substituters", default.substituters), "nix.substituters", ("://",)),
        trusted_public_keys=_words(
            nix.get("trusted_public_keys", default.trusted_public_keys), "nix.trusted_public_keys", (":",)
        ),
        timeout_s=_seconds(realise.get("timeout_s", default.timeout_s)),
    )


def _refuse_unknown(raw: Mapping[str, Any]) -> None:
    for key, value in raw.items():
        if key in ("schema_version", "inner_runtime"):
            continue
        if key not in _KEYS:
            raise ValueError(f"the key {key} is unknown")
        for name in _object(value, key):
            if name not in _KEYS[key]:
                raise ValueError(f"the key {key}.{name} is unknown")


def _object(value: object, name: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{name} is not a table")
    return value


def _runtime(value: object) -> str | None:
    if value is None or (isinstance(value, str) and value.startswith("/")):
        return value
    raise ValueError("inner_runtime is not an absolute path")


def _hub_url(value: object) -> str:
    url = urlsplit(value) if isinstance(value, str) else None
    if url is None or url.scheme not in ("http", "https") or not url.hostname or _has_blank(url.geturl()):
        raise ValueError("floxhub.git_url is no http or https address")
    if url.username is not None or url.query or url.fragment:
        raise ValueError("floxhub.git_url holds a user, a query or a fragment")
    return url.geturl().rstrip("/")


def _words(value: object, name: str, needed: tuple[str, ...]) -> tuple[str, ...]:
    # Each becomes one word of one line of Nix' configuration: a blank or a line end would be another setting.
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name} is not a list")
    for word in value:
        if not isinstance(word, str) or _has_blank(word) or not all(mark in word for mark in needed):
            raise ValueError(f"{name} holds {word!r}")
    return tuple(value)


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= _LONGEST_TIMEOUT_S:
        raise ValueError(f"realise.timeout_s is not between 1 and {_LONGEST_TIMEOUT_S:.0f} seconds")
    return float(value)


def _has_blank(word: str) -> bool:
    return not word or not word.isprintable() or " " in word
