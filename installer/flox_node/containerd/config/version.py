"""The version of a containerd, as its binary, the CRI, a node object or a person writes it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from flox_node.errors import UsageError

# "containerd github.com/containerd/containerd/v2 v2.1.4 abc", "1.6.20~ds1", "containerd://2.2.4-k3s1", "1.7"
_NUMBER = re.compile(r"(?<![\w.])v?(?P<major>\d+)\.(?P<minor>\d+)(?:\.(?P<patch>\d+))?(?P<rest>[-+~][\w.+~-]*)?")


@dataclass(frozen=True, order=True)
class ContainerdVersion:
    """A containerd release: compared by its numbers, shown as it was written.

    The properties are what differs between releases in how a configuration is read; each is measured with real daemons.
    """

    major: int
    minor: int
    patch: int
    text: str = field(compare=False, default="")

    @classmethod
    def parse(cls, text: str) -> ContainerdVersion:
        """Find the version in `containerd --version`, a CRI version, `containerRuntimeVersion` or plain numbers.

        A missing patch number counts as 0, the release with the most known faults. Raises UsageError without any.
        """
        match = _NUMBER.search(text)
        if match is None:
            raise UsageError(f"{text!r} holds no containerd version.", remedy="Write it like 1.7.24 or 2.1.4.")
        shown = match.group(0).removeprefix("v")
        return cls(int(match["major"]), int(match["minor"]), int(match["patch"] or 0), shown)

    def __str__(self) -> str:
        return self.text or f"{self.major}.{self.minor}.{self.patch}"

    @property
    def newest_schema(self) -> int:
        """The highest `version` of a file that this containerd reads. 1.6 takes any number and reads it as 2."""
        if self.major == 1:
            return 2
        return 3 if (self.major, self.minor) < (2, 3) else 4

    @property
    def resolves_patterns_beside_file(self) -> bool:
        """A relative import pattern means the importing file's folder; before, the daemon's working directory."""
        return (1, 6, 30) <= (self.major, self.minor, self.patch) < (1, 7, 0) or self >= ContainerdVersion(1, 7, 16)

    @property
    def merges_deeply(self) -> bool:
        """Imported files are merged key by key (2.x); before, a file's plugin table replaces the earlier one whole."""
        return self.major >= 2

    @property
    def keeps_builtin_runc(self) -> bool:
        """The built-in `runc` stays when a file defines other runtimes (2.x); on 1.x any of them replaces it."""
        return self.major >= 2

    @property
    def reads_strict_toml(self) -> bool:
        """A byte order mark, invalid UTF-8 and bare carriage returns stop it (2.x); 1.x reads over them."""
        return self.major >= 2

    @property
    def migrates_each_file(self) -> bool:
        """Every file is brought to the newest schema before the merge (2.3); 2.0 to 2.2 do it once, after the merge."""
        return (self.major, self.minor) >= (2, 3)

    @property
    def presumes_config_path(self) -> bool:
        """`registry.config_path` has a default that `registry.mirrors` does not switch off: only 2.2.0 and 2.2.1."""
        return (self.major, self.minor) == (2, 2) and self.patch < 2

    @property
    def refuses_newer_dropin(self) -> bool:
        """An imported file with a higher `version` than the root's stops it: only 2.3.0 to 2.3.4."""
        return (self.major, self.minor) == (2, 3) and self.patch < 5
