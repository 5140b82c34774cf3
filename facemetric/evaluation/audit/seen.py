"""Whether weights were trained on images: a small hash of each training image lies beside the weights.

A hash has BITS = 64 bits, 8 bytes an image: the signs of the lowest frequencies of the picture (hashes.py), each less
the median of the training images. A copy of a training image differs from its hash in at most NEAR bits.

Measured on aligned faces of 112 px: images of LFW that have a training image of other sets (FIW, PINS, CelebA) within
so many bits, and 500 copies that lie within so many bits of their training image.

    bits                                               2       3       4       5       6       7       8
    500 of LFW, 10,000 training images                 0       0       0       0       0       1       2
    4,411 of LFW, 37,245 training images               0       0       1       3       8      26      82
    JPEG of quality 75; or resized 112 -> 100 -> 112   1.000   1.000   1.000   1.000   1.000   1.000   1.000
    JPEG of quality 50; or 64 px and quality 75        0.998   1.000   1.000   1.000   1.000   1.000   1.000
    20 % brighter                                      0.736   0.864   0.950   0.986   0.994   0.998   1.000
    cut by 2 px at the left and top                    0.194   0.366   0.552   0.734   0.822   0.902   0.944

The second row has more pairs than a sample of SAMPLE images and MOST hashes, 164 million to 100 million: at NEAR = 4
chance brings about 0.6 of 500 images there, 0.1 %, an eighth of LEAST. The
nearest such pair shows two people. Many pictures that were cut in another way are missed.

    training_images.npz beside config.json:  hashes uint8 (N, 8), medians float32 (64,), of int64 (): all images
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.data.index import ImageIndex
from facemetric.evaluation.audit.hashes import FREQUENCIES, read_frequencies
from facemetric.files import write_bytes_whole

FILE = "training_images.npz"
BITS = 64
NEAR = 4  # bits of 64 that a copy may differ in
LEAST = 0.01  # share of the images from which on it is told
MOST = 200_000  # hashes of a training that are kept, drawn at random: 1.6 MB
WARNING = "warning: "
SAMPLE = 500  # images that are looked at
UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)

# The lowest BITS frequencies of the FREQUENCIES x FREQUENCIES, by the sum of both directions; the mean is left out.
ORDER = np.add.outer(np.arange(FREQUENCIES), np.arange(FREQUENCIES)).ravel()[1:].argsort(kind="stable")[:BITS]

ONES = np.unpackbits(np.arange(2**16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(
    1, dtype=np.uint8
)  # of 16 bits


class TrainingImages(NamedTuple):
    """`hashes` uint8 (N, 8) of some training images, `medians` float32 (64,), and `images`: how many there were,
    those of several trainings added up."""

    hashes: npt.NDArray[np.uint8]
    medians: npt.NDArray[np.float32]
    images: int


class Seen(NamedTuple):
    """How many of the images looked at are training images of the weights, and the share of them, 0..1."""

    found: int
    looked_at: int
    share: float

    def text(self, weights: str | Path) -> str:
        """A warning for the user; "" where no more than chance brings was found."""
        if self.share < LEAST:
            return ""
        return (
            f"{WARNING}{self.found} of {self.looked_at} images looked at ({self.share:.0%} of the data) are training "
            f"images of {weights}, or copies; figures of such images are too good"
        )


def hash_images(
    index: ImageIndex, medians: npt.NDArray[np.float32] | None, *, workers: int = 0, progress: str = ""
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Hashes (N, 8) of the images that can be read, and the medians (64,): those given, or the images' own."""
    read = read_frequencies(index, workers=workers, progress=progress)
    values_NK = np.delete(read.values, [row for row, _ in read.bad], axis=0)[:, ORDER]
    if medians is None:
        medians = (
            np.median(values_NK, axis=0).astype(np.float32) if len(values_NK) else np.zeros(BITS, np.float32)
        )
    return np.packbits(values_NK > medians, axis=1), medians


def keep_training_images(
    folder: Path, index: ImageIndex, *, before: TrainingImages | None = None, seed: int = 0, workers: int = 0
) -> Path:
    """Write the hashes of the images of a training beside its weights; `before` are those of the weights that it
    began with."""
    rows = np.sort(np.random.default_rng([seed, 19]).permutation(len(index))[:MOST])
    hashes, medians = hash_images(
        index.select(rows), before and before.medians, workers=workers, progress="hashing"
    )
    own = TrainingImages(hashes, medians, len(index))
    return write_training_images(folder, own if before is None else join_training_images([before, own]))


def join_training_images(parts: Sequence[TrainingImages]) -> TrainingImages:
    """The images of several trainings, whose hashes have the same medians: each hash once."""
    hashes = np.unique(np.concatenate([part.hashes for part in parts]), axis=0)
    return TrainingImages(hashes, parts[0].medians, sum(part.images for part in parts))


def write_training_images(folder: Path, kept: TrainingImages) -> Path:
    """Write the hashes beside the weights of a folder; the file appears whole."""
    content = io.BytesIO()
    np.savez(content, hashes=kept.hashes, medians=kept.medians, images=np.int64(kept.images))
    return write_bytes_whole(folder / FILE, content.getvalue(), durable=True)


def read_training_images(folder: Path) -> TrainingImages | None:
    """The hashes beside weights; None where there are none, or none that can be read."""
    try:
        with np.load(folder / FILE, allow_pickle=False) as kept:
            found = TrainingImages(kept["hashes"], kept["medians"], int(kept["images"]))
    except UNREADABLE:
        return None
    fits = found.hashes.ndim == 2 and found.hashes.shape[1] == BITS // 8 and found.medians.shape == (BITS,)
    return found if fits and found.hashes.dtype == np.uint8 else None


def training_images_seen(
    folder: Path, index: ImageIndex, *, sample: int = SAMPLE, seed: int = 0, workers: int = 0
) -> Seen | None:
    """How much of the images of an index the weights of a folder were trained on, from a sample of them.

    None where the weights keep no hashes of their training images."""
    kept = read_training_images(folder)
    if kept is None or len(index) == 0:
        return None
    rows = np.sort(np.random.default_rng([seed, 23]).permutation(len(index))[:sample])
    hashes, _ = hash_images(index.select(rows), kept.medians, workers=workers)
    found = int((nearest_bits(hashes, kept.hashes) <= NEAR).sum())
    return Seen(found, len(hashes), found / max(len(hashes), 1))


def nearest_bits(hashes_N8: npt.NDArray[np.uint8], others_M8: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Bits (N,) in which each hash differs from the nearest of the others; BITS where there are none."""
    if not len(others_M8):
        return np.full(len(hashes_N8), BITS)
    others_M4 = np.ascontiguousarray(others_M8).view(np.uint16)
    hashes_N4 = np.ascontiguousarray(hashes_N8).view(np.uint16)
    return np.array(
        [int(ONES[one_4 ^ others_M4].sum(1, dtype=np.uint8).min()) for one_4 in hashes_N4], np.int64
    )
