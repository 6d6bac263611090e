"""A real Nix store made of Debian packages, and the binary cache of what environments need and nodes do not have yet.

Programs of Debian trixie are relocated with patchelf: they name their own loader and libraries by store path, so they
run on any node whatever its libc. Paths are named after their content, references are found by scanning, and the
database is written by the store's own Nix.
"""

import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from flox_node.host import Host, HostFiles, Processes
from flox_node.host.children import Finish
from flox_node.host.trees import walk
from flox_node.payload.manifest import StorePath, registration
from flox_node.payload.nar import nar_of
from flox_node.payload.storepath import path_for, settle
from tests.bed import cache, debian, golang

REVISION = 1
PACKAGES = ("nix-bin", "git", "python3", "busybox-static", "ca-certificates", "hello")
PROGRAMS = ("nix", "git", "python3", "busybox")
PYTHON = "python3.13"
KEY_NAME = "flox-node-test-1"

_DOUBLES = Path(__file__).parents[1] / "doubles"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = "ld-linux-x86-64.so.2"
# The C library by itself, so that the closure of a small package is small; the loader finds its parts by name.
_LIBC = (
    "libc.so.6",
    "libm.so.6",
    "libdl.so.2",
    "libpthread.so.0",
    "librt.so.1",
    "libresolv.so.2",
    "libutil.so.1",
    "libnss_dns.so.2",
)
_NOT_NEEDED = ("libgcc_s.so.1",)  # loaded by name when a thread is cancelled
_ENTER = 'mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" && /usr/sbin/chroot "$0" "$@"'
NIX_ENVIRONMENT = {
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "NIX_CONF_DIR": "/nonexistent",
    "NIX_CONFIG": "build-users-group =\nexperimental-features = nix-command\nsubstituters =\n",
    "NIX_REMOTE": "local",
}


@dataclasses.dataclass(frozen=True)
class Store:
    """A store below a root folder. `paths` maps a package's short name ("git") to its store path."""

    root: Path
    paths: dict[str, str]

    def real(self, path: str) -> Path:
        """Where a store path (or a file in it) lies on this machine."""
        return self.root / path.lstrip("/")

    def run(self, *command: str, input: bytes = b"") -> bytes:
        """Run a program of the store inside its root, with settings of its own; its output."""
        done = subprocess.run(
            self.entering(*command), input=input, capture_output=True, env=NIX_ENVIRONMENT, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}):\n{done.stderr.decode()}")
        return done.stdout

    def entering(self, *command: str) -> list[str]:
        """The command that runs a program inside the root, with this machine's /dev; its mounts are gone with it.

        It sees no other process: Nix takes for alive what any process has open, and other tests have the same paths.
        """
        for folder in ("proc", "dev", "tmp"):
            (self.root / folder).mkdir(exist_ok=True)
        alone = ["/usr/bin/unshare", "--mount", "--pid", "--fork", "--kill-child"]
        return [*alone, "/bin/sh", "-c", _ENTER, str(self.root), *command]

    @property
    def nix_store(self) -> str:
        """The program nix-store, by its store path."""
        return f"{self.paths['nix']}/bin/nix-store"


@dataclasses.dataclass(frozen=True)
class BinaryCache:
    """Signed packages for environments, as a folder that any file server can serve.

    `cache_dir` holds nix-cache-info, *.narinfo and nar/; a client trusts `public_key`.
    """

    cache_dir: Path
    public_key: str
    hello_store_path: str
    busybox_store_path: str
    activations_store_path: str
    redis_store_path: str
    bash_store_path: str


class _Processes(Processes):
    """Programs of a root folder that nobody booted, so that it has neither /proc nor /dev of its own."""

    @contextmanager
    def started(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, timeout: float = 60.0
    ) -> Iterator[Finish]:
        with Processes().started(Store(self.root, {}).entering(*argv), env=env, timeout=timeout) as finish:
            yield finish


def host(root: Path) -> Host:
    """A folder as a node, as far as a payload is concerned: real files, and real programs of its store."""
    return Host(HostFiles(root), _Processes(root), None)  # type: ignore[arg-type]  # nothing here asks systemd


