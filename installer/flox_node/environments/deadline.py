"""One moment by which a request must be answered, whatever it waits for."""

from __future__ import annotations

import time
from dataclasses import dataclass

from flox_node.environments.errors import DeadlineError


@dataclass(frozen=True)
class Deadline:
    """A moment of the monotonic clock: a jump of the wall clock changes nothing."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline that many seconds from now."""
        return cls(time.monotonic() + seconds)

    def left(self) -> float:
        """The seconds that are left, always more than 0.

        Raises:
            DeadlineError: none are left.
        """
        seconds = self.at - time.monotonic()
        if seconds <= 0:
            raise DeadlineError("the environment was not there in time.")
        return seconds
