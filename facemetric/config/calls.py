"""A command as a Python function: called with its config, or with the config's options as arguments."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from facemetric.config.build import make_config
from facemetric.errors import FacemetricError

C = TypeVar("C")
R = TypeVar("R")

_flags_shown = False  # in errors: the terminal's words


def show_flags(on: bool) -> bool:
    """Let errors name switches as the terminal does (`--resume`), or as Python does (`resume=True`), which is how it
    begins. Returns what was set before."""
    global _flags_shown
    before, _flags_shown = _flags_shown, on
    return before


NAMES_A_FILE = ("weights",)  # texts that are a name, or a path


def takes_options(kind: type[C]) -> Callable[[Callable[[C], R]], Callable[..., R]]:
    """Let a function of a config take the config's options as arguments as well: `f(config)` or `f("faces", lr=0.1)`.

    `inspect.signature` and editors show the options; facemetric/__init__.pyi tells them to type checkers.
    Raises ConfigError for an unknown option or a value of the wrong type."""

    def decorate(function: Callable[[C], R]) -> Callable[..., R]:
        @functools.wraps(function)
        def call(*positional: object, **options: object) -> R:
            try:
                return function(make_config(kind, *positional, **options))
            except FacemetricError as error:
                if not _flags_shown:
                    error.args = (in_python(kind, str(error)),)
                raise

        returns = function.__annotations__.get("return", inspect.Signature.empty)
        call.__signature__ = options_signature(kind, returns)  # type: ignore[attr-defined]
        return call

    return decorate


def in_python(kind: type, message: str) -> str:
    """A message with the switches of a config as arguments: `--resume` is resume=True, `--no-report` report=False.

    What is quoted in backticks is a command, and stays."""
    switches = {name for name, hint in get_type_hints(kind).items() if hint is bool}

    def argument(found: re.Match[str]) -> str:
        name = found[2].replace("-", "_")
        return f"{name}={not found[1]}" if name in switches else found[0]

    parts = message.split("`")
    parts[::2] = [re.sub(r"(?<!\S)--(no-)?([a-z][a-z-]*[a-z])", argument, part) for part in parts[::2]]
    return "`".join(parts)


def options_signature(kind: type, returns: Any = inspect.Signature.empty) -> inspect.Signature:
    """The signature of a function that takes the options of a config: those before KW_ONLY also by position."""
    hints = get_type_hints(kind)
    parameters = []
    for field in sorted(fields(kind), key=lambda field: bool(field.kw_only)):
        assert field.default is not MISSING, f"{kind.__name__}.{field.name} needs a default"
        parameters.append(
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY if field.kw_only else inspect.Parameter.POSITIONAL_OR_KEYWORD,
                default=field.default,
                annotation=accepted_type(field.name, hints[field.name]),
            )
        )
    return inspect.Signature(parameters, return_annotation=returns)


def accepted_type(name: str, hint: Any) -> str:
    """What `make_config` accepts for a field, as a type in Python's words: a path may come as text, one for several."""
    if get_origin(hint) is tuple:
        one = get_args(hint)[0]
        part = "str | Path" if one is str else accepted_type(name, one)
        return f"{part} | Sequence[{part}]" if Ellipsis in get_args(hint) else f"Sequence[{part}]"
    if get_origin(hint) is Literal:
        choices = ", ".join(f'"{choice}"' for choice in get_args(hint))
        return f"Literal[{choices}]"
    words = []
    for kind in get_args(hint) or (hint,):
        if kind is Path or (kind is str and name in NAMES_A_FILE):
            words.append("str | Path")
        else:
            words.append("None" if kind is NoneType else kind.__name__)
    return " | ".join(words)
