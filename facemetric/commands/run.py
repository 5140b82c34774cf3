"""What `facemetric run` does: the stages of a recipe in sequence, for each setting, and the table of them.

Each stage has its folder, with `run.json` beside what the command leaves there: the options it was started
with, and, when it is done, its figures, minutes and memory. `--resume` goes by these records.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from facemetric.commands.evaluating.eval import check_options, run_evaluate
from facemetric.commands.visualize import check_visualize, run_visualize
from facemetric.config import (
    RunConfig,
    Step,
    Variant,
    config_dict,
    differences,
    folder_of,
    plan,
    require,
)
from facemetric.config.calls import takes_options
from facemetric.config.recipe import TRAINING
from facemetric.data.readers.sources import parse_source
from facemetric.distributed import say
from facemetric.errors import ConfigError, DataError
from facemetric.files import write_text_whole
from facemetric.machine import Measured, measuring, processes
from facemetric.model.weights.folder import find_weights
from facemetric.report.figures import evaluation_text
from facemetric.report.record import Evaluation
from facemetric.training.finetune import finetune
from facemetric.training.pretrain import pretrain
from facemetric.training.run.folder import CHECKPOINT, LOG, OF_WEIGHTS, has_checkpoint, read_log
from facemetric.training.run.run import Trained
from facemetric.training.stage import check_training
from facemetric.training.tasks.teacher_rows import TABLES, named

RECORD, TABLE = "run.json", "table.csv"
# What a line of the log holds beside the figures of the objective.
NO_FIGURES = (
    *("event", "step", "epoch", "seconds", "lr", "grad_norm"),
    *("steps_per_second", "minutes_left", "memory_mib", "gpu_mib"),
)
TRIAL_STEPS = 20  # of each training with --dry
# Options that may change when a stage is resumed: no figure depends on them.
RESUMABLE_OPTIONS = ("workers", "device", "checkpoint_minutes")
# Families of eval's figures whose names differ from run to run: they are in its own metrics.json.
UNTABLED = ("slices.", "comparison.", "models.")


@takes_options(RunConfig)
def run(config: RunConfig) -> pd.DataFrame:
    """Run a recipe; the options are those of RunConfig. Returns the table, a row for each training of each setting.

    `run("configs/mnist.toml", set=["finetune.margin=0.5,1"])` is
    `facemetric run configs/mnist.toml --set finetune.margin=0.5,1`.
    Raises ConfigError, DataError, WeightsError or TrainingError, each with what to change."""
    require(
        processes() == 1,
        "facemetric run is for one process; under torchrun give the stages one after the other",
    )
    if config.dry:
        return try_out(config)
    return run_variants(plan(config), folder_of(config), resume=config.resume)


def run_variants(variants: list[Variant], out: Path, *, resume: bool = False) -> pd.DataFrame:
    """Check all steps, then run those that are not done; returns the table, which is written into `out`."""
    steps = {step.folder: step for variant in variants for step in variant.steps}
    made = {str(folder) for folder in steps}
    for step in steps.values():
        check_step(step, made)
    for step in steps.values():
        check_folder(step, resume=resume)
    for folder, step in steps.items():
        record = read_record(folder)
        if record and record["done"]:
            say(f"{step.stage}: done before in {folder}")
            continue
        say(f"\n{step.stage}: {folder}")
        run_step(step, record)
    return write_table(out, variants)


def try_out(config: RunConfig) -> pd.DataFrame:
    """The whole recipe with TRIAL_STEPS steps of each training, in a folder that is gone at the end."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "trial"
        table = run_variants([shortened(variant) for variant in plan(replace(config, out=out))], out)
    say(f"a trial of at most {TRIAL_STEPS} steps of each training; nothing of it was kept")
    return table


def shortened(variant: Variant) -> Variant:
    """The variant with at most TRIAL_STEPS steps of each training, whatever its recipe and settings ask for."""
    steps = []
    for step in variant.steps:
        if step.stage in TRAINING:
            limit = min(step.config.max_steps or TRIAL_STEPS, TRIAL_STEPS)
            step = step._replace(config=replace(step.config, max_steps=limit, track="off"))
        steps.append(step)
    return variant._replace(steps=tuple(steps))


def check_step(step: Step, made: Collection[str]) -> None:
    """Raise ConfigError, DataError or WeightsError for what would stop a stage hours later: numbers, names, and paths
    that are not there. `made` are the folders that stages before it will fill."""
    CHECKS[step.stage](step.config)
    for option in ("data", "gallery", "unlabelled"):
        for text in getattr(step.config, option, ()):
            if not Path(parse_source(text).path).exists():
                raise DataError(f"[{step.stage}] {option}: {text}: no such file or folder")
    for option in (
        "embeddings",
        "pairs",
        "val_identities",
        "leave_out",
        "leave_out_images",
        "merge",
        "families",
    ):
        path = getattr(step.config, option, None)
        if path is not None and not path.exists():
            raise DataError(f"[{step.stage}] {option}: {path}: no such file")
    for text in getattr(step.config, "teacher", ()):
        _, name = named(text)
        if Path(name).suffix not in TABLES:
            find_weights(name)
        elif not Path(name).is_file():
            raise DataError(f"[{step.stage}] teacher: {text}: no such file")
    for name in (getattr(step.config, "weights", ""), *getattr(step.config, "compare", ())):
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
        {key: value for key, value in options.items() if key not in RESUMABLE_OPTIONS}
        for options in (usual | record["options"], config_dict(step.config))
    )
    if isinstance(before.get("compare"), str):  # of a record when there was one other model at most
        before["compare"] = [before["compare"]] if before["compare"] else []
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
    write_text_whole(folder / RECORD, json.dumps(record, indent=2) + "\n")


def run_step(step: Step, before: Mapping[str, Any] | None) -> None:
    """Run a stage, or the rest of it, and keep its record; minutes add up over the sittings."""
    config = step.config
    if before is not None and step.stage in TRAINING:
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
    """A training stage; its figures are those of the kept weights, and what its objective (loss, accuracy, share of
    triplets that violate the margin, ...) was in the last steps and the last validation of the training itself."""

    def run_stage(config: Any) -> dict[str, float]:
        trained = runner(config)
        last: dict[str, dict[str, Any]] = {"train": {}, "validation": {}}
        for line in read_log(trained.run / LOG):
            last[line["event"]] = line
        figures = {f"train_{name}": value for name, value in last["train"].items() if name not in NO_FIGURES}
        figures |= trained.metrics
        # Those of the objective are of the training itself, whichever weights were kept.
        no_objective = (*NO_FIGURES, *OF_WEIGHTS)
        figures |= {n: v for n, v in last["validation"].items() if not n.startswith(no_objective)}
        return {name: value for name, value in figures.items() if isinstance(value, (int, float))}

    return run_stage


def score(config: Any) -> dict[str, float]:
    """eval; its figures under the names of the table."""
    found = run_evaluate(config)
    say(evaluation_text(found))
    return figures_of_eval(found)


def figures_of_eval(found: Evaluation) -> dict[str, float]:
    """What the table of a recipe shows of an evaluation: every figure that was measured, but groups and differences."""
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


CHECKS: dict[str, Callable[[Any], object]] = {
    "pretrain": check_training,
    "finetune": check_training,
    "eval": check_options,
    "visualize": check_visualize,
}
RUNNERS: dict[str, Callable[[Any], dict[str, float]]] = {
    "pretrain": train(pretrain),
    "finetune": train(finetune),
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
    say(f"\n{table.dropna(axis=1, how='all').T.to_string(header=False, na_rep='')}\n{path}")
    return table
