"""The pins of the image: a release with one missing fails."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from daemonset import pins

FILE = pins.FOLDER / "pins.toml"
PROJECT = tomllib.loads((pins.FOLDER.parent / "pyproject.toml").read_text())
REQUIREMENTS = {path.stem: path.read_text() for path in (pins.FOLDER / "requirements").glob("*.txt")}


def _full() -> str:
    """pins.toml as it would be after somebody looked everything up."""
    found = {f"images.{name}.digest": f"sha256:{'0' * 64}" for name in ("python", "go", "nix")}
    for name in ("busybox", "flox", "git", "nix", "python"):
        for system in pins.SYSTEMS.values():
            found[f"store.{name}.{system}"] = f"/nix/store/{'1' * 32}-{name}-{system}"
    return pins.fill(FILE.read_text(), found | {"index.url": "https://packages.example/simple"})


def test_with_every_pin_there_is_nothing_to_say() -> None:
    assert pins.problems(tomllib.loads(_full()), REQUIREMENTS, PROJECT) == []


@pytest.mark.parametrize(
    "line", [line for line in _full().splitlines() if re.match(r"(digest|url|\S+-linux) = ", line)]
)
def test_a_release_with_an_empty_pin_fails(line: str) -> None:
    key = line.partition(" = ")[0]
    text = _full().replace(line, f'{key} = ""', 1)
    [said] = pins.problems(tomllib.loads(text), REQUIREMENTS, PROJECT)
    assert f".{key} in pins.toml is empty" in said


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("sha256:" + "0" * 64, "sha256:0000"),
        ("/nix/store/" + "1" * 32, "/nix/store/1111"),
        ("https://packages.example", "https://me:password@packages.example"),
        ('"cache.nixos.org-1:', '"cache.nixos.org-1:short'),
    ],
)
def test_a_malformed_pin_counts_as_none(old: str, new: str) -> None:
    [said] = pins.problems(tomllib.loads(_full().replace(old, new, 1)), REQUIREMENTS, PROJECT)
    assert "malformed" in said


def test_no_list_of_caches_or_keys_may_be_empty() -> None:
    full = tomllib.loads(_full())
    full["nix"] = {"substituters": [], "trusted_public_keys": []}
    assert len(pins.problems(full, REQUIREMENTS, PROJECT)) == 2


def test_a_node_gets_few_wheels() -> None:
    """Each of them is loaded by commands that run once a minute, and trusted on every node."""
    names = {line.partition("==")[0] for line in REQUIREMENTS["payload"].splitlines() if "==" in line}
    of_rich, of_typer = {"markdown-it-py", "mdurl", "pygments"}, {"annotated-doc", "colorama", "shellingham"}
    assert names == {"jeepney", "rich", "typer", "zstandard"} | of_rich | of_typer


def test_what_is_locked_is_what_the_project_wants_and_has_hashes() -> None:
    """Also without a network: a dependency that was moved in pyproject.toml only is found here."""
    moved = {**PROJECT, "build-system": {"requires": ["hatchling==99"]}}
    assert pins.problems(tomllib.loads(_full()), REQUIREMENTS, moved) == [
        "requirements/build.txt does not have hatchling==99"
    ]
    loose = REQUIREMENTS | {"agent": REQUIREMENTS["agent"] + "other==1.0\n"}
    assert pins.problems(tomllib.loads(_full()), loose, PROJECT) == [
        "requirements/agent.txt has a line that is no version with its hashes"
    ]
    assert "requirements/payload.txt does not have typer==0.28.0" in pins.problems(
        tomllib.loads(_full()), {"agent": "", "build": ""}, PROJECT
    )


def test_filling_changes_nothing_but_the_values() -> None:
    before, after = FILE.read_text().splitlines(), _full().splitlines()
    changed = [(old, new) for old, new in zip(before, after, strict=True) if old != new]
    assert all(old.partition(" = ")[0] == new.partition(" = ")[0] for old, new in changed)
    assert len(changed) <= 14


def test_the_arguments_are_those_that_the_dockerfile_takes() -> None:
    dockerfile = (pins.FOLDER / "Dockerfile").read_text()
    taken = set(re.findall(r"^ARG (\w+)$", dockerfile, re.MULTILINE)) - {"REVISION"}
    for architecture, system in pins.SYSTEMS.items():
        given = pins.arguments(tomllib.loads(_full()), architecture)
        assert set(given) == taken
        assert given["STORE_FLOX"].endswith(f"-flox-{system}")
        assert re.fullmatch(r"docker\.io/library/python:\S+@sha256:0{64}", given["PYTHON_IMAGE"])


def test_the_dockerfile_names_no_input_of_its_own() -> None:
    dockerfile = (pins.FOLDER / "Dockerfile").read_text()
    images = re.findall(r"^FROM (?:--platform=\S+ )?(\S+)", dockerfile, re.MULTILINE)
    stages = set(re.findall(r"^FROM .* AS (\S+)$", dockerfile, re.MULTILINE))
    assert {image for image in images if image not in stages} == {"${GO_IMAGE}", "${PYTHON_IMAGE}", "${NIX_IMAGE}"}
    assert "://" not in dockerfile
    assert not re.search(r"^ARG \w+=", dockerfile, re.MULTILINE)


def test_the_command_fails_for_a_release_as_long_as_a_pin_is_missing(tmp_path: Path) -> None:
    complete = not pins.problems(tomllib.loads(FILE.read_text()), REQUIREMENTS, PROJECT)
    for command in (["check"], ["args", "arm64"]):
        done = subprocess.run(
            [sys.executable, pins.__file__, *command], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert (done.returncode == 0) == complete
        assert complete or "in pins.toml is empty" in done.stderr


def test_the_images_context_holds_what_the_package_links_to() -> None:
    root = Path(__file__).parents[2]
    links = [path for path in (root / "installer/flox_node").rglob("*") if path.is_symlink()]
    targets = {str(path.resolve().relative_to(root)) for path in links}
    dockerfile, context = ((root / name).read_text().split() for name in ("daemonset/Dockerfile", ".dockerignore"))
    assert targets, "the manifests, at least"
    for target in targets:
        parts = target.split("/")
        above = {"/".join(parts[: length + 1]) for length in range(len(parts))}
        assert above & set(dockerfile), f"{target} is not copied into the build of the wheel"
        assert {f"!{each}" for each in above} & set(context), f"{target} is not in the context"
