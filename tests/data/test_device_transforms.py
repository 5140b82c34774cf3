"""Augmentations of a batch on a device: the CPU's pixels, but for rounding.

The device is the CPU too; on a machine with a GPU, tools/check_gpu.sh shows it to these tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from facemetric.data.device_transforms import pixels_on
from facemetric.data.images import Preprocess
from facemetric.data.index import ImageIndex, read_index
from facemetric.data.loader import Batch, load_batches
from facemetric.data.transforms import Augment, eval_transform, train_transform

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZE = (40, 48)  # H, W
STILL = Augment(crop_scale=(1.0, 1.0), hflip=0.0)
ALL = Augment(crop_scale=(0.3, 1.0), color_jitter=0.4, grayscale=0.3, blur=0.5, low_resolution=0.5)
STEPS = {
    "crop": replace(STILL, crop_scale=(0.3, 1.0)),
    "flip": replace(STILL, hflip=0.5),
    "jitter": replace(STILL, color_jitter=0.6),
    "grey": replace(STILL, grayscale=0.5),
    "blur": replace(STILL, blur=0.7),
    "low resolution": replace(STILL, low_resolution=0.7),
}


def picture(number: int, width: int, height: int) -> Image.Image:
    """Large and small spots, black and white among them."""
    rng = np.random.default_rng(number)
    spots = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((width, height))
    noise = rng.normal(0, 25, (height, width, 3))
    return Image.fromarray((np.asarray(spots) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ImageIndex:
    """Of 32 pictures every other one has the size of the network, the others are larger or smaller."""
    folder = tmp_path_factory.mktemp("pictures")
    for n in range(32):
        size = (48, 40) if n % 2 else (30 + 3 * n, 90 - 2 * n)
        path = folder / f"p{n // 4}" / f"{n:02}.png"
        path.parent.mkdir(exist_ok=True)
        picture(n, *size).save(path)
    return read_index(folder)


def loaded(index: ImageIndex, pre: Preprocess, augment: Augment, **options: Any) -> Batch:
    transform = train_transform(pre, augment)
    return next(load_batches(index, [np.arange(len(index))], transform, seed=4, **options))


def both(index: ImageIndex, augment: Augment, pre: Preprocess) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch of the loader, and of the device."""
    left = loaded(index, pre, replace(augment, on_device=True))
    return loaded(index, pre, augment).images, pixels_on(left, pre, DEVICE).cpu()


@pytest.mark.parametrize("name", list(STEPS))
def test_a_step_is_the_loaders(index: ImageIndex, name: str) -> None:
    pre = Preprocess(size=SIZE)
    expected, found = both(index, STEPS[name], pre)
    assert (found.dtype, found.shape) == (torch.uint8, (32, *SIZE, 3))
    apart = found.int() - expected.int()
    plain = loaded(index, pre, STILL).images
    assert (expected.int() - plain.int()).abs().float().mean() > 3  # there is something to agree on
    # PIL rounds six times in a blur, and a cubic before and after it is cut off.
    assert apart.abs().max() <= (2 if name in ("blur", "low resolution") else 1)
    assert apart.abs().float().mean() < (0.4 if name == "blur" else 0.02)
    assert apart.float().mean().abs() < 0.02


def test_all_steps_together(index: ImageIndex) -> None:
    expected, found = both(index, ALL, Preprocess(size=SIZE))
    apart = (found.int() - expected.int()).abs()
    assert apart.max() <= 5
    assert apart.float().mean() < 0.4
    other = loaded(index, Preprocess(size=SIZE), replace(ALL, on_device=True), epoch=1)
    assert not torch.equal(found, pixels_on(other, Preprocess(), DEVICE).cpu())


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("cut", [(0.0, 0.0, 0.0, 0.0), (0.1, 0.2, 0.0, 0.1)])
def test_crops_of_every_filter(
    index: ImageIndex, interpolation: str, cut: tuple[float, float, float, float]
) -> None:
    """With a fixed crop the loader has to scale anyway, and crops by the way."""
    pre = Preprocess(size=SIZE, interpolation=interpolation, crop=cut)
    expected, found = both(index, STEPS["crop"], pre)
    apart = (found.int() - expected.int()).abs()
    share = (apart > 1).float().mean()  # where a place lies between two pixels, "nearest" may take either
    assert share < (0.02 if interpolation == "nearest" else 1e-9)


def test_only_pictures_that_need_no_resize_are_left_to_be_cropped(index: ImageIndex) -> None:
    pre = Preprocess(size=SIZE)
    left = loaded(index, pre, replace(ALL, on_device=True))
    plain = next(load_batches(index, [np.arange(32)], eval_transform(pre))).images
    untouched = (left.images == plain).flatten(1).all(1)
    assert untouched.tolist() == [n % 2 == 1 for n in range(32)]
    assert left.later is not None
    assert ((left.later[:, :4] == torch.tensor([0.0, 0, 48, 40])).all(1) == ~untouched).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_leave_the_same(index: ImageIndex, workers: int) -> None:
    augment = replace(ALL, on_device=True)
    alone, other = (loaded(index, Preprocess(size=SIZE), augment, workers=n) for n in (0, workers))
    assert alone.later is not None
    assert other.later is not None
    assert torch.equal(alone.later, other.later)
    assert torch.equal(alone.images, other.images)


def test_mixed_precision_is_not_for_pixels(index: ImageIndex) -> None:
    pre = Preprocess(size=SIZE)
    left = loaded(index, pre, replace(ALL, on_device=True))
    plain = pixels_on(left, pre, DEVICE)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert torch.equal(pixels_on(left, pre, DEVICE), plain)


def test_a_batch_without_a_good_image(index: ImageIndex, tmp_path: Path) -> None:
    path = tmp_path / "data/p/bad.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"no image")
    pre = Preprocess(size=SIZE)
    left = loaded(read_index(tmp_path / "data"), pre, replace(ALL, on_device=True))
    assert pixels_on(left, pre, DEVICE).shape == (0, *SIZE, 3)
