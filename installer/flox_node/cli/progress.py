"""How far a cluster's nodes are: a table, live in a terminal, else one line for each change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from flox_node.cli.output import is_quiet, say

if TYPE_CHECKING:
    from flox_node.kube.rollout import NodeRow, Rollout

_COLOURS = {
    "ready": "green",
    "reverted": "green",
    "refused": "yellow",
    "waiting": "dim",
    "working": "cyan",
    "failed": "red",
    "down": "red",
}
_COLUMNS = ("node", "state", "reason", "platform", "containerd", "payload", "shim", "flox", "since")


class Progress:
    """Shows each look at the nodes while a command waits; on stderr, so that the result can be piped on."""

    def __init__(self, *, interrupted: str) -> None:
        """interrupted: what to say to somebody who presses Ctrl-C."""
        self._interrupted = interrupted
        self._live: Any = None
        self._told: dict[str, tuple[str, str, str]] = {}

    def __enter__(self) -> Self:
        if not is_quiet():
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True, highlight=False)
            if console.is_terminal:
                self._live = Live(console=console, transient=True, auto_refresh=False)
                self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if isinstance(error, KeyboardInterrupt):
            say(self._interrupted)

    def say(self, text: str) -> None:
        """One line that stays: something was done."""
        if self._live is not None:
            self._live.console.print(text, markup=False)
        else:
            say(text)

    def show(self, rollout: Rollout) -> None:
        """The nodes as they are now."""
        if self._live is not None:
            self._live.update(table(sorted(rollout.nodes, key=lambda row: row.state.settled)), refresh=True)
            return
        for row in rollout.nodes:
            now = (row.state.value, row.reason, row.message)
            if self._told.get(row.name) != now:
                self._told[row.name] = now
                self.say(f"{row.name}: {row.state}, {row.reason}" + (f": {row.message}" if row.message else ""))


def table(rows: Iterable[NodeRow]) -> Any:
    """A table of nodes; below each that is not as it should be stands what it says."""
    from rich.markup import escape
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in _COLUMNS:
        made.add_column(name.upper(), no_wrap=name != "reason")
    for row in rows:
        colour = _COLOURS[row.state]
        texts = (row.reason, row.platform, row.containerd, row.payload[:12], row.shim, row.flox, age(row.since))
        made.add_row(escape(row.name), f"[{colour}]{row.state}[/]", *map(escape, texts))
    return made


def nodes(rollout: Rollout) -> Iterator[Any]:
    """The nodes, and what those say that are not ready."""
    if not rollout.nodes:
        yield "The DaemonSet selects no node of this cluster."
        return
    yield table(rollout.nodes)
    for row in rollout.nodes:
        if row.message and row.state not in ("ready", "reverted"):
            yield f"-> {row.name}: {row.message}"


def age(since: str) -> str:
    """How long ago that was, as kubectl prints it: 45s, 12m, 3h, 9d."""
    if not since:
        return ""
    seconds = max(0, int((datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()))
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"
