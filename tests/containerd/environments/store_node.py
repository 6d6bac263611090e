"""A node as a realisation sees it: a root file system with a real Nix store, the Flox double and this tree's code.

Programs run with that root as `/` in a mount namespace of their own, and in this machine's network, where the hub is.
The namespace falls with its programs, so a killed test leaves a folder and nothing else.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flox_node.payload.own import program_text
from tests.bed import cache, golang, store

_PROJECT = Path(__file__).parents[3]
_DOUBLES = _PROJECT / "tests/doubles"

# $1 the new root, $2 the installer's source, $3 the store's busybox; the rest is the command. The old root is gone
# before the command starts.
_ENTER = """
set -e
mount --make-rprivate /
mount --bind "$1" "$1"
mount --bind -o ro "$2" "$1/app"
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
cd "$1"
pivot_root . old
"$3" umount -l old
shift 3
exec "$@"
"""


@dataclass(frozen=True)
class StoreNode:
    """The node. `hello` and `activations` are packages of its store."""

    root: Path
    python: str
    busybox: str
    nix_store: str
    hello: str
    activations: str

    @classmethod
    def copy(cls, root: Path) -> "StoreNode":
        """A node in the folder `root`, from the bed's cache."""
        sources = [path.read_text() for path in (Path(__file__), _DOUBLES / "flox/flox.py")]
        recipe = [store.base().root.name, sources, golang.sources(_DOUBLES / "flox-activations")]
        template = cache.artefact("store-node", recipe, lambda folder: cls._make(folder / "root")._save())
        subprocess.run(
            ["cp", "-a", *(str(path) for path in (template / "root").iterdir() if path.name != "nix"), str(root)],
            check=True,
        )
        for part, flags in (("nix/store", "-al"), ("nix/var", "-a")):
            (root / part).parent.mkdir(exist_ok=True)
            subprocess.run(["cp", flags, str(template / "root" / part), str(root / part)], check=True)
        return cls(root, **json.loads((template / "node.json").read_text()))

    def _save(self) -> None:
        known = {name: value for name, value in vars(self).items() if name != "root"}
        (self.root.parent / "node.json").write_text(json.dumps(known))

    @classmethod
    def _make(cls, root: Path) -> "StoreNode":
        builder = store.extended(root, store.base())
        busybox, python = builder.paths["busybox"], f"{builder.paths['python3']}/bin/{store.PYTHON}"

        def activations(out: Path, path: str) -> None:
            (out / "libexec").mkdir()
            golang.build(_DOUBLES / "flox-activations", ".", into=out / "libexec")

        builder.add(
            "activations", "flox-activations-1.14.1", golang.sources(_DOUBLES / "flox-activations"), activations
        )
        config = {
            "busybox": busybox,
            "activations": builder.paths["activations"],
            "nix": f"{builder.paths['nix']}/bin",
            "git": f"{builder.paths['git']}/bin",
        }

        def flox(out: Path, path: str) -> None:
            for folder in ("bin", "libexec", "share"):
                (out / folder).mkdir()
            shutil.copy(_DOUBLES / "flox/flox.py", out / "libexec")
            (out / "share/flox-double.json").write_text(json.dumps(config))
            script = (
                f"#!{busybox}/bin/sh",
                f'export NIX_CONFIG="$NIX_CONFIG\nsandbox-paths = /bin/sh={busybox}/bin/busybox"',
                f'exec {python} -IBS {path}/libexec/flox.py "$@"',
            )
            (out / "bin/flox").write_text("\n".join(script) + "\n")
            (out / "bin/flox").chmod(0o755)

        source = (_DOUBLES / "flox/flox.py").read_text()
        builder.add("flox", "flox-1.14.1", [source, config, python], flox)
        made = builder.finish()
        node = cls(root, python, busybox, made.nix_store, made.paths["hello"], made.paths["activations"])
        node._furnish(made)
        return node

    def _furnish(self, made: store.Store) -> None:
        for folder in ("app", "old", "proc", "dev", "tmp", "etc/flox-node", "usr/bin", "bin", "run", "var/lib", "root"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
        (self.root / "etc/group").write_text("root:x:0:\n")
        (self.root / "etc/hosts").write_text("127.0.0.1 localhost\n")
        (self.root / "bin/sh").symlink_to(f"{made.paths['busybox']}/bin/sh")
        payload = self.root / "opt/flox-node/payloads/test"
        (payload / "bin").mkdir(parents=True)
        (payload / "bin/flox").symlink_to(f"{made.paths['flox']}/bin/flox")
        entry_points = {"git": f"{made.paths['git']}/bin/git", "nix-store": made.nix_store}
        (payload / "manifest.json").write_text(json.dumps({"entry_points": entry_points}))
        (self.root / "opt/flox-node/current").symlink_to("payloads/test")
        (self.root / "opt/flox-node/bin").mkdir()
        (self.root / "opt/flox-node/bin/flox").symlink_to("../current/bin/flox")
        for name, path in made.paths.items():
            gcroot = self.root / f"nix/var/nix/gcroots/flox-node/payload-test/{name}"
            gcroot.parent.mkdir(parents=True, exist_ok=True)
            if name != "hello":  # a package of environments, not of the payload
                gcroot.symlink_to(path)

    def policy(self, git_url: str, **changes: Any) -> None:
        """Write the node's policy; `changes` are further top-level keys."""
        policy = {"schema_version": 1, "floxhub": {"git_url": git_url}, "nix": {"substituters": []}, **changes}
        (self.root / "etc/flox-node/policy.json").write_text(json.dumps(policy))

    def fault(self, word: str | None) -> None:
        """Make the Flox double misbehave (see its own text), or not any more."""
        file = self.root / "run/flox-double.fault"
        if word is None:
            file.unlink(missing_ok=True)
        else:
            file.write_text(word)

    def command(self, *command: str) -> list[str]:
        """The argument vector that runs a command on the node."""
        enter = ["unshare", "--mount", "--", "sh", "-c", _ENTER, "enter", str(self.root)]
        return [*enter, str(_PROJECT / "installer"), f"{self.busybox}/bin/busybox", *command]

    def run(self, *command: str, env: dict[str, str] | None = None, check: bool = True) -> str:
        """Run a command on the node; its output."""
        done = subprocess.run(
            self.command(*command), env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **(env or {})},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def processes(self) -> dict[int, str]:
        """The processes that run in this node's root, and their command lines."""
        found = {}
        mine = self.root.stat()
        assert not os.path.samestat(mine, os.stat("/"))
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    # Device and number: every ext4's root has the number of this machine's.
                    if os.path.samestat((folder / "root").stat(), mine) and (folder / "exe").exists():
                        found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
                except OSError:
                    continue
        return found

    def fetchers(self) -> list[int]:
        """The fetches that run on this node: their processes, which nobody waits for."""
        found = []
        for pid, command in self.processes().items():
            with contextlib.suppress(OSError):
                parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
                if "realise_main" in command and parent not in self.processes() and os.getsid(pid) != pid:
                    found.append(pid)
        return found

    def stop(self) -> None:
        """End every process of the node: a fetch goes on when its test is over."""
        while running := self.processes():
            for pid in running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    @property
    def realise_command(self) -> list[str]:
        """The argument vector of `flox-node-realise`, as the shim calls it."""
        start = program_text(["/app"], "flox_node.environments.__main__", "realise_main")
        # Compiled once, as in a payload.
        return self.command(self.python, "-IS", "-X", "pycache_prefix=/tmp/compiled", "-c", start)

    def start(self, environment: str, *, generation: int | None = None, mode: str = "run") -> "subprocess.Popen[str]":
        """Start a realisation; `answer` waits for it."""
        pod = {"namespace": "default", "name": "pod", "uid": "0", "sandbox_id": "sandbox"}
        reference = environment if generation is None else f"{environment}:{generation}"
        request = {"schema_version": 2, "reference": reference, "mode": mode, "pod": pod}
        process = subprocess.Popen(
            self.realise_command, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert process.stdin is not None
        process.stdin.write(json.dumps(request))
        process.stdin.close()
        process.stdin = None
        return process

    def realise(self, environment: str, *, generation: int | None = None, mode: str = "run") -> dict[str, Any]:
        """Realise as the shim does; the answer."""
        return answer(self.start(environment, generation=generation, mode=mode))

    def real(self, path: str) -> Path:
        """Where a path of the node lies here."""
        return self.root / path.lstrip("/")

    def pulls(self) -> Sequence[str]:
        """What is left of private folders of realisations; none after any of them ended."""
        work = self.root / "run/flox-node/realise"
        return sorted(entry.name for entry in work.iterdir()) if work.exists() else []


def answer(process: "subprocess.Popen[str]") -> dict[str, Any]:
    """Wait for a realisation; its answer."""
    stdout, stderr = process.communicate(timeout=120)
    assert stdout, stderr
    loaded: dict[str, Any] = json.loads(stdout)
    assert process.returncode == (0 if loaded["ok"] else 1), stderr
    return {**loaded, "stderr": stderr}
