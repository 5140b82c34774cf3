"""A list of image pairs: each path once, and which two of them are a pair.

Shapes: P pairs, U different paths.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """P pairs as a file lists them.

    `names` (U,): every path once, in the order of first use; `a` and `b` int32 (P,): which of them each pair
    holds. `same` bool (P,): one person or two. `fold` int64 (P,), numbered from 0, or None where the file has
    none. `groups`: other columns of the csv, str (P,). `bare`: the paths have no extension (LFW).
    `holds_images`: the file is a source of the images too.
    """

    names: tuple[str, ...]
    a: npt.NDArray[np.int32]
    b: npt.NDArray[np.int32]
    same: npt.NDArray[np.bool_]
    fold: Ints | None = None
    groups: dict[str, npt.NDArray[np.str_]] = field(default_factory=dict)
    bare: bool = False
    source: str = "pairs"
    holds_images: bool = False

    def __len__(self) -> int:
        return len(self.a)

    def __repr__(self) -> str:
        genuine = int(self.same.sum())
        folds = "" if self.fold is None else f", {len(np.unique(self.fold))} folds"
        return f"Pairs({genuine:,} genuine, {len(self) - genuine:,} impostor{folds}, of {self.source!r})"

    @classmethod
    def of(
        cls,
        paths_a: Sequence[str],
        paths_b: Sequence[str],
        same: npt.NDArray[np.bool_],
        fold: Ints | None = None,
        *,
        source: str = "pairs",
        bare: bool = False,
    ) -> Pairs:
        """Pairs of paths (P,) and (P,)."""
        listing = Listing()
        for path_a, path_b in zip(paths_a, paths_b, strict=True):
            listing.add(path_a, path_b, True)
        return replace(listing.pairs(source, fold), same=np.asarray(same, bool), bare=bare)

    @property
    def paths_a(self) -> tuple[str, ...]:
        """The first path of each pair."""
        return tuple(self.names[i] for i in self.a.tolist())

    @property
    def paths_b(self) -> tuple[str, ...]:
        """The second path of each pair."""
        return tuple(self.names[i] for i in self.b.tolist())

    def paths(self) -> list[str]:
        """Every path that a pair holds once, in the order of `names`."""
        used = np.unique(np.concatenate([self.a, self.b]))
        return [self.names[i] for i in used.tolist()]

    def select(self, rows: npt.NDArray) -> Pairs:
        """The pairs of these rows, or where a mask (P,) holds."""
        fold = None if self.fold is None else self.fold[rows]
        groups = {name: column[rows] for name, column in self.groups.items()}
        return replace(self, a=self.a[rows], b=self.b[rows], same=self.same[rows], fold=fold, groups=groups)


class Listing:
    """Pairs as they are read: each path once, 9 bytes a pair."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}
        self.a, self.b, self.same = array("i"), array("i"), bytearray()

    def add(self, path_a: str, path_b: str, same: bool) -> None:
        number = self.number
        self.a.append(number.setdefault(path_a, len(number)))
        self.b.append(number.setdefault(path_b, len(number)))
        self.same.append(same)

    def pairs(self, source: str | Path, fold: Ints | None = None) -> Pairs:
        a, b = (np.array(numbers, dtype=np.int32) for numbers in (self.a, self.b))
        return Pairs(tuple(self.number), a, b, np.array(self.same).astype(bool), fold, source=str(source))
