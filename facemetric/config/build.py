"""Configs from Python arguments, and back to plain values and TOML; checks that configs share."""

from __future__ import annotations

import math
import re
import shlex
import tomllib
from collections.abc import Iterable
from dataclasses import asdict, fields
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from facemetric.config.fields import check_ranges
from facemetric.errors import ConfigError, did_you_mean

C = TypeVar("C")

# What other programs call an option, and the option here.
SYNONYMS = {
    "--learning-rate": "--lr",
    "--backbone": "--arch",
    "--model": "--arch, or --weights for weights",
    "--architecture": "--arch",
    "--checkpoint": "--weights",
    "--ckpt": "--weights",
    "--pretrained-weights": "--weights",
    "--output": "--out",
    "--output-dir": "--out",
    "--save-dir": "--out",
    "--dataset": "--data",
    "--data-dir": "--data",
    "--images": "--data",
    "--folder": "--data",
    "--num-epochs": "--epochs",
    "--batch": "--batch-size",
    "--num-workers": "--workers",
    "--img-size": "--image-size",
    "--input-size": "--image-size",
    "--size": "--image-size",
    "--wd": "--weight-decay",
    "--opt": "--optimizer",
    "--sched": "--scheduler",
    "--fp16": "--amp float16",
    "--bf16": "--amp bfloat16",
    "--gpu": "--device cuda",
    "--cuda": "--device cuda",
    "--cpu": "--device cpu",
    "--loss": "--head in pretrain, --miner in finetune",
    "--dim": "--embedding-size",
    "--embedding-dim": "--embedding-size",
    "--fpr": "--far",
    "--fmr": "--far",
    "--eps": "--threshold",
}


def read_toml(file: Path, *, named: str = "", remedy: str = "") -> dict[str, Any]:
    """The tables and keys of a TOML file. Raises ConfigError where it cannot be read: `named` says which file that
    is, by default its path, `remedy` what to name where it is not there."""
    named = named or str(file)
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{named}: {error.strerror}{remedy}") from error
    except (ValueError, RecursionError) as error:  # tomllib's own, text that is no UTF-8, a number too long
        raise ConfigError(f"{named} is not TOML: {error}") from error


def make_config(kind: type[C], *positional: object, **options: object) -> C:
    """A config from a config, or from its options; text becomes a Path or a tuple where the field is one.

    Raises ConfigError that names the nearest to a misspelt option, or to a misspelt value."""
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if positional and isinstance(positional[0], kind):
        given = f"options go into the {kind.__name__}, or it is left out: dataclasses.replace changes one"
        require(len(positional) == 1 and not options, given)
        options, positional = {name: getattr(positional[0], name) for name in known}, ()
    by_position = [field.name for field in fields(kind) if not field.kw_only]  # type: ignore[arg-type]
    needed = "goes without its name" if len(by_position) == 1 else "go without their names"
    unnamed = f"only {' and '.join(by_position)} {needed}; several of them go in one list"
    require(len(positional) <= len(by_position), unnamed)
    values: dict[str, Any] = dict(zip(by_position, positional, strict=False))
    for name, value in options.items():
        if name not in known:
            raise ConfigError(f"unknown option {name!r}{hint_for(name, known)}")
        require(name not in values, f"{name} is given twice, without its name and with it; leave out one")
        values[name] = value
    hints = get_type_hints(kind)
    for name, value in values.items():
        check_type(name, hints[name], value)
    config = kind(**{name: as_hinted(hints[name], value) for name, value in values.items()})
    check_ranges(config)
    return config


def hint_for(name: str, known: Iterable[str]) -> str:
    """The end of a message about an option that is not known: its name here, the nearest one, or all there are."""
    known = list(known)
    others = re.findall("--([a-z-]+)", SYNONYMS.get(f"--{name.replace('_', '-')}", ""))
    meant = [other for other in (option.replace("-", "_") for option in others) if other in known]
    return f": did you mean {meant[0]!r}?" if meant else did_you_mean(name, known)


