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
