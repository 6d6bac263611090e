"""`python -m tests.bed.pod PID COMMAND...`: run a program of this machine as a privileged pod of a node box runs.

It sees this machine's files, and the node's root file system (with all that is mounted there) at `/mnt`, as a pod does
through a hostPath; it is a process of the node's PID namespace. `/proc/PID/root` would not do: it is a symlink, and
programs that resolve symlinks (SQLite is one) leave the node through it.
"""

from __future__ import annotations

import ctypes
import os
import sys

HOST_ROOT = "/mnt"

_libc = ctypes.CDLL(None, use_errno=True)
_OPEN_TREE, _MOVE_MOUNT = 428, 429  # the same numbers on every architecture (asm-generic)
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_CLONE_NEWNS = 0x20000
_MS_REC, _MS_SLAVE = 0x4000, 0x80000


def main() -> int:
    """Enter and run; the command's exit code (128 + the signal that killed it)."""
    pid, command = int(sys.argv[1]), sys.argv[2:]
    folder = os.getcwd()
    machine = _check("open_tree", _libc.syscall(_OPEN_TREE, _AT_FDCWD, b"/", _OPEN_TREE_CLONE | _AT_RECURSIVE))
    namespaces = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in ("pid", "mnt")]
    for namespace in namespaces:
        _check("setns", _libc.setns(namespace, 0))
    _check("unshare", _libc.unshare(_CLONE_NEWNS))
    # HostToContainer propagation, in the words of a pod: what the node mounts later is seen, and nothing goes back.
    _check("mount", _libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None))
    node = _check("open_tree", _libc.syscall(_OPEN_TREE, _AT_FDCWD, b"/", _OPEN_TREE_CLONE | _AT_RECURSIVE))
    _move_mount(machine, "/tmp")  # any folder of the node: it is hidden in this mount namespace only
    _move_mount(node, f"/tmp{HOST_ROOT}")
    os.chroot("/tmp")
    os.chdir(folder)
    child = os.fork()  # a PID namespace is entered by children only
    if child == 0:
        os.execvp(command[0], command)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _move_mount(tree: int, folder: str) -> None:
    _check("move_mount", _libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, folder.encode(), _MOVE_MOUNT_F_EMPTY_PATH))


def _check(call: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


if __name__ == "__main__":
    sys.exit(main())
