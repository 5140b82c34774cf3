"""Intervals of verification over all pairs: people drawn anew, without listing a pair.

Every figure is read off FAR and TAR at some hundred thresholds. Person p has weight w_p in a draw. A genuine
pair counts w_p. The FAR is a sum over pairs of persons; its first-order part (Hoeffding 1948) gives
    FAR(t) + s(t) sum_p (w_p - 1) e_p(t) / pairs,    e_p(t) = accepted pairs of p - FAR(t) x pairs of p,
and s(t) sets the variance to the one that is robust to shared persons (Aronow, Samii and Assenova 2015): the
sum of e_p ** 2 holds the error of each pair of persons twice, `PersonCounts.alone` once too often.
Shapes: W persons, B draws, T thresholds, K wanted FARs.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

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
from facemetric.evaluation.intervals.draws import DRAWS, person_weights
from facemetric.evaluation.intervals.listed import band_fars
from facemetric.evaluation.intervals.records import (
    Band,
    Bounds,
    Interval,
    figure_intervals,
    quantiles,
)
from facemetric.evaluation.verification import Verification
from facemetric.mining.tiles import Tile

EXACT = 8  # thresholds that are compared one by one, wherever they lie


MOST = 255  # thresholds: the cell of a score is one byte


LISTED = 1 << 20  # accepted impostor pairs that are looked at one by one: some 40 MiB


class PersonCounts(NamedTuple):
    """Accepted pairs of each person at each threshold (T,), rising.

    `genuine` (W, T) of `n_genuine` (W,) pairs, `impostor` (W, T) of `n_impostor` (W,): an impostor pair counts
    for both of its persons. `alone` (T,): the sum over pairs of persons of (accepted - FAR x pairs) ** 2.
    """

    threshold: Floats
    genuine: Ints
    n_genuine: Ints
    impostor: Ints
    n_impostor: Ints
    alone: Floats


def curve_thresholds(curve: Roc, fars: Floats) -> Floats:
    """Thresholds on the grid of the tally, rising, whose FARs are about `fars`; at most 200 of them."""
    place = np.searchsorted(curve.far, fars, side="right") - 1
    found = curve.threshold[place[place > 0]]
    return np.unique(np.ceil(found * STEPS) / STEPS).clip(-1, 1)[-200:]


def count_by_person(
    embeddings: npt.ArrayLike, labels: npt.ArrayLike, threshold: Floats, *, budget_mib: float | None = None
) -> PersonCounts:
    """Counts over all pairs of embeddings (N, D) of persons labels (N,), at rising thresholds (T,).

    More than EXACT thresholds must lie on the grid of the tally, and be at most MOST.
    Persons are in the order of their sorted labels. `alone` is exact up to LISTED accepted impostor pairs;
    where there are more, the accepted pairs are taken to share persons as the highest LISTED do.
    """
    steps = np.asarray(threshold) * STEPS
    assert len(steps) <= EXACT or (len(steps) <= MOST and (steps == np.floor(steps)).all()), "off the grid"
    assert (np.diff(steps) >= 0).all(), "thresholds must rise"
    by_person = sort_by_person(embeddings, labels)
    who_N = by_person.who_N
    W, cells = int(who_N[-1]) + 1, len(threshold) + 1
    counts = np.zeros((2, W, cells), np.int64)
    tail = _Tail()
    _walk(by_person, _Cells(threshold), counts, tail, budget_mib)
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
        tail.alone(far_T, impostor[:, 1:].sum(0) // 2, np.bincount(who_N)),
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
    """The impostor pairs of the highest scores, one by one: cell and both persons."""

    def __init__(self) -> None:
        self.lowest = 1  # cells from here up are listed whole
        self.cell: list[npt.NDArray[np.uint8]] = []
        self.pair: list[Ints] = []
        self.used = 0

    def add(
        self,
        cell: npt.NDArray[np.uint8],
        who_R: npt.NDArray[np.int32],
        who_C: npt.NDArray[np.int32],
        persons: int,
        lock: threading.Lock,
    ) -> None:
        """Cells (R, C) of impostor pairs; 0 is below all thresholds."""
        at = np.flatnonzero(cell >= self.lowest)
        if not len(at):
            return
        row, col = np.divmod(at, cell.shape[1])
        high, pair = cell.reshape(-1)[at], who_R[row].astype(np.int64) * persons + who_C[col]
        with lock:
            self.cell.append(high)
            self.pair.append(pair)
            self.used += len(at)
            if self.used > 2 * LISTED:
                self._prune()

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
            accepted, squares, cross = np.zeros(len(pairs), np.int64), 0.0, 0.0
            by_cell = np.argsort(cell, kind="stable")
            starts = np.searchsorted(cell[by_cell], np.arange(len(far_T) + 2))
            for t in range(len(far_T) - 1, self.lowest - 2, -1):  # from the top down, each pair met once
                fresh = which[by_cell[starts[t + 1] : starts[t + 2]]]
                touched, count = np.unique(fresh, return_counts=True)
                squares += (count * (count + 2 * accepted[touched])).sum()
                accepted[touched] += count
                cross += possible[fresh].sum()
                alone_T[t] = squares - 2 * far_T[t] * cross + far_T[t] ** 2 * all_squares
        binomial_T = accepted_T * (1 - far_T)  # what `alone` is where no two pairs share both persons
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
    emb_ND, who_N = by_person.emb_ND, by_person.who_N.astype(np.int32)
    lock = threading.Lock()

    def work(_: int, tile: Tile) -> None:
        cell = cells_of.of(tile.values.numpy())
        who_R, who_C = who_N[tile.rows], who_N[tile.cols]
        if who_R[-1] < who_C[0]:
            _add(counts[1], cell, who_R, who_C, lock)
        else:
            same = who_R[:, None] == who_C[None, :]
            other = ~same
            if tile.rows == tile.cols:
                same, other = np.triu(same, 1), np.triu(other, 1)
            for kind, mask in zip(counts, (same, other), strict=True):
                _add(kind, cell, who_R, who_C, lock, mask)
            cell = np.where(other, cell, 0).astype(np.uint8)
        tail.add(cell, who_R, who_C, counts.shape[1], lock)

    walk_pairs(emb_ND, work, walking_threads(len(emb_ND)), budget_mib, "intervals")


def _add(
    counts: npt.NDArray[np.int64],
    cell: npt.NDArray[np.uint8],
    who_R: npt.NDArray[np.int32],
    who_C: npt.NDArray[np.int32],
    lock: threading.Lock,
    mask: npt.NDArray[np.bool_] | None = None,
) -> None:
    """Count the cells (R, C) of a tile, or those where `mask` holds, for the persons of rows and columns."""
    cells = np.int32(counts.shape[1])
    for who, first in ((who_R[:, None], who_R[0]), (who_C[None, :], who_C[0])):
        code = (who - first) * cells + cell
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
    level: float = 0.95,
    seed: int = 0,
) -> Bounds:
    """Intervals of the figures that `verify_all_pairs` found for the same embeddings and labels."""
    figures = _AllPairs(embeddings, labels, found)
    draws_BF = figures.draws(draws, seed)
    named = len(figures.values)
    low, high = quantiles(draws_BF[:, named:], level)
    band = Band(figures.band_fars, figures.band_tar, low, high)
    return Bounds(figure_intervals(figures.values, draws_BF[:, :named], level), band)


def all_pairs_differences(
    embeddings: tuple[npt.ArrayLike, npt.ArrayLike],
    labels: npt.ArrayLike,
    found: tuple[Verification, Verification],
    *,
    draws: int = DRAWS,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Second model minus first over all pairs of the same images: the same persons are drawn for both."""
    if found[0].n_genuine != found[1].n_genuine or found[0].n_impostor != found[1].n_impostor:
        raise DataError(
            f"{found[0].n_genuine + found[0].n_impostor} pairs of the first model and "
            f"{found[1].n_genuine + found[1].n_impostor} of the second; needed the same images"
        )
    first, second = (_AllPairs(e, labels, f) for e, f in zip(embeddings, found, strict=True))
    values = {name: value - first.values[name] for name, value in second.values.items()}
    draws_BF = second.draws(draws, seed) - first.draws(draws, seed)
    return figure_intervals(values, draws_BF[:, : len(values)], level)


