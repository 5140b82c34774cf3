"""Checkpoints: written whole or not at all, the one before kept until the next is there."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from facemetric.errors import ConfigError, writing


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write to a temporary file, sync, keep the last one as `.previous`, then take its place."""
    staging, previous = path.with_suffix(".new"), path.with_suffix(".previous")
    try:
        with writing(path), open(staging, "wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch hides the system's error behind one of its own
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    if path.exists():
        os.replace(path, previous)
    os.replace(staging, path)


def has_checkpoint(path: Path) -> bool:
    """Whether there is a checkpoint to go on from, whole or not."""
    return path.exists() or path.with_suffix(".previous").exists()


def load_checkpoint(path: Path, device: torch.device) -> tuple[dict[str, Any], str]:
    """The newest whole checkpoint, and a sentence where that is not the last one ("" otherwise).

    Nothing but tensors, numbers, texts and containers is built from the file. Raises ConfigError where there
    is no checkpoint, or none can be read."""
    reasons = []
    for candidate in (path, path.with_suffix(".previous")):
        if not candidate.exists():
            reasons.append(f"{candidate.name} is missing")
            continue
        try:
            state = torch.load(candidate, map_location=device, weights_only=True)
        except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0][:80]
            reasons.append(f"{candidate.name} is damaged ({reason})")
            continue
        note = f"{reasons[0]}; going on from {candidate.name}" if reasons else ""
        return state, note
    raise ConfigError(f"no checkpoint in {path.parent} is whole ({'; '.join(reasons)}); name another --out")
