"""Stage two with --teacher: whose row is followed, what the terms are, resume to the bit, processes, micro-batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_trainings import FAST, numbers, same, shares_agree, stop_in_step
from torch.nn import functional

from facemetric import distributed, finetune, load_embedder
from facemetric.config import FinetuneConfig
from facemetric.data.index import read_index
from facemetric.errors import ConfigError, DataError, TrainingError
from facemetric.evaluation.table import EmbeddingTable, unit_rows
from facemetric.machine import pick_device
from facemetric.model.projections import Refit, refit
from facemetric.training.finetune import task_of as task_of_config
from facemetric.training.run.folder import read_log
from facemetric.training.run.run import Run, Trained
from facemetric.training.split import read_split
from facemetric.training.stage import check_training
from facemetric.training.tasks.feature_cache import cached_features
from facemetric.training.tasks.following import Following
from facemetric.training.tasks.on_features import OnFeatures
from facemetric.training.tasks.on_images import OnImages
from facemetric.training.tasks.teacher_rows import Joined

SIZE = 12


@pytest.fixture(scope="module")
def table(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A teacher of the drawn faces, and of the same as `more/...`: a cone, an own direction for each identity."""
    index = read_index([str(faces)])
    rng = np.random.default_rng(0)
    own = rng.normal(size=(len(index.identities), SIZE))[index.identity]
    rows = 2 * np.ones(SIZE) + own + 0.1 * rng.normal(size=(len(index), SIZE))
    names = [index.name(i) for i in range(len(index))]
    both = np.array(names + [f"more/{name}" for name in names])
    path = tmp_path_factory.mktemp("teacher") / "both.npz"
    EmbeddingTable(np.concatenate([rows, -rows]), np.array(["x"] * len(both)), both).save(path)
    return str(path)


def task_of(faces: Path, stage_one: Trained, folder: Path, **options: Any) -> OnFeatures | OnImages:
    """The task as finetune builds it."""
    config = FinetuneConfig((str(faces),), weights=str(stage_one.weights), out=folder, **(FAST | options))
    run = Run(folder, config_toml="", resume=False)
    embedder = load_embedder(stage_one.weights)
    torch.manual_seed(0)
    task = task_of_config(check_training(config), embedder, read_split(config), run, pick_device("cpu"))
    task.prepare()
    return task


def following_of(task: OnFeatures | OnImages) -> Following:
    """What the task follows."""
    assert task.objective.following is not None
    return task.objective.following


def test_the_terms_are_those_of_the_images_that_are_seen(
    stage_one: Trained, faces: Path, table: str, tmp_path: Path
) -> None:
    """Against numpy on the table's rows by the images' names, some of them unlabelled."""
    options: dict[str, Any] = {"teacher": (table,), "teacher_weight": 3.0, "relation_weight": 2.0}
    options |= {"label_weight": 0.5, "unlabelled": (f"more={faces}",), "batch_size": 64}
    task = task_of(faces, stage_one, tmp_path / "run", **options)
    assert isinstance(task, OnFeatures)
    places = np.concatenate([np.arange(5, 20), np.arange(len(task.rows) + 80, len(task.rows) + 110)])
    views = np.zeros(len(places), np.int64)
    names = []
    for place in places.tolist():
        if place < len(task.rows):
            names.append(task.split.train.name(int(task.rows[place])))
        else:
            image = (place - len(task.rows)) % len(task.stranger_rows)
            assert task.split.unlabelled is not None
            names.append(task.split.unlabelled.name(int(task.stranger_rows[image])))
    said = EmbeddingTable.load(table)
    teacher = said.embeddings[[said.find(name) for name in names]].astype(np.float64)
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    given: list[torch.Tensor] = []
    figures = numbers(task.step((places, views), 0.0, given.append))
    with torch.no_grad():
        unit = functional.normalize(task.projection(task.features_of(places, views)), dim=1)
        led = functional.normalize(following_of(task).to_teacher(unit), dim=1).double().numpy()
    cosines = unit.double().numpy() @ unit.double().numpy().T
    direction = 1 - (led * teacher).sum(1).mean()
    relation = ((cosines - teacher @ teacher.T) ** 2).mean()
    assert figures["direction"] == pytest.approx(direction, rel=1e-4)
    assert figures["relation"] == pytest.approx(relation, rel=1e-4)
    assert figures["loss"] == pytest.approx(
        0.5 * figures["label_loss"] + 3 * direction + 2 * relation, rel=1e-4
    )
    assert float(given[0].detach()) == pytest.approx(figures["loss"])


def test_without_a_teacher_the_loss_is_the_labels(stage_one: Trained, faces: Path, tmp_path: Path) -> None:
    task = task_of(faces, stage_one, tmp_path / "run")
    assert task.objective.following is None
    figures = numbers(task.step(next(iter(task.batches(0, 0))), 0.0, lambda loss, last=True: None))
    assert not {"direction", "relation", "label_loss"} & figures.keys()


