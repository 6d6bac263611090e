"""A container engine without containers, for kind itself: `docker` on the PATH, with the answers of docker 29.1.

It knows the commands that kind and flox-node give to docker, and refuses every other one. ENGINE_DOUBLE names a folder:

    images.json      {name: archive}   what `save` writes, and which images are there
    nodes.json       {container: {"pid", "name"}}  a node that runs, whose programs `exec` uses, and its name in the
                     cluster; kind's own steps are answered, and its node labels given to that node, as a kubelet does
    admin.conf       the kubeconfig that a control plane has
    config.toml      a node's configuration of containerd, as its image has it
    calls.jsonl      every command line that came, with what it said
    containers.json  what `run` made: labels, published ports, and the configurations that kind wrote
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(os.environ["ENGINE_DOUBLE"])
CLUSTER, ROLE = "io.x-k8s.kind.cluster", "io.x-k8s.kind.role"
INFO = {
    "CgroupDriver": "systemd",
    "CgroupVersion": "2",
    "CPUShares": True,
    "Driver": "overlayfs",
    "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
    "MemTotal": 16 << 30,
    "MemoryLimit": True,
    "PidsLimit": True,
    "SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"],
    "ServerVersion": "29.1.0",
}
# What kind has a node do after the engine has made it; a node of the tests is one already.
_KINDS_OWN = ("kubeadm", "kubectl", "mkdir")


class RefusedError(Exception):
    """What docker says and exits with 1."""


def main(words: list[str]) -> int:
    with (HERE / "lock").open("w") as lock:
        if words[:1] != ["logs"]:
            fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            text, code = _answer(words), 0
        except RefusedError as refused:
            text, code = str(refused), 1
    with (HERE / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps([code, words]) + "\n")
    (sys.stderr if code else sys.stdout).write(text)
    return code


def _answer(words: list[str]) -> str:
    match words:
        case ["-v"]:
            return "Docker version 29.1.0, build 360952c\n"
        case ["info", "--format" | "-f", form]:
            return _formatted(form, INFO)
        case ["ps", "-a", "--filter", condition, "--format", form]:
            return "".join(f"{line}\n" for line in _listed(condition, form))
        case ["network", "ls", _, form]:
            return "kind\n" if "Name" in form else "b7a1c0\n"
        case ["network", "inspect", *_]:
            return "[]\n"
        case ["inspect", "--type=image", image] | ["image", "inspect", "--format", "{{.Id}}", image]:
            if image not in _read("images") and not image.startswith("kindest/node:"):
                raise RefusedError(f"Error: No such image: {image}\n")
            return f"sha256:{image}\n"
        case ["save", platform, output, image] if platform.startswith("--platform=linux/"):
            if image not in _read("images"):
                raise RefusedError(f"Error response from daemon: reference does not exist: {image}\n")
            shutil.copy(_read("images")[image], output.removeprefix("--output="))
            return ""
        case ["run", *options]:
            return _run(options)
        case ["network", "connect", "kind", container]:
            _container(container)
            return ""
        case ["logs", "-f", _]:
            return "[  OK  ] Reached target Multi-User System.\n"
        case ["inspect", "--format" | "-f", form, container]:
            return _inspected(form, _container(container))
        case ["port", container, port]:
            published = [made.split(":") for made in _container(container)["ports"]]
            found = [f"{address}:{outside}\n" for address, outside, inside in published if inside.lower() == port]
            if not found:
                raise RefusedError(f"Error: No public port '{port}' published for {container}\n")
            return "".join(found)
        case ["rm", "-f", "-v", *containers]:
            known = _read("containers")
            _write("containers", {name: known[name] for name in known if name not in containers})
            return "".join(f"{name}\n" for name in containers)
        case ["exec", *rest]:
            return _exec(rest)
    raise RefusedError(f"docker: unknown command: {words}\n")


def _formatted(form: str, info: dict[str, Any]) -> str:
    if form.strip("'") == "{{json .}}":
        return json.dumps(info) + "\n"
    if found := re.fullmatch(r"'?\{\{(json )?\.(\w+) ?\}\}'?", form):
        value = info[found[2]]
        return (json.dumps(value) if found[1] else str(value)) + "\n"
    raise RefusedError(f"template parsing error: {form}\n")


def _listed(condition: str, form: str) -> list[str]:
    key, _, value = condition.removeprefix("label=").partition("=")
    found = {name: made for name, made in _read("containers").items() if value in ("", made["labels"].get(key))}
    if form == "{{.Names}}":
        return list(found)
    return [made["labels"][CLUSTER] for made in found.values()]


def _run(options: list[str]) -> str:
    values: dict[str, list[str]] = {"--label": [], "--publish": [], "--name": []}
    for option, following in zip(options, [*options[1:], ""], strict=True):
        name, _, value = option.partition("=")
        if name in values:
            values[name].append(value or following)
    [name] = values["--name"]
    known = _read("containers")
    if name in known:
        raise RefusedError(
            f'docker: Error response from daemon: Conflict. The container name "/{name}" is already in use.\n'
        )
    labels = dict(label.partition("=")[::2] for label in values["--label"])
    _write("containers", {**known, name: {"labels": labels, "ports": values["--publish"], "image": options[-1]}})
    return f"{name}\n"


def _inspected(form: str, made: dict[str, Any]) -> str:
    if ROLE in form:
        return f"{made['labels'][ROLE]}\n"
    if ".State.Running" in form:
        return "true\n"
    if "desktop.docker.io" in form:
        return "\n"
    if ".NetworkSettings.Ports" in form:  # of the API server, which is where its kubeconfig says
        found = re.search(r"https://([^:/\s]+):(\d+)", (HERE / "admin.conf").read_text())
        assert found is not None
        return f"{found[1]}\t{found[2]}\n"
    if ".NetworkSettings.Networks" in form:
        return "172.18.0.2,\n"
    raise RefusedError(f"template parsing error: {form}\n")


def _exec(words: list[str]) -> str:
    while words[0].startswith("-"):
        words = words[2:] if words[0] in ("-e", "--env") else words[1:]
    name, *command = words
    made = _container(name)
    match command:
        case ["cat", "/kind/version"]:
            return "v1.36.1\n"
        case ["cat", "/etc/kubernetes/admin.conf"]:
            return (HERE / "admin.conf").read_text()
        case ["cat", path] if path.startswith("/kind/manifests/"):
            return "# none\n"
        case ["cat", "/etc/containerd/config.toml"]:
            return (HERE / "config.toml").read_text()
        case ["cp", "/dev/stdin", "/kind/kubeadm.conf" | "/etc/containerd/config.toml" as path]:
            _write("containers", {**_read("containers"), name: {**made, path: sys.stdin.read()}})
            return ""
        case ["bash", "-c", "! pgrep --exact containerd || systemctl restart containerd"]:
            return ""
        case ["kubectl", "--kubeconfig=/etc/kubernetes/admin.conf", "get", "nodes", *_]:
            return "'True'"
        case ["crictl", "inspecti", "-q", image]:
            if f"docker.io/library/{image}\n" not in _inside(name, ["ctr", "--namespace=k8s.io", "images", "ls", "-q"]):
                raise RefusedError(f'level=fatal msg="no such image \\"{image}\\" present"\n')
            return ""
        case ["containerd" | "ctr", *_] | ["cat", "/var/lib/flox-node.image"] | ["sh", "-c", _]:
            return _inside(name, command)
        case ["mkdir", "-p", path] | ["cp", "/dev/stdin", path] if path.startswith("/etc/containerd/certs.d/"):
            return _inside(name, command)
        case [program, *_] if program in _KINDS_OWN:
            if program == "kubeadm" and name in _read("nodes"):
                _label(name, made["/kind/kubeadm.conf"])
            return ""
    raise RefusedError(f'OCI runtime exec failed: exec: "{command[0]}": executable file not found in $PATH\n')


def _label(name: str, kubeadm: str) -> None:
    """kind's configuration says `- name: node-labels` and, below it, `value: key=value,...`."""
    labels = re.search(r"name: node-labels\s+value: (\S+)", kubeadm)
    if labels is None:
        raise RefusedError(f"kind gives the node {name} no labels\n")
    kubectl = ["kubectl", f"--kubeconfig={HERE / 'admin.conf'}", "label", "--overwrite", "node"]
    subprocess.run([*kubectl, _read("nodes")[name]["name"], *labels[1].split(",")], check=True, stdout=subprocess.PIPE)


def _inside(name: str, command: list[str]) -> str:
    if name not in _read("nodes"):
        raise RefusedError(f"no node of the tests is {name}\n")
    enter = ["nsenter", f"--target={_read('nodes')[name]['pid']}", "--mount", "--pid", "--root", "--wd"]
    done = subprocess.run([*enter, *command], stdin=sys.stdin, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RefusedError(done.stderr)
    return done.stdout


def _container(name: str) -> dict[str, Any]:
    known: dict[str, dict[str, Any]] = _read("containers")
    if name not in known:
        raise RefusedError(f"Error response from daemon: No such container: {name}\n")
    return known[name]


def _read(name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text())
    except FileNotFoundError:
        return {}
    return found


def _write(name: str, value: dict[str, Any]) -> None:
    (HERE / f"{name}.json").write_text(json.dumps(value, indent=1))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