class _AllPairs:
    """The figures and, for any weights of the persons, their draws."""

    def __init__(self, embeddings: npt.ArrayLike, labels: npt.ArrayLike, found: Verification) -> None:
        self.band_fars = band_fars(found.n_impostor)
        # Between its points the curve is joined by lines, so some more of them along both axes.
        even = np.linspace(0.025, 0.975, 39)
        by_tar = found.roc.far[np.searchsorted(found.roc.tar, even).clip(1)]
        fars = np.unique(np.concatenate([self.band_fars, by_tar, even]))
        self.counts = count_by_person(embeddings, labels, curve_thresholds(found.roc, fars))
        supported = [p for p in found.points if p.supported]
        self.wanted = np.array([p.wanted for p in supported])
        self.values = {"auc": found.auc, "eer": found.eer} | {tar_name(p.wanted): p.tar for p in supported}
        place = np.searchsorted(found.roc.far, self.band_fars * (1 + 1e-9), side="right") - 1
        self.band_tar = found.roc.tar[place]

    def draws(self, draws: int, seed: int) -> Floats:
        """Figures, then the TAR of the band: (B, 2 + K + band). Exact figures, moved as the grid's move."""
        wanted = np.concatenate([self.wanted, self.band_fars])
        rates = DrawnRates(self.counts)
        parts = [_read_off(*rates.at(w_BW), wanted) for w_BW in person_weights(rates.persons, draws, seed)]
        as_it_is = _read_off(*rates.at(np.ones((1, rates.persons))), wanted)
        exact = np.concatenate([list(self.values.values()), self.band_tar])
        return (exact + np.concatenate(parts) - as_it_is).clip(0, 1)


