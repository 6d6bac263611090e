#!/usr/bin/env python3
"""The pins of the image: `pins.py check` for a release, `pins.py args ARCHITECTURE` for a build, `pins.py fill`.

`check` names every pin that is empty or malformed, and exits with 1 if there is one. `args` prints the build arguments
of daemonset/Dockerfile, quoted for a shell, if there is none. `fill` looks everything up anew; it needs a network, and
the programs skopeo, nix and uv.
"""

import argparse
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
SYSTEMS = {"amd64": "x86_64-linux", "arm64": "aarch64-linux"}

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_STORE_PATH = re.compile(r"/nix/store/[0-9a-df-np-sv-z]{32}-[0-9a-zA-Z+._?=-]+")
_ADDRESS = re.compile(r"https://[^\s@]+")  # no @: credentials belong into the secret pip.conf
_KEY = re.compile(r"[^\s:]+:[A-Za-z0-9+/]{43}=")
_REQUIREMENT = re.compile(r"^[a-z0-9-]+==\S+(?: ; [^\\\n]+)?(?: \\\n +--hash=sha256:[0-9a-f]{64})+$", re.MULTILINE)

Pins = Mapping[str, Any]


def problems(pins: Pins, requirements: Mapping[str, str], project: Pins) -> list[str]:
    """What keeps a release from being built: one line for each pin.

    `requirements` holds the files of requirements/ by name without their suffix, `project` is pyproject.toml.
    """
    wrong = [name for name, value, form in _values(pins) if not form.fullmatch(value)]
    found = [f"{name} in pins.toml is empty or malformed" for name in wrong]
    found += [
        f"{name} in pins.toml is empty" for name in ("substituters", "trusted_public_keys") if not pins["nix"][name]
    ]
    for name, wanted in locked(project).items():
        text = requirements.get(name, "")
        if _REQUIREMENT.sub("", text).strip():
            found.append(f"requirements/{name}.txt has a line that is no version with its hashes")
        versions = {match[0].partition(" ")[0] for match in _REQUIREMENT.finditer(text)}
        found += [f"requirements/{name}.txt does not have {one}" for one in wanted if _normal(one) not in versions]
    return found


def arguments(pins: Pins, architecture: str) -> dict[str, str]:
    """The build arguments for an architecture ("amd64", "arm64")."""
    images = {f"{name.upper()}_IMAGE": f"{pin['reference']}@{pin['digest']}" for name, pin in pins["images"].items()}
    store = {f"STORE_{name.upper()}": pin[SYSTEMS[architecture]] for name, pin in pins["store"].items()}
    return {
        **images,
        **store,
        "PACKAGE_INDEX": pins["index"]["url"],
        "SUBSTITUTERS": " ".join(pins["nix"]["substituters"]),
        "TRUSTED_PUBLIC_KEYS": " ".join(pins["nix"]["trusted_public_keys"]),
        "VERSION": _version(),
    }


def locked(project: Pins) -> dict[str, Sequence[str]]:
    """What each file of requirements/ locks, with all that it needs in turn."""
    return {
        "agent": project["project"]["optional-dependencies"]["agent"],
        "build": project["build-system"]["requires"],
        "payload": project["project"]["dependencies"],
    }


def fill(text: str, found: Mapping[str, str]) -> str:
    """The text of pins.toml with values by their dotted names put in; everything else stays as it is."""
    import tomlkit  # of the virtual environment; what a release is built with needs none

    document = tomlkit.parse(text)
    for name, value in found.items():
        *tables, key = name.split(".")
        place: Any = document
        for table in tables:
            place = place[table]
        place[key] = value
    return document.as_string()


def _values(pins: Pins) -> Iterator[tuple[str, str, re.Pattern[str]]]:
    """Every pin that is a text: its dotted name, its value, and the form that it must have."""
    for name, image in pins["images"].items():
        yield f"images.{name}.digest", image["digest"], _DIGEST
    yield "index.url", pins["index"]["url"], _ADDRESS
    for number, address in enumerate(pins["nix"]["substituters"]):
        yield f"nix.substituters[{number}]", address, _ADDRESS
    for number, key in enumerate(pins["nix"]["trusted_public_keys"]):
        yield f"nix.trusted_public_keys[{number}]", key, _KEY
    for name, store in pins["store"].items():
        for system in SYSTEMS.values():
            yield f"store.{name}.{system}", store[system], _STORE_PATH


def _look_up(pins: Pins) -> dict[str, str]:
    found = {}
    for name, image in pins["images"].items():
        inspect = ["skopeo", "inspect", "--no-tags", "--format={{.Digest}}", f"docker://{image['reference']}"]
        found[f"images.{name}.digest"] = _run(inspect)
    nix = ["nix", "--extra-experimental-features", "nix-command flakes"]
    for name, store in pins["store"].items():
        for system in SYSTEMS.values():
            path = _run([*nix, "eval", "--raw", f"{store['installable'].format(system=system)}.outPath"])
            if not any(_succeeds([*nix, "path-info", "--store", cache, path]) for cache in pins["nix"]["substituters"]):
                sys.exit(f"store.{name}.{system}: none of the substituters has {path}")
            found[f"store.{name}.{system}"] = path
    return found


def _lock(name: str, wanted: Sequence[str]) -> None:
    options = ["--universal", "--python-version=3.13", "--generate-hashes", "--no-header", "--no-annotate"]
    output = FOLDER / f"requirements/{name}.txt"
    _run(["uv", "pip", "compile", "--quiet", *options, f"--output-file={output}", "-"], "\n".join(wanted))


def _run(command: Sequence[str], text: str = "") -> str:
    return subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def _succeeds(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _normal(requirement: str) -> str:
    name, _, version = requirement.partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={version}"


def _version() -> str:
    text = (FOLDER.parent / "installer/flox_node/__init__.py").read_text()
    return text.rpartition('__version__ = "')[2].partition('"')[0]


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="The pins of the image.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="name every pin that is missing; exit with 1 if there is one")
    building = commands.add_parser("args", help="print the build arguments")
    building.add_argument("architecture", choices=SYSTEMS)
    commands.add_parser("fill", help="look all pins up and lock the requirements")
    command = parser.parse_args()

    file = FOLDER / "pins.toml"
    pins = tomllib.loads(file.read_text())
    project = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text())
    if command.command == "fill":
        for name, wanted in locked(project).items():
            _lock(name, wanted)
        file.write_text(fill(file.read_text(), _look_up(pins)))
        return
    found = problems(pins, {path.stem: path.read_text() for path in (FOLDER / "requirements").glob("*.txt")}, project)
    if found:
        sys.exit("\n".join(found))
    if command.command == "args":
        words = [f"--build-arg={name}={value}" for name, value in arguments(pins, command.architecture).items()]
        print(shlex.join(words))


if __name__ == "__main__":
    main()
