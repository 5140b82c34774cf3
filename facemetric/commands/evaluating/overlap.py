"""Which images of an evaluation are in the gallery too: by their files where these are known, and by embeddings."""

from __future__ import annotations

import hashlib
import os
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from facemetric.data.index import ImageIndex
from facemetric.evaluation.retrieval import NO_OVERLAP, Overlap, same_images
from facemetric.evaluation.table import EmbeddingTable


class ImageSet(NamedTuple):
    """Embeddings, and the image of each row where it was embedded now; None where the embeddings were given."""

    table: EmbeddingTable
    images: ImageIndex | None = None


def find_overlap(own: ImageSet, gallery: ImageSet, device: torch.device | None = None) -> Overlap:
    """The images that are in the gallery too: one file, a file of the same bytes, or the same embedding. `device` as
    for `nearest`."""
    found = same_images(own.table.embeddings, gallery.table.embeddings, device=device)
    if own.images is None or gallery.images is None:
        return found
    files = same_files(own.images, gallery.images)
    both = np.unique(
        np.stack([np.concatenate([found.probes, files.probes]), np.concatenate([found.rows, files.rows])], 1),
        axis=0,
    )
    return Overlap(both[:, 0], both[:, 1], np.setdiff1d(found.unsure, files.probes))


def may_be_equal(sizes_N: np.ndarray, others_M: np.ndarray) -> np.ndarray:
    """(N,) bool: whether a size is among others. One that is not known (below 0) may be any."""
    return np.isin(sizes_N, others_M) | (sizes_N < 0) | bool((others_M < 0).any())


def same_files(own: ImageIndex, gallery: ImageIndex) -> Overlap:
    """Images that lie at one place (a file, or a range of its bytes), by whatever path, or whose bytes are equal.

    Only images whose size is among those of the other set are read."""
    realpath = cache(os.path.realpath)

    def place(index: ImageIndex, row: int) -> tuple[str, int]:
        location = index.location(row)
        return realpath(location.file), location.offset

    def key(index: ImageIndex, row: int) -> bytes | None:
        try:
            return hashlib.sha256(index.read(row)).digest()
        except OSError:  # gone since it was embedded: its place is all there is
            return None

    by_place: dict[tuple[str, int], int] = {}
    by_content: dict[bytes, list[int]] = {}
    own_sizes, gallery_sizes = own.sizes(), gallery.sizes()
    alike = may_be_equal(gallery_sizes, own_sizes)
    content_of: dict[tuple[str, int], bytes | None] = {}
    for row in range(len(gallery)):
        at = place(gallery, row)
        by_place[at] = row
        if alike[row]:
            content_of[at] = content = key(gallery, row)
            if content is not None:
                by_content.setdefault(content, []).append(row)
    pairs: list[tuple[int, int]] = []
    for probe in np.flatnonzero(may_be_equal(own_sizes, gallery_sizes)).tolist():
        at = place(own, probe)
        content = content_of[at] if at in content_of else key(own, probe)
        rows = set(by_content.get(content, ())) if content is not None else set()
        if at in by_place:
            rows.add(by_place[at])
        pairs += [(probe, row) for row in sorted(rows)]
    if not pairs:
        return NO_OVERLAP
    probes, rows_M = (np.array(column, dtype=np.int64) for column in zip(*pairs, strict=True))
    return Overlap(probes, rows_M)


def among_readable(images: ImageIndex | None, bad: list[tuple[int, str]]) -> ImageIndex | None:
    """The images without those that could not be read: a row for each row of their table."""
    if images is None or not bad:
        return images
    return images.select(np.delete(np.arange(len(images)), [row for row, _ in bad]))


def overlap_notes(overlap: Overlap, images: int) -> list[str]:
    """What the overlap means for the figures, in sentences."""
    notes = []
    if enrolled := overlap.images():
        notes.append(
            f"{enrolled:,} of {images:,} images are in the gallery too: none finds itself there, and "
            "they are left out of identification"
        )
    if unsure := len(overlap.unsure):
        notes.append(
            f"{unsure:,} of {images:,} images have the embedding of several images of the gallery, too many to tell "
            "by it which of these are the same photograph: they count as others"
        )
    return notes
