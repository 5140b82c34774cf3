"""What a score says beside the threshold of a FAR: below which score people differ, and how probable one person is.

Both are chosen on the people that the thresholds are chosen on, and kept in config.json under `answers` as a few
numbers. Between the two thresholds `verify` cannot tell.

The probability is logistic (Platt 1999): 1 / (1 + exp(-(slope x score + intercept))), fitted by scikit-learn on exact
counts of all pairs in 256 bins of the score. Genuine and impostor pairs weigh the same, so it holds where a pair is as
likely of one person as of two (`PRIOR`); with another prior its odds are multiplied by those of the prior. How
reliable it is, is measured on other people: fitted on one half of the identities, compared with the share of genuine
pairs in the other half, in ten bins of probability, and the other way round.

Shapes: N images, D embedding, H bins of the score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.errors import DataError, WeightsError
from facemetric.evaluation.curves import Histogram
from facemetric.evaluation.intervals.counts import DrawnRates
from facemetric.evaluation.intervals.draws import DRAWS, person_weights
from facemetric.evaluation.intervals.records import Interval, percentiles
from facemetric.evaluation.verification import Verification
from facemetric.model.weights.folder import CONFIG, amend_config, read_config

FRRS = (0.05, 0.01)  # of the thresholds that are kept
PRIOR = 0.5  # probability of one person before the pictures are seen
BINS = 10  # of probability, in the reliability
PEOPLE = 20  # that a probability needs at least: ten in each half
WEIGHT = 10_000.0  # pairs of each kind that the fit counts, however many there are: they share people
KEY = "answers"


@dataclass(frozen=True)
class LowerThreshold:
    """Scores below `threshold` are of two people: at most `wanted_frr` of the genuine pairs lie there.

    `frr` and `far` are those of this threshold: genuine pairs below it, and impostor pairs not below it."""

    wanted_frr: float
    threshold: float
    frr: Interval
    far: Interval

    def to_dict(self) -> dict[str, Any]:
        """As config.json has it."""
        record: dict[str, Any] = {"wanted_frr": self.wanted_frr, "threshold": self.threshold}
        for name in ("frr", "far"):
            interval: Interval = getattr(self, name)
            record |= {name: interval.value, f"{name}_interval_95": [interval.low, interval.high]}
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> LowerThreshold:
        """The reverse of to_dict. Raises KeyError, TypeError or ValueError."""
        frr, far = (
            Interval(float(record[name]), *map(float, record[f"{name}_interval_95"]))
            for name in ("frr", "far")
        )
        return cls(float(record["wanted_frr"]), float(record["threshold"]), frr, far)


class ReliabilityBin(NamedTuple):
    """Pairs of other people of about one probability: its mean, the share of genuine pairs, and the share of pairs
    that the bin holds, both kinds weighing the same."""

    predicted: float
    observed: float
    share: float


@dataclass(frozen=True)
class Probability:
    """The probability of one person at a score, where one and two are as likely beforehand.

    `reliability`, rising, is of people that it was not fitted on; `error` is its mean distance of predicted and
    observed, 0..1."""

    slope: float
    intercept: float
    error: float
    reliability: tuple[ReliabilityBin, ...]

    def at(self, score: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Probabilities 0..1 of scores of any shape."""
        logit = self.slope * np.asarray(score, np.float64) + self.intercept
        return 1 / (1 + np.exp(-np.clip(logit, -500, 500)))

    def to_dict(self) -> dict[str, Any]:
        """As config.json has it."""
        bins = [[round(value, 4) for value in each] for each in self.reliability]
        return {
            "slope": self.slope,
            "intercept": self.intercept,
            "prior": PRIOR,
            "error": self.error,
            "reliability": bins,
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Probability:
        """The reverse of to_dict. Raises KeyError, TypeError or ValueError."""
        bins = tuple(ReliabilityBin(*map(float, each)) for each in record["reliability"])
        return cls(float(record["slope"]), float(record["intercept"]), float(record["error"]), bins)


class Reliability(NamedTuple):
    """How true a probability is on some pairs, genuine and impostor ones weighing the same.

    `bins`, rising; `error`, the mean distance of predicted and observed (expected calibration error); `brier`, the mean
    square of the distance of probability and answer, 0.25 where nothing is known."""

    bins: tuple[ReliabilityBin, ...]
    error: float
    brier: float


@dataclass(frozen=True)
class Answers:
    """The lower thresholds by FRR, falling, and the probability, None where the people were too few.

    `flip` and `data_fingerprint` as of the thresholds that they go with."""

    lower: tuple[LowerThreshold, ...]
    probability: Probability | None
    flip: bool
    data_fingerprint: str

    def at_frr(self, frr: float) -> LowerThreshold | None:
        """The lower threshold of a FRR; None where there is none."""
        return next((each for each in self.lower if math.isclose(each.wanted_frr, frr)), None)


def choose_answers(
    embeddings: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    flip: bool,
    data_fingerprint: str,
    frrs: Sequence[float] = FRRS,
    seed: int = 0,
) -> Answers:
    """Lower thresholds and probability from all pairs of embeddings (N, D) with the identities (N,).

    A FRR needs 1 / FRR genuine pairs, and is left out where they are fewer. Raises DataError where genuine or impostor
    pairs lack."""
    from facemetric.evaluation.all_pairs import (
        verify_all_pairs,  # imports torch: reading answers does without
    )

    found = verify_all_pairs(embeddings, labels, fars=())
    wanted = [frr for frr in sorted(frrs, reverse=True) if found.n_genuine * frr >= 1]
    lower = _lower_thresholds(embeddings, labels, found, wanted, seed) if wanted else ()
    return Answers(lower, fit_probability(embeddings, labels, seed=seed), flip, data_fingerprint)


def _lower_thresholds(
    embeddings: npt.ArrayLike, labels: npt.ArrayLike, found: Verification, frrs: Sequence[float], seed: int
) -> tuple[LowerThreshold, ...]:
    """For each FRR the highest threshold on the grid below which at most so many genuine pairs lie."""
    from facemetric.evaluation.all_pairs import STEPS  # as above
    from facemetric.evaluation.intervals.all_pairs import count_by_person

    chosen = []
    for frr in frrs:
        place = int(np.argmax(found.roc.tar >= 1 - frr - 1e-12))  # thresholds fall: the first is the highest
        chosen.append(math.floor(float(found.roc.threshold[place]) * STEPS) / STEPS)
    levels = np.unique(np.clip(chosen, -1, 1))
    rates = DrawnRates(count_by_person(embeddings, labels, levels))
    weights = [np.ones((1, rates.identities)), *person_weights(rates.identities, DRAWS, seed)]
    tar_BT, far_BT = (np.concatenate(rate) for rate in zip(*map(rates.at, weights), strict=True))
    lower = []
    for frr, threshold in zip(frrs, np.clip(chosen, -1, 1).tolist(), strict=True):
        at = int(np.searchsorted(levels, threshold))
        missed, accepted = (
            percentiles(float(drawn_B[0]), drawn_B[1:]) for drawn_B in (1 - tar_BT[:, at], far_BT[:, at])
        )
        lower.append(LowerThreshold(frr, threshold, missed, accepted))
    return tuple(lower)


def fit_probability(embeddings: npt.ArrayLike, labels: npt.ArrayLike, *, seed: int = 0) -> Probability | None:
    """The probability from all pairs of embeddings (N, D) with the identities (N,), and how reliable it is on other
    people. None where there are fewer than PEOPLE, or a half of them lacks genuine pairs."""
    from facemetric.evaluation.all_pairs import verify_all_pairs  # as above

    emb_ND, label_N = np.asarray(embeddings), np.asarray(labels)
    people = np.unique(label_N)
    if len(people) < PEOPLE:
        return None
    first = np.isin(label_N, np.random.default_rng([seed, 17]).permutation(people)[::2])
    try:
        halves = [
            verify_all_pairs(emb_ND[half], label_N[half], fars=()).histogram for half in (first, ~first)
        ]
        whole = verify_all_pairs(emb_ND, label_N, fars=()).histogram
    except DataError:  # a half of the people with one image each
        return None
    bins = _reliability([(_logistic(halves[0]), halves[1]), (_logistic(halves[1]), halves[0])])
    error = float(sum(each.share * abs(each.predicted - each.observed) for each in bins))
    slope, intercept = _logistic(whole)
    return Probability(slope, intercept, error, bins)


def _shares(pairs: Histogram) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Shares (2, H) of the impostor and of the genuine pairs in each bin, and the bins' middles (H,)."""
    counts_2H = np.stack([pairs.impostor, pairs.genuine]).astype(np.float64)
    return counts_2H / counts_2H.sum(1, keepdims=True), (pairs.edge[:-1] + pairs.edge[1:]) / 2


def _logistic(pairs: Histogram) -> tuple[float, float]:
    """Slope and intercept of the logistic curve, both kinds of pairs weighing the same."""
    from sklearn.linear_model import LogisticRegression  # a second to import, which `verify` has no need of

    shares_2H, middle_H = _shares(pairs)
    kind, at = np.nonzero(shares_2H)
    model = LogisticRegression(C=100.0, tol=1e-8, max_iter=1000)
    model.fit(middle_H[at, None], kind, sample_weight=WEIGHT * shares_2H[kind, at])
    return float(model.coef_[0, 0]), float(model.intercept_[0])


def _reliability(fits: Sequence[tuple[tuple[float, float], Histogram]]) -> tuple[ReliabilityBin, ...]:
    """Predicted and observed shares of genuine pairs in bins of probability, over fits and the pairs of others."""
    sums = np.zeros((3, BINS))  # of predicted x weight, genuine weight, weight
    for (slope, intercept), pairs in fits:
        shares_2H, middle_H = _shares(pairs)
        p_H = Probability(slope, intercept, 0.0, ()).at(middle_H)
        weight_H, at = shares_2H.sum(0), np.minimum((p_H * BINS).astype(int), BINS - 1)
        for row, value_H in zip(sums, (p_H * weight_H, shares_2H[1], weight_H), strict=True):
            row += np.bincount(at, value_H, minlength=BINS)
    total = float(sums[2].sum())
    return tuple(
        ReliabilityBin(predicted / weight, genuine / weight, weight / total)
        for predicted, genuine, weight in sums.T.tolist()
        if weight > 0
    )


def reliability_of(probability: Probability, pairs: Histogram) -> Reliability:
    """How true a probability is on pairs of whose scores there is a histogram."""
    bins = _reliability([((probability.slope, probability.intercept), pairs)])
    error = sum(each.share * abs(each.predicted - each.observed) for each in bins)
    (impostor_H, genuine_H), middle_H = _shares(pairs)
    p_H = probability.at(middle_H)
    return Reliability(bins, error, float((impostor_H @ p_H**2 + genuine_H @ (1 - p_H) ** 2) / 2))


def store_answers(folder: Path, answers: Answers) -> Path:
    """Write them into the weights' config.json in place of those that are there; returns its path."""
    record = {
        "different_below": {f"{each.wanted_frr:g}": each.to_dict() for each in answers.lower},
        "probability": answers.probability.to_dict() if answers.probability is not None else None,
        "flip": answers.flip,
        "data_fingerprint": answers.data_fingerprint,
    }
    return amend_config(folder, **{KEY: record})


def stored_answers(folder: Path) -> Answers | None:
    """The answers that weights hold; None where they hold none. Raises WeightsError where they cannot be read."""
    return answers_in(read_config(folder), folder / CONFIG)


def answers_in(config: Mapping[str, Any], where: Path) -> Answers | None:
    """The answers in a config.json, which is `where`; as `stored_answers`."""
    record = config["facemetric"].get(KEY)
    if record is None:
        return None
    try:
        lower = tuple(LowerThreshold.from_dict(each) for each in record["different_below"].values())
        probability = record["probability"]
        return Answers(
            lower,
            None if probability is None else Probability.from_dict(probability),
            bool(record["flip"]),
            str(record["data_fingerprint"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{where}: the answers cannot be read ({error}); make them again with `facemetric calibrate`"
        ) from error
