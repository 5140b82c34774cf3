"""The counting core under every verification figure: exact on ties, from sorted scores.

A score is up: higher = more alike. A pair is accepted when `score >= threshold`.
FAR = accepted impostor pairs / impostor pairs; TAR = accepted genuine pairs / genuine pairs.
Shapes: G genuine scores, I impostor scores, U different scores.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.errors import ConfigError, DataError

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]


class Roc(NamedTuple):
    """ROC from (0, 0) to (1, 1): `far`, `tar`, `threshold` (U + 1,), thresholds falling from inf."""

    far: Floats
    tar: Floats
    threshold: Floats


class FarPoint(NamedTuple):
    """What a threshold for one wanted FAR gives.

    `threshold`: the lowest score that may be accepted with `far <= wanted`; inf where nothing may be.
    `supported` is False where there are fewer than 1/wanted impostor pairs: then all figures are NaN.
    """

    wanted: float
    far: float
    tar: float
    threshold: float
    accepted_impostors: int
    supported: bool


def split_scores(score: npt.ArrayLike, same: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Sorted genuine (G,) and impostor (I,) scores. Raises DataError on NaN, bad shapes or a missing kind."""
    score, same = np.asarray(score), np.asarray(same, dtype=bool)
    if score.ndim != 1 or score.shape != same.shape:
        raise DataError(
            f"scores of shape {score.shape} and labels of shape {same.shape}; needed one label a score"
        )
    if score.dtype.kind != "f":
        score = score.astype(np.float64)
    if not np.isfinite(score).all():
        raise DataError(
            f"{(~np.isfinite(score)).sum()} of {len(score)} scores are not finite; embed these images again"
        )
    genuine, impostor = np.sort(score[same]), np.sort(score[~same])
    check_counts(len(genuine), len(impostor))
    return genuine, impostor


def check_counts(n_genuine: int, n_impostor: int) -> None:
    if not n_genuine or not n_impostor:
        raise DataError(f"{n_genuine} genuine and {n_impostor} impostor pairs; verification needs both kinds")


def roc(score: npt.ArrayLike, same: npt.ArrayLike) -> Roc:
    """ROC of scores (P,) against `same` (P,): a point for each different score, as in scikit-learn."""
    return roc_sorted(*split_scores(score, same))


def roc_sorted(genuine: Floats, impostor: Floats) -> Roc:
    """ROC of sorted scores (G,), (I,); every different score is a point."""
    return _roc_at(np.unique(np.concatenate([genuine, impostor]))[::-1], genuine, impostor)


def auc(genuine: Floats, impostor: Floats) -> float:
    """Area under the ROC, 0..1: the chance that a genuine score tops an impostor score, ties counting half.

    Sorted scores (G,), (I,). Source: Mann and Whitney 1947.
    """
    below = np.searchsorted(impostor, genuine).sum(dtype=np.int64)
    not_above = np.searchsorted(impostor, genuine, side="right").sum(dtype=np.int64)
    return float((below + not_above) / 2 / len(genuine) / len(impostor))


def eer(genuine: Floats, impostor: Floats) -> tuple[float, float]:
    """Equal error rate, 0..1, and the threshold nearest to it, from sorted scores (G,), (I,).

    Where the ROC, its points joined by straight lines, crosses FAR = 1 - TAR. Tied scores make one slanted
    line, so the figure is the expectation of breaking their ties at random.
    """

    def excess(threshold: float) -> tuple[float, float]:
        accepted = (len(impostor) - np.searchsorted(impostor, threshold)) / len(impostor)
        rejected = np.searchsorted(genuine, threshold) / len(genuine)
        return float(accepted), float(rejected)

    # FAR - FRR falls as the threshold rises: bisect each kind for its highest score where FAR >= FRR.
    crossing = -np.inf
    for scores in (genuine, impostor):
        low, high = 0, len(scores)
        while low < high:
            middle = (low + high) // 2
            far, frr = excess(scores[middle])
            low, high = (middle + 1, high) if far >= frr else (low, middle)
        if low:
            crossing = max(crossing, float(scores[low - 1]))
    above = [
        float(s[k]) for s in (genuine, impostor) if (k := np.searchsorted(s, crossing, side="right")) < len(s)
    ]
    far_1, frr_1 = excess(crossing)
    far_0, frr_0 = excess(min(above)) if above else (0.0, 1.0)
    gap_0, gap_1 = frr_0 - far_0, far_1 - frr_1
    part = gap_0 / (gap_0 + gap_1)
    return far_0 + part * (far_1 - far_0), crossing


def allowed_errors(far: float, n_impostor: int) -> int:
    """The most impostor pairs k with k / n_impostor <= far, as that division rounds."""
    k = int(far * n_impostor)
    while k < n_impostor and (k + 1) / n_impostor <= far:
        k += 1
    while k / n_impostor > far:
        k -= 1
    return k


def tar_at_far(genuine: Floats, impostor: Floats, far: float, n_impostor: int | None = None) -> FarPoint:
    """TAR at the lowest threshold whose FAR is at most `far` (0..1), from sorted scores (G,), (I,).

    `impostor` may be only the upper tail of `n_impostor` scores, long enough for `far`. Never interpolated.
    """
    if not 0 < far <= 1:
        raise ConfigError(f"a FAR of {far}; needed a share above 0, at most 1, such as 1e-3")
    total = len(impostor) if n_impostor is None else n_impostor
    allowed = allowed_errors(far, total)
    if allowed == 0:
        return FarPoint(far, float("nan"), float("nan"), float("nan"), 0, False)
    if allowed >= total:
        lowest = min(float(genuine[0]), float(impostor[0]))
        return FarPoint(far, 1.0, 1.0, lowest, total, True)
    refused = impostor[
        len(impostor) - allowed - 1
    ]  # the best impostor that must stay outside, with all its ties
    first_g = int(np.searchsorted(genuine, refused, side="right"))
    first_i = int(np.searchsorted(impostor, refused, side="right"))
    candidates = [float(genuine[first_g])] if first_g < len(genuine) else []
    candidates += [float(impostor[first_i])] if first_i < len(impostor) else []
    accepted = len(impostor) - first_i
    return FarPoint(
        far,
        accepted / total,
        (len(genuine) - first_g) / len(genuine),
        min(candidates, default=float("inf")),
        accepted,
        True,
    )


def roc_thinned(genuine: Floats, impostor: Floats, points: int = 1000) -> Roc:
    """ROC for drawing and csv: about 2 x `points` thresholds, evenly spread over log FAR and over TAR.

    Every point is exact; only points are left out. Sorted scores (G,), (I,).
    """
    ranks = np.unique(np.geomspace(1, len(impostor), points).astype(np.int64))
    from_impostor = impostor[len(impostor) - ranks]
    from_genuine = genuine[np.unique(np.linspace(0, len(genuine) - 1, points).astype(np.int64))]
    return _roc_at(np.unique(np.concatenate([from_impostor, from_genuine]))[::-1], genuine, impostor)


def _roc_at(threshold: Floats, genuine: Floats, impostor: Floats) -> Roc:
    tar = (len(genuine) - np.searchsorted(genuine, threshold)) / len(genuine)
    far = (len(impostor) - np.searchsorted(impostor, threshold)) / len(impostor)
    return Roc(
        *(
            np.concatenate([[first], column])
            for first, column in ((0.0, far), (0.0, tar), (np.inf, threshold))
        )
    )
