"""Packages of Debian suites: downloaded by a private apt, verified, unpacked into a folder, never installed.

The private apt has its own lists, cache and (empty) status, so that the machine's own package state neither matters nor
changes. No maintainer script runs. Every suite is verified with the machine's Debian keyring; bookworm's holds the keys
of trixie too.
"""

import functools
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.bed import cache

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MACHINE_PACKAGES = Path(__file__).with_name("packages.txt")


def install_machine_packages() -> None:
    """Install with apt-get what `packages.txt` lists and this machine lacks."""
    lines = (line.partition("#")[0].strip() for line in MACHINE_PACKAGES.read_text().splitlines())
    missing = [package for package in lines if package and not _installed(package)]
    if not missing:
        return
    with cache.locked("machine-packages"), cache.progress(f"this machine: {' '.join(missing)}"):
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        _run("apt-get", "update", "-q", env=environment)
        _run("apt-get", "install", "-q", "-y", "--no-install-recommends", *missing, env=environment)


def unpack(suite: str, packages: Sequence[str], into: Path, *, closure: bool = True) -> None:
    """Unpack `packages` of `suite` ("bookworm", "trixie") into the folder `into`.

    closure: with everything they depend on (but do not merely recommend); otherwise only the packages themselves.
    """
    for name in ("bin", "sbin", "lib", "lib64"):  # merged /usr, before the first package writes through the links
        (into / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (into / name).is_symlink():
            (into / name).symlink_to(f"usr/{name}")
    for deb in _download(suite, packages, closure=closure):
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as archive:
            _run("tar", "-C", str(into), "--keep-directory-symlink", "-xf", "-", stdin=archive.stdout)
        if archive.returncode:
            raise RuntimeError(f"{deb.name} cannot be unpacked; remove {deb} and prepare again")


def archives(suite: str, packages: Sequence[str]) -> list[Path]:
    """The .deb files of packages and of everything that they depend on, downloaded if need be."""
    return _download(suite, packages, closure=True)


def register(debs: Sequence[Path], root: Path) -> None:
    """Have the dpkg of a root, in which `unpack` put these packages, take them for installed. No script has run."""
    database = root / "var/lib/dpkg"
    for name in ("info", "updates"):
        (database / name).mkdir(parents=True, exist_ok=True)
    paragraphs = []
    for deb in debs:
        name, _, rest = _run("dpkg-deb", "--field", str(deb)).partition("\n")  # its first line is "Package: ..."
        paragraphs.append(f"{name}\nStatus: install ok installed\n{rest}")
        package = name.removeprefix("Package: ")
        shared = "Multi-Arch: same" in rest
        (database / "info" / f"{package}{':amd64' if shared else ''}.list").touch()
    (database / "status").write_text("\n".join(paragraphs))


def _download(suite: str, packages: Sequence[str], *, closure: bool) -> list[Path]:
    """The .deb files of the packages, downloaded if need be, in an order in which they can be unpacked."""
    with cache.locked(f"apt-{suite}"):
        apt = _private_apt(suite)
        install = (*apt, "install", "-y", "-q", "--no-install-recommends")
        # One line a package: 'http://.../runc_1.1.5%2bds1-1_amd64.deb' runc_1.1.5+ds1-1_amd64.deb SIZE DIGEST.
        # apt leaves out what its archives hold already, so the whole closure is only told without them.
        plan = _run(*install, "--print-uris", *packages)
        files = re.findall(r"^'\S+' (\S+\.deb) \d+", plan, re.MULTILINE)
        _run(*install, "--download-only", "-o", f"Dir::Cache::Archives={_archives(suite)}", *packages)
    return [_archives(suite) / file for file in files if closure or file.partition("_")[0] in packages]


@functools.cache
def _private_apt(suite: str) -> tuple[str, ...]:
    """`apt-get` with the options that confine it to `suite` and to folders of the cache, its lists fresh."""
    home = cache.folder() / "apt" / suite
    for name in ("lists/partial", "none/archives/partial", "archives/partial"):
        (home / name).mkdir(parents=True, exist_ok=True)
    (home / "status").write_text("")
    (home / "sources.list").write_text(f"deb [signed-by={KEYRING} target=Packages] {_mirror()} {suite} main\n")
    options = {
        "Dir::Etc::SourceList": home / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State::Lists": home / "lists",
        "Dir::State::Status": home / "status",
        "Dir::Cache": home / "none",
        "APT::Sandbox::User": "root",  # the cache may lie where the user _apt cannot go
        "Acquire::Languages": "none",
    }
    apt = ("apt-get", *(word for key, value in options.items() for word in ("-o", f"{key}={value}")))
    _run(*apt, "update", "-q")
    return apt


def _archives(suite: str) -> Path:
    return cache.folder() / "apt" / suite / "archives"


def _mirror() -> str:
    """The address that this machine itself gets its Debian release from; other suites lie beside it."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release.get("VERSION_CODENAME", "").strip('"')
    targets = _run("apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)", "Created-By: Packages")
    for target in targets.splitlines():
        name, component, address = target.split(" ", 2)
        if (name, component) == (codename, "main"):
            return address
    raise RuntimeError(
        f"No apt source of this machine offers {codename or 'a Debian release'} main; the bed needs Debian."
    )


def _installed(package: str) -> bool:
    query = ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout == "installed"


def _run(*command: str, stdin: IO[bytes] | None = None, env: Mapping[str, str] | None = None) -> str:
    source = subprocess.DEVNULL if stdin is None else stdin
    done = subprocess.run(command, stdin=source, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    return done.stdout
