"""A threshold for a wanted FAR, chosen on people held out, and how far other people would move it.

Shapes: N images, D embedding, W persons, L levels of the score (falling), K impostor pairs, B draws.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from facemetric.errors import DataError
from facemetric.evaluation.allpairs import verify_all_pairs
from facemetric.evaluation.curves import FarPoint, Floats, Ints, Roc, allowed_errors
from facemetric.evaluation.intervals import DRAWS, Interval, dyad_scale, percentiles, person_weights
from facemetric.evaluation.verification import Verification, unit_rows
from facemetric.mining.tiles import product_tiles

DEEP = 16  # up to so many times the wanted FAR the draws are followed; with two people they may leave it
LEVELS = 160  # thresholds that are watched, in equal steps of log FAR: some 10 % each
PER_LEVEL = 1 << 12  # accepted impostor pairs kept between two levels; a random part stands for more
COUNTS = ("genuine_pairs", "impostor_pairs", "images", "identities")
PIECE = 1 << 14  # pairs weighted at once: 16,384 x 64 draws of float32 are 4 MiB


@dataclass(frozen=True)
class Threshold:
    """A threshold on the cosine and what it stands for.

    `threshold` is the lowest score accepted with FAR <= `wanted_far` on these people; its interval is where it
    would lie had others been drawn. `far` and `tar` are those of this one threshold, their intervals what
    it gives on other people. The counts are of what it was chosen on.
    """

    wanted_far: float
    threshold: Interval
    far: Interval
    tar: Interval
    genuine_pairs: int
    impostor_pairs: int
    images: int
    identities: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under plain names, as config.json keeps them."""
        record: dict[str, Any] = {"wanted_far": self.wanted_far}
        for name in ("threshold", "far", "tar"):
            interval: Interval = getattr(self, name)
            record |= {name: interval.value, f"{name}_interval_95": [interval.low, interval.high]}
        return record | {name: getattr(self, name) for name in COUNTS}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Threshold:
        """The reverse of to_dict; other keys are passed over. Raises KeyError, TypeError or ValueError."""

        def interval(name: str) -> Interval:
            low, high = record[f"{name}_interval_95"]
            return Interval(float(record[name]), float(low), float(high), 0.95)

        return cls(
            float(record["wanted_far"]),
            interval("threshold"),
            interval("far"),
            interval("tar"),
            *(int(record[name]) for name in COUNTS),
        )