def check_type(name: str, hint: Any, value: Any) -> None:
    """Raise ConfigError unless a value is of the field's type (a number in quotes is no number), or a choice of it."""
    if get_origin(hint) is Literal:
        nearest = did_you_mean(str(value), map(str, get_args(hint)))
        require(value in get_args(hint), f"unknown {name.replace('_', ' ')} {value!r}{nearest}")
        return
    kinds = get_args(hint) or (hint,)
    if get_origin(hint) is tuple:
        parts = value if isinstance(value, (list, tuple)) else (value,)
        fixed = Ellipsis not in kinds
        require(
            not fixed or len(parts) == len(kinds), f"{name} is {value!r}; needed are {len(kinds)} numbers"
        )
        for part in parts:
            check_type(name, kinds[0], part)
        return
    boolean = isinstance(value, bool)
    fits = (
        (NoneType in kinds and value is None)
        or (bool in kinds and boolean)
        or (int in kinds and isinstance(value, Integral) and not boolean)
        or (float in kinds and isinstance(value, Real) and not boolean)
        or ((str in kinds or Path in kinds) and isinstance(value, (str, Path)))
    )
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    needed = " or ".join(words[kind] for kind in kinds if kind in words)
    require(fits, f"{name} is {value!r}; needed is {needed}")


def as_hinted(hint: Any, value: Any) -> Any:
    """A value as the field's type has it: text for a path, a path for text, one or a list for a tuple."""
    kinds = (hint, *get_args(hint))
    if get_origin(hint) is tuple:
        several = value if isinstance(value, (list, tuple)) else (value,)
        return tuple(part if get_origin(kinds[1]) else kinds[1](part) for part in several)
    if Path in kinds and isinstance(value, str):
        return Path(value)
    if isinstance(value, (Integral, Real)) and not isinstance(value, (bool, int, float)):  # numpy's
        return int(value) if isinstance(value, Integral) else float(value)
    return str(value) if str in kinds and isinstance(value, Path) else value


def config_dict(config: Any) -> dict[str, Any]:
    """The options as plain numbers, texts and lists; options that are not set (None) stay away."""
    plain = {}
    for name, value in asdict(config).items():
        if value is None or name == "_":
            continue
        plain[name] = (
            str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        )
    return plain


def config_toml(config: Any) -> str:
    """The options as TOML that `--config` reads back, without `resume`: it starts the same run again."""
    import json  # TOML's strings, numbers, booleans and flat lists are written as JSON's

    options = config_dict(config)
    options.pop("resume", None)
    written = {
        name: str(value)  # `inf`: not as JSON's Infinity
        if isinstance(value, float) and not math.isfinite(value)
        else json.dumps(value, ensure_ascii=False)
        for name, value in options.items()
    }
    return "".join(f"{name} = {text}\n" for name, text in written.items())


def config_command(name: str, config: Any) -> str:
    """The shell command with the options that differ from their defaults, one a line."""
    usual, hints = config_dict(type(config)()), get_type_hints(type(config))
    lines = [f"facemetric {name}"]
    for option, value in config_dict(config).items():
        flag = f"--{option.replace('_', '-')}"
        if value == usual.get(option):
            continue
        if isinstance(value, bool):
            lines.append(flag if value else f"--no-{flag.removeprefix('--')}")
        elif isinstance(value, list) and Ellipsis in get_args(hints[option]):
            lines += [shlex.join([flag, str(part)]) for part in value]
        else:
            lines.append(shlex.join([flag, *map(str, value if isinstance(value, list) else [value])]))
    return " \\\n    ".join(lines)


def require(condition: bool, message: str) -> None:
    """Raise ConfigError with `message` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def check_least(config: Any, least: dict[str, int]) -> None:
    """Raise ConfigError where an option of these names is below its bound; one that is not there passes."""
    for name, bound in least.items():
        value = getattr(config, name, bound)
        require(value >= bound, f"--{name.replace('_', '-')} is {value}; it must be at least {bound}")
    seed = getattr(config, "seed", 0)
    require(seed < 2**32, f"--seed is {seed}; it must be below 2 ** 32")  # it is multiplied by steps
