"""The name of an environment: `owner/name`, or `owner/name:generation` for a pinned generation."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flox_node.environments.errors import BadRequestError

# The strictest reading: the parts become arguments, file names, a URL and a git ref. A leading dash would be an option.
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
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
        environment, colon, generation = text.partition(":")
        owner, slash, name = environment.partition("/")
        if "@" in text:
            raise BadRequestError(f"{_shown(text)} is no environment: a generation is written with a colon.")
        if not slash or not _is_part(owner) or not _is_part(name):
            raise BadRequestError(f"{_shown(text)} is no environment.")
        if colon and not _GENERATION.fullmatch(generation):
            raise BadRequestError(f"{_shown(text)} names no generation: that is a positive number.")
        return cls(owner, name, int(generation) if colon else None)


def _is_part(text: str) -> bool:
    # What git refuses as a branch must not reach it: "..", a last dot, ".lock".
    return bool(_PART.fullmatch(text)) and ".." not in text and not text.endswith((".", ".lock"))


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 80 else text[:80] + "...")
