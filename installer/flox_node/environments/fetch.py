"""One fetch, whoever asks: a realisation that goes on when those who wait for it give up, and that their retries join.

It runs as the transient unit `flox-realise-<key>.service` in `flox-realise.slice`, with limits of memory, CPU, I/O and
time; without systemd it is a session of its own. The lock `fetch-<key>` is held as long as it runs, and its state file
says how far it is and how it ended. The token reaches it through a pipe and lies in no file.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from flox_node.environments import events, index, locks, tokens, work
from flox_node.environments.access import Access
from flox_node.environments.deadline import Deadline
from flox_node.environments.errors import KINDS, BuildFailedError, DeadlineError, FetchingError, of_the_node
from flox_node.environments.index import Question, Resolution
from flox_node.environments.paths import Paths
from flox_node.environments.reference import Reference
from flox_node.errors import FloxNodeError, OutsideError
from flox_node.state import policy as policies
from flox_node.state.policy import Policy

SLICE = "flox-realise.slice"
_POLL_S = 0.05
_START_S = 20.0  # a busy node takes its time to start a process
_TELL_S = 0.2  # no state file more often than that
_SILENCE_S = 5.0  # who waits longer is told why
_KEPT_S = 86400.0
_MIB = 1 << 20
_STEPS = {
    "wait": "waits for its turn behind other fetches",
    "read": "is read from FloxHub",
    "fetch": "is fetched",
    "build": "is being put together",
    "publish": "is being put together",
}


@dataclass(frozen=True)
class State:
    """How far a fetch is, as its state file says. Sizes are unpacked bytes, `began_at` is seconds since the epoch.

    Ended, it has either a resolution or a refusal (an error's code, cause and remedy).
    """

    id: str
    step: str = "wait"
    began_at: float = 0.0
    done: int = 0
    expected: int = 0
    resolution: dict[str, Any] | None = None
    refusal: dict[str, str] | None = None

    @property
    def ended(self) -> bool:
        """Whether it came to its end; a killed one never did."""
        return self.resolution is not None or self.refusal is not None


def join(
    question: Question, access: Access, deadline: Deadline, tell: Callable[[str], None] = lambda _: None
) -> Resolution:
    """Wait for the fetch that answers a question; start it where none runs. `tell` hears how far it is, now and then.

    Raises:
        FetchingError: it still runs at the deadline; the text says how far it is.
        FloxNodeError: why it failed.
    """
    paths, key = access.paths, question.key
    joined, mine = None, False
    silent_until = time.monotonic() + _SILENCE_S
    try:
        while True:
            found = index.lookup(question, paths)
            if found is not None:
                return found
            state = read(key, paths)
            if running(key, paths):
                joined = state.id if state else joined
            elif state is not None and state.id == joined and (mine or not _by_the_others_token(state)):
                break
            else:
                with locks.hold(paths.locks, f"start-{key}", deadline):
                    if not running(key, paths):
                        joined, mine = _start(question, access, deadline), True
            while running(key, paths):
                if time.monotonic() > silent_until:
                    tell(_told(read(key, paths), question, paths))
                    silent_until = time.monotonic() + _SILENCE_S
                time.sleep(min(_POLL_S, deadline.left()))
    except DeadlineError as error:
        raise FetchingError(_told(read(key, paths), question, paths)) from error
    return _outcome(state)


def running(key: str, paths: Paths) -> bool:
    """Whether this fetch runs."""
    return locks.is_held(paths.locks, f"fetch-{key}")


def read(key: str, paths: Paths) -> State | None:
    """How far a fetch is, or how the last one of this key ended."""
    try:
        with open(_state_file(key, paths), "rb") as file:
            return State(**json.loads(file.read()))
    except (OSError, ValueError, TypeError):
        return None


def sweep(paths: Paths) -> None:
    """Remove what fetches of former days left: states that nobody asks for, and their locks."""
    with contextlib.suppress(FileNotFoundError), os.scandir(paths.fetches) as entries:
        for entry in entries:
            key = entry.name.partition(".")[0]
            with contextlib.suppress(FileNotFoundError):
                if time.time() - entry.stat().st_mtime < _KEPT_S or running(key, paths):
                    continue
                os.unlink(entry.path)
                # Whoever opened one of them just now starts at worst a fetch that finds the environment's lock held.
                for name in ("start", "fetch"):
                    os.unlink(f"{paths.locks}/{name}-{key}.lock")


def run(key: str, paths: Paths) -> None:
    """Do the fetch whose order comes through the pipe of this key. This is the unit's whole life."""
    tokens.keep_in_memory()
    order = _receive(key, paths)
    raw = order["question"]
    question = Question(**{**raw, "reference": Reference(**raw["reference"])})
    _run(str(order["id"]), question, order["token"], paths)


def _run(identity: str, question: Question, token: str | None, paths: Paths) -> None:
    from flox_node.environments import realise  # programs are run from here on

    with locks.hold(paths.locks, f"fetch-{question.key}", Deadline.after(_START_S)):
        telling = _Telling(question.key, identity, paths)
        name = index.digest(question.hub, question.reference.environment)
        error: FloxNodeError | None = None
        try:
            with open(paths.policy, "rb") as file:
                access = Access(policies.parse(file.read()), paths, token)
        except FileNotFoundError:
            access = Access(Policy(), paths, token)
        except FloxNodeError as bad:
            telling.end(None, bad)
            return
        deadline = Deadline.after(access.policy.realise.time_s)
        resolution = None
        try:
            with _slot(int(access.policy.realise.fetches), paths, deadline), work.locked(name, paths, deadline):
                resolution = index.lookup(question, paths) or realise.realise(question, access, deadline, telling)
        except FloxNodeError as known:
            error = known
        except OSError as failed:
            error = of_the_node(failed)
        except Exception as bug:
            import traceback

            traceback.print_exc()
            error = FloxNodeError(f"flox-node failed with a {type(bug).__name__}.")
        telling.end(resolution, error)
        events.log(
            "fetch",
            paths,
            level="warning" if error else "info",  # the sandbox that gets it tells it as an error, with its pod
            environment=question.reference.environment,
            generation=resolution.generation if resolution else question.reference.generation,
            store_path=resolution.store_path if resolution else None,
            code=error.code if error else None,
            message=error.cause if error else None,
            bytes=telling.state.expected,
            phases=telling.phases(),
        )


class _Telling:
    """Writes the state file, and takes the time of each step."""

    def __init__(self, key: str, identity: str, paths: Paths) -> None:
        self._file = _state_file(key, paths)
        self.state = State(identity, began_at=time.time())
        self._times = [("wait", time.monotonic())]
        self._told_at = 0.0
        self._write()

    def step(self, name: str) -> None:
        self._times.append((name, time.monotonic()))
        self._change(step=name)

    def bytes(self, done: int, expected: int) -> None:
        if time.monotonic() - self._told_at > _TELL_S:
            self._change(done=done, expected=expected)
        else:
            self.state = State(**{**asdict(self.state), "done": done, "expected": expected})

    def end(self, resolution: Resolution | None, error: FloxNodeError | None) -> None:
        self._times.append(("end", time.monotonic()))
        if error is not None:
            self._change(refusal={"code": error.code, "cause": error.cause, "remedy": error.remedy})
        elif resolution is not None:
            self._change(resolution=asdict(resolution))

    def phases(self) -> dict[str, int]:
        """The milliseconds of each step."""
        pairs = zip(self._times, self._times[1:], strict=False)
        return {name: round((after - at) * 1000) for (name, at), (_, after) in pairs}

    def _change(self, **changes: Any) -> None:
        self.state = State(**{**asdict(self.state), **changes})
        self._write()

    def _write(self) -> None:
        self._told_at = time.monotonic()
        temporary = f"{self._file}.tmp"
        with contextlib.suppress(OSError):  # a full /run costs the progress, not the fetch
            with open(temporary, "w", encoding="utf-8", opener=_private) as file:
                json.dump(asdict(self.state), file)
            os.rename(temporary, self._file)


@contextlib.contextmanager
def _slot(count: int, paths: Paths, deadline: Deadline) -> Iterator[None]:
    """One of so many places for fetches that run at once."""
    while True:
        for number in range(count):
            slot = locks.hold(paths.locks, f"fetch-slot-{number}", Deadline.after(0))
            try:
                slot.__enter__()
            except DeadlineError:
                continue
            try:
                yield
            finally:
                slot.__exit__(None, None, None)
            return
        time.sleep(min(_POLL_S, deadline.left()))


def _outcome(state: State) -> Resolution:
    if state.resolution is not None:
        return Resolution(**state.resolution)
    refusal = state.refusal
    if refusal is None:
        raise BuildFailedError(
            "its fetch was ended before it was done.", remedy="The kubelet tries again; what was fetched stays."
        )
    kinds: tuple[type[FloxNodeError], ...] = (*KINDS, OutsideError)
    kind = next((kind for kind in kinds if kind.code == refusal["code"]), FloxNodeError)
    raise kind(refusal["cause"], remedy=refusal["remedy"])


def _by_the_others_token(state: State) -> bool:
    """Whether a fetch that somebody else started failed by what its token may not: ours may."""
    return state.refusal is not None and state.refusal["code"] in ("access-denied", "token-expired", "not-built")


def _told(state: State | None, question: Question, paths: Paths) -> str:
    if state is None or state.ended:
        return "it is not on the node yet."
    spent = max(0.0, time.time() - state.began_at)
    text = f"it {_STEPS.get(state.step, 'is fetched')}, since {spent:.0f} s"
    if state.step == "fetch" and state.expected:
        share = min(1.0, state.done / state.expected)
        text += f": {state.done / _MIB:.1f} of {state.expected / _MIB:.1f} MiB are here ({share:.0%})"
        if state.done:
            text += f", about {spent * (1 - share) / share:.0f} s are left"
    last = index.last_took(question.reference.environment, paths)
    if last is not None:
        text += f"; its last fetch on this node took {last:.0f} s"
    return text + "."


# Starting it


def _start(question: Question, access: Access, deadline: Deadline) -> str:
    """Start the fetch; its id. The caller holds the lock under which one starts at a time."""
    paths, key = access.paths, question.key
    identity = uuid.uuid4().hex
    os.makedirs(paths.fetches, mode=0o700, exist_ok=True)
    if not _start_unit(identity, question, access):
        _start_session(identity, question, access)
    until = Deadline.after(min(_START_S, deadline.left()))
    while (state := read(key, paths)) is None or state.id != identity:
        time.sleep(min(_POLL_S / 5, until.left()))
    return identity


def _start_unit(identity: str, question: Question, access: Access) -> bool:
    """As a transient unit; False where no systemd answers."""
    from flox_node.host.files import HostFiles
    from flox_node.host.systemd import BUS_SOCKET, DbusSystemd

    paths, limits = access.paths, access.policy.realise
    if not os.path.exists(paths.on_disk(BUS_SOCKET)):
        return False
    pipe = _pipe(question.key, paths)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(pipe)
    os.mkfifo(pipe, 0o600)
    try:
        DbusSystemd(HostFiles(paths.root or "/")).run_now(
            f"flox-realise-{question.key}.service",
            [paths.realise_tool, "--fetch", question.key],
            f"Fetch {question.reference} for Flox pods",
            slice=SLICE,
            memory=int(limits.memory_mib * _MIB),
            seconds=limits.time_s + 60,
        )
        order = {"id": identity, "question": asdict(question), "token": access.token}
        _send(pipe, json.dumps(order).encode(), Deadline.after(_START_S))
    except (OutsideError, DeadlineError):
        return False
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(pipe)
    return True


def _start_session(identity: str, question: Question, access: Access) -> None:
    """As a session of its own, which neither the end of this process nor of its group reaches."""
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    status = 1
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        null = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(null, stream)
        for name in os.listdir("/proc/self/fd"):  # above all our locks: they must not live on with it
            if int(name) > 2:
                with contextlib.suppress(OSError):
                    os.close(int(name))
        _run(identity, question, access.token, access.paths)
        status = 0
    finally:
        os._exit(status)


def _send(pipe: str, data: bytes, deadline: Deadline) -> None:
    while True:
        try:
            descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            break
        except OSError:  # ENXIO: nobody reads yet
            time.sleep(min(_POLL_S / 5, deadline.left()))
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)  # smaller than a pipe


def _receive(key: str, paths: Paths) -> dict[str, Any]:
    import select

    descriptor = os.open(_pipe(key, paths), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        data = b""
        until = Deadline.after(_START_S)
        while True:
            select.select([stream], [], [], until.left())
            piece = stream.read(1 << 16)
            if piece:
                data += piece
            elif data:
                loaded: dict[str, Any] = json.loads(data)
                return loaded
            else:
                time.sleep(min(_POLL_S / 5, until.left()))  # nobody has opened the other end yet


def _pipe(key: str, paths: Paths) -> str:
    return f"{paths.fetches}/{key}.order"


def _state_file(key: str, paths: Paths) -> str:
    return f"{paths.fetches}/{key}.json"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
