"""What `facemetric run` does: the stages of a recipe in sequence, for each setting, and the table of them.

Each stage has its folder, with `run.json` beside what the command leaves there: the options it was started
with, and, when it is done, its figures, minutes and memory. `--resume` goes by these records.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd

from facemetric.commands.eval import check_options, run_evaluate
from facemetric.commands.visualize import check_visualize, run_visualize
from facemetric.config import (
    RunConfig,
    Step,
    Variant,
    config_dict,
    differences,
    folder_of,
    make_config,
    plan,
    require,
)
from facemetric.data.readers.sources import parse_source
from facemetric.errors import ConfigError, DataError
from facemetric.files import write_whole
from facemetric.machine import Measured, measuring
from facemetric.model.weights_folder import find_weights
from facemetric.report.figures import evaluation_text
from facemetric.training.distributed import say
from facemetric.training.dry import dry_run
from facemetric.training.finetune import run_finetune
from facemetric.training.pretrain import run_pretrain
from facemetric.training.run import Trained
from facemetric.training.run_folder import CHECKPOINT, LOG, has_checkpoint, read_log
from facemetric.training.stage import check_training

RECORD, TABLE = "run.json", "table.csv"
# Options that a stage may go on with otherwise: no figure depends on them.
FREE = ("workers", "device", "checkpoint_minutes")
# Families of eval's figures whose names differ from run to run: they are in its own metrics.json.
UNTABLED = ("slices.", "comparison.")


def run(*positional: Any, **options: Any) -> pd.DataFrame:
    """Run a recipe; the options are those of RunConfig. Returns the table, a row for each training of each setting.

    `run("configs/mnist.toml", set=["finetune.margin=0.5,1"])` is
    `facemetric run configs/mnist.toml --set finetune.margin=0.5,1`.
    Raises ConfigError, DataError, WeightsError or TrainingError, each with what to change."""
    return run_recipe(make_config(RunConfig, *positional, **options))


def run_recipe(config: RunConfig) -> pd.DataFrame:
    """run, from a config."""
    require(
        int(os.environ.get("WORLD_SIZE", "1")) == 1,
        "facemetric run is for one process; under torchrun give the stages one after the other",
    )
    variants = plan(config)
    steps = {step.folder: step for variant in variants for step in variant.steps}
    made = {str(folder) for folder in steps}
    for step in steps.values():
        check_step(step, made)
    if config.dry:
        return run_dry(list(steps.values()))
    for step in steps.values():
        check_folder(step, resume=config.resume)
    for folder, step in steps.items():
        record = read_record(folder)
        if record and record["done"]:
            say(f"{step.stage}: done before in {folder}")
            continue
        say(f"\n{step.stage}: {folder}")
        run_step(step, record)
    return write_table(folder_of(config), variants)


def run_dry(steps: list[Step]) -> pd.DataFrame:
    """Try the training stages, each on what the one before it left; a row for each, nothing stays on the disk."""
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        kept: dict[str, Path] = {}  # by the folder that the weights would have come to
        for step in steps:
            if step.stage not in ("pretrain", "finetune"):
                continue
            kept[str(step.folder)] = keep = Path(scratch) / str(len(kept)) / step.stage
            weights = kept.get(step.config.weights, step.config.weights)
            dry = dry_run(replace(step.config, weights=str(weights)), keep)
            say(dry.text(step.stage))
            found.append(step.settings | {"stage": step.stage} | asdict(dry))
    table = pd.DataFrame(found)
    if found:
        say(f"training in all: about {table['minutes'].sum():,.1f} minutes, without eval and visualize")
    return table


def check_step(step: Step, made: Collection[str]) -> None:
    """Raise ConfigError, DataError or WeightsError for what would stop a stage hours later: numbers, names, and paths
    that are not there. `made` are the folders that stages before it will fill."""
    CHECKS[step.stage](step.config)
    for option in ("data", "gallery"):
        for text in getattr(step.config, option, ()):
            if not Path(parse_source(text).path).exists():
                raise DataError(f"[{step.stage}] {option}: {text}: no such file or folder")
    for option in ("embeddings", "pairs", "val_identities", "leave_out", "leave_out_images", "merge"):
        path = getattr(step.config, option, None)
        if path is not None and not path.exists():
            raise DataError(f"[{step.stage}] {option}: {path}: no such file")
    for option in ("weights", "compare"):
        name = getattr(step.config, option, "")
        if name and name not in made and not Path(name).is_file():  # a file holds embeddings
            find_weights(name)


def check_folder(step: Step, *, resume: bool) -> None:
    """Raise ConfigError where a stage's folder holds something else than this stage, begun with these options."""
    if not step.folder.exists() or not any(step.folder.iterdir()):
        return
    require(resume, f"{step.folder} holds a run already; go on with it by --resume, or name another --out")
    record = read_record(step.folder)
    require(record is not None, f"{step.folder} is not of facemetric run; name another --out")
    assert record is not None
    if not record["done"] and not has_checkpoint(step.folder / CHECKPOINT):
        return  # nothing of it is kept
    usual = config_dict(type(step.config)())  # an option may be younger than the record
    before, now = (
        {key: value for key, value in options.items() if key not in FREE}
        for options in (usual | record["options"], config_dict(step.config))
    )
    other = differences(before, now)
    if other:
        raise ConfigError(f"{step.folder} was run with other options ({other}); name another --out")


