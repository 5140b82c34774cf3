"""The fixed crop and resize, and the augmentations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import ColorJitter
from torchvision.transforms.functional import resized_crop

from facemetric.data.images import Preprocess
from facemetric.data.loader import seed_everything
from facemetric.data.transforms import Augment, eval_transform, jitter, recolour, train_transform
from facemetric.errors import ConfigError

STILL = {"crop_scale": (1.0, 1.0), "hflip": 0.0}


def picture(width: int = 60, height: int = 40, low: int = 0, high: int = 256) -> Image.Image:
    pixels = np.random.default_rng(1).integers(low, high, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_eval_leaves_the_right_size_alone() -> None:
    image = picture()
    np.testing.assert_array_equal(eval_transform(Preprocess(size=(40, 60)))(image), np.asarray(image))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_eval_crops_then_stretches(interpolation: str) -> None:
    image = picture()
    pre = Preprocess(size=(16, 20), crop=(0.1, 0.25, 0.2, 0.05), interpolation=interpolation)
    resample = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[interpolation]
    expected = image.resize((20, 16), resample, box=(6, 10, 48, 38))
    np.testing.assert_array_equal(eval_transform(pre)(image), np.asarray(expected))
    # Away from the edges that is the same as cutting first.
    cut = image.crop((6, 10, 48, 38)).resize((20, 16), resample)
    np.testing.assert_array_equal(eval_transform(pre)(image)[4:-4, 4:-4], np.asarray(cut)[4:-4, 4:-4])


def test_train_without_any_step_is_eval() -> None:
    pre = Preprocess(size=(16, 20), crop=(0.1, 0.2, 0.2, 0.1))
    image = picture()
    np.testing.assert_array_equal(train_transform(pre, Augment(**STILL))(image), eval_transform(pre)(image))


def test_flip() -> None:
    image = picture()
    pre = Preprocess(size=(40, 60))
    flipped = train_transform(pre, Augment(crop_scale=(1, 1), hflip=1.0))(image)
    np.testing.assert_array_equal(flipped, np.asarray(image)[:, ::-1])
    half = train_transform(pre, Augment(crop_scale=(1, 1), hflip=0.5))
    seed_everything(0)
    times = sum(not np.array_equal(half(image), np.asarray(image)) for _ in range(200))
    assert 70 < times < 130


def test_random_crop_is_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers drawn and the same pixels, but for the crop's edges."""
    image = picture(80, 60)
    transform = train_transform(Preprocess(size=(30, 40)), Augment(crop_scale=(0.5, 0.9), hflip=0))
    from timm.data.transforms import RandomResizedCropAndInterpolation

    own = 80 / 60
    for seed in range(5):
        seed_everything(seed)
        got = transform(image)
        seed_everything(seed)
        place = RandomResizedCropAndInterpolation.get_params(image, (0.5, 0.9), (0.9 * own, 1.1 * own))
        expected = np.asarray(resized_crop(image, *place, size=[30, 40]))  # type: ignore[arg-type]
        np.testing.assert_array_equal(got[3:-3, 3:-3], expected[3:-3, 3:-3])


def test_random_crop_stays_inside_the_fixed_one() -> None:
    transform = train_transform(
        Preprocess(size=(30, 40), crop=(0.25, 0.1, 0.25, 0.2)), Augment(crop_scale=(0.3, 1.0))
    )
    image = picture(81, 61)
    seed_everything(0)
    boxes = np.array([transform.region(image) for _ in range(300)])
    assert boxes[:, 0].min() >= 20
    assert boxes[:, 1].min() >= 6
    assert boxes[:, 2].max() <= 61
    assert boxes[:, 3].max() <= 49
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / (0.5 * 81 * 0.7 * 61)
    assert area.min() > 0.27
    assert area.min() < 0.4
    assert area.max() > 0.9


def test_jitter_is_torchvisions() -> None:
    """Colours that stay inside 0..255 differ by the fractions that PIL cuts off three times."""
    image = picture(112, 112, 80, 150)
    theirs = ColorJitter(0.2, 0.2, 0.2)
    for seed in range(40):
        seed_everything(seed)
        expected = np.asarray(theirs(image)).astype(int)
        seed_everything(seed)
        difference = np.asarray(recolour(*jitter(0.2), image)).astype(int) - expected
        assert difference.min() >= -1
        assert difference.max() <= 3


def test_jitter_of_extreme_pictures() -> None:
    for value in (0, 255):
        image = Image.new("RGB", (5, 7), (value, value, value))
        seed_everything(3)
        assert recolour(*jitter(1.0), image).size == (5, 7)


def spread(pixels: np.ndarray) -> float:
    """Mean difference between neighbours along the rows."""
    return float(np.abs(np.diff(pixels.astype(int), axis=1)).mean())


def test_steps_do_what_they_say() -> None:
    image = picture(64, 64)
    pre = Preprocess(size=(64, 64))
    plain = np.asarray(image)

    def after(**steps: float) -> np.ndarray:
        seed_everything(1)
        return train_transform(pre, Augment(**STILL, **steps))(image)  # type: ignore[arg-type]

    grey = after(grayscale=1.0)
    assert (grey[..., 0] == grey[..., 2]).all()
    assert spread(after(blur=1.0)) < spread(plain)
    assert spread(after(low_resolution=1.0)) < 0.6 * spread(plain)
    for step in ("grayscale", "blur", "low_resolution"):
        np.testing.assert_array_equal(after(**{step: 0.0}), plain)


@pytest.mark.parametrize("policy", ["rand-m9-mstd0.5", "rand-m5-n1-inc1", "augmix-m3-w2", "3a", "original"])
def test_timm_policies(policy: str) -> None:
    image = picture(32, 32)
    transform = train_transform(Preprocess(size=(32, 32)), Augment(auto_augment=policy))
    seen = set()
    for seed in range(6):
        seed_everything(seed)
        pixels = transform(image)
        assert pixels.shape == (32, 32, 3)
        assert pixels.dtype == np.uint8
        seed_everything(seed)
        np.testing.assert_array_equal(transform(image), pixels)
        seen.add(pixels.tobytes())
    assert len(seen) > 2


@pytest.mark.parametrize(
    "fault",
    [
        {"hflip": 1.5},
        {"grayscale": -0.1},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.9, 0.8)},
        {"color_jitter": -1.0},
    ],
)
def test_faults(fault: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="needed"):
        Augment(**fault)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", ["randd-m9", "rand-q5", "nonsense"])
def test_unknown_policy(policy: str) -> None:
    with pytest.raises(ConfigError, match="auto_augment is"):
        train_transform(Preprocess(), Augment(auto_augment=policy))


def test_enough_for_the_crop() -> None:
    """decode may halve a JPEG only where twice the network's size is left after every crop."""
    assert eval_transform(Preprocess(size=(50, 100))).enough >= 200
    assert eval_transform(Preprocess(size=(50, 50), crop=(0.25, 0, 0.25, 0))).enough >= 200
    assert train_transform(Preprocess(size=(50, 50)), Augment(crop_scale=(0.25, 1))).enough >= 200


def test_torch_state_is_the_callers() -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    eval_transform(Preprocess(size=(16, 20)))(picture())
    assert torch.equal(torch.rand(2), expected)
