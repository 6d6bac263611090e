"""The administrator's policy: every key with its default, its check and its meaning.

The file is `/etc/flox-node/policy.json`. A key that it does not hold has its default; keys of a newer version are
ignored when it is read, and refused when it is written (`flox-node policy apply FILE.toml`, see policy_text).
The shim reads a part of it: shim/internal/node/policy.go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar
from urllib.parse import urlsplit

from flox_node.errors import CorruptError

SCHEMA_VERSION = 1
PATH = "/etc/flox-node/policy.json"

# The kubelet gives up on a sandbox after four minutes: an answer after that reaches nobody.
_LONGEST_WAIT_S = 230
_MODES = ("run", "dev")

T = TypeVar("T")
Check = Callable[[Any], Any]


class KeyFaultError(ValueError):
    """A key is unknown, or has a value that cannot be meant. `key` is its path in the policy."""

    def __init__(self, key: tuple[str, ...], fault: str) -> None:
        super().__init__(f"{'.'.join(key)} {fault}")
        self.key = key


def _key(default: T, check: Check, text: str) -> T:
    """A key of the policy: `check` gives the value that is meant, or raises what is wrong with it."""
    given: Any = field(default=default, metadata={"check": check, "text": text})
    result: T = given
    return result


# What values may be. Each says what is wrong as the end of a sentence that begins with the key.


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("is neither true nor false")
    return value


def _number(lowest: int, highest: int, unit: str) -> Check:
    def check(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:
            raise ValueError(f"is not between {lowest} and {highest} {unit}")
        return value

    return check


def _one_of(*words: str) -> Check:
    def check(value: Any) -> str:
        if value not in words:
            raise ValueError(f"is none of {', '.join(words)}")
        return str(value)

    return check


def _list_of(check: Check) -> Check:
    def check_all(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise TypeError("is not a list")
        return tuple(check(item) for item in value)

    return check_all


def _or_none(check: Check) -> Check:
    return lambda value: None if value is None else check(value)


def _word(value: Any) -> str:
    # Each becomes one word of one line of somebody's configuration: a blank or a line end would be another setting.
    if not isinstance(value, str) or not value or not value.isprintable() or " " in value:
        raise ValueError(f"holds {value!r}, which is not one word")
    return value


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/") or not value.isprintable():
        raise ValueError("is not an absolute path")
    return value


def _url(value: Any) -> str:
    """An http or https address. Secrets have their own places: the policy can be read by everybody on the node."""
    url = urlsplit(value) if isinstance(value, str) else None
    if url is None or url.scheme not in ("http", "https") or not url.hostname or url.geturl() != _word(value):
        raise ValueError("is no http or https address")
    if url.query or url.fragment:
        raise ValueError("holds a query or a fragment")
    return _without_user(value).rstrip("/")


def _without_user(value: str) -> str:
    if urlsplit(value).username is not None:
        raise ValueError("holds a user or a password; those of a binary cache go into the file of nix.netrc")
    return value


def _cache(value: Any) -> str:
    if "://" not in _word(value):
        raise ValueError(f"holds {value!r}, which is no address of a binary cache")
    return _without_user(value)


def _public_key(value: Any) -> str:
    if not re.fullmatch(r"[^:\s]+:[A-Za-z0-9+/]+={0,2}", _word(value)):
        raise ValueError(f"holds {value!r}, which is no public key (name:base64)")
    return str(value)


def _glob(value: Any) -> str:
    # Brackets mean different things to the shells of this world: only * and ? do the same everywhere.
    if not re.fullmatch(r"[A-Za-z0-9._*?-]+", _word(value)):
        raise ValueError(f"holds {value!r}: a pattern is letters, digits, '.', '_', '-', '*' and '?'")
    return str(value)


def _mode(value: Any) -> str:
    return str(_one_of(*_MODES)(value))


# The keys.


@dataclass(frozen=True)
class FloxHub:
    """`[floxhub]`: the hub that has the environments, and that gets the pods' tokens. Nobody else gets one."""

    url: str | None = _key(None, _or_none(_url), "The FloxHub of this node's pods; https://hub.flox.dev by default.")
    git_url: str | None = _key(
        None,
        _or_none(_url),
        "Where its git repositories are (<git_url>/<owner>/floxmeta). Follows from url: <url>/git; for "
        "https://hub.flox.dev it is https://api.flox.dev/git.",
    )
    api_url: str | None = _key(
        None,
        _or_none(_url),
        "Where its API is. Follows from url: <url>; for https://hub.flox.dev https://api.flox.dev.",
    )


