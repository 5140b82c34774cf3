"""Intervals of verification over all pairs: identities resampled, without listing a pair (see `counts.py`).

Shapes: N images, W identities, B draws, T thresholds, R x C one tile.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt
import torch

from facemetric import distributed
from facemetric.errors import DataError
from facemetric.evaluation.all_pairs import (
    BINS,
    OFFSET,
    STEPS,
    ByPerson,
    sort_by_person,
    walk_pairs,
    walking_threads,
)
from facemetric.evaluation.curves import Floats, Ints, Roc
from facemetric.evaluation.figures import tar_name
from facemetric.evaluation.intervals.counts import (
    MOST_THRESHOLDS,
    CountedFigures,
    Measured,
    PersonCounts,
    band_fars,
    squared_errors,
    thresholds_at,
    watched_fars,
)
from facemetric.evaluation.intervals.draws import DRAWS
from facemetric.evaluation.intervals.records import Bounds, Interval, figure_intervals
from facemetric.evaluation.verification import Verification
from facemetric.mining.tiles import Tile

EXACT = 8  # thresholds that are compared one by one, wherever they lie
MOST_CELLS = 255  # thresholds: the cell of a score is one byte
LISTED = 1 << 20  # accepted impostor pairs that are looked at one by one: some 40 MiB


def curve_thresholds(curve: Roc, fars: Floats) -> Floats:
    """Thresholds on the grid of the tally, rising, whose FARs are about `fars`; at most MOST_THRESHOLDS of them."""
    found = thresholds_at(curve, fars)
    return np.unique(np.ceil(found * STEPS) / STEPS).clip(-1, 1)[-MOST_THRESHOLDS:]


def count_by_person(
    embeddings: npt.ArrayLike, labels: npt.ArrayLike, threshold: Floats, *, budget_mib: float | None = None
) -> PersonCounts:
    """Counts over all pairs of embeddings (N, D) of the identities labels (N,), at rising thresholds (T,).

    More than EXACT thresholds must lie on the grid of the tally, and be at most MOST_CELLS.
    Identities are in the order of their sorted labels. `alone` is exact up to LISTED accepted impostor pairs;
    where there are more, the accepted pairs are taken to share identities as the highest LISTED do.
    """
    steps = np.asarray(threshold) * STEPS
    assert len(steps) <= EXACT or (len(steps) <= MOST_CELLS and (steps == np.floor(steps)).all()), (
        "off the grid"
    )
    assert (np.diff(steps) >= 0).all(), "thresholds must rise"
    by_person = sort_by_person(embeddings, labels)
    identity_N = by_person.identity_N
    W, cells = int(identity_N[-1]) + 1, len(threshold) + 1
    counts = np.zeros((2, W, cells), np.int64)
    tail = _Tail()
    _walk(by_person, _Cells(threshold), counts, tail, budget_mib)
    counts = distributed.summed(counts)
    if distributed.workers() > 1:
        parts = distributed.from_all(tail)
        tail = parts[0]
        for other in parts[1:]:
            tail.merge(other)
    # Cell c holds the scores between threshold c - 1 and c: accepted at t are those in cells above t.
    genuine, impostor = (kind[:, ::-1].cumsum(1)[:, ::-1] for kind in counts)
    total = by_person.n_impostor
    far_T = impostor[:, 1:].sum(0) / 2 / total
    return PersonCounts(
        threshold,
        genuine[:, 1:] // 2,
        genuine[:, 0] // 2,
        impostor[:, 1:],
        impostor[:, 0],
        tail.alone(far_T, impostor[:, 1:].sum(0) // 2, np.bincount(identity_N)),
    )


class _Cells:
    """The cell of each score: how many thresholds it reaches. A threshold of -1 is reached by rounded ones too."""

    def __init__(self, threshold: Floats) -> None:
        edge = ((np.arange(BINS) - OFFSET) / STEPS).clip(-1)
        self.of_bin = np.searchsorted(threshold, edge, side="right").astype(np.uint8)
        steps = np.where(threshold > -1, threshold * STEPS, -OFFSET)
        self.exact = steps.astype(np.float32) if len(threshold) <= EXACT else None

    def of(self, score: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
        """Cells (R, C) of scores in steps (R, C), which are used up."""
        if self.exact is not None:
            cell = np.zeros(score.shape, np.uint8)
            for threshold in self.exact:
                cell += score >= threshold
            return cell
        np.floor(score, out=score)
        score += OFFSET
        return self.of_bin[score.astype(np.intp)]


class _Tail:
    """The impostor pairs of the highest scores, one by one: cell and both identities."""

    def __init__(self) -> None:
        self.lowest = 1  # cells from here up are listed whole
        self.cell: list[npt.NDArray[np.uint8]] = []
        self.pair: list[Ints] = []
        self.used = 0

    def add(
        self,
        cell: npt.NDArray[np.uint8],
        identity_R: npt.NDArray[np.int32],
        identity_C: npt.NDArray[np.int32],
        identities: int,
        lock: threading.Lock,
    ) -> None:
        """Cells (R, C) of impostor pairs; 0 is below all thresholds."""
        at = np.flatnonzero(cell >= self.lowest)
        if not len(at):
            return
        row, col = np.divmod(at, cell.shape[1])
        high, pair = cell.reshape(-1)[at], identity_R[row].astype(np.int64) * identities + identity_C[col]
        with lock:
            self.cell.append(high)
            self.pair.append(pair)
            self.used += len(at)
            if self.used > 2 * LISTED:
                self._prune()

    def merge(self, other: _Tail) -> None:
        """Add what another process has listed."""
        self.lowest = max(self.lowest, other.lowest)
        for cell, pair in zip(other.cell, other.pair, strict=True):
            self.cell.append(cell)
            self.pair.append(pair)
        kept = [cell >= self.lowest for cell in self.cell]
        self.cell = [cell[keep] for cell, keep in zip(self.cell, kept, strict=True)]
        self.pair = [pair[keep] for pair, keep in zip(self.pair, kept, strict=True)]
        self.used = sum(map(len, self.cell))

    def _prune(self) -> None:
        cell, pair = np.concatenate(self.cell), np.concatenate(self.pair)
        from_top = np.bincount(cell, minlength=256)[::-1].cumsum()[::-1]
        self.lowest = max(self.lowest, int(np.argmax(from_top <= LISTED)))
        kept = cell >= self.lowest
        self.cell, self.pair, self.used = [cell[kept]], [pair[kept]], int(kept.sum())

    def alone(self, far_T: Floats, accepted_T: Ints, sizes_W: Ints) -> Floats:
        """`PersonCounts.alone`, from the images (W,) of each person."""
        if self.used > LISTED:
            self._prune()
        alone_T = np.full(len(far_T), np.nan)
        if self.used:
            size_W = sizes_W.astype(np.float64)
            all_squares = ((size_W**2).sum() ** 2 - (size_W**4).sum()) / 2
            cell, pair = np.concatenate(self.cell), np.concatenate(self.pair)
            pairs, which = np.unique(pair, return_inverse=True)
            possible = size_W[pairs // len(size_W)] * size_W[pairs % len(size_W)]
            alone_T = squared_errors(cell, which, possible, all_squares, far_T, self.lowest)
        binomial_T = accepted_T * (1 - far_T)  # what `alone` is where no two pairs share both identities
        known = np.isfinite(alone_T) & (binomial_T > 0)
        share = alone_T[known][0] / binomial_T[known][0] if known.any() else 1.0
        return np.where(np.isfinite(alone_T), alone_T, share * binomial_T)


def _walk(
    by_person: ByPerson,
    cells_of: _Cells,
    counts: npt.NDArray[np.int64],
    tail: _Tail,
    budget_mib: float | None,
) -> None:
    emb_ND, identity_N = by_person.emb_ND, by_person.identity_N.astype(np.int32)
    lock = threading.Lock()

    def work(_: int, tile: Tile) -> None:
        cell = cells_of.of(tile.values.numpy())
        identity_R, identity_C = identity_N[tile.rows], identity_N[tile.cols]
        if identity_R[-1] < identity_C[0]:
            _add(counts[1], cell, identity_R, identity_C, lock)
        else:
            same = identity_R[:, None] == identity_C[None, :]
            other = ~same
            if tile.rows == tile.cols:
                same, other = np.triu(same, 1), np.triu(other, 1)
            for kind, mask in zip(counts, (same, other), strict=True):
                _add(kind, cell, identity_R, identity_C, lock, mask)
            cell = np.where(other, cell, 0).astype(np.uint8)
        tail.add(cell, identity_R, identity_C, counts.shape[1], lock)

    walk_pairs(emb_ND, work, walking_threads(len(emb_ND)), budget_mib, "intervals")


def _add(
    counts: npt.NDArray[np.int64],
    cell: npt.NDArray[np.uint8],
    identity_R: npt.NDArray[np.int32],
    identity_C: npt.NDArray[np.int32],
    lock: threading.Lock,
    mask: npt.NDArray[np.bool_] | None = None,
) -> None:
    """Count the cells (R, C) of a tile, or those where `mask` holds, for the identities of rows and columns."""
    cells = np.int32(counts.shape[1])
    for identity, first in ((identity_R[:, None], identity_R[0]), (identity_C[None, :], identity_C[0])):
        code = (identity - first) * cells + cell
        code = code.reshape(-1) if mask is None else code[mask]
        found = torch.bincount(torch.from_numpy(code), minlength=int(cells)).numpy()
        found = np.concatenate([found, np.zeros(-len(found) % cells, np.int64)]).reshape(-1, cells)
        with lock:
            counts[first : first + len(found)] += found


def all_pairs_intervals(
    embeddings: npt.ArrayLike,
    labels: npt.ArrayLike,
    found: Verification,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Bounds:
    """Intervals of the figures that `verify_all_pairs` found for the same embeddings and labels."""
    figures = _counted(embeddings, labels, found)
    return figures.bounds(figures.draws(draws, seed))


def all_pairs_differences(
    embeddings: tuple[npt.ArrayLike, npt.ArrayLike],
    labels: npt.ArrayLike,
    found: tuple[Verification, Verification],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Interval]:
    """Second model minus first over all pairs of the same images: the same people are drawn for both."""
    if found[0].n_genuine != found[1].n_genuine or found[0].n_impostor != found[1].n_impostor:
        raise DataError(
            f"{found[0].n_genuine + found[0].n_impostor} pairs of the first model and "
            f"{found[1].n_genuine + found[1].n_impostor} of the second; needed the same images"
        )
    first, second = (_counted(e, labels, f) for e, f in zip(embeddings, found, strict=True))
    before = first.measured.values
    values = {name: value - before[name] for name, value in second.measured.values.items()}
    draws_BF = second.draws(draws, seed) - first.draws(draws, seed)
    return figure_intervals(values, draws_BF[:, : len(values)])


def _counted(embeddings: npt.ArrayLike, labels: npt.ArrayLike, found: Verification) -> CountedFigures:
    fars = band_fars(found.n_impostor)
    threshold_T = curve_thresholds(found.roc, watched_fars(found.roc, found.n_impostor))
    supported = [p for p in found.points if p.supported]
    values = {"auc": found.auc, "eer": found.eer} | {tar_name(p.wanted): p.true_rate for p in supported}
    place = np.searchsorted(found.roc.far, fars * (1 + 1e-9), side="right") - 1
    measured = Measured(values, np.array([p.wanted for p in supported]), fars, found.roc.tar[place])
    return CountedFigures(measured, count_by_person(embeddings, labels, threshold_T))
