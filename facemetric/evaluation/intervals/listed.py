"""Intervals: how far the figures would move with other people in front of the camera.

Persons are drawn anew, not pairs: pairs that share a person rise and fall together.
Shapes: P pairs, W persons, B draws, T thresholds (one for each different score).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from facemetric.evaluation.curves import FarPoint, Floats, auc, eer, split_scores, tar_at_far
from facemetric.evaluation.figures import tar_name
from facemetric.evaluation.intervals.draws import DRAWS, FoldDraws, centred, pair_weights
from facemetric.evaluation.intervals.records import (
    Band,
    Bounds,
    Interval,
    figure_intervals,
    quantiles,
)
from facemetric.evaluation.verification import FARS


def verification_intervals(
    score: npt.ArrayLike,
    same: npt.ArrayLike,
    persons: tuple[npt.ArrayLike, npt.ArrayLike],
    *,
    fars: Sequence[float] = FARS,
    fold: npt.ArrayLike | None = None,
    draws: int = DRAWS,
    level: float = 0.95,
    seed: int = 0,
) -> Bounds:
    """Intervals of the figures of listed pairs: scores, `same` and both persons (P,).

    A Bayesian bootstrap over persons (Rubin 1981): person i gets a weight w_i, a genuine pair w_i, an
    impostor pair u_i u_j with u = 1 + s (w - 1). Plain products (s = 1) give an impostor pair of two people
    seen once three times its variance; s is chosen so that the variance of the FAR is the one robust to
    shared persons (Aronow, Samii and Assenova 2015). A FAR that the pairs do not support has no interval.
    With `fold` (P,) also `accuracy`, the mean over folds, whose thresholds each draw chooses again.
    """
    figures = _Figures(score, same, fars)
    folds = [FoldDraws(score, same, fold)] if fold is not None else []
    weights = pair_weights(score, same, persons, draws, seed)
    drawn = [np.concatenate([*(f.weighted(w) for f in folds), figures.weighted(w)], 1) for w in weights]
    draws_BF, values = np.concatenate(drawn), figures.values()
    for accuracy in folds:
        draws_BF[:, :1] = centred(draws_BF[:, :1], accuracy.value)
        values = {"accuracy": accuracy.value} | values
    low, high = quantiles(draws_BF[:, len(values) :], level)
    band = Band(figures.band_fars, figures.band_tar(), low, high)
    return Bounds(figure_intervals(values, draws_BF[:, : len(values)], level), band)


def band_fars(n_impostor: int) -> Floats:
    """Eight FARs a decade, rising, from the lowest that so many impostor pairs support up to 1."""
    steps = np.arange(math.ceil(-8 * math.log10(n_impostor)), 0)
    return np.unique([1 / n_impostor, *10 ** (steps / 8), 1.0])


def paired_differences(
    scores: tuple[npt.ArrayLike, npt.ArrayLike],
    same: npt.ArrayLike,
    persons: tuple[npt.ArrayLike, npt.ArrayLike],
    *,
    fars: Sequence[float] = FARS,
    fold: npt.ArrayLike | None = None,
    draws: int = DRAWS,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Second model minus first on the same pairs (P,): the same persons are drawn for both.

    An interval that leaves out 0 tells the models apart. Otherwise as `verification_intervals`.
    """
    first, second = (_Figures(score, same, fars) for score in scores)
    # One factor s for both, from the first, so that both see the same weights.
    folds = [[FoldDraws(score, same, fold) for score in scores]] if fold is not None else []
    drawn = [
        np.concatenate(
            [*(b.weighted(w) - a.weighted(w) for a, b in folds), second.weighted(w) - first.weighted(w)], 1
        )
        for w in pair_weights(scores[0], same, persons, draws, seed)
    ]
    draws_BF = np.concatenate(drawn)
    values = {name: value - first.values()[name] for name, value in second.values().items()}
    for a, b in folds:
        draws_BF[:, :1] = centred(draws_BF[:, :1], b.value - a.value)
        values = {"accuracy": b.value - a.value} | values
    return figure_intervals(values, draws_BF[:, : len(values)], level)


class Ranked:
    """Scores sorted once, so that each draw of weights is two cumulative sums: scores and `same` (P,)."""

    def __init__(self, score: npt.ArrayLike, same: npt.ArrayLike) -> None:
        score_P, same_P = np.asarray(score), np.asarray(same, dtype=bool)
        order = np.argsort(-score_P, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(score_P[order])), len(order) - 1)
        # Where each kind stands after each different score; -1 before the first of a kind.
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
        points = [tar_at_far(self.genuine, self.impostor, far) for far in fars]
        self.points: list[FarPoint] = [p for p in points if p.supported]
        self.band_fars = band_fars(self.impostor.total)
        self.ranked = Ranked(score, same)

    def values(self) -> dict[str, float]:
        named = {"auc": auc(self.genuine, self.impostor), "eer": eer(self.genuine, self.impostor)[0]}
        return named | {tar_name(p.wanted): p.tar for p in self.points}

    def band_tar(self) -> Floats:
        return np.array([tar_at_far(self.genuine, self.impostor, far).tar for far in self.band_fars])

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
