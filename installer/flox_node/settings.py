"""What an administrator chooses: on the command line, as `FLOX_NODE_*`, or as the DaemonSet's ConfigMap, a folder.

A setting is added here and where it is used: options, variables and keys of settings.toml follow from its field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from flox_node.errors import UsageError
from flox_node.names import NOT_READY

FOLDER = Path("/settings")
_REMEDY = "Correct the file; where it is of the ConfigMap flox-node, nodes follow within two minutes."
_SHARE = re.compile(r"(?=.*[1-9])[0-9]+%?")

STARTUP_TAINTS = (NOT_READY, "startup-taint.cluster-autoscaler.kubernetes.io/flox")
"""The keys of startup taints that are lifted by default: Karpenter's and everybody's, and the Cluster Autoscaler's."""
STARTUP_TAINT = re.compile(
    r"flox[.]dev/not-ready|(startup-taint[.]cluster-autoscaler[.]kubernetes[.]io|readiness[.]k8s[.]io)/flox[a-z0-9-]*"
)
"""The keys that can be among them; the admission policy lets the reporter touch no other."""

T = TypeVar("T")


def _setting(default: T, kind: type, help: str = "", *, usual: str = "", least: float = 0, toml: str = "") -> T:
    """A field that is a setting.

    kind: bool, int, float, str, or tuple for a list of texts. help: of its option, "" where it has none. usual: what
    stands for None in the help. least: for numbers. toml: the table of settings.toml that holds it, "" for none.
    """
    told = {"kind": kind, "help": help, "usual": usual, "least": least, "toml": toml}
    given: Any = field(default=default, metadata=told)
    result: T = given
    return result


@dataclass(frozen=True)
class Settings:
    """What a run is told. None means: found out on the node; in settings.toml "" and 0 say so, too.

    `adopt` replaces a handler `flox` of somebody else's until the uninstall. `nix_dir` is the folder that is mounted at
    /nix; None: what an earlier install mounted there, or /nix itself. `share` says how many nodes may restart
    containerd at a time once the first one has done so. `policy` is the text of a policy.toml to put into force, and
    None leaves the policy as it is. `startup_taints` are the keys of the taints that are lifted once the handler is
    live. `repair` compares every byte of the payload with what is there. `digest` names a whole state of the ConfigMap.
    """

    socket: str | None = _setting(
        None, str, "The kubelet's CRI socket, as the node names it.", usual="what the kubelet uses"
    )
    platform: str | None = _setting(None, str, "What this node is (see docs/reference.md).", usual="found by its signs")
    adopt: bool = _setting(
        False, bool, "Replace a handler `flox` that somebody else registered; uninstall brings it back."
    )
    nix_dir: str | None = _setting(
        None, str, "Keep the store in this folder of the node and mount it at /nix.", usual="/nix"
    )
    restarts_per_hour: int = _setting(6, int, "Refuse to restart containerd more often than that.", least=1)
    deadline_s: float | None = _setting(
        None,
        float,
        "Seconds after which a restart of containerd that is not confirmed is undone.",
        usual="the platform's",
        least=10,
    )
    purge: bool = _setting(False, bool)
    startup_taints: tuple[str, ...] = _setting(STARTUP_TAINTS, tuple)
    share: str = _setting("10%", str, toml="rollout")
    policy: str | None = None
    repair: bool = False
    digest: str = ""

    def __post_init__(self) -> None:
        if self.deadline_s is not None and not math.isfinite(self.deadline_s):
            raise _fault(f"deadline_s = {self.deadline_s} is no number of seconds.")
        if not _SHARE.fullmatch(self.share):
            raise _fault(f'settings.toml: share = "{self.share}" is no number of nodes ("3") or percentage ("10%").')


