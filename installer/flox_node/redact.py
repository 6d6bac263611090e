"""Taking secrets out of texts and tables that are passed on.

Three nets, each for what the others let through: values under keys that hold secrets, texts that look like secrets
wherever they stand, and the secrets that are known to be on this node (registry credentials, pods' tokens), literally.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

MASK = "<redacted>"
_SECRET_KEY = re.compile(
    r"(?i)(?:^|[_.-])(auth|authorization|passw(?:or)?d|passphrase|secret|token|identitytoken|registrytoken|username|"
    r"credentials?|cookie|api_?key|access_?key|private_?key|bearer|headers?|env|environment_values)(?:$|[_.-])"
)
_WORDS = (
    r"authorization|auth|passw(?:or)?d|passphrase|secret|token|username|credentials?|cookie|api[_-]?key|access[_-]?key"
)
_VALUE = r"""\\?"[^"\n]*"|'[^'\n]*'"""  # in quotes, which JSON in JSON escapes
_PATTERNS = tuple(
    (re.compile(pattern, flags), replacement)
    for pattern, flags, replacement in (
        (r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL, MASK),
        (r"\bflox_[a-z]+_[\w-]+", 0, MASK),
        (r"\bey[JK][\w-]{8,}(?:\.[\w-]*){1,4}", 0, MASK),  # a JWT: base64 of '{"'
        (r"\b(?:gh[a-z]_|github_pat_|glpat-|xox[a-z]-|AKIA|ASIA)[\w-]{10,}", 0, MASK),
        (r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}", 0, rf"\1 {MASK}"),
        (r"(://)[^/\s@\"']+@", 0, rf"\1{MASK}@"),
        (r"(?i)\b(machine\s+\S+\s+login)\s+\S+\s+password\s+\S+", 0, rf"\1 {MASK}"),
        (rf"(?i)(--[\w-]*(?:{_WORDS}|key)[\w-]*(?:=|\s+))(?!-)\S+", 0, rf"\1{MASK}"),
        (rf"(?i)([\w.-]*(?:{_WORDS})[\w.-]*\\?[\"']?\s*[=:]\s*)({_VALUE}|[^\s,;}}\]\"']+)", 0, rf"\1{MASK}"),
        # The value of an environment variable, whatever its name: nobody knows which of them hold secrets.
        (rf"(?<![\w/.-])([A-Z][A-Z0-9_]{{2,}}=)({_VALUE}|[^\s,;\"'\]]+)", 0, rf"\1{MASK}"),
    )
)
_SHORTEST = 6  # shorter literals would take half the text along


class Redactor:
    """Takes secrets out; `known` are values that are secrets on this node."""

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._known = sorted({value for value in known if len(value) >= _SHORTEST}, key=len, reverse=True)

    def text(self, text: str) -> str:
        """A text without secrets."""
        for value in self._known:
            text = text.replace(value, MASK)
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text

    def data(self, value: Any) -> Any:
        """Plain data without secrets: what stands under a secret's key goes as a whole, other texts as `text`."""
        if isinstance(value, Mapping):
            return {
                self.text(str(key)): MASK
                if is_secret_key(str(key)) and item not in (None, "", {}, [])
                else self.data(item)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.data(item) for item in value]
        return self.text(value) if isinstance(value, str) else value


def is_secret_key(key: str) -> bool:
    """Whether what stands under this key is, or holds, a secret."""
    return bool(_SECRET_KEY.search(key))


def secrets_in(value: Any, *, below_secret: bool = False) -> Iterator[str]:
    """The texts that stand under keys that hold secrets."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from secrets_in(item, below_secret=below_secret or is_secret_key(str(key)))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from secrets_in(item, below_secret=below_secret)
    elif isinstance(value, str) and below_secret:
        yield value
