"""`python -m tests.node.killed AT COMMAND...`: a `flox-node` command that dies by SIGKILL after journal entry AT.

Exits with the command's own code when it has fewer entries.
"""

from __future__ import annotations

import os
import signal
import sys

from flox_node.cli import main
from flox_node.state.ledger import Ledger


def _die_after(at: int) -> None:
    append = Ledger._append
    entries = 0

    def counting(self: Ledger, entry: dict[str, object]) -> None:
        nonlocal entries
        append(self, entry)
        entries += 1
        if entries == at:
            os.kill(os.getpid(), signal.SIGKILL)

    Ledger._append = counting  # type: ignore[method-assign]


if __name__ == "__main__":
    _die_after(int(sys.argv.pop(1)))
    main()