def choose_thresholds(
    embeddings: npt.ArrayLike,
    labels: npt.ArrayLike,
    fars: Sequence[float],
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[Threshold, ...]:
    """The threshold for each wanted FAR, from all pairs of embeddings (N, D) with the persons (N,).

    Intervals at 95 % by the Bayesian bootstrap over persons of `intervals.verification_intervals`.
    Raises DataError where a FAR is below 1 / impostor pairs, or where the best impostors tie.
    """
    found = verify_all_pairs(embeddings, labels, fars=fars)
    for point in found.points:
        check_supported(point, found.n_impostor)
    order = np.argsort(np.asarray(labels), kind="stable")  # sorted by person, as tiles of one person are rare
    unit_ND, who_N = (
        unit_rows(embeddings)[order],
        np.unique(np.asarray(labels)[order], return_inverse=True)[1],
    )
    watch = _Watch(found, who_N, seed)
    watch.walk(unit_ND)
    return tuple(watch.threshold(point, draws, seed) for point in found.points)


def supported_fars(labels: npt.ArrayLike, fars: Sequence[float]) -> list[float]:
    """Those of the FARs that the impostor pairs of these persons (N,) support."""
    size_W = np.unique(np.asarray(labels), return_counts=True)[1]
    n_impostor = (int(size_W.sum()) ** 2 - int((size_W**2).sum())) // 2
    return [far for far in fars if n_impostor and allowed_errors(far, n_impostor)]


def check_supported(point: FarPoint, n_impostor: int) -> None:
    """Raise DataError where so many impostor pairs cannot give the FAR."""
    if not point.supported:
        raise DataError(
            f"FAR {point.wanted:g} needs {math.ceil(1 / point.wanted):,} impostor pairs, these images have "
            f"{n_impostor:,}: they support {1 / n_impostor:.2g} and above; choose such a FAR, or add people"
        )
    if not math.isfinite(point.threshold):
        raise DataError(
            f"no threshold gives FAR {point.wanted:g}: more impostor pairs tie for the highest score; "
            "is an image there under two identities?"
        )


class _Watch:
    """What the draws need of the pairs: how many of each person's genuine pairs, and which impostor pairs,
    lie between two levels."""

    def __init__(self, found: Verification, who_N: Ints, seed: int) -> None:
        self.found, self.who_N = found, who_N
        self.size_W = np.bincount(who_N)
        self.level_L, impostors_L = _levels(found)
        self.share_L = np.minimum(1.0, PER_LEVEL / np.maximum(impostors_L, 1))
        self.rng = np.random.default_rng([seed, 5])
        self.genuine_WL = np.zeros((len(self.size_W), len(self.level_L)), np.int32)
        self.level_K = self.a_K = self.b_K = np.empty(0, np.int32)

    def walk(self, unit_ND: npt.NDArray[np.float32]) -> None:
        """Take the pairs from the tiles."""
        lowest = np.float32(self.level_L[-1])  # a float64 would copy every tile
        kept: list[tuple[npt.NDArray, ...]] = []
        for rows, cols, values in product_tiles(torch.from_numpy(unit_ND), triangle=True):
            score = values.numpy()
            row, col = np.divmod(np.flatnonzero(score >= lowest), score.shape[1])
            level = np.searchsorted(-self.level_L, -score[row, col].astype(np.float64))
            row, col = row + rows.start, col + cols.start
            once = row < col  # a tile on the diagonal holds each pair twice
            level, a, b = level[once].astype(np.int32), self.who_N[row[once]], self.who_N[col[once]]
            np.add.at(self.genuine_WL.reshape(-1), a[a == b] * len(self.level_L) + level[a == b], 1)
            drawn = (a != b) & (self.rng.random(len(a)) < self.share_L[level])
            kept.append((level[drawn], a[drawn].astype(np.int32), b[drawn].astype(np.int32)))
        self.level_K, self.a_K, self.b_K = (np.concatenate(column) for column in zip(*kept, strict=True))
        order = np.argsort(self.level_K, kind="stable")
        self.level_K, self.a_K, self.b_K = self.level_K[order], self.a_K[order], self.b_K[order]

    def threshold(self, point: FarPoint, draws: int, seed: int) -> Threshold:
        """The threshold of a FAR with its intervals."""
        found = self.found
        at = int(np.flatnonzero(self.level_L == point.threshold)[0])
        deepest = int(np.searchsorted(self._fars(), DEEP * point.wanted))
        used = slice(0, min(max(deepest, at) + 1, len(self.level_L)))
        scale = self._scale(at, point.far)
        drawn_B3 = np.concatenate(
            [
                self._draw(w_BW, scale, used, at, point.wanted)
                for w_BW in person_weights(len(self.size_W), draws, seed)
            ]
        )
        return Threshold(
            point.wanted,
            percentiles(point.threshold, drawn_B3[:, 0]),
            percentiles(point.far, drawn_B3[:, 1]),
            percentiles(point.tar, drawn_B3[:, 2]),
            found.n_genuine,
            found.n_impostor,
            len(self.who_N),
            len(self.size_W),
        )

    def _fars(self) -> Floats:
        """FAR at each level, as far as the kept pairs tell."""
        weight_L = np.bincount(self.level_K, minlength=len(self.level_L)) / self.share_L
        return np.cumsum(weight_L) / self.found.n_impostor

    def _scale(self, at: int, far: float) -> float:
        """`intervals.dyad_scale` of the impostor pairs at level `at`: errors summed by pair of persons."""
        end = int(np.searchsorted(self.level_K, at, side="right"))
        a, b, weight = self.a_K[:end], self.b_K[:end], 1 / self.share_L[self.level_K[:end]]
        n = len(self.size_W)
        cell, place = np.unique(np.minimum(a, b).astype(np.int64) * n + np.maximum(a, b), return_inverse=True)
        count = np.bincount(place, weights=weight)
        size_W = self.size_W.astype(np.float64)
        pairs = size_W[cell // n] * size_W[cell % n]
        all_pairs = ((size_W**2).sum() ** 2 - (size_W**4).sum()) / 2  # of the squared pairs of all dyads
        # A part that stands for all has a variance of its own, which is not the people's.
        sampling = float((weight * (weight - 1)).sum())
        alone = float(((count - far * pairs) ** 2 - (far * pairs) ** 2).sum()) + far**2 * float(all_pairs)
        by_person = np.bincount(a, weight, n) + np.bincount(b, weight, n)
        by_person = by_person - far * size_W * (size_W.sum() - size_W)
        return dyad_scale(max(alone - sampling, 0.0), float((by_person**2).sum()) - 2 * sampling)

    def _draw(self, w_BW: Floats, scale: float, used: slice, at: int, wanted: float) -> Floats:
        """(B, 3): the threshold for the wanted FAR, and FAR and TAR at level `at`, with weighted persons."""
        u_WB = np.ascontiguousarray(1 + scale * (w_BW.T - 1))
        own_WB = u_WB * self.size_W[:, None]
        total_B = (own_WB.sum(0) ** 2 - (own_WB**2).sum(0)) / 2
        far_LB = np.cumsum(self._weigh(u_WB.astype(np.float32), used), axis=0) / total_B
        possible_W = self.size_W * (self.size_W - 1) / 2
        tar_B = (w_BW @ self.genuine_WL[:, : at + 1].sum(1)) / (w_BW @ possible_W)
        return np.stack([_crossing(self.level_L[used], far_LB, wanted), far_LB[at], tar_B], axis=1)

    def _weigh(self, u_WB: npt.NDArray[np.float32], used: slice) -> Floats:
        """Weight (L, B) of the impostor pairs between a level and the one above."""
        weight_LB = np.zeros((used.stop, u_WB.shape[1]))
        end = int(np.searchsorted(self.level_K, used.stop))
        for start in range(0, end, PIECE):
            part = slice(start, min(start + PIECE, end))
            product = u_WB[self.a_K[part]] * u_WB[self.b_K[part]]
            level, first = np.unique(self.level_K[part], return_index=True)
            weight_LB[level] += np.add.reduceat(product, first, axis=0)
        return weight_LB / self.share_L[used, None]


def _levels(found: Verification) -> tuple[Floats, Ints]:
    """Falling thresholds (L,), those of the wanted FARs among them, and the impostor pairs (L,) between each
    and the one above."""
    curve: Roc = found.roc
    deepest = min(1.0, DEEP * max(point.wanted for point in found.points))
    ranks = np.geomspace(1, max(1.0, deepest * found.n_impostor), LEVELS) / found.n_impostor
    # The point where FAR first reaches a rank; the last of equal FAR would lie above nothing.
    rows = np.minimum(np.searchsorted(curve.far, ranks * (1 - 1e-12)), len(curve.far) - 1)
    level = np.unique(np.concatenate([curve.threshold[rows], [p.threshold for p in found.points]]))[::-1]
    level = level[np.isfinite(level)].astype(np.float64)
    far = np.interp(-level, -curve.threshold[1:], curve.far[1:])
    return level, np.diff(np.round(far * found.n_impostor), prepend=0).astype(np.int64)


def _crossing(level_L: Floats, far_LB: Floats, wanted: float) -> Floats:
    """Where each draw's FAR (L, B) reaches the wanted one: between two levels the score runs with log FAR."""
    draw = np.arange(far_LB.shape[1])
    above = (far_LB <= wanted * (1 + 1e-9)).sum(0) - 1  # the last level that may be accepted
    below = np.minimum(above + 1, len(level_L) - 1)
    above = np.maximum(above, 0)
    low, high = far_LB[above, draw], far_LB[below, draw]
    with np.errstate(divide="ignore", invalid="ignore"):
        part = np.log(wanted / low) / np.log(high / low)
    part = np.where((low > 0) & (low < wanted) & (high > wanted), part, 0.0)
    return level_L[above] + part * (level_L[below] - level_L[above])
