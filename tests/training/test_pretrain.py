"""Stage one on drawn faces: same seed same numbers, identities apart, weights that open again."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from facemetric import cli, load_embedder, pretrain
from facemetric.cli import read_toml
from facemetric.config import PretrainConfig, StageConfig
from facemetric.data.index import read_index
from facemetric.errors import ConfigError, DataError, TrainingError
from facemetric.evaluation.inference import embed_index
from facemetric.training.pretrain import Classification, Trained, growing_sizes
from facemetric.training.run import Run
from facemetric.training.setup import hold_back, open_set_figures, pick_device, pick_workers, read_split


def weights_of(run: Trained) -> dict[str, torch.Tensor]:
    return load_file(run.weights / "model.safetensors")


def same_weights(one: Trained, other: Trained) -> bool:
    left, right = weights_of(one), weights_of(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def task_of(faces: Path, folder: Path, **options: Any) -> Classification:
    """The task as run_pretrain builds it."""
    config = PretrainConfig(
        (str(faces),), **({"arch": "test_resnet", "image_size": 32, "workers": 0} | options)
    )
    run = Run(folder, config_toml="", resume=False)
    torch.manual_seed(config.seed)
    return Classification(config, read_split(config), run, pick_device("cpu"))


def test_the_run_folder_is_complete(stage_one: Trained) -> None:
    names = {path.name.split(".1")[0] for path in stage_one.run.iterdir()}
    assert {"config.toml", "log.jsonl", "checkpoint.pt", "best", "events.out.tfevents"} <= names
    config = json.loads((stage_one.weights / "config.json").read_text())["facemetric"]
    assert config["metrics"] == stage_one.metrics
    assert config["provenance"]["identities"] == 14
    assert len(config["provenance"]["data_fingerprint"]) >= 16
    assert {"val_eer", "val_auc", "val_tar_at_far_0.01", "val_knn_accuracy", "closed_set_accuracy"} <= set(
        stage_one.metrics
    )
    assert all(0 <= value <= 1 for value in stage_one.metrics.values())


def test_same_seed_same_numbers_for_any_number_of_workers(
    faces: Path, stage_one: Trained, small: dict[str, Any], tmp_path: Path
) -> None:
    again = pretrain(str(faces), **small | {"workers": 1}, out=tmp_path / "again")
    assert again.metrics == stage_one.metrics
    assert same_weights(again, stage_one)
    other = pretrain(str(faces), **small, seed=1, out=tmp_path / "other")
    assert not same_weights(other, stage_one)


def test_everything_random_follows_the_seed(faces: Path, small: dict[str, Any], tmp_path: Path) -> None:
    options = small | {
        "random_erasing": 0.5,
        "dropout": 0.2,
        "drop_path": 0.1,
        "blur": 0.3,
        "low_resolution": 0.3,
        "auto_augment": "rand-m5-mstd0.5",
        "val_fraction": 0.0,
        "closed_set_fraction": 0.0,
    }
    runs = [pretrain(str(faces), **options, out=tmp_path / name) for name in "ab"]
    assert same_weights(*runs)


def test_a_run_stopped_in_an_epoch_goes_on_with_the_same_bits(
    faces: Path, small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = small | {"epochs": 2, "ema": 0.9, "head": "arcface", "random_erasing": 0.5}
    whole = pretrain(str(faces), **options, out=tmp_path / "whole")
    step, count = Classification.step, [0]

    def stopping(self: Classification, batch: Any, progress: float, backward: Any) -> dict[str, float]:
        count[0] += 1
        if count[0] == 7:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch, progress, backward)

    monkeypatch.setattr(Classification, "step", stopping)
    with pytest.raises(TrainingError, match="after step 2 of epoch 2"):
        pretrain(str(faces), **options, out=tmp_path / "parts")
    parts = pretrain(str(faces), **options, out=tmp_path / "parts", resume=True)
    assert count == [10]
    assert parts.metrics == whole.metrics
    assert same_weights(parts, whole)
    states = [torch.load(run.run / "checkpoint.pt", weights_only=True) for run in (whole, parts)]
    for name in states[0]["model"]:
        assert torch.equal(states[0]["model"][name], states[1]["model"][name])


def test_the_config_of_a_run_makes_it_again(stage_one: Trained, tmp_path: Path) -> None:
    out = tmp_path / "again"
    with pytest.raises(SystemExit, match="0"):
        cli.main(["pretrain", "--config", str(stage_one.run / "config.toml"), "--out", str(out)])
    assert same_weights(Trained(out, out / "best", {}), stage_one)
    mine, theirs = (read_toml(run / "config.toml") for run in (stage_one.run, out))
    assert mine | {"out": ""} == theirs | {"out": ""}


@pytest.mark.parametrize("head", ["softmax", "arcface", "cosface"])
def test_heads_learn_a_batch_by_heart(faces: Path, tmp_path: Path, head: str) -> None:
    task = task_of(faces, tmp_path / "run", head=head, embedding_size=16, batch_size=8)
    optimizer = torch.optim.SGD(task.model.parameters(), 0.05, momentum=0.9)
    batch = next(task.batches(0, 0))
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(task.step(batch, 1.0, lambda loss: loss.backward())["loss"])
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_best_weights_give_the_figures_they_say(stage_one: Trained, faces: Path, tmp_path: Path) -> None:
    embedder = load_embedder(stage_one.run)
    split = read_split(PretrainConfig((str(faces),)))
    assert split.val is not None
    table = embed_index(embedder, split.val).table
    figures = open_set_figures(table.embeddings, table.identities)
    for name, value in figures.items():
        assert stage_one.metrics[name] == pytest.approx(value, abs=1e-3)


def test_weights_to_start_from_keep_all_but_the_classifier(
    stage_one: Trained, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = task_of(faces, tmp_path / "run", weights=str(stage_one.run), val_fraction=0.5)
    assert "its classifier is replaced by a new one" in capsys.readouterr().out
    head = task.model.head
    assert head.weight.shape == (8, 96)  # 8 identities here, 14 there
    start, loaded = load_embedder(stage_one.run).state_dict(), task.model.embedder.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in start.items())


def test_a_margin_head_on_weights_starts_from_the_identities_means(
    stage_one: Trained, faces: Path, tmp_path: Path
) -> None:
    task = task_of(
        faces, tmp_path / "run", weights=str(stage_one.run), head="cosface", closed_set_fraction=0.2
    )
    table = embed_index(load_embedder(stage_one.run), task.split.train.select(task.rows)).table
    for own, weight in zip(task.split.train.identities, task.model.head.weight.detach(), strict=True):
        mean = table.embeddings[table.identities == own].mean(axis=0)
        np.testing.assert_allclose(weight.numpy(), mean / np.linalg.norm(mean), atol=1e-6)


def test_weights_take_another_size_of_picture(stage_one: Trained, faces: Path, tmp_path: Path) -> None:
    kept = task_of(faces, tmp_path / "kept", weights=str(stage_one.run), image_size=0)
    assert kept.model.embedder.preprocess.size == (32, 32)
    larger = task_of(faces, tmp_path / "larger", weights=str(stage_one.run), image_size=48)
    assert next(larger.batches(0, 0)).images.shape[1:3] == (48, 48)
    new = task_of(faces, tmp_path / "new", image_size=0)
    assert new.model.embedder.preprocess.size == (96, 96)


def test_identities_of_validation_are_never_trained_on(faces: Path) -> None:
    config = StageConfig((str(faces),), val_fraction=0.25, seed=3)
    split = read_split(config)
    assert split.val is not None
    assert len(split.val.identities) == 4
    assert not set(split.train.identities) & set(split.val.identities)
    assert len(split.train) + len(split.val) == 96
    again = read_split(config)
    assert again.train.identities == split.train.identities
    other = read_split(StageConfig((str(faces),), val_fraction=0.25, seed=4))
    assert other.train.identities != split.train.identities


def test_named_lists_split_merge_and_leave_out(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = read_index([str(faces)]).identities
    (tmp_path / "val.txt").write_text(f"{names[0]}\n{names[1]}\nnobody\n")
    (tmp_path / "out.txt").write_text(f"{names[2]}\nnobody\n")
    (tmp_path / "merge.csv").write_text(f"{names[3]},{names[4]}\n{names[5]},nobody\n")
    split = read_split(
        StageConfig(
            (str(faces),),
            val_identities=tmp_path / "val.txt",
            leave_out=tmp_path / "out.txt",
            merge=tmp_path / "merge.csv",
        )
    )
    assert split.val is not None
    assert split.val.identities == names[:2]
    assert split.train.identities == (names[3], *names[5:])
    assert split.train.counts()[0] == 12
    said = capsys.readouterr().out
    assert said.count("1 names of") == 3
    assert "first 'nobody'" in said


def test_held_back_images_leave_half_of_each_identity(faces: Path) -> None:
    index = read_index([str(faces)])
    held = hold_back(index, 0.3, seed=0)
    assert held.sum() == round(0.3 * len(index))
    assert np.bincount(index.identity[held], minlength=16).max() <= 3
    assert hold_back(index, 0.9, seed=0).sum() == 48  # never more than half
    assert (hold_back(index, 0.3, seed=0) == held).all()
    assert (hold_back(index, 0.3, seed=1) != held).any()


def test_a_closed_set_validates_on_other_images_of_the_same_identities(
    faces: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    options = small | {"val_by": "images", "val_fraction": 0.25}
    split = read_split(PretrainConfig((str(faces),), **options))
    assert split.val is not None
    assert split.train.identities == read_index([str(faces)]).identities
    assert (len(split.train), len(split.val)) == (72, 24)
    names = [{part.name(i) for i in range(len(part))} for part in (split.train, split.val)]
    assert not names[0] & names[1]
    run = pretrain(str(faces), **options, out=tmp_path / "run")
    record = json.loads((run.weights / "config.json").read_text())["facemetric"]
    task = task_of(faces, tmp_path / "task", val_by="images", val_fraction=0.25)
    assert len(task.rows) == 72  # none is held back once more
    assert 0 <= run.metrics["closed_set_accuracy"] <= 1
    chosen = {kept["chosen_on"] for kept in record["thresholds"].values()}
    assert all("identities that the weights were trained on" in text for text in chosen)


def test_held_back_images_are_not_trained_on(faces: Path, tmp_path: Path) -> None:
    task = task_of(faces, tmp_path / "run", closed_set_fraction=0.2, batch_size=8)
    trained = {int(row) for epoch in range(3) for batch in task.batches(epoch, 0) for row in batch.rows}
    assert task.closed is not None
    names = {task.split.train.name(row) for row in trained}
    held = {task.closed.name(row) for row in range(len(task.closed))}
    assert len(held) == 17
    assert not names & held


@pytest.mark.parametrize(
    "options", [{"closed_set_fraction": 0.06}, {"val_by": "images", "val_fraction": 0.06}], ids=str
)
def test_closed_set_accuracy_by_hand(faces: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    task = task_of(faces, tmp_path / "run", **options)
    assert task.closed is not None
    assert len(task.closed.identities) < len(task.split.train.identities)  # numbered otherwise than there
    # A head that always gives one answer is right where that is the identity.
    for own in task.split.train.identities:
        with torch.no_grad():
            task.model.head.weight.zero_()
            task.model.head.bias.zero_()[task.split.train.identities.index(own)] = 1.0
        share = float(np.mean([task.closed.identities[i] == own for i in task.closed.identity]))
        assert task.closed_set_accuracy(task.model) == pytest.approx(share)


def test_a_margin_grows_over_the_first_third(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(faces, tmp_path / "run", head="cosface", margin=0.4, batch_size=8)
    batch = next(task.batches(0, 0))
    losses = [task.step(batch, progress, lambda loss: None)["loss"] for progress in (0.0, 1 / 6, 1 / 3, 1.0)]
    assert losses[0] < losses[1] < losses[2]
    assert losses[3] == pytest.approx(losses[2], rel=0.05)


def test_accuracy_is_without_the_margin(faces: Path, tmp_path: Path) -> None:
    """A margin makes the own identity's logit the smallest of all here, and that is no mistake of the network."""
    task = task_of(faces, tmp_path / "run", head="cosface", margin=2.0, batch_size=8)
    batch = next(task.batches(0, 0))
    task.model.head.forward = lambda emb: functional.one_hot(batch.labels, 14).float()  # type: ignore[method-assign]
    assert task.step(batch, 1.0, lambda loss: None)["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ((64, 112, 10), [64, 64, 80, 80, 96, 96, 112, 112, 112, 112]),
        ((100, 112, 5), [100, 100, 100, 112, 112]),
        ((0, 96, 3), [96, 96, 96]),
        ((96, 96, 2), [96, 96]),
        ((64, 112, 1), [64]),
    ],
)
def test_pictures_grow(sizes: tuple[int, int, int], expected: list[int]) -> None:
    assert growing_sizes(*sizes) == expected


