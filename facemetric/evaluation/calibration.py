"""Scores that mean the same everywhere: adaptive s-norm with a cohort, logistic calibration, and what it is worth.

**Adaptive s-norm** (Cumani et al. 2011; Matejka et al. 2017): a score is shifted and scaled by the mean and the
deviation of the K cohort scores that are highest for the one image, and so for the other; the mean of both is taken.

**Calibration** turns a score s into a log likelihood ratio a s + b, by logistic regression with genuine and impostor
pairs weighing the same (Brummer and du Preez 2006). A curve judged on what it was fitted on flatters itself: here no
pair is judged by a curve that saw a pair of one of its people (`calibrate_across_people`), or the curve is that which
the weights keep from their own calibration.

**Figures** (NIST's definitions): Cllr, the cost of the ratios in bits, 0 at best, 1 for ratios that say nothing; min
Cllr, that of the best rising function of the score; minDCF and actDCF at a prior P of genuine pairs, the cost
P (1 - TAR) + (1 - P) FAR divided by min(P, 1 - P), at the best threshold and at the one that the ratios imply.

Shapes: P pairs, N images, C cohort, K top scores, B draws, T thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import expit

from facemetric.errors import DataError
from facemetric.evaluation.curves import MANY_PAIRS, Floats, Ints
from facemetric.evaluation.figures import Figure, Heading
from facemetric.evaluation.intervals.draws import DRAWS, numbered_identities, pair_weights
from facemetric.evaluation.intervals.listed import Ranked
from facemetric.evaluation.intervals.records import Interval, figure_intervals
from facemetric.evaluation.nearest import nearest

if TYPE_CHECKING:
    import torch

FOLDS = 10  # parts of the people
BINS = 4096  # of the scores of many pairs, to fit on
RIDGE = 1e-6  # on the slope of standardized scores: it stays finite where the kinds do not overlap
STEPS = 100  # of Newton's method; a dozen do
PRIORS = (0.01, 0.001)  # of genuine pairs, costs 1 and 1: NIST SRE 2016 and later, NIST SRE 2010
Bools = npt.NDArray[np.bool_]


class CohortStatistics(NamedTuple):
    """Mean and population deviation (N,) of each image's highest scores with the cohort."""

    mean: Floats
    deviation: Floats


def cohort_statistics(
    embeddings: npt.ArrayLike, cohort: npt.ArrayLike, top: int, *, device: torch.device | None = None
) -> CohortStatistics:
    """Of the `top` highest cosines of embeddings (N, D) with those of a cohort (C, D), all C where they are fewer.
    `device` as for `nearest`.

    Raises DataError where an image's highest scores are all alike."""
    count = min(top, len(np.asarray(cohort)))
    score_NK = nearest(embeddings, cohort, count, device=device).score.astype(np.float64)
    found = CohortStatistics(score_NK.mean(1), score_NK.std(1))
    if (found.deviation <= 1e-9).any():
        raise DataError(
            f"the {count} highest scores with the cohort of {(found.deviation <= 1e-9).sum():,} images are all alike; "
            "give a larger cohort, of different people"
        )
    return found


def adaptive_s_norm(score: npt.ArrayLike, one: CohortStatistics, other: CohortStatistics) -> Floats:
    """Scores (P,) normalized by the statistics of both images of each pair (P,)."""
    score_P = np.asarray(score, dtype=np.float64)
    return ((score_P - one.mean) / one.deviation + (score_P - other.mean) / other.deviation) / 2


class Logistic(NamedTuple):
    """The log likelihood ratio of one person to two: `slope` x score + `intercept`, natural logarithm."""

    slope: float
    intercept: float

    def ratios(self, score: npt.ArrayLike) -> Floats:
        """Of scores of any shape."""
        return self.slope * np.asarray(score, dtype=np.float64) + self.intercept


