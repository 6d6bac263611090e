"""The settings as options of a command, each with a variable `FLOX_NODE_*`; `--settings FOLDER` reads a ConfigMap."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from flox_node.cli.output import Result, read_text
from flox_node.errors import UsageError
from flox_node.settings import Settings, load

_FOLDER = Annotated[
    Path | None,
    typer.Option(
        "--settings",
        metavar="FOLDER",
        envvar="FLOX_NODE_SETTINGS",
        help="A folder with settings.toml and policy.toml, as the ConfigMap has them; options go before what it says.",
    ),
]
_POLICY = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="FILE",
        envvar="FLOX_NODE_POLICY",
        help="A policy.toml to put into force, too.",
        show_default="the policy stays as it is",
    ),
]
_KINDS = {each.name: each.metadata["kind"] for each in fields(Settings) if each.metadata.get("help")}


def with_settings(function: Callable[..., Result]) -> Callable[..., Result]:
    """Give a command an option for each setting in place of its parameter `settings`.

    What is said first counts: on the command line, as a variable, in the folder; then comes the default.
    """
    signature = inspect.signature(function, eval_str=True)
    options: dict[str, Any] = {name: Annotated[kind | None, option(name)] for name, kind in _KINDS.items()}
    options |= {"folder": _FOLDER, "policy": _POLICY}
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in options.items()
    ]
    kept = [
        each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for each in signature.parameters.values()
        if each.name != "settings"
    ]

    @functools.wraps(function)
    def called(*, folder: Path | None, policy: Path | None, **given: Any) -> Result:
        said = {name: value for name in _KINDS if (value := given.pop(name)) is not None}
        if policy is not None:
            said["policy"] = read_text(policy)
        if folder is not None and not folder.is_dir():
            raise UsageError(f"{folder} is no folder.")
        return function(settings=replace(load(folder) if folder else Settings(), **said), **given)

    called.__signature__ = signature.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    called.__annotations__ = {each.name: each.annotation for each in (*kept, *added)}
    return called


def option(name: str) -> Any:
    """The option of one setting, for a parameter whose default is None."""
    setting = next(each for each in fields(Settings) if each.name == name)
    told = setting.metadata
    word = name.removesuffix("_s").replace("_", "-")
    return typer.Option(
        f"--{word}",
        envvar=f"FLOX_NODE_{word.replace('-', '_').upper()}",
        help=told["help"],
        min=told["least"] or None,
        show_default=told["usual"] or (str(setting.default) if told["kind"] is not bool else False),
    )