@dataclass(frozen=True)
class Pods:
    """`[pods]`: what pods may ask for, and what their containers get."""

    owners: tuple[str, ...] = _key(("*",), _list_of(_glob), "Owners whose environments pods may run, as patterns.")
    modes: tuple[str, ...] = _key(_MODES, _list_of(_mode), "Values that flox.dev/activate-mode may have.")
    nix_mutable: bool = _key(
        True,
        _flag,
        'Whether pods may say flox.dev/nix-mutable: "true". What they install is limited as all that they write: by '
        "resources.limits.ephemeral-storage, for which a LimitRange sets a default in a namespace.",
    )
    without_environment: str = _key(
        "refuse",
        _one_of("refuse", "plain"),
        "A pod of the class flox without flox.dev/environment: refuse it, or run it as a plain pod.",
    )
    skip_containers: tuple[str, ...] = _key(
        (),
        _list_of(_glob),
        "Containers that never get the environment, in addition to flox.dev/skip-containers; patterns.",
    )
    view: str = _key(
        "closure",
        _one_of("closure", "store"),
        "What a container sees as /nix: its environment's closure, or the whole store of the node (then every tenant "
        "sees every tenant's packages).",
    )
    userland: str = _key(
        "on", _one_of("on", "off"), "Whether images without /bin/sh get a shell, its tools, /tmp and /etc/passwd."
    )
    cache_folder: str = _key(
        "disk",
        _one_of("disk", "memory"),
        "Where FLOX_ENV_CACHE lies: on the container's own disk layer, or in its memory.",
    )
    cache_mib: float = _key(64, _number(1, 1 << 20, "MiB"), "Its size when it lies in memory, in MiB.")


@dataclass(frozen=True)
class Namespace:
    """`[namespaces."GLOB"]`: what pods of some Kubernetes namespaces may, instead of what `[pods]` says.

    The most exact pattern counts: the namespace's own name, else the longest.
    """

    owners: tuple[str, ...] | None = _key(None, _list_of(_glob), "As pods.owners.")
    modes: tuple[str, ...] | None = _key(None, _list_of(_mode), "As pods.modes.")
    nix_mutable: bool | None = _key(None, _flag, "As pods.nix_mutable.")
    without_environment: str | None = _key(None, _one_of("refuse", "plain"), "As pods.without_environment.")


@dataclass(frozen=True)
class Realise:
    """`[realise]`: how an environment comes onto the node."""

    wait_s: float = _key(
        90,
        _number(1, _LONGEST_WAIT_S, "seconds"),
        "How long a sandbox waits for its environment, in seconds. The fetch goes on after that, and the "
        "kubelet's next attempt joins it.",
    )
    freshness_s: float = _key(
        10,
        _number(0, 3600, "seconds"),
        "How long FloxHub's answer to a token is good for the same token, without asking again, in seconds.",
    )
    grace_s: float = _key(
        3600,
        _number(0, 30 * 86400, "seconds"),
        "How long a token may have what it was granted before while FloxHub cannot be reached, in seconds; 0: not "
        "at all.",
    )
    time_s: float = _key(3600, _number(1, 86400, "seconds"), "How long one fetch may take, in seconds.")
    fetches: float = _key(4, _number(1, 64, "fetches"), "How many environments are fetched at once.")
    closure_mib: float = _key(
        51200, _number(1, 1 << 30, "MiB"), "The largest closure that is fetched, in MiB of the unpacked store paths."
    )
    free_mib: float = _key(
        1024, _number(0, 1 << 30, "MiB"), "What must be left free on the store's disk after a fetch, in MiB."
    )
    memory_mib: float = _key(4096, _number(64, 1 << 30, "MiB"), "The memory of one fetch, in MiB.")


