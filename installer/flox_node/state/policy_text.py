"""The policy as an administrator reads and writes it: TOML with comments, taken back as it was shown."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from flox_node.errors import UsageError
from flox_node.state import policy
from flox_node.state.policy import KeyFaultError, Namespace, Policy

_WIDTH = 118
# Keys that follow from another one, and the property of the policy that says how.
_FOLLOWS = {"floxhub.url": "hub_url", "floxhub.git_url": "git_url", "floxhub.api_url": "api_url"}


@dataclass(frozen=True)
class Explained:
    """A key of the policy: what it means, what it is by default, and what is in force."""

    key: str
    text: str
    default: Any
    value: Any


def applied(text: str, before: bytes | None) -> bytes:
    """The policy file for an administrator's TOML text: only what it says, so that defaults stay ours to improve.

    The inner runtime that an install found out (`before`) stays when the text does not name one.

    Raises:
        UsageError: not TOML, an unknown key, or a value that cannot be meant; the text names the line.
    """
    raw = _checked(text)
    # A damaged file is what a new policy cures.
    kept = _inner_runtime(before)
    runtime = {"inner_runtime": kept} if kept else {}
    return json.dumps({"schema_version": policy.SCHEMA_VERSION, **runtime, **raw}, indent=1).encode() + b"\n"


def rendered(given: Policy) -> str:
    """The whole policy as TOML, every key with its meaning. `applied` takes it back; what has its default is a comment,
    so that a file that was begun with this one keeps nothing that nobody decided.
    """
    lines = [
        "# The policy of a node: `flox-node policy apply FILE` puts it into force.",
        "# A line that begins with '# ' and a key shows that key's default.",
    ]
    lines += _rendered_keys(given, "", Policy)
    for name, kind in policy.sections().items():
        lines += ["", f"[{name}]", *_rendered_keys(given, name, kind)]
    lines += ["", *_comment("What pods of some Kubernetes namespaces may, instead of what [pods] says:")]
    lines += ['# [namespaces."team-*"]', '# owners = ["team"]']
    for pattern, rules in given.namespaces.items():
        lines += ["", f"[namespaces.{json.dumps(pattern)}]"]
        said = ((key.name, getattr(rules, key.name)) for key in policy.keys_of(Namespace))
        lines += [f"{name} = {_toml(value)}" for name, value in said if value is not None]
    return "\n".join(lines) + "\n"


def explained(name: str, given: Policy) -> Explained:
    """What a key means, for example `realise.wait_s`.

    Raises:
        UsageError: there is no such key.
    """
    found = {explained.key: explained for explained in explanations(given)}
    if name not in found:
        import difflib

        near = difflib.get_close_matches(name, found, 3, 0.4)
        raise UsageError(
            f"{name} is no key of the policy.",
            remedy=f"Meant is perhaps {', '.join(near)}." if near else "`flox-node policy show` shows all of them.",
        )
    return found[name]


def explanations(given: Policy) -> Iterator[Explained]:
    """All keys of the policy, those of `[namespaces]` under the pattern `*`."""
    for key in policy.keys_of():
        yield Explained(key.name, key.metadata["text"], key.default, getattr(given, key.name))
    for name, kind in policy.sections().items():
        for key in policy.keys_of(kind):
            yield Explained(
                f"{name}.{key.name}", key.metadata["text"], key.default, getattr(getattr(given, name), key.name)
            )
    for key in policy.keys_of(Namespace):
        value = {pattern: getattr(rules, key.name) for pattern, rules in given.namespaces.items()}
        yield Explained(f"namespaces.*.{key.name}", key.metadata["text"], None, value)


def _checked(text: str) -> dict[str, Any]:
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:  # its text names line and column
        raise _refused(str(error)) from error
    try:
        policy.from_dict(raw, strict=True)
    except KeyFaultError as error:
        raise _refused(f"line {_line(text, error.key)}: {error}") from error
    return raw


def _refused(fault: str) -> UsageError:
    return UsageError(
        f"This is no policy: {fault}.",
        remedy="The policy in force stays. "
        "`flox-node policy show` prints a whole one, `policy explain KEY` says what a key means.",
    )


def _line(text: str, key: tuple[str, ...]) -> int:
    """The line (from 1) at which the value of a key begins: after the longest beginning of the text without it."""
    lines = text.splitlines()
    begins = 1
    for count in range(1, len(lines) + 1):
        try:
            value: Any = tomllib.loads("\n".join(lines[:count]))
        except tomllib.TOMLDecodeError:
            continue  # in the middle of a value
        for part in key:
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            return begins
        begins = count + 1
    return begins


def _inner_runtime(before: bytes | None) -> str | None:
    try:
        kept = json.loads(before or b"{}").get("inner_runtime")
    except (AttributeError, ValueError):
        return None
    return kept if isinstance(kept, str) and kept.startswith("/") else None


def _rendered_keys(given: Policy, name: str, kind: type[Any]) -> Iterator[str]:
    table = getattr(given, name) if name else given
    for key in policy.keys_of(kind):
        value = getattr(table, key.name)
        yield ""
        yield from _comment(key.metadata["text"])
        if value is None:
            follows = getattr(given, _FOLLOWS.get(f"{name}.{key.name}", ""), None)
            yield f"# {key.name} = {_toml(follows)}" if follows else f"# {key.name} is not set."
        else:
            yield f"{'# ' if value == key.default else ''}{key.name} = {_toml(value)}"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in wrap(text, _WIDTH - 2)]


def _toml(value: Any) -> str:
    # JSON's strings, numbers, lists and booleans are TOML's, as long as nothing in them is a control character.
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
