"""What was before us is remembered once, for every file that any registration writes, whatever is repaired since."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flox_node.actions import RegisterHandler
from flox_node.containerd.config import editor
from flox_node.containerd.config.registration import Registration
from flox_node.containerd.live.cri import CriStatus
from flox_node.containerd.live.daemon import Daemon, Running
from flox_node.host import Host, HostFiles, Processes
from tests.unit.containerd.test_registration import REGISTRATIONS, Files

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
