"""A teacher's embeddings for the images of a training: tables matched to the indexes by the images' names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from facemetric import distributed
from facemetric.data.index import ImageIndex, Location, parse_source
from facemetric.distributed import say
from facemetric.errors import DataError, given
from facemetric.evaluation.embed import embed_index
from facemetric.evaluation.table import EmbeddingTable
from facemetric.model.weights.save_load import load_embedder
from facemetric.training.tasks.feature_cache import state_hash

TABLES = (".npz", ".parquet")
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

    def select(self, rows: np.ndarray) -> Joined:
        """The images of these row numbers, each part's in their order."""
        others = rows[rows >= self.first] - self.first
        rest = self.parts[1].select(others) if len(self.parts) > 1 else None
        return Joined(self.parts[0].select(rows[rows < self.first]), rest)

    def name(self, i: int) -> str:
        """The image's name in its own index."""
        part, row = self._part(i)
        return part.name(row)

    def size(self, i: int) -> int:
        """The bytes that image i has."""
        part, row = self._part(i)
        return part.size(row)

    def location(self, i: int) -> Location:
        """Where image i's bytes lie."""
        part, row = self._part(i)
        return part.location(row)

    def read(self, i: int) -> bytes:
        """The bytes of image i."""
        part, row = self._part(i)
        return part.read(row)


class Teacher(NamedTuple):
    """Where the teacher's embeddings come from: tables and weights, a folder for what weights give, and how."""

    given: Sequence[str]
    cache: Path
    workers: int = 0
    device: torch.device | str = "cpu"


def teacher_rows(teacher: Teacher, images: Joined) -> np.ndarray:
    """The teacher's unit vectors (N, T), float32, of the images, from what is given as PATH or NAME=PATH.

    A table's paths are the images' names, behind `NAME/` where a name is given; weights embed the images, once. Says
    how many rows were matched; raises DataError where an image has no row, where two rows have one name, or where
    tables differ in size."""
    at = {images.name(i): i for i in range(len(images))}
    known = np.zeros(len(images), bool)
    found = np.empty((0, 0), np.float32)
    first, rows = "", 0
    for text in teacher.given:
        name, path = named(text)
        is_table = Path(path).suffix in TABLES
        tables = [EmbeddingTable.load(path)] if is_table else embedded(path, teacher, images, known)
        for table in tables:
            size = table.embeddings.shape[1]
            found = found if found.size else np.zeros((len(images), size), np.float32)
            if found.shape[1] != size:
                raise DataError(
                    f"{given('--teacher', text)} has embeddings of {size} numbers, the one before it {found.shape[1]}; "
                    "give tables of one teacher"
                )
            names = [f"{name}/{row}" if name else row for row in table.paths.tolist()]
            places = np.array([at.get(row, -1) for row in names])
            mine = places[places >= 0]
            counts = np.bincount(mine, minlength=len(images)) + known
            if counts[mine].max(initial=0) > 1:
                raise DataError(
                    f"{given('--teacher', text)} has a second row for {images.name(int(counts.argmax()))!r}; keep one"
                )
            known[mine] = True
            matched = table.embeddings[places >= 0]
            found[mine] = matched / np.linalg.norm(matched, axis=1, keepdims=True)
            first, rows = first or names[0], rows + len(table)
    if not known.all():
        lacking = np.flatnonzero(~known)
        raise DataError(
            f"{len(lacking):,} of {len(images):,} training images have no row in --teacher, first "
            f"{images.name(int(lacking[0]))!r}; its rows begin with {first!r}: name tables and data alike "
            "(data a=x.tar, --teacher=a=x.npz), embed these images too, or leave them out (--leave-out-images)"
        )
    say(f"teacher: {int(known.sum()):,} of its {rows:,} rows matched, embeddings of {found.shape[1]}")
    return found


def embedded(weights: str, teacher: Teacher, images: Joined, known: np.ndarray) -> list[EmbeddingTable]:
    """The tables of the images by weights, the mirror images averaged in, from the cache where they are there.

    An image that cannot be read is marked as known: it never comes into a batch."""
    embedder = load_embedder(weights, teacher.device)
    tables, offset = [], 0
    for part in images.parts:
        mark = f"{state_hash(embedder)} {embedder.preprocess} {part.state_key} {torch.__version__}"
        file = teacher.cache / f"{hashlib.sha256(mark.encode()).hexdigest()[:32]}.npz"
        if distributed.rank() == 0 and not readable(file):
            progress = f"teacher {Path(weights).name}"
            table = embed_index(embedder, part, workers=teacher.workers, flip=True, progress=progress).table
            teacher.cache.mkdir(parents=True, exist_ok=True)
            table.save(file)
        distributed.barrier()  # process 0 embeds for all
        table = EmbeddingTable.load(file)
        there = set(table.paths.tolist())
        known[offset : offset + len(part)] = [part.name(i) not in there for i in range(len(part))]
        tables.append(table)
        offset += len(part)
    return tables


def readable(file: Path) -> bool:
    """Whether a table is there whole."""
    try:
        EmbeddingTable.load(file)
    except DataError:
        return False
    return True


def named(text: str) -> tuple[str, str]:
    """(name, path) of NAME=PATH, read as DATA is; the name is empty for a plain path."""
    source = parse_source(text)
    return source.name if source.named else "", str(source.path)
