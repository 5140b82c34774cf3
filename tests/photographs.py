"""Photographs with a known face: Grace Hopper's of matplotlib, as it is, turned, and laid on larger canvases."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import sklearn.datasets
from matplotlib import get_data_path
from PIL import Image

from facemetric.data.images import decode

HOPPER = Path(get_data_path()) / "sample_data" / "grace_hopper.jpg"
FLOWER = Path(sklearn.datasets.__file__).parent / "images" / "flower.jpg"
# Read off the photograph by eye: pupils, tip of the nose, corners of the mouth. The eyes are 85 pixels apart.
BY_EYE = [[221, 189], [306, 187], [268, 236], [229, 281], [311, 280]]


def hopper() -> Image.Image:
    """512 x 600, one face."""
    return decode(HOPPER.read_bytes())


def pair() -> Image.Image:
    """The photograph and its mirror image side by side: two faces of one size."""
    one = hopper()
    both = Image.new("RGB", (one.width * 2, one.height))
    both.paste(one, (0, 0))
    both.paste(one.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (one.width, 0))
    return both


def turned(degrees: float, scale: float, about: tuple[float, float], to: tuple[float, float]) -> np.ndarray:
    """(2, 3): a turn and a scale about a point that is brought to another."""
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    turn = np.array([[c, -s], [s, c]])
    return np.column_stack([turn, np.array(to) - turn @ np.array(about)])


def album(folder: Path, people: int = 2, images: int = 2) -> Path:
    """A folder `person0/0.jpg`, ... of small photographs: one face, turned and mirrored, in other colours for each."""
    for person in range(people):
        tint = np.roll([1.0, 0.75, 0.6], person)
        for image in range(images):
            one = hopper().rotate(6 * image - 4, resample=Image.Resampling.BICUBIC).resize((256, 300))
            if person % 2:
                one = one.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            file = folder / f"person{person}" / f"{image}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((np.asarray(one) * tint).astype(np.uint8)).save(file, quality=95)
    return folder
