"""From a decoded picture to the pixels of the network: the augmented way. The plain one is in eval_transform.py.

The crops and policies are timm's, the colour jitter torchvision's, each drawing from Python's, numpy's or
torch's global generator, which the loader seeds for each image (see batches.py). Pictures are PIL RGB,
results uint8 (H, W, 3). device_transforms.py does the same to a batch on the device, by the same numbers.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from PIL import Image, ImageFilter
from timm.data.auto_augment import (
    augment_and_mix_transform,
    auto_augment_transform,
    rand_augment_transform,
)
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import ColorJitter

from facemetric.data.eval_transform import Box, Plan, Step, Transform, eval_transform
from facemetric.data.images import INTERPOLATIONS, Preprocess
from facemetric.errors import ConfigError

__all__ = ["Augment", "Drawn", "TrainTransform", "Transform", "eval_transform", "train_transform"]

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's grey
CROP_RATIO = (0.9, 1.1)  # width / height of a random crop, against the picture's own
SMALL_FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


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
    on_device: bool = False  # left for device_transforms.py

    def __post_init__(self) -> None:
        for name in ("hflip", "grayscale", "blur", "low_resolution"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; a chance of 0..1 is needed")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ConfigError(f"crop_scale is {self.crop_scale}; 0 < smallest <= largest <= 1 is needed")
        if self.color_jitter < 0:
            raise ConfigError(f"color_jitter is {self.color_jitter}; 0 or more is needed")
        assert not (self.on_device and self.auto_augment), "timm's policies are for pictures of PIL"


class Drawn(NamedTuple):
    """The random numbers of one picture, in the order of the steps; the defaults leave it as it is.

    The box is in pixels of the picture, all else in pixels of what is cut out of it."""

    left: float
    upper: float
    right: float
    lower: float
    small_width: float = 0  # scaled down to, and up again; 0 is not
    small_height: float = 0
    down: float = Image.Resampling.BILINEAR
    up: float = Image.Resampling.BILINEAR
    brightness: float = 1  # factors
    contrast: float = 1
    saturation: float = 1
    grey: float = False
    radius: float = 0  # of the blur
    flip: float = False

    @property
    def box(self) -> Box:
        """(left, upper, right, lower) in pixels."""
        return self[:4]


class TrainTransform(Transform):
    """The same with a random crop, flip and the other steps of `Augment`."""

    draws = True

    def __init__(self, pre: Preprocess, augment: Augment) -> None:
        super().__init__(pre)
        self.augment = augment
        self.enough = int(self.enough / augment.crop_scale[0] ** 0.5) + 1
        self.policy = _policy(pre, augment.auto_augment) if augment.auto_augment else None
        self.draws_late = self.policy is not None
        self.later = len(Drawn._fields) if augment.on_device else 0

    def draw(self, image: Image.Image) -> Plan:
        drawn = self.drawn(image)
        if not self.augment.on_device:
            return Plan(partial(self.make, drawn.box, self.steps(drawn)))
        full = (0, 0, self.width, self.height)
        if image.size == full[2:] and not any(self.crop):  # no resize: the device crops it
            return Plan(partial(self.make, full, ()), drawn)
        return Plan(partial(self.make, drawn.box, ()), Drawn(*full, *drawn[4:]))

    def drawn(self, image: Image.Image) -> Drawn:
        """All that is random about a picture, but for what a policy draws itself."""
        augment, drawn = self.augment, Drawn(*self.region(image))
        if chance(augment.low_resolution):
            share = random.uniform(0.25, 0.75)
            small = (max(1, round(self.width * share)), max(1, round(self.height * share)))
            down, up = (random.choice(SMALL_FILTERS) for _ in range(2))
            drawn = drawn._replace(small_width=small[0], small_height=small[1], down=down, up=up)
        if augment.color_jitter:
            brightness, contrast, saturation = jitter(augment.color_jitter)
            drawn = drawn._replace(brightness=brightness, contrast=contrast, saturation=saturation)
        if chance(augment.grayscale):
            drawn = drawn._replace(grey=True)
        if chance(augment.blur):
            drawn = drawn._replace(radius=self.width * random.uniform(0.005, 0.02))
        return drawn._replace(flip=random.random() < augment.hflip)

    def steps(self, drawn: Drawn) -> list[Step]:
        """What follows the crop."""
        steps: list[Step] = []
        if drawn.small_width:
            steps.append(partial(low_resolution, drawn))
        if self.policy is not None:
            steps.append(self.policy)
        if (drawn.brightness, drawn.contrast, drawn.saturation) != (1, 1, 1):
            steps.append(partial(recolour, drawn.brightness, drawn.contrast, drawn.saturation))
        if drawn.grey:
            steps.append(grayscale)
        if drawn.radius:
            steps.append(partial(Image.Image.filter, filter=ImageFilter.GaussianBlur(drawn.radius)))
        if drawn.flip:
            steps.append(partial(Image.Image.transpose, method=Image.Transpose.FLIP_LEFT_RIGHT))
        return steps

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


def chance(share: float) -> bool:
    """True with a chance of 0..1; of 0 no number is drawn."""
    return share > 0 and random.random() < share


def jitter(share: float) -> tuple[float, float, float]:
    """Brightness, contrast and saturation of torchvision's ColorJitter, factors of up to `share` above or below 1."""
    reach = (max(0.0, 1 - share), 1 + share)
    _, *factors, _ = ColorJitter.get_params(reach, reach, reach, None)
    brightness, contrast, saturation = (float(factor) for factor in factors)
    return brightness, contrast, saturation


def recolour(brightness: float, contrast: float, saturation: float, image: Image.Image) -> Image.Image:
    """brightness * (contrast * (saturation * x + (1 - saturation) * luma(x)) + (1 - contrast) * mean luma).

    The three are affine in the colours and, as none of them is cut off at 0..255, come to the same in any
    order: one matrix, one pass over the pixels. PIL cuts off after each of the three, this only once.
    """
    mean_rgb = image.reduce(image.size).tobytes()
    grey = (1 - contrast) * brightness * sum(part * mean for part, mean in zip(LUMA, mean_rgb, strict=True))
    own = brightness * contrast * saturation
    r, g, b = (brightness * contrast * (1 - saturation) * part for part in LUMA)
    return image.convert("RGB", (r + own, g, b, grey, r, g + own, b, grey, r, g, b + own, grey))


def grayscale(image: Image.Image) -> Image.Image:
    """Without colour, as old photographs are."""
    return image.convert("L").convert("RGB")


def low_resolution(drawn: Drawn, image: Image.Image) -> Image.Image:
    """Scaled down and up again, as small faces in large photographs are."""
    down, up = Image.Resampling(int(drawn.down)), Image.Resampling(int(drawn.up))
    return image.resize((int(drawn.small_width), int(drawn.small_height)), down).resize(image.size, up)
