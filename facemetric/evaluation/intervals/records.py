"""What an interval is, and the intervals that have a formula.

Every interval is one of 95 %. Shapes: B draws, F figures, K FARs, N images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.errors import DataError
from facemetric.evaluation.curves import Floats
from facemetric.evaluation.intervals.draws import DRAWS, mean_draws

LEVEL = 0.95
Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)
LEAST_ERRORS = 10  # that the draws need to know how errors vary


class Interval(NamedTuple):
    """A figure with the interval that holds the true one in `level` of all cases."""

    value: float
    low: float
    high: float
    level: float = LEVEL


class Band(NamedTuple):
    """The interval of the TAR (K,) at each FAR (K,), rising: one FAR at a time, not all of them at once."""

    far: Floats
    tar: Floats
    low: Floats
    high: Floats


class Bounds(NamedTuple):
    """Intervals of `auc`, `eer` and `tar_at_far_X` by name, and of the TAR along the ROC."""

    figures: dict[str, Interval]
    band: Band


def wilson(successes: float, total: float) -> Interval:
    """A share of independent trials. Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209-212."""
    if not 0 <= successes <= total or not total:
        raise DataError(f"{successes} successes of {total} trials; needed 0 to {total}, of at least one")
    share, scale = successes / total, 1 + Z * Z / total
    middle = (share + Z * Z / (2 * total)) / scale
    half = Z / scale * math.sqrt(share * (1 - share) / total + Z * Z / (4 * total * total))
    low = 0.0 if successes == 0 else middle - half
    return Interval(share, low, 1.0 if successes == total else middle + half)


def effective_people(pairs_W: npt.ArrayLike) -> float:
    """How many people with equally many pairs would know as much as people with so many (W,): (sum n)^2 / sum n^2.
    Source: Kish 1965, Survey Sampling, section 11.7."""
    count_W = np.asarray(pairs_W, dtype=np.float64)
    squares = float((count_W**2).sum())
    return float(count_W.sum()) ** 2 / squares if squares else 0.0


def effective_pairs(drawn: Interval, total: int, people: float) -> float:
    """How many independent pairs would know a share as well as `total` pairs of so many (effective) people do: at most
    `total`. `drawn` is the interval of draws, from whose width the variance comes; a variance of few people is itself
    uncertain, as Student's t says. Source: Korn and Graubard 1998, Survey Methodology 24, 193-201."""
    value, deviation = drawn.value, (drawn.high - drawn.low) / (2 * Z)
    if deviation <= 0 or not 0 < value < 1:
        return total
    from scipy.special import stdtrit  # as in auc_alone

    freedom = max(people - 1, 1.0)
    wider = Z / float(stdtrit(freedom, 0.5 + LEVEL / 2)) if math.isfinite(freedom) else 1.0
    return min(total, max(1.0, value * (1 - value) * (wider / deviation) ** 2))


def at_least_wilson(interval: Interval, total: int, people: float = math.inf) -> Interval:
    """The interval of a share of `total` pairs, no narrower than Wilson's where errors (or successes) are fewer than
    LEAST_ERRORS: of three wrong pairs the draws cannot tell how many others would bring, and of none they say never.
    Wilson's is that of the `effective_pairs`: pairs of one person err together, and so do all at one threshold."""
    value = interval.value
    if min(value, 1 - value) * total >= LEAST_ERRORS:
        return interval
    count = effective_pairs(interval, total, people)
    alone = wilson(value * count, count)
    return interval._replace(low=min(interval.low, alone.low), high=max(interval.high, alone.high))


