"""The task of stage one: its head and margin, the size of its pictures, what it holds back."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from small_trainings import numbers
from timm.data import resolve_data_config
from torch.nn import functional

from facemetric import load_embedder
from facemetric.config import PretrainConfig
from facemetric.errors import ConfigError
from facemetric.evaluation.embed import embed_index
from facemetric.machine import pick_device
from facemetric.training.run.run import Run, Trained
from facemetric.training.split import read_split
from facemetric.training.stage import check_training, new_preprocess
from facemetric.training.tasks.classification import Classification, growing_sizes


def task_of(faces: Path, folder: Path, **options: Any) -> Classification:
    """The task as pretrain builds it."""
    config = PretrainConfig(
        (str(faces),), **({"arch": "test_resnet", "image_size": 32, "workers": 0} | options)
    )
    run = Run(folder, config_toml="", resume=False)
    torch.manual_seed(config.seed)
    task = Classification(check_training(config), read_split(config), run, pick_device("cpu"))
    task.prepare()
    return task


@pytest.mark.parametrize("head", ["softmax", "arcface", "cosface"])
def test_heads_learn_a_batch_by_heart(faces: Path, tmp_path: Path, head: str) -> None:
    task = task_of(faces, tmp_path / "run", head=head, embedding_size=16, batch_size=8)
    optimizer = torch.optim.SGD(task.model.parameters(), 0.05, momentum=0.9)
    batch = next(task.batches(0, 0))
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(numbers(task.step(batch, 1.0, lambda loss: loss.backward()))["loss"])
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


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


def test_weights_take_another_crop(stage_one: Trained, faces: Path, tmp_path: Path) -> None:
    crop = (0.1, 0.2, 0.1, 0.0)
    cropped = task_of(faces, tmp_path / "cropped", weights=str(stage_one.run), crop=crop)
    assert cropped.model.embedder.preprocess.crop == crop
    cropped.save(cropped.model, {})
    again = task_of(faces, tmp_path / "again", weights=str(tmp_path / "cropped"))
    assert again.model.embedder.preprocess.crop == crop


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"arch": "lcnet_035"},
            "--arch is lcnet_035, but .* has test_resnet; leave out --arch, or --weights",
        ),
        ({"arch_args": "channels = [8]"}, r"--arch-args is channels = \[8\], but .* has none"),
        ({"embedding_size": 8}, "--embedding-size is 8, but .* has 96"),
    ],
)
def test_weights_of_another_network(
    stage_one: Trained, faces: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of(faces, tmp_path / "run", weights=str(stage_one.run), **options)


@pytest.mark.parametrize(("option", "value"), [("drop_path", 0.1), ("pretrained", True)])
def test_options_of_a_new_network_do_not_go_with_weights(
    stage_one: Trained, faces: Path, tmp_path: Path, option: str, value: Any
) -> None:
    flag = option.replace("_", "-")
    with pytest.raises(ConfigError, match=f"--{flag} is for a new network; leave it out, or --weights"):
        task_of(faces, tmp_path / "run", weights=str(stage_one.run), **{option: value})


def test_pretrained_networks_see_pictures_as_they_did() -> None:
    """Those of ImageNet have a mean and deviation for each channel."""
    ours = new_preprocess(PretrainConfig(("faces",), arch="resnet18"))
    assert (ours.mean, ours.interpolation, ours.size) == ((0.5, 0.5, 0.5), "bilinear", (96, 96))
    theirs = new_preprocess(PretrainConfig(("faces",), arch="resnet18", pretrained=True, image_size=64))
    known = resolve_data_config({}, model=timm.create_model("resnet18"))
    assert (theirs.mean, theirs.std) == (known["mean"], known["std"])
    assert (theirs.interpolation, theirs.size) == (known["interpolation"], (64, 64))


def test_held_back_images_are_not_trained_on(faces: Path, tmp_path: Path) -> None:
    task = task_of(faces, tmp_path / "run", closed_set_fraction=0.2, batch_size=8)
    trained = {int(row) for epoch in range(3) for batch in task.batches(epoch, 0) for row in batch.rows}
    assert task.closed is not None
    names = {task.split.train.name(row) for row in trained}
    held = {task.closed.name(row) for row in range(len(task.closed))}
    assert len(held) == 17
    assert not names & held


def test_a_closed_set_holds_nothing_back_once_more(faces: Path, tmp_path: Path) -> None:
    task = task_of(faces, tmp_path / "run", val_by="images", val_fraction=0.25, closed_set_fraction=0.2)
    assert len(task.split.train) == 72
    assert len(task.rows) == 72


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
    losses = [
        numbers(task.step(batch, progress, lambda loss: None))["loss"]
        for progress in (0.0, 1 / 6, 1 / 3, 1.0)
    ]
    assert losses[0] < losses[1] < losses[2]
    assert losses[3] == pytest.approx(losses[2], rel=0.05)


def test_accuracy_is_without_the_margin(faces: Path, tmp_path: Path) -> None:
    """A margin makes the own identity's logit the smallest of all here, and that is no mistake of the network."""
    task = task_of(faces, tmp_path / "run", head="cosface", margin=2.0, batch_size=8)
    batch = next(task.batches(0, 0))
    task.model.head.forward = lambda emb: functional.one_hot(batch.labels, 14).float()  # type: ignore[method-assign]
    assert numbers(task.step(batch, 1.0, lambda loss: None))["accuracy"] == 1.0


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


