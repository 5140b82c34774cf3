"""The cache of features: the right numbers, and made anew when anything changes that they come from."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from facemetric.data.images import Preprocess, decode, normalise
from facemetric.data.index import read_index
from facemetric.data.transforms import Augment, eval_transform
from facemetric.model.embedder import Embedder, build_embedder
from facemetric.training.tasks import feature_cache as features
from facemetric.training.tasks.feature_cache import Features, cached_features

AUGMENT = Augment(hflip=0.5, color_jitter=0.3)


@pytest.fixture
def people(faces: Path, tmp_path: Path) -> Path:
    """Three of the drawn identities, to be changed at will."""
    for name in sorted(path.name for path in faces.iterdir())[:3]:
        shutil.copytree(faces / name, tmp_path / "people" / name)
    return tmp_path / "people"


@pytest.fixture
def features_of(people: Path, tmp_path: Path) -> Callable[..., Features]:
    """cached_features of the people as they are now."""

    def get(embedder: Embedder, **options: Any) -> Features:
        return cached_features(embedder, read_index([str(people)]), tmp_path / "cache", **options)

    return get


@pytest.fixture
def embedder() -> Embedder:
    """One with a projection, which features do not have."""
    torch.manual_seed(0)
    return build_embedder("resnet10t", preprocess=Preprocess(size=(32, 32)), embedding_size=8)


def test_view_0_is_what_the_backbone_says_of_the_plain_images(
    features_of: Callable[..., Features], embedder: Embedder, people: Path
) -> None:
    found = features_of(embedder, views=2, augment=AUGMENT)
    assert (found.values.shape, found.values.dtype) == ((2, 18, 512), np.float32)
    assert found.valid.all()
    index, pre = read_index([str(people)]), embedder.preprocess
    pixels = np.stack([eval_transform(pre)(decode(index.read(row))) for row in range(len(index))])
    with torch.no_grad():
        expected = embedder.eval().features(normalise(torch.from_numpy(pixels), pre, torch.device("cpu")))
    spread = float(expected.std(0).mean())
    np.testing.assert_allclose(found.values[0], expected, atol=1e-3 * spread)
    assert np.abs(found.values[1] - found.values[0]).mean() > 0.1 * spread


def test_views_that_are_varied_on_the_device(
    features_of: Callable[..., Features], embedder: Embedder
) -> None:
    """Kept apart from the CPU's, and the same but for rounding."""
    here = features_of(embedder, views=2, augment=AUGMENT)
    there = features_of(embedder, views=2, augment=replace(AUGMENT, on_device=True))
    assert not there.reused
    apart = np.abs(there.values[1] - here.values[1]).mean()
    assert apart < 0.02 * np.abs(here.values[1] - here.values[0]).mean()


def test_the_second_time_they_are_read(features_of: Callable[..., Features], embedder: Embedder) -> None:
    options = {"views": 2, "augment": AUGMENT}
    first, second = features_of(embedder, **options), features_of(embedder, **options)
    assert (first.reused, second.reused) == (False, True)
    np.testing.assert_array_equal(first.values, second.values)
    # Neither the projection nor the number of workers changes the features.
    torch.nn.init.zeros_(embedder.projection.weight)  # type: ignore[arg-type]
    assert features_of(embedder, **options, workers=1).reused


def test_workers_change_nothing(
    features_of: Callable[..., Features], embedder: Embedder, tmp_path: Path
) -> None:
    first = features_of(embedder, views=2, augment=AUGMENT).values.copy()
    shutil.rmtree(tmp_path / "cache")
    np.testing.assert_array_equal(first, features_of(embedder, views=2, augment=AUGMENT, workers=2).values)


def change_weight(embedder: Embedder) -> None:
    with torch.no_grad():
        next(embedder.backbone.parameters()).view(-1)[0] += 1e-6


def change_running_mean(embedder: Embedder) -> None:
    buffers = dict(embedder.backbone.named_buffers())
    next(value for name, value in buffers.items() if name.endswith("running_mean"))[0] += 1e-6


def change_crop(embedder: Embedder) -> None:
    embedder.preprocess = Preprocess(size=(32, 32), crop=(0.0, 0.0, 0.1, 0.0))


def change_mean(embedder: Embedder) -> None:
    embedder.preprocess = Preprocess(size=(32, 32), mean=(0.4, 0.5, 0.5))


@pytest.mark.parametrize("change", [change_weight, change_running_mean, change_crop, change_mean])
def test_another_backbone_or_picture_is_another_key(
    features_of: Callable[..., Features], embedder: Embedder, change: Callable[[Embedder], None]
) -> None:
    features_of(embedder)
    change(embedder)
    assert not features_of(embedder).reused


def touch(people: Path) -> None:
    image = sorted(people.rglob("*.*"))[0]
    later = image.stat().st_mtime_ns + 1_000_000_000
    os.utime(image, ns=(later, later))


