"""From a decoded picture to the pixels of the network: the plain way, which evaluation and answers take.

Pictures are PIL RGB, results uint8 (H, W, 3). Nothing here imports torch: an exported network goes without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image

from facemetric.data.images import INTERPOLATIONS, Preprocess

Box = tuple[float, float, float, float]
Step = Callable[[Image.Image], Image.Image]
Pixels = Callable[[Image.Image], np.ndarray]


class Plan(NamedTuple):
    """What is to be done to a picture, with its random numbers drawn: now, and `later` (numbers) on the device."""

    make: Pixels
    later: tuple[float, ...] = ()


class Transform:
    """PIL RGB -> uint8 (H, W, 3). `enough` is the shorter side that `decode` needs to keep.

    Calling it is `draw(image).make(image)`: first everything random, then the pixels. The first part takes from the
    global generators, so one thread at a time may do it; the second takes nearly all the time and no random
    numbers, but where `draws_late` says so; nothing at all is random where `draws` is False. `later` numbers of
    each picture are left for the device."""

    draws = False
    draws_late = False
    later = 0

    def __init__(self, pre: Preprocess) -> None:
        self.crop = pre.crop
        self.height, self.width = pre.size
        self.resample = INTERPOLATIONS[pre.interpolation]
        left, top, right, bottom = pre.crop
        # Twice the size still leaves the resize something to average.
        self.enough = int(2 * max(self.width / (1 - left - right), self.height / (1 - top - bottom))) + 1

    def __call__(self, image: Image.Image) -> np.ndarray:
        return self.draw(image).make(image)

    def draw(self, image: Image.Image) -> Plan:
        """What is to be done to the image, with its random numbers drawn."""
        return Plan(partial(self.make, self.region(image), ()))

    def make(self, box: Box, steps: Sequence[Step], image: Image.Image) -> np.ndarray:
        """The pixels of the box, after the steps."""
        image = self.cut(image, box)
        for step in steps:
            image = step(image)
        return np.asarray(image)

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


def eval_transform(pre: Preprocess) -> Transform:
    """The fixed crop, stretched to the network's size."""
    return Transform(pre)
