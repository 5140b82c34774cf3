"""A recipe: the stages of an experiment in one TOML file, and what `facemetric run --set` varies of it.

A table for each stage, `[pretrain]`, `[finetune]`, `[eval]`, `[visualize]`, whose keys are the options of the
command of that name; a stage without a table is left out. Keys above the tables are options of both training
stages (`device` and `workers` of all). The run names the folders and hands the weights from stage to stage.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from urllib.parse import quote

from facemetric.config.build import hint_for, make_config, read_toml, require
from facemetric.config.commands import EvalConfig, VisualizeConfig
from facemetric.config.fields import FOLDER
from facemetric.config.training import FinetuneConfig, PretrainConfig, StageConfig
from facemetric.errors import ConfigError, did_you_mean, given

KINDS: dict[str, Any] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "eval": EvalConfig,
    "visualize": VisualizeConfig,
}
TRAINING = ("pretrain", "finetune")
EVERYWHERE = ("device", "workers")  # keys above the tables that reach the scoring stages too
OURS = ("out", "resume")  # the run decides them

Tables = dict[str, dict[str, Any]]  # by stage; "" holds the keys above the tables


@dataclass(frozen=True)
class RunConfig:
    """A whole experiment: the stages of a recipe in sequence, or a table of such runs."""

    recipe: Path | None = None
    """TOML file with the tables [pretrain], [finetune], [eval], [visualize]; their keys are the commands' options."""
    _: KW_ONLY
    set: tuple[str, ...] = ()
    """Options in place of the recipe's, as TABLE.KEY=VALUE; of A,B,C a run for each; a text with commas in quotes."""
    out: Annotated[Path | None, FOLDER] = None
    """Folder of the run, with a folder for each stage; runs/NAME for NAME.toml where none is named."""
    dry: bool = False
    """Try 20 steps of each training in a folder that is gone at the end: does it run, in what time and memory."""
    resume: bool = False
    """Go on where the run in the folder stopped; stages that are done are not run again."""


class Step(NamedTuple):
    """A stage to run: `stage` is the command, `name` the folder's (`eval_pretrain` scores what pretrain left)."""

    stage: str
    name: str
    folder: Path
    config: Any
    of: str  # the training stage whose row of the table its figures belong to
    settings: dict[str, str]  # those that reach it, by the key that the user wrote


class Variant(NamedTuple):
    """One choice of settings, and its steps in sequence; the same folder is the same step."""

    settings: dict[str, str]
    steps: tuple[Step, ...]


class Setting(NamedTuple):
    """A `--set`: the values of an option in turn. `key` is as the user wrote it, table "" is above the tables."""

    key: str
    table: str
    option: str
    values: tuple[Any, ...]


def plan(config: RunConfig) -> list[Variant]:
    """The runs of a recipe, each option checked for its name. Raises ConfigError that names file and table."""
    require(config.recipe is not None, "no recipe was given; name a TOML file: `facemetric run RECIPE.toml`")
    assert config.recipe is not None
    tables = read_tables(config.recipe)
    settings = [parse_setting(text, tables) for text in config.set]
    for i, one in enumerate(settings):
        twice = [two.key for two in settings[:i] if (two.table, two.option) == (one.table, one.option)]
        require(
            not twice,
            f"{given('--set', one.key)} is given twice; give all its values in one: {one.key}=A,B,C",
        )
    out = folder_of(config)
    variants = []
    for values in itertools.product(*(setting.values for setting in settings)):
        chosen = {name: dict(table) for name, table in tables.items()}
        for setting, value in zip(settings, values, strict=True):
            chosen[setting.table][setting.option] = value
        varied = [
            (setting, shown(value))
            for setting, value in zip(settings, values, strict=True)
            if len(setting.values) > 1
        ]
        steps = tuple(make_steps(chosen, Folders(out, varied), config.recipe))
        variants.append(Variant({setting.key: value for setting, value in varied}, steps))
    return variants


def folder_of(config: RunConfig) -> Path:
    """The folder of the run: `out`, or runs/NAME of the recipe NAME.toml."""
    return config.out or Path("runs") / (config.recipe.stem if config.recipe else "run")


def read_tables(file: Path) -> Tables:
    """The tables of a recipe. Raises ConfigError where it cannot be read, or a table is unknown."""
    tables: Tables = {"": {}}
    for key, value in read_toml(file, remedy="; name a TOML file with tables such as [pretrain]").items():
        if isinstance(value, dict):
            require(key in KINDS, f"{file}: unknown table [{key}]{did_you_mean(key, KINDS)}")
            tables[key] = value
        else:
            tables[""][key] = value
    require(len(tables) > 1, f"{file} has none of the tables [{'], ['.join(KINDS)}]; it is no recipe")
    for key in OURS:
        where = [name for name, table in tables.items() if key in table]
        require(not where, f"{file}: {key} is not for a recipe; give --{key} to facemetric run")
    for name, table in tables.items():
        for key in table:
            check_option(file, name, key)
    return tables


def options_of(table: str) -> list[str]:
    """The keys that a table may have."""
    kind = KINDS.get(table, StageConfig)
    return [field.name for field in fields(kind) if field.name not in ("_", *OURS)]