class Builder:
    """Adds paths to a store below `root`; `finish` registers them."""

    def __init__(self, root: Path, base: Store | None = None) -> None:
        self._root = root
        self._store = root / "nix/store"
        self._records: dict[str, StorePath] = {}
        self._base = base
        self.paths: dict[str, str] = dict(base.paths) if base else {}

    def add(self, key: str, name: str, origin: object, build: Callable[[Path, str], None]) -> str:
        """Build one path: `build(folder, store_path)` fills the folder.

        `origin` (JSON) is all that the content depends on; `key` is the path's short name in `Store.paths`.
        """
        path = path_for(name, [REVISION, origin])
        scratch = self._root / "scratch"
        (scratch / name).mkdir(parents=True)
        build(scratch / name, path)
        self._store.mkdir(parents=True, exist_ok=True)
        self._records[path] = settle(scratch / name, path, self.paths.values(), self._store)
        shutil.rmtree(scratch)
        self.paths[key] = path
        return path

    def finish(self) -> Store:
        """Register all added paths with the store's own Nix."""
        store = Store(self._root, self.paths)
        store.run(store.nix_store, "--load-db", input=registration(self._records.values()))
        return store


def base() -> Store:
    """The store that holds Debian's programs: glibc, libraries, nix, git, python3, busybox, cacert, and hello."""
    folder = cache.artefact("store", {"packages": PACKAGES, "revision": REVISION, "code": _own_digest()}, _build_base)
    return load(folder)


def extended(folder: Path, origin: Store) -> Builder:
    """A builder on a copy of `origin` in the empty `folder`; hard links, since a store path never changes."""
    for part in ("nix/store", "nix/var"):
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        flags = "-al" if part == "nix/store" else "-a"
        subprocess.run(["cp", flags, str(origin.root / part), str(folder / part)], check=True)
    return Builder(folder, origin)


def binary_cache() -> BinaryCache:
    """The signed binary cache with `hello`, redis and the double of flox-activations, for the tests' environments."""
    recipe = {"store": base().root.name, "activations": golang.sources(_DOUBLES / "flox-activations")}
    folder = cache.artefact("binary-cache", recipe | {"revision": REVISION, "code": _own_digest()}, _build_cache)
    known = json.loads((folder / "cache.json").read_text())
    names = ("public_key", "hello", "busybox", "activations", "redis", "bash")
    return BinaryCache(folder / "cache", *(known[name] for name in names))


def save(store: Store) -> None:
    """Leave the names of a store's paths beside it, for `load`."""
    (store.root / "paths.json").write_text(json.dumps(store.paths, indent=1, sort_keys=True))


def load(folder: Path) -> Store:
    """The store that `save` left in a folder."""
    return Store(folder, json.loads((folder / "paths.json").read_text()))


def relocate(file: Path, libraries: Sequence[str], loader: str | None) -> None:
    """Make an ELF file find its libraries (and, for a program, its loader) by store path.

    DT_RPATH and not RUNPATH: it also holds for the libraries' own libraries, and no LD_LIBRARY_PATH comes before it.
    """
    options = ["--set-interpreter", loader] if loader else []
    _patchelf(*options, "--force-rpath", "--set-rpath", ":".join(libraries), str(file))


