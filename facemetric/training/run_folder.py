"""What a run folder holds, for those who look at it without torch, which takes seconds to import."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG, LOG, CHECKPOINT, BAD_IMAGES = "config.toml", "log.jsonl", "checkpoint.pt", "bad_images.csv"
LOCK = "run.lock"
# The validation figure that picks the best epoch; AUC where the validation pairs cannot support that FAR.
SCORE, AUC = "val_tar_at_far_0.01", "val_auc"


def judged_by(figures: Mapping[str, Any]) -> str:
    """The name of the figure, up is better, that epochs with these validation figures are judged by."""
    return SCORE if SCORE in figures else AUC


def has_checkpoint(path: Path) -> bool:
    """Whether there is a checkpoint to go on from, whole or not."""
    return path.exists() or path.with_suffix(".previous").exists()


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log.jsonl; [] where there is none. A line that a crash cut is passed over."""
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
