"""--dry: what it says of a stage that learns, and of one that cannot."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facemetric.commands import run as recipe
from facemetric.config import FinetuneConfig, PretrainConfig, make_config
from facemetric.data.index import read_index
from facemetric.machine import pick_device
from facemetric.training import dry
from facemetric.training.finetune import task_of
from facemetric.training.run import Run, Trained
from facemetric.training.split import read_split
from facemetric.training.tasks.classification import Classification
from facemetric.training.tasks.triplets import TripletObjective

FAST: dict[str, Any] = {"epochs": 7, "workers": 0, "device": "cpu", "batch_size": 24}
SMALL = FAST | {"arch": "test_resnet", "image_size": 32, "optimizer": "adamw", "lr": 3e-3}


def test_stage_one_learns_a_handful(faces: Path, tmp_path: Path) -> None:
    config = make_config(PretrainConfig, str(faces), **SMALL, validate_every=2, closed_set_fraction=0.0)
    found = dry.dry_run(config, tmp_path / "kept")
    assert (found.images, found.identities) == (48, 8)
    assert found.first_loss == pytest.approx(math.log(8), abs=0.3)  # eight equally likely classes
    assert found.learned
    assert found.last_loss < 0.5 * found.first_loss
    split = read_split(config)
    run = Run(tmp_path / "whole", config_toml="", resume=False)
    task = Classification(config, split, run, pick_device("cpu"))
    run.close()
    assert found.steps == 7 * task.steps_per_epoch
    assert found.memory_mib > 50
    assert found.minutes >= found.steps * found.seconds_a_step / 60 > 0
    assert "the loss on 48 images of 8 identities falls as it should in 20 steps" in found.text("pretrain")


@pytest.mark.parametrize("freeze", ["backbone", ["batchnorm", "none"]])
def test_stage_two_learns_a_handful(stage_one: Trained, faces: Path, tmp_path: Path, freeze: Any) -> None:
    options = FAST | {
        "weights": str(stage_one.run),
        "freeze": freeze,
        "images_per_identity": 3,
        "miner": "all",
    }
    options |= {"freeze_epochs": 2 if len(freeze) == 2 else (), "lr": 3e-3, "out": tmp_path / "out"}
    config = make_config(FinetuneConfig, str(faces), **options)
    found = dry.dry_run(config, tmp_path / "kept")
    assert (found.images, found.identities) == (24, 8)
    assert found.learned
    run = Run(tmp_path / "whole", config_toml="", resume=False)
    task = task_of(config, dry.load_weights(stage_one.run), read_split(config), run, pick_device("cpu"))
    run.close()
    assert found.steps == 7 * task.steps_per_epoch
    assert (tmp_path / "kept" / "best" / "model.safetensors").is_file()


def test_a_loss_with_the_wrong_sign_is_not_learned(
    stage_one: Trained, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = TripletObjective.__call__

    def wrong(self: TripletObjective, *batch: Any) -> Any:
        loss, figures = mine(self, *batch)
        return -loss, figures

    monkeypatch.setattr(TripletObjective, "__call__", wrong)
    config = make_config(FinetuneConfig, str(faces), **FAST, weights=str(stage_one.run), miner="all", lr=3e-3)
    found = dry.dry_run(config, tmp_path / "kept")
    assert not found.learned
    assert "does NOT fall as it should in 20 steps" in found.text("finetune")
    assert "try another --lr" in found.text("finetune")


def test_a_handful_is_few_identities_that_fill_the_batch(faces: Path) -> None:
    index = read_index([str(faces)])
    few = dry.handful(index, 24, 3)
    assert (len(few), len(few.identities)) == (24, 8)
    assert few.counts().tolist() == [3] * 8
    assert len(dry.handful(index, 64, 8, most=8)) == 48  # identities have six images
    whole = dry.handful(index, 90, 3)  # 16 identities with three images are not enough
    assert len(whole) >= 90
    assert len(dry.handful(index, 1000, 3)) == len(index)
    uneven = index.select(np.flatnonzero((index.identity != 3) | (np.arange(len(index)) % 6 == 0)))
    assert 1 not in dry.handful(uneven, 24, 3).counts()


def test_a_recipe_is_tried_without_a_trace(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [f"data = ['{faces}']", "device = 'cpu'", "workers = 0", "batch_size = 24"]
    lines += ["[pretrain]", "arch = 'test_resnet'", "image_size = 32", "optimizer = 'adamw'", "lr = 3e-3"]
    lines += ["[finetune]", "images_per_identity = 3", "miner = 'all'", "lr = 3e-3"]
    (tmp_path / "faces.toml").write_text("\n".join(lines))
    table = recipe.run("faces.toml", dry=True)
    assert table["stage"].tolist() == ["pretrain", "finetune"]
    assert table["learned"].tolist() == [True, True]
    said = capsys.readouterr().out
    assert "training in all: about" in said
    assert [path.name for path in tmp_path.iterdir()] == ["faces.toml"]