def _build_base(folder: Path) -> None:
    packages = folder / "debian"
    debian.unpack("trixie", PACKAGES, packages)
    usr = packages / "usr"
    origin = nar_of(walk(usr)).nar_hash  # versions of all packages at once
    builder = Builder(folder)

    git_core = [
        path
        for path in sorted((usr / "lib/git-core").iterdir())
        if path.is_symlink() or (path.is_file() and _is_elf(path))
    ]
    extensions = sorted((usr / f"lib/{PYTHON}/lib-dynload").glob("*.so"))
    programs = [usr / "bin/nix", usr / f"bin/{PYTHON}", usr / "bin/hello", *git_core, *extensions]
    needed = _needed(programs, packages / _LIBRARIES)

    def glibc(out: Path, path: str) -> None:
        _copy_libraries(packages, (*_LIBC, _LOADER), out)

    def libraries(out: Path, path: str) -> None:
        _copy_libraries(packages, sorted({*needed, *_NOT_NEEDED} - {*_LIBC, _LOADER}), out)

    libc = builder.add("glibc", f"glibc-{_version(packages, 'libc6')}", origin, glibc)
    libs = builder.add("libraries", "debian-libs", origin, libraries)
    search, loader = (f"{libs}/lib", f"{libc}/lib"), f"{libc}/lib/{_LOADER}"

    def busybox(out: Path, path: str) -> None:
        (out / "bin").mkdir()
        program = out / "bin/busybox"
        shutil.copy(usr / "bin/busybox", program)
        applets = subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split()
        for applet in applets:
            if applet != "busybox":
                (out / "bin" / applet).symlink_to("busybox")

    def hello(out: Path, path: str) -> None:
        (out / "bin").mkdir()
        shutil.copy(usr / "bin/hello", out / "bin/hello")
        relocate(out / "bin/hello", search[1:], loader)

    def cacert(out: Path, path: str) -> None:
        (out / "etc/ssl/certs").mkdir(parents=True)
        certificates = sorted((usr / "share/ca-certificates").rglob("*.crt"), key=os.fsencode)
        bundle = b"".join(certificate.read_bytes() for certificate in certificates)
        (out / "etc/ssl/certs/ca-bundle.crt").write_bytes(bundle)

    def nix(out: Path, path: str) -> None:
        (out / "bin").mkdir()
        for program in sorted((usr / "bin").glob("nix*")):
            shutil.copy(program, out / "bin" / program.name, follow_symlinks=False)
        relocate(out / "bin/nix", search, loader)

    def git(out: Path, path: str) -> None:
        core = out / "libexec/git-core"
        core.mkdir(parents=True)
        for program in git_core:
            if program.is_symlink():
                target = os.path.basename(os.readlink(program))  # ../../bin/git is git-core/git here
                if target != program.name and (usr / "lib/git-core" / target).exists():
                    (core / program.name).symlink_to(target)
            else:
                shutil.copy(program, core / program.name)
                relocate(core / program.name, search, loader)
        if not (core / "git").exists():
            shutil.copy(usr / "bin/git", core / "git")
            relocate(core / "git", search, loader)
        shutil.copytree(usr / "share/git-core/templates", out / "share/git-core/templates", symlinks=True)
        script = [
            f"#!{builder.paths['busybox']}/bin/sh",
            f"export GIT_EXEC_PATH={path}/libexec/git-core GIT_TEMPLATE_DIR={path}/share/git-core/templates",
            f"export GIT_SSL_CAINFO=${{GIT_SSL_CAINFO:-{builder.paths['cacert']}/etc/ssl/certs/ca-bundle.crt}}",
            f'exec {path}/libexec/git-core/git "$@"',
        ]
        write_program(out / "bin/git", script)

    def python(out: Path, path: str) -> None:
        (out / "bin").mkdir()
        shutil.copy(usr / f"bin/{PYTHON}", out / f"bin/{PYTHON}")
        relocate(out / f"bin/{PYTHON}", search, loader)
        (out / "bin/python3").symlink_to(PYTHON)
        # /etc/python3.13 is the node's; what leads there is Debian's and not ours.
        foreign = shutil.ignore_patterns("__pycache__", "sitecustomize.py", "EXTERNALLY-MANAGED")
        shutil.copytree(usr / f"lib/{PYTHON}", out / f"lib/{PYTHON}", symlinks=True, ignore=foreign)
        compile_python(Store(folder, {}), f"/{out.relative_to(folder)}/bin/{PYTHON}", out, path)

    builder.add("busybox", f"busybox-{_version(packages, 'busybox-static')}", origin, busybox)
    builder.add("hello", f"hello-{_version(packages, 'hello')}", origin, hello)
    builder.add("cacert", f"cacert-{_version(packages, 'ca-certificates')}", origin, cacert)
    builder.add("nix", f"nix-{_version(packages, 'nix-bin')}", origin, nix)
    builder.add("git", f"git-{_version(packages, 'git')}", origin, git)
    builder.add("python3", f"python3-{_version(packages, 'python3')}", origin, python)
    shutil.rmtree(packages)
    save(builder.finish())


def compile_python(store: Store, python: str, folder: Path, path: str) -> None:
    """Compile all modules in `folder`, which will be the store path `path`, so that nothing is ever compiled on a node.

    unchecked-hash: every file of a store has mtime 1. -B: importing must not leave modules compiled in another way.
    """
    inside = f"/{folder.relative_to(store.root)}"
    options = ["--invalidation-mode", "unchecked-hash", "-q", "-s", inside, "-p", path]
    store.run(python, "-IBS", "-m", "compileall", *options, inside)