def other_pixels_at_the_same_time(people: Path) -> None:
    image, other = sorted(people.rglob("*.*"))[:2]
    before = image.stat().st_mtime_ns
    image.write_bytes(other.read_bytes())
    os.utime(image, ns=(before, before))


def add_image(people: Path) -> None:
    image = sorted(people.rglob("*.*"))[0]
    shutil.copy(image, image.with_stem("zz"))


def rename(people: Path) -> None:
    image = sorted(people.rglob("*.*"))[0]
    image.rename(image.with_stem("zz"))


@pytest.mark.parametrize("change", [touch, other_pixels_at_the_same_time, add_image, rename])
def test_other_images_are_another_key(
    features_of: Callable[..., Features], embedder: Embedder, people: Path, change: Callable[[Path], None]
) -> None:
    features_of(embedder)
    change(people)
    assert not features_of(embedder).reused


@pytest.mark.parametrize(
    "options",
    [{"views": 3}, {"augment": Augment(hflip=0.4, color_jitter=0.3)}, {"seed": 1}],
    ids=["views", "augment", "seed"],
)
def test_other_views_are_another_key(
    features_of: Callable[..., Features], embedder: Embedder, options: dict[str, Any]
) -> None:
    features_of(embedder, views=2, augment=AUGMENT)
    assert not features_of(embedder, **{"views": 2, "augment": AUGMENT} | options).reused
    assert features_of(embedder, views=2, augment=AUGMENT).reused  # the others are still there


def test_a_plain_view_does_not_ask_how_it_would_be_augmented(
    features_of: Callable[..., Features], embedder: Embedder
) -> None:
    features_of(embedder, augment=AUGMENT)
    assert features_of(embedder, augment=Augment(hflip=0.0), seed=5).reused


@pytest.mark.parametrize("damage", ["cut", "shape", "no record", "cut record", "odd record"])
def test_a_damaged_cache_is_made_anew(
    features_of: Callable[..., Features], embedder: Embedder, tmp_path: Path, damage: str
) -> None:
    expected = features_of(embedder).values.copy()
    values, record = next((tmp_path / "cache").glob("*.npy")), next((tmp_path / "cache").glob("*.json"))
    if damage == "cut":
        os.truncate(values, values.stat().st_size - 100)
    elif damage == "shape":
        np.save(values, np.zeros((1, 2, 3), np.float32))
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text('{"shape"' if damage == "cut record" else "[]")
    again = features_of(embedder)
    assert not again.reused
    np.testing.assert_array_equal(again.values, expected)
    assert features_of(embedder).reused


def test_bad_images_are_named_and_stay_named(
    features_of: Callable[..., Features], embedder: Embedder, people: Path
) -> None:
    image = sorted(people.rglob("*.*"))[4]
    image.write_bytes(image.read_bytes()[:50])
    for reused in (False, True):
        found = features_of(embedder, views=2, augment=AUGMENT)
        assert found.reused is reused
        assert [row for row, _ in found.bad] == [4]
        assert np.flatnonzero(~found.valid).tolist() == [4]


def test_a_full_disk_is_an_error_before_the_work_and_leaves_nothing(
    features_of: Callable[..., Features],
    embedder: Embedder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left") as caught:
        features_of(embedder)
    assert str(tmp_path / "cache") in caught.value.filename
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_space_is_taken_before_the_file_is_mapped(
    features_of: Callable[..., Features], embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def look(values: np.ndarray, *args: Any, **options: Any) -> dict[int, str]:
        part = next((tmp_path / "cache").glob("*.part"))
        assert part.stat().st_blocks * 512 >= values.nbytes  # a hole would have none
        return {}

    monkeypatch.setattr(features, "fill", look)
    features_of(embedder)


def test_an_interrupted_fill_leaves_no_cache(
    features_of: Callable[..., Features], embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def interrupt(*args: Any, **options: Any) -> dict[int, str]:
        raise KeyboardInterrupt

    monkeypatch.setattr(features, "fill", interrupt)
    with pytest.raises(KeyboardInterrupt):
        features_of(embedder)
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.undo()
    assert not features_of(embedder).reused


def test_a_training_embedder_is_put_into_evaluation_first(
    features_of: Callable[..., Features], embedder: Embedder
) -> None:
    embedder.train()
    before = {name: value.clone() for name, value in embedder.backbone.state_dict().items()}
    features_of(embedder)
    assert all(torch.equal(value, before[name]) for name, value in embedder.backbone.state_dict().items())


def test_the_record_is_plain_json(
    features_of: Callable[..., Features], embedder: Embedder, tmp_path: Path
) -> None:
    features_of(embedder)
    record = json.loads(next((tmp_path / "cache").glob("*.json")).read_text())
    assert record == {"shape": [1, 18, 512], "bad": []}
