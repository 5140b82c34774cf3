"""Verification over all pairs of N images, formed on tiles and never listed by index.

Shapes: N images, D embedding, R x C one tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from facemetric.errors import DataError
from facemetric.evaluation.curves import Ints, auc, check_counts, eer, histogram, roc, tar_at_far
from facemetric.evaluation.tally import ROOT, STEPS, Tally
from facemetric.evaluation.verification import FARS, HARDEST, Hardest, HardPairs, Verification, unit_rows
from facemetric.mining.tiles import product_tiles

KEEP = 1 << 23  # highest scores of each kind kept one by one: 32 to 64 MiB
CURVE_POINTS = 1000


def verify_all_pairs(
    embeddings: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    fars: Sequence[float] = FARS,
    keep: int = KEEP,
    budget_mib: float | None = None,
) -> Verification:
    """All N (N - 1) / 2 pairs of embeddings (N, D), same person where labels (N,) are equal.

    The score is the cosine similarity. The highest scores of each kind, `keep` to 2 x `keep`, are
    exact; below, thresholds lie on a grid of 2^-14, where counts are exact too: `Verification.exact_from`
    says where. `budget_mib` is the memory of a tile. Raises DataError where genuine or impostor pairs lack.
    """
    by_person = sort_by_person(embeddings, labels)
    tallies = Tally(by_person.n_genuine, keep), Tally(by_person.n_impostor, keep)
    hardest = _Hardest(-1), _Hardest(1)
    _tally_pairs(by_person, tallies, hardest, budget_mib)
    genuine, impostor = (t.scores() for t in tallies)
    rate, threshold = eer(genuine, impostor)
    return Verification(
        genuine.total,
        impostor.total,
        auc(genuine, impostor),
        rate,
        threshold,
        tuple(tar_at_far(genuine, impostor, far) for far in fars),
        roc(genuine, impostor, CURVE_POINTS),
        histogram(genuine, impostor),
        hardest=Hardest(*(h.pairs(by_person.order) for h in hardest)),
        exact_from=max(genuine.exact_from, impostor.exact_from),
    )


class ByPerson(NamedTuple):
    """Images sorted by person: all but the tiles near the diagonal then hold impostors only.

    `emb_ND`: unit rows times ROOT, so that products are scores in steps of the tally; `who_N`: persons
    numbered from 0, rising; `order` (N,): the row that each was.
    """

    emb_ND: npt.NDArray[np.float32]
    who_N: Ints
    order: Ints
    n_genuine: int
    n_impostor: int


def sort_by_person(embeddings: npt.ArrayLike, labels: npt.ArrayLike) -> ByPerson:
    """Embeddings (N, D) and labels (N,), sorted. Raises DataError where genuine or impostor pairs lack."""
    emb_ND, label_N = unit_rows(embeddings), np.asarray(labels)
    if label_N.shape != (len(emb_ND),):
        raise DataError(f"labels of shape {label_N.shape}; {len(emb_ND)} embeddings need ({len(emb_ND)},)")
    who_N, sizes = np.unique(label_N, return_inverse=True, return_counts=True)[1:]
    n_genuine = int((sizes * (sizes - 1) // 2).sum())
    n_impostor = len(who_N) * (len(who_N) - 1) // 2 - n_genuine
    check_counts(n_genuine, n_impostor)
    order = np.argsort(who_N, kind="stable")
    emb_ND = emb_ND[order]
    emb_ND *= ROOT
    return ByPerson(emb_ND, who_N[order], order, n_genuine, n_impostor)


class _Hardest:
    """The HARDEST pairs of the highest (sign 1) or lowest (sign -1) scores so far, and their places."""

    def __init__(self, sign: int) -> None:
        self.sign = np.float32(sign)
        self.hardness = np.empty(0, np.float32)
        self.places = np.empty((2, 0), np.int64)

    def add(
        self,
        score: npt.NDArray[np.float32],
        rows: slice,
        cols: slice,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        """Scores of a whole tile, or those where `mask` (R, C) holds."""
        flat = score.reshape(-1)
        if not len(flat):
            return
        bound = self.hardness.min() if len(self.hardness) == HARDEST else -np.inf
        if (flat.max() if self.sign > 0 else -flat.min()) <= bound:  # nearly always: one read of the tile
            return
        found = np.flatnonzero(flat * self.sign > bound)
        if len(found) > HARDEST:
            found = found[np.argpartition(-self.sign * flat[found], HARDEST)[:HARDEST]]
        hardness = np.concatenate([self.hardness, flat[found] * self.sign])
        at = found if mask is None else np.flatnonzero(mask)[found]
        row, col = np.divmod(at, cols.stop - cols.start)
        places = np.concatenate([self.places, [row + rows.start, col + cols.start]], axis=1)
        best = np.argsort(-hardness, kind="stable")[:HARDEST]
        self.hardness, self.places = hardness[best], places[:, best]

    def pairs(self, order: Ints) -> HardPairs:
        """The pairs with the rows that images had before they were sorted."""
        rows_a, rows_b = order[self.places]
        return HardPairs(rows_a, rows_b, self.hardness * self.sign / np.float32(STEPS))


def _tally_pairs(
    by_person: ByPerson,
    tallies: tuple[Tally, Tally],
    hardest: tuple[_Hardest, _Hardest],
    budget_mib: float | None,
) -> None:
    emb_ND, who_N = by_person.emb_ND, by_person.who_N
    with tqdm(
        total=len(emb_ND) ** 2 // 2, unit="pair", unit_scale=True, delay=2, leave=False, disable=None
    ) as bar:
        for rows, cols, values in product_tiles(
            torch.from_numpy(emb_ND), budget_mib=budget_mib, triangle=True
        ):
            score = values.numpy()
            bar.update(score.size // 2 if rows == cols else score.size)
            if who_N[rows.stop - 1] < who_N[cols.start]:
                tallies[1].add(score)
                hardest[1].add(score, rows, cols)
                continue
            same = who_N[rows, None] == who_N[None, cols]
            other = ~same
            if rows == cols:
                same, other = np.triu(same, 1), np.triu(other, 1)
            for tally, hard, mask in zip(tallies, hardest, (same, other), strict=True):
                some = score[mask]
                tally.add(some)
                hard.add(some, rows, cols, mask)
