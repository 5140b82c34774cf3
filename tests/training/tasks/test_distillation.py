"""Stage one with a teacher: what the student follows, what labels and unlabelled images do, resume to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_trainings import numbers, same, shares_agree, stop_in_step
from torch.nn import functional

from facemetric import distributed, load_embedder, pretrain
from facemetric.config import PretrainConfig
from facemetric.data.index import read_index
from facemetric.errors import ConfigError, TrainingError
from facemetric.evaluation.audit.seen import read_training_images
from facemetric.evaluation.embed import embed_index
from facemetric.evaluation.table import EmbeddingTable
from facemetric.machine import pick_device
from facemetric.model.weights.folder import read_config
from facemetric.training.run.run import Run, Trained
from facemetric.training.split import read_split
from facemetric.training.stage import check_training
from facemetric.training.tasks.distillation import Distillation, stage_one

SIZE = 12


@pytest.fixture(scope="module")
def tables(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A teacher of the drawn faces: a cone around one direction, an own direction for each identity."""
    folder = tmp_path_factory.mktemp("teacher")
    index = read_index([str(faces)])
    rng = np.random.default_rng(0)
    own = rng.normal(size=(len(index.identities), SIZE))[index.identity]
    rows = 2 * np.ones(SIZE) + own + 0.1 * rng.normal(size=(len(index), SIZE))
    names = np.array([index.name(i) for i in range(len(index))])
    EmbeddingTable(rows, np.array(["x"] * len(index)), names).save(folder / "faces.npz")
    others = np.array([f"more/{name}" for name in names])
    EmbeddingTable(rows, np.array(["x"] * len(index)), others).save(folder / "more.npz")
    return {"faces": str(folder / "faces.npz"), "more": str(folder / "more.npz")}


def task_of(faces: Path, folder: Path, **options: Any) -> Distillation:
    """The task as pretrain builds it."""
    plain = {"arch": "test_resnet", "image_size": 32, "workers": 0, "label_weight": 0.0, "batch_size": 16}
    config = PretrainConfig((str(faces),), **(plain | options))
    run = Run(folder, config_toml="", resume=False)
    torch.manual_seed(config.seed)
    task = stage_one(check_training(config), read_split(config), run, pick_device("cpu"))
    assert isinstance(task, Distillation)
    task.prepare()
    return task


def test_a_student_learns_to_follow(faces: Path, tables: dict[str, str], tmp_path: Path) -> None:
    task = task_of(faces, tmp_path / "run", teacher=(tables["faces"],), relation_weight=4.0)
    assert task.model.head is None
    assert task.model.embedder.embedding_size == SIZE  # the teacher's, where no other is asked for
    assert len(task.rows) == len(task.split.train)  # none is held back for a classifier that is not there
    optimizer = torch.optim.AdamW(task.model.parameters(), 1e-3)
    batch = next(task.batches(0, 0))
    task.train_mode(0)
    figures = []
    for _ in range(25):
        optimizer.zero_grad()
        figures.append(numbers(task.step(batch, 1.0, lambda loss, last=True: loss.backward())))
        optimizer.step()
    assert set(figures[0]) == {"loss", "direction", "relation"}
    assert figures[0]["loss"] == pytest.approx(figures[0]["direction"] + 4 * figures[0]["relation"])
    for name in ("direction", "relation"):
        assert figures[-1][name] < 0.3 * figures[0][name]


def test_the_teachers_row_is_that_of_the_image(faces: Path, tables: dict[str, str], tmp_path: Path) -> None:
    task = task_of(faces, tmp_path / "run", teacher=(tables["faces"],), val_fraction=0.5)
    table = EmbeddingTable.load(tables["faces"])
    for row in (0, 17, len(task.images) - 1):
        wanted = table.embeddings[table.find(task.images.name(row))]
        np.testing.assert_allclose(task.teacher[row], wanted / np.linalg.norm(wanted), rtol=1e-6)


