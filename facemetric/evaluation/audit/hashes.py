"""Perceptual hashes of images: alike where two pictures show the same, whatever their size, packing or tone.

A picture is brought to 32 x 32 grey pixels, and of its cosine transform the 16 x 16 lowest frequencies without the
mean are kept: K = 255 numbers. A number above the set's median is a bit, so each bit splits the set in halves and
what all pictures share (every aligned face has eyes at the same place) is in none of them. Source: the perceptual
hash of Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", with the set's median for
the picture's.

Shapes: N images, K numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.fft import dctn
from tqdm import tqdm

from facemetric.data.batches import chunks
from facemetric.data.images import Preprocess
from facemetric.data.index import ImageIndex
from facemetric.data.loader import load_batches
from facemetric.data.transforms import eval_transform

SIDE = 32  # of the grey picture, pixels
FREQUENCIES = 16  # of each direction
BATCH = 256
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
# A mirrored picture has the same cosine transform but for the sign of odd horizontal frequencies.
MIRROR = np.tile(np.where(np.arange(FREQUENCIES) % 2, -1, 1), FREQUENCIES)[1:].astype(np.float32)


class Frequencies(NamedTuple):
    """`values` float32 (N, K), zeros for a picture that cannot be read; those are listed in `bad`: (row, reason)."""

    values: np.ndarray
    bad: list[tuple[int, str]]


def read_frequencies(index: ImageIndex, *, workers: int = 0, progress: str = "") -> Frequencies:
    """The low frequencies of every image. `progress` names a progress bar ("" shows none)."""
    values_NK = np.zeros((len(index), FREQUENCIES**2 - 1), np.float32)
    bad: list[tuple[int, str]] = []
    transform = eval_transform(Preprocess(size=(SIDE, SIDE)))
    with tqdm(
        total=len(index), desc=progress, unit="image", disable=not progress, leave=False, delay=2
    ) as bar:
        for batch in load_batches(index, chunks(len(index), BATCH), transform, workers=workers):
            values_NK[batch.rows.numpy()] = low_frequencies(batch.images.numpy())
            bad += batch.bad
            bar.update(len(batch.rows) + len(batch.bad))
    return Frequencies(values_NK, bad)


def low_frequencies(images_BHW3: np.ndarray) -> np.ndarray:
    """float32 (B, K): the low frequencies of uint8 pictures (B, 32, 32, 3)."""
    grey_BHW = images_BHW3.astype(np.float32) @ LUMA
    spectrum_BHW = dctn(grey_BHW, axes=(1, 2), norm="ortho")[:, :FREQUENCIES, :FREQUENCIES]
    return spectrum_BHW.reshape(len(grey_BHW), -1)[:, 1:]


def hash_signs(values_NK: np.ndarray, median_K: np.ndarray) -> np.ndarray:
    """float32 (N, K) of 1 above the median and -1 elsewhere: (K - a . b) / 2 bits differ between two rows."""
    return np.where(values_NK > median_K, np.float32(1), np.float32(-1))