@dataclass(frozen=True)
class Nix:
    """`[nix]`: where built packages come from, and whom to believe."""

    substituters: tuple[str, ...] = _key(
        ("https://cache.nixos.org", "https://cache.flox.dev"),
        _list_of(_cache),
        "Binary caches, instead of the default ones.",
    )
    extra_substituters: tuple[str, ...] = _key(
        (), _list_of(_cache), "Binary caches in addition to nix.substituters; asked first."
    )
    trusted_public_keys: tuple[str, ...] = _key(
        (
            # Nixpkgs' cache, and those of a Flox installation (its flox.conf).
            "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=",
            "flox-cache-public-1:7F4OyH7ZCnFhcze3fJdfyXYLQw/aV7GEed86nQ7IsOs=",
            "floxhub-1:0QOAlcobcEvq1mqEf4qAYCaWnTTOXpyoRv/PmqfSixM=",
        ),
        _list_of(_public_key),
        "Keys that signatures of packages are believed from, instead of the default ones: a cache of your own needs "
        "its key, and cache.nixos.org its.",
    )
    extra_trusted_public_keys: tuple[str, ...] = _key(
        (), _list_of(_public_key), "Keys in addition to nix.trusted_public_keys."
    )
    netrc: str | None = _key(
        None, _or_none(_path), "A file of the node, in netrc's format, with the passwords of private binary caches."
    )
    builds: bool = _key(
        False,
        _flag,
        "Whether packages that no cache has are built on the node, from what the environment's author wrote.",
    )


@dataclass(frozen=True)
class Network:
    """`[network]`: how the node reaches the hub and the caches."""

    http_proxy: str | None = _key(None, _or_none(_url), "The proxy for http addresses.")
    https_proxy: str | None = _key(None, _or_none(_url), "The proxy for https addresses.")
    no_proxy: tuple[str, ...] = _key(
        (), _list_of(_word), "Names, domains, addresses and networks (10.0.0.0/8) that are reached without a proxy."
    )
    ca_file: str | None = _key(
        None,
        _or_none(_path),
        "A file of the node with the certificate authorities to believe, in PEM, instead of the node's own.",
    )

    def proxy_for(self, scheme: str, host: str) -> str | None:
        """The proxy through which a host is reached; None: directly."""
        if any(_is_meant(name, host.lower()) for name in self.no_proxy):
            return None
        return self.https_proxy if scheme == "https" else self.http_proxy


_SECTIONS: Mapping[str, type[Any]] = {
    "floxhub": FloxHub,
    "pods": Pods,
    "realise": Realise,
    "nix": Nix,
    "network": Network,
}
_NAMESPACES = "namespaces"
_FORMER = {"realise": {"timeout_s": "wait_s"}}  # names that older policies use


@dataclass(frozen=True)
class Policy:
    """The policy with its defaults filled in. `inner_runtime` None: the shim looks for one itself."""

    inner_runtime: str | None = _key(
        None, _or_none(_path), "The OCI runtime behind the shim; an install finds out the node's."
    )
    kubelet_root: str | None = _key(
        None,
        _or_none(_path),
        "The kubelet's --root-dir, where pods' volumes are; the usual places of all distributions by default.",
    )
    floxhub: FloxHub = FloxHub()
    pods: Pods = Pods()
    realise: Realise = Realise()
    nix: Nix = Nix()
    network: Network = Network()
    namespaces: Mapping[str, Namespace] = field(default_factory=dict)

    @property
    def hub_url(self) -> str:
        """The hub: what else is asked than its git repositories and its API is asked there."""
        if self.floxhub.url:
            return self.floxhub.url
        # With only another git address, that host is the hub: nothing goes to flox.dev then.
        git = self.floxhub.git_url
        return git.removesuffix("/git") if git and git != "https://api.flox.dev/git" else "https://hub.flox.dev"

    @property
    def git_url(self) -> str:
        """`<git_url>/<owner>/floxmeta` is a git repository."""
        return self.floxhub.git_url or f"{_api_of(self.hub_url)}/git"

    @property
    def api_url(self) -> str:
        """Where the hub's API is: the catalog, the store's locations of published packages."""
        return self.floxhub.api_url or _api_of(self.hub_url)

    @property
    def substituters(self) -> tuple[str, ...]:
        """All binary caches, in the order in which they are asked."""
        return self.nix.extra_substituters + self.nix.substituters

    @property
    def trusted_public_keys(self) -> tuple[str, ...]:
        """All keys whose signatures count."""
        return self.nix.trusted_public_keys + self.nix.extra_trusted_public_keys

    def in_namespace(self, name: str) -> Pods:
        """What pods of a Kubernetes namespace may."""
        patterns = [pattern for pattern in self.namespaces if fnmatchcase(name, pattern)]
        if not patterns:
            return self.pods
        rules = self.namespaces[max(patterns, key=lambda pattern: (pattern == name, len(pattern), pattern))]
        own = {key.name: value for key in fields(rules) if (value := getattr(rules, key.name)) is not None}
        return replace(self.pods, **own)

    def as_dict(self) -> dict[str, Any]:
        """The policy in the form of its file, defaults included."""
        return {
            "schema_version": SCHEMA_VERSION,
            **_values(self),
            **{name: _values(getattr(self, name)) for name in _SECTIONS},
            _NAMESPACES: {
                pattern: {key: value for key, value in _values(rules).items() if value is not None}
                for pattern, rules in self.namespaces.items()
            },
        }


