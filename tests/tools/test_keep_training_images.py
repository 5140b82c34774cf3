"""Hashes of training images for weights that lost them: those that the run itself would have written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import average_weights
import keep_training_images
import pytest
import torch
from small_trainings import SMALL, tensors

from facemetric import pretrain
from facemetric.evaluation.audit.seen import FILE, TrainingImages, read_training_images, write_training_images
from facemetric.training.run.run import Trained


def call(monkeypatch: pytest.MonkeyPatch, tool: Any, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", [tool.__name__, *map(str, arguments)])
    tool.main()


@pytest.fixture(scope="module")
def runs(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Trained]:
    """Two runs from one start, with seeds that hold back the same people: the list names them."""
    work = tmp_path_factory.mktemp("runs")
    (work / "val.txt").write_text("".join(f"{name.name}\n" for name in sorted(faces.iterdir())[:4]))
    options: dict[str, Any] = SMALL | {"embedding_size": 8, "val_identities": work / "val.txt"}
    first = pretrain(str(faces), **options, out=work / "first")
    options["weights"] = str(first.run)
    return [pretrain(str(faces), **options, seed=seed, out=work / f"{seed}") for seed in (1, 2)]


def test_the_hashes_are_those_of_the_run(
    runs: list[Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = runs[0]
    expected = read_training_images(run.weights)
    assert expected is not None
    assert len(expected.hashes) == 12 * 6  # those held back are not among them
    bare = tmp_path / "bare"
    shutil.copytree(run.weights, bare)
    (bare / FILE).unlink()
    call(monkeypatch, keep_training_images, bare, "--runs", run.run.parent / "first", run.run)
    found = read_training_images(bare)
    assert found is not None
    assert set(map(bytes, found.hashes)) == set(map(bytes, expected.hashes))
    assert (found.medians == expected.medians).all()
    assert "72 hashes" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        call(monkeypatch, keep_training_images, bare, "--runs", bare)
    assert "name the folder of a run" in capsys.readouterr().err


def test_a_mean_of_runs_carries_the_hashes_of_all(
    runs: list[Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = []
    for number, run in enumerate(runs):  # each of a part of the images
        kept = read_training_images(run.weights)
        assert kept is not None
        parts.append(tmp_path / f"part{number}")
        shutil.copytree(run.weights, parts[-1])
        rows = slice(0, 40) if number == 0 else slice(30, None)
        write_training_images(parts[-1], TrainingImages(kept.hashes[rows], kept.medians, 40))
    mean = tmp_path / "mean"
    call(monkeypatch, average_weights, *parts, "--out", mean)
    for name, value in tensors(mean).items():
        both = [tensors(part)[name] for part in parts]
        torch.testing.assert_close(value.double(), (both[0].double() + both[1].double()) / 2)
    found = read_training_images(mean)
    assert found is not None
    assert set(map(bytes, found.hashes)) == set(map(bytes, kept.hashes))
    for spoil, why in (
        (lambda: write_training_images(parts[1], kept._replace(medians=kept.medians + 1)), "differ in kind"),
        (lambda: (parts[1] / FILE).unlink(), "not all have hashes"),
    ):
        spoil()
        capsys.readouterr()
        call(monkeypatch, average_weights, *parts, "--out", tmp_path / why)
        assert read_training_images(tmp_path / why) is None
        printed = capsys.readouterr().out
        assert why in printed
        assert "python tools/keep_training_images.py" in printed
