"""Whether a process of this machine has ended.

The letter Z in its `stat` does not tell: that is the state of its first thread, which ends before the others, and also
while another thread executes a program (as every Go program may). A pidfd is ready once all of them have ended.
"""

import os
import select

PATIENCE_S = 180.0
"""How long what has to come is waited for, in seconds: on a busy machine all comes late, and only what hangs never."""


def wait_ended(pid: int, timeout: float) -> bool:
    """Wait up to `timeout` seconds for a process to end, as a zombie or altogether; whether it did."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], timeout)[0])
    finally:
        os.close(descriptor)


def has_ended(pid: int) -> bool:
    """Whether a process has ended, as a zombie or altogether."""
    return wait_ended(pid, 0)
