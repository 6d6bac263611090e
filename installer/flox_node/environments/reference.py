"""The name of an environment: `owner/name`, or `owner/name:generation` for a pinned generation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flox_node.environments.errors import BadRequestError

# The strictest reading: the parts become arguments, file names, a URL and a git ref. A leading dash would be an option.
# shim/internal/pod/reference.go reads the same grammar.
_PART = r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9._-]{0,127}(?<!\.)(?<!\.lock)"
_ENVIRONMENT = re.compile(rf"{_PART}/{_PART}")
_GENERATION = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Reference:
    """An environment of FloxHub; `generation` None is the live one."""

    owner: str
    name: str
    generation: int | None = None

    @property
    def environment(self) -> str:
        """`owner/name`."""
        return f"{self.owner}/{self.name}"

    def __str__(self) -> str:
        return self.environment if self.generation is None else f"{self.environment}:{self.generation}"

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read `owner/name[:generation]`.

        Raises:
            BadRequestError: anything else; the text names the right form.
        """
        reason = _fault(text)
        if reason:
            raise BadRequestError(f"{_shown(text)} is no environment: {reason}.")
        environment, _, generation = text.partition(":")
        owner, _, name = environment.partition("/")
        return cls(owner, name, int(generation) if generation else None)


def _fault(text: str) -> str | None:
    before, at, after = text.partition("@")
    if at:
        right = f"{before}:{after}"
        return "`@` belongs to no name" if _fault(right) else f"a generation is written with a colon, {right}"
    environment, colon, generation = text.partition(":")
    if "/" not in environment:
        return "it names no owner"
    if not _ENVIRONMENT.fullmatch(environment):
        return (
            "owner and name are letters, digits, `.`, `_` and `-`, begin with a letter or a digit, and hold no `..` "
            "and no `.` or `.lock` at the end"
        )
    if colon and not _GENERATION.fullmatch(generation):
        return "a generation is a positive number"
    return None


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 80 else text[:80] + "...")
