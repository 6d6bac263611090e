"""The editor against real daemons: what it writes is accepted, the handler is there, nothing else is different."""

import random

import pytest

from flox_node.containerd.config.editor import Handler, Patch, register, remove
from flox_node.errors import RefusedError
from tests.conftest import FULL
from tests.containerd.dumps import EXAMPLES, RELEASES, Dump, dump_bytes, version
from tests.unit.containerd.corpus import files

SHARE = 1 if FULL else 8  # one file of so many


def complaint(before: Dump, after: Dump, patch: Patch) -> str | None:
    """What is wrong with the daemon's view of a patched file; None if nothing is."""
    if after.error:
        return f"refused: {after.error}"
    flox = after.handlers.get("flox")
    if flox is None:
        return "the handler is not effective"
    if after.cri_is_dead:
        return f"the default runtime {after.default_runtime} is gone"
    wanted = {
        "runtime_type": "io.containerd.runc.v2",
        "base_runtime_spec": patch.inherited.get("base_runtime_spec", ""),
        "runtime_path": "",
        "pod_annotations": ["flox.dev/*"],
        "options": {
            "BinaryName": "/opt/flox-node/bin/flox-runtime",
            **{name: value for name, value in patch.inherited.get("options", {}).items() if value},
        },
    }
    if flox != wanted:
        return f"the handler is {flox}, not {wanted}"
    old, new = _meaning(before), _meaning(after)
    if old != new:
        return f"other settings differ: {[key for key in old if old[key] != new.get(key)]}"
    return None


def _meaning(dump: Dump) -> dict[str, object]:
    """Everything but our handler, with runc's empty options as absent: 1.x prints them only for its built-in runc."""
    rest = dump.but("flox")
    others = {name: table for name, table in dump.handlers.items() if name != "flox"}
    plugins = {name: table for name, table in rest.pop("plugins").items() if name not in ("cri", dump.plugin)}
    section = dict(dump.data["plugins"][dump.plugin])
    containerd = {key: value for key, value in section.pop("containerd").items() if key != "runtimes"}
    if dump.release.startswith("1."):
        plugins.pop("io.containerd.grpc.v1.cri", None)
    return {**rest, **plugins, "handlers": others, "containerd": containerd, "cri": section}


@pytest.mark.parametrize("release", RELEASES)
def test_a_real_daemon_finds_the_handler_and_every_other_setting_as_before(release: str) -> None:
    containerd = version(release)
    wrong: list[str] = []
    patched = 0
    for path in files()[::SHARE]:
        source = path.read_bytes()
        before = dump_bytes(release, source)
        if before.error or before.cri_is_dead:
            continue
        try:
            patch = register(source, Handler(), containerd, adopt=True)
        except RefusedError as error:
            # Rightly, and the dump shows neither: it does not know of disabled plugins, nor what can be appended.
            if "is disabled" not in error.cause and "is an inline table" not in error.cause:
                wrong.append(f"{path.name}: refused although the daemon takes it: {error.cause}")
            continue
        patched += 1
        if why := complaint(before, dump_bytes(release, patch.result), patch):
            wrong.append(f"{path.name}: {why}")
    assert patched
    assert wrong == []


def mutate(rng: random.Random, source: bytes) -> bytes:
    """One file of the corpus, damaged as editors, scripts and people damage files."""
    lines = source.splitlines(keepends=True) or [b""]
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines)) if lines else 0
        match rng.choice(("drop", "twice", "swap", "newline", "crlf", "byte", "comment", "version", "cut", "indent")):
            case "drop" if len(lines) > 1:
                del lines[at]
            case "twice":
                lines.insert(at, lines[at])
            case "swap":
                other = rng.randrange(len(lines))
                lines[at], lines[other] = lines[other], lines[at]
            case "newline":
                lines[-1] = lines[-1].rstrip(b"\r\n")
            case "crlf":
                lines = [line.rstrip(b"\r\n") + b"\r\n" for line in lines]
            case "byte" if lines[at]:
                column = rng.randrange(len(lines[at]))
                lines[at] = (
                    lines[at][:column] + bytes([rng.choice(b"\t\r\x00\xff\xef#\"'[]={}\\.,x2\n ")]) + lines[at][column:]
                )
            case "comment":
                lines.insert(at, b"# [plugins.x] flox \xc3\xa4\n")
            case "version":
                lines = [b"version = %d\n" % rng.choice((1, 2, 3)), *(x for x in lines if not x.startswith(b"version"))]
            case "cut":
                lines = lines[: at + 1]
            case "indent":
                lines[at] = rng.choice((b"\t", b"  ")) + lines[at]
    return b"".join(lines)


@pytest.mark.parametrize("release", RELEASES)
def test_a_mutated_file_that_the_daemon_took_is_never_one_that_it_refuses_after_the_patch(release: str) -> None:
    seed = random.SystemRandom().getrandbits(32) if FULL else 1
    print(f"seed {seed}")
    rng = random.Random(f"{seed} {release}")
    containerd = version(release)
    sources = [path.read_bytes() for path in files()]
    wrong: list[tuple[str, bytes]] = []
    patched = 0
    for _ in range(EXAMPLES):
        source = mutate(rng, rng.choice(sources))
        try:
            patch = register(source, Handler(), containerd, adopt=True)
        except RefusedError:
            continue
        if remove(patch.result, Handler(), containerd).result != source:
            wrong.append(("remove does not restore", source))
        before = dump_bytes(release, source)
        if before.error or before.cri_is_dead:
            continue
        patched += 1
        if why := complaint(before, dump_bytes(release, patch.result), patch):
            wrong.append((why, source))
    assert patched >= 5
    assert wrong == []
