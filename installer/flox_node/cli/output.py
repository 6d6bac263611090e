"""The output layer: what a command answers, and the one place that prints it.

A command is a function that returns a `Result`, and `command` adds it to an app:

    @command(app, example="flox-node thing list --all")
    def list_things(everything: Annotated[bool, typer.Option("--all")] = False) -> Result:
        '''The first sentence stands in the list of commands.'''
        from flox_node.things import find        # what is slow to import stands in the command

        found = find(everything)
        return Result({"things": found}, "\\n".join(found) or "There is nothing.")

It prints nothing itself, catches no error to print it, and knows no `--json`: every command has `--json`, `-v` and `-q`
from here. What happens on the way is `say`d. With `--json` the standard output is always one object, also for a call
that was wrong: `exit_code`, `error` (null, or the stable word of errors.py), with an error `cause` and `remedy`, and
what the command answers.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from flox_node.errors import FloxNodeError, OutsideError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = "flox-node"
_WIDTH = 200  # where the output goes into a file or a pipe, a table is not cut to the 80 columns of no terminal
_INTERRUPTED = 130
_AGAIN = "Run the command again: it goes on where it stopped."
_verbosity = 0

Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Tell more on the way; errors with where they came from.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Tell nothing on the way; only the result and errors.")]
_OPTIONS = {
    "as_json": Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")],
    "verbose": Verbose,
    "quiet": Quiet,
}
_PARAMETERS = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
    for name, kind in _OPTIONS.items()
]


@dataclass(frozen=True)
class Result:
    """What a command came to: `body` for machines, `text` for people.

    `text` is printed as it is, bytes without a line end of ours; a function, called only when it is to be shown, gives
    texts and rich's tables. `error` is why the exit code is not 0 although there is a result.
    """

    body: Mapping[str, Any] = field(default_factory=dict)
    text: str | bytes | Callable[[], Iterable[Any]] = ""
    error: FloxNodeError | None = None


class Group(TyperGroup):
    """A group of commands: without one it shows its help, and its list has the first sentence of each as a whole."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Exits with 2 where no command is given."""
        if not args:
            typer.echo(ctx.get_help(), err=True)
            raise typer.Exit(UsageError.exit_code)
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands; what is too long for a line wraps."""
        rows = [(name, each.get_short_help_str(1000)) for name, each in self.commands.items() if not each.hidden]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def application(help: str, **settings: Any) -> typer.Typer:
    """A Typer application whose commands are added with `command`."""
    return typer.Typer(
        cls=Group,
        help=help,
        add_completion=False,
        rich_markup_mode=None,  # rich's help costs 70 ms of import at every call
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
        **settings,
    )


def command(
    app: typer.Typer, *, example: str, hidden: bool = False
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Add a function as a command of its name; the function itself stays what it is."""

    def add(function: Callable[..., Result]) -> Callable[..., Result]:
        signature = inspect.signature(function, eval_str=True)
        parameters = [*signature.parameters.values(), *_PARAMETERS]

        @functools.wraps(function)
        def called(*, as_json: bool, verbose: bool, quiet: bool, **given: Any) -> Result:
            del as_json  # `run` has seen it: a wrong call does not come as far as here
            speak(verbose=verbose, quiet=quiet)
            return function(**given)

        called.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {each.name: each.annotation for each in parameters}
        name = function.__name__.rstrip("_").replace("_", "-")
        app.command(name, epilog=f"Example: {example}", hidden=hidden)(called)
        return function

    return add


def speak(*, verbose: bool, quiet: bool) -> None:
    """How much is told on the way from now on."""
    global _verbosity
    _verbosity += verbose - quiet


def is_quiet() -> bool:
    """Whether nothing is to be told on the way."""
    return _verbosity < 0


def is_verbose() -> bool:
    """Whether more is to be told than usual."""
    return _verbosity > 0


def say(text: str, *, detail: bool = False) -> None:
    """Tell what happens on the way, a `detail` only with `-v`: on stderr, stdout is the result's."""
    if _verbosity >= (1 if detail else 0):
        typer.echo(text, err=True)


def run(app: typer.Typer, arguments: Sequence[str]) -> int:
    """Run one command and print what it comes to; its exit code."""
    global _verbosity
    _verbosity = 0
    as_json = any(word.partition("=")[0] == "--json" for word in arguments)  # it may be the call that is wrong
    try:
        result = _run(app, arguments)
        if isinstance(result, int):
            if result == _INTERRUPTED and as_json:
                typer.echo(
                    json.dumps({"exit_code": result, "error": "interrupted", "cause": "Ctrl-C.", "remedy": _AGAIN})
                )
            return result
        _print(result, as_json=as_json)
        sys.stdout.flush()
    except BrokenPipeError:  # `flox-node status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return result.error.exit_code if result.error else 0


def _run(app: typer.Typer, arguments: Sequence[str]) -> Result | int:
    """What the command comes to, every failure as one of errors.py; a number after --help, --version and Ctrl-C."""
    try:
        result: Result | int = app(args=list(arguments), prog_name=PROGRAM, standalone_mode=False)
    except FloxNodeError as error:
        if _verbosity > 0:
            traceback.print_exc()
        return Result(error=error)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        remedy = f"See `{context.command_path if context else PROGRAM} --help`."
        return Result(error=UsageError(error.format_message(), remedy=remedy))
    except BrokenPipeError:
        raise
    except OSError as error:
        # A full or read-only disk, a missing permission: no bug, and the path says most of it.
        where = f"{error.filename}: " if error.filename else ""
        remedy = f"Repair what the text names. {_AGAIN}"
        return Result(error=OutsideError(f"{where}{error.strerror or error}.", remedy=remedy))
    except Exception as error:
        traceback.print_exc()
        return Result(error=FloxNodeError(f"{type(error).__name__}: {error}"))
    return result


def _print(result: Result, *, as_json: bool) -> None:
    if as_json:
        envelope = result.error.as_dict() if result.error else {"exit_code": 0, "error": None}
        typer.echo(json.dumps({**result.body, **envelope}, default=str))
        return
    if isinstance(result.text, bytes):
        sys.stdout.buffer.write(result.text)
    elif isinstance(result.text, str):
        typer.echo(result.text, nl=bool(result.text))
    else:
        for each in result.text():
            sys.stdout.write(f"{each}\n" if isinstance(each, str) else _drawn(each))
    if result.error:
        step = f"{result.error.action}: " if result.error.action else ""
        typer.echo(f"{PROGRAM}: {step}{result.error.cause}\n  -> {result.error.remedy}", err=True)


def _drawn(renderable: Any) -> str:
    """One of rich's tables as text: in colours where that is a terminal, and `NO_COLOR` is not set."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)
    with console.capture() as drawn:
        console.print(renderable)
    return drawn.get()


def write_text(file: Path, text: str) -> None:
    """Write a file that the user named.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}.") from error


def read_text(file: Path) -> str:
    """The text of a file that the user named.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {getattr(error, 'strerror', 'it is no UTF-8')}.") from error