def _build_cache(folder: Path) -> None:
    builder = extended(folder / "root", base())

    def activations(out: Path, path: str) -> None:
        (out / "libexec").mkdir()
        golang.build(_DOUBLES / "flox-activations", ".", into=out / "libexec")
        (out / "activate").symlink_to("libexec/flox-activations")

    activations_path = builder.add(
        "activations", "flox-activations-1.14.1", golang.sources(_DOUBLES / "flox-activations"), activations
    )
    packages = folder / "debian"
    debian.unpack("trixie", ["redis-server", "bash-static"], packages)
    programs = [(packages / "usr/bin" / name).resolve() for name in ("redis-server", "redis-cli")]
    libc = builder.paths["glibc"]

    def redis(out: Path, path: str) -> None:
        needed = _needed(programs, packages / _LIBRARIES)
        _copy_libraries(packages, sorted({*needed, *_NOT_NEEDED} - {*_LIBC, _LOADER}), out)
        (out / "bin").mkdir()
        for program, name in zip(programs, ("redis-server", "redis-cli"), strict=True):
            shutil.copy(program, out / "bin" / name)
            relocate(out / "bin" / name, (f"{path}/lib", f"{libc}/lib"), f"{libc}/lib/{_LOADER}")
        for library in (out / "lib").iterdir():
            relocate(library, (f"{path}/lib", f"{libc}/lib"), None)

    version = _version(packages, "redis-server")
    redis_path = builder.add("redis", f"redis-{version.replace(':', '-')}", [libc, version], redis)

    def bash(out: Path, path: str) -> None:
        (out / "bin").mkdir()
        shutil.copy(packages / "usr/bin/bash-static", out / "bin/bash")
        (out / "bin/sh").symlink_to("bash")

    version = _version(packages, "bash-static")
    bash_path = builder.add("bash", f"bash-{version}", [version], bash)
    shutil.rmtree(packages)
    store = builder.finish()
    hello, busybox = store.paths["hello"], store.paths["busybox"]
    cached = (hello, busybox, activations_path, redis_path, bash_path)
    nix = f"{store.paths['nix']}/bin/nix"
    secret = store.run(nix, "key", "generate-secret", "--key-name", KEY_NAME)
    public = store.run(nix, "key", "convert-secret-to-public", input=secret).decode().strip()
    (store.root / "secret").write_bytes(secret)
    store.run(nix, "copy", "--to", "file:///cache?secret-key=/secret&compression=zstd", *cached)
    (store.root / "cache").rename(folder / "cache")
    shutil.rmtree(store.root)
    known = {
        "public_key": public,
        "hello": hello,
        "busybox": busybox,
        "activations": activations_path,
        "redis": redis_path,
        "bash": bash_path,
    }
    (folder / "cache.json").write_text(json.dumps(known))


def _copy_libraries(packages: Path, names: Iterable[str], out: Path) -> None:
    (out / "lib").mkdir()
    for name in names:
        target = out / "lib" / name
        shutil.copy((packages / _LIBRARIES / name).resolve(), target)
        target.chmod(0o755)


def _needed(programs: Iterable[Path], folder: Path) -> set[str]:
    """The libraries that ELF files need, directly or not, by their names."""
    found: set[str] = set()
    todo = [program for program in programs if program.is_file() and _is_elf(program)]
    while todo:
        for name in _patchelf("--print-needed", str(todo.pop())).split():
            if name not in found:
                found.add(name)
                todo.append(folder / name)
    return found


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _version(packages: Path, package: str) -> str:
    """A package's version without what store path names cannot hold."""
    for changelog in ("changelog.Debian.gz", "changelog.gz"):
        path = packages / "usr/share/doc" / package / changelog
        if path.exists():
            first = subprocess.run(["zcat", str(path)], capture_output=True, text=True, check=True).stdout.split(
                "\n", 1
            )[0]
            version = first.partition("(")[2].partition(")")[0]
            return re.sub(r"[^0-9a-zA-Z.+-]", "-", version.partition(":")[2] or version)
    return "0"


def write_program(path: Path, lines: Iterable[str]) -> None:
    """Write a script, and the folder it stands in."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))
    path.chmod(0o755)


def _patchelf(*arguments: str) -> str:
    patchelf = Path(sys.executable).with_name("patchelf")
    return subprocess.run([str(patchelf), *arguments], capture_output=True, text=True, check=True).stdout


@functools.cache
def _own_digest() -> str:
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
