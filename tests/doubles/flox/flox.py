"""A double of the Flox CLI 1.14.1: the published contract of `flox pull`, with real git, real Nix, real environments,
and of `install`, `uninstall`, `edit -f` and `list` in a checkout, for store paths (what has a name asks the catalog).

It clones the floxmeta repository from the hub, realises the locked packages through Nix' own substituters, and builds
the environment as a derivation: store paths, links, roots and closures are those of a real store. What no cache has it
tries to build from source, as the real one does, and says so in a file. Where the real one is strict (HOME,
directories, generations, the lock's form, tokens), so is this, in its words. It needs Python 3.11, nothing else.

Its programs are named by a JSON file, `share/flox-double.json` beside this script's folder:

    {"busybox": STORE PATH, "activations": STORE PATH, "nix": FOLDER OF nix, "git": FOLDER OF git}

Faults: the word in the file FAULT_FILE, or in the variable FLOX_DOUBLE_FAULT, makes it misbehave as real ones did:
`slow:SECONDS` (before the build), `dot-names` (links as before 1.13), `no-links` (exit 0 without an environment),
`relock` (another lock than the hub's), `leak` (a background process that holds stderr open), `fail` (an unknown error).
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

VERSION = "1.14.1"
ALGORITHMS = ("HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "ES256", "ES384", "PS256", "EdDSA")
SCHEMAS = ("1.10.0", "1.11.0", "1.12.0", "1.13.0", "1.14.0")
MANIFEST = (
    *("version", "schema-version", "minimum-cli-version", "install", "vars", "hook", "profile", "options"),
    *("services", "build", "include", "containerize"),
)
BUILT = Path("/run/flox-double.built-from-source")  # what it tried to build: a line for each package
NIXPKGS = "https://github.com/flox/nixpkgs"
FAULT_FILE = Path("/run/flox-double.fault")
MACHINE = f"{os.uname().machine}-linux"
CHANGES = ("install", "uninstall", "edit", "list")

ENVIRONMENT = r"""
{ parameters }:
let
  given = builtins.fromJSON (builtins.readFile parameters);
  manifest = (builtins.fromJSON given.lock).manifest;
  busybox = builtins.storePath given.busybox;
  activations = builtins.storePath given.activations;
  packages = map (package: package // { path = builtins.storePath package.path; }) given.packages;
  text = builtins.toFile;

  build = name: script: attributes: derivation ({
    inherit name;
    system = builtins.currentSystem;
    builder = "${busybox}/bin/busybox";
    args = [ "sh" "-eu" (text "build-${name}" script) ];
    PATH = "${busybox}/bin";
  } // attributes);

  interpreter = build "flox-interpreter" given.scripts.interpreter {
    shell = "${busybox}/bin/sh";
    activate = text "activate" given.scripts.activate;
    inherit activations;
  };
  hook = manifest.hook.on-activate or null;
  profile = manifest.profile or { };
  manifestPackage = build "manifest" given.scripts.manifest {
    lock = text "manifest.lock" given.lock;
    envrc = text "envrc" (builtins.concatStringsSep "" (map (name: "export ${name}=\"${manifest.vars.${name}}\"\n")
      (builtins.attrNames (manifest.vars or { }))));
    hook = if hook == null then "" else text "hook-on-activate" hook;
    profiles = map (shell: text "profile-${shell}" profile.${shell}) (builtins.attrNames profile);
  };
  sources = map (package: package.path) packages ++ [ interpreter activations manifestPackage ];
in
build "environment" given.scripts.environment {
  outputs = [ "run" "dev" ];
  inherit interpreter activations;
  manifest = manifestPackage;
  packages = map (package: "${toString package.priority}:${package.path}") packages;
  exportReferencesGraph = builtins.concatLists
    (builtins.genList (i: [ "graph-${toString i}" (builtins.elemAt sources i) ]) (builtins.length sources));
}
"""

INTERPRETER = r"""
mkdir -p $out/activate.d $out/etc/profile.d
{ echo "#!$shell"; sed "s|@activations@|$activations|g" $activate; } > $out/activate
chmod 0555 $out/activate
echo 'export FLOX_DOUBLE_PROFILE=1' > $out/etc/profile.d/0100_double.sh
"""

MANIFEST_BUILD = r"""
mkdir -p $out/activate.d
cp $lock $out/manifest.lock
cp $envrc $out/activate.d/envrc
if [ -n "$hook" ]; then cp $hook $out/activate.d/hook-on-activate; fi
for profile in $profiles; do cp $profile $out/activate.d/${profile#*-}; done
"""

BUILD = r"""
# Store paths of a graph file: path, deriver, number of references, references; all of them are in the closure.
requisites() {
  cat graph-* | awk '
    state == 0 { print; state = 1; next }
    state == 1 { state = 2; next }
    state == 2 { left = $1; state = left ? 3 : 0; next }
    state == 3 { if (--left == 0) state = 0 }' | sort -u
}
for output in run dev; do
  target=$(eval echo \$$output)
  mkdir $target
  : > taken
  for entry in $packages; do
    priority=${entry%%:*} package=${entry#*:}
    cd $package
    find . -mindepth 1 -type d | while read -r folder; do
      case "$output:$folder" in run:./include|run:./include/*) continue;; esac
      mkdir -p "$target/$folder"
    done
    find . -mindepth 1 ! -type d | while read -r file; do
      case "$output:$file" in run:./include/*) continue;; esac
      if [ -L "$target/$file" ]; then
        other=$(grep -F " $file " $NIX_BUILD_TOP/taken | head -n 1)
        if [ "${other%% *}" = "$priority" ]; then
          echo "error: '${other##* }' conflicts with '$package'. Both packages provide the file '${file#./}'" >&2
          echo "Resolve by uninstalling one of the conflicting packages or setting the priority of" >&2
          echo "the preferred package to a value lower than '$priority'" >&2
          exit 1
        fi
        continue
      fi
      ln -s "$package/${file#./}" "$target/$file"
      echo "$priority $file $package" >> $NIX_BUILD_TOP/taken
    done
    cd $NIX_BUILD_TOP
  done
  mkdir -p $target/activate.d $target/libexec $target/etc/profile.d
  ln -sf $interpreter/activate $target/activate
  ln -sf $interpreter/etc/profile.d/* $target/etc/profile.d/
  ln -sf $manifest/activate.d/* $target/activate.d/
  ln -sf $manifest/manifest.lock $target/manifest.lock
  ln -sf $activations/libexec/flox-activations $target/libexec/flox-activations
  requisites > $target/requisites.txt
done
"""

ACTIVATE = r"""
set -eu
fail() { echo "$*" >&2; exit 1; }
env="" mode=dev skip_hook=""
while [ $# -gt 0 ]; do
  case "$1" in
    --env) env=$2; shift 2;;
    --mode) mode=$2; shift 2;;
    --env-cache) export _FLOX_ENV_CACHE="$2"; shift 2;;
    --env-project) export FLOX_ENV_PROJECT="$2"; shift 2;;
    --cuda-detection) shift 2;;
    --add-sbin) shift;;
    --skip-hook-on-activate) skip_hook=1; shift;;
    --) shift; break;;
    *) fail "activate: unknown option '$1'";;
  esac
done
[ -n "$env" ] || fail "activate: --env is required"
case "$mode" in run|dev) ;; *) fail "activate: unknown mode '$mode'";; esac
[ $# -gt 0 ] || fail "activate: a command is required"
if [ -n "${_FLOX_ENV_CACHE:-}" ]; then export FLOX_ENV_CACHE="$_FLOX_ENV_CACHE"; unset _FLOX_ENV_CACHE; fi
export FLOX_ENV="$env" FLOX_ENV_DIRS="$env" FLOX_ACTIVATE_START_SERVICES=false
export PATH="$env/bin${PATH:+:$PATH}"
for script in "$env"/etc/profile.d/*.sh; do . "$script"; done
. "$env/activate.d/envrc"
if [ -z "$skip_hook" ] && [ -e "$env/activate.d/hook-on-activate" ]; then
  . "$env/activate.d/hook-on-activate" 1>&2
fi
exec "$@"
"""


def main() -> None:
    """The command line."""
    arguments = [argument for argument in sys.argv[1:] if argument not in ("-q", "-v", "-vv", "--quiet", "--verbose")]
    if arguments == ["--version"]:
        print(VERSION)
        return
    set_user()
    os.umask(0o022)
    try:
        if arguments[:1] == ["pull"]:
            pull(**parse_pull(arguments[1:]))
        elif arguments[:1] and arguments[0] in CHANGES:
            change(arguments[0], arguments[1:])
        else:
            fail(f"this double of Flox knows `pull`, {', '.join(CHANGES)} and `--version`, not {arguments!r}")
    except FailedError as error:
        fail(str(error))


class FailedError(Exception):
    """What Flox prints after its error mark."""


def fail(text: str) -> NoReturn:
    """Every error of Flox is exit 1 and text on stderr."""
    sys.stderr.write(f"✘ ERROR: {text}\n")
    sys.exit(1)


def set_user() -> None:
    """Flox believes USER and HOME only when USER is the effective user's name; otherwise passwd decides, if it can."""
    if not os.path.exists("/etc/passwd"):
        fail("ENOENT: No such file or directory")
    with contextlib.suppress(KeyError):
        known = pwd.getpwuid(os.geteuid())
        if os.environ.get("USER") != known.pw_name:
            os.environ.update(USER=known.pw_name, HOME=known.pw_dir)
    if "USER" not in os.environ:
        fail("could not determine username from $USER: environment variable not found")
    if "HOME" not in os.environ:
        fail("$HOME not set")


def system_config() -> dict[str, Any]:
    """/etc/flox.toml, which also decides; FLOX_SYSTEM_CONFIG_DIR names another folder, and none when it is empty."""
    folder = os.environ.get("FLOX_SYSTEM_CONFIG_DIR", "/etc")
    file = Path(folder) / "flox.toml"
    if not folder or not file.exists():
        return {}
    try:
        return tomllib.loads(file.read_text())
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"line (\d+), column (\d+)", str(error))
        fail(f"TOML parse error at line {place[1]}, column {place[2]}" if place else f"TOML parse error: {error}")


def parse_pull(arguments: list[str]) -> dict[str, Any]:
    """`pull [--copy] [-f] [-d DIR] [-g N] OWNER/NAME`."""
    options: dict[str, Any] = {"copy": False, "force": False, "folder": Path.cwd(), "generation": None}
    positional = []
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if word == "--copy":
            options["copy"] = True
        elif word in ("-f", "--force"):
            options["force"] = True
        elif word in ("-d", "--dir", "-g", "--generation"):
            if not queue:
                fail(f"expected an argument after `{word}`")
            options["folder" if word in ("-d", "--dir") else "generation"] = queue.pop(0)
        elif word.startswith("-"):
            fail(f"`{word}` is not expected in this context")
        else:
            positional.append(word)
    if (
        len(positional) != 1
        or positional[0].count("/") != 1
        or " " in positional[0]
        or not all(positional[0].split("/"))
    ):
        fail(f"couldn't parse {' '.join(positional)!r}: expected <owner>/<name>")
    if options["generation"] is not None:
        if not options["copy"]:
            fail("The --generation option can only be used when pulling with --copy")
        if not options["generation"].isdigit():
            fail(f"couldn't parse `{options['generation']}`: invalid digit found in string")
        options["generation"] = int(options["generation"])
    options["folder"] = Path(options["folder"])
    options["reference"] = positional[0]
    return options


def pull(*, copy: bool, force: bool, folder: Path, generation: int | None, reference: str) -> None:
    """Fetch an environment and build it; a failure leaves no `.flox`."""
    owner, name = reference.split("/")
    dot_flox = folder / ".flox"
    if dot_flox.exists():
        if not force:
            raise FailedError(f'An environment already exists at "{dot_flox}". Use --force to overwrite.')
        shutil.rmtree(dot_flox)
    programs = load_programs()
    data_folder = directory("FLOX_DATA_DIR", "XDG_DATA_HOME", ".local/share")
    directory("FLOX_CACHE_DIR", "XDG_CACHE_HOME", ".cache")
    base, token = git_url(), floxhub_token()
    (data_folder / "meta").mkdir(parents=True, exist_ok=True)
    with locked(data_folder / "meta" / f"{owner}.lock"):
        meta = Floxmeta(programs["git"], data_folder / "meta" / owner, token)
        meta.fetch(f"{base}/{owner}/floxmeta", reference, name)
        metadata = json.loads(meta.show(name, "metadata.json"))
        if metadata.get("version") != 2:
            raise FailedError(f"Environment metadata of version '{metadata.get('version')}' is not supported")
        live = int(metadata["history"][-1]["current_generation"])
        number = live if generation is None else generation
        try:
            lock = meta.show(name, f"{number}/env/manifest.lock")
            toml = meta.show(name, f"{number}/env/manifest.toml")
        except FailedError:
            raise FailedError(f"Failed to create a new generation: generation {number} not found") from None
    try:
        (dot_flox / "env").mkdir(parents=True)
        (dot_flox / "run").mkdir()
        pointer = (
            {"name": name, "version": 1} if copy else {"owner": owner, "name": name, "floxhub_url": base, "version": 1}
        )
        (dot_flox / "env.json").write_text(json.dumps(pointer))
        (dot_flox / ".gitignore").write_text("run/\ncache/\nlib/\nlog/\n!env/\n")
        (dot_flox / "telemetry_id").touch(mode=0o600)
        (dot_flox / "telemetry_id").write_text(str(uuid.uuid4()))
        if fault() == "relock":
            lock = lock.replace('"priority": 5', '"priority": 6')
        (dot_flox / "env/manifest.lock").write_text(lock)
        (dot_flox / "env/manifest.toml").write_text(toml)
        build(programs, dot_flox, name, lock, token)
    except BaseException:
        shutil.rmtree(dot_flox, ignore_errors=True)
        raise
    if copy:
        sys.stderr.write(f"⚡︎ Created path environment from {reference}.\n\n")
        sys.stderr.write("You can activate this environment with 'flox activate'\n")
    else:
        sys.stderr.write(f"⚡︎ Pulled {reference} from {base}\n")


def change(command: str, arguments: list[str]) -> None:
    """A command for a checkout: that of `-d`, else the active environment's, else that of the current folder."""
    words, options = [], {"-d": "", "-i": "", "-f": ""}
    queue = list(arguments)
    while queue:
        word = queue.pop(0)
        if word in options:
            options[word] = queue.pop(0) if queue else fail(f"expected an argument after `{word}`")
        else:
            words.append(word)
    dot_flox = checkout(options["-d"])
    directory("FLOX_DATA_DIR", "XDG_DATA_HOME", ".local/share")
    name = json.loads((dot_flox / "env.json").read_text())["name"]
    lock = check_lock((dot_flox / "env/manifest.lock").read_text())
    toml = (dot_flox / "env/manifest.toml").read_text()
    if command == "list":
        show(toml, lock, config="-c" in words)
        return
    if command == "edit":
        if not options["-f"]:
            raise FailedError("Can't edit interactively in non-interactive context")
        changed = sys.stdin.read() if options["-f"] == "-" else Path(options["-f"]).read_text()
        if changed == toml:
            sys.stderr.write("! No changes made to environment.\n")
            return
    elif command == "install":
        wanted = {options["-i"] or re.sub(r"-\d.*", "", path.partition("-")[2]) or path: path for path in words}
        known = tomllib.loads(toml).get("install", {})
        for package in [package for package in wanted if package in known]:
            sys.stderr.write(f"! Package with id '{package}' already installed to environment '{name}'\n")
            del wanted[package]
        if not wanted:
            return
        changed = with_packages(toml, wanted)
    else:
        for word in words:
            if word not in tomllib.loads(toml).get("install", {}):
                raise FailedError(f"no package named '{word}' in the manifest")
        changed = "\n".join(line for line in toml.split("\n") if re.split(r"[ .=]", line)[0] not in words)
    replace(dot_flox, name, changed, locked_anew(lock, changed))
    if command == "edit":
        sys.stderr.write(f"{edited(dot_flox, tomllib.loads(toml), tomllib.loads(changed))}\n")
    for word in wanted if command == "install" else words if command == "uninstall" else ():
        done = "✔ '{}' installed to" if command == "install" else "━ '{}' uninstalled from"
        sys.stderr.write(f"{done.format(word)} environment '{name}'\n")


def edited(dot_flox: Path, before: dict[str, Any], now: dict[str, Any]) -> str:
    """What `flox edit` says: what was run already when the environment was activated is not run again."""
    if active() == dot_flox and any(before.get(table) != now.get(table) for table in ("hook", "vars", "profile")):
        return (
            "! Your manifest has changes that cannot be automatically applied.\n\n"
            "Please 'exit' the environment and run 'flox activate' to see these changes."
        )
    return "✔ Environment successfully updated."


def active() -> Path | None:
    """The checkout of the environment that is active."""
    environments = json.loads(os.environ.get("_FLOX_ACTIVE_ENVIRONMENTS") or "[]")
    return Path(environments[0]["environment"]["path"]) if environments else None


def checkout(named: str) -> Path:
    """The checkout's `.flox`, if it is whole."""
    # A folder that only looks like one stops every command in it.
    here = Path(named or ".").absolute() / ".flox"
    if here.exists() and not (here / "env.json").exists():
        raise FailedError(
            f"Found a '.flox' directory at \"{here}\", but it is not a valid flox environment: "
            f"unable to locate an 'env.json' in it."
        )
    if not named and (of_active := active()):
        return of_active
    if not here.exists():
        raise FailedError("Did not find an active environment or an environment in the current directory.")
    return here


def show(toml: str, lock: dict[str, Any], *, config: bool) -> None:
    """`flox list`, and with -c the manifest."""
    mine = [package for package in lock["packages"] if package["system"] == MACHINE]
    if config:
        sys.stdout.write(toml)
    elif not mine:
        sys.stderr.write(
            f"! No packages are installed for your current system ('{MACHINE}').\n\n"
            "You can see the whole manifest with 'flox list --config'.\n"
        )
    for package in () if config else mine:
        what = package.get("store_path") or f"{package['attr_path']} ({package['version']})"
        print(f"{package['install_id']}: {what}")


def with_packages(toml: str, wanted: dict[str, str]) -> str:
    """The manifest with some packages more, by their ids."""
    key = {package: "store-path" if path.startswith("/nix/store/") else "pkg-path" for package, path in wanted.items()}
    lines = "".join(f'{package}.{key[package]} = "{path}"\n' for package, path in wanted.items())
    if "[install]\n" in toml:
        return toml.replace("[install]\n", f"[install]\n{lines}", 1)
    return f"{toml}\n[install]\n{lines}"


def locked_anew(lock: dict[str, Any], toml: str) -> str:
    """The lock of a changed manifest; for a package with a name the catalog would be asked."""
    try:
        manifest = tomllib.loads(toml)
    except tomllib.TOMLDecodeError as error:
        raise FailedError(f"Failed to parse contents of manifest: {error}") from None
    packages = []
    for package, descriptor in manifest.get("install", {}).items():
        known = [locked for locked in lock["packages"] if locked["install_id"] == package]
        if lock["manifest"].get("install", {}).get(package) == descriptor:
            packages += known
        elif "store-path" in descriptor:
            for system in manifest.get("options", {}).get("systems") or [MACHINE]:
                taken = {"install_id": package, "store_path": descriptor["store-path"], "system": system}
                packages.append({**taken, "priority": descriptor.get("priority", 5)})
        else:
            url = f"{(os.environ.get('FLOX_CATALOG_URL') or of_hub('')).rstrip('/')}/api/v1/catalog/resolve"
            text = f"Communication Error: error sending request for url ({url})"
            raise FailedError(f"catalog error: {text}")
    return json.dumps({**lock, "manifest": manifest, "packages": packages})


def replace(dot_flox: Path, name: str, toml: str, lock: str) -> None:
    """Build the changed environment, and then take it for the old one."""
    cache = directory("FLOX_CACHE_DIR", "XDG_CACHE_HOME", ".cache") / "process"
    cache.mkdir(exist_ok=True)
    new, old = Path(tempfile.mkdtemp(dir=cache)), dot_flox / ".env.old"
    (new / "manifest.toml").write_text(toml)
    (new / "manifest.lock").write_text(lock)
    build(load_programs(), dot_flox, name, lock, os.environ.get("FLOX_FLOXHUB_TOKEN"))
    (dot_flox / "env").rename(old)
    shutil.move(new, dot_flox / "env")
    shutil.rmtree(old)


def check_lock(lock_text: str) -> dict[str, Any]:
    """The lock, if this Flox knows its form."""
    try:
        lock: dict[str, Any] = json.loads(lock_text)
        manifest = lock["manifest"]
        if lock["lockfile-version"] != 1:
            raise ValueError(f"unsupported lockfile version {lock['lockfile-version']}")
        schema = manifest.get("schema-version")
        if (schema is None and manifest["version"] != 1) or (schema is not None and schema not in SCHEMAS):
            raise ValueError(f"manifest had invalid schema version '{schema or manifest['version']}'")
        unknown = next((key for key in manifest if key not in MANIFEST), None)
        if unknown:
            raise ValueError(f"unknown field `{unknown}`, expected one of {', '.join(f'`{key}`' for key in MANIFEST)}")
    except (ValueError, LookupError, TypeError) as error:
        raise FailedError(f"failed to parse lockfile JSON: {error} at line 1 column 1") from None
    for package in lock["packages"]:
        if package["system"] == MACHINE and package["install_id"] not in manifest.get("install", {}):
            raise FailedError(f"Could not find package with install_id '{package['install_id']}' in manifest")
    check_variables(manifest.get("vars", {}))
    return lock


def check_variables(variables: dict[str, str]) -> None:
    """`[vars]` may use each other, but not in a circle."""
    uses = {
        name: [other for other in variables if re.search(rf"\$\{{?{re.escape(other)}\b", text)]
        for name, text in variables.items()
    }

    def follow(path: list[str]) -> None:
        for other in uses[path[-1]]:
            if other in path:
                circle = " → ".join([*path[path.index(other) :], other])
                raise FailedError(f"Found a reference cycle in the '[vars]' section: {circle}.")
            follow([*path, other])

    for name in variables:
        follow([name])


def build(programs: dict[str, str], dot_flox: Path, name: str, lock_text: str, token: str | None) -> None:
    """Realise the lock's packages for this system and make `run/<system>.<name>-{run,dev}`."""
    kind, _, argument = fault().partition(":")
    if kind == "slow":
        time.sleep(float(argument))
    elif kind == "fail":
        raise FailedError("Failed to construct environment: error: \x1b[31mthe moon is in the way\x1b[0m")
    elif kind == "leak":
        subprocess.Popen([f"{programs['busybox']}/bin/sleep", "600"], start_new_session=True)
    elif kind == "no-links":
        return
    lock = check_lock(lock_text)
    systems = lock["manifest"].get("options", {}).get("systems") or [MACHINE]
    if MACHINE not in systems:
        raise FailedError(f"This environment is not yet compatible with your system ({MACHINE}).")
    if "sandbox = false" in os.environ.get("NIX_CONFIG", "") and not os.path.exists("/bin/sh"):
        # The builder of one of its derivations.
        raise FailedError(
            "Failed to build environment:\n\nmanifest> error: executing '/bin/sh': No such file or directory"
        )
    nix = Nix(programs["nix"])
    mine = [package for package in lock["packages"] if package["system"] == MACHINE]
    nix.realise_all(mine, lock["manifest"], token)
    packages = [
        {"path": path, "priority": package["priority"]}
        for package in mine
        for path in linked_paths(package, lock["manifest"])
    ]
    # The real one's closure holds it; a test payload may leave it to the binary cache.
    nix.substitute([programs["activations"]])
    scratch = Path(tempfile.mkdtemp(dir=directory("FLOX_CACHE_DIR", "XDG_CACHE_HOME", ".cache")))
    parameters, expression = scratch / "parameters.json", scratch / "environment.nix"
    given = {
        "busybox": programs["busybox"],
        "activations": programs["activations"],
        "packages": sorted(packages, key=lambda package: package["priority"]),
        "lock": lock_text,
        "scripts": {"interpreter": INTERPRETER, "manifest": MANIFEST_BUILD, "environment": BUILD, "activate": ACTIVATE},
    }
    parameters.write_text(json.dumps(given))
    expression.write_text(ENVIRONMENT)
    nix.build(expression, parameters, dot_flox / f"run/{MACHINE}.{name}")
    if kind == "dot-names":
        for mode in ("run", "dev"):
            new = dot_flox / f"run/{MACHINE}.{name}-{mode}"
            (dot_flox / f"run/{MACHINE}.{name}.{mode}").symlink_to(os.readlink(new))
            new.unlink()


def is_custom(package: dict[str, Any], manifest: dict[str, Any]) -> bool:
    """Whether a package is one of a user's own catalog: `catalog/name`, where a first part with a dot is Nixpkgs'."""
    first, slash, _ = str(manifest["install"][package["install_id"]].get("pkg-path", "")).partition("/")
    return bool(slash) and "." not in first


def all_paths(package: dict[str, Any]) -> list[str]:
    """The store paths of all outputs."""
    if "store_path" in package:
        return [package["store_path"]]
    if "outputs" not in package:
        raise FailedError(f"Failed to realise '{package['install_id']}':\n\nflakes are built from source")
    return list(package["outputs"].values())


def linked_paths(package: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    """The store paths that become part of the environment: by the manifest's schema, all outputs or the chosen ones."""
    if "store_path" in package:
        return [package["store_path"]]
    chosen = list(package["outputs"])
    if "schema-version" in manifest:
        descriptor = manifest["install"][package["install_id"]]
        chosen = descriptor.get("outputs") or package.get("outputs_to_install") or ["out"]
        chosen = list(package["outputs"]) if chosen == "all" else chosen
    return [path for output, path in package["outputs"].items() if output in chosen and output != "stubs"]


def missing(packages: list[dict[str, Any]]) -> list[str]:
    """What is not on disk of these packages."""
    return [path for package in packages for path in all_paths(package) if not os.path.lexists(path)]


def store_locations(packages: list[dict[str, Any]], token: str | None) -> dict[str, Any]:
    """Where the catalog's API says that published packages are."""
    base = (os.environ.get("FLOX_CATALOG_URL") or of_hub("")).rstrip("/")
    url = f"{base}/api/v1/catalog/store"
    headers = {"Content-Type": "application/json", **({"Authorization": f"bearer {token}"} if token else {})}
    body = json.dumps({"outpaths": [path for package in packages for path in all_paths(package)]}).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
            items: dict[str, Any] = json.loads(answer.read())["items"]
            return items
    except urllib.error.HTTPError as error:
        text = f"{error.code} {error.reason}"
    except (OSError, ValueError, LookupError):
        text = f"Communication Error: error sending request for url ({url})"
    raise FailedError(f"Failed to build environment:\n\nUnexpected error calling the catalog client: {text}")


class Nix:
    """The store."""

    def __init__(self, folder: str) -> None:
        self._nix = [f"{folder}/nix", "--extra-experimental-features", "nix-command flakes"]

    def realise_all(self, packages: list[dict[str, Any]], manifest: dict[str, Any], token: str | None) -> None:
        """Have all outputs of all packages in the store. What is there on disk is not looked at again."""
        custom = [package for package in packages if is_custom(package, manifest)]
        if missing(custom):
            self._copy(custom, store_locations(custom, token))
        others = [package for package in packages if package not in custom]
        paths = missing(others)
        if not paths or self.substitute(paths):
            return
        for package in others:
            paths = missing([package])
            if not paths or self.substitute(paths):
                continue
            name = package["install_id"]
            if "store_path" in package:
                raise FailedError(f"Failed to realise '{name}':\n\n'{package['store_path']}' is not available")
            self._build_from_source(package)

    def substitute(self, paths: list[str]) -> bool:
        """What Nix' caches have, or what Nix builds of it."""
        return self._run("build", "--no-link", "--keep-going", *paths).returncode == 0

    def _build_from_source(self, package: dict[str, Any]) -> None:
        with contextlib.suppress(OSError), BUILT.open("a") as file:
            file.write(f"{package['install_id']}\n")
        url = package.get("locked_url", "")
        if not url.startswith("https://github.com/flox/nixpkgs?rev="):
            raise FailedError(f"unsupported lockfile URL for v1 lockfile: must begin with {NIXPKGS}")
        revision = url.removeprefix(f"{NIXPKGS}?rev=")
        installable = f"flox-nixpkgs:v0/flox/{revision}#legacyPackages.{MACHINE}.{package['attr_path']}^*"
        options = ("--no-write-lock-file", "--no-update-lock-file", "--option", "pure-eval", "true", "--no-link")
        done = self._run("build", *options, installable)
        if done.returncode:
            raise FailedError(f"Failed to realise '{package['install_id']}':\n\n{done.stderr}")

    def _copy(self, packages: list[dict[str, Any]], locations: dict[str, Any]) -> None:
        for package in packages:
            name, paths = package["install_id"], missing([package])
            known = [store["url"] for path in paths for store in locations.get(path) or []]
            said = ""
            for url in dict.fromkeys(known):
                done = self._run("copy", "--from", url, *paths)
                if done.returncode == 0:
                    break
                said = done.stderr
                if "lacks a signature by a trusted key" in said or "lacks a valid signature" in said:
                    raise FailedError(
                        f"Package '{name}' is not signed by a trusted key.\n"
                        "See https://flox.dev/docs/customer/signing-keys/ for more information."
                    )
            else:
                if not self.substitute(paths):
                    raise FailedError(
                        f"Couldn't download package '{name}' from the following locations\n\n{said}"
                        if known
                        else f"Can't find download location for package '{name}'.\n"
                        "You may not be authenticated or package may have been deleted.\n"
                        "Try logging in with 'flox auth login'"
                    )

    def build(self, expression: Path, parameters: Path, link: Path) -> None:
        """Build both outputs of the environment: links `<link>-run` and `<link>-dev`, which are indirect roots."""
        said = ""
        for _ in range(3):
            done = self._run(
                "build", "--offline", "--out-link", str(link), "--file", str(expression), "--argstr", "parameters",
                str(parameters), "^*",
            )  # fmt: skip
            if done.returncode == 0:
                return
            said = done.stderr
            sys.stderr.write(f"WARN flox_rust_sdk::providers::buildenv: build failed, trying again: {said}\n")
        start = said.find("Resolve by uninstalling")
        if start >= 0:
            raise FailedError(f"Failed to build environment:\n\n{said[max(0, start - 300) : start + 150]}")
        raise FailedError(f"Failed to construct environment: {said}")

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self._nix, *arguments], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )


class Floxmeta:
    """The bare clone of an owner's repository."""

    def __init__(self, git_folder: str, folder: Path, token: str | None) -> None:
        # The token is read by a helper, from the environment: it stands in no argument.
        helper = '!f() { echo username=oauth; echo "password=$FLOX_FLOXHUB_TOKEN"; }; f'
        # Without a token, too: after a challenge git then sends the user's name and an empty password.
        credentials = ["-c", "credential.helper=", "-c", f"credential.helper={helper}"]
        self._git = [f"{git_folder}/git", *credentials]
        self._folder = folder
        self._env = {
            **os.environ,
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_SYSTEM": "/dev/null",
            "GIT_TERMINAL_PROMPT": "0",
        }
        self._env.pop("FLOX_FLOXHUB_TOKEN", None)
        if token:
            self._env["FLOX_FLOXHUB_TOKEN"] = token

    def fetch(self, url: str, reference: str, branch: str) -> None:
        """Clone the environment's branch, and then fetch it: two requests."""
        self._must(reference, "clone", "--quiet", "--bare", "--single-branch", "--no-tags", "--branch", branch, url,
                   str(self._folder))  # fmt: skip
        self._must(reference, "--git-dir", str(self._folder), "fetch", "--quiet", url, f"+{branch}:{branch}")

    def _must(self, reference: str, *arguments: str) -> None:
        done = self._run(*arguments)
        if done.returncode == 0:
            return
        said = done.stderr
        if any(
            text in said for text in ("DENIED", "Authentication failed", "Permission denied", "could not read Username")
        ):
            raise FailedError(
                "Access denied to the remote environment.\n\nThis can happen if the remote is not owned by you\n"
                "or the owner did not grant you access.\nPlease check the spelling of the remote environment\n"
                "and make sure that you have access to it."
            )
        starts = ("fatal: couldn't find remote ref ", "warning: Could not find remote branch ", "fatal: Remote branch ")
        if any(line.startswith(starts) for line in said.splitlines()):
            raise FailedError(f"The environment {reference} does not exist.")
        raise FailedError(
            "Failed to open environment metadata: Failed to clone environment: Git failed with: "
            f"[exit code {done.returncode}]\n  stdout:\n  stderr: {said.strip()}\n\n"
            "Please ensure that you have network connectivity\nand access to FloxHub"
        )

    def show(self, branch: str, path: str) -> str:
        """A file at the branch's tip."""
        done = self._run("--git-dir", str(self._folder), "show", f"refs/heads/{branch}:{path}")
        if done.returncode:
            raise FailedError(f"Failed to read {path}: {done.stderr}")
        return done.stdout

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [*self._git, *arguments]
        return subprocess.run(
            command, env=self._env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )


def hub_url() -> str:
    """The hub."""
    named = os.environ.get("FLOX_FLOXHUB_URL") or system_config().get("floxhub_url") or "https://hub.flox.dev"
    return str(named).rstrip("/")


def of_hub(path: str) -> str:
    """What programs ask of the hub: at api.<the rest> for Flox' own hubs, at the hub itself for any other."""
    scheme, _, host = hub_url().partition("://")
    if host.startswith("hub.") and host.endswith("flox.dev"):
        return f"{scheme}://api.{host.removeprefix('hub.')}{path}"
    return f"{hub_url()}{path}"


def git_url() -> str:
    """Where the repositories are."""
    override = os.environ.get("_FLOX_FLOXHUB_GIT_URL")
    if override:
        sys.stderr.write(
            f"! Using {override} as the FloxHub git endpoint.\n"
            "'$_FLOX_FLOXHUB_GIT_URL' overrides the git endpoint and is intended for testing only.\n\n"
        )
        return override.rstrip("/")
    return of_hub("/git")


def floxhub_token() -> str | None:
    """FLOX_FLOXHUB_TOKEN: a JWT or an opaque `flox_...`; told and not used when malformed, used when expired."""
    token = os.environ.get("FLOX_FLOXHUB_TOKEN") or system_config().get("floxhub_token")
    token = token.strip() if token else None
    expired = False
    if token and not token.startswith("flox_"):
        try:
            header, claims = (
                json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in token.split(".")[:2]
            )
            if header["alg"] not in ALGORITHMS or token.count(".") != 2 or "https://flox.dev/handle" not in claims:
                raise ValueError("InvalidToken")
            expired = claims["exp"] < time.time()
        except (ValueError, LookupError, TypeError):
            sys.stderr.write("✘ ERROR: Your FloxHub token is invalid: InvalidToken\nYou may need to log in again.\n")
            token = None
    if token is None or expired:
        sys.stderr.write("! You are not logged in to FloxHub. Run 'flox auth login' to log in.\n")
    return token


def directory(variable: str, xdg: str, below_home: str) -> Path:
    """One of Flox' folders, made if it is not there."""
    named = os.environ.get(variable)
    if named:
        folder = Path(named)
    else:
        folder = Path(os.environ.get(xdg) or os.path.join(os.environ["HOME"], below_home)) / "flox"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FailedError(f"Could not create {folder}: {error.strerror}") from error
    return folder


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Flox' own lock on an owner's clone."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def load_programs() -> dict[str, str]:
    """Where the store's programs are."""
    file = Path(__file__).resolve().parents[1] / "share/flox-double.json"
    if not file.exists():
        raise FailedError(f"this double of Flox has no {file}")
    loaded: dict[str, str] = json.loads(file.read_text())
    return loaded


def fault() -> str:
    """How to misbehave; empty: not at all."""
    try:
        return FAULT_FILE.read_text().strip()
    except OSError:
        return os.environ.get("FLOX_DOUBLE_FAULT", "")


if __name__ == "__main__":
    main()
