"""Stage two on drawn faces: what is frozen stays, the better of start and end is kept, options count."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_mining
import torch
from safetensors.torch import load_file
from torch.nn import functional

from facemetric import finetune, load_embedder
from facemetric.config import FinetuneConfig
from facemetric.data.index import read_index
from facemetric.errors import ConfigError, DataError, TrainingError
from facemetric.model.weights import classifier_key
from facemetric.training import finetune as room
from facemetric.training.finetune import OnFeatures, OnImages
from facemetric.training.pretrain import Trained
from facemetric.training.run import Run
from facemetric.training.setup import SCORE, pick_device, read_split

FAST = {"epochs": 1, "batch_size": 32, "workers": 0, "device": "cpu"}
KEY = classifier_key("test_resnet")


def tensors(run: Trained | Path) -> dict[str, torch.Tensor]:
    """The weights file of a run, or of a weights folder."""
    return load_file((run.weights if isinstance(run, Trained) else run) / "model.safetensors")


def changed(one: Trained, other: Trained) -> set[str]:
    """The backbone's tensors that differ in any bit."""
    left, right = tensors(one), tensors(other)
    names = {name for name in left if not name.startswith(KEY)}
    assert names == {name for name in right if not name.startswith(KEY)}
    return {name for name in names if not torch.equal(left[name], right[name])}