def fit_logistic(score: npt.ArrayLike, genuine: npt.ArrayLike, impostor: npt.ArrayLike) -> Logistic:
    """The curve of least cost: scores (K,) and how many pairs of each kind have them. Raises DataError where a kind is
    missing, or all scores are alike."""
    score_K, g_K, i_K = (np.asarray(x, dtype=np.float64) for x in (score, genuine, impostor))
    total_g, total_i = g_K.sum(), i_K.sum()
    if not total_g or not total_i:
        raise DataError(
            f"{total_g:.0f} genuine and {total_i:.0f} impostor pairs; calibration needs both kinds"
        )
    weight_K = g_K / total_g + i_K / total_i
    centre = float(np.average(score_K, weights=weight_K))
    spread = math.sqrt(float(np.average((score_K - centre) ** 2, weights=weight_K)))
    if not spread:
        raise DataError("all scores are alike; calibration needs scores that differ")
    x_K2 = np.stack([(score_K - centre) / spread, np.ones(len(score_K))], axis=1)

    def cost(at: Floats) -> float:
        z_K = x_K2 @ at
        own = g_K @ np.logaddexp(0, -z_K) / total_g + i_K @ np.logaddexp(0, z_K) / total_i
        return float(own / 2 + RIDGE / 2 * at[0] ** 2)

    at = np.zeros(2)
    for _ in range(STEPS):
        p_K = expit(x_K2 @ at)
        slope_2 = x_K2.T @ (p_K * weight_K - g_K / total_g) / 2 + [RIDGE * at[0], 0]
        bend_22 = (x_K2.T * (p_K * (1 - p_K) * weight_K)) @ x_K2 / 2 + np.diag([RIDGE, 1e-15])
        step = np.linalg.solve(bend_22, slope_2)
        size = 1.0
        while cost(at - size * step) > cost(at) and size > 1e-9:
            size /= 2
        at = at - size * step
        if np.abs(slope_2).max() < 1e-13:
            break
    return Logistic(float(at[0] / spread), float(at[1] - at[0] * centre / spread))