def auc_alone(auc: float, genuine: int, impostor: int) -> Interval:
    """An AUC of independent scores of so many pairs of each kind: the values t that the measured one is within
    Z sqrt(V(t)) of. Source: Newcombe 2006, Stat. Med. 25, 559-573, method 5; V is that of Hanley and McNeil 1982."""
    more = (genuine + impostor) / 2 - 1

    def excess(t: float) -> float:
        variance = t * (1 - t) * (1 + more * ((1 - t) / (2 - t) + t / (1 + t))) / genuine / impostor
        return (t - auc) ** 2 - Z * Z * variance

    tiny = 1e-12  # where auc is 0 or 1, that is a root too
    from scipy.optimize import brentq  # a third of a second, which records alone do not need

    low = brentq(excess, 0, min(auc, 1 - tiny)) if auc > 0 else 0.0
    high = brentq(excess, max(auc, tiny), 1) if auc < 1 else 1.0
    return Interval(auc, low, high)


def widened(
    found: Mapping[str, Interval], band: Band, genuine: int, impostor: int, people: float = math.inf
) -> Bounds:
    """Intervals of verification, no narrower than those of independent pairs where errors are fewer than LEAST_ERRORS.
    Shares of pairs get Wilson's (`at_least_wilson`), with the `effective_people` behind the genuine pairs; the AUC gets
    `auc_alone`, and Wilson's of the rarer kind where it is 1 (or 0)."""
    rarer = min(genuine, impostor)
    totals = {"accuracy": genuine + impostor, "eer": rarer}
    wide = {
        name: at_least_wilson(interval, totals.get(name, genuine), people)
        for name, interval in found.items()
        if name != "auc"
    }
    auc = found["auc"]
    if auc.value in (0, 1):
        auc = wilson(auc.value * rarer, rarer)
    elif min(auc.value, 1 - auc.value) * rarer < LEAST_ERRORS:
        alone = auc_alone(auc.value, genuine, impostor)
        auc = auc._replace(low=min(auc.low, alone.low), high=max(auc.high, alone.high))
    wide["auc"] = auc
    at = [
        at_least_wilson(Interval(*row), genuine, people)
        for row in zip(band.tar.tolist(), band.low.tolist(), band.high.tolist(), strict=True)
    ]
    low, high = (np.array([getattr(interval, side) for interval in at]) for side in ("low", "high"))
    return Bounds({name: wide[name] for name in found}, band._replace(low=low, high=high))


def newcombe(high: Interval, low: Interval) -> Interval:
    """Difference of two independent shares, from the interval of each. Source: Newcombe 1998, Stat. Med. 17,
    873-890, method 10."""
    value = high.value - low.value
    down = math.hypot(high.value - high.low, low.high - low.value)
    up = math.hypot(high.high - high.value, low.value - low.low)
    return Interval(value, value - down, value + up)


def mean_intervals(
    values: Mapping[str, npt.ArrayLike],
    person: npt.ArrayLike,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Interval]:
    """Means of named values per image (N,), such as kNN right or wrong, with the identities (N,) resampled.

    One person alone has no intervals: there is nobody else to draw.
    """
    value_NK = np.stack([np.asarray(v, dtype=np.float64) for v in values.values()], axis=-1)
    identity_N = np.asarray(person)
    if identity_N.size and (identity_N == identity_N[0]).all():
        return {}
    drawn_BK = mean_draws(value_NK, identity_N, draws=draws, seed=seed)
    return figure_intervals(dict(zip(values, value_NK.mean(0).tolist(), strict=True)), drawn_BK)


def percentiles(value: float, draws_B: Floats) -> Interval:
    """A figure with the percentiles of its draws (B,)."""
    return figure_intervals({"": value}, np.asarray(draws_B)[:, None])[""]


def figure_intervals(values: dict[str, float], draws_BF: Floats) -> dict[str, Interval]:
    """Named figures with the percentiles of their draws (B, F)."""
    low, high = quantiles(draws_BF)
    return {
        name: Interval(value, float(low[k]), float(high[k])) for k, (name, value) in enumerate(values.items())
    }


def quantiles(draws_BF: Floats) -> Floats:
    """Low and high (2, F) of each column."""
    tail = (1 - LEVEL) / 2
    return np.quantile(draws_BF, [tail, 1 - tail], axis=0)