def test_batches_have_the_size_of_their_epoch(faces: Path, tmp_path: Path) -> None:
    task = task_of(faces, tmp_path / "run", image_size=48, start_size=32, epochs=5, batch_size=8)
    sizes = [tuple(next(task.batches(epoch, 0)).images.shape[1:3]) for epoch in range(5)]
    assert sizes == [(32, 32)] * 3 + [(48, 48)] * 2
    assert task.model.embedder.preprocess.size == (48, 48)
    assert task.closed_set_accuracy(task.model) >= 0  # validation sees the full size


def test_rich_identities_are_capped(faces: Path, tmp_path: Path) -> None:
    task = task_of(faces, tmp_path / "run", max_per_identity=2, batch_size=8)
    labels = np.concatenate([batch.labels.numpy() for batch in task.batches(0, 0)])
    assert np.bincount(labels).max() == 2
    assert task.steps_per_epoch == 2 * len(task.split.train.identities) // 8


def test_too_little_to_train_on(faces: Path, small: dict[str, Any], tmp_path: Path) -> None:
    names = read_index([str(faces)]).identities
    three = tmp_path / "three"
    for name in names[:3]:
        shutil.copytree(faces / name, three / name)
    with pytest.raises(DataError, match=r"3 identities cannot be split.*--val-fraction 0"):
        pretrain(str(three), **small, out=tmp_path / "run")
    run = pretrain(str(three), **small, val_fraction=0.0, out=tmp_path / "run")
    assert run.weights.is_dir()
    for name in names[:3]:
        for image in sorted((three / name).iterdir())[1:]:
            image.unlink()
    (tmp_path / "val.txt").write_text(names[0])
    with pytest.raises(DataError, match=r"1 validation identities have 1 images.*--val-fraction 0"):
        pretrain(str(three), **small, val_identities=tmp_path / "val.txt", out=tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg': did you mean 'sgd'"),
        ({"scheduler": "cosin"}, "schedule"),
        ({"head": "arcfase"}, "unknown head 'arcfase': did you mean 'arcface'"),
        ({"arch": "lcnet_036"}, "timm has no architecture 'lcnet_036': did you mean 'lcnet_035'"),
        ({"auto_augment": "rnd"}, "auto_augment is 'rnd'"),
        ({"batch_size": 1}, "--batch-size is 1; it must be at least 2"),
        ({"ema": 1.5}, "--ema is 1.5; it is a share"),
        ({"start_size": 64}, "--start-size is 64, above the full size of 32"),
        ({"validate_every": 0}, "--validate-every is 0; it must be at least 1"),
        ({"max_per_identity": -1}, "--max-per-identity is -1"),
        ({"seed": -1}, "--seed is -1"),
        ({"lr": float("nan")}, "--lr is nan"),
        ({"device": "gpu"}, "unknown device 'gpu': did you mean 'cpu'"),
    ],
)
def test_options_that_cannot_be_are_named(
    faces: Path, small: dict[str, Any], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pretrain(str(faces), **small | options, out=tmp_path / "run")
    # What failed leaves no run behind: the mended command works in the same folder.
    config = PretrainConfig((str(faces),), **small, out=tmp_path / "run")
    Run(config.out, config_toml="", resume=False).close()


def test_reading_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for cores, expected in ((1, 0), (2, 0), (4, 2), (64, 8)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert pick_workers(-1) == expected
        assert pick_workers(3) == 3
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert pick_workers(-1) == 1