def calibrate_across_people(
    score: npt.ArrayLike,
    same: npt.ArrayLike,
    identities: tuple[npt.ArrayLike, npt.ArrayLike],
    *,
    seed: int = 0,
) -> tuple[Floats, list[Logistic]]:
    """Log likelihood ratios (P,) of scores, `same` and both identities (P,), and the curves that gave them.

    The people are dealt into FOLDS parts. The curve for pairs of people of parts i and j is fitted on the pairs that
    have nobody of i and nobody of j. Beyond MANY_PAIRS it is fitted on counts in BINS bins of the score.
    Raises DataError where people are too few to leave both kinds of pairs.
    """
    score_P, same_P = np.asarray(score, dtype=np.float64), np.asarray(same, dtype=bool)
    (a_P, b_P), number = numbered_identities(identities, same_P)
    folds = min(FOLDS, number // 2)
    if folds < 3:
        raise DataError(f"{number} people; a calibration across people needs 6 or more")
    order = np.random.default_rng(seed).permutation(number)
    part_W = np.empty(number, np.int64)
    part_W[order] = np.arange(number) % folds
    one_P, other_P = np.minimum(part_W[a_P], part_W[b_P]), np.maximum(part_W[a_P], part_W[b_P])
    code_P = one_P * folds + other_P
    training = _training_sets(score_P, same_P, code_P, folds)
    ratio_P, curves = np.empty(len(score_P)), []
    for i, j in combinations_with_replacement(range(folds), 2):
        judged = code_P == i * folds + j
        if judged.any():
            curves.append(fit_logistic(*training(i, j)))
            ratio_P[judged] = curves[-1].ratios(score_P[judged])
    return ratio_P, curves


Training = Callable[[int, int], tuple[Floats, npt.NDArray, npt.NDArray]]


def _training_sets(score_P: Floats, same_P: Bools, code_P: Ints, folds: int) -> Training:
    """What gives scores (K,) and counts of each kind (K,) of the pairs that have nobody of two parts."""

    def free(code: Ints, i: int, j: int) -> Bools:
        return ~(np.isin(code // folds, (i, j)) | np.isin(code % folds, (i, j)))

    if len(score_P) <= MANY_PAIRS:

        def listed(i: int, j: int) -> tuple[Floats, npt.NDArray, npt.NDArray]:
            left = free(code_P, i, j)
            return score_P[left], same_P[left], ~same_P[left]

        return listed
    low, high = float(score_P.min()), float(score_P.max())
    width = max(high - low, 1e-12) / BINS
    bin_P = np.minimum(((score_P - low) / width).astype(np.int64), BINS - 1)
    cell = (code_P * 2 + same_P) * BINS + bin_P
    counts = np.bincount(cell, minlength=folds * folds * 2 * BINS).reshape(folds * folds, 2, BINS)
    middle = low + (np.arange(BINS) + 0.5) * width

    def counted(i: int, j: int) -> tuple[Floats, npt.NDArray, npt.NDArray]:
        impostor, genuine = counts[free(np.arange(folds * folds), i, j)].sum(0)
        return middle, genuine, impostor

    return counted


def cllr(ratio: npt.ArrayLike, same: npt.ArrayLike) -> float:
    """The cost of log likelihood ratios (P,) in bits. Source: Brummer and du Preez 2006, Comput. Speech Lang. 20."""
    same_P = np.asarray(same, dtype=bool)
    cost_P = costs(ratio, same_P)
    return float(cost_P[same_P].mean() + cost_P[~same_P].mean()) / 2


def costs(ratio: npt.ArrayLike, same_P: Bools) -> Floats:
    """The cost in bits (P,) of each pair's ratio."""
    ratio_P = np.asarray(ratio, dtype=np.float64)
    return np.logaddexp(0, np.where(same_P, -ratio_P, ratio_P)) / math.log(2)


class RisingFit:
    """The least Cllr that a rising function of the score reaches, for any weights of the pairs: pool adjacent
    violators, tied scores as one."""

    def __init__(self, score: npt.ArrayLike, same: npt.ArrayLike) -> None:
        score_P, self.same = np.asarray(score, dtype=np.float64), np.asarray(same, dtype=bool)
        self.order = np.argsort(score_P, kind="stable")
        rising = score_P[self.order]
        self.starts = np.concatenate([[0], np.flatnonzero(np.diff(rising)) + 1])

    def cost(self, weight: npt.ArrayLike | None = None) -> float:
        """Of weights (P,), or with all pairs once."""
        from sklearn.isotonic import isotonic_regression  # slow to import

        weight_P = np.ones(len(self.same)) if weight is None else np.asarray(weight, dtype=np.float64)
        genuine_T, impostor_T = (
            np.add.reduceat((weight_P * (self.same == kind))[self.order], self.starts)
            for kind in (True, False)
        )
        genuine_T, impostor_T = genuine_T / genuine_T.sum(), impostor_T / impostor_T.sum()
        both_T = genuine_T + impostor_T
        held = both_T > 0
        share = isotonic_regression(
            genuine_T[held] / both_T[held], sample_weight=both_T[held], y_min=0, y_max=1
        )
        with np.errstate(divide="ignore"):
            bits = -np.log2(np.stack([share, 1 - share]))
        kinds = np.stack([genuine_T[held], impostor_T[held]])
        return float(np.where(kinds > 0, kinds * np.where(kinds > 0, bits, 0), 0).sum() / 2)


class Dcf(NamedTuple):
    """Detection costs at a prior of genuine pairs: at the best threshold, and at the one that the ratios imply."""

    prior: float
    minimum: float
    actual: float


def detection_cost(tar: npt.ArrayLike, far: npt.ArrayLike, prior: float) -> Floats:
    """The normalized cost of operating points, both costs 1: a system that accepts all or nothing has 1."""
    cost = prior * (1 - np.asarray(tar)) + (1 - prior) * np.asarray(far)
    return cost / min(prior, 1 - prior)


@dataclass(frozen=True)
class Calibrated:
    """What calibrated scores are worth.

    `how` says where the curve comes from: "people" (fitted on pairs of other people, in parts) or "stored" (with the
    weights). `scores`: what was calibrated, in words. `slope` and `intercept`: the medians of the curves."""

    how: str
    scores: str
    cllr: float
    min_cllr: float
    costs: tuple[Dcf, ...]
    slope: float
    intercept: float
    curves: int
    intervals: Mapping[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """As in metrics.json."""
        dcf = {f"{each.prior:g}": {"min_dcf": each.minimum, "act_dcf": each.actual} for each in self.costs}
        bounds = {name: {"low": each.low, "high": each.high} for name, each in self.intervals.items()}
        return {
            "how": self.how,
            "scores": self.scores,
            "cllr": self.cllr,
            "min_cllr": self.min_cllr,
            "dcf": dcf,
            "slope": self.slope,
            "intercept": self.intercept,
            "curves": self.curves,
            "intervals_95": bounds,
        }

    def figures(self) -> list[Figure]:
        """Cllr, min Cllr, and both costs at each prior."""
        where = {
            "people": f"{self.curves} curves: none judges a pair of a person that it was fitted on",
            "stored": "by the curve that is stored with the weights",
        }[self.how]
        heading = Heading("Calibrated scores", f"Log likelihood ratios of the {self.scores}, {where}.")
        rows = [
            ("cllr", "Cllr", self.cllr, "cost of the ratios in bits; 0 is best, 1 says nothing"),
            (
                "min_cllr",
                "min Cllr",
                self.min_cllr,
                "of the best rising function of the score, chosen on these pairs",
            ),
        ]
        for each in self.costs:
            about = f"detection cost where {100 * each.prior:g} of 100 pairs are genuine"
            rows.append((f"min_dcf_{each.prior:g}", f"minDCF at P = {each.prior:g}", each.minimum, about))
            rows.append(
                (
                    f"act_dcf_{each.prior:g}",
                    f"actDCF at P = {each.prior:g}",
                    each.actual,
                    "the same at the threshold that the ratios imply",
                )
            )
        return [
            Figure(name, label, value, self.intervals.get(name), heading, about=about, error=True)
            for name, label, value, about in rows
        ]


class _Worth:
    """Figures of ratios for any weights of the pairs."""

    def __init__(self, ratio: Floats, same: Bools) -> None:
        self.same, self.cost = same, costs(ratio, same)
        self.ranked, self.rising = Ranked(ratio, same), RisingFit(ratio, same)
        self.accepted = [ratio >= math.log((1 - prior) / prior) for prior in PRIORS]
        self.names = ["cllr", "min_cllr", *(f"{kind}_dcf_{p:g}" for p in PRIORS for kind in ("min", "act"))]

    def of(self, weight_BP: Floats) -> Floats:
        """(B, figures) in the order of `names`."""
        kinds = [weight_BP * (self.same == kind) for kind in (True, False)]
        kinds = [kind / kind.sum(1, keepdims=True) for kind in kinds]
        tar_BT, far_BT = self.ranked.rates(weight_BP)
        columns = [
            (kinds[0] @ self.cost + kinds[1] @ self.cost) / 2,
            np.array([self.rising.cost(weight_P) for weight_P in weight_BP]),
        ]
        for prior, accepted in zip(PRIORS, self.accepted, strict=True):
            columns.append(detection_cost(tar_BT, far_BT, prior).min(1))
            columns.append(detection_cost(kinds[0] @ accepted, kinds[1] @ accepted, prior))
        return np.stack(columns, axis=1)


def calibrated(
    ratio: npt.ArrayLike,
    same: npt.ArrayLike,
    curves: list[Logistic],
    *,
    how: str,
    scores: str,
    identities: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    seed: int = 0,
) -> Calibrated:
    """The figures of log likelihood ratios (P,), with intervals over people where identities (P,) are given and pairs
    are not beyond MANY_PAIRS."""
    ratio_P, same_P = np.asarray(ratio, dtype=np.float64), np.asarray(same, dtype=bool)
    worth = _Worth(ratio_P, same_P)
    values = dict(zip(worth.names, worth.of(np.ones((1, len(ratio_P))))[0].tolist(), strict=True))
    intervals: Mapping[str, Interval] = {}
    if identities is not None and len(ratio_P) <= MANY_PAIRS:
        drawn = [worth.of(w_BP) for w_BP in pair_weights(ratio_P, same_P, identities, DRAWS, seed)]
        intervals = figure_intervals(values, np.concatenate(drawn))
    return Calibrated(
        how,
        scores,
        values["cllr"],
        values["min_cllr"],
        tuple(Dcf(p, values[f"min_dcf_{p:g}"], values[f"act_dcf_{p:g}"]) for p in PRIORS),
        float(np.median([curve.slope for curve in curves])),
        float(np.median([curve.intercept for curve in curves])),
        len(curves),
        intervals,
    )