def check_option(file: Path, table: str, key: str) -> None:
    """Raise ConfigError with the nearest name where a table has no such option."""
    where = f"[{table}] has no option" if table else "above the tables there is no option"
    known = options_of(table)
    require(key in known, f"{file}: {where} {key!r}{hint_for(key, known)}")


def parse_setting(text: str, tables: Tables) -> Setting:
    """`TABLE.KEY=A,B,C`, the values as TOML or as bare words. A key without a table is that of the only table
    that can have it, or that has it in the recipe. Raises ConfigError."""
    key, equals, values = text.partition("=")
    require(
        bool(equals and key and values),
        f"{given('--set', text)}: needed is TABLE.KEY=VALUE or TABLE.KEY=A,B,C",
    )
    table, dot, option = key.strip().rpartition(".")
    if not dot:
        table = table_of(option, tables)
    require(
        table in tables,
        f"{given('--set', text)}: the recipe has no table [{table}]{did_you_mean(table, list(tables)[1:])}",
    )
    check_option(Path("--set"), table, option)
    return Setting(key.strip(), table, option, parse_values(values))


def table_of(option: str, tables: Tables) -> str:
    """The table that an option without one belongs to: where the recipe has it, or that of all where none does."""
    above = option in options_of("")
    able = [name for name in tables if name and option in options_of(name)]
    having = [name for name in able if option in tables[name]]
    if above and not having:
        return ""
    if len(having or able) == 1 and option not in tables[""]:
        return (having or able)[0]
    known = sorted({name for table in tables for name in options_of(table)})
    require(bool(able), f"{given('--set', option)}: unknown option{hint_for(option, known)}")
    places = ["above the tables"] * (option in tables[""]) + [f"[{name}]" for name in having or able]
    raise ConfigError(
        f"{given('--set', option)}: {' and '.join(places)} have it; write {(having or able)[-1]}.{option}"
    )


def parse_values(text: str) -> tuple[Any, ...]:
    """The values of `A,B,C`: TOML where it is TOML, words elsewhere. A list in brackets is one value."""
    try:
        return tuple(tomllib.loads(f"x = [{text}]")["x"])
    except tomllib.TOMLDecodeError:
        return tuple(map(parse_value, text.split(",")))


def parse_value(text: str) -> Any:
    """One value: TOML, or a word."""
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text.strip()


def shown(value: Any) -> str:
    """A value in the table and in the name of a folder."""
    if isinstance(value, list):
        return "+".join(map(shown, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


class Folders(NamedTuple):
    """Where each step of a variant leaves its files."""

    out: Path
    varied: Sequence[tuple[Setting, str]]

    def reaching(self, tables: Iterable[str]) -> dict[str, str]:
        """The settings of these tables, and those above the tables."""
        among = ["", *tables]
        return {setting.key: value for setting, value in self.varied if setting.table in among}

    def of(self, name: str, tables: Iterable[str]) -> Path:
        """`out/KEY=VALUE,.../NAME`, with the settings that reach it: what no other reaches is shared."""
        parts = [f"{key}={value}" for key, value in self.reaching(tables).items()]
        return self.out / quote(",".join(parts), safe="=,+. ") / name if parts else self.out / name


def make_steps(tables: Tables, folders: Folders, file: Path) -> Iterator[Step]:
    """The steps of one variant: training, then the scores of what each training stage left, then pictures."""
    trained = [name for name in TRAINING if name in tables]
    for i, stage in enumerate(trained):
        yield make_step(tables, folders, file, stage, stage, trained[:i])
    for stage in ("eval", "visualize"):
        if stage not in tables:
            continue
        if {"weights", "embeddings"} & tables[stage].keys() or not trained:
            yield make_step(tables, folders, file, stage, stage, ())
        elif stage == "visualize":
            yield make_step(tables, folders, file, stage, stage, trained)
        else:
            for i, of in enumerate(trained):
                yield make_step(tables, folders, file, stage, f"eval_{of}", trained[: i + 1])


def make_step(
    tables: Tables, folders: Folders, file: Path, stage: str, name: str, before: Sequence[str]
) -> Step:
    """A stage that takes the weights of the last of the training stages `before` it."""
    shared = {key: value for key, value in tables[""].items() if stage in TRAINING or key in EVERYWHERE}
    options = shared | tables[stage] | {"out": folders.of(name, (*before, stage))}
    if before:
        options.setdefault("weights", folders.of(before[-1], before))
    if stage == "finetune":
        options.setdefault("cache", folders.out / "features")
    try:
        config = make_config(KINDS[stage], **options)
    except ConfigError as error:
        raise ConfigError(f"{file} [{stage}]: {error}") from error
    of = before[-1] if stage == "eval" and before else stage
    return Step(stage, name, config.out, config, of, folders.reaching((*before, stage)))


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """The options that differ between two records, as `lr 0.1 -> 0.2`."""

    def shown(value: Any) -> str:
        return (
            "none"
            if value in (None, "", [])
            else " ".join(map(str, value if isinstance(value, list) else [value]))
        )

    changed = [key for key in (*one, *other) if one.get(key) != other.get(key)]
    return ", ".join(
        f"{key} {shown(one.get(key))} -> {shown(other.get(key))}" for key in dict.fromkeys(changed)
    )
