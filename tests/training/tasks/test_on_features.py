"""The task on cached features: where it starts, what reaches the miner, what it validates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_mining
import torch
from small_trainings import FAST, numbers
from torch.nn import functional

from facemetric import finetune, load_embedder
from facemetric.config import FinetuneConfig
from facemetric.data.index import read_index
from facemetric.errors import ConfigError
from facemetric.evaluation.audit.seen import read_training_images
from facemetric.machine import pick_device
from facemetric.mining.kernels import choice
from facemetric.model.projections import Refit, refit
from facemetric.training.run.run import Run, Trained
from facemetric.training.split import read_split
from facemetric.training.stage import check_training
from facemetric.training.tasks.feature_cache import cached_features
from facemetric.training.tasks.on_features import OnFeatures, most_alike


def task_of(faces: Path, stage_one: Trained, folder: Path, **options: Any) -> OnFeatures:
    """The task on features as finetune builds it."""
    config = FinetuneConfig((str(faces),), weights=str(stage_one.weights), out=folder, **FAST | options)
    run = Run(folder, config_toml="", resume=False)
    embedder = load_embedder(stage_one.weights)
    task = OnFeatures(check_training(config), embedder, read_split(config), run, pick_device("cpu"))
    task.prepare()
    return task


def test_it_starts_exactly_at_stage_one(stage_one: Trained, faces: Path, tmp_path: Path) -> None:
    task = task_of(faces, stage_one, tmp_path / "run")
    assert task.figures_of(task.model) == task.start_figures
    features = task.values[0].clone()
    assert torch.equal(task.model(features), features)
    for name in stage_one.metrics.keys() - {"closed_set_accuracy"}:
        assert stage_one.metrics[name] == pytest.approx(task.start_figures[name], abs=1e-3)


def test_a_gpu_without_the_fused_kernels_is_told_why(
    stage_one: Trained,
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = "triplets are mined by plain torch, not by the fused kernels: they need CUDA"
    task_of(faces, stage_one, tmp_path / "cpu")
    assert told not in capsys.readouterr().out
    monkeypatch.setattr(choice, "is_gpu", lambda device: True)
    task_of(faces, stage_one, tmp_path / "gpu")
    assert told in capsys.readouterr().out
    task_of(faces, stage_one, tmp_path / "pairs", loss="supcon")
    assert told not in capsys.readouterr().out


@pytest.mark.parametrize("freeze", ["backbone", "none"])
def test_refit_starts_at_the_layer_nearest_to_the_weights_own(
    stage_one: Trained, faces: Path, tmp_path: Path, freeze: str
) -> None:
    options: dict[str, Any] = FAST | {"weights": str(stage_one.run), "lr": 1e-9, "backbone_lr": 1e-9}
    options |= {"projection_init": "refit", "refit_penalty": 0.5, "freeze": freeze, "max_steps": 1}
    run = finetune(str(faces), val_fraction=0.0, **options, out=tmp_path / "run")
    embedder, own = load_embedder(run.weights), load_embedder(stage_one.weights)
    assert embedder.embedding_size == own.num_features  # stage one's embedding is its features
    index = read_index([str(faces)])
    found = cached_features(own, index, tmp_path / "cache")
    expected = refit(own, found.values[0], Refit(0.5))
    layer = embedder.folded_projection()
    assert isinstance(layer, torch.nn.Linear)
    torch.testing.assert_close(layer.weight, expected.weight, rtol=1e-3, atol=1e-4)


def test_bad_images_are_listed_and_their_identity_is_checked_again(
    stage_one: Trained, some_single: Path, tmp_path: Path
) -> None:
    names = read_index([str(some_single)]).identities
    for image in sorted((some_single / names[0]).iterdir())[1:]:
        image.write_bytes(b"not an image")
    task = task_of(some_single, stage_one, tmp_path / "run", val_fraction=0.0, max_bad=0.5)
    lines = (tmp_path / "run" / "bad_images.csv").read_text().splitlines()
    assert len(lines) == 6
    assert all(line.startswith(names[0]) for line in lines[1:])
    trained = {task.split.train.identities[i] for i in task.labels.tolist()}
    assert trained == set(names[3:])  # the first has one image left
    batch = next(iter(task.batches(0, 0)))
    rows = task.rows[batch[0]]
    emb = functional.normalize(task.values[0, torch.from_numpy(rows)], dim=1)
    labels = torch.from_numpy(task.split.train.identity[rows])
    loss, *_ = reference_mining.twin("semihard", emb, labels)
    assert numbers(task.step(batch, 0.0, lambda loss: None))["loss"] == pytest.approx(float(loss), rel=1e-4)


@pytest.mark.parametrize("distance", ["squared", "euclidean", "cosine"])
@pytest.mark.parametrize("miner", ["all", "semihard", "hard"])
@pytest.mark.parametrize("margin", [0.05, 1.5, "soft"])
def test_options_reach_the_miner(
    stage_one: Trained, faces: Path, tmp_path: Path, miner: str, distance: str, margin: Any
) -> None:
    options = {"soft_margin": True} if margin == "soft" else {"margin": margin}
    task = task_of(
        faces,
        stage_one,
        tmp_path / "run",
        miner=miner,
        distance=distance,
        projection_init="pca",
        embedding_size=6,
        batch_size=12,
        images_per_identity=3,
        cache=stage_one.run.parent / "features",
        **options,
    )
    batch = next(iter(task.batches(0, 0)))
    losses = []
    figures = numbers(task.step(batch, 0.0, losses.append))
    rows = task.rows[batch[0]]
    with torch.no_grad():
        emb = functional.normalize(task.model(task.values[0, torch.from_numpy(rows)]), dim=1)
    labels = torch.from_numpy(task.split.train.identity[rows])
    assert len(labels) == 12
    assert (np.bincount(labels.numpy())[np.unique(labels)] == 3).all()
    loss, active, valid, _ = reference_mining.twin(miner, emb, labels, margin, distance)
    assert figures["loss"] == pytest.approx(float(loss), rel=1e-4)
    assert float(losses[0].detach()) == pytest.approx(float(loss), rel=1e-4)
    assert figures["fraction_positive"] == pytest.approx(active / valid, abs=0.02)
    assert set(task.watch(figures)) == {"loss", "fraction_positive", "mean_d_ap", "mean_d_an"}


def nearer_first(d_ap: torch.Tensor, d_an: torch.Tensor) -> torch.Tensor:
    """A filter of one's own: triplets that are in the wrong order."""
    return d_an < d_ap