def parse(data: bytes | None) -> Policy:
    """The policy in the bytes of its file; None (no file) is the default policy.

    Raises:
        CorruptError: not JSON, of a newer schema, or a value that cannot be meant.
    """
    if data is None:
        return Policy()
    try:
        return from_dict(json.loads(data))
    except (TypeError, ValueError) as error:
        raise CorruptError(
            f"{PATH} is damaged: {error}.",
            remedy="Write it anew with `flox-node policy apply FILE.toml`, or remove it.",
        ) from error


def from_dict(raw: Any, *, strict: bool = False) -> Policy:
    """The policy in its file's form. `strict`: unknown keys are refused.

    Raises:
        KeyFaultError: a key is unknown, or its value cannot be meant; ValueError: no policy at all.
    """
    if not isinstance(raw, dict):
        raise TypeError("it is not a table")
    if raw.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise KeyFaultError(("schema_version",), f"is not {SCHEMA_VERSION}")
    raw = {name: value for name, value in raw.items() if name != "schema_version"}
    values: dict[str, Any] = {}
    for name, kind in _SECTIONS.items():
        if name in raw:
            values[name] = _section(kind, raw.pop(name), (name,), strict)
    if _NAMESPACES in raw:
        rules = _table(raw.pop(_NAMESPACES), (_NAMESPACES,))
        for pattern in rules:
            _judge(_glob, pattern, (_NAMESPACES, pattern))
        values[_NAMESPACES] = {
            pattern: _section(Namespace, given, (_NAMESPACES, pattern), strict) for pattern, given in rules.items()
        }
    top = _section(Policy, raw, (), strict)
    return Policy(**{**_values_of(top), **values})


def keys_of(kind: type[Any] = Policy) -> Iterator[Field[Any]]:
    """The keys of a table; their metadata hold `check` and `text`, what they mean."""
    return (key for key in fields(kind) if "check" in key.metadata)


def sections() -> Mapping[str, type[Any]]:
    """The tables of the policy by name, without the namespaces'."""
    return _SECTIONS


def _section(kind: type[T], raw: Any, where: tuple[str, ...], strict: bool) -> T:
    raw = dict(_table(raw, where))
    for former, name in _FORMER.get(where[0] if where else "", {}).items():
        if former in raw:
            raw.setdefault(name, raw.pop(former))
    values = {
        key.name: _judge(key.metadata["check"], raw.pop(key.name), (*where, key.name))
        for key in keys_of(kind)
        if key.name in raw
    }
    if strict and raw:
        raise KeyFaultError((*where, next(iter(raw))), "is no key of the policy")
    return kind(**values)


def _table(raw: Any, where: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise KeyFaultError(where, "is not a table")
    return raw


def _judge(check: Check, value: Any, where: tuple[str, ...]) -> Any:
    try:
        return check(value)
    except (TypeError, ValueError) as error:
        raise KeyFaultError(where, str(error)) from error


def _is_meant(name: str, host: str) -> bool:
    """Whether a word of no_proxy means a host, as curl and Go read them (with git and Nix it is curl that decides)."""
    if "/" in name:
        import ipaddress  # a network: clusters name those of their pods and services

        try:
            return ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False)
        except ValueError:
            return False
    domain = name.lower().lstrip("*").lstrip(".")
    return name == "*" or host == domain or host.endswith(f".{domain}")


def _values_of(table: Any) -> dict[str, Any]:
    return {key.name: getattr(table, key.name) for key in keys_of(type(table))}


def _values(table: Any) -> dict[str, Any]:
    """The keys of a table as JSON has them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in _values_of(table).items()}


def _api_of(hub: str) -> str:
    url = urlsplit(hub)
    # flox.dev's own hubs answer programs at api.<the rest>; any other hub does so itself (flox-core, floxhub.rs).
    if url.netloc == "hub.flox.dev" or (url.netloc.startswith("hub.") and url.netloc.endswith(".flox.dev")):
        return f"{url.scheme}://api.{url.netloc.removeprefix('hub.')}"
    return hub
