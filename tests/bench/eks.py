"""EKS nodes of an image and of the bootstrap, and how fast a payload is fetched beside curl."""

from __future__ import annotations

import hashlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flox_node.payload import obtain
from flox_node.payload.fetch import Access
from tests.bed import eks
from tests.bed.platforms import PlatformBox
from tests.bench.rows import Measurement, Row, ratio, row

BOOTS = 5
ROUNDS = 5
BYTES = 300_000_000


def boot_added() -> Sequence[Row]:
    """Seconds from the start of user space to the kubelet's start: a node of an image less the stock one, in turns."""
    with _served(eks.archive()) as url:
        boxes = [PlatformBox("eks-al2023", "2.1") for _ in range(2)]
        try:
            done = eks.bake(boxes[0], url, _sha256(eks.archive()))
            if done.returncode:
                raise RuntimeError(done.stderr)
            seconds: list[list[float]] = [[], []]
            for _ in range(BOOTS):
                for box, into in zip(boxes, seconds, strict=True):
                    box.boot()
                    into.append(_until_the_kubelet(box))
                    box.cut_power()
        finally:
            for box in boxes:
                box.close()
    added = [ours - stock for ours, stock in zip(*seconds, strict=True)]
    return (row("eks.boot_added_s", added, unit="s", goal=0.5),)


def _until_the_kubelet(box: PlatformBox) -> float:
    def at(name: str, *unit: str) -> int:
        return int(box.run(["systemctl", "show", f"--property={name}", "--value", *unit]).stdout)

    return (at("ActiveEnterTimestampMonotonic", "kubelet") - at("UserspaceTimestampMonotonic")) / 1e6


def bootstrap() -> Sequence[Row]:
    """Seconds of the whole bootstrap from a server on this machine; its phases go to stderr."""
    seconds = []
    with _served(eks.archive()) as url:
        for _ in range(3):
            box = PlatformBox("eks-al2023", "2.1")
            try:
                started = time.monotonic()
                done = eks.bake(box, url, _sha256(eks.archive()))
                seconds.append(time.monotonic() - started)
                if done.returncode:
                    raise RuntimeError(done.stderr)
                print("; ".join(re.findall(r"flox-node: (.+ \(\d+ s\))", done.stderr)), file=sys.stderr)
            finally:
                box.close()
    return (row("eks.bootstrap_s", seconds, unit="s", goal=15),)


def pull_against_curl() -> Sequence[Row]:
    """Time of pulling 300 MB over that of `curl` and `sha256sum`, both verified and both ending in `sync -f`."""
    ours: list[float] = []
    theirs: list[float] = []
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        source = folder / "source/p.tar.zst"
        source.parent.mkdir()
        source.write_bytes(b"\x28\xb5\x2f\xfd" + os.urandom(BYTES))
        sha256 = _sha256(source)
        with _served(source) as url:
            for number in range(ROUNDS):
                for which in (number % 2, 1 - number % 2):
                    started = time.monotonic()
                    if which:
                        target = folder / f"ours-{number}.tar.zst"
                        obtain.pull(url, target, sha256, Access(), lambda *_: None)
                    else:
                        target = folder / f"theirs-{number}.tar.zst"
                        script = 'curl -sSf -o "$1" "$2" && echo "$3  $1" | sha256sum --check --quiet'
                        subprocess.run(["sh", "-c", script, "sh", target, url, sha256], check=True)
                    subprocess.run(["sync", "-f", target], check=True)
                    (ours if which else theirs).append(time.monotonic() - started)
                    target.unlink()
    print(f"curl: {statistics.median(theirs):.2f} s", file=sys.stderr)
    return (ratio("payload.pull_vs_curl_ratio", ours, theirs, goal=1.3),)


@contextmanager
def _served(file: Path) -> Iterator[str]:
    """A URL of this file on this machine, served by a process of its own."""
    program = (
        "import functools, http.server, sys\n"
        "handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=sys.argv[1])\n"
        "server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)\n"
        "print(server.server_port, flush=True)\n"
        "server.serve_forever()\n"
    )
    command = [sys.executable, "-c", program, str(file.parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/{file.name}"
        finally:
            process.kill()


def _sha256(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


MEASUREMENTS: dict[Measurement, tuple[str, ...]] = {
    boot_added: ("eks.boot_added_s",),
    bootstrap: ("eks.bootstrap_s",),
    pull_against_curl: ("payload.pull_vs_curl_ratio",),
}
