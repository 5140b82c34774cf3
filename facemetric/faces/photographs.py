"""From a path, bytes or memory to an upright RGB photograph, or what the file is instead."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from facemetric.data.images import MAX_PIXELS, decode

DRAFT_PIXELS = 178_000_000  # JPEGs up to here are decoded smaller: Pillow refuses to open larger ones
DRAFT_SIDE = 2048  # their shorter side is not decoded below this
Picture = Image.Image | np.ndarray | bytes | str | Path


def open_photograph(image: Picture) -> Image.Image:
    """An upright RGB picture. BadImage where it is none, with what it is instead; OSError where a path does not read.

    JPEGs of up to 178 megapixels are decoded at a half, a quarter or an eighth, down to 2,048 pixels."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    if isinstance(image, Image.Image):
        return ImageOps.exif_transpose(image).convert("RGB")
    data = image if isinstance(image, bytes) else Path(image).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        jpeg = data[:2] == b"\xff\xd8"
        return decode(data, max_pixels=DRAFT_PIXELS if jpeg else MAX_PIXELS, enough=DRAFT_SIDE)
