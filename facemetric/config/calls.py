"""A command as a Python function: called with its config, or with its options as arguments, which errors then name."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import shlex
from collections.abc import Callable, Iterator
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
    """Let errors name options as the terminal does (`--epochs 3`), or as Python does (`epochs=3`), which is how it
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
            with words_of(kind):
                return function(make_config(kind, *positional, **options))

        returns = function.__annotations__.get("return", inspect.Signature.empty)
        call.__signature__ = options_signature(kind, returns)  # type: ignore[attr-defined]
        return call

    return decorate


@contextlib.contextmanager
def words_of(kind: type) -> Iterator[None]:
    """Errors that leave the block name the options of a config as Python's arguments, unless the terminal runs it."""
    try:
        yield
    except FacemetricError as error:
        if not _flags_shown:
            error.args = (in_python(kind, str(error)),)
        raise


OPTION = re.compile(
    r"(?<![\w-])--(?P<no>no-)?(?P<name>[a-z][a-z0-9-]*[a-z0-9])(?![\w-])"
    r"""(?:=(?P<text>(?:'[^']*'|"[^"]*"|\S)+?(?=[,;:.)]*(?:\s|$)))|(?= (?P<after>'[^']*'|[\w.+-]*\w)))?"""
)
NUMBER = re.compile(r"-?\d[\d.]*(?:e[+-]?\d+)?")


def in_python(kind: type, message: str) -> str:
    """A message whose options are named as Python's arguments, with the values that it gives them.

    `--resume` is resume=True and `--no-report` report=False where these are switches of the config; `--epochs 3` is
    epochs=3, `--freeze backbone` freeze='backbone' (one of its choices), `--out=runs/a` (see `errors.given`)
    out='runs/a', any other mention of an option out=. What is quoted in backticks is a command, and stays."""
    hints = {**_all_hints(), **get_type_hints(kind)}
    parts = message.split("`")
    for place in range(0, len(parts), 2):
        shown, end = "", 0
        for found in OPTION.finditer(parts[place]):
            argument, taken = _argument(found, hints)
            shown, end = shown + parts[place][end : found.start()] + argument, found.end() + taken
        parts[place] = shown + parts[place][end:]
    return "`".join(parts)


def _argument(found: re.Match[str], hints: dict[str, Any]) -> tuple[str, int]:
    """An option as an argument, and the characters of its value that come after the match."""
    name, after = found["name"].replace("-", "_"), found["after"] or ""
    hint = hints.get(name)
    if found["text"] is not None:
        return f"{name}={_literal(found['text'])}", 0
    if hint is bool:
        return f"{name}={not found['no']}", 0
    if NUMBER.fullmatch(after):
        return f"{name}={after}", len(after) + 1
    if after.startswith("'"):
        return f"{name}={after}", len(after) + 1
    if after in _choices(hint):
        return f"{name}={after!r}", len(after) + 1
    return (name if after == "is" else f"{name}="), 0


def _literal(text: str) -> str:
    with contextlib.suppress(ValueError):  # a quote that is not closed: the text as it is
        text = " ".join(shlex.split(text))
    return text if NUMBER.fullmatch(text) else repr(text)


def _choices(hint: Any) -> tuple[Any, ...]:
    """What a field may be, where that is a choice of words; also one of a tuple of them."""
    hint = get_args(hint)[0] if get_origin(hint) is tuple else hint
    return get_args(hint) if get_origin(hint) is Literal else ()


@functools.cache
def _all_hints() -> dict[str, Any]:
    """The type of each option of any command: a message of `run` may be about an option of `finetune`."""
    from facemetric import config

    kinds = [getattr(config, name) for name in config.__all__ if name.endswith("Config")]
    return {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}


def on_terminal(message: str) -> str:
    """A message in the terminal's words: `--out=runs/a` is --out runs/a."""
    parts = message.split("`")
    parts[::2] = [re.sub(r"(?<![\w-])(--[a-z][a-z0-9-]*[a-z0-9])=", r"\1 ", part) for part in parts[::2]]
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
