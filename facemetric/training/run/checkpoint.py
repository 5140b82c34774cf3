"""Checkpoints: written whole or not at all, the one before kept until the next was read back."""

from __future__ import annotations

import errno
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from facemetric.errors import ConfigError, writing
from facemetric.files import sync

UNREADABLE = (
    RuntimeError,  # NotImplementedError too: a compression that zip files may have
    EOFError,
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
)


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write to a temporary file, read it back, keep the last one as `.previous`, then take its place."""
    write_whole_checkpoint(path, state, keep=path.with_suffix(".previous"))


def write_whole_checkpoint(path: Path, state: dict[str, Any], *, keep: Path | None = None) -> None:
    """Write to a temporary file, read it back, then take the place of `path`, whose file before becomes `keep`."""
    staging = path.with_suffix(".new")
    try:
        with writing(path), open(staging, "wb") as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # torch hides the system's error behind one of its own
                raise error.__context__ if isinstance(error.__context__, OSError) else error from None
            file.flush()
            os.fsync(file.fileno())
        fault = damage(staging)
        if fault:
            raise OSError(errno.EIO, f"was not read back as it was written ({fault})", str(path))
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    sync(path.parent)


def damage(path: Path) -> str:
    """What is wrong with the bytes of a checkpoint; "" where nothing is.

    torch does not look at the checksums that it writes: a flipped bit would become a wrong weight."""
    try:
        with zipfile.ZipFile(path) as parts:
            wrong = parts.testzip()
    except UNREADABLE as error:
        return _reason(error)
    return f"{wrong} has another checksum" if wrong else ""


def load_checkpoint(
    path: Path, device: torch.device, fault_of: Callable[[dict[str, Any]], str] = lambda state: ""
) -> tuple[dict[str, Any], str]:
    """The newest whole checkpoint, and a sentence where that is not the last one ("" otherwise).

    `fault_of` says what else of a checkpoint is missing or damaged, "" where nothing is.

    Nothing but tensors, numbers, texts and containers is built from the file. Raises ConfigError where there
    is no checkpoint, or none can be read."""
    reasons = []
    for candidate in (path, path.with_suffix(".previous")):
        if not candidate.exists():
            reasons.append(f"{candidate.name} is missing")
            continue
        fault = damage(candidate)
        if not fault:
            try:
                state = torch.load(candidate, map_location=device, weights_only=True)
            except UNREADABLE as error:
                fault = _reason(error)
        if fault:
            reasons.append(f"{candidate.name} is damaged ({fault})")
            continue
        if lacking := fault_of(state):
            reasons.append(f"{candidate.name} needs what is not there: {lacking}")
            continue
        note = f"{reasons[0]}; going on from {candidate.name}" if reasons else ""
        return state, note
    raise ConfigError(f"no checkpoint in {path.parent} is whole ({'; '.join(reasons)}); name another --out")


def set_aside(path: Path) -> None:
    """Rename a damaged newest checkpoint: the next one would else push it over the good `.previous`."""
    if path.exists():
        os.replace(path, path.with_suffix(".damaged"))


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:80]
