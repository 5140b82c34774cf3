"""Exact search among enrolled faces: the people who are most like a face, and the nearest face of somebody else.

Shapes: Q queries, N enrolled rows, M rows that are tried, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.evaluation.nearest import nearest_in_parts
from facemetric.evaluation.table import unit_rows
from facemetric.gallery.parts import Part

NEVER = -2.0  # below every cosine
FIRST_ROWS = 16  # rows that are asked for first: a person may hold several of the best


class Match(NamedTuple):
    """An enrolled person and the best score (cosine) of any face of theirs; `row` is that face."""

    name: str
    score: float
    row: int


@dataclass(frozen=True)
class Enrolled:
    """What is enrolled, as it was when it was read: rows are counted through all parts."""

    parts: tuple[Part, ...]

    @cached_property
    def names(self) -> list[str]:
        """The people, sorted; a person's number is the place here."""
        return sorted({name for part in self.parts for name in part.names})

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """The first row of each part, and the number of rows."""
        return np.cumsum([0, *map(len, self.parts)])

    @cached_property
    def people(self) -> list[npt.NDArray[np.int32]]:
        """For each part the person (N,) of its rows."""
        number = {name: i for i, name in enumerate(self.names)}
        own = [np.array([number[name] for name in part.names], np.int32) for part in self.parts]
        return [numbers[part.person] for numbers, part in zip(own, self.parts, strict=True)]

    @cached_property
    def person(self) -> npt.NDArray[np.int32]:
        """The person of each row (N,)."""
        return np.concatenate([*self.people, np.zeros(0, np.int32)])

    @property
    def embeddings(self) -> list[npt.NDArray[np.float32]]:
        """For each part its rows (N, D)."""
        return [part.embeddings for part in self.parts]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def counts(self) -> dict[str, int]:
        """Faces of each person."""
        count = np.bincount(self.person, minlength=len(self.names))
        return dict(zip(self.names, count.tolist(), strict=True))

    def place(self, row: int) -> tuple[Part, int]:
        """The part of a row, and the row in it."""
        at = int(np.searchsorted(self.starts, row, side="right")) - 1
        return self.parts[at], row - int(self.starts[at])

    def photo(self, row: int) -> str:
        """The photograph of a row."""
        part, at = self.place(row)
        return part.photo(at)

    def crop(self, row: int) -> bytes:
        """The JPEG of a row's face, b"" where it is not kept."""
        part, at = self.place(row)
        return part.crop(at)

    @cached_property
    def _photo_keys(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """The first 8 bytes of the photographs' hashes, sorted, and their rows."""
        keys = [np.ascontiguousarray(part.photo_hash[:, :8]).view("<u8")[:, 0] for part in self.parts]
        key_N = np.concatenate([*keys, np.zeros(0, np.uint64)]).astype(np.uint64)
        order = np.argsort(key_N, kind="stable")
        return key_N[order], order

    def people_on(self, sha256: bytes) -> set[str]:
        """The people who are enrolled from a photograph of this hash."""
        keys, rows = self._photo_keys
        key = np.uint64(int.from_bytes(sha256[:8], "little"))
        first, end = np.searchsorted(keys, key), np.searchsorted(keys, key, side="right")
        places = [self.place(row) for row in rows[first:end].tolist()]
        return {part.name(at) for part, at in places if part.photo_hash[at].tobytes() == sha256}

    def rows(self, rows: npt.NDArray[np.integer]) -> npt.NDArray[np.float32]:
        """The embeddings (M, D) of rows in rising order."""
        found = [
            part.embeddings[rows[(rows >= start) & (rows < start + len(part))] - start]
            for start, part in zip(self.starts, self.parts, strict=False)
        ]
        return np.concatenate(found)


def find_people(enrolled: Enrolled, queries: npt.ArrayLike, top: int) -> list[list[Match]]:
    """For each query (Q, D) the `top` most similar people, best first, fewer where fewer are enrolled. Exact."""
    query_QD = unit_rows(queries)
    top = min(top, len(enrolled.names))
    if not len(enrolled) or top < 1:
        return [[] for _ in query_QD]
    found: list[list[Match]] = [[] for _ in query_QD]
    todo, k = np.arange(len(query_QD)), min(max(FIRST_ROWS, 2 * top), len(enrolled))
    while len(todo):
        best = nearest_in_parts(query_QD[todo], enrolled.embeddings, k)
        short = []
        for query, rows, scores in zip(todo.tolist(), best.rows, best.score, strict=True):
            person = enrolled.person[rows]
            first = np.sort(np.unique(person, return_index=True)[1])[:top]
            found[query] = [
                Match(enrolled.names[person[i]], float(scores[i]), int(rows[i])) for i in first.tolist()
            ]
            if len(first) < top and k < len(enrolled):  # some people have many faces
                short.append(query)
        todo, k = np.array(short, int), min(8 * k, len(enrolled))
    return found


class Nearest(NamedTuple):
    """The best row for each of M rows that were tried: `score` float32 (M,), NEVER where there is none, and `row` int64
    (M,), then -1."""

    score: npt.NDArray[np.float32]
    row: npt.NDArray[np.int64]


def nearest_other(enrolled: Enrolled, rows: npt.NDArray[np.integer]) -> Nearest:
    """For rows (M,), rising, the nearest face of another person, among all. Exact, by tiles."""
    import torch  # a question among few faces does without

    from facemetric.mining.tiles import product_tiles

    tried_MD = torch.from_numpy(enrolled.rows(rows))
    person_M = torch.from_numpy(enrolled.person[rows])
    score_M, row_M = torch.full((len(rows),), NEVER), torch.full((len(rows),), -1)
    for start, part, people in zip(enrolled.starts, enrolled.parts, enrolled.people, strict=False):
        theirs = torch.from_numpy(np.ascontiguousarray(people))
        for tile_rows, cols, values in product_tiles(tried_MD, torch.from_numpy(part.embeddings)):
            values.masked_fill_(person_M[tile_rows, None] == theirs[None, cols], NEVER)
            best, at = values.max(1)
            better = best > score_M[tile_rows]
            score_M[tile_rows] = torch.where(better, best, score_M[tile_rows])
            row_M[tile_rows] = torch.where(better, at + (int(start) + cols.start), row_M[tile_rows])
    return Nearest(score_M.clamp(max=1).numpy(), row_M.numpy())


def nearest_own(enrolled: Enrolled, rows: npt.NDArray[np.integer]) -> Nearest:
    """For rows (M,), rising, the nearest other face of the same person."""
    score_M, row_M = np.full(len(rows), NEVER, np.float32), np.full(len(rows), -1)
    by_person = np.argsort(enrolled.person, kind="stable")
    sorted_person = enrolled.person[by_person]
    tried = enrolled.person[rows]
    for person in np.unique(tried).tolist():
        low, high = (
            np.searchsorted(sorted_person, person),
            np.searchsorted(sorted_person, person, side="right"),
        )
        if high - low < 2:
            continue
        own, places = np.sort(by_person[low:high]), np.flatnonzero(tried == person)
        emb_KD = enrolled.rows(own)
        score = emb_KD[np.searchsorted(own, rows[places])] @ emb_KD.T
        score[own[None] == rows[places, None]] = NEVER
        score_M[places], row_M[places] = score.max(1), own[score.argmax(1)]
    return Nearest(np.minimum(score_M, 1), row_M)


def drawn_rows(count: int, most: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """`most` of so many rows, drawn, in rising order; all where they are no more."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])