HEADS_IN_PARTS: list[dict[str, Any]] = [
    {"head": "softmax", "label_smoothing": 0.1, "random_erasing": 0.5},
    {"head": "subcentre-arcface"},
    {"head": "adaface"},  # whose margin follows the lengths of the whole batch
    {"head": "curricular"},
    {"head": "cosface", "head_shards": True, "head_sample": 0.5},
]


@pytest.mark.parametrize("options", HEADS_IN_PARTS, ids=lambda options: options["head"])
def test_micro_batches_have_the_gradient_of_the_batch(
    faces: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Where the batch norms are still; the figures are those of the batch as well."""
    found = []
    for most in (0, 5):
        task = task_of(
            faces, tmp_path / str(most), embedding_size=8, batch_size=16, microbatch=most, **options
        )
        task.model.double().eval()
        task.model.head.train()
        seen: list[bool] = []

        def backward(loss: torch.Tensor, last: bool = True, seen: list[bool] = seen) -> None:
            seen.append(last)
            loss.backward()

        task.images_of = partial(double_images, task.images_of)  # type: ignore[method-assign]
        batch = next(task.batches(0, 0))
        torch.manual_seed(0)
        random.seed(0)
        figures = numbers(task.step(batch, 1.0, backward))
        grads = {name: weight.grad for name, weight in task.model.named_parameters()}
        grads |= {str(i): drawn.part.grad for i, drawn in enumerate(getattr(task.model.head, "drawn", []))}
        found.append((figures, grads, dict(task.model.head.named_buffers())))
        assert seen[-1]
        assert not any(seen[:-1])
        assert (len(seen) > 1) == (most > 0)
    (whole, grads, buffers), (parts, grads_of_parts, buffers_of_parts) = found
    assert parts == pytest.approx(whole, rel=1e-6)
    assert sum(grad is not None for grad in grads.values()) > 10
    for name, grad in grads.items():
        assert (grad is None) == (grads_of_parts[name] is None), name
        if grad is not None:
            torch.testing.assert_close(grads_of_parts[name], grad, rtol=1e-5, atol=1e-7)
    for name, value in buffers.items():
        torch.testing.assert_close(buffers_of_parts[name], value)


def double_images(images_of: Any, batch: Any) -> torch.Tensor:
    """The images of a batch in float64, so that the order of sums does not show."""
    return images_of(batch).double()
