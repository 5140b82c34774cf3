"""What to write in place of an option or a word that a command does not take."""

from __future__ import annotations

import re
from collections.abc import Sequence

import cyclopts

from facemetric.config.build import SYNONYMS

# Where the words go of a command that takes fewer without a name.
WORD_ORDER = {
    "eval": "images go to --data, pairs to --pairs: facemetric eval --weights W --data FOLDER --pairs PAIRS.csv",
    "verify": "the weights go to --weights: facemetric verify A.jpg B.jpg --weights W",
    "run": "one recipe a run; options in its place go to --set: facemetric run RECIPE.toml --set lr=0.1",
    "runs": "one folder, in which runs are found at any depth: facemetric runs FOLDER",
    "demo": "one folder to write into: facemetric demo --out FOLDER",
}


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
    elif isinstance(error, cyclopts.UnusedCliTokensError) and chain and chain[-1] in WORD_ORDER:
        return f"{text} {WORD_ORDER[chain[-1]]}"
    return text


def options_of(app: cyclopts.App, chain: Sequence[str]) -> set[str]:
    """The flags of a command, such as `("data", "check")`."""
    command = app
    for name in chain:
        command = command[name]
    return {name for argument in command.assemble_argument_collection() for name in argument.names}


def one_line(message: str) -> str:
    """A message without line breaks."""
    return " ".join(message.split())
