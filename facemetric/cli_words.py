"""What a command reads before it runs: a file of options, and slips in its words, told before torch is imported."""

from __future__ import annotations

import itertools
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cyclopts

from facemetric.config import (
    AlignConfig,
    CalibrateConfig,
    ClusterConfig,
    EmbedConfig,
    EvalConfig,
    FinetuneConfig,
    GalleryAddConfig,
    GalleryCheckConfig,
    IdentifyConfig,
    PretrainConfig,
    RunConfig,
    StageConfig,
    VerifyConfig,
    check_ranges,
    check_stage,
    plan,
)
from facemetric.config.build import SYNONYMS, read_toml
from facemetric.config.checks import check_cluster, check_verify
from facemetric.config.recipe import KINDS
from facemetric.errors import ConfigError, DataError, nearest_beside
from facemetric.machine import import_timm, processes
from facemetric.model.weights.folder import find_onnx, find_weights, is_onnx
from facemetric.training.run.folder import check_run_folder

# Where the words go of a command that takes fewer without a name.
WORD_ORDER = {
    "eval": "images go to --data, pairs to --pairs: facemetric eval --weights W --data FOLDER --pairs PAIRS.csv",
    "verify": "the weights go to --weights: facemetric verify A.jpg B.jpg --weights W",
    "run": "one recipe a run; options in its place go to --set: facemetric run RECIPE.toml --set lr=0.1",
    "runs": "one folder, in which runs are found at any depth: facemetric runs FOLDER",
    "demo": "one folder to write into: facemetric demo --out FOLDER",
}
SWITCHES = ("true", "false", "yes", "no", "t", "f", "y", "n", "1", "0")  # that --flag=VALUE takes
# What no image folder is called.
VALUE = re.compile(rf"[-+]?[\d.]+|on|off|{'|'.join(SWITCHES)}", re.IGNORECASE)
# Commands that write, whose processes would each do all of the work and write over each other. `run` says more itself.
OF_ONE_PROCESS = ("align", "calibrate", "cluster", "data", "demo", "export", "gallery", "push", "visualize")


def shown_default(value: Any) -> str:
    """A default in --help; what is empty is not shown."""
    if value is None or value in ((), ""):
        return None  # type: ignore[return-value]
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def message_of(error: cyclopts.CycloptsError, app: cyclopts.App) -> str:
    """What is wrong with the words in a line, and what to write in their place where that is known.

    An option's other name goes before one of like spelling, which cyclopts names."""
    text, chain = one_line(str(error)), tuple(error.command_chain or ())
    if isinstance(error, cyclopts.UnknownOptionError):
        # a key of a TOML file comes as [key]
        name = (error.token.keyword or error.token.value).split("=")[0].strip("[]").replace("_", "-")
        meant = SYNONYMS.get(f"--{name.removeprefix('--')}", "")
        text = re.sub(r'"\[(.+?)\]" from', r'"\1" from', text)
        plain, guessed, _ = text.partition(" Did you mean")
        if meant and (not guessed or options_of(app, chain) & set(re.findall("--[a-z-]+", meant))):
            return f"{plain} Did you mean {meant}?"
    elif isinstance(error, cyclopts.UnusedCliTokensError):
        command = " ".join(chain)
        words = [
            argument.name.lstrip("-").upper()
            for argument in arguments_of(app, chain)
            if argument.index is not None
        ]
        takes = (
            f"takes {' and '.join(words)} without an option's name" if words else "takes none: leave it out"
        )
        way = WORD_ORDER.get(command, f"`facemetric {command}` {takes}")
        return f"{shlex.join(error.unused_tokens or ())} is left over: {way}"
    return text


def check_flags(tokens: Sequence[str], app: cyclopts.App) -> None:
    """Raise ConfigError for a value after a flag, `--head-shards 2`, which would be taken for an image folder."""
    chain, apps, rest = app.parse_commands(tokens)
    names_follow = chain in (("gallery", "list"), ("gallery", "remove"))  # a person may be called 2
    if names_follow or not chain or chain[-1].startswith("-") or apps[-1].default_command is None:
        return
    switches = [argument.names for argument in arguments_of(app, chain) if argument.hint is bool]
    flags = {name: names for names in switches for name in names}
    for token, after in itertools.pairwise([*rest, ""]):
        flag, given, value = token.partition("=")
        wrong = value if given else after if VALUE.fullmatch(after) and not os.path.exists(after) else ""
        if flag in flags and wrong and not (given and value.lower() in SWITCHES):
            raise ConfigError(
                f"{flag} is a flag and takes no value, but {wrong} came: write {' or '.join(flags[flag])} alone"
            )


