"""From a decoded picture to the pixels of the network: the plain way, and the augmented one.

The crops and policies are timm's, the colour jitter torchvision's, each drawing from Python's, numpy's or
torch's global generator, which the loader seeds for each image (see batches.py). Pictures are PIL RGB,
results uint8 (H, W, 3).
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter
from timm.data.auto_augment import (
    augment_and_mix_transform,
    auto_augment_transform,
    rand_augment_transform,
)
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import ColorJitter

from facemetric.data.images import INTERPOLATIONS, Preprocess
from facemetric.errors import ConfigError

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as PIL's grey
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Augment:
    """How training images are varied. Chances are 0..1; 0 turns a step off, as does an empty policy."""

    crop_scale: tuple[float, float] = (0.8, 1.0)  # share of the area; (1, 1) is no crop
    crop_ratio: tuple[float, float] = (0.9, 1.1)  # width / height, against the picture's own
    hflip: float = 0.5
    color_jitter: float = 0.0  # brightness, contrast, saturation up to this share up or down
    auto_augment: str = ""  # a timm policy, such as rand-m9-mstd0.5 or augmix-m3 or 3a
    grayscale: float = 0.0
    blur: float = 0.0
    low_resolution: float = 0.0  # scaled down to 1/4..3/4 and up again
    jpeg: float = 0.0  # packed again with quality 20..80

    def __post_init__(self) -> None:
        for name in ("hflip", "grayscale", "blur", "low_resolution", "jpeg"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; a chance of 0..1 is needed")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ConfigError(f"crop_scale is {self.crop_scale}; 0 < smallest <= largest <= 1 is needed")
        low, high = self.crop_ratio
        if not 0 < low <= high:
            raise ConfigError(f"crop_ratio is {self.crop_ratio}; 0 < smallest <= largest is needed")
        if self.color_jitter < 0:
            raise ConfigError(f"color_jitter is {self.color_jitter}; 0 or more is needed")


class Transform:
    """PIL RGB -> uint8 (H, W, 3). `enough` is the shorter side that `decode` needs to keep."""

    def __init__(self, pre: Preprocess) -> None:
        self.crop = pre.crop
        self.height, self.width = pre.size
        self.resample = INTERPOLATIONS[pre.interpolation]
        left, top, right, bottom = pre.crop
        # Twice the size still leaves the resize something to average.
        self.enough = int(2 * max(self.width / (1 - left - right), self.height / (1 - top - bottom))) + 1

    def __call__(self, image: Image.Image) -> np.ndarray:
        return np.asarray(self.cut(image, self.region(image)))

    def region(self, image: Image.Image) -> Box:
        """(left, upper, right, lower) in pixels, after the fixed crop."""
        left, top, right, bottom = self.crop
        width, height = image.size
        return left * width, top * height, width - right * width, height - bottom * height

    def cut(self, image: Image.Image, box: Box) -> Image.Image:
        """Crop and resize in one step."""
        if box == (0, 0, *image.size) and image.size == (self.width, self.height):
            return image
        return image.resize((self.width, self.height), self.resample, box=box)


class TrainTransform(Transform):
    """The same with a random crop, flip and the other steps of `Augment`."""

    def __init__(self, pre: Preprocess, augment: Augment) -> None:
        super().__init__(pre)
        self.augment = augment
        self.enough = int(self.enough / augment.crop_scale[0] ** 0.5) + 1
        self.steps = _steps(pre, augment)

    def __call__(self, image: Image.Image) -> np.ndarray:
        image = self.cut(image, self.region(image))
        for step in self.steps:
            image = step(image)
        if random.random() < self.augment.hflip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image)

    def region(self, image: Image.Image) -> Box:
        box = super().region(image)
        if self.augment.crop_scale == (1.0, 1.0):
            return box
        left, top, right, bottom = (round(edge) for edge in box)
        if any(self.crop):
            image = image.crop((left, top, right, bottom))
        own = image.width / image.height
        ratio = [own * share for share in self.augment.crop_ratio]
        y, x, height, width = RandomResizedCropAndInterpolation.get_params(
            image, self.augment.crop_scale, ratio
        )
        return left + x, top + y, left + x + width, top + y + height


def eval_transform(pre: Preprocess) -> Transform:
    """The fixed crop, stretched to the network's size."""
    return Transform(pre)


