"""From a decoded picture to the pixels of the network: the augmented way. The plain one is in eval_transform.py.

The crops and policies are timm's, the colour jitter torchvision's, each drawing from Python's, numpy's or
torch's global generator, which the loader seeds for each image (see batches.py). Pictures are PIL RGB,
results uint8 (H, W, 3).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from PIL import Image, ImageFilter
from timm.data.auto_augment import (
    augment_and_mix_transform,
    auto_augment_transform,
    rand_augment_transform,
)
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import ColorJitter

from facemetric.data.eval_transform import Box, Pixels, Step, Transform, eval_transform
from facemetric.data.images import INTERPOLATIONS, Preprocess
from facemetric.errors import ConfigError

__all__ = ["Augment", "TrainTransform", "Transform", "eval_transform", "train_transform"]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's grey
CROP_RATIO = (0.9, 1.1)  # width / height of a random crop, against the picture's own


@dataclass(frozen=True)
class Augment:
    """How training images are varied. Chances are 0..1; 0 turns a step off, as does an empty policy."""

    crop_scale: tuple[float, float] = (0.8, 1.0)  # share of the area; (1, 1) is no crop
    hflip: float = 0.5
    color_jitter: float = 0.0  # brightness, contrast, saturation up to this share up or down
    auto_augment: str = ""  # a timm policy, such as rand-m9-mstd0.5 or augmix-m3 or 3a
    grayscale: float = 0.0
    blur: float = 0.0
    low_resolution: float = 0.0  # scaled down to 1/4..3/4 and up again

    def __post_init__(self) -> None:
        for name in ("hflip", "grayscale", "blur", "low_resolution"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; a chance of 0..1 is needed")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ConfigError(f"crop_scale is {self.crop_scale}; 0 < smallest <= largest <= 1 is needed")
        if self.color_jitter < 0:
            raise ConfigError(f"color_jitter is {self.color_jitter}; 0 or more is needed")


class TrainTransform(Transform):
    """The same with a random crop, flip and the other steps of `Augment`."""

    draws = True

    def __init__(self, pre: Preprocess, augment: Augment) -> None:
        super().__init__(pre)
        self.augment = augment
        self.enough = int(self.enough / augment.crop_scale[0] ** 0.5) + 1
        self.steps = _steps(pre, augment)
        self.draws_late = bool(augment.auto_augment)

    def draw(self, image: Image.Image) -> Pixels:
        box = self.region(image)
        steps = [step for draw in self.steps if (step := draw()) is not None]
        return partial(self.make, box, steps, random.random() < self.augment.hflip)

    def region(self, image: Image.Image) -> Box:
        box = super().region(image)
        if self.augment.crop_scale == (1.0, 1.0):
            return box
        left, top, right, bottom = (round(edge) for edge in box)
        if any(self.crop):
            image = image.crop((left, top, right, bottom))
        own = image.width / image.height
        ratio = [own * share for share in CROP_RATIO]
        y, x, height, width = RandomResizedCropAndInterpolation.get_params(
            image, self.augment.crop_scale, ratio
        )
        return left + x, top + y, left + x + width, top + y + height


def train_transform(pre: Preprocess, augment: Augment) -> TrainTransform:
    """The fixed crop, then timm's random crop, policy and so on, as `augment` says. ConfigError on a policy
    timm does not know."""
    return TrainTransform(pre, augment)


Draw = Callable[[], Step | None]  # a step with its random numbers, or None where it is not its turn


def _steps(pre: Preprocess, augment: Augment) -> list[Draw]:
    steps: list[Draw] = []
    if augment.low_resolution:
        steps.append(partial(sometimes, augment.low_resolution, low_resolution))
    if augment.auto_augment:
        policy = _policy(pre, augment.auto_augment)
        steps.append(lambda: policy)
    if augment.color_jitter:
        steps.append(partial(jitter, augment.color_jitter))
    if augment.grayscale:
        steps.append(partial(sometimes, augment.grayscale, lambda: grayscale))
    if augment.blur:
        steps.append(partial(sometimes, augment.blur, blur))
    return steps


def _policy(pre: Preprocess, text: str) -> Step:
    hints = {
        "translate_const": int(min(pre.size) * 0.45),
        "img_mean": tuple(min(255, round(255 * mean)) for mean in pre.mean),
        "interpolation": INTERPOLATIONS[pre.interpolation],
    }
    known = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
    make = known.get(text.split("-")[0], auto_augment_transform)
    try:
        return make(text, hints)
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigError(
            f"auto_augment is {text!r}, which timm cannot read ({error}); try rand-m9-mstd0.5 or 3a"
        ) from None


def sometimes(chance: float, draw: Callable[[], Step]) -> Step | None:
    """A step with a chance of 0..1."""
    return draw() if random.random() < chance else None


def jitter(share: float) -> Step:
    """torchvision's ColorJitter of brightness, contrast and saturation, each by up to `share` up or down.

    The three are affine in the colours and, as none of them is cut off at 0..255, come to the same in any
    order: one matrix, one pass over the pixels. PIL cuts off after each of the three, this only once.
    """
    reach = (max(0.0, 1 - share), 1 + share)
    _, *factors, _ = ColorJitter.get_params(reach, reach, reach, None)
    brightness, contrast, saturation = (float(factor) for factor in factors)
    return partial(recolour, brightness, contrast, saturation)


def recolour(brightness: float, contrast: float, saturation: float, image: Image.Image) -> Image.Image:
    """brightness * (contrast * (saturation * x + (1 - saturation) * luma(x)) + (1 - contrast) * mean luma)."""
    mean_rgb = image.reduce(image.size).tobytes()
    grey = (1 - contrast) * brightness * sum(part * mean for part, mean in zip(LUMA, mean_rgb, strict=True))
    own = brightness * contrast * saturation
    r, g, b = (brightness * contrast * (1 - saturation) * part for part in LUMA)
    return image.convert("RGB", (r + own, g, b, grey, r, g + own, b, grey, r, g, b + own, grey))


def grayscale(image: Image.Image) -> Image.Image:
    """Without colour, as old photographs are."""
    return image.convert("L").convert("RGB")


def blur() -> Step:
    """Gaussian blur with a radius of 0.5 to 2 % of the width."""
    share = random.uniform(0.005, 0.02)
    return lambda image: image.filter(ImageFilter.GaussianBlur(image.width * share))


def low_resolution() -> Step:
    """Scaled down to 1/4..3/4 and up again, as small faces in large photographs are."""
    share = random.uniform(0.25, 0.75)
    down, up = (random.choice((Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)) for _ in range(2))

    def step(image: Image.Image) -> Image.Image:
        small = (max(1, round(image.width * share)), max(1, round(image.height * share)))
        return image.resize(small, down).resize(image.size, up)

    return step