def log_of(run: Trained, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run.run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def task_of(faces: Path, stage_one: Trained, folder: Path, **options: Any) -> OnFeatures:
    """The task on features as run_finetune builds it."""
    config = FinetuneConfig((str(faces),), weights=str(stage_one.weights), out=folder, **FAST | options)
    run = Run(folder, config_toml="", resume=False)
    return OnFeatures(config, load_embedder(stage_one.weights), read_split(config), run, pick_device("cpu"))


def test_a_frozen_backbone_stays_the_same_bits(stage_one: Trained, faces: Path, tmp_path: Path) -> None:
    before = (stage_one.weights / "model.safetensors").read_bytes()
    run = finetune(
        str(faces),
        weights=str(stage_one.run),
        projection_init="random",
        embedding_size=8,
        views=2,
        val_fraction=0.0,  # keeps the last epoch
        lr=0.01,
        **FAST | {"epochs": 2},
        out=tmp_path / "run",
    )
    assert any("running_mean" in name for name in tensors(run))
    assert changed(stage_one, run) == set()
    weight = tensors(run)[f"{KEY}.weight"]
    assert weight.shape == (8, 96)
    # It did train: the rows began orthogonal.
    assert (weight @ weight.T - torch.eye(8)).abs().max() > 1e-3
    assert (stage_one.weights / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("microbatch", [0, 10])
@pytest.mark.parametrize("how", ["batchnorm", "none"])
def test_what_trains_end_to_end(
    stage_one: Trained, faces: Path, tmp_path: Path, how: str, microbatch: int
) -> None:
    options = FAST | {"freeze": how, "microbatch": microbatch, "val_fraction": 0.0, "lr": 0.01}
    run = finetune(str(faces), weights=str(stage_one.run), **options, out=tmp_path / "run")
    names = changed(stage_one, run)
    norms = {name.rsplit(".", 1)[0] for name in tensors(run) if name.endswith("running_mean")}
    inside = {name for name in names if name.rsplit(".", 1)[0] in norms}
    assert any(name.endswith("running_mean") for name in inside)
    assert any(name.endswith("weight") for name in inside)
    outside = names - inside
    assert bool(outside) == (how == "none")
    assert not torch.equal(tensors(run)[f"{KEY}.weight"], torch.eye(96))


def test_it_starts_exactly_at_stage_one(stage_one: Trained, faces: Path, tmp_path: Path) -> None:
    task = task_of(faces, stage_one, tmp_path / "run")
    assert task.figures_of(task.model) == task.start_figures
    features = task.values[0].clone()
    assert torch.equal(task.model(features), features)
    for name in stage_one.metrics.keys() - {"closed_set_accuracy"}:
        assert stage_one.metrics[name] == pytest.approx(task.start_figures[name], abs=1e-3)


def script(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Validation gives these scores, one after the other: before, the start of the projection, the epochs."""
    left = list(scores)
    monkeypatch.setattr(room, "open_set_figures", lambda *args: {SCORE: left.pop(0)})


@pytest.mark.parametrize(
    ("scores", "kept", "said"),
    [
        ([0.5, 0.5, 0.6, 0.8], 2, f"kept epoch 2: {SCORE} 0.8000, before stage two 0.5000"),
        ([0.5, 0.5, 0.7, 0.6], 1, f"kept epoch 1: {SCORE} 0.7000, before stage two 0.5000"),
        ([0.5, 0.5, 0.5, 0.4], 0, "kept the start of the projection"),
        ([0.9, 0.4, 0.6, 0.5], -1, f"stage two did not help ({SCORE} 0.6000, before 0.9000)"),
    ],
    ids=["the end", "the middle", "the start", "stage one"],
)
def test_the_better_of_start_and_end_is_kept(
    stage_one: Trained,
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scores: list[float],
    kept: int,
    said: str,
) -> None:
    script(monkeypatch, scores)
    epochs: list[torch.Tensor] = []
    validate = OnFeatures.validate

    def watch(self: OnFeatures, model: Any) -> dict[str, float]:
        epochs.append(model.weight.detach().clone())
        return validate(self, model)

    monkeypatch.setattr(OnFeatures, "validate", watch)
    run = finetune(
        str(faces), weights=str(stage_one.run), lr=0.01, **FAST | {"epochs": 2}, out=tmp_path / "run"
    )
    assert said in capsys.readouterr().out
    assert run.metrics[SCORE] == (scores[0] if kept < 0 else scores[kept + 1])
    assert log_of(run, "kept")[0]["epoch"] == kept
    config = json.loads((run.weights / "config.json").read_text())["facemetric"]
    assert config["metrics"] == run.metrics
    found = tensors(run)
    if kept < 0:
        assert found.keys() == tensors(stage_one).keys()
        assert all(torch.equal(value, found[name]) for name, value in tensors(stage_one).items())
    else:
        assert torch.equal(found[f"{KEY}.weight"], epochs[kept])
        assert len({float(weight.sum()) for weight in epochs}) == 3


@pytest.mark.parametrize("freeze", ["backbone", "none"])
def test_the_gain_is_said_with_its_interval(
    stage_one: Trained, faces: Path, freeze: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = FAST | {"freeze": freeze, "epochs": 2, "val_fraction": 0.5, "lr": 0.03, "seed": 1}
    run = finetune(str(faces), weights=str(stage_one.run), **options, out=tmp_path / "run")
    before, gain = log_of(run, "before")[0], log_of(run, "gain")[0]
    assert log_of(run, "kept")[0]["epoch"] > 0
    for name in ("auc", "eer"):
        value, low, high, level = gain[name]
        assert value == pytest.approx(run.metrics[f"val_{name}"] - before[f"val_{name}"], abs=1e-6)
        assert low <= value <= high
        assert high - low > 1e-4
        assert level == 0.95
    assert f"auc {gain['auc'][0]:+.4f} [{gain['auc'][1]:+.4f}," in capsys.readouterr().out


def test_without_validation_the_last_epoch_is_kept(
    stage_one: Trained, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finetune(str(faces), weights=str(stage_one.run), val_fraction=0.0, **FAST, out=tmp_path / "run")
    assert "no validation identities: kept the weights of the last epoch" in capsys.readouterr().out
    assert run.metrics == {}
    assert not torch.equal(tensors(run)[f"{KEY}.weight"], torch.eye(96))


@pytest.fixture
def some_single(faces: Path, tmp_path: Path) -> Path:
    """Six identities, two of which have one image."""
    names = sorted(path.name for path in faces.iterdir())[:6]
    for name in names:
        shutil.copytree(faces / name, tmp_path / "some" / name)
    for name in names[1:3]:
        for image in sorted((tmp_path / "some" / name).iterdir())[1:]:
            image.unlink()
    return tmp_path / "some"


@pytest.mark.parametrize("how", ["backbone", "none"])
def test_identities_with_one_image_are_left_out_and_listed(
    stage_one: Trained,
    some_single: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    how: str,
) -> None:
    options = FAST | {"freeze": how, "val_fraction": 0.0}
    run = finetune(str(some_single), weights=str(stage_one.run), **options, out=tmp_path / "run")
    path = run.run / "identities_with_one_image.txt"
    assert f"left out 2 of 6 identities, which have one image: {path}" in capsys.readouterr().out
    assert path.read_text().splitlines() == list(read_index([str(some_single)]).identities[1:3])
    provenance = json.loads((run.weights / "config.json").read_text())["facemetric"]["provenance"]
    assert (provenance["identities"], provenance["images"]) == (4, 24)


def test_odd_names_are_listed_too(stage_one: Trained, some_single: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in some_single.iterdir())
    (some_single / names[1]).rename(some_single / "Zoë 😀")
    os.rename(os.fsencode(some_single / names[2]), os.fsencode(some_single / "caf") + b"\xe9")
    run = finetune(
        str(some_single), weights=str(stage_one.run), val_fraction=0.0, **FAST, out=tmp_path / "run"
    )
    listed = (run.run / "identities_with_one_image.txt").read_text(encoding="utf-8").splitlines()
    assert set(listed) == {"Zoë 😀", "caf\\udce9"}


def test_only_identities_with_one_image(stage_one: Trained, some_single: Path, tmp_path: Path) -> None:
    for folder in some_single.iterdir():
        for image in sorted(folder.iterdir())[1:]:
            image.unlink()
    with pytest.raises(DataError, match="0 identities with images"):
        finetune(str(some_single), weights=str(stage_one.run), val_fraction=0.0, out=tmp_path / "run")


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
    assert task.step(batch, 0.0, lambda loss: None)["loss"] == pytest.approx(float(loss), rel=1e-4)


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
    figures = task.step(batch, 0.0, losses.append)
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
    assert set(figures) == {"loss", "fraction_positive", "mean_d_ap", "mean_d_an"}


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
    figures = task.step(batch, 0.0, lambda loss: None)
    emb = functional.normalize(task.values[0, torch.from_numpy(rows)], dim=1)
    labels = torch.from_numpy(task.split.train.identity[rows])
    loss, *_ = reference_mining.twin("select", emb, labels, 0.2, "squared", nearer_first)
    assert figures["loss"] == pytest.approx(float(loss), rel=1e-4)


def test_views_are_all_trained_on(stage_one: Trained, faces: Path, tmp_path: Path) -> None:
    task = task_of(faces, stage_one, tmp_path / "run", views=3)
    views = np.concatenate([batch[1] for epoch in range(3) for batch in task.batches(epoch, 0)])
    assert set(views) == {0, 1, 2}
    assert task.values.shape[0] == 3


def test_turns_of_freezing_train_what_they_say(
    stage_one: Trained, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One epoch of batch norms and projection, then everything: seen at each validation."""
    seen: list[dict[str, torch.Tensor]] = []
    validate = OnImages.validate

    def watching(self: OnImages, model: Any) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return validate(self, model)

    monkeypatch.setattr(OnImages, "validate", watching)
    options = FAST | {"epochs": 2, "freeze": ["batchnorm", "none"], "freeze_epochs": 1, "backbone_lr": 1e-3}
    finetune(str(faces), weights=str(stage_one.run), **options, out=tmp_path / "run")
    _, start, one, two = seen  # the first is of stage one's own embedding

    def moved(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
        return {name for name, value in a.items() if value.ndim == 4 and not torch.equal(value, b[name])}

    filters = {name for name, value in start.items() if value.ndim == 4}
    assert moved(start, one) == set()
    assert moved(one, two) == filters
    assert not torch.equal(start["projection.weight"], one["projection.weight"])
    assert not torch.equal(start["backbone.bn1.weight"], one["backbone.bn1.weight"])


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


TURNS = ["batchnorm", "none"]


@pytest.mark.parametrize("how", ["backbone", "none", TURNS])
def test_a_stopped_run_goes_on_with_the_same_bits(
    stage_one: Trained, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    options = FAST | {"epochs": 2, "views": 2, "freeze": how, "memory": 64, "ema": 0.9, "microbatch": 20}
    options |= {"freeze_epochs": 1} if how == TURNS else {}
    options |= {"weights": str(stage_one.run), "projection_init": "lda", "embedding_size": 8}
    whole = finetune(str(faces), **options, out=tmp_path / "whole")
    kind = OnFeatures if how == "backbone" else OnImages
    step, count = kind.step, [0]

    def stopping(self: Any, *arguments: Any) -> dict[str, float]:
        count[0] += 1
        if count[0] == 4:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments)

    monkeypatch.setattr(kind, "step", stopping)
    with pytest.raises(TrainingError, match="after step 1 of epoch 2"):
        finetune(str(faces), **options, out=tmp_path / "parts")
    parts = finetune(str(faces), **options, out=tmp_path / "parts", resume=True)
    assert count == [6]
    states = [torch.load(run.run / "checkpoint.pt", weights_only=True) for run in (whole, parts)]
    for part in ("model", "ema"):
        for name, value in states[0][part].items():
            assert torch.equal(value, states[1][part][name])
    assert parts.metrics == whole.metrics
    assert all(torch.equal(value, tensors(parts)[name]) for name, value in tensors(whole).items())
    for event in ("before", "kept", "gain", "validation"):
        assert len(log_of(parts, event)) == len(log_of(whole, event))
    # Once more, after the end: nothing is trained, the same is kept.
    again = finetune(str(faces), **options, out=tmp_path / "parts", resume=True)
    assert count == [6]
    assert again.metrics == whole.metrics
    assert all(len(log_of(again, event)) == 1 for event in ("before", "kept", "gain"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"miner": "semi-hard"}, "unknown miner 'semi-hard': did you mean 'semihard'"),
        ({"distance": "euclid"}, "unknown distance 'euclid': did you mean 'euclidean'"),
        ({"freeze": "bakbone"}, "unknown freeze 'bakbone': did you mean 'backbone'"),
        ({"projection_init": "lada"}, "unknown projection init 'lada': did you mean 'lda'"),
        ({"projection_init": "lda"}, "lda gives at most 13 directions"),
        ({"batch_size": 4}, "--batch-size 4 holds 1 identities of 4 images; two are needed"),
        ({"images_per_identity": 1}, "--images-per-identity is 1; it must be at least 2"),
        ({"margin": -0.1}, "--margin is -0.1"),
        ({"views": 0}, "--views is 0"),
    ],
)
def test_options_that_cannot_be_are_named(
    stage_one: Trained, faces: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        finetune(str(faces), weights=str(stage_one.run), **FAST | options, out=tmp_path / "run")
    Run(tmp_path / "run", config_toml="", resume=False).close()  # no run was left behind