class DrawnRates:
    """TAR and FAR at the thresholds of the counts, for any weights of the persons."""

    def __init__(self, counts: PersonCounts) -> None:
        self.persons = len(counts.n_genuine)
        self.genuine_WT, self.n_genuine_W = counts.genuine.astype(np.float64), counts.n_genuine.astype(float)
        self.impostor_pairs = counts.n_impostor.sum() / 2
        self.far_T = counts.impostor.sum(0) / counts.n_impostor.sum()
        error_WT = counts.impostor - self.far_T * counts.n_impostor[:, None]
        squares_T = (error_WT**2).sum(0)
        kept_T = 1 - np.divide(counts.alone, squares_T, out=np.zeros_like(squares_T), where=squares_T > 0)
        self.error_WT = error_WT * np.sqrt(kept_T.clip(0.5, 1))

    def at(self, w_BW: Floats) -> tuple[Floats, Floats]:
        """TAR (B, T) and FAR (B, T) with weights (B, W), of mean 1 in each draw."""
        tar_BT = w_BW @ self.genuine_WT / (w_BW @ self.n_genuine_W)[:, None]
        far_BT = self.far_T + (w_BW - 1) @ self.error_WT / self.impostor_pairs
        return tar_BT, far_BT.clip(0, 1)


def _read_off(tar_BT: Floats, far_BT: Floats, wanted_K: Floats) -> Floats:
    """AUC, EER and the TAR at each wanted FAR, (B, 2 + K), of curves at thresholds that rise."""
    B = len(tar_BT)
    # From accepting nothing to accepting everything; errors of the draws must not turn the curve back.
    zero_B1, one_B1 = np.zeros((B, 1)), np.ones((B, 1))
    tar_BT, far_BT = (
        np.maximum.accumulate(np.concatenate([zero_B1, rate[:, ::-1], one_B1], 1), axis=1)
        for rate in (tar_BT, far_BT)
    )
    step_BT = np.diff(far_BT, axis=1)
    auc_B = (step_BT * (tar_BT[:, 1:] + tar_BT[:, :-1]) / 2).sum(1)
    columns = np.empty((B, 2 + len(wanted_K)))
    columns[:, 0] = auc_B
    for b, (far_T, tar_T) in enumerate(zip(far_BT, tar_BT, strict=True)):
        columns[b, 1] = np.interp(0, far_T + tar_T - 1, far_T)
        columns[b, 2:] = np.interp(wanted_K, far_T, tar_T)
    return columns
