"""Draw pairs from identity labels: balanced, seeded, no person in two folds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.data.pair_images import Names
from facemetric.data.pairs import Ints, Pairs
from facemetric.errors import DataError


class PairRows(NamedTuple):
    """P drawn pairs: rows of both images int64 (P,), `same` bool (P,), `fold` int64 (P,)."""

    a: Ints
    b: Ints
    same: npt.NDArray[np.bool_]
    fold: Ints


def make_pairs(identity: npt.ArrayLike, *, count: int, folds: int = 10, seed: int = 0) -> PairRows:
    """Draw `count` different pairs from identity labels (N,): half of one person, half of two, in folds.

    No person stands in two folds. Pairs of one person are spread over persons as evenly as their images
    allow. The same labels, numbers and seed give the same pairs. Raises DataError where the images do not
    give so many.
    """
    _, who = np.unique(np.asarray(identity), return_inverse=True)
    sizes = np.bincount(who)
    if folds < 1 or count < 2 * folds or count % (2 * folds):
        raise DataError(
            f"{count} pairs in {folds} folds; needed a multiple of {2 * folds}, as many of each kind a fold"
        )
    each = count // folds // 2
    rng = np.random.default_rng(seed)
    # Persons with most images are dealt out first, so that every fold gets its share of them.
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_of = np.empty(len(sizes), dtype=np.int64)
    fold_of[order] = np.arange(len(sizes)) % folds
    parts = []
    for fold in range(folds):
        rows = np.flatnonzero(fold_of[who] == fold)
        for kind, draw in (("of one person", _draw_genuine), ("of two persons", _draw_impostor)):
            a, b, possible = draw(rows, who[rows], each, rng)
            if len(a) < each:
                raise DataError(
                    f"fold {fold + 1} of {folds} gives {possible} pairs {kind}, {each} were asked; "
                    f"ask for at most {2 * folds * possible} pairs, or for fewer folds"
                )
            parts.append((a, b, np.full(each, kind == "of one person"), np.full(each, fold)))
    return PairRows(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _draw_genuine(rows: Ints, who: Ints, each: int, rng: np.random.Generator) -> tuple[Ints, Ints, int]:
    by_who = rows[np.argsort(who, kind="stable")]
    sizes = np.unique(who, return_counts=True)[1]
    starts = np.cumsum(sizes) - sizes
    pairs = sizes * (sizes - 1) // 2
    if pairs.sum() < each:
        return rows[:0], rows[:0], int(pairs.sum())
    quota = next(q for q in _quotas(each, pairs) if np.minimum(pairs, q).sum() >= each)
    first, second = [], []
    for start, possible in zip(starts, pairs, strict=True):
        if possible:
            chosen = rng.choice(possible, size=min(quota, int(possible)), replace=False)
            # Pair number c of a triangle: row j has j pairs (i, j) with i < j.
            j = ((1 + np.sqrt(1 + 8 * chosen.astype(np.float64))) // 2).astype(np.int64)
            first.append(by_who[start + chosen - j * (j - 1) // 2])
            second.append(by_who[start + j])
    keep = np.sort(rng.permutation(sum(map(len, first)))[:each])
    return np.concatenate(first)[keep], np.concatenate(second)[keep], int(pairs.sum())


def _quotas(each: int, pairs: Ints) -> Iterator[int]:
    """Growing numbers of pairs a person, from an even share up."""
    quota = max(1, -(-each // max(1, int((pairs > 0).sum()))))
    while True:
        yield quota
        quota += max(1, quota // 4)


def _draw_impostor(rows: Ints, who: Ints, each: int, rng: np.random.Generator) -> tuple[Ints, Ints, int]:
    order = np.argsort(who, kind="stable")
    rows, who = rows[order], who[order]
    n = len(rows)
    start, end = np.searchsorted(who, who), np.searchsorted(who, who, side="right")
    others = n - (end - start)
    possible = int(others.sum() // 2)
    if possible < each:
        return rows[:0], rows[:0], possible
    keys = np.empty(0, dtype=np.int64)
    share = others.cumsum()
    while len(keys) < each:
        # Uniform over (image, image of another person): skip the image's own block of the sorted rows.
        ticket = rng.integers(share[-1], size=2 * (each - len(keys)) + 16)
        i = np.searchsorted(share, ticket, side="right")
        j = ticket - (share[i] - others[i])
        j = np.where(j >= start[i], j + (end - start)[i], j)
        drawn = np.concatenate([keys, np.minimum(i, j) * n + np.maximum(i, j)])
        keys = drawn[np.sort(np.unique(drawn, return_index=True)[1])]
    keys = keys[:each]
    return rows[keys // n], rows[keys % n], possible


def name_pairs(drawn: PairRows, names: Names | Sequence[str], *, source: str = "drawn pairs") -> Pairs:
    """Drawn rows as Pairs with the names of an index (or a list of names), ready for `write_pairs`."""
    name = names.__getitem__ if isinstance(names, Sequence) else names.name

    def named(rows: Iterable[int]) -> tuple[str, ...]:
        return tuple(name(int(i)) for i in rows)

    return Pairs(named(drawn.a), named(drawn.b), drawn.same, drawn.fold, source=source)
