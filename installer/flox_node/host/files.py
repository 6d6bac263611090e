"""The node's files, below a host root, with the node's own symlinks resolved inside that root."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path

from flox_node.atomic import replacing, symlink, sync_folder, temporary_of
from flox_node.errors import BusyError
from flox_node.host import selinux
from flox_node.host.trees import remove_tree

_MAX_LINKS = 40  # the kernel's own limit (MAXSYMLINKS)


class ConcurrentWriteError(BusyError):
    """Somebody else changed a file between our reading and our writing it."""

    default_remedy = "Something else writes this file; stop it, or run the command again."


class HostFiles:
    """Files of the node. Every path is the node's own absolute path ("/etc/containerd/config.toml")."""

    def __init__(self, root: str | Path = "/") -> None:
        self.root = Path(root)

    def real(self, path: str, *, follow: bool = True) -> Path:
        """Where `path` lies in our own namespace.

        An absolute symlink of the node points below the host root, not below ours: following it with the kernel's rules
        would leave the node (the pod's own /etc, say). Missing components are allowed, so the result can be created.
        `follow=False` leaves the last component as it is.

        Raises:
            OSError: ELOOP for a symlink loop.
        """
        todo = [part for part in path.split("/") if part not in ("", ".")][::-1]
        done: list[str] = []
        links = 0
        root = os.fspath(self.root).rstrip("/")
        while todo:
            part = todo.pop()
            if part == "..":
                if done:
                    done.pop()
                continue
            if todo or follow:
                try:
                    target = os.readlink("/".join((root, *done, part)))
                except OSError:
                    target = None
                if target is not None:
                    links += 1
                    if links > _MAX_LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                    if target.startswith("/"):
                        done = []
                    todo.extend([piece for piece in target.split("/") if piece not in ("", ".")][::-1])
                    continue
            done.append(part)
        return self.root.joinpath(*done)

    # reading

    def read(self, path: str) -> bytes:
        """The file's bytes; FileNotFoundError when it is not there."""
        return self.real(path).read_bytes()

    def read_optional(self, path: str) -> bytes | None:
        """The file's bytes, or None when it is not there."""
        try:
            return self.read(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def read_end(self, path: str, size: int) -> bytes | None:
        """The last bytes of a file; None where there is none."""
        try:
            with open(self.real(path), "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - size))
                return file.read(size)
        except FileNotFoundError:
            return None

    def lstat(self, path: str) -> os.stat_result | None:
        """The status of the path itself, or None when nothing is there."""
        try:
            return self.real(path, follow=False).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def changed_at(self, path: str) -> float | None:
        """When what the path leads to was changed last, in seconds since the epoch; None when nothing is there.

        It is the time of the inode: a file that is moved there keeps the time of its content. A link that was made to
        point at an old file is a change, too.
        """
        itself = self.lstat(path)
        try:
            target = self.real(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return max(target.st_ctime, target.st_ctime if itself is None else itself.st_ctime)

    def lexists(self, path: str) -> bool:
        """Whether anything is there, a dangling symlink included."""
        return self.lstat(path) is not None

    def exists(self, path: str) -> bool:
        """Whether the path leads to something."""
        return self.real(path).exists()

    def is_dir(self, path: str) -> bool:
        """Whether the path leads to a folder."""
        return self.real(path).is_dir()

    def listdir(self, path: str) -> list[str]:
        """The sorted names in a folder; empty when it is not there."""
        try:
            return sorted(os.listdir(self.real(path)))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def readlink(self, path: str) -> str | None:
        """The target of a symlink as it is written, or None when it is not one."""
        try:
            return os.readlink(self.real(path, follow=False))
        except OSError:
            return None

    # writing

    def mkdir(self, path: str, mode: int = 0o755) -> bool:
        """Make one folder with exactly `mode`; False when it was there already. Its parent must exist."""
        real = self.real(path)
        try:
            os.mkdir(real)
        except FileExistsError:
            if real.is_dir():
                return False
            raise
        os.chmod(real, mode)
        selinux.label(self.root, path, real)
        sync_folder(real.parent)
        return True

    def write_atomic(self, path: str, data: bytes, mode: int = 0o644, *, expected: bytes | None = None) -> None:
        """Replace a file as a whole: a reader, a crash or a power cut sees the old or the new bytes, nothing between.

        An existing file keeps its mode, owner and extended attributes (the SELinux label among them); `mode` is for a
        new one. Where the file is itself a mount point (a bind mount into a container), rename says EBUSY and the bytes
        are written in place: callers keep a backup, so even that can be undone.

        `expected` makes it a compare-and-swap: the file must still hold these bytes right before the rename.

        Raises:
            ConcurrentWriteError: the file does not hold `expected` any more.
            OSError: read-only or full file system.
        """
        real = self.real(path)
        try:
            before: os.stat_result | None = real.stat()
        except FileNotFoundError:
            before = None
        try:
            with replacing(os.fspath(real)) as temporary, open(temporary, "xb", opener=_private) as file:
                file.write(data)
                if before is None:
                    os.fchmod(file.fileno(), mode)
                    selinux.label(self.root, path, file.fileno())
                else:
                    _copy_metadata(real, before, file.fileno())
                file.flush()
                os.fsync(file.fileno())
                if expected is not None and self.read_optional(path) != expected:
                    raise ConcurrentWriteError(
                        f"{path} was changed by something else while flox-node was about to write it."
                    )
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            _write_in_place(real, data)

    def append_durably(self, path: str, data: bytes, mode: int = 0o600) -> None:
        """Append and fsync: what was appended survives a power cut when this returns."""
        real = self.real(path)
        is_new = not real.exists()
        descriptor = os.open(real, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, mode)
        try:
            os.write(descriptor, data)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if is_new:
            sync_folder(real.parent)

    def symlink_atomic(self, path: str, target: str) -> None:
        """Make `path` a symlink to `target`, replacing what is there (not a folder) in one step."""
        symlink(os.fspath(self.real(path, follow=False)), target)

    def copy_file(self, source: Path, path: str, mode: int) -> None:
        """Put a file of ours at the node's `path`, in place of a symlink too; a running old one keeps its inode."""
        real = self.real(path, follow=False)
        with replacing(os.fspath(real)) as temporary:
            shutil.copyfile(source, temporary)
            os.chmod(temporary, mode)
            selinux.label(self.root, path, Path(temporary))
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())

    def rename(self, path: str, target: str) -> bool:
        """Give a file another name in its folder, durably. Of two callers one gets True, the other finds it gone."""
        real = self.real(path, follow=False)
        try:
            os.rename(real, self.real(target, follow=False))
        except FileNotFoundError:
            return False
        sync_folder(real.parent)
        return True

    def remove(self, path: str) -> bool:
        """Remove a file, a symlink or an empty folder; False when nothing was there (every revert tolerates that)."""
        real = self.real(path, follow=False)
        try:
            if stat.S_ISDIR(real.lstat().st_mode):
                os.rmdir(real)
            else:
                os.unlink(real)
        except (FileNotFoundError, NotADirectoryError):
            return False
        sync_folder(real.parent)
        return True

    def remove_tree(self, path: str) -> bool:
        """Remove a folder with all in it, read-only folders of a Nix store included; False when nothing was there."""
        real = self.real(path, follow=False)
        if not os.path.lexists(real):
            return False
        remove_tree(real)
        sync_folder(real.parent)
        return True

    def discard_leftover(self, path: str) -> None:
        """Remove the temporary file that a killed `write_atomic` or `symlink_atomic` of `path` may have left."""
        for follow in (True, False):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(temporary_of(os.fspath(self.real(path, follow=follow))))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _copy_metadata(source: Path, before: os.stat_result, descriptor: int) -> None:
    os.fchown(descriptor, before.st_uid, before.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
    for name in os.listxattr(source):
        os.setxattr(descriptor, name, os.getxattr(source, name))


def _write_in_place(real: Path, data: bytes) -> None:
    with open(real, "r+b") as file:
        file.write(data)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
