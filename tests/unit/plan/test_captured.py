"""What was before us is remembered once, for every file that any registration writes, whatever is repaired since."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from flox_node.actions import RegisterHandler
from flox_node.containerd.config import editor
from flox_node.containerd.config.registration import Registration, Relocated
from flox_node.containerd.live.cri import CriStatus
from flox_node.containerd.live.daemon import Daemon, Running
from flox_node.errors import RefusedError
from flox_node.host import Host, HostFiles, Processes
from tests.unit.containerd.test_registration import LIVE, REGISTRATIONS, UNIT_FILE, V2, Files, config

RELEASES = (["flox.dev/environment"], ["flox.dev/a", "flox.dev/b"], ["flox.dev/*"])  # each writes another table


class Node:
    """A node with a containerd that only tells its version: what is tested is what is written and remembered."""

    def __init__(self, root: Path, registration: Registration, files: Files, release: str) -> None:
        self.root = root
        for path, data in files.items():
            (root / path.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            (root / path.lstrip("/")).write_bytes(data)
        self.host = Host(HostFiles(root), Processes(root), None)  # type: ignore[arg-type]
        daemon = Daemon("/run/x.sock", 7, "/usr/bin/containerd", registration.config, "x.service", ())
        self.running = Running(daemon, CriStatus(release, {}, "runc", {}))
        self.action = RegisterHandler(
            registration, "/run/x.sock", "flox", editor.Handler().binary_name or "", running=self.running
        )
        self.before: Any = None

    def files(self) -> Files:
        return {f"/{p.relative_to(self.root)}": p.read_bytes() for p in self.root.rglob("*") if p.is_file()}

    def register(self) -> bool:
        """Whether there was something to write."""
        gap = self.action.inspect(self.host)
        assert gap is not None, "the handler is never live here"
        self.before = self.action.capture(self.host, gap, self.before)
        for edit in gap.edits:
            self._write(edit.path, edit.after)
            for made in edit.live:
                if made.path != edit.path:
                    self._write(made.path, made.after)  # what the platform's next start makes of it
        return bool(gap.edits)

    def withdraw(self) -> None:
        for edit in self.action._withdrawn_exactly(self.host, self.running.version, self.before):
            self._write(edit.path, edit.after)

    def _write(self, path: str, data: bytes | None) -> None:
        file = self.root / path.lstrip("/")
        if data is None:
            file.unlink(missing_ok=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)


@pytest.mark.parametrize(("registration", "files", "release"), REGISTRATIONS)
def test_repairs_and_upgrades_do_not_replace_what_was_there_before_us(
    tmp_path: Path, registration: Registration, files: Files, release: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path, registration, files, release)
    for wanted in RELEASES:
        monkeypatch.setattr(editor, "_ANNOTATIONS", wanted)
        assert node.register()
    rendered = {
        edit.path for edit in registration.edits(node.host.files, node.running.version, editor.Handler(), adopt=False)
    }
    assert rendered == set()
    node.withdraw()
    durable = {path: data for path, data in node.files().items() if path in files or path in node.before["files"]}
    made = {path for path in files if path not in node.before["files"]}  # the platform writes these anew by itself
    assert {path: data for path, data in durable.items() if path not in made} == {
        path: data for path, data in files.items() if path not in made
    }


@pytest.mark.parametrize(("registration", "files", "release"), REGISTRATIONS)
def test_without_a_receipt_what_is_captured_is_the_node_without_us(
    tmp_path: Path, registration: Registration, files: Files, release: str
) -> None:
    node = Node(tmp_path, registration, files, release)
    node.register()
    known, node.before = node.before, None
    node.before = node.action.capture(node.host, None, None)
    for path, remembered in known["files"].items():
        assert node.before["files"][path]["bytes"] == remembered["bytes"], path


@pytest.mark.parametrize(("registration", "files", "release"), REGISTRATIONS)
def test_a_repair_follows_what_the_platform_changes_and_an_uninstall_leaves_that(
    tmp_path: Path, registration: Registration, files: Files, release: str
) -> None:
    node = Node(tmp_path, registration, files, release)
    node.register()
    ours, theirs = b"SystemdCgroup = true", b"SystemdCgroup = false"
    there = node.files()
    for path in (path for path in there if path in files or path == registration.config):
        node._write(path, there[path].replace(ours, theirs, 1))  # of the default runtime, which comes first
    node.register()
    for path, remembered in node.before["files"].items():
        assert remembered["bytes"] is None or b"flox-runtime" not in base64.b64decode(remembered["bytes"]), path
    node.withdraw()
    for path in node.before["files"]:
        expected = files[path].replace(ours, theirs, 1) if path in files else None
        assert node.files().get(path) == expected, path


def test_a_new_image_of_flatcar_is_told_and_an_uninstall_leaves_nothing(tmp_path: Path) -> None:
    """What the image says is not in force while an older copy of it is."""
    vendor = "/usr/share/containerd/config.toml"
    node = Node(tmp_path, Relocated(LIVE, vendor, UNIT_FILE), {vendor: config(V2)}, "1.7.24")
    node.register()
    assert not node.register()
    new = config(V2) + b"# and more\n"
    node._write(vendor, new)
    with pytest.raises(RefusedError, match="was replaced since") as caught:
        node.register()
    assert "uninstall" in caught.value.remedy
    node.withdraw()
    assert node.files() == {vendor: new}
    node.before = None
    node.register()
    node._write(LIVE, node.files()[LIVE] + b"# an administrator's now\n")
    node._write(vendor, config(V2))
    assert not node.register(), "whose copy it is now"
    node.withdraw()
    assert node.files()[LIVE] == new + b"# an administrator's now\n"
    assert UNIT_FILE in node.files()
