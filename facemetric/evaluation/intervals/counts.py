"""Intervals of very many pairs: every figure is read off FAR and TAR at some hundred thresholds.

Of each person the accepted pairs at each threshold are counted once; then a draw of weights is a product of matrices,
for any number of pairs. Person p has weight w_p in a draw. A genuine pair counts w_p. The FAR is a sum over pairs
of identities; its first-order part (Hoeffding 1948) gives
    FAR(t) + s(t) sum_p (w_p - 1) e_p(t) / pairs,    e_p(t) = accepted pairs of p - FAR(t) x pairs of p,
and s(t) sets the variance to the one that is robust to shared people (Aronow, Samii and Assenova 2015): the
sum of e_p ** 2 holds the error of each pair of identities twice, `PersonCounts.alone` once too often.
Shapes: P pairs, W identities, B draws, T thresholds (rising), C = T + 1 cells between them, K wanted FARs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.evaluation.curves import Floats, Ints, Roc
from facemetric.evaluation.intervals.draws import WATCHED_FAR, person_weights
from facemetric.evaluation.intervals.records import (
    Band,
    Bounds,
    effective_people,
    figure_intervals,
    quantiles,
    widened,
)

CELLS = 12_000_000  # identities x thresholds of listed pairs: a table of 96 MB
MOST_THRESHOLDS = 200
BLOCK = 8_000_000  # weights of draws x identities at once: 64 MB


class PersonCounts(NamedTuple):
    """Accepted pairs of each person at each threshold (T,), rising.

    `genuine` (W, T) of `n_genuine` (W,) pairs, `impostor` (W, T) of `n_impostor` (W,): an impostor pair counts
    for both of its identities. `alone` (T,): the sum over pairs of people of (accepted - FAR x pairs) ** 2.
    """

    threshold: Floats
    genuine: Ints
    n_genuine: Ints
    impostor: Ints
    n_impostor: Ints
    alone: Floats


def band_fars(n_impostor: int) -> Floats:
    """Eight FARs a decade, rising, from the lowest that so many impostor pairs support up to 1."""
    lowest = 1 / n_impostor
    fars = 10 ** (np.arange(math.ceil(-8 * math.log10(n_impostor)), 0) / 8)
    return np.unique([lowest, *fars[fars > lowest * (1 + 1e-9)], 1.0])  # a power may round to just below


def watched_fars(curve: Roc, n_impostor: int) -> Floats:
    """FARs of the band and, since the curve is joined by lines between them, some more along both axes."""
    even = np.linspace(0.025, 0.975, 39)
    by_tar = curve.far[np.searchsorted(curve.tar, even).clip(1)]
    return np.concatenate([band_fars(n_impostor), by_tar, even])


def thresholds_at(curve: Roc, fars: Floats) -> Floats:
    """Thresholds of the curve, rising, whose FARs are about `fars`."""
    place = np.searchsorted(curve.far, np.unique(fars), side="right") - 1
    return np.unique(curve.threshold[place[place > 0]])


class Measured(NamedTuple):
    """Exact figures by name, of which those after `auc` and `eer` are TARs at the FARs `wanted` (K,); the TAR of
    the band at its FARs."""

    values: dict[str, float]
    wanted: Floats
    band_far: Floats
    band_tar: Floats


class CountedFigures:
    """Exact figures and, for any weights of the people, their draws."""

    def __init__(self, measured: Measured, counts: PersonCounts) -> None:
        self.measured, self.rates = measured, DrawnRates(counts)

    def draws(self, draws: int, seed: int) -> Floats:
        """Figures, then the TAR of the band: (B, 2 + K + band). The exact ones, moved as those at the thresholds."""
        values, wanted_K, band_far, band_tar = self.measured
        at = np.concatenate([wanted_K, band_far])
        identities = self.rates.identities
        parts = [_read_off(*self.rates.at(w_BW), at) for w_BW in person_weights(identities, draws, seed)]
        as_it_is = _read_off(*self.rates.at(np.ones((1, identities))), at)
        exact = np.concatenate([list(values.values()), band_tar])
        return (exact + np.concatenate(parts) - as_it_is).clip(0, 1)

    def bounds(self, draws_BF: Floats) -> Bounds:
        """Intervals from `draws`, widened where errors are few."""
        values, _, band_far, band_tar = self.measured
        low, high = quantiles(draws_BF[:, len(values) :])
        found = figure_intervals(values, draws_BF[:, : len(values)])
        pairs = round(self.rates.n_genuine_W.sum()), round(self.rates.impostor_pairs)
        people = effective_people(self.rates.n_genuine_W)
        return widened(found, Band(band_far, band_tar, low, high), *pairs, people)


class DrawnRates:
    """TAR and FAR at the thresholds of the counts, for any weights of the people."""

    def __init__(self, counts: PersonCounts) -> None:
        self.identities = len(counts.n_genuine)
        self.genuine_WT, self.n_genuine_W = counts.genuine.astype(np.float64), counts.n_genuine.astype(float)
        self.impostor_pairs = counts.n_impostor.sum() / 2
        self.far_T = counts.impostor.sum(0) / counts.n_impostor.sum()
        self.error_WT = counts.impostor - self.far_T * counts.n_impostor[:, None]
        squares_T = (self.error_WT**2).sum(0)
        kept_T = 1 - np.divide(counts.alone, squares_T, out=np.zeros_like(squares_T), where=squares_T > 0)
        self.scale_T = np.sqrt(kept_T.clip(0.5, 1))
        self.error_WT *= self.scale_T

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


def squared_errors(
    cell_I: npt.NDArray, which_I: Ints, possible_D: Floats, all_squares: float, far_T: Floats, lowest: int = 1
) -> Floats:
    """`PersonCounts.alone` (T,): NaN below the threshold of the cell `lowest`.

    Cells (I,) of the impostor pairs from `lowest` up, by number the pair of identities (D,) of each, and how many pairs
    these two have; `all_squares` is the sum of the squares of that number over all pairs of people.
    """
    alone_T = np.full(len(far_T), np.nan)
    if not len(cell_I):
        return alone_T
    accepted, squares, cross = np.zeros(len(possible_D), np.int64), 0.0, 0.0
    by_cell = np.argsort(cell_I, kind="stable")
    starts = np.concatenate([[0], np.bincount(cell_I, minlength=len(far_T) + 1).cumsum()])
    for t in range(len(far_T) - 1, lowest - 2, -1):  # from the top down, each pair met once
        fresh = which_I[by_cell[starts[t + 1] : starts[t + 2]]]
        touched, count = np.unique(fresh, return_counts=True)
        squares += (count * (count + 2 * accepted[touched])).sum()
        accepted[touched] += count
        cross += possible_D[fresh].sum()
        alone_T[t] = squares - 2 * far_T[t] * cross + far_T[t] ** 2 * all_squares
    return alone_T


def thinned(threshold_T: Floats, identities: int) -> Floats:
    """At most MOST_THRESHOLDS of them, and fewer for so many identities that the counts would exceed CELLS."""
    most = int(np.clip(CELLS // identities, 16, MOST_THRESHOLDS))
    if len(threshold_T) <= most:
        return threshold_T
    return threshold_T[np.linspace(0, len(threshold_T) - 1, most).round().astype(np.int64)]


class ListedCells:
    """Listed pairs sorted into cells: scores and `same` (P,), both identities as numbers below `identities` (P,)."""

    def __init__(
        self,
        score: npt.ArrayLike,
        same: npt.ArrayLike,
        both: tuple[Ints, Ints],
        identities: int,
        threshold_T: Floats,
    ) -> None:
        self.threshold_T, self.identities = threshold_T, identities
        self.cells = len(threshold_T) + 1
        self.same = np.asarray(same, dtype=bool)
        self.cell_P = np.searchsorted(threshold_T, np.asarray(score), side="right").astype(np.uint8)
        self.both = both

    def counts_of(self, rows: npt.NDArray[np.integer] | slice) -> tuple[Ints, Ints]:
        """Genuine and impostor pairs (W, C) of each person in each cell, of these rows."""
        same, cell = self.same[rows], self.cell_P[rows]
        kinds = np.zeros((2, self.identities * self.cells), np.int64)
        for column, places in zip(self.both, ((0, 1), (1,)), strict=True):
            code = column[rows].astype(np.int64) * self.cells + cell
            for kind in places:  # both identities of a genuine pair are one
                kinds[kind] += np.bincount(code[same if kind == 0 else ~same], minlength=kinds.shape[1])
        genuine, impostor = kinds.reshape(2, self.identities, self.cells)
        return genuine, impostor

    def counts(self) -> PersonCounts:
        """Of all pairs. Cell c holds the scores between threshold c - 1 and c: accepted at t are those above t."""
        genuine, impostor = (kind[:, ::-1].cumsum(1)[:, ::-1] for kind in self.counts_of(slice(None)))
        far_T = impostor[:, 1:].sum(0) / impostor[:, 0].sum()
        one, other = (column[~self.same] for column in self.both)
        # a number for both: 4 bytes for each of millions of pairs where its square fits
        number = np.int32 if self.identities <= 46_340 else np.int64
        pair_I = np.minimum(one, other).astype(number)
        pair_I *= self.identities
        pair_I += np.maximum(one, other)
        del one, other
        pairs, possible = np.unique(pair_I, return_counts=True)
        cell_I = self.cell_P[~self.same]
        pair_I, cell_I = pair_I[cell_I > 0], cell_I[cell_I > 0]
        which_I = np.searchsorted(pairs, pair_I)
        del pair_I
        squares = float((possible.astype(np.float64) ** 2).sum())
        alone_T = squared_errors(cell_I, which_I, possible.astype(np.float64), squares, far_T)
        return PersonCounts(
            self.threshold_T,
            genuine[:, 1:],
            genuine[:, 0],
            impostor[:, 1:],
            impostor[:, 0],
            np.nan_to_num(alone_T),
        )


class CountedFolds:
    """Mean accuracy over folds (P,) of listed pairs for any weights of the people, at thresholds of the cells."""

    def __init__(self, cells: ListedCells, fold: npt.ArrayLike, rates: DrawnRates) -> None:
        self.cells = cells
        fold_P = np.unique(np.asarray(fold), return_inverse=True)[1]
        ends = np.cumsum(np.bincount(fold_P))
        self.folds = np.split(np.argsort(fold_P, kind="stable").astype(np.int32), ends[:-1])
        # One scale for all thresholds: that of the FAR by which listed pairs are watched.
        self.scale = float(rates.scale_T[np.abs(rates.far_T - WATCHED_FAR).argmin()])

    def draws(self, draws: int, seed: int) -> Floats:
        """The accuracy (B, 1) of each draw; both kinds keep their share, as a protocol does."""
        weights = person_weights(self.cells.identities, draws, seed)
        return np.concatenate([self._weighted(w_BW) for w_BW in _blocks(weights, self.cells.identities)])

    def _weighted(self, w_BW: Floats) -> Floats:
        u_BW = 1 + self.scale * (w_BW - 1)
        gains, genuine_FB, impostor_FB = [], [], []
        for rows in self.folds:
            genuine_WC, impostor_WC = self.cells.counts_of(rows)
            # u_a u_b is u_a + u_b - 1 to the first order; each impostor pair counts for both of its identities.
            genuine_BC = w_BW @ genuine_WC
            impostor_BC = u_BW @ impostor_WC - impostor_WC.sum(0) / 2
            gains.append((genuine_BC, impostor_BC))
            genuine_FB.append(genuine_BC.sum(1))
            impostor_FB.append(impostor_BC.sum(1))
        genuine, impostor = (np.array(kind) for kind in (genuine_FB, impostor_FB))
        kept_g, kept_i = (
            total / kind.sum(0)
            for total, kind in (
                (self.cells.same.sum(), genuine),
                ((~self.cells.same).sum(), impostor),
            )
        )
        # Accepting the pairs of a cell wins the genuine ones and loses the impostors; from the top down.
        won_FBC = np.stack([g * kept_g[:, None] - i * kept_i[:, None] for g, i in gains])[:, :, ::-1].cumsum(
            2
        )
        total_BC, draw_B = won_FBC.sum(0), np.arange(len(w_BW))
        accuracy_B = np.zeros(len(w_BW))
        for won_BC, genuine_B, impostor_B in zip(won_FBC, genuine * kept_g, impostor * kept_i, strict=True):
            others_BC = total_BC - won_BC
            cut_B = others_BC.argmax(1)
            accepted_B = np.where(others_BC[draw_B, cut_B] <= 0, 0, won_BC[draw_B, cut_B])
            accuracy_B += (accepted_B + impostor_B) / (genuine_B + impostor_B)
        return accuracy_B[:, None] / len(won_FBC)


def _blocks(weights: Iterator[Floats], identities: int) -> Iterator[Floats]:
    """The same draws, as many at once as BLOCK allows."""
    held: list[Floats] = []
    for w_BW in weights:
        held.append(w_BW)
        if sum(map(len, held)) * identities >= BLOCK:
            yield np.concatenate(held)
            held = []
    if held:
        yield np.concatenate(held)