def test_the_layer_begins_at_least_squares_and_learns(
    stage_one: Trained, faces: Path, table: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"teacher": (table,), "label_weight": 0.0, "relation_weight": 4.0}
    task = task_of(faces, stage_one, tmp_path / "run", **options)
    following = following_of(task)
    mean = following.teacher[: len(task.split.train)].mean(0)
    by_mean = 1 - functional.cosine_similarity(following.teacher[: len(task.split.train)], mean[None]).mean()
    batch = next(iter(task.batches(0, 0)))
    optimizer = torch.optim.AdamW([p for part, _ in task.parts() for p in part.parameters()], 1e-2)
    figures = []
    for _ in range(40):
        optimizer.zero_grad()
        figures.append(numbers(task.step(batch, 0.0, lambda loss, last=True: loss.backward())))
        optimizer.step()
    assert figures[0]["direction"] < 0.75 * float(by_mean)  # of one answer for all
    for name in ("direction", "relation"):
        assert figures[-1][name] < 0.85 * figures[0][name]


@pytest.mark.parametrize("freeze", ["backbone", "none"])
def test_a_stopped_run_goes_on_with_the_same_bits(
    stage_one: Trained, faces: Path, table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, freeze: str
) -> None:
    options: dict[str, Any] = FAST | {
        "epochs": 2,
        "freeze": freeze,
        "ema": 0.9,
        "weights": str(stage_one.run),
    }
    options |= {"teacher": (table,), "relation_weight": 2.0, "cache": tmp_path / "features"}
    options |= {"unlabelled": (f"more={faces}",)} if freeze == "backbone" else {"microbatch": 12}
    whole = finetune(str(faces), **options, out=tmp_path / "whole")
    kind = OnFeatures if freeze == "backbone" else OnImages
    stop_in_step(monkeypatch, kind, 4)
    with pytest.raises(TrainingError, match="with resume=True goes on"):
        finetune(str(faces), **options, out=tmp_path / "parts")
    parts = finetune(str(faces), **options, out=tmp_path / "parts", resume=True)
    states = [torch.load(run.run / "checkpoint.pt", weights_only=True) for run in (whole, parts)]
    assert same(states[0]["model"], states[1]["model"])
    assert same(states[0]["ema"], states[1]["ema"])
    assert parts.metrics == whole.metrics
    assert any(name.startswith("to_teacher") for name in states[0]["model"])
    assert load_embedder(parts.weights).embedding_size == load_embedder(stage_one.weights).embedding_size
    lines = [line for line in read_log(whole.run / "log.jsonl") if line["event"] == "train"]
    assert {"loss", "label_loss", "direction", "relation"} <= lines[0].keys()
    said = EmbeddingTable.load(table)
    EmbeddingTable(said.embeddings[:, ::-1], said.identities, said.paths).save(tmp_path / "other.npz")
    other = options | {"teacher": (str(tmp_path / "other.npz"),)}
    with pytest.raises(ConfigError, match="the teacher of this run changed"):
        finetune(str(faces), **other, out=tmp_path / "parts", resume=True)


def test_micro_batches_have_the_gradient_of_the_whole(
    stage_one: Trained, faces: Path, table: str, tmp_path: Path
) -> None:
    found = {}
    for microbatch in (0, 7):
        options: dict[str, Any] = {"teacher": (table,), "relation_weight": 2.0, "freeze": ("none",)}
        task = task_of(faces, stage_one, tmp_path / str(microbatch), microbatch=microbatch, **options)
        task.model.eval()  # batch norms see chunks of other sizes else
        figures = numbers(
            task.step(next(iter(task.batches(0, 0))), 0.0, lambda loss, last=True: loss.backward())
        )
        grads = {name: p.grad for name, p in task.model.named_parameters() if p.grad is not None}
        found[microbatch] = figures, grads
    (figures, grads), (in_parts, part_grads) = found[0], found[7]
    assert figures == pytest.approx(in_parts, rel=1e-4)
    assert grads.keys() == part_grads.keys()
    assert grads["to_teacher.weight"].abs().max() > 1e-5
    for name, grad in grads.items():
        torch.testing.assert_close(part_grads[name], grad, rtol=1e-3, atol=1e-6)


def shares(stage_one: Trained, faces: Path, table: str, folder: Path) -> dict[str, Any]:
    """Figures and gradients of a step of this process's share."""
    options: dict[str, Any] = {"teacher": (table,), "relation_weight": 2.0, "label_weight": 0.3}
    options |= {"unlabelled": (f"more={faces}",), "cache": folder.parent / "features", "batch_size": 20}
    task = task_of(faces, stage_one, folder, **options)
    figures = numbers(task.step(next(iter(task.batches(0, 0))), 0.0, lambda loss, last=True: loss.backward()))
    for weight in task.model.parameters():
        weight.grad = distributed.total(torch.zeros_like(weight) if weight.grad is None else weight.grad)
    return {"figures": figures, "grads": {name: p.grad for name, p in task.model.named_parameters()}}


