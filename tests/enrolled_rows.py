"""Enrolled rows that nobody was photographed for."""

from __future__ import annotations

import numpy as np

from facemetric.gallery.folder import GalleryFolder, GalleryList
from facemetric.gallery.parts import Rows

D = 8


def rows_of(names: list[str], seed: int = 0, size: int = D) -> Rows:
    """A row for each name; the photograph is called by the name and its place."""
    rng = np.random.default_rng(seed)
    emb = rng.standard_normal((len(names), size)).astype(np.float32)
    emb /= np.linalg.norm(emb, axis=1, keepdims=True)
    photos = [f"{name}/{seed}-{i}.jpg" for i, name in enumerate(names)]
    hashes = rng.integers(0, 256, (len(names), 32), dtype=np.uint8)
    crops = [f"crop of {photo}".encode() for photo in photos]
    return Rows(emb, names, photos, hashes, np.ones(len(names), np.float32), crops)


def new_folder(path: object, size: int = D) -> GalleryFolder:
    """An empty gallery."""
    return GalleryFolder.create(str(path), GalleryList("a" * 64, "some-weights", size))


def content(folder: GalleryFolder) -> list[tuple[str, str, bytes, bytes]]:
    """All that is enrolled, sorted."""
    return sorted(
        (part.name(i), part.photo(i), part.embeddings[i].tobytes(), part.crop(i))
        for part in folder.parts
        for i in range(len(part))
    )
