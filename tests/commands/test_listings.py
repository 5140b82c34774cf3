"""The list of runs: how each stands, and its best epoch."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from facemetric.cli import main
from facemetric.commands.listings import find_runs, list_runs, runs_text
from facemetric.config import RunsConfig
from facemetric.data.images import Preprocess
from facemetric.errors import DataError
from facemetric.model.embedder import build_embedder
from facemetric.model.weights import folder as weights_folder
from facemetric.model.weights.save_load import save_weights
from facemetric.training.run.best import TAR
from facemetric.training.run.run import Run


def write(folder: Path, *events: tuple[str, int, dict[str, Any]], checkpoint: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text('head = "softmax"\nepochs = 9\n')
    lines = [json.dumps({"event": event, "step": step, **more}) + "\n" for event, step, more in events]
    (folder / "log.jsonl").write_text("".join(lines))
    if checkpoint:
        (folder / "checkpoint.previous").write_bytes(b"")
    return folder


def validation(epoch: int, score: float) -> tuple[str, int, dict[str, Any]]:
    return "validation", 10 * epoch, {"epoch": epoch, TAR: score, "val_eer": 1 - score}


def test_every_state_and_the_best_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = write(
        tmp_path / "a", validation(1, 0.2), validation(2, 0.7), validation(3, 0.5), ("finished", 30, {})
    )
    with open(done / "log.jsonl", "a") as file:
        file.write('{"event": "tr')  # a crash in the middle of a line
    write(tmp_path / "deep/b", validation(1, 0.25), ("stopped", 15, {}))
    write(tmp_path / "c", validation(1, 0.2), ("train", 13, {"minutes_left": 90.0}))
    write(tmp_path / "d", validation(1, 0.2), checkpoint=False)
    write(tmp_path / "e", ("before", 0, {}), checkpoint=False)
    (tmp_path / "no run").mkdir()
    states = {run.folder.name: run.state for run in find_runs(tmp_path)}
    assert states == {"a": "finished", "b": "stopped", "c": "interrupted", "d": "lost", "e": "not begun"}
    list_runs(RunsConfig(tmp_path))
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == "stopped and interrupted runs go on by the same command with --resume"
    assert said[1].split()[:8] == ["a", "pretrain", "finished", "3/9", "-", "2", "0.7000", "0.3000"]
    assert said[4].split()[0] == "deep/b"
    assert said[5].split()[3:8] == ["begun", "0/9", "-", "-", "-"]


def test_a_running_one_says_how_long_it_takes(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", config_toml='miner = "hard"\nepochs = 5\n', resume=False)
    run.log("train", 7, minutes_left=125.4)
    (found,) = find_runs(tmp_path)
    assert (found.state, found.stage, found.epochs, found.left) == (
        "running",
        "finetune",
        "0/5",
        "2 h 05 min",
    )
    run.close()
    (found,) = find_runs(tmp_path / "run")
    assert (found.state, found.left) == ("lost", "")


def test_figures_that_are_no_numbers_are_passed_over(tmp_path: Path) -> None:
    """A figure that was not finite is written as text; a damaged line may hold anything."""
    odd: dict[str, Any] = {"epoch": "two", TAR: "nan", "val_eer": 10**400}
    events = validation(1, 0.3), ("validation", 20, odd), ("train", "?", {"minutes_left": math.inf})
    folder = write(tmp_path / "a", *events)  # type: ignore[arg-type]
    (found,) = find_runs(tmp_path)
    assert (found.best_epoch, found.epochs, found.state) == (1, "?/9", "interrupted")
    for file in folder.glob("checkpoint*"):
        file.unlink()
    assert runs_text(find_runs(tmp_path), tmp_path).splitlines()[1].split()[2] == "lost"


@pytest.mark.parametrize(
    ("best_by", "epoch"),
    [('"eer"', 2), ('"auc"', 1), ('"last"', 3), ('"tar@0.01"', 2), ('"of next year"', 2), ('["eer"]', 2)],
)
def test_the_best_epoch_is_that_of_the_run(tmp_path: Path, best_by: str, epoch: int) -> None:
    events = [validation(1, 0.2), validation(2, 0.7), validation(3, 0.5)]
    for number, (_, _, figures) in enumerate(events):
        figures["val_auc"] = 0.9 - number / 10
    folder = write(tmp_path / "a", *events)
    (folder / "config.toml").write_text(f"epochs = 3\nbest_by = {best_by}\n")
    (found,) = find_runs(tmp_path)
    assert found.best_epoch == epoch


@pytest.mark.parametrize("options", [b"epochs = 9" + b"[" * 100_000, b"a = " + b"[" * 100_000, b"\xff"])
def test_options_that_cannot_be_read_are_unknown(tmp_path: Path, options: bytes) -> None:
    (write(tmp_path / "a", validation(1, 0.3)) / "config.toml").write_bytes(options)
    (found,) = find_runs(tmp_path)
    assert found.epochs == "1/?"


def test_no_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    list_runs(RunsConfig(tmp_path))
    assert capsys.readouterr().out == f"no runs below {tmp_path}\n"
    with pytest.raises(DataError, match="no such folder"):
        find_runs(tmp_path / "nowhere")


def run() -> None:
    with pytest.raises(SystemExit) as ended:
        main(["weights"])
    assert ended.value.code == 0


def test_the_list_says_what_the_cards_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(weights_folder, "SHIPPED", (tmp_path,))
    run()
    assert capsys.readouterr().out == "no weights came with this installation\n"
    embedder = build_embedder("lcnet_035", preprocess=Preprocess(size=(32, 32)), embedding_size=16)
    figures = {"lfw_accuracy": 0.91234, "images_per_second": 1234.5}
    save_weights(tmp_path / "measured", embedder, provenance={}, metrics=figures)
    save_weights(tmp_path / "bare", embedder, provenance={}, metrics={})
    run()
    head, bare, measured = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["name", "MB", "architecture"]
    size = f"{(tmp_path / 'bare' / 'model.safetensors').stat().st_size / 1e6:.1f}"
    assert bare.split() == ["bare", size, "lcnet_035", "32", "16", "-", "-", "-"]
    assert measured.split() == ["measured", size, "lcnet_035", "32", "16", "91.23%", "-", "1,234"]