def test_processes_agree_with_one(stage_one: Trained, faces: Path, table: str, tmp_path: Path) -> None:
    alone = shares(stage_one, faces, table, tmp_path / "alone")

    found = shares_agree(
        alone, lambda rank: shares(stage_one, faces, table, tmp_path / f"run{rank}"), tmp_path
    )
    for part in found:
        for name, grad in alone["grads"].items():
            assert grad.any()
            torch.testing.assert_close(part["grads"][name], grad, rtol=1e-3, atol=1e-6)


def test_weights_are_a_teacher_too(stage_one: Trained, faces: Path, tmp_path: Path) -> None:
    task = task_of(faces, stage_one, tmp_path / "run", teacher=(str(stage_one.weights),))
    rows = following_of(task).teacher
    assert rows.shape == (len(task.split.train), load_embedder(stage_one.weights).embedding_size)
    found = task.step(next(iter(task.batches(0, 0))), 0.0, lambda loss, last=True: None)
    assert float(found["direction"]) < 0.05
    assert list((tmp_path / "teacher").glob("*.npz"))


def test_what_does_not_fit_is_refused(stage_one: Trained, faces: Path, table: str, tmp_path: Path) -> None:
    options: dict[str, Any] = FAST | {"weights": str(stage_one.weights), "out": tmp_path / "run"}
    with pytest.raises(ConfigError, match="relation_weight= needs teacher="):
        finetune(str(faces), relation_weight=1.0, **options)
    with pytest.raises(ConfigError, match="label_weight is 0, and no teacher="):
        finetune(str(faces), label_weight=0.0, **options)
    with pytest.raises(DataError, match="have no row in teacher="):
        finetune(f"other={faces}", teacher=(table,), **options)


def test_unlabelled_rows_come_behind_the_labelled(faces: Path, table: str) -> None:
    index = read_index([str(faces)])
    joined = Joined(index, index)
    following = Following(FinetuneConfig(("x",)), joined, np.eye(2 * len(index), SIZE, dtype=np.float32), 4)
    alone = Following(FinetuneConfig(("x",)), Joined(index, None), following.teacher.numpy(), 4)
    assert following.mark != alone.mark  # a run does not go on with other unlabelled images


@pytest.mark.parametrize("freeze", ["backbone", "none"])
def test_a_refit_aims_at_the_teachers_rows_of_its_images(
    stage_one: Trained, some_single: Path, tmp_path: Path, freeze: str
) -> None:
    """Some images cannot be read: what the teacher says of the others is what the layer is fitted to."""
    next(iter(sorted(some_single.iterdir())[0].iterdir())).write_bytes(b"not an image")
    kept = read_index([str(some_single)])
    rng = np.random.default_rng(4)
    rows = 2 + rng.normal(size=(len(kept), SIZE))
    names = np.array([kept.name(i) for i in range(len(kept))])
    path = tmp_path / "teacher.npz"
    EmbeddingTable(rows, np.array(["x"] * len(kept)), names).save(path)
    options: dict[str, Any] = {"teacher": (str(path),), "projection_init": "refit", "val_fraction": 0.0}
    options |= {"freeze": (freeze,), "max_bad": 0.5, "refit_penalty": 0.5, "refit_teacher": 2.0}
    task = task_of(some_single, stage_one, tmp_path / "run", refit_constant=0.3, **options)
    own = load_embedder(stage_one.weights)
    found = cached_features(own, task.split.train, tmp_path / "cache")
    # Two people have one image, which a task on features leaves out.
    good = task.rows if isinstance(task, OnFeatures) else np.flatnonzero(found.valid)
    assert len(good) == 26 - 1 - 2 * isinstance(task, OnFeatures)
    said = dict(zip(names, unit_rows(rows), strict=True))
    teacher = np.array([said[task.split.train.name(i)] for i in good])
    expected = refit(own, found.values[0][good], Refit(0.5, 2.0, 0.3), teacher)
    layer = task.projection if isinstance(task, OnFeatures) else task.embedder.projection
    assert isinstance(layer, torch.nn.Linear)
    seen = torch.from_numpy(found.values[0][good])
    ours, theirs = (functional.normalize(one(seen), dim=1).detach() for one in (layer, expected))
    torch.testing.assert_close(ours @ ours.T, theirs @ theirs.T, atol=1e-3, rtol=0)
    other = refit(own, found.values[0][good], Refit(0.5, 2.0, 0.3), np.roll(teacher, 1, axis=0))
    wrong = functional.normalize(other(seen), dim=1).detach()
    assert (wrong @ wrong.T - theirs @ theirs.T).abs().max() > 0.05