def train_transform(pre: Preprocess, augment: Augment) -> TrainTransform:
    """The fixed crop, then timm's random crop, policy and so on, as `augment` says. ConfigError on a policy
    timm does not know."""
    return TrainTransform(pre, augment)


Step = Callable[[Image.Image], Image.Image]


def _steps(pre: Preprocess, augment: Augment) -> list[Step]:
    steps: list[Step] = []
    if augment.low_resolution:
        steps.append(Sometimes(augment.low_resolution, low_resolution))
    if augment.auto_augment:
        steps.append(_policy(pre, augment.auto_augment))
    if augment.color_jitter:
        steps.append(Jitter(augment.color_jitter))
    if augment.grayscale:
        steps.append(Sometimes(augment.grayscale, grayscale))
    if augment.blur:
        steps.append(Sometimes(augment.blur, blur))
    if augment.jpeg:
        steps.append(Sometimes(augment.jpeg, jpeg))
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


class Sometimes:
    """Does a step with a chance of 0..1."""

    def __init__(self, chance: float, step: Step) -> None:
        self.chance, self.step = chance, step

    def __call__(self, image: Image.Image) -> Image.Image:
        return self.step(image) if random.random() < self.chance else image


class Jitter:
    """torchvision's ColorJitter of brightness, contrast and saturation, each by up to `share` up or down.

    The three are affine in the colours, so they are put together into one matrix and one pass over the
    pixels: in 40 % of the time. PIL cuts off fractions and whatever leaves 0..255 after each of the three,
    this only once.
    """

    def __init__(self, share: float) -> None:
        self.range = (max(0.0, 1 - share), 1 + share)

    def __call__(self, image: Image.Image) -> Image.Image:
        order, *factors, _ = ColorJitter.get_params(self.range, self.range, self.range, None)
        brightness, contrast, saturation = (float(factor) for factor in factors)
        mean_rgb = np.array(image.reduce(image.size).getpixel((0, 0)))
        colour, offset = np.eye(3), np.zeros(3)
        for which in order.tolist():
            if which == 0:
                colour, offset = brightness * colour, brightness * offset
            elif which == 1:
                grey = LUMA @ (colour @ mean_rgb + offset)
                colour, offset = contrast * colour, contrast * offset + (1 - contrast) * grey
            elif which == 2:
                mix = saturation * np.eye(3) + (1 - saturation) * LUMA
                colour, offset = mix @ colour, mix @ offset
        return image.convert("RGB", tuple(np.column_stack([colour, offset]).ravel().tolist()))


def grayscale(image: Image.Image) -> Image.Image:
    """Without colour, as old photographs are."""
    return image.convert("L").convert("RGB")


def blur(image: Image.Image) -> Image.Image:
    """Gaussian blur with a radius of 0.5 to 2 % of the width."""
    return image.filter(ImageFilter.GaussianBlur(image.width * random.uniform(0.005, 0.02)))


def low_resolution(image: Image.Image) -> Image.Image:
    """Scaled down to 1/4..3/4 and up again, as small faces in large photographs are."""
    share = random.uniform(0.25, 0.75)
    small = (max(1, round(image.width * share)), max(1, round(image.height * share)))
    down, up = (random.choice((Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)) for _ in range(2))
    return image.resize(small, down).resize(image.size, up)


def jpeg(image: Image.Image) -> Image.Image:
    """Packed and unpacked as a JPEG of quality 20..80."""
    packed = io.BytesIO()
    image.save(packed, "JPEG", quality=random.randint(20, 80))
    return Image.open(packed, formats=("JPEG",)).convert("RGB")
