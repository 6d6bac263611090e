"""The shell of ami/: what shellcheck says of it, and the bootstrap against networks of every kind."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from flox_node.payload import registry
from flox_node.payload.fetch import Access
from tests.doubles.server import Registry, Request, serving
from tests.unit.machine import program

AMI = Path(__file__).parents[3] / "ami"
SCRIPTS = (AMI / "bootstrap.sh", *sorted((AMI / "scripts").glob("*.sh")))
SHELLS = (["dash"], ["busybox", "sh"], ["bash"])  # eksctl runs it with the last one
SECRET = "X-Amz-Signature=secret"


def payload_archive() -> bytes:
    """As much of a payload as the bootstrap itself looks at."""
    manifest = {"entry_points": {"flox": "/nix/store/a/bin/flox", "flox-node": "/nix/store/b/bin/flox-node"}}
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        files = {"manifest.json": json.dumps(manifest, indent=1).encode(), "store/big": bytes(range(256)) * 2048}
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(plain.getvalue(), 0, mtime=0)


BODY = payload_archive()
SHA256 = hashlib.sha256(BODY).hexdigest()


@dataclass
class Machine:
    """A folder as the machine's root, with stand-ins for the programs that need a real one."""

    root: Path
    shell: Sequence[str]
    settings: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        text = (AMI / "bootstrap.sh").read_text()
        for path in ("/var/lib/flox-node", "/etc/eks", "/etc/flox-node", "/opt/flox-node"):
            text = text.replace(path, f"{self.root}{path}")
        # By their paths: busybox' shell prefers its own applets to what PATH says.
        for call in ("unshare --mount", "systemctl is-active", "systemctl daemon", "systemctl start", "logger -t"):
            assert call in text
            text = text.replace(call, f'"{self.root}/bin/"{call}')
        (self.root / "bootstrap.sh").write_text(text)
        (self.root / "bin").mkdir()
        (self.root / "etc/eks/nodeadm.d").mkdir(parents=True)
        self.program("logger", 'shift; shift; echo "$*" >>"$ROOT/syslog"')
        self.program("systemctl", '[ "$1" = is-active ] && exit 3; echo "$*" >>"$ROOT/systemctl"')
        self.program(
            "unshare",
            'echo "$*" >>"$ROOT/unshare"; [ ! -e "$ROOT/fails" ] || exit 4\n'
            "for f in etc/eks/nodeadm.d/50-flox-node.yaml opt/flox-node/bin/flox-node; do\n"
            'mkdir -p "$(dirname "$ROOT/$f")"; echo >"$ROOT/$f"; chmod 755 "$ROOT/$f"; done',
        )

    def program(self, name: str, text: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def run(self, url: str, sha256: str = SHA256, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.root}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "ROOT": str(self.root),
            "FLOX_NODE_PAYLOAD": url,
            "FLOX_NODE_SHA256": sha256,
            "FLOX_NODE_PATIENCE_S": "30",
            "FLOX_NODE_CONSOLE": str(self.root / "console"),
            **self.settings,
        }
        (self.root / "console").touch()
        return subprocess.run(
            [*self.shell, str(self.root / "bootstrap.sh"), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def is_installed(self) -> bool:
        return (self.root / "etc/eks/nodeadm.d/50-flox-node.yaml").exists()

    def text(self, name: str) -> str:
        path = self.root / name
        return path.read_text() if path.exists() else ""

    def left(self) -> list[str]:
        """What of the work is still there."""
        state = self.root / "var/lib/flox-node"
        return sorted(path.name for path in state.rglob("*")) if state.exists() else []


@pytest.fixture(params=SHELLS, ids=lambda shell: shell[0])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    for needed in ("curl", request.param[0]):
        program(needed)
    return Machine(tmp_path, request.param)


@pytest.fixture
def dash(tmp_path: Path) -> Machine:
    program("curl")
    return Machine(tmp_path, ["dash"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_scripts_are_posix_and_clean(script: Path) -> None:
    for shell in SHELLS:
        if shutil.which(shell[0]):
            done = subprocess.run([*shell, "-n", script], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, ""), shell
    done = subprocess.run([program("shellcheck"), "-s", "sh", script], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_a_node_is_made_once_and_a_second_run_asks_nobody(machine: Machine) -> None:
    with serving(lambda request: request.send_file(BODY)) as server:
        done = machine.run(f"{server.url}/p?{SECRET}")
        assert done.returncode == 0, done.stderr
        assert machine.is_installed
        assert machine.left() == ["bootstrapped"]
        assert "install --image-build --host-root /host --payload /payload" in machine.text("unshare")
        assert "/nix/store/b/bin/flox-node" in machine.text("unshare")
        assert "flox-node-boot.service" in machine.text("systemctl")
        again = machine.run(f"{server.url}/p?{SECRET}")
        assert (again.returncode, len(server.seen)) == (0, 1)
        assert machine.text("unshare").count("install") == 1
        signed_anew = machine.run(f"{server.url}/p?X-Amz-Signature=another")
        assert (signed_anew.returncode, len(server.seen)) == (0, 1)
    told = done.stderr + machine.text("syslog") + machine.text("console")
    assert SECRET not in told + machine.text("var/lib/flox-node/bootstrapped")


def test_on_a_node_that_runs_it_is_a_plain_install_and_in_a_build_nothing_is_started(dash: Machine) -> None:
    with serving(lambda request: request.send_file(BODY)) as server:
        assert dash.run(f"{server.url}/p", SHA256, "--image-build").returncode == 0
        assert dash.text("systemctl") == ""
        dash.program("systemctl", 'echo "$*" >>"$ROOT/systemctl"')
        (dash.root / "etc/eks/nodeadm.d/50-flox-node.yaml").unlink()
        assert dash.run(f"{server.url}/p").returncode == 0
        assert "install --host-root /host" in dash.text("unshare").splitlines()[-1]


class Misbehaving:
    def __init__(self, *first: Callable[[Request], None]) -> None:
        self.first = list(first)

    def __call__(self, request: Request) -> None:
        (self.first.pop(0) if self.first else (lambda each: each.send_file(BODY)))(request)


def stall(request: Request) -> None:
    request.send_response(200)
    request.send_header("Content-Length", str(len(BODY)))
    request.end_headers()
    request.wfile.write(BODY[:1000])
    request.wfile.flush()
    request.connection.settimeout(10)
    with contextlib.suppress(OSError):
        request.rfile.read(1)  # until the other side has had enough
    request.close_connection = True


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(lambda request: request.send_file(BODY, cut=60_000), id="truncates"),
        pytest.param(lambda request: request.send(503), id="503"),
        pytest.param(lambda request: request.send(429), id="429"),
        pytest.param(lambda request: request.send(302, Location="/elsewhere"), id="redirects"),
        pytest.param(lambda request: request.send_file(BODY[:-1] + b"\1"), id="corrupts once"),
        pytest.param(stall, id="stalls"),
    ],
)
def test_what_may_pass_does(dash: Machine, trouble: Callable[[Request], None]) -> None:
    dash.settings["FLOX_NODE_STALL_S"] = "1"
    with serving(Misbehaving(trouble)) as server:
        done = dash.run(f"{server.url}/p")
        assert done.returncode == 0, done.stderr
        assert len(server.seen) == 2
    assert dash.is_installed


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("left", [BODY[:5000], BODY, b"another file", BODY + b"more"], ids=len)
def test_what_an_interrupted_run_left_is_gone_on_with_or_thrown_away(dash: Machine, left: bytes, ranges: bool) -> None:
    work = dash.root / "var/lib/flox-node/bootstrap"
    work.mkdir(parents=True)
    (work / f"{SHA256}.part").write_bytes(left)
    with serving(lambda request: request.send_file(BODY, ranges=ranges)) as server:
        done = dash.run(f"{server.url}/p")
    assert done.returncode == 0, done.stderr
    assert dash.is_installed


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        pytest.param(lambda request: request.send(403, b"no"), "refused: HTTP 403", id="403"),
        pytest.param(lambda request: request.send(404), "refused: HTTP 404", id="404"),
        pytest.param(lambda request: request.send_file(BODY[:-1] + b"\1"), "nothing was unpacked", id="corrupts"),
        pytest.param(lambda request: request.send(200, b"<html>log in</html>"), "nothing was unpacked", id="captive"),
        pytest.param(lambda request: request.send(503), "could not be fetched in 3 s", id="503 for ever"),
    ],
)
def test_a_failure_installs_nothing_and_is_told_everywhere(
    dash: Machine, answer: Callable[[Request], None], text: str
) -> None:
    dash.settings["FLOX_NODE_PATIENCE_S"] = "3"
    with serving(answer) as server:
        done = dash.run(f"{server.url}/p?{SECRET}")
    assert done.returncode == 1
    assert not dash.is_installed
    assert dash.text("unshare") == ""
    assert not [name for name in dash.left() if name not in ("bootstrap", "challenge", "curl.err", f"{SHA256}.part")]
    for told in (done.stderr, dash.text("syslog"), dash.text("console")):
        assert text in told
        assert "joins its cluster without the handler" in told
        assert SECRET not in told


def test_a_server_that_is_gone_costs_no_more_than_the_patience(dash: Machine) -> None:
    dash.settings["FLOX_NODE_PATIENCE_S"] = "2"
    with serving(lambda request: request.send_file(BODY)) as server:
        url = server.url
    done = dash.run(f"{url}/p?{SECRET}")
    assert done.returncode == 1
    assert "could not be fetched in 2 s" in done.stderr
    assert SECRET not in done.stderr


PHASES = {
    "curl": 'curl "$@" --max-filesize 1 || :',
    "tar": 'head -c 2000 >/dev/null; mkdir -p "$4"; echo half >"$4/manifest.json"',
    "unshare": 'echo half >"$ROOT/etc/eks/nodeadm.d/50-flox-node.yaml"',
    "systemctl": ":",
}


@pytest.mark.parametrize("phase", PHASES)
def test_a_run_that_is_killed_in_any_phase_is_done_by_the_next_one(dash: Machine, phase: str) -> None:
    whole = (dash.root / "bin" / phase).read_text() if (dash.root / "bin" / phase).exists() else ""
    dash.program(phase, f"PATH=/usr/bin:/bin; {PHASES[phase]}; kill -9 $PPID")
    with serving(lambda request: request.send_file(BODY)) as server:
        killed = dash.run(f"{server.url}/p")
        assert killed.returncode == -9
        assert not (dash.root / "var/lib/flox-node/bootstrapped").exists() or phase == "systemctl"
        (dash.root / "bin" / phase).unlink()
        if whole:
            dash.program(phase, whole)
        done = dash.run(f"{server.url}/p")
    assert done.returncode == 0, done.stderr
    assert dash.is_installed
    assert dash.left() == ["bootstrapped"]


def test_two_runs_at_once_are_one_after_the_other_and_the_second_has_nothing_to_do(dash: Machine) -> None:
    with serving(lambda request: request.send_file(BODY)) as server, ThreadPoolExecutor() as pool:
        dash.program("unshare", f"sleep 1; {(dash.root / 'bin/unshare').read_text()}")
        runs = list(pool.map(dash.run, [f"{server.url}/p"] * 2))
        assert [done.returncode for done in runs] == [0, 0], [done.stderr for done in runs]
        assert len(server.seen) == 1
    assert dash.left() == ["bootstrapped"]
    assert sorted("has this payload already" in done.stderr for done in runs) == [False, True]


@pytest.mark.parametrize(
    ("program", "text", "wanted"),
    [
        ("curl", "echo 'curl: (23) Failure writing output to destination' >&2; exit 23", "cannot be stored"),
        ("tar", 'cat >/dev/null; echo {} >"$4/manifest.json"; exit 2', "cannot be unpacked: is there space"),
    ],
)
def test_a_full_disk_is_told_and_nothing_of_it_is_used(dash: Machine, program: str, text: str, wanted: str) -> None:
    dash.program(program, text)
    with serving(lambda request: request.send_file(BODY)) as server:
        done = dash.run(f"{server.url}/p")
    assert done.returncode == 1
    assert wanted in done.stderr
    assert dash.text("unshare") == ""
    assert not dash.is_installed


def test_a_server_that_would_fill_the_disk_is_not_listened_to(dash: Machine) -> None:
    def endless(request: Request) -> None:
        request.send_response(200)
        request.send_header("Content-Length", str(5 << 30))
        request.end_headers()
        request.close_connection = True

    with serving(endless) as server:
        done = dash.run(f"{server.url}/p")
        assert len(server.seen) == 1
    assert "cannot be stored" in done.stderr
    assert not [name for name in dash.left() if name.endswith(".part")]


def test_settings_stand_in_a_file_too_and_a_proxy_there_is_used(dash: Machine) -> None:
    with serving(lambda request: request.send_file(BODY)) as proxy:
        (dash.root / "etc/flox-node").mkdir()
        (dash.root / "etc/flox-node/bootstrap.env").write_text(
            f"FLOX_NODE_PAYLOAD=http://payloads.invalid/p\nhttp_proxy={proxy.url}\n"
        )
        done = dash.run("")
        assert done.returncode == 0, done.stderr
        assert proxy.seen[0].path == "http://payloads.invalid/p"


def test_an_installation_that_fails_is_no_bootstrap(dash: Machine) -> None:
    (dash.root / "fails").touch()
    with serving(lambda request: request.send_file(BODY)) as server:
        assert dash.run(f"{server.url}/p").returncode == 1
        assert "bootstrapped" not in dash.left()
        (dash.root / "fails").unlink()
        assert dash.run(f"{server.url}/p").returncode == 0
    assert dash.left() == ["bootstrapped"]


def test_a_login_goes_to_its_host_alone_and_never_into_a_command_line(dash: Machine) -> None:
    curl = shutil.which("curl")
    dash.program("curl", f'echo "$*" >>"$ROOT/argv"; exec {curl} "$@"')
    (dash.root / "token").write_text("t0ken")
    dash.settings["FLOX_NODE_BEARER_FILE"] = str(dash.root / "token")
    with serving(lambda request: request.send_file(BODY)) as other:
        elsewhere = f"http://localhost:{other.server_port}/p"
        with serving(lambda request: request.send(302, Location=elsewhere)) as server:
            assert dash.run(f"{server.url}/p?{SECRET}").returncode == 0
            assert [request.headers.get("Authorization") for request in server.seen] == ["Bearer t0ken"]
        assert [request.headers.get("Authorization") for request in other.seen] == [None]
    assert "t0ken" not in dash.text("argv")
    assert SECRET not in dash.text("argv")


def test_the_same_payload_comes_from_a_registry(machine: Machine) -> None:
    archive = machine.root / "p.tar.gz"
    archive.write_bytes(BODY)
    double = Registry()
    with serving(double) as server:
        name = f"oci://127.0.0.1:{server.server_port}/team/payload"
        pushed = registry.push(archive, registry.Reference.parse(f"{name}:1"), Access())
        done = machine.run(str(pushed), "")
        assert done.returncode == 0, done.stderr
        seen = len(server.seen)
        assert machine.run(str(pushed), "").returncode == 0
        assert len(server.seen) == seen
        (digest,) = (text for text in double.manifests if text.startswith("sha256:"))
        double.manifests[digest] += b" "
        other = Machine(_made(machine.root / "other"), machine.shell)
        failed = other.run(str(pushed), "")
        assert "is not the one" in failed.stderr
        assert not other.is_installed


@pytest.mark.parametrize("right", [True, False])
def test_a_registry_that_wants_a_token_is_logged_in_to_and_its_storage_gets_none(machine: Machine, right: bool) -> None:
    archive = machine.root / "p.tar.gz"
    archive.write_bytes(BODY)
    double = Registry(login="Basic bWU6cHc=")  # me:pw
    (machine.root / "login").write_text("me:pw\n" if right else "me:other\n")
    machine.settings["FLOX_NODE_BASIC_FILE"] = str(machine.root / "login")
    with serving(double) as server, serving(lambda request: request.send_file(BODY)) as storage:
        double.elsewhere = storage.url.replace("127.0.0.1", "localhost")
        name = registry.Reference.parse(f"oci://127.0.0.1:{server.server_port}/team/payload")
        pushed = registry.push(archive, name, Access("Basic bWU6cHc="))
        done = machine.run(str(pushed), SHA256)
        assert (done.returncode == 0) is right is machine.is_installed, done.stderr
        assert all(request.headers.get("Authorization") is None for request in storage.seen)
    if not right:
        assert "is refused: HTTP 401" in done.stderr
        assert machine.left() == ["bootstrap", "challenge", "curl.err"]


def test_a_registry_is_not_logged_in_to_at_a_place_without_encryption(dash: Machine) -> None:
    challenge = 'Bearer realm="http://tokens.example.org/token",service="x"'
    (dash.root / "login").write_text("me:pw")
    dash.settings["FLOX_NODE_BASIC_FILE"] = str(dash.root / "login")
    with serving(lambda request: request.send(401, WWW_Authenticate=challenge)) as server:
        done = dash.run(f"oci://127.0.0.1:{server.server_port}/p@sha256:{'0' * 64}", "")
    assert "which is not encrypted" in done.stderr


@pytest.mark.parametrize(
    ("url", "sha256", "text"),
    [
        ("", SHA256, "FLOX_NODE_PAYLOAD is not set"),
        ("https://example.org/p", "abc", "64 hexadecimal digits"),
        ("https://example.org/p", f"{SHA256[:-1]}g", "64 hexadecimal digits"),
        ("oci://example.org/p@sha256:abc", "", "64 hexadecimal digits"),
        ("oci://example.org/p@sha256:" + "0" * 64, "abc", "64 hexadecimal digits"),
        ("https://example.org/p", "", "FLOX_NODE_SHA256 is not set"),
        ("ftp://example.org/p", SHA256, "is neither"),
        ("oci://example.org/p:latest", "", "is neither"),
    ],
)
def test_wrong_settings_are_told(dash: Machine, url: str, sha256: str, text: str) -> None:
    done = dash.run(url, sha256)
    assert done.returncode == 1
    assert text in done.stderr


def _made(folder: Path) -> Path:
    os.makedirs(folder)
    return folder
