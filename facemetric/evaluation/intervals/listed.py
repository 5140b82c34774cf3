"""Confidence intervals of listed pairs, by resampling identities.

Identities are resampled, not pairs: pairs that share a person rise and fall together. Up to MANY_PAIRS pairs each draw
weights every pair; beyond, it weights the counts of each person (`counts.py`).
Shapes: P pairs, W identities, B draws, T thresholds (one for each different score).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.evaluation.curves import (
    CURVE_POINTS,
    MANY_PAIRS,
    Floats,
    OperatingPoint,
    auc,
    eer,
    roc,
    split_scores,
    tar_at_far,
)
from facemetric.evaluation.figures import tar_name
from facemetric.evaluation.folds import fold_accuracy
from facemetric.evaluation.intervals.counts import (
    CountedFigures,
    CountedFolds,
    ListedCells,
    Measured,
    band_fars,
    thinned,
    thresholds_at,
    watched_fars,
)
from facemetric.evaluation.intervals.draws import DRAWS, FoldDraws, centred, numbered_identities, pair_weights
from facemetric.evaluation.intervals.records import (
    Band,
    Bounds,
    Interval,
    effective_people,
    figure_intervals,
    quantiles,
    widened,
)
from facemetric.evaluation.verification import FARS

Identities = tuple[npt.ArrayLike, npt.ArrayLike]


def verification_intervals(
    score: npt.ArrayLike,
    same: npt.ArrayLike,
    identities: Identities,
    *,
    fars: Sequence[float] = FARS,
    fold: npt.ArrayLike | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Bounds:
    """Intervals of the figures of listed pairs: scores, `same` and both identities (P,).

    A Bayesian bootstrap over people (Rubin 1981): person i gets a weight w_i, a genuine pair w_i, an
    impostor pair u_i u_j with u = 1 + s (w - 1). Plain products (s = 1) give an impostor pair of two people
    seen once three times its variance; s is chosen so that the variance of the FAR is the one robust to
    shared people (Aronow, Samii and Assenova 2015). A FAR that the pairs do not support has no interval.
    With `fold` (P,) also `accuracy`, the mean over folds, whose thresholds each draw chooses again.
    Figures with few errors, or none, have an interval no narrower than that of as many independent pairs as know the
    same (`records.widened`).
    """
    figures = _Figures(score, same, fars)
    both, number = numbered_identities(identities, figures.same)
    if len(figures.same) > MANY_PAIRS:
        drawn = _count(figures, both, fold, draws, seed)
    else:
        drawn = _weigh(figures, both, fold, draws, seed)
    values = figures.values()
    low, high = quantiles(drawn.figures_BF[:, len(values) :])
    found = figure_intervals(values, drawn.figures_BF[:, : len(values)])
    if fold is not None:
        accuracy = fold_accuracy(score, same, fold).mean
        around_B1 = centred(drawn.accuracy_B1, accuracy).clip(0, 1)
        found = figure_intervals({"accuracy": accuracy}, around_B1) | found
    band = Band(figures.band_fars, figures.band_tar(), low, high)
    people = effective_people(np.bincount(both[0][figures.same], minlength=number))
    return widened(found, band, figures.genuine.total, figures.impostor.total, people)


def paired_differences(
    scores: tuple[npt.ArrayLike, npt.ArrayLike],
    same: npt.ArrayLike,
    identities: Identities,
    *,
    fars: Sequence[float] = FARS,
    fold: npt.ArrayLike | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Interval]:
    """Second model minus first on the same pairs (P,): the same people are drawn for both.

    An interval that leaves out 0 tells the models apart. Otherwise as `verification_intervals`.
    """
    first, second = (_Figures(score, same, fars) for score in scores)
    if len(first.same) > MANY_PAIRS:
        one, other = (_count(figures, identities, fold, draws, seed) for figures in (first, second))
    else:
        one, other = _weigh_both(first, second, identities, fold, draws, seed)
    before = first.values()
    values = {name: value - before[name] for name, value in second.values().items()}
    found = figure_intervals(values, (other.figures_BF - one.figures_BF)[:, : len(values)])
    if fold is None:
        return found
    means = [fold_accuracy(score, same, fold).mean for score in scores]
    value = means[1] - means[0]
    around_B1 = centred(other.accuracy_B1 - one.accuracy_B1, value).clip(-1, 1)
    return figure_intervals({"accuracy": value}, around_B1) | found


class _Drawn(NamedTuple):
    """Draws of the figures and of the TAR of the band (B, figures + K), and of the accuracy (B, 1), not centred."""

    figures_BF: Floats
    accuracy_B1: Floats


def _weigh(
    figures: _Figures, identities: Identities, fold: npt.ArrayLike | None, draws: int, seed: int
) -> _Drawn:
    """Draws that weight every pair."""
    return _weigh_both(figures, None, identities, fold, draws, seed)[0]


def _weigh_both(
    first: _Figures,
    second: _Figures | None,
    identities: Identities,
    fold: npt.ArrayLike | None,
    draws: int,
    seed: int,
) -> list[_Drawn]:
    """The same draws for two models (or one): one factor s for both, from the first, so that both see the same
    weights."""
    models = [first] if second is None else [first, second]
    folds = [FoldDraws(m.score, m.same, fold) if fold is not None else None for m in models]
    parts: list[tuple[list[Floats], list[Floats]]] = [([], []) for _ in models]
    for w_BP in pair_weights(first.score, first.same, identities, draws, seed):
        for model, of_folds, (drawn, accuracy) in zip(models, folds, parts, strict=True):
            drawn.append(model.weighted(w_BP))
            accuracy.append(of_folds.weighted(w_BP) if of_folds is not None else np.zeros((len(w_BP), 0)))
    return [_Drawn(np.concatenate(drawn), np.concatenate(accuracy)) for drawn, accuracy in parts]


def _count(
    figures: _Figures, identities: Identities, fold: npt.ArrayLike | None, draws: int, seed: int
) -> _Drawn:
    """Draws that weight the counts of each person at some thresholds."""
    both, number = numbered_identities(identities, figures.same)
    curve = roc(figures.genuine, figures.impostor, CURVE_POINTS)
    threshold_T = thinned(thresholds_at(curve, watched_fars(curve, figures.impostor.total)), number)
    cells = ListedCells(figures.score, figures.same, both, number, threshold_T)
    measured = Measured(
        figures.values(), np.array([p.wanted for p in figures.points]), figures.band_fars, figures.band_tar()
    )
    counted = CountedFigures(measured, cells.counts())
    accuracy_B1: Floats = np.zeros((draws, 0))
    if fold is not None:
        accuracy_B1 = CountedFolds(cells, fold, counted.rates).draws(draws, seed)
    return _Drawn(counted.draws(draws, seed), accuracy_B1)


class Ranked:
    """Scores sorted once, so that each draw of weights is two cumulative sums: scores and `same` (P,)."""

    def __init__(self, score: npt.ArrayLike, same: npt.ArrayLike) -> None:
        score_P, same_P = np.asarray(score), np.asarray(same, dtype=bool)
        order = np.argsort(-score_P, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(score_P[order])), len(order) - 1)
        # How many of each kind there are down to each different score.
        self.rows = [order[same_P[order] == kind] for kind in (True, False)]
        self.ends = [np.cumsum(same_P[order] == kind)[ends] for kind in (True, False)]

    def rates(self, weight_BP: Floats) -> tuple[Floats, Floats]:
        """TAR and FAR (B, T + 1) with weighted pairs, at thresholds that fall: from 0 to 1."""
        return self._share(weight_BP, 0), self._share(weight_BP, 1)

    def _share(self, weight_BP: Floats, kind: int) -> Floats:
        sum_BK = np.cumsum(weight_BP[:, self.rows[kind]], axis=1)
        sum_BK = np.concatenate([np.zeros((len(sum_BK), 1)), sum_BK / sum_BK[:, -1:]], axis=1)
        share_BT = sum_BK[:, np.concatenate([[0], self.ends[kind]])]
        share_BT[:, -1] = 1
        return share_BT


def tar_at(tar_BT: Floats, far_BT: Floats, wanted_K: npt.ArrayLike) -> Floats:
    """The TAR (B, K) at each FAR (K,), of rates at thresholds that fall."""
    # Rounding of the sums must not push a full step over the line.
    wanted = np.asarray(wanted_K) * (1 + 1e-9)
    last_BK = np.stack([np.searchsorted(far_T, wanted, side="right") - 1 for far_T in far_BT])
    return np.take_along_axis(tar_BT, last_BK, 1)


class _Figures:
    """The figures of listed pairs, with every pair once or with weights."""

    def __init__(self, score: npt.ArrayLike, same: npt.ArrayLike, fars: Sequence[float]) -> None:
        self.genuine, self.impostor = split_scores(score, same)
        self.score, self.same = np.asarray(score), np.asarray(same, dtype=bool)
        points = [tar_at_far(self.genuine, self.impostor, far) for far in fars]
        self.points: list[OperatingPoint] = [p for p in points if p.supported]
        self.band_fars = band_fars(self.impostor.total)

    @cached_property
    def ranked(self) -> Ranked:
        return Ranked(self.score, self.same)

    def values(self) -> dict[str, float]:
        named = {"auc": auc(self.genuine, self.impostor), "eer": eer(self.genuine, self.impostor)[0]}
        return named | {tar_name(p.wanted): p.true_rate for p in self.points}

    def band_tar(self) -> Floats:
        return np.array([tar_at_far(self.genuine, self.impostor, far).true_rate for far in self.band_fars])

    def weighted(self, weight_BP: Floats) -> Floats:
        """The same figures with weighted pairs, then the TAR at the FARs of the band: (B, figures + K)."""
        tar_BT, far_BT = self.ranked.rates(weight_BP)
        step_BT = np.diff(far_BT, axis=1)
        columns = [(step_BT * (tar_BT[:, 1:] + tar_BT[:, :-1]) / 2).sum(1)]
        draw_B = np.arange(len(weight_BP))
        excess_BT = far_BT + tar_BT - 1
        after_B = (excess_BT >= 0).argmax(1)
        gap_0, gap_1 = -excess_BT[draw_B, after_B - 1], excess_BT[draw_B, after_B]
        columns.append(far_BT[draw_B, after_B - 1] + step_BT[draw_B, after_B - 1] * gap_0 / (gap_0 + gap_1))
        wanted = [*(p.wanted for p in self.points), *self.band_fars]
        return np.concatenate([np.stack(columns, 1), tar_at(tar_BT, far_BT, wanted)], axis=1)
