"""`--track wandb|mlflow|trackio`: the lines of log.jsonl to a tracker, by its own package.

A figure is named as in TensorBoard, `event/name`. All calls are made in one thread of their own, so that a network that
hangs holds up no step. What fails there is told once; the training goes on, and log.jsonl has every figure.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import tomllib
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from facemetric.files import write_text_whole
from facemetric.machine import say

FILE = "tracker.json"  # in the run folder: the tracker, and its name of the run
PROJECT = "facemetric"
PATIENCE = 60.0  # seconds that the end of a run waits for what is still to be sent
MOST_LETTERS = 500  # of an option's value: MLflow takes no more


class Start(NamedTuple):
    """What a tracker is told at first: the run's folder, its options, and its name there where it goes on."""

    folder: Path
    options: Mapping[str, Any]
    known: str


class Backend(NamedTuple):
    """A tracker: its name of the run, what takes figures of a step, and what ends the run, finished or not."""

    run: str
    log: Callable[[dict[str, float], int], object]
    finish: Callable[[bool], object]


def start_wandb(start: Start) -> Backend:
    """Weights & Biases. Goes on with the same run; a step that comes again has a second point."""
    import wandb

    run = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        name=start.folder.name,
        dir=str(start.folder),
        config=dict(start.options),
        id=start.known or uuid.uuid4().hex[:12],
        resume="allow",
        settings=wandb.Settings(console="off", silent=True),
    )
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return Backend(
        run.id,
        lambda figures, step: run.log({"step": step, **figures}),
        lambda whole: run.finish(exit_code=0 if whole else 1),
    )


def start_mlflow(start: Start) -> Backend:
    """MLflow. Goes on with the same run."""
    import mlflow

    mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
    run = mlflow.start_run(run_id=start.known or None, run_name=start.folder.name)
    if not start.known:
        mlflow.log_params({name: str(value)[:MOST_LETTERS] for name, value in start.options.items()})
    return Backend(
        run.info.run_id,
        lambda figures, step: mlflow.log_metrics(figures, step=step),
        lambda whole: mlflow.end_run("FINISHED" if whole else "KILLED"),
    )


def start_trackio(start: Start) -> Backend:
    """Trackio. Goes on with the run of the same name."""
    import trackio

    name = start.known or f"{start.folder.name}-{uuid.uuid4().hex[:6]}"
    trackio.init(project=PROJECT, name=name, config=dict(start.options), resume="allow")
    return Backend(
        name,
        lambda figures, step: trackio.log(figures, step=step),
        lambda whole: trackio.finish(),
    )


TRACKERS = {"wandb": start_wandb, "mlflow": start_mlflow, "trackio": start_trackio}


class Tracker:
    """A tracker that is told the lines of a log. `resume`: the run goes on, there too where its name is known."""

    def __init__(self, name: str, folder: Path, config_toml: str, *, resume: bool) -> None:
        self.name, self.failed = name, False
        self._waiting: queue.SimpleQueue[tuple[dict[str, float], int] | bool] = queue.SimpleQueue()
        try:
            options = tomllib.loads(config_toml)
        except ValueError:  # a path that is no text
            options = {}
        start = Start(folder, options, known_run(folder, name) if resume else "")
        self._thread = threading.Thread(target=self._send, args=(start,), name=name, daemon=True)
        self._thread.start()

    def log(self, event: str, step: int, line: Mapping[str, Any]) -> None:
        """The numbers of a line."""
        figures = {
            f"{event}/{name}": float(value)
            for name, value in line.items()
            if isinstance(value, int | float)
            and not isinstance(value, bool)
            and name not in ("step", "seconds")
        }
        if figures and not self.failed:
            self._waiting.put((figures, step))

    def close(self, *, finished: bool) -> None:
        """End the run there; waits at most PATIENCE seconds."""
        self._waiting.put(finished)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._tell(f"has not taken everything after {PATIENCE:.0f} s, and is left alone")

    def _send(self, start: Start) -> None:
        try:
            backend = TRACKERS[self.name](start)
            write_text_whole(
                start.folder / FILE, json.dumps({"tracker": self.name, "run": backend.run}) + "\n"
            )
            while not isinstance(told := self._waiting.get(), bool):
                backend.log(*told)
            backend.finish(told)
        except Exception as error:  # whatever a package or its network does
            reason = " ".join(str(error).split())[:200]
            self._tell(f"failed ({type(error).__name__}{': ' if reason else ''}{reason})")

    def _tell(self, what: str) -> None:
        """One warning; nothing more is sent."""
        if self.failed:
            return
        self.failed = True
        say(f"warning: --track {self.name} {what}; the training goes on, log.jsonl has its figures")


def known_run(folder: Path, name: str) -> str:
    """A tracker's name of the run in a folder; "" where it has none."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return str(found["run"]) if found["tracker"] == name else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
