"""What a run folder holds, for those who look at it without torch, which takes seconds to import."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from facemetric.errors import ConfigError
from facemetric.machine import MIB, resident_peak

CONFIG, LOG, CHECKPOINT, BAD_IMAGES = "config.toml", "log.jsonl", "checkpoint.pt", "bad_images.csv"
LOCK = "run.lock"
# How the names of figures begin that a validation has of the weights alone; all others are of the objective.
OF_WEIGHTS = ("val_tar_at_far_", "val_eer", "val_auc", "val_knn_accuracy", "closed_set_accuracy")
COLUMNS = 120  # of a line of figures
SHORT = {
    "val_tar_at_far_": "TAR@",
    "val_eer": "EER",
    "val_auc": "AUC",
    "val_knn_accuracy": "kNN",
    "val_loss": "loss",
    "val_fraction_positive": "violating",
    "closed_set_accuracy": "closed set",
}


class Pace:
    """Steps by the clock. Validation counts for the time that is left, as it comes again."""

    def __init__(self) -> None:
        self.began = self.last = time.monotonic()
        self.first = self.step = 0

    def start(self, step: int) -> None:
        """A run begins, or goes on, at a step."""
        self.first = self.step = step
        self.began = self.last = time.monotonic()

    def resume(self) -> None:
        """Steps begin again, after a validation or a checkpoint."""
        self.last = time.monotonic()

    def line(self, step: int, total: int) -> dict[str, float]:
        """Steps a second since the last line, minutes left of the run, memory in MiB."""
        now = time.monotonic()
        rate = (step - self.step) / max(now - self.last, 1e-9)
        self.step, self.last = step, now
        return {"steps_per_second": rate, "minutes_left": self.minutes(step, total), **memory()}

    def minutes(self, step: int, total: int) -> float:
        """Minutes that the steps from `step` to `total` take at the speed so far."""
        return (total - step) * (time.monotonic() - self.began) / max(step - self.first, 1) / 60

    def left(self, step: int, total: int) -> str:
        """The end of a sentence, with the time left; "" at the start and at the end."""
        return f"  {in_words(self.minutes(step, total))} left" if self.first < step < total else ""


class Meter:
    """Means of figures over some steps, of each over the steps that have it."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.count = 0  # steps

    def add(self, figures: dict[str, float]) -> None:
        """Count one step's figures."""
        for name, value in figures.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1
        self.count += 1

    def flush(self) -> dict[str, float]:
        """The means so far; the next ones start from nothing."""
        means = {name: total / self.counts[name] for name, total in self.sums.items()}
        self.sums, self.counts, self.count = {}, {}, 0
        return means


def memory() -> dict[str, float]:
    """The most memory that this process has held so far, MiB, and the most of its GPU."""
    peak = resident_peak()
    found = {"memory_mib": peak / MIB} if peak else {}
    import torch  # here, as `facemetric runs` takes in_words alone

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["gpu_mib"] = torch.cuda.max_memory_allocated() / MIB
    return found


def figures_line(start: str, figures: Mapping[str, float], end: str = "") -> str:
    """`epoch 3/20  TAR@0.01 0.504  EER 0.102 *`: as many figures as fit on a line; the log has all of them."""
    line = start
    for name, value in figures.items():
        long = next((long for long in SHORT if name.startswith(long)), "")
        text = f"  {SHORT[long] + name.removeprefix(long) if long else name.replace('_', ' ')} {value:.4g}"
        if len(line) + len(text) + len(end) <= COLUMNS:
            line += text
    return line + end


def in_words(minutes: float) -> str:
    """`2 h 05 min`, `7 min` or `40 s`."""
    if minutes < 1:
        return f"{60 * minutes:.0f} s"
    whole = round(minutes)
    return f"{whole // 60} h {whole % 60:02d} min" if whole >= 60 else f"{whole} min"


def has_checkpoint(path: Path) -> bool:
    """Whether there is a checkpoint to go on from, whole or not."""
    return path.exists() or path.with_suffix(".previous").exists()


def check_run_folder(folder: Path, resume: bool) -> None:
    """Raise ConfigError where a run cannot begin in a folder, as another is there, or cannot go on: none is."""
    log, saved = folder / LOG, has_checkpoint(folder / CHECKPOINT)
    begun = any(line.get("step", 0) > 0 for line in read_log(log)) or (saved and not log.exists())
    if resume and not saved and (begun or not (folder / CONFIG).exists()):
        remedy = "name another --out, or remove it" if begun else "start without --resume"
        raise ConfigError(f"{folder} holds no checkpoint to resume; {remedy}")
    if begun and not resume:
        remedy = "go on with it by --resume" if saved else "remove it"
        raise ConfigError(f"{folder} already holds a run; {remedy}, or name another --out")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log.jsonl; [] where there is none. A line that a crash cut is skipped."""
    lines = []
    try:
        texts = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    for text in texts:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines
