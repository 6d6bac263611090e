"""What is understood of what Nix says, whichever version says it; the programs are another tier's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flox_node.environments import substitute
from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import (
    BuildFailedError,
    DiskFullError,
    NetworkError,
    NotBuiltError,
    NotTrustedError,
    TooLargeError,
)
from flox_node.environments.lock import Package
from flox_node.environments.paths import Paths
from flox_node.errors import FloxNodeError
from flox_node.state.policy import Realise

HELLO = f"/nix/store/{'b' * 32}-hello"
NO_LIMITS = Realise(free_mib=0)
REQUIRED = f"error: path '{HELLO}' is required, but there is no substituter that can build it"
UNSIGNED = (
    f"warning: ignoring substitute for '{HELLO}' from 'https://cache.example.com', as it's not signed by any of the "
    "keys in 'trusted-public-keys'"
)


@pytest.fixture
def nix(tmp_path: Path) -> Any:
    """Fetches hello with a Nix that says these words; `tmp_path` is the node's root."""
    (tmp_path / "nix/store").mkdir(parents=True)

    def fetch(
        dry_run: str, build: str = "", *, fails: bool = False, limits: Realise = NO_LIMITS
    ) -> list[tuple[int, int]]:
        for name, text in (("dry-run", dry_run), ("build", build)):
            (tmp_path / name).write_text(text)
        program = tmp_path / "nix-double"
        program.write_text(
            f'#!/bin/sh\ncase "$*" in *path-info*) echo "{{}}"; exit;; *--dry-run*) cat {tmp_path}/dry-run >&2; exit;; '
            f"esac\ncat {tmp_path}/build >&2\nexit {int(fails)}\n"
        )
        (tmp_path / "nix-double-store").write_text(f"#!/bin/sh\necho {HELLO}\n")
        for file in (program, tmp_path / "nix-double-store"):
            file.chmod(0o755)
        told: list[tuple[int, int]] = []
        called = substitute.Nix(str(program), {"PATH": "/usr/bin:/bin"}, Deadline.after(3600))
        substitute.fetch(
            [Package("hello", (HELLO,))], called, limits, Paths(str(tmp_path)), lambda *bytes: told.append(bytes)
        )
        return told

    return fetch


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("this path will be fetched (0.50 MiB download, 2.00 MiB unpacked):", 2 << 20),  # 2.26
        ("these 2 paths will be fetched (700.0 KiB download, 1.5 GiB unpacked):", 3 << 29),  # 2.32
        ("this path will be fetched (1.0 KiB download, 4.0 KiB unpacked):", 4096),
    ],
)
def test_what_will_come_is_known_before_it_comes(nix: Any, said: str, expected: int) -> None:
    assert nix(f"{said}\n  {HELLO}\n") == [(0, expected)]


def test_a_closure_that_is_too_large_is_refused_in_every_unit(nix: Any) -> None:
    said = f"these 2 paths will be fetched (700.0 MiB download, 1.5 GiB unpacked):\n  {HELLO}\n"
    with pytest.raises(TooLargeError, match="1536"):
        nix(said, limits=Realise(closure_mib=1500, free_mib=0))


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (f"don't know how to build these paths:\n  {HELLO}\n", NotBuiltError),
        (f"don't know how to build these paths (may be caused by read-only store access):\n  {HELLO}\n", NotBuiltError),
        (f"{UNSIGNED}\ndon't know how to build these paths:\n  {HELLO}\n", NotTrustedError),
    ],
)
def test_what_no_cache_has_is_told_before_anything_is_fetched(nix: Any, said: str, kind: type[FloxNodeError]) -> None:
    with pytest.raises(kind, match="hello"):
        nix(said)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (REQUIRED, BuildFailedError),
        ("error: writing to file: No space left on device", DiskFullError),
        ("error: executing SQLite query: database or disk is full", DiskFullError),
        ("error: unable to download 'https://cache.example.com/nar/x': HTTP error 504", NetworkError),
    ],
)
def test_why_a_fetch_failed_is_told_from_its_log(nix: Any, said: str, kind: type[FloxNodeError]) -> None:
    log = "@nix " + json.dumps({"action": "msg", "level": 0, "msg": f"\x1b[31;1m{said}\x1b[0m"})
    with pytest.raises(kind):
        nix("this path will be fetched (1.00 MiB download, 1.00 MiB unpacked):\n", log + "\n", fails=True)


def test_how_far_it_is_comes_from_the_last_line_of_each_path(nix: Any) -> None:
    events: list[dict[str, Any]] = [{"action": "start", "id": name, "type": 100} for name in (1, 2)]
    events += [{"action": "result", "fields": [10 * n, 1000], "id": 1, "type": 105} for n in range(50)]
    events += [{"action": "result", "fields": [n, 1000], "id": 2, "type": 105} for n in range(50)]
    events += [{"action": "stop", "id": name} for name in (1, 2)]
    log = "".join(f"@nix {json.dumps(event, separators=(',', ':'))}\n" for event in events)
    told = nix("this path will be fetched (1.00 MiB download, 1.00 MiB unpacked):\n", log + "not of Nix\n@nix {\n")
    assert told[-1] == (490 + 49, 1 << 20)
