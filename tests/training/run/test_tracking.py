"""`--track`: the figures of log.jsonl reach a tracker's package, and nothing that it does ends a training."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from facemetric import finetune, pretrain
from facemetric.errors import ConfigError
from facemetric.training.run import tracking
from facemetric.training.run.folder import read_log
from facemetric.training.run.run import Run

# Packages that write what they are told into told.jsonl of the working folder.
TELL = """
import json, os
def tell(*words):
    if os.environ.get("FAIL_AT") == words[0]:
        raise ConnectionError("no network\\n(really)")
    with open("told.jsonl", "a") as file:
        file.write(json.dumps(words) + "\\n")
"""
STAND_INS = {
    "wandb": TELL
    + """
class Settings:
    def __init__(self, **options): pass
class Run:
    id = "r1"
    def define_metric(self, *names, **options): pass
    def log(self, figures):
        step = figures.pop("step")
        tell("log", step, figures)
    def finish(self, exit_code): tell("finish", exit_code == 0)
def init(project, name, dir, config, id, resume, settings):
    tell("init", project, name, config["lr"], id == "r1")
    return Run()
""",
    "mlflow": TELL
    + """
class Run:
    class info:
        run_id = "r1"
def set_experiment(name): pass
def start_run(run_id, run_name):
    tell("init", "facemetric", run_name, None, run_id == "r1")
    return Run()
def log_params(options): tell("options", options["lr"])
def log_metrics(figures, step): tell("log", step, figures)
def end_run(status): tell("finish", status == "FINISHED")
""",
    "trackio": TELL
    + """
names = []
def init(project, name, config, resume):
    tell("init", project, name.rpartition("-")[0] or name, config["lr"], name in names)
    names.append(name)
def log(figures, step): tell("log", step, figures)
def finish(): tell("finish", True)
""",
}


@pytest.fixture
def stand_in(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that is installed only in the test, and the working folder that it writes into."""
    name = request.param
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / f"{name}.py").write_text(STAND_INS[name])
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.chdir(tmp_path)
    return str(name)


def told(folder: Path) -> list[list[Any]]:
    path = folder / "told.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("stand_in", STAND_INS, indirect=True)
def test_the_lines_of_a_run_and_the_same_run_after_a_stop(stand_in: str, tmp_path: Path) -> None:
    folder, options = tmp_path / "my_run", "lr = 0.1\n"
    with Run(folder, config_toml=options, resume=False, track=stand_in) as run:
        run.log("train", 2, loss=0.5, lr=0.1)
        run.log("validation", 2, val_auc=0.7, epoch=1, note="text")
        mark = run.mark()
    (folder / "checkpoint.pt").write_bytes(b"one")
    found = [line for line in told(tmp_path) if line[0] != "options"]
    given = None if stand_in == "mlflow" else 0.1  # which is told the options by a call of its own
    assert found == [
        ["init", "facemetric", "my_run", given, False],
        ["log", 2, {"train/loss": 0.5, "train/lr": 0.1}],
        ["log", 2, {"validation/val_auc": 0.7, "validation/epoch": 1.0}],
        ["finish", True],
    ]
    before = len(told(tmp_path))
    with pytest.raises(RuntimeError), Run(folder, config_toml=options, resume=True, track=stand_in) as run:  # noqa: PT012
        run.go_on(2, mark)
        run.log("train", 4, loss=0.25)
        raise RuntimeError
    assert told(tmp_path)[before:] == [
        ["init", "facemetric", "my_run", given, True],
        ["log", 4, {"train/loss": 0.25}],
        ["finish", stand_in == "trackio"],  # which has no word for a run that stopped
    ]


@pytest.mark.parametrize("stand_in", ["wandb"], indirect=True)
def test_a_training_tells_what_its_log_has(
    stand_in: str, faces: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    pretrain(faces, **small, out=tmp_path / "run", track=stand_in, max_steps=2)
    logged = [line for line in told(tmp_path) if line[0] == "log"]
    lines = [line for line in read_log(tmp_path / "run" / "log.jsonl") if len(line) > 3]
    assert [(step, next(iter(figures)).partition("/")[0]) for _, step, figures in logged] == [
        (line["step"], line["event"]) for line in lines
    ]
    assert {"train/loss", "train/lr"} <= set(logged[0][2])
    assert logged[0][2]["train/loss"] == lines[0]["loss"]


@pytest.mark.parametrize("stand_in", ["wandb"], indirect=True)
@pytest.mark.parametrize("where", ["init", "log", "finish"])
def test_a_tracker_that_fails_ends_nothing(
    stand_in: str,
    where: str,
    stage_one: Any,
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("FAIL_AT", where)
    options: dict[str, Any] = {"epochs": 1, "batch_size": 32, "workers": 0, "device": "cpu"}
    cache = tmp_path / "cache"
    finetune(faces, weights=stage_one.run, **options, out=tmp_path / "run", track=stand_in, cache=cache)
    printed = capsys.readouterr().out
    assert printed.count("warning: --track") == 1
    assert (
        "warning: --track wandb failed (ConnectionError: no network (really)); the training goes on, log.jsonl has its "
        "figures\n" in printed
    )
    assert read_log(tmp_path / "run" / "log.jsonl")[-1]["event"] != "stopped"


@pytest.mark.parametrize("stand_in", ["trackio"], indirect=True)
def test_a_tracker_that_hangs_is_left_alone(
    stand_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "PATIENCE", 0.2)
    awake = threading.Event()

    def wake_late(start: tracking.Start) -> tracking.Backend:
        awake.wait(30)
        raise ConnectionError("too late")

    monkeypatch.setitem(tracking.TRACKERS, "trackio", wake_late)
    tracker = tracking.Tracker("trackio", tmp_path, "", resume=False)
    began = time.monotonic()
    tracker.log("train", 1, {"loss": 0.5})
    tracker.close(finished=True)
    assert time.monotonic() - began < 10
    awake.set()
    tracker._thread.join()
    assert capsys.readouterr().out == (
        "warning: --track trackio has not taken everything after 0 s, and is left alone; the training goes on, "
        "log.jsonl has its figures\n"
    )


@pytest.mark.parametrize("text", ["{", "[]", '{"tracker": "mlflow", "run": "x"}', '{"tracker": "wandb"}'])
def test_a_run_of_another_tracker_is_not_gone_on_with(tmp_path: Path, text: str) -> None:
    (tmp_path / "tracker.json").write_text(text)
    assert tracking.known_run(tmp_path, "wandb") == ""


def test_a_stop_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []
    monkeypatch.setitem(
        tracking.TRACKERS,
        "wandb",
        lambda start: tracking.Backend("r", lambda *a: found.append(a), found.append),
    )
    tracker = tracking.Tracker("wandb", tmp_path, 'a = "\\udcff"', resume=False)
    tracker.log("stopped", 3, {"step": 3, "seconds": 0.5, "event": "stopped"})
    tracker.close(finished=False)
    assert found == [False]


def test_a_package_that_is_not_there(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facemetric.config.checks.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs its package: pip install 'facemetric\[wandb\]'"):
        pretrain(faces, out=tmp_path / "run", track="wandb")
    assert not (tmp_path / "run").exists()
