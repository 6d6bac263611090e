import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flox_node.errors import CorruptError, FloxNodeError
from flox_node.host.trees import Entry
from flox_node.payload import open_payload
from flox_node.payload.verify import _climbs_out, verify
from tests.conftest import FULL
from tests.unit.payload import samples

LIBC, TOOL = (Path("store") / Path(path).name for path in (samples.LIBC, samples.TOOL))


def test_a_flipped_bit_in_any_file_of_a_folder_is_found_and_its_place_named(folder: Path) -> None:
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        data = path.read_bytes()
        path.chmod(0o644)
        named = path.relative_to(folder).parts
        for at in {*range(0, len(data), 199), len(data) - 1} if data else ():
            _flip(path, data, at)
            with pytest.raises(CorruptError) as caught:
                verify(open_payload(folder))
            assert named[1 if named[0] == "store" else -1] in caught.value.cause
        path.write_bytes(data)
        path.chmod(0o555 if named[-1] in ("tool", "flox-runtime") else 0o444)
    verify(open_payload(folder))


def test_a_flipped_bit_in_any_byte_of_an_archive_is_found(archive: Path) -> None:
    data = archive.read_bytes()
    for at in range(0, len(data), 1 if FULL else 5):
        _flip(archive, data, at)
        # The very first bits say what the file is at all, and a manifest's version may become one of the future.
        with pytest.raises(FloxNodeError):
            verify(open_payload(archive))
    archive.write_bytes(data)
    verify(open_payload(archive))


def test_an_archive_that_is_cut_short_anywhere_or_goes_on_is_found(archive: Path) -> None:
    data = archive.read_bytes()
    for length in [*range(0, len(data), 97), len(data) - 1]:
        archive.write_bytes(data[:length])
        with pytest.raises(CorruptError):
            verify(open_payload(archive))
    for more in (b"\0", b"more", data):
        archive.write_bytes(data + more)
        with pytest.raises(CorruptError):
            verify(open_payload(archive))


Damage = Callable[[Path], object]
DAMAGES: dict[str, tuple[str, Damage]] = {
    "an executable bit": ("tool-1.0", lambda top: (top / TOOL / "bin/tool").chmod(0o444)),
    "a write bit": ("tool-1.0", lambda top: (top / TOOL / "bin/tool").chmod(0o755)),
    "a set-user-id bit": ("tool-1.0", lambda top: (top / TOOL / "bin/tool").chmod(0o4555)),
    "a folder's mode": ("libc-2", lambda top: (top / LIBC / "lib").chmod(0o777)),
    "the shim's mode": ("bin/flox-runtime", lambda top: (top / "bin/flox-runtime").chmod(0o4555)),
    "a link's target": ("libc-2", lambda top: _relink(top / LIBC / "lib/libc.so.6", "libc.sO")),
    "a file instead of a link": ("libc-2", lambda top: _refile(top / LIBC / "lib/libc.so.6", b"libc.so")),
    "a link instead of the shim": ("bin/flox-runtime", lambda top: _relink(top / "bin/flox-runtime", "/bin/true")),
    "a link instead of a folder": ("images is not a folder", lambda top: _link_away(top / "images")),
    "a missing file": ("tool-1.0", lambda top: _remove(top / TOOL / "share/none")),
    "a missing empty folder": ("libc-2", lambda top: _remove(top / LIBC / "empty")),
    "a missing store path": (f"{LIBC} is missing", lambda top: shutil.rmtree(top / LIBC)),
    "a missing shim": ("bin/flox-runtime is missing", lambda top: _remove(top / "bin/flox-runtime")),
    "a missing registration": ("registration is missing", lambda top: _remove(top / "registration")),
    "an extra file in a store path": ("libc-2", lambda top: _refile(top / LIBC / "lib/more", b"")),
    "an extra store path": ("more", lambda top: (top / f"store/{'4' * 32}-more").mkdir()),
    "an extra file": ("bin/more is in the payload", lambda top: _refile(top / "bin/more", b"")),
    "an extra file at the top": ("more is in the payload", lambda top: _refile(top / "more", b"")),
    "an extra empty folder": ("more is in the payload", lambda top: (top / "more").mkdir()),
    "a pipe": ("libc-2", lambda top: _pipe(top / LIBC / "lib/libc.so")),
    "no manifest": ("manifest.json cannot be read", lambda top: _remove(top / "manifest.json")),
    "another version": ("manifest.json", lambda top: _edit(top, b'"version": "0.1.0"', b'"version": "0.2.0"')),
    "another form of the same": ("manifest.json", lambda top: _edit(top, b'"version": ', b'"version":  ')),
    "another entry point": ("manifest.json", lambda top: _edit(top, b"bin/alias", b"bin/aliax")),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_whatever_is_wrong_in_a_folder_is_named(folder: Path, name: str) -> None:
    said, damage = DAMAGES[name]
    damage(folder)
    with pytest.raises(CorruptError) as caught:
        verify(open_payload(folder))
    assert said in caught.value.cause
    assert caught.value.exit_code == 8


def _flip(path: Path, data: bytes, at: int) -> None:
    path.write_bytes(data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :])


def _remove(path: Path) -> None:
    path.rmdir() if path.is_dir() else path.unlink()


def _relink(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def _link_away(path: Path) -> None:
    path.rename(path.parent.parent / "away")
    path.symlink_to("../away")


def _refile(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    path.chmod(0o444)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _edit(top: Path, old: bytes, new: bytes) -> None:
    manifest = top / "manifest.json"
    data = manifest.read_bytes()
    assert old in data
    manifest.chmod(0o644)
    manifest.write_bytes(data.replace(old, new))


@pytest.mark.parametrize(
    ("link", "target", "climbs"),
    [
        ((), "..", True),
        ((), "other-path/x", False),
        (("a",), "..", False),
        (("a",), "../other-path", False),
        (("a",), "../..", True),
        (("a",), "../../store/other-path", True),
        (("a", "b"), "../../other-path/./x", False),
        (("a", "b"), "../../..", True),
        (("a", "b"), "./.././../../etc", True),
        (("a",), "x/../../..", True),
        (("a",), "/etc/ssl", False),
    ],
)
def test_a_link_may_not_climb_out_of_the_store_by_a_single_level(
    link: tuple[str, ...], target: str, climbs: bool
) -> None:
    assert _climbs_out(Entry(link, "symlink", 0o777, target=target)) is climbs
