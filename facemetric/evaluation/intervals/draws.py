"""Bootstrap weights over identities: the draws that every interval is made of.

Shapes: P pairs, W identities, B draws, N images, K figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from facemetric.errors import ConfigError, DataError
from facemetric.evaluation.curves import Floats, Ints
from facemetric.evaluation.folds import below_each, fold_accuracy
from facemetric.machine import progress_bar

DRAWS_PER_PASS = 16  # draws at once: 16 x 6,000 pairs of float64 stay in a core's cache
DRAWS = 1000
PER_CHUNK = 64  # draws in memory at once, of few pairs: 64 x 6,000 pairs of float64 are 3 MiB
# Bytes of their weights at once, of many pairs; what is made of these takes some ten times as much.
BUDGET = 16 << 20
# Which impostor pairs are watched to see how strongly pairs of one person move together: the best tenth.
WATCHED_FAR = 0.1


class FoldDraws:
    """Mean accuracy over folds of scores, `same` and `fold` (P,), for weighted pairs. `value`: with equal weights."""

    def __init__(self, score: npt.ArrayLike, same: npt.ArrayLike, fold: npt.ArrayLike) -> None:
        self.value = fold_accuracy(score, same, fold).mean
        score_P = np.asarray(score)
        self.order = np.argsort(-score_P, kind="stable")
        self.same = np.asarray(same, dtype=bool)[self.order]
        fold_P = np.asarray(fold)[self.order]
        self.folds = [fold_P == name for name in np.unique(fold_P)]
        self.ends = np.append(np.flatnonzero(np.diff(score_P[self.order])), len(score_P) - 1)
        self.reached = [self._reached(score_P[self.order].astype(np.float64), ~test) for test in self.folds]

    def _reached(self, score_P: Floats, others: npt.NDArray[np.bool_]) -> Ints:
        """For each different score (T,), falling, the last one that is accepted where the other folds' lowest
        accepted score is this one."""
        value_T = score_P[self.ends]
        seen = np.isin(value_T, score_P[others])
        last_T = np.arange(len(value_T))
        last_T[seen] = np.searchsorted(-value_T, -below_each(value_T[seen]), side="right") - 1
        return last_T

    def weighted(self, weight_BP: Floats) -> Floats:
        """The accuracy (B, 1) of each draw of weights; both kinds keep their share, as a protocol does."""
        parts = range(0, len(weight_BP), DRAWS_PER_PASS)
        return np.concatenate(
            [self._weighted(weight_BP[at : at + DRAWS_PER_PASS, self.order]) for at in parts]
        )

    def _weighted(self, weight_BP: Floats) -> Floats:
        for kind in (self.same, ~self.same):
            weight_BP[:, kind] *= kind.sum() / weight_BP[:, kind].sum(1, keepdims=True)
        # Accepting one pair more wins its weight where it is genuine, and loses it where it is not.
        gain_BP = weight_BP * np.where(self.same, 1, -1)
        won_BT = self._won(gain_BP)
        draw_B = np.arange(len(weight_BP))
        accuracy_B = np.zeros(len(weight_BP))
        for test, reached_T in zip(self.folds, self.reached, strict=True):
            others_BT = self._won(gain_BP * ~test)
            cut_B = others_BT.argmax(1)
            none_B = others_BT[draw_B, cut_B] <= 0  # accepting nothing wins more
            last_B = reached_T[cut_B]
            right_B = np.where(none_B, 0, won_BT[draw_B, last_B] - others_BT[draw_B, last_B])
            right_B += weight_BP[:, test & ~self.same].sum(1)
            accuracy_B += right_B / weight_BP[:, test].sum(1)
        return accuracy_B[:, None] / len(self.folds)

    def _won(self, gain_BP: Floats) -> Floats:
        """Sums (B, T) down to each different score."""
        won_BP = np.cumsum(gain_BP, axis=1)
        return won_BP if len(self.ends) == won_BP.shape[1] else won_BP[:, self.ends]


def centred(draws_B1: Floats, value: float) -> Floats:
    """Draws (B, 1) moved so that their mean is the figure. The figure was measured at thresholds chosen on other
    folds; a draw chooses them again, on repeated people, and so is a little lower in the mean."""
    return draws_B1 + (value - draws_B1.mean())


def need_draws(identities: int, draws: int) -> None:
    """Raises ConfigError where so few make no interval."""
    if identities < 2 or draws < 100:
        raise ConfigError(
            f"{draws} draws of {identities} people; an interval needs 100 draws and two people or more"
        )


def person_weights(n: int, draws: int, seed: int, *, pairs: int = 0) -> Iterator[Floats]:
    """Weights (B, W) of n identities, mean 1, a chunk of the draws at a time: so few that the weights of `pairs`
    fit in BUDGET. The draws of a seed are the same in chunks of any size."""
    need_draws(n, draws)
    rng = np.random.default_rng(seed)
    size = max(1, min(PER_CHUNK, BUDGET // (8 * max(pairs, 1))))
    with progress_bar(total=draws, desc="intervals", unit="draw") as bar:
        for at in range(0, draws, size):
            w_BW = rng.standard_exponential((min(size, draws - at), n))
            yield w_BW / w_BW.mean(1, keepdims=True)
            bar.update(len(w_BW))


def pair_weights(
    score: npt.ArrayLike,
    same: npt.ArrayLike,
    identities: tuple[npt.ArrayLike, npt.ArrayLike],
    draws: int,
    seed: int,
) -> Iterator[Floats]:
    """Weights (B, P) of listed pairs as `verification_intervals` says, a chunk of draws at a time."""
    score_P, same_P = np.asarray(score), np.asarray(same, dtype=bool)
    (a_P, b_P), n = numbered_identities(identities, same_P)
    scale = _scale(score_P[~same_P], a_P[~same_P], b_P[~same_P], n)
    for w_BW in person_weights(n, draws, seed, pairs=len(same_P)):
        u_BW = 1 + scale * (w_BW - 1)
        yield np.where(same_P, w_BW[:, a_P], u_BW[:, a_P] * u_BW[:, b_P])


def numbered_identities(
    identities: tuple[npt.ArrayLike, npt.ArrayLike], same_P: npt.NDArray[np.bool_]
) -> tuple[tuple[Ints, Ints], int]:
    """Both identities (P,) of listed pairs as numbers from 0, and how many identities there are.

    Raises DataError where they do not fit `same`."""
    both = [np.asarray(p) for p in identities]
    if any(p.shape != same_P.shape for p in both):
        raise DataError(
            f"identities of shapes {[p.shape for p in both]}; {len(same_P)} pairs need both of each"
        )
    a_P, b_P, number = _renumbered(*both)
    wrong = (a_P == b_P) != same_P
    if wrong.any():
        raise DataError(
            f"{wrong.sum()} of {len(same_P)} pairs (first: {wrong.argmax() + 1}) contradict their identities: "
            "give the identities of the pairs, or `identities_of_pairs`"
        )
    return (a_P, b_P), number


def _renumbered(one: npt.NDArray, other: npt.NDArray) -> tuple[Ints, Ints, int]:
    """Both columns (P,) as numbers from 0 in the order of the sorted values, and how many these are."""
    least, most = min(one.min(initial=0), other.min(initial=0)) if one.dtype.kind in "iu" else -1, 0
    if least >= 0 and (most := int(max(one.max(), other.max()))) < 2 * len(one) + 1000:
        present = np.zeros(most + 1, bool)
        present[one] = present[other] = True
        if present.all():
            return one, other, len(present)
        number = np.cumsum(present, dtype=np.int32) - 1  # without sorting: pairs may be many millions
        return number[one], number[other], int(present.sum())
    identities = np.unique(np.concatenate([one, other]), return_inverse=True)[1]
    return identities[: len(one)], identities[len(one) :], int(identities.max()) + 1


def _scale(score: Floats, a: Ints, b: Ints, n: int) -> float:
    """s of `verification_intervals`, from the impostor pairs: scores and identities (I,)."""
    accepted = score >= np.quantile(score, 1 - WATCHED_FAR)
    error = accepted - accepted.mean()
    alone = float((error**2).sum())
    by_person = np.bincount(a, error, n) + np.bincount(b, error, n)
    return dyad_scale(alone, float((by_person**2).sum()))


def dyad_scale(alone: float, by_person: float) -> float:
    """s of `verification_intervals`, from the errors of all pairs of people: their sum of squares, and that
    of each person's sum. The variance robust to shared people is by_person - alone."""
    if alone <= 0:
        return 1.0
    shared = max(0.0, by_person - 2 * alone)
    # Weights of variance v give (2 v + v^2) alone + v shared; wanted is alone + shared.
    half = alone + shared / 2
    v = (math.sqrt(half * half + alone * (alone + shared)) - half) / alone
    return math.sqrt(v)


