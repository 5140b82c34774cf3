"""Intervals of verification over all pairs: people drawn anew, without listing a pair.

Every figure is read off FAR and TAR at some hundred thresholds. Person p has weight w_p in a draw. A genuine
pair counts w_p. The FAR is a sum over pairs of persons; its first-order part (Hoeffding 1948) gives
    FAR(t) + s(t) sum_p (w_p - 1) e_p(t) / pairs,    e_p(t) = accepted pairs of p - FAR(t) x pairs of p,
and s(t) sets the variance to the one that is robust to shared persons (Aronow, Samii and Assenova 2015): the
sum of e_p ** 2 holds the error of each pair of persons twice, `PersonCounts.alone` once too often.
Shapes: W persons, B draws, T thresholds, K wanted FARs.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from facemetric.errors import DataError
from facemetric.evaluation.curves import Floats
from facemetric.evaluation.intervals.draws import DRAWS, person_weights
from facemetric.evaluation.intervals.listed import (
    Band,
    Bounds,
    Interval,
    band_fars,
    figure_intervals,
    quantiles,
    tar_name,
)
from facemetric.evaluation.person_counts import PersonCounts, count_by_person, curve_thresholds
from facemetric.evaluation.verification import Verification


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
