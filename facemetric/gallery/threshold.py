"""The threshold for a wanted FPIR: of people who are not enrolled, the share that is taken for somebody who is.

The more faces are enrolled, the higher the best score of a stranger. Two things tell how high:

- the enrolled people themselves: each is a stranger to all others, so the best score of a person among the others'
  faces is what a stranger would get. Where many are enrolled the quantile of these scores is the threshold; where
  their tail is short, that of the normal distribution with their mean and deviation.
- the thresholds that the weights hold for FARs: R faces give FPIR = 1 - (1 - FAR)^R. This needs no enrolled person,
  but knows nothing of these photographs.

With n enrolled people the first counts n / (n + PRIOR), the second the rest. README.md has the measurements.

Shapes: M rows that were tried, F stored thresholds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.errors import WeightsError, plural
from facemetric.evaluation.intervals.records import Interval, wilson
from facemetric.evaluation.thresholds import KEY
from facemetric.gallery.search import Enrolled, drawn_rows, nearest_other

USUAL_FPIR = 0.01
PRIOR = 20.0  # people: with so many enrolled, what they show and what the weights hold count the same
TAIL = 5.0  # people above the threshold from which their quantile counts, and no distribution
LEAST_PEOPLE = 5  # enrolled, from which they count at all
SAMPLE = 2000  # rows that are tried; each against all enrolled faces
REMAKE = 0.02  # of the rows come or gone, from which the scores are taken again


class StoredCurve(NamedTuple):
    """What the weights hold: `cosine` (F,) rising and the FAR (F,) of each, at least two."""

    cosine: npt.NDArray[np.float64]
    far: npt.NDArray[np.float64]

    @classmethod
    def of(cls, config: Mapping[str, Any], *, flip: bool) -> StoredCurve | None:
        """From a weights folder's config; None where it holds fewer than two thresholds for such embeddings."""
        try:
            kept = (config["facemetric"].get(KEY) or {}).values()
            points = sorted(
                {(float(r["threshold"]), float(r["far"])) for r in kept if bool(r["flip"]) is flip}
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            return None
        points = [(cosine, far) for cosine, far in points if far > 0]
        falling = all(a[1] > b[1] for a, b in pairwise(points))
        if len(points) < 2 or not falling:
            return None
        cosine, far = zip(*points, strict=True)
        return cls(np.array(cosine), np.array(far))

    def threshold(self, far: float) -> float:
        """The cosine that gives a FAR. Between two, and on beyond the last two, log FAR runs straight."""
        x, y = np.log(self.far[::-1]), self.cosine[::-1]  # rising log FAR, falling cosine
        at = math.log(far)
        i = int(np.clip(np.searchsorted(x, at) - 1, 0, len(x) - 2))
        slope = (y[i + 1] - y[i]) / (x[i + 1] - x[i])
        return float(np.clip(y[i] + slope * (at - x[i]), -1, 1))


@dataclass(frozen=True, eq=False)
class BestOfOthers:
    """The best score of enrolled faces among the faces of other people: `score` (M,), and whose face it is, `person`
    (M,). `rows` and `people`: how many were enrolled."""

    score: npt.NDArray[np.float32]
    person: npt.NDArray[np.int32]
    rows: int
    people: int

    @property
    def weight(self) -> npt.NDArray[np.float64]:
        """(M,) with the sum 1: every person counts the same, however many photographs there are."""
        count = np.bincount(self.person, minlength=1)[self.person]
        return 1 / count / len(np.unique(self.person))

    def share_above(self, cosine: float) -> float:
        """The share of people who would be taken for another."""
        return float(self.weight[self.score >= cosine].sum())

    def threshold(self, fpir: float) -> float:
        """The cosine that this share of people reaches."""
        weight, tried = self.weight, len(np.unique(self.person))
        if fpir * tried >= TAIL:
            falling = np.argsort(-self.score, kind="stable")
            reached = np.cumsum(weight[falling])
            last = int(np.searchsorted(reached, fpir * (1 + 1e-9), side="right"))  # the first score too many
            return float(np.nextafter(self.score[falling[min(last, len(falling) - 1)]], np.float32(2)))
        mean = float(weight @ self.score)
        deviation = math.sqrt(float(weight @ (self.score - mean) ** 2) * tried / (tried - 1))
        return min(1.0, mean - deviation * NormalDist().inv_cdf(fpir))

    def is_of(self, rows: int) -> bool:
        """Whether it still tells of a gallery of so many rows."""
        return abs(rows - self.rows) <= REMAKE * self.rows

    def now(self, rows: int, people: int) -> BestOfOthers:
        """The same with today's numbers of faces and people."""
        return replace(self, rows=rows, people=people)


def best_of_others(enrolled: Enrolled, *, seed: int = 0) -> BestOfOthers:
    """Try SAMPLE of the enrolled rows, drawn, against all."""
    people = len(enrolled.names)
    if people < 2:
        return BestOfOthers(np.zeros(0, np.float32), np.zeros(0, np.int32), len(enrolled), people)
    drawn = drawn_rows(len(enrolled), SAMPLE, seed)
    return BestOfOthers(nearest_other(enrolled, drawn).score, enrolled.person[drawn], len(enrolled), people)


@dataclass(frozen=True)
class FpirThreshold:
    """The cosine from which a face is named, for a wanted FPIR.

    `seen`: the share of enrolled people who would be taken for another at it, with its 95 % interval; None with fewer
    than LEAST_PEOPLE. `people`, `rows`: enrolled people and faces. `from_people`: how much they counted in its choice,
    0..1; the rest is what the weights hold. `given`: the user named it, `wanted` is then NaN."""

    wanted: float
    cosine: float
    seen: Interval | None
    people: int
    rows: int
    from_people: float = 0.0
    given: bool = False

    def text(self) -> str:
        """What the threshold means, in a sentence or two."""
        enrolled = f"{plural(self.people, 'person', 'people')}, {plural(self.rows, 'face')}"
        if self.given:
            lead = f"threshold {self.cosine:.4f}, as given, for {enrolled}"
        else:
            lead = (
                f"threshold {self.cosine:.4f} for {enrolled}: chosen so that a share of {self.wanted:g} of the people "
                "who are not enrolled is taken for one who is (FPIR)"
            )
        if self.seen is None:
            return lead + f"; not checked, which needs {LEAST_PEOPLE} enrolled people"
        seen = self.seen
        return lead + (
            f"; of the enrolled, tried against each other, {seen.value:.2g} [{seen.low:.2g}, {seen.high:.2g}] would be"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        seen = self.seen
        return {
            "cosine": self.cosine,
            "wanted_fpir": None if self.given else self.wanted,
            "seen_fpir": seen.value if seen else None,
            "seen_fpir_interval_95": [seen.low, seen.high] if seen else None,
            "people": self.people,
            "faces": self.rows,
            "share_from_enrolled_people": self.from_people,
        }


def choose_threshold(
    own: BestOfOthers, curve: StoredCurve | None, fpir: float, *, given: float | None = None
) -> FpirThreshold:
    """The threshold of a gallery for a wanted FPIR, or what one that was `given` does.

    Raises WeightsError where too few people are enrolled and the weights hold no thresholds either."""
    tried = len(np.unique(own.person))
    if given is not None:
        return FpirThreshold(math.nan, given, _seen(own, given), own.people, own.rows, given=True)
    share = tried / (tried + PRIOR) if curve is not None else 1.0
    if tried < LEAST_PEOPLE:
        share = 0.0
    if share == 0 and curve is None:
        raise WeightsError(
            f"no threshold for {plural(own.people, 'enrolled person', 'enrolled people')}: the weights hold fewer than "
            "two for such embeddings; store some by `facemetric calibrate DATA --far 0.1 0.01 0.001 0.0001`, enroll "
            f"{LEAST_PEOPLE} people or more, or give a threshold"
        )
    cosine = 0.0
    if share:
        cosine += share * own.threshold(fpir)
    if share < 1 and curve is not None:
        far = -math.expm1(math.log1p(-fpir) / max(own.rows, 1)) if fpir < 1 else 1.0
        cosine += (1 - share) * curve.threshold(far)
    return FpirThreshold(fpir, cosine, _seen(own, cosine), own.people, own.rows, share)


def _seen(own: BestOfOthers, cosine: float) -> Interval | None:
    """Of two people who are each other's best, both are above or none: Wilson's interval of half as many."""
    tried = len(np.unique(own.person))
    if tried < LEAST_PEOPLE:
        return None
    trials = max(tried // 2, 1)
    share = own.share_above(cosine)
    likely = wilson(min(share * trials, trials), trials)
    return Interval(share, likely.low, likely.high)
