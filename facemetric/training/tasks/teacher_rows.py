"""A teacher's embeddings for the images of a training: tables matched to the indexes by the images' names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from facemetric.data.index import ImageIndex, Location
from facemetric.errors import DataError
from facemetric.evaluation.table import EmbeddingTable
from facemetric.training.distributed import say

UNLABELLED = -1  # the label of an image of nobody in particular


class Joined:
    """Two indexes end to end, for the loader: first the labelled images, then those of nobody in particular."""

    def __init__(self, labelled: ImageIndex, unlabelled: ImageIndex | None) -> None:
        self.parts = [part for part in (labelled, unlabelled) if part is not None]
        self.first = len(labelled)
        nobody = np.full(len(unlabelled) if unlabelled is not None else 0, UNLABELLED, np.int32)
        self.identity = np.concatenate([labelled.identity, nobody])

    def __len__(self) -> int:
        return len(self.identity)

    def _part(self, i: int) -> tuple[ImageIndex, int]:
        return (self.parts[0], i) if i < self.first else (self.parts[1], i - self.first)

    def name(self, i: int) -> str:
        """The image's name in its own index."""
        part, row = self._part(i)
        return part.name(row)

    def location(self, i: int) -> Location:
        """Where image i's bytes lie."""
        part, row = self._part(i)
        return part.location(row)

    def read(self, i: int) -> bytes:
        """The bytes of image i."""
        part, row = self._part(i)
        return part.read(row)


def teacher_rows(tables: Sequence[str], images: Joined) -> np.ndarray:
    """The teacher's unit vectors (N, T), float32, of the images, from tables given as PATH or NAME=PATH.

    A table's paths are the images' names, behind `NAME/` where a name is given. Says how many rows were matched;
    raises DataError where an image has no row, where two rows have one name, or where tables differ in size."""
    found: np.ndarray | None = None
    at = {images.name(i): i for i in range(len(images))}
    known = np.zeros(len(images), bool)
    rows = 0
    for text in tables:
        name, path = named(text)
        table = EmbeddingTable.load(path)
        size = table.embeddings.shape[1]
        if found is None:
            found = np.zeros((len(images), size), np.float32)
        if found.shape[1] != size:
            raise DataError(
                f"--teacher {text} has embeddings of {size} numbers, the table before it {found.shape[1]}; "
                "give tables of one teacher"
            )
        places = np.array([at.get(f"{name}/{path}" if name else path, -1) for path in table.paths.tolist()])
        mine = places[places >= 0]
        twice = known[mine].any() or len(np.unique(mine)) < len(mine)
        if twice:
            counts = np.bincount(mine, minlength=len(images)) + known
            raise DataError(
                f"--teacher {text} has a second row for {images.name(int(counts.argmax()))!r}; keep one"
            )
        known[mine] = True
        unit = table.embeddings[places >= 0]
        found[mine] = unit / np.linalg.norm(unit, axis=1, keepdims=True)
        rows += len(table)
    assert found is not None
    if not known.all():
        lacking = np.flatnonzero(~known)
        raise DataError(
            f"{len(lacking):,} of {len(images):,} training images have no row in --teacher, first "
            f"{images.name(int(lacking[0]))!r}; its tables begin with {table.paths[0]!r}: name tables and data alike "
            "(DATA a=x.tar, --teacher a=x.npz), or embed these images too"
        )
    say(f"teacher: {len(images):,} of its {rows:,} rows matched, embeddings of {found.shape[1]}")
    return found


def named(text: str) -> tuple[str, str]:
    """(name, path) of NAME=PATH; the name is empty for a plain path."""
    name, equals, path = text.partition("=")
    return (name, path) if equals and "/" not in name else ("", text)