def test_a_miner_of_ones_own(
    stage_one: Trained, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_mining.py").write_text("def wrong_order(d_ap, d_an):\n    return d_an < d_ap\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    task = task_of(faces, stage_one, tmp_path / "run", miner="my_mining:wrong_order", batch_size=12)
    batch = next(iter(task.batches(0, 0)))
    rows = task.rows[batch[0]]
    figures = numbers(task.step(batch, 0.0, lambda loss: None))
    emb = functional.normalize(task.values[0, torch.from_numpy(rows)], dim=1)
    labels = torch.from_numpy(task.split.train.identity[rows])
    loss, *_ = reference_mining.twin("select", emb, labels, 0.2, "squared", nearer_first)
    assert figures["loss"] == pytest.approx(float(loss), rel=1e-4)


def test_views_are_all_trained_on(stage_one: Trained, faces: Path, tmp_path: Path) -> None:
    task = task_of(faces, stage_one, tmp_path / "run", views=3)
    views = np.concatenate([batch[1] for epoch in range(3) for batch in task.batches(epoch, 0)])
    assert set(views) == {0, 1, 2}
    assert task.values.shape[0] == 3


def test_validation_says_the_loss_and_the_triplets_that_violate(
    stage_one: Trained, faces: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"miner": "all", "margin": 0.3, "distance": "euclidean", "memory": 64}
    task = task_of(faces, stage_one, tmp_path / "run", **options, images_per_identity=6)
    figures = task.start_figures
    assert task.split.val is not None
    assert task.val is not None
    labels = torch.from_numpy(task.split.val.identity)
    assert len(labels) == 12  # both identities whole: the batch is all there is
    emb = functional.normalize(torch.from_numpy(np.array(task.val.values[0])), dim=1)
    loss, active, looked_at, _ = reference_mining.twin("all", emb, labels, 0.3, "euclidean")
    assert figures["val_loss"] == pytest.approx(float(loss), rel=1e-4)
    assert figures["val_fraction_positive"] == pytest.approx(active / looked_at)
    assert task.objective.memory is None  # validation does not fill it


@pytest.fixture
def nobody(faces: Path, tmp_path: Path) -> Path:
    """A folder of loose images, one of which cannot be read."""
    folder = tmp_path / "nobody"
    folder.mkdir()
    index = read_index([str(faces)])
    for row in range(0, len(index), 7):
        (folder / f"{row:03d}.jpg").write_bytes(index.read(row))
    (folder / "000.jpg").write_bytes(b"not an image")
    return folder


def test_each_unlabelled_image_is_a_person_of_its_own(
    stage_one: Trained, faces: Path, nobody: Path, tmp_path: Path
) -> None:
    options = {"unlabelled": (str(nobody),), "images_per_identity": 3, "batch_size": 24, "max_bad": 0.5}
    task = task_of(faces, stage_one, tmp_path / "run", **options)
    named, count = len(task.split.train.identities), len(list(nobody.iterdir())) - 1
    labels = task.labels.numpy()
    assert sorted(set(labels[labels >= named])) == list(range(named, named + count))
    assert (np.bincount(labels)[named:] == 3).all()  # three views of each
    seen: dict[int, list[torch.Tensor]] = {}
    for places, views in task.batches(0, 0):
        features = task.features_of(places, views)
        for place, row in zip(places.tolist(), features, strict=True):
            seen.setdefault(int(labels[place]), []).append(row)
            if place < len(task.rows):
                assert torch.equal(row, task.values[0, task.rows[place]])
        figures = numbers(task.step((places, views), 0.0, lambda loss: None))
        emb = functional.normalize(features, dim=1)
        loss, *_ = reference_mining.twin("semihard", emb, torch.from_numpy(labels[places]))
        assert figures["loss"] == pytest.approx(float(loss), rel=1e-4, abs=1e-6)
    strangers = {label: rows for label, rows in seen.items() if label >= named}
    assert strangers
    for label, rows in strangers.items():
        assert len({tuple(row.tolist()) for row in rows}) == 3  # its three views, not one three times
        plain = task.strangers[0, task.stranger_rows[label - named]]
        assert any(torch.equal(row, plain) for row in rows)
    assert "000.jpg" in (tmp_path / "run" / "bad_images.csv").read_text()


def test_unlabelled_images_are_hashed_and_belong_to_the_run(
    stage_one: Trained, faces: Path, nobody: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = FAST | {"weights": str(stage_one.weights), "max_bad": 0.5}
    plain = finetune(str(faces), out=str(tmp_path / "plain"), **options)
    run = finetune(str(faces), out=str(tmp_path / "run"), unlabelled=(str(nobody),), **options)
    kept = [read_training_images(found.weights) for found in (plain, run)]
    assert kept[0] is not None
    assert kept[1] is not None
    assert kept[1].images == kept[0].images + len(list(nobody.iterdir()))
    (nobody / "007.jpg").unlink()
    again = options | {"resume": True, "epochs": FAST["epochs"] + 1}
    with pytest.raises(ConfigError, match="the unlabelled"):
        finetune(str(faces), out=str(tmp_path / "run"), unlabelled=(str(nobody),), **again)


def test_unlabelled_images_need_cached_features(faces: Path, nobody: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unlabelled= needs freeze='backbone'"):
        finetune(str(faces), weights="x", unlabelled=(str(nobody),), freeze="none", out=str(tmp_path))


def test_who_is_alike_the_nearest_others_by_cosine() -> None:
    means = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    found = most_alike(means, 4)
    assert found.shape == (30, 6)
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    score = unit @ unit.T
    np.fill_diagonal(score, -2)
    assert np.array_equal(found, (-score).argsort(1)[:, :6])


def test_who_is_alike_copies_and_two_identities() -> None:
    """Equal means come in the order of their numbers, and nobody is like himself."""
    means = np.ones((7, 3), np.float32)
    found = most_alike(means, 2)
    assert found.shape == (7, 2)
    assert not (found == np.arange(7)[:, None]).any()
    assert most_alike(means[:3], 8).tolist() == [[1, 2], [0, 2], [0, 1]]


def test_relatives_come_before_all_who_look_alike() -> None:
    """Against a plain sort: family first, then all others, each by cosine; a family larger than k is cut."""
    rng = np.random.default_rng(2)
    means = rng.normal(size=(30, 5)).astype(np.float32)
    family = rng.integers(0, 12, 30)
    family[:9] = 3  # more relatives than the six candidates
    found = most_alike(means, 4, family)
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    score = unit @ unit.T + 3 * (family[:, None] == family)
    np.fill_diagonal(score, -2)
    assert np.array_equal(found, (-score).argsort(1)[:, :6])
    assert not np.array_equal(found, most_alike(means, 4))
    assert np.array_equal(most_alike(means, 4, np.arange(30)), most_alike(means, 4))


def test_a_family_comes_in_one_group(stage_one: Trained, faces: Path, tmp_path: Path) -> None:
    names = [folder.name for folder in sorted(faces.iterdir())]
    lines = [",".join(names[start::4]) for start in range(4)]
    (tmp_path / "families.csv").write_text("\n".join(lines))
    options = {"alike": len(names) // 4, "families": tmp_path / "families.csv", "val_fraction": 0.0}
    task = task_of(faces, stage_one, tmp_path / "run", **options, batch_size=len(names) // 4 * 4)
    labels = task.labels.numpy()
    alike = task.alike_in(0)
    assert alike is not None
    for step in list(task.sampler.epoch(0, alike, task.config.alike))[:4]:
        who = {task.split.train.identities[label] for label in labels[step].tolist()}
        assert len({names.index(name) % 4 for name in who}) == 1
    task.load_extra_state(task.extra_state())
    (tmp_path / "families.csv").write_text("\n".join(lines[1:]))
    other = task_of(faces, stage_one, tmp_path / "other", **options, batch_size=len(names) // 4 * 4)
    with pytest.raises(ConfigError, match="the families of this run changed since it began"):
        other.load_extra_state(task.extra_state())
