"""What an administrator chooses for all nodes: the ConfigMap, mounted as a folder."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from flox_node.errors import UsageError

FOLDER = Path("/settings")
_REMEDY = "Correct settings.toml in the ConfigMap of flox-node; nodes follow within two minutes."


@dataclass(frozen=True)
class Settings:
    """`settings.toml`. Empty texts and zeroes mean: found out by the node (see `flox-node install --help`).

    `share` says how many nodes may restart containerd at a time once the first one has done so: "10%" or "3".
    `policy` is the file to put into force, if there is one; `digest` names this whole state of the settings.
    """

    platform: str = ""
    adopt: bool = False
    nix_dir: str = ""
    restarts_per_hour: int = 6
    deadline_s: float = 0.0
    purge: bool = False
    share: str = "10%"
    policy: Path | None = None
    digest: str = ""

    def slots(self, nodes: int) -> int:
        """How many of so many nodes may restart containerd at a time; at least one."""
        number = int(self.share.rstrip("%"))
        return max(1, -(-nodes * number // 100) if self.share.endswith("%") else number)


def load(folder: Path = FOLDER) -> Settings:
    """Read the mounted ConfigMap; what it does not say has its default.

    Raises:
        UsageError: what is wrong with it.
    """
    policy = folder / "policy.toml"
    text, policy_text = _text(folder / "settings.toml"), _text(policy)
    digest = hashlib.sha256(f"{text}\0{policy_text}".encode()).hexdigest()
    return replace(parse(text), policy=policy if policy_text else None, digest=digest)


def parse(text: str) -> Settings:
    """Read settings.toml.

    Raises:
        UsageError: what is wrong with it.
    """
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"settings.toml is no TOML: {error}.", remedy=_REMEDY) from error
    rollout = given.pop("rollout", {})
    if not isinstance(rollout, dict) or rollout.keys() - {"share"}:
        raise UsageError("settings.toml: [rollout] knows only the key share.", remedy=_REMEDY)
    values = {**given, **rollout}
    _require_known(values)
    return Settings(**values)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except UnicodeDecodeError as error:
        raise UsageError(f"{path.name} is no UTF-8: {error}.", remedy=_REMEDY) from error


def _require_known(values: dict[str, Any]) -> None:
    types = {field.name: type(field.default) for field in fields(Settings) if field.name not in ("policy", "digest")}
    for name, value in values.items():
        if name not in types:
            raise UsageError(
                f"settings.toml: {name} is not known; known are {', '.join(sorted(types))}.", remedy=_REMEDY
            )
        if type(value) is not types[name] and not (types[name] is float and type(value) is int):
            raise UsageError(
                f"settings.toml: {name} = {value!r} is not of the type {types[name].__name__}.", remedy=_REMEDY
            )
        if isinstance(value, (int, float)) and value < 0:
            raise UsageError(f"settings.toml: {name} = {value} is negative.", remedy=_REMEDY)
    share = str(values.get("share", "1"))
    if not share.removesuffix("%").isascii() or not share.removesuffix("%").isdigit() or share.strip("0%") == "":
        raise UsageError(
            f'settings.toml: share = "{share}" is no number of nodes ("3") or percentage ("10%").', remedy=_REMEDY
        )
