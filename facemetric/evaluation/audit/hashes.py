"""Perceptual hashes of images: alike where two pictures show the same, at any size, packing or tone.

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
import numpy.typing as npt
import torch
from scipy.fft import dctn
from scipy.special import ndtr, ndtri  # scipy.stats takes half a second and 20 MiB

from facemetric.data.batches import chunks
from facemetric.data.images import Preprocess
from facemetric.data.index import ImageIndex
from facemetric.data.loader import load_batches
from facemetric.data.transforms import eval_transform
from facemetric.machine import progress_bar
from facemetric.mining.tiles import product_tiles

EXPECTED = 0.1  # pairs by chance in the whole set
SAMPLE = 4000  # images whose pairs tell how hashes of different pictures differ
TAIL = 0.01  # share of the pairs that is its lower tail; the middle is narrower than the tail tells
SEEN = 10  # pairs of a point of the tail, at least: two in three such counts lie within a third of the truth
COPIES = 0.2  # of the bits: fewer differ between copies under two names, which would bend the tail
NARROWEST, WIDEST = 8, 64  # bits of 255: a small or odd set cannot ask for less or allow more
# Photographs of one person on one day are alike. Of LFW's crops that were packed or toned again 31 bits differed at
# most; of the 14 pairs of one person's that differed in 33 to 64 none was a copy.
WIDEST_WITHIN = 32
MOST_PAIRS = 1_000_000  # kept of one walk, 20 MiB
Ints = npt.NDArray[np.int64]
SIDE = 32  # of the grey picture, pixels
FREQUENCIES = 16  # of each direction
BATCH = 256
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
# A mirrored picture has the same cosine transform but for the sign of odd horizontal frequencies.
MIRROR = np.tile(np.where(np.arange(FREQUENCIES) % 2, -1, 1), FREQUENCIES)[1:].astype(np.float32)


class Pairs(NamedTuple):
    """`first` and `second` int64 (P,), rows; `bits` int64 (P,) that differ. `cut`: pairs above MOST_PAIRS left out."""

    first: Ints
    second: Ints
    bits: Ints
    cut: int


class Chance(NamedTuple):
    """The normal distribution whose lower tail the bits of pictures of different identities follow."""

    mean: float
    deviation: float

    def limit(self, pairs: float) -> int:
        """Bits within which chance brings less than EXPECTED of so many pairs."""
        share = min(max(EXPECTED / max(pairs, 1.0), 1e-300), 0.5)
        bits = int(np.floor(self.mean + ndtri(share) * self.deviation))
        return min(max(bits, NARROWEST), WIDEST)

    def within(self, bits: int, pairs: float) -> float:
        """How many of so many pairs chance brings within these bits."""
        return pairs * float(ndtr((bits - self.mean) / self.deviation))


def chance_of(signs_NK: np.ndarray, labels_N: np.ndarray, *, seed: int = 0) -> Chance:
    """How hashes of different identities differ, over all pairs of a sample.

    Where it has too few pairs to have a tail: half the bits, and twice the deviation of fair coins, as pictures have.
    """
    rows = np.random.default_rng([seed, 11]).permutation(len(signs_NK))[:SAMPLE]
    signs, identity = torch.from_numpy(signs_NK[rows]), labels_N[rows]
    bits = signs_NK.shape[1]
    count = np.zeros(bits + 1, np.int64)
    for r, c, product in product_tiles(signs, triangle=True):
        other = identity[r, None] != identity[None, c]
        differ = (bits - product.numpy()[np.triu(other, 1) if r == c else other].astype(np.int64)) // 2
        count += np.bincount(differ, minlength=bits + 1)
    count[: int(COPIES * bits)] = 0
    below = np.cumsum(count)
    tail = np.flatnonzero((below >= SEEN) & (below <= TAIL * below[-1]))
    if len(tail) < 3:
        return Chance(bits / 2, float(np.sqrt(bits)))
    deviation, mean = np.polyfit(ndtri(below[tail] / below[-1]), tail + 0.5, 1, w=np.sqrt(below[tail]))
    return Chance(float(mean), float(deviation))


def close_pairs(signs_NK: np.ndarray, limit: int, *, mirrored_NK: np.ndarray | None = None) -> Pairs:
    """Pairs i < j of one set that differ in at most `limit` bits; with `mirrored_NK`, i and the mirror image of j."""
    return _walk(signs_NK, mirrored_NK, limit, triangle=True)


def close_across(signs_NK: np.ndarray, others_MK: np.ndarray, limit: int) -> Pairs:
    """Pairs (row of one set, row of the other) that differ in at most `limit` bits."""
    return _walk(signs_NK, others_MK, limit, triangle=False)


def _walk(signs_NK: np.ndarray, others_MK: np.ndarray | None, limit: int, *, triangle: bool) -> Pairs:
    x = torch.from_numpy(signs_NK)
    y = x if others_MK is None else torch.from_numpy(others_MK)
    bits, least = x.shape[1], x.shape[1] - 2 * limit
    kept = [np.zeros((3, 0), np.int64)]
    held = cut = 0
    pairs = len(x) * len(y) // (2 if triangle else 1)
    with progress_bar(total=pairs, desc="comparing hashes", unit="pair", unit_scale=True) as bar:
        for rows, cols, product in product_tiles(x, y, triangle=triangle):
            bar.update(product.numel() // (2 if triangle and rows == cols else 1))
            near = torch.nonzero(product.amax(1) >= least)[:, 0]  # few rows: one pass over the tile, not four
            some = product[near]
            at, j = (where.numpy() for where in torch.nonzero(some >= least, as_tuple=True))
            differ = (bits - some.numpy()[at, j].astype(np.int64)) // 2
            found = np.stack([near.numpy()[at] + rows.start, j + cols.start, differ])
            if triangle:
                found = found[:, found[0] < found[1]]
            kept.append(found)
            held += found.shape[1]
            if held > 2 * MOST_PAIRS:
                kept = [_nearest(np.concatenate(kept, 1))]
                cut, held = cut + held - MOST_PAIRS, MOST_PAIRS
    found = np.concatenate(kept, 1)
    nearest = _nearest(found)
    return Pairs(nearest[0], nearest[1], nearest[2], cut + found.shape[1] - nearest.shape[1])


def _nearest(found_3P: np.ndarray) -> np.ndarray:
    """The MOST_PAIRS with the fewest bits, nearest first, then by row."""
    return found_3P[:, np.lexsort((found_3P[1], found_3P[0], found_3P[2]))[:MOST_PAIRS]]


class Frequencies(NamedTuple):
    """`values` float32 (N, K), zeros for a picture that cannot be read; those are listed in `bad`: (row, reason)."""

    values: np.ndarray
    bad: list[tuple[int, str]]


def read_frequencies(index: ImageIndex, *, workers: int = 0, progress: str = "") -> Frequencies:
    """The low frequencies of every image. `progress` names a progress bar ("" shows none)."""
    values_NK = np.zeros((len(index), FREQUENCIES**2 - 1), np.float32)
    bad: list[tuple[int, str]] = []
    transform = eval_transform(Preprocess(size=(SIDE, SIDE)))
    with progress_bar(total=len(index), desc=progress, unit="image") as bar:
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
