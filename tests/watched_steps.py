"""Writes down which images each step of a training sees: `watch` in a process, or this file under torchrun.

    torchrun tests/watched_steps.py FOLDER STEP pretrain DATA ...

runs a command, and at the beginning of so many steps sends SIGTERM to torchrun (-1: never)."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from facemetric import cli, distributed
from facemetric.training.tasks.classification import Classification
from facemetric.training.tasks.on_features import OnFeatures
from facemetric.training.tasks.on_images import OnImages


def watch(folder: Path, at: int = -1, then: Callable[[], object] = lambda: None) -> None:
    """Append to `folder/RANK` a line for each step that follows; before the line of step `at`, call `then`."""

    def watched(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(task: Any, batch: Any, progress: float, backward: Any) -> Any:
            number = round(progress * task.steps_per_epoch * task.config.epochs)
            if number == at:
                then()
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / str(distributed.rank()), "a") as file:
                file.write(json.dumps([number, images_of(task, batch)]) + "\n")
            return step(task, batch, progress, backward)

        return run

    for task in (Classification, OnFeatures, OnImages):
        task.step = watched(task.step)  # type: ignore[method-assign]


def images_of(task: Any, batch: Any) -> list[str]:
    """The path of each image, with the checksum of its augmented pixels or the number of its cached view."""
    if isinstance(task, OnFeatures):
        return [
            f"{task.split.train.name(task.rows[place])} {view}" for place, view in zip(*batch, strict=True)
        ]
    pixels = [zlib.crc32(image.numpy().tobytes()) for image in batch.images]
    return [
        f"{task.split.train.name(row)} {crc:08x}"
        for row, crc in zip(batch.rows.tolist(), pixels, strict=True)
    ]


def seen(*folders: Path) -> list[tuple[int, list[str]]]:
    """(step, images) of all steps that all processes took, in order; a step that was taken twice stands twice."""
    found: dict[tuple[int, int], list[str]] = {}
    for number, folder in enumerate(folders):
        for file in folder.iterdir():
            for line in file.read_text().splitlines():
                step, images = json.loads(line)
                found.setdefault((step, number), []).extend(images)
    return [(step, sorted(found[step, number])) for step, number in sorted(found)]


def stop_the_launcher() -> None:
    """In process 0, send SIGTERM to torchrun, and wait until it has come down to here."""
    if distributed.rank() > 0:
        return
    arrived, ask = threading.Event(), signal.getsignal(signal.SIGTERM)

    def pass_on(number: int, frame: Any) -> None:
        ask(number, frame)  # type: ignore[operator, misc]
        arrived.set()

    signal.signal(signal.SIGTERM, pass_on)
    os.kill(os.getppid(), signal.SIGTERM)
    assert arrived.wait(60)


if __name__ == "__main__":
    watch(Path(sys.argv[1]), int(sys.argv[2]), stop_the_launcher)
    cli.main(sys.argv[3:])
