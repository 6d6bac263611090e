"""One run at a time: an exclusive lock on the node, released by the kernel when the holder dies."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from flox_node.atomic import HeldError, locked
from flox_node.errors import BusyError
from flox_node.host.files import HostFiles

LOCK_DIR = "/run/flox-node/locks"
INSTALL_LOCK = f"{LOCK_DIR}/install.lock"
GC_LOCK = f"{LOCK_DIR}/gc.lock"


@contextlib.contextmanager
def exclusive(files: HostFiles, path: str = INSTALL_LOCK) -> Iterator[None]:
    """Hold the lock for the body.

    Raises:
        BusyError: another run holds it; the text names its pid where it wrote one.
    """
    for folder in ("/run", "/run/flox-node", LOCK_DIR):
        files.mkdir(folder, 0o755)
    real = files.real(path)
    try:
        with locked(real) as descriptor:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            yield
    except HeldError as error:
        holder = real.read_text(errors="replace").strip() or "unknown"
        raise BusyError(f"Another run of flox-node holds {path} (pid {holder}).") from error