def slots(share: str, nodes: int) -> int:
    """How many of so many nodes may restart containerd at a time ("10%" of them, or "3"); at least one."""
    number = int(share.rstrip("%"))
    return max(1, -(-nodes * number // 100) if share.endswith("%") else number)


def load(folder: Path = FOLDER) -> Settings:
    """Read the mounted ConfigMap; what it does not say has its default.

    Raises:
        UsageError: what is wrong with it.
    """
    import hashlib  # with tomllib 5 ms, and most commands are given no folder

    text, policy = _text(folder / "settings.toml"), _text(folder / "policy.toml")
    digest = hashlib.sha256(f"{text}\0{policy}".encode()).hexdigest()
    return replace(parse(text), policy=policy or None, digest=digest)


def digest(folder: Path = FOLDER) -> str:
    """The name of the folder's state; where it is wrong, that is what is wrong with it."""
    try:
        return load(folder).digest
    except UsageError as error:
        return error.cause


def parse(text: str) -> Settings:
    """Read settings.toml.

    Raises:
        UsageError: what is wrong with it.
    """
    import tomllib

    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _fault(f"settings.toml is no TOML: {error}.") from error
    known = {each.name: each.metadata for each in fields(Settings) if each.metadata}
    values = {}
    for name, value in _flat(given, {told["toml"] for told in known.values()} - {""}).items():
        found = name.rpartition(".")[2]
        if found not in known or name != ".".join(filter(None, (known[found]["toml"], found))):
            names = sorted(".".join(filter(None, (told["toml"], key))) for key, told in known.items())
            raise _fault(f"settings.toml: {name} is not known; known are {', '.join(names)}.")
        values[found] = _value(name, value, known[found])
    return Settings(**values)


def from_json(given: Mapping[str, Any]) -> Settings:
    """Read what `dataclasses.asdict` made of settings, of which somebody may have written another thing since.

    Raises:
        UsageError: what is wrong with it.
    """
    values = {}
    for each in fields(Settings):
        value = given.get(each.name, each.default)
        if not each.metadata:
            kinds = (str, type(None)) if each.default is None else (type(each.default),)
            if type(value) not in kinds:
                raise _fault(f"settings: {each.name} = {value!r} is not of the type {kinds[0].__name__}.")
            values[each.name] = value
        elif value is None and each.default is None:
            values[each.name] = None
        else:
            values[each.name] = _value(each.name, list(value) if isinstance(value, tuple) else value, each.metadata)
    if unknown := sorted(given.keys() - values.keys()):
        raise _fault(f"settings: {', '.join(unknown)} is not known.")
    return Settings(**values)


def wants_purge(folder: Path = FOLDER) -> bool:
    """What settings.toml says about `purge`, whatever else is wrong with it: an uninstall needs no more."""
    import tomllib

    try:
        return tomllib.loads(_text(folder / "settings.toml")).get("purge") is True
    except (tomllib.TOMLDecodeError, UsageError):
        return False


def _flat(given: Mapping[str, Any], tables: set[str]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in given.items():
        if name in tables and isinstance(value, dict):
            flat |= {f"{name}.{key}": each for key, each in value.items()}
        else:
            flat[name] = value
    return flat


def _value(name: str, value: Any, told: Mapping[str, Any]) -> Any:
    kind: type = told["kind"]
    if kind is tuple:
        return _keys(name, value)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise _fault(f"settings.toml: {name} = {value!r} is not of the type {kind.__name__}.")
    if told["usual"] and not value:
        return None
    if kind in (int, float) and not value >= told["least"]:
        raise _fault(f"settings.toml: {name} = {value} is less than {told['least']}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise _fault(f"settings.toml: {name} = {value} is no number of seconds.")
    return value


def _keys(name: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _fault(f"settings.toml: {name} = {value!r} is no list.")
    for key in value:
        if not isinstance(key, str) or not STARTUP_TAINT.fullmatch(key):
            raise _fault(
                f"settings.toml: {name}: {key!r} is none of flox.dev/not-ready, "
                "startup-taint.cluster-autoscaler.kubernetes.io/flox... and readiness.k8s.io/flox..."
            )
    return tuple(value)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise _fault(f"{path.name} cannot be read: {error}.") from error


def _fault(cause: str) -> UsageError:
    return UsageError(cause, remedy=_REMEDY)