def options_of(app: cyclopts.App, chain: Sequence[str]) -> set[str]:
    """The flags of a command, such as `("data", "check")`."""
    return {name for argument in arguments_of(app, chain) for name in argument.names}


def arguments_of(app: cyclopts.App, chain: Sequence[str]) -> cyclopts.ArgumentCollection:
    """The options of a command."""
    command = app
    for name in chain:
        command = command[name]
    return command.assemble_argument_collection()


def one_line(message: str) -> str:
    """A message without line breaks."""
    return " ".join(message.split())


def with_config_file(tokens: list[str], app: cyclopts.App) -> list[str]:
    """Take `--config FILE` out of the tokens and give its options to the app. Raises ConfigError."""
    app.config = ()  # type: ignore[assignment]
    found = [i for i, token in enumerate(tokens) if token == "--config" or token.startswith("--config=")]
    if not found:
        return tokens
    at, token = found[0], tokens[found[0]]
    if token == "--config" and at + 1 == len(tokens):
        raise ConfigError("--config needs a TOML file")
    file = Path(tokens[at + 1] if token == "--config" else token.removeprefix("--config="))
    rest = tokens[:at] + tokens[at + (2 if token == "--config" else 1) :]
    read = read_toml(file, named=f"--config {file}")
    if tables := [f"[{name}]" for name in KINDS if isinstance(read.get(name), dict)]:
        raise ConfigError(
            f"--config {file} is a recipe, with the table {tables[0]}; run it with `facemetric run {file}`, "
            "or name a file with this command's options alone"
        )
    # Under each command's name: cyclopts skips keys at the top that are named as a command (`weights`).
    options: dict[str, Any] = dict.fromkeys(app, read)
    options["data"] = dict.fromkeys(app["data"], options["data"])
    options["gallery"] = dict.fromkeys(app["gallery"], options["gallery"])
    app.config = (cyclopts.config.Dict(options, source=str(file)),)  # type: ignore[assignment]
    return rest


def check_processes(tokens: Sequence[str]) -> None:
    """Raise ConfigError where torchrun started several processes of a command that is for one."""
    if processes() > 1 and tokens and tokens[0] in OF_ONE_PROCESS:
        raise ConfigError(
            f"facemetric {tokens[0]} is for one process; start it without torchrun, which shares out pretrain, "
            "finetune, eval, embed and identify"
        )


def check_words(config: Any) -> None:
    """Raise the errors that need no torch: numbers out of range, and files, folders and weights that are not there."""
    check_ranges(config)
    if isinstance(config, StageConfig):
        check_stage(config)
    if isinstance(config, (PretrainConfig, FinetuneConfig)):
        check_run_folder(config.out, config.resume)
    if isinstance(config, RunConfig):
        plan(config)
    if isinstance(config, VerifyConfig):
        check_verify(config)
    if isinstance(config, ClusterConfig):
        check_cluster(config)
    answers = isinstance(config, (VerifyConfig, GalleryAddConfig, GalleryCheckConfig, IdentifyConfig))
    takes_onnx = answers or isinstance(config, (EvalConfig, EmbedConfig))
    weights, compared = getattr(config, "weights", ""), getattr(config, "compare", ())
    if isinstance(config, (FinetuneConfig, CalibrateConfig, VerifyConfig, EmbedConfig)) or weights:
        (find_onnx if takes_onnx and is_onnx(weights) else find_weights)(weights)
    if isinstance(config, VerifyConfig):
        check_pictures(config.image1, config.image2)
    for name in compared:
        if not name.lower().endswith((".npz", ".parquet")):
            (find_onnx if is_onnx(name) else find_weights)(name)
    if not (answers or isinstance(config, AlignConfig)):  # these may have no use for timm
        import_timm()


def check_pictures(*images: str) -> None:
    """Raise unless these are image files."""
    for image in map(Path, images):
        if image.is_dir():
            raise DataError(
                f"{image} is a folder; verify compares two image files, `facemetric eval --data` and "
                "`facemetric cluster` take folders"
            )
        if not image.is_file():
            raise DataError(f"{image}: no such file{nearest_beside(image) or '; give an image'}")
