"""`make demo`: a node in a box becomes a Flox node, runs a Flox pod, and is as before."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.bed import flox, payload, releases
from tests.bed.box import NodeBox


def main() -> int:
    """Show it step by step; 0 when the pod printed what it should and the node is as before."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--containerd", default="1.7", choices=sorted({*releases.DEBIAN_SUITES, *releases.BUILT}))
    release = parser.parse_args().containerd
    started = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="flox-node-demo-"))
    try:
        _say(f"Booting a node in a box: systemd, containerd {release}, a kubelet bound to it.")
        with NodeBox(release) as box:
            _show(box, scratch)
    finally:
        shutil.rmtree(scratch)
    _say(f"Done in {time.monotonic() - started:.1f} s.")
    return 0


def _show(box: NodeBox, scratch: Path) -> None:
    before = (box.root / "etc/containerd/config.toml").read_bytes()
    sandbox = box.cri.run_sandbox("runc", name="bystander")
    bystander = box.cri.container_pid(box.cri.run_container(sandbox, ["sleep", "3600"]))
    _say(f"It booted in {box.boot_seconds:.2f} s and runs {box.cri.version()}; a pod of the handler runc runs on it.")

    _say("flox-node plan")
    print(flox.flox_node(box, "plan", "--payload", payload.folder()).stdout)
    _say("flox-node install")
    print(flox.install(box).stderr, flush=True)
    _say("flox-node status")
    print(flox.flox_node(box, "status").stdout)

    flox.start_hub(box, scratch)
    flox.load_empty_image(box)
    _say("A pod: runtimeClassName flox, image flox/empty:1.0.0 (no files), flox.dev/environment: demo/hello")
    pod = flox.run_flox_sandbox(box, "demo/hello")
    container = flox.run_flox_container(box, pod, ["hello", "--greeting=Hello from a Flox environment, with no image!"])
    status = box.cri.wait_exited(container)
    print("    $ hello --greeting=...")
    print(f"    {box.cri.logs(container).strip()}")
    _expect(status.exit_code == 0, f"the command ended with {status.exit_code}: {status.message}")
    _expect("Hello from a Flox environment" in box.cri.logs(container), "the command did not print its greeting")
    box.cri.remove_sandbox(pod)

    _say("flox-node uninstall --purge")
    print(flox.flox_node(box, "uninstall", "--purge").stderr, flush=True)
    after = (box.root / "etc/containerd/config.toml").read_bytes()
    _expect(after == before, "the configuration is not what it was")
    _expect("flox" not in box.cri.handlers(), "the handler is still there")
    _expect(Path(f"{box.root}/proc/{bystander}").exists(), "the other pod died")
    _say(f"The configuration is as before to the byte, and the other pod ran all along (pid {bystander}).")


def _expect(true: bool, otherwise: str) -> None:
    if not true:
        sys.exit(f"demo: {otherwise}")


def _say(text: str) -> None:
    print(f"==> {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
