"""The counting core under every verification figure: exact on ties.

A score is up: higher = more alike. A pair is accepted when `score >= threshold`.
FAR = accepted impostor pairs / impostor pairs; TAR = accepted genuine pairs / genuine pairs.
Shapes: G genuine scores, I impostor scores, E edges of the grid, T thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.errors import ConfigError, DataError

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]
CHUNK = 1 << 20  # scores looked up at once
HISTOGRAM_BINS = 256
MANY_PAIRS = 20_000  # listed pairs, beyond which a curve is thinned and draws weight counts, not pairs
EER_STEP = 1000  # of that many scores one is looked at first
CURVE_POINTS = 1000  # of a thinned curve, about a third of them


class Roc(NamedTuple):
    """ROC from (0, 0) to (1, 1): `far`, `tar`, `threshold` (T + 1,), thresholds falling from inf."""

    far: Floats
    tar: Floats
    threshold: Floats


class Histogram(NamedTuple):
    """Exact counts of scores: bin i holds `edge[i] <= score < edge[i + 1]`, edges (H + 1,), counts int64 (H,).

    The first and the last bin also hold what lies beyond them.
    """

    edge: Floats
    genuine: Ints
    impostor: Ints


class OperatingPoint(NamedTuple):
    """What a threshold for one wanted false rate gives: FAR and TAR of pairs, FPIR and TPIR of a search.

    `threshold`: the lowest score that may be accepted with `false_rate <= wanted`; inf where nothing may be.
    `supported` is False where there are fewer than 1/wanted impostor pairs: then all figures are NaN.
    """

    wanted: float
    false_rate: float
    true_rate: float
    threshold: float
    accepted_impostors: int
    supported: bool


@dataclass(frozen=True)
class Scores:
    """All scores of one kind: every one of the highest, `kept`, and counts on a grid below them.

    `kept` sorted. `at_edge[e]` scores are >= `edge[e]`, edges rising, the first one below every score; all
    scores >= `exact_from`, one of the edges or -inf, are kept. Listed scores need no grid.
    """

    total: int
    kept: Floats
    exact_from: float = -np.inf
    edge: Floats = field(default_factory=lambda: np.empty(0))
    at_edge: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    @classmethod
    def listed(cls, scores: Floats) -> Scores:
        """Scores (G,) or (I,) that are all at hand, in any order."""
        return cls(len(scores), np.sort(scores))

    def place(self, threshold: float) -> int:
        """Where scores >= threshold start in `kept`."""
        # The haystack decides the type: a float64 needle would copy millions of float32 scores.
        return int(np.searchsorted(self.kept, self.kept.dtype.type(threshold)))

    def at_least(self, threshold: Floats) -> Ints:
        """Number of scores >= each threshold (T,), which must be an edge where it is below `exact_from`."""
        count = len(self.kept) - np.searchsorted(self.kept, threshold.astype(self.kept.dtype))
        below = threshold < self.exact_from
        if below.any():
            count[below] = self.at_edge[np.searchsorted(self.edge, threshold[below])]
        return count


def split_scores(score: npt.ArrayLike, same: npt.ArrayLike) -> tuple[Scores, Scores]:
    """Genuine and impostor scores of listed pairs (P,). Raises DataError on NaN or a missing kind."""
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
    check_counts(int(same.sum()), int((~same).sum()))
    return Scores.listed(score[same]), Scores.listed(score[~same])


def check_counts(n_genuine: int, n_impostor: int) -> None:
    if not n_genuine or not n_impostor:
        raise DataError(f"{n_genuine} genuine and {n_impostor} impostor pairs; verification needs both kinds")


def histogram(genuine: Scores, impostor: Scores) -> Histogram:
    """Counts of cosine similarities in 256 bins from -1 to 1."""
    edge = np.linspace(-1, 1, HISTOGRAM_BINS + 1)  # multiples of 2^-7, so edges of every tally's grid
    counts = []
    for scores in (genuine, impostor):
        above = np.concatenate([[scores.total], scores.at_least(edge[1:-1]), [0]])
        counts.append(-np.diff(above))
    return Histogram(edge, *counts)


def _exact_from(genuine: Scores, impostor: Scores) -> tuple[float, Floats]:
    """From which score up both kinds are exact, and the edges up to there, that one included."""
    start = max(genuine.exact_from, impostor.exact_from)
    return start, genuine.edge[genuine.edge <= start]


def roc(genuine: Scores, impostor: Scores, points: int | None = None) -> Roc:
    """The ROC, a point for each different score as in scikit-learn, or about 3 x `points` of these.

    The points that are left in are spread evenly over log FAR, over TAR and over the grid; each is exact.
    """
    start, edge = _exact_from(genuine, impostor)
    some_g, some_i = (s.kept[s.place(start) :] for s in (genuine, impostor))
    if points is not None:
        if len(some_i):
            some_i = some_i[-np.unique(np.geomspace(1, len(some_i), points).astype(np.int64))]
        if len(some_g):
            some_g = some_g[np.unique(np.linspace(0, len(some_g) - 1, points).astype(np.int64))]
        used = np.flatnonzero(np.diff(genuine.at_least(edge) + impostor.at_least(edge)))
        edge = edge[used[:: max(1, len(used) // points)]]
    threshold = np.unique(np.concatenate([edge, some_g, some_i]))[::-1]
    far, tar = impostor.at_least(threshold) / impostor.total, genuine.at_least(threshold) / genuine.total
    return Roc(*(np.concatenate([[first], x]) for first, x in ((0.0, far), (0.0, tar), (np.inf, threshold))))


def auc(genuine: Scores, impostor: Scores) -> float:
    """Area under the ROC, 0..1: the chance that a genuine score tops an impostor score, ties counting half.

    Below `exact_from`, scores between the same two edges count as tied. Source: Mann and Whitney 1947.
    """
    start, edge = _exact_from(genuine, impostor)
    exact = genuine.kept[genuine.place(start) :]
    below = impostor.total - len(impostor.kept)
    halves = 0  # an integer: twice the number of genuine-impostor pairs in the right order
    for at in range(0, len(exact), CHUNK):
        part = exact[at : at + CHUNK].astype(impostor.kept.dtype)
        halves += int(np.searchsorted(impostor.kept, part).sum() + 2 * below * len(part))
        halves += int(np.searchsorted(impostor.kept, part, side="right").sum())
    if len(edge):
        under = impostor.total - impostor.at_least(edge)
        inside = -np.diff(genuine.at_least(edge))
        halves += sum(int(n) * int(u) for n, u in zip(inside, under[:-1] + under[1:], strict=True))
    return halves / 2 / genuine.total / impostor.total


def eer(genuine: Scores, impostor: Scores) -> tuple[float, float]:
    """Equal error rate, 0..1, and the highest threshold where FAR >= 1 - TAR.

    The rate is where the ROC, its points joined by straight lines, crosses FAR = 1 - TAR. Tied scores make
    one slanted line, so it is what breaking their ties at random gives on average.
    """
    start, _ = _exact_from(genuine, impostor)
    # Which of the edges, and of a few of the exact scores, it lies between: the rest are not looked at.
    some = [s.kept[s.place(start) :: EER_STEP] for s in (genuine, impostor)]
    coarse = np.unique(np.concatenate([genuine.edge, *some]))
    far, tar = impostor.at_least(coarse) / impostor.total, genuine.at_least(coarse) / genuine.total
    place = int(np.flatnonzero(far + tar >= 1)[-1])
    low, high = float(coarse[place]), float(coarse[place + 1]) if place + 1 < len(coarse) else np.inf
    steps = [s.kept[s.place(low) : s.place(high)] for s in (genuine, impostor) if low >= start]
    threshold = np.unique(np.concatenate([[high], *steps, [low]]))[::-1]
    threshold = threshold[np.isfinite(threshold)]
    far = np.concatenate([[0.0], impostor.at_least(threshold) / impostor.total])
    tar = np.concatenate([[0.0], genuine.at_least(threshold) / genuine.total])
    after = int(np.argmax(far + tar >= 1))
    gap_0, gap_1 = (abs(float(far[k] + tar[k] - 1)) for k in (after - 1, after))
    part = gap_0 / (gap_0 + gap_1)
    rate = float(far[after - 1] + part * (far[after] - far[after - 1]))
    return rate, float(threshold[after - 1])


def allowed_errors(far: float, n_impostor: int) -> int:
    """The most impostor pairs k with k / n_impostor <= far, as that division rounds."""
    k = int(far * n_impostor)
    while k < n_impostor and (k + 1) / n_impostor <= far:
        k += 1
    while k / n_impostor > far:
        k -= 1
    return k


def tar_at_far(genuine: Scores, impostor: Scores, far: float) -> OperatingPoint:
    """TAR at the lowest threshold whose FAR is at most `far`, 0..1. Never interpolated.

    Below `exact_from` the lowest edge is taken: FAR and TAR are true, but a little lower than they could be.
    """
    if not 0 < far <= 1:
        raise ConfigError(f"a FAR of {far}; needed a share above 0, at most 1, such as 1e-3")
    allowed = allowed_errors(far, impostor.total)
    if allowed == 0:
        return OperatingPoint(far, float("nan"), float("nan"), float("nan"), 0, False)
    start, edge = _exact_from(genuine, impostor)
    if allowed < len(impostor.kept) - impostor.place(start):
        # The best impostor that must stay outside takes its ties with it: the next score up is the threshold.
        refused = impostor.kept[len(impostor.kept) - allowed - 1]
        above = [s.kept[np.searchsorted(s.kept, refused, side="right") :][:1] for s in (genuine, impostor)]
        threshold = float(min(np.concatenate(above), default=np.inf))
    elif len(edge):
        at_i, at_g = impostor.at_least(edge), genuine.at_least(edge)
        first = int(np.argmax(at_i <= allowed))
        alike = (at_i == at_i[first]) & (at_g == at_g[first])
        threshold = float(edge[np.flatnonzero(alike)[-1]])
    else:
        threshold = start
    if threshold == start:  # the lowest exact score says the same
        above = [s.kept[s.place(start) :][:1] for s in (genuine, impostor)]
        threshold = float(min(np.concatenate(above), default=np.inf))
    at = np.array([threshold])
    accepted = int(impostor.at_least(at)[0])
    tar = int(genuine.at_least(at)[0]) / genuine.total
    return OperatingPoint(far, accepted / impostor.total, tar, threshold, accepted, True)