def read_record(folder: Path) -> dict[str, Any] | None:
    """The record of a stage, None where none was begun."""
    try:
        return json.loads((folder / RECORD).read_text())
    except FileNotFoundError:
        return None


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a stage."""
    text = json.dumps(record, indent=2) + "\n"
    write_whole(folder / RECORD, lambda staged: staged.write_text(text))


def run_step(step: Step, before: Mapping[str, Any] | None) -> None:
    """Run a stage, or the rest of it, and keep its record; minutes add up over the sittings."""
    config = step.config
    if before is not None and step.stage in ("pretrain", "finetune"):
        if has_checkpoint(step.folder / CHECKPOINT):
            config = replace(config, resume=True)
        else:
            (step.folder / LOG).unlink(missing_ok=True)  # it stopped before its first checkpoint
    sitting = Measured()
    record = {
        "options": config_dict(step.config),
        "done": False,
        "minutes": (before or {}).get("minutes", 0.0),
    }
    write_record(step.folder, record)
    try:
        with measuring(sitting):
            figures = RUNNERS[step.stage](config)
        record |= {"done": True, "figures": figures}
    finally:
        record["minutes"] = round(record["minutes"] + sitting.seconds / 60, 3)
        record["memory_mib"] = max(round(sitting.peak_mib), (before or {}).get("memory_mib", 0))
        write_record(step.folder, record)


def train(runner: Callable[[Any], Trained]) -> Callable[[Any], dict[str, float]]:
    """A training stage; its figures are those of the kept weights, and those of the last steps and the last
    validation of the training itself: its loss, its accuracy, its share of triplets that violate the margin."""

    def run_stage(config: Any) -> dict[str, float]:
        trained = runner(config)
        last: dict[str, dict[str, Any]] = {"train": {}, "validation": {}}
        for line in read_log(trained.run / LOG):
            last[line["event"]] = line
        figures = {
            f"train_{name}": last["train"].get(name) for name in ("loss", "accuracy", "fraction_positive")
        }
        figures |= trained.metrics
        figures |= {name: last["validation"].get(name) for name in ("val_loss", "val_fraction_positive")}
        return {name: value for name, value in figures.items() if value is not None}

    return run_stage


def score(config: Any) -> dict[str, float]:
    """eval; its figures under the names of the table."""
    found = run_evaluate(config)
    say(evaluation_text(found))
    return {
        column_of(figure.key): figure.value
        for figure in found.figures()
        if figure.value is not None and not figure.key.startswith(UNTABLED)
    }


def column_of(key: str) -> str:
    """The name that a figure has in the table: those of verification go by their own, `svm.accuracy` is `svm`."""
    name = key.removeprefix("verification.").replace(".knn_accuracy_", "_knn_")
    return {"svm.accuracy": "svm"}.get(name, name.replace(".", "_"))


def show(config: Any) -> dict[str, float]:
    """visualize, which has no figures."""
    run_visualize(config)
    return {}


CHECKS: dict[str, Callable[[Any], None]] = {
    "pretrain": check_training,
    "finetune": check_training,
    "eval": check_options,
    "visualize": check_visualize,
}
RUNNERS: dict[str, Callable[[Any], dict[str, float]]] = {
    "pretrain": train(run_pretrain),
    "finetune": train(run_finetune),
    "eval": score,
    "visualize": show,
}


def settings_of(variant: Variant, stage: str) -> tuple[tuple[str, str], ...]:
    """The settings that reach a training stage of a variant or its scores."""
    reaching = {key for step in variant.steps if step.of == stage for key in step.settings}
    return tuple((key, value) for key, value in variant.settings.items() if key in reaching)


def write_table(out: Path, variants: list[Variant]) -> pd.DataFrame:
    """Print and write the table: for each setting and each training stage its figures, and those of its eval."""
    rows: dict[Any, dict[str, Any]] = {}
    for variant in variants:
        for step in variant.steps:
            record = read_record(step.folder)
            if step.stage == "visualize" or record is None:
                continue
            settings = settings_of(variant, step.of)
            row = rows.setdefault((step.of, *settings), dict(settings) | {"stage": step.of})
            if step.stage == step.of:
                row |= {"minutes": record["minutes"], "memory_mib": record["memory_mib"]}
            row |= record["figures"]
    table = pd.DataFrame(rows.values())
    if not rows:  # pictures alone
        return table
    front = [key for key in variants[0].settings if key in table] + ["stage", "minutes", "memory_mib"]
    table = table[[*front, *(name for name in table if name not in front)]]
    path = out / TABLE
    table.to_csv(path, index=False)
    print(f"\n{table.dropna(axis=1, how='all').T.to_string(header=False, na_rep='')}\n{path}")
    return table
