"""What `facemetric runs` prints: the training runs below a folder, the state of each, and its best figures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple, get_args

from facemetric.config import RunsConfig
from facemetric.config.build import read_toml
from facemetric.config.training import BestBy
from facemetric.errors import ConfigError, DataError
from facemetric.files import is_locked
from facemetric.model.weights.folder import MODEL, read_config, shipped_weights
from facemetric.training.run.best import EER, TAR, Judge
from facemetric.training.run.folder import (
    CHECKPOINT,
    CONFIG,
    LOCK,
    LOG,
    has_checkpoint,
    in_words,
    read_log,
)

# Heading -> figure of the weights' own config.json, and how it is shown.
FIGURES = {
    "LFW accuracy": ("lfw_accuracy", "{:.2%}"),
    "TAR @ FAR=1e-3": ("lfw_tar_at_far_0.001", "{:.3f}"),
    "images/s, 2 cores": ("images_per_second", "{:,.0f}"),
}
BEYOND = 1e15  # no figure, step or minute of a run is as large


def aligned(rows: list[list[str]]) -> str:
    """Rows of texts as lines whose columns are aligned."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def describe_weights(folder: Path) -> dict[str, Any]:
    """Name, size in MB, architecture, picture, embedding, and all figures of a weights folder."""
    config = read_config(folder)
    ours = config["facemetric"]
    return {
        "name": folder.name,
        "megabytes": (folder / MODEL).stat().st_size / 1e6,
        "architecture": config["architecture"],
        "pixels": ours["preprocess"]["size"][0],
        "embedding_size": ours["embedding_size"],
    } | ours.get("metrics", {})


def catalog_text(found: list[dict[str, Any]]) -> str:
    """The table of described weights; a figure that they do not have is a dash."""
    if not found:
        return "no weights came with this installation"
    rows = [["name", "MB", "architecture", "pixels", "embedding", *FIGURES]]
    for each in found:
        figures = [shown.format(each[key]) if key in each else "-" for key, shown in FIGURES.values()]
        size = f"{each['megabytes']:.1f}"
        sides = [str(each["pixels"]), str(each["embedding_size"])]
        rows.append([each["name"], size, each["architecture"], *sides, *figures])
    return aligned(rows)


def list_weights() -> None:
    """Print the shipped weights: name, size, speed and accuracy, as each one's model card says."""
    print(catalog_text([describe_weights(folder) for folder in shipped_weights()]))


class Standing(NamedTuple):
    """A run: `state` is running, finished, stopped, interrupted, lost or not begun."""

    folder: Path
    stage: str
    state: str
    epochs: str
    left: str
    best: dict[str, float]
    best_epoch: int | None
    changed: float


def standing(folder: Path) -> Standing:
    """The state of the run in a folder, from its log, its options, its lock and its checkpoint."""
    log = read_log(folder / LOG)
    options = read_options(folder / CONFIG)
    stage = "finetune" if "miner" in options else "pretrain" if "head" in options else "-"
    seen = [numbers(line) for line in log if line.get("event") == "validation"]
    asked = options.get("best_by")
    best = best_of(seen, next((Judge(by) for by in get_args(BestBy) if by == asked), Judge()))
    trained = [numbers(line) for line in log if line.get("event") == "train"]
    state = state_of(folder, log)
    left = trained[-1].get("minutes_left") if trained and state == "running" else None
    return Standing(
        folder,
        stage,
        state,
        f"{seen[-1].get('epoch', '?') if seen else 0}/{options.get('epochs', '?')}",
        "" if left is None else in_words(left),
        {name: value for name, value in best.items() if name.startswith("val_")},
        best.get("epoch"),
        (folder / LOG).stat().st_mtime,
    )


def best_of(validations: list[dict[str, Any]], judge: Judge) -> dict[str, Any]:
    """The validation that a run keeps the weights of: the best, the first of equals; of `last` the last. {} where none
    has the figure."""
    scores = [judge.score(each) for each in validations]
    judged = [(score, each) for score, each in zip(scores, validations, strict=True) if score is not None]
    if judged:
        return max(judged, key=lambda pair: pair[0])[1]
    return validations[-1] if validations and judge.by == "last" else {}


def numbers(line: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a line of the log; one that was not finite is text there."""
    return {
        name: value for name, value in line.items() if isinstance(value, int | float) and abs(value) < BEYOND
    }


def state_of(folder: Path, log: list[dict[str, Any]]) -> str:
    """One word: a run that ended without a word was killed, and goes on with --resume where it has a checkpoint."""
    last = log[-1].get("event") if log else ""
    if is_locked(folder / LOCK):
        return "running"
    if last in ("finished", "stopped"):
        return str(last)
    if has_checkpoint(folder / CHECKPOINT):
        return "interrupted"
    return "lost" if any(numbers(line).get("step", 0) > 0 for line in log) else "not begun"


def read_options(path: Path) -> dict[str, Any]:
    """The options of a run; {} where they cannot be read."""
    try:
        return read_toml(path)
    except ConfigError:
        return {}


def find_runs(root: Path) -> list[Standing]:
    """All runs below a folder, by name. DataError where it is not there."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name the folder that holds the runs")
    folders = {path.parent for name in (LOG, LOCK) for path in root.rglob(name)}
    return [standing(folder) for folder in sorted(folders) if (folder / LOG).exists()]


def runs_text(found: list[Standing], root: Path) -> str:
    """The table of runs."""
    if not found:
        return f"no runs below {root}"
    rows = [["run", "stage", "state", "epochs", "left", "best epoch", "TAR @ FAR=1e-2", "EER", "last line"]]
    for run in found:
        name = str(run.folder.relative_to(root)) if run.folder != root else str(root)
        epoch = "-" if run.best_epoch is None else str(run.best_epoch)
        figures = [f"{run.best[key]:.4f}" if key in run.best else "-" for key in (TAR, EER)]
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.changed))
        rows.append([name, run.stage, run.state, run.epochs, run.left or "-", epoch, *figures, when])
    return aligned(rows)


def list_runs(config: RunsConfig) -> None:
    """Print the runs below a folder; what was stopped or interrupted goes on by the same command with --resume."""
    found = find_runs(config.folder)
    print(runs_text(found, config.folder))
    if any(run.state in ("stopped", "interrupted") for run in found):
        print("stopped and interrupted runs go on by the same command with --resume")