def test_unlabelled_images_are_never_in_the_softmax(
    faces: Path, tables: dict[str, str], tmp_path: Path
) -> None:
    options = {
        "teacher": (tables["faces"], tables["more"]),
        "unlabelled": (f"more={faces}",),
        "label_weight": 1.0,
    }
    task = task_of(faces, tmp_path / "run", **options)
    assert task.model.head is not None
    assert task.model.head.weight.shape[0] == len(task.split.train.identities)
    seen = list(task.batches(0, 0))
    labels = torch.cat([batch.labels for batch in seen])
    names = [task.images.name(int(row)) for batch in seen for row in batch.rows]
    for label, name in zip(labels.tolist(), names, strict=True):
        assert (label == -1) == name.startswith("more/")
        if label >= 0:
            assert task.split.train.identities[label] == name.split("/")[0]
    assert (labels == -1).sum() > 60  # 96, less what does not fill a batch
    batch = next(batch for batch in seen if (batch.labels == -1).any() and (batch.labels >= 0).any())
    task.model.eval()
    given: list[torch.Tensor] = []
    found = numbers(task.step(batch, 1.0, given.append))
    images = task.model.embedder.preprocess
    with torch.no_grad():
        pixels = (batch.images.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
        assert images.mean == (0.5, 0.5, 0.5)
        logits = task.model(pixels)
    known = batch.labels >= 0
    wanted = functional.cross_entropy(logits[known], batch.labels[known])
    assert found["cross_entropy"] == pytest.approx(float(wanted), rel=1e-4)
    right = (logits[known].argmax(1) == batch.labels[known]).float().mean()
    assert found["accuracy"] == pytest.approx(float(right))
    assert found["loss"] == pytest.approx(found["direction"] + found["cross_entropy"])
    assert float(given[0].detach()) == pytest.approx(found["loss"])


def test_a_batch_without_a_label_teaches_all_the_same(
    faces: Path, tables: dict[str, str], tmp_path: Path
) -> None:
    options = {
        "teacher": (tables["faces"], tables["more"]),
        "unlabelled": (f"more={faces}",),
        "label_weight": 1.0,
    }
    task = task_of(faces, tmp_path / "run", **options)
    batch = next(task.batches(0, 0))
    batch = batch._replace(labels=torch.full_like(batch.labels, -1))
    found = numbers(task.step(batch, 1.0, lambda loss, last=True: loss.backward()))
    assert found["cross_entropy"] == 0
    assert found["loss"] == pytest.approx(found["direction"])


def test_weights_begin_where_least_squares_lead(
    stage_one: Trained, faces: Path, tables: dict[str, str], tmp_path: Path
) -> None:
    direct = task_of(faces, tmp_path / "direct", teacher=(tables["faces"],), weights=str(stage_one.run))
    table = EmbeddingTable.load(tables["faces"])

    def cosine(emb: np.ndarray) -> float:
        rows = [table.find(name) for name in paths]
        return float(
            functional.cosine_similarity(torch.tensor(emb), torch.tensor(table.embeddings[rows])).mean()
        )

    embedded = embed_index(direct.model.embedder, direct.split.train).table
    paths = embedded.paths.tolist()
    mean = cosine(np.repeat(table.embeddings.mean(0)[None], len(paths), 0))
    assert cosine(embedded.embeddings) > mean + 0.25 * (1 - mean)  # the best single answer is the mean
    backbone = load_embedder(stage_one.run).backbone.state_dict()
    assert all(
        torch.equal(direct.model.embedder.backbone.state_dict()[name], backbone[name]) for name in backbone
    )


def test_another_size_goes_through_a_layer_that_is_thrown_away(
    stage_one: Trained, faces: Path, tables: dict[str, str], tmp_path: Path
) -> None:
    options = {"teacher": (tables["faces"],), "weights": str(stage_one.run), "embedding_size": 96}
    task = task_of(faces, tmp_path / "run", **options)
    start = load_embedder(stage_one.run)
    own, loaded = start.state_dict(), task.model.embedder.state_dict()
    assert all(torch.equal(loaded[name], own[name]) for name in own)  # the embedding of the weights itself
    assert task.model.to_teacher.weight.shape == (SIZE, 96)
    task.save(task.model, {})
    assert load_embedder(tmp_path / "run").embedding_size == 96


def test_a_run_stopped_in_an_epoch_goes_on_with_the_same_bits(
    faces: Path,
    tables: dict[str, str],
    small: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = small | {"epochs": 2, "ema": 0.9, "optimizer": "adamw", "lr": 1e-3, "relation_weight": 2.0}
    options |= {
        "teacher": (tables["faces"], tables["more"]),
        "unlabelled": (f"more={faces}",),
        "dropout": 0.1,
    }
    whole = pretrain(str(faces), **options, out=tmp_path / "whole")
    assert {"val_eer", "closed_set_accuracy"} <= set(whole.metrics)
    # What it was trained on: 14 people with 6 images, and 96 images without a label.
    kept = read_training_images(whole.weights)
    assert kept is not None
    assert (kept.images, len(kept.hashes)) == (84 + 96, 84 + 96)
    assert read_config(whole.weights)["facemetric"]["provenance"]["images"] == 84 + 96
    stop_in_step(monkeypatch, Distillation, 13)
    with pytest.raises(TrainingError, match="with resume=True goes on"):
        pretrain(str(faces), **options, out=tmp_path / "parts")
    parts = pretrain(str(faces), **options, out=tmp_path / "parts", resume=True)
    assert parts.metrics == whole.metrics
    states = [torch.load(run.run / "checkpoint.pt", weights_only=True) for run in (whole, parts)]
    assert same(states[0]["model"], states[1]["model"])
    assert same(states[0]["ema"], states[1]["ema"])
    swapped = EmbeddingTable.load(tables["faces"])
    table = EmbeddingTable(-swapped.embeddings, swapped.identities, swapped.paths)
    table.save(tmp_path / "other.npz")
    other = options | {"teacher": (str(tmp_path / "other.npz"), tables["more"])}
    with pytest.raises(ConfigError, match="the teacher of this run changed"):
        pretrain(str(faces), **other, out=tmp_path / "parts", resume=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"unlabelled": ("x",)}, "unlabelled= needs teacher="),
        ({"label_weight": 0.0}, "label_weight is 0, and no teacher="),
        ({"relation_weight": 1.0}, "relation_weight= needs teacher="),
        ({"teacher": ("t.npz",), "teacher_weight": 0.0, "label_weight": 0.0}, "nothing to learn from"),
        ({"teacher": ("t.npz",), "teacher_weight": -1.0}, "teacher_weight is -1"),
        ({"teacher": ("t.npz",), "label_weight": float("nan")}, "label_weight is nan"),
    ],
)
def test_options_that_do_not_fit_are_refused(faces: Path, tmp_path: Path, options: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        pretrain(str(faces), **options, out=tmp_path / "run")


def test_a_margin_head_starts_from_the_teachers_means(
    faces: Path, tables: dict[str, str], tmp_path: Path
) -> None:
    options = {
        "teacher": (tables["faces"],),
        "head": "cosface",
        "label_weight": 0.1,
        "closed_set_fraction": 0.2,
    }
    task = task_of(faces, tmp_path / "run", **options)
    assert task.model.head is not None
    for number, weight in enumerate(task.model.head.weight.detach()):
        rows = task.rows[task.split.train.identity[task.rows.clip(max=len(task.split.train) - 1)] == number]
        mean = task.teacher[rows].mean(0)
        torch.testing.assert_close(weight, functional.normalize(mean, dim=0))


def shares(faces: Path, tables: dict[str, str], stage_one: Trained, folder: Path) -> dict[str, Any]:
    """Figures and summed gradients of a step of this process's share of a batch of 15."""
    options = {
        "teacher": (tables["faces"], tables["more"]),
        "unlabelled": (f"more={faces}",),
        "batch_size": 15,
    }
    options |= {"relation_weight": 2.0, "label_weight": 0.5, "head": "cosface", "embedding_size": 96}
    task = task_of(faces, folder, weights=str(stage_one.run), **options)
    task.model.eval()  # batch norms of a process see its share alone
    batch = next(task.batches(0, 0))
    figures = numbers(task.step(batch, 1.0, lambda loss, last=True: loss.backward()))
    for weight in task.model.parameters():
        weight.grad = distributed.total(torch.zeros_like(weight) if weight.grad is None else weight.grad)
    grads = {name: weight.grad for name, weight in task.model.named_parameters()}
    return {"rows": batch.rows, "figures": figures, "grads": grads}


def test_processes_agree_with_one(
    stage_one: Trained, faces: Path, tables: dict[str, str], tmp_path: Path
) -> None:
    alone = shares(faces, tables, stage_one, tmp_path / "alone")

    found = shares_agree(
        alone, lambda rank: shares(faces, tables, stage_one, tmp_path / f"run{rank}"), tmp_path
    )
    rows = torch.cat([part["rows"] for part in found])
    assert sorted(rows.tolist()) == sorted(alone["rows"].tolist())
    assert 0 < int((rows >= 84).sum()) < len(rows)  # some without a label
    for part in found:
        for name, grad in alone["grads"].items():
            scale = float(grad.abs().max())
            torch.testing.assert_close(part["grads"][name], grad, rtol=1e-3, atol=1e-4 * scale + 1e-9)
    assert alone["grads"]["to_teacher.weight"].any()


def test_the_layer_to_the_teacher_sees_what_it_was_fitted_to(
    stage_one: Trained, faces: Path, tables: dict[str, str], tmp_path: Path
) -> None:
    """Unit embeddings: the first loss is that of the fit, not of a layer that sees vectors of another length."""
    options = {"teacher": (tables["faces"],), "weights": str(stage_one.run), "embedding_size": 96}
    task = task_of(faces, tmp_path / "run", **options, batch_size=64)
    task.model.eval()
    batch = next(task.batches(0, 0))
    with torch.no_grad():
        unit = functional.normalize(task.model.embed(task.images_of(batch)), dim=1)
        led = task.model.to_teacher(unit)
    direction = 1 - functional.cosine_similarity(led, task.teacher[batch.rows]).mean()
    found = numbers(task.step(batch, 1.0, lambda loss, last=True: None))
    assert found["direction"] == pytest.approx(float(direction), rel=1e-5)
    mean = task.teacher.mean(0, keepdim=True)
    assert found["direction"] < 1 - float(functional.cosine_similarity(mean, task.teacher[batch.rows]).mean())


@pytest.mark.parametrize("options", [{}, {"relation_weight": 2.0}], ids=["apart", "all pairs"])
def test_micro_batches_have_the_gradient_of_the_batch(
    faces: Path, tables: dict[str, str], tmp_path: Path, options: dict[str, Any]
) -> None:
    """Where the batch norms are still; with all pairs of the batch in the loss, too."""
    options = options | {"teacher": (tables["faces"], tables["more"]), "unlabelled": (f"more={faces}",)}
    found = []
    for most in (0, 7):
        task = task_of(
            faces, tmp_path / str(most), **options, label_weight=1.0, microbatch=most, batch_size=16
        )
        task.model.eval()
        seen: list[bool] = []

        def backward(loss: torch.Tensor, last: bool = True, seen: list[bool] = seen) -> None:
            seen.append(last)
            loss.backward()

        figures = numbers(task.step(next(task.batches(0, 0)), 1.0, backward))
        assert (len(seen) > 1) == (most > 0)
        found.append((figures, {name: weight.grad for name, weight in task.model.named_parameters()}))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    assert len(found[0][0]) == 4 + bool(options.get("relation_weight"))
    for name, grad in found[0][1].items():
        if grad is not None:
            torch.testing.assert_close(found[1][1][name], grad, rtol=1e-3, atol=1e-5)