def mean_draws(values: npt.ArrayLike, person: npt.ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> Floats:
    """Means (B, K) of the values (N, K) of images, with the identities (N,) resampled.

    They are drawn with replacement, whole numbers of times: weights that are never 0, as those of
    `person_weights`, would leave a difference of two models that comes from a single image on one side of 0 in
    every draw.
    """
    value_NK = np.asarray(values, dtype=np.float64)
    identity_N = np.unique(np.asarray(person), return_inverse=True)[1]
    if value_NK.shape[:-1] != identity_N.shape or not value_NK.size:
        raise DataError(
            f"values of shape {value_NK.shape[:-1]} and identities of shape {identity_N.shape}; needed one for one"
        )
    count_W1 = np.bincount(identity_N)[:, None]
    sum_WK = np.stack([np.bincount(identity_N, weights=column) for column in value_NK.T], axis=1)
    rng, identities = np.random.default_rng(seed), len(count_W1)
    need_draws(identities, draws)
    total = np.hstack([sum_WK, count_W1])
    drawn = np.empty((draws, total.shape[1]))
    for row in drawn:  # one draw at a time: many people in all draws at once would need gigabytes
        row[:] = np.bincount(rng.integers(identities, size=identities), minlength=identities) @ total
    return drawn[:, :-1] / drawn[:, -1:]


def identities_of_pairs(
    rows_a: npt.ArrayLike, rows_b: npt.ArrayLike, same: npt.ArrayLike
) -> tuple[Ints, Ints]:
    """Identities (P,), (P,) of pairs of images (P,) that nothing names: images linked by genuine pairs are one.

    People whose images are not linked count as several: name them if you can.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a, b, same_P = np.asarray(rows_a), np.asarray(rows_b), np.asarray(same, dtype=bool)
    n = int(max(a.max(), b.max())) + 1
    links = coo_array((np.ones(int(same_P.sum()), dtype=np.int8), (a[same_P], b[same_P])), shape=(n, n))
    person = connected_components(links, directed=False)[1].astype(np.int64)
    return person[a], person[b]
