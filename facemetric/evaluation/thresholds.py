"""A threshold for a wanted FAR, chosen on people held out, and how far other people would move it.

Shapes: N images, D embedding, T thresholds (rising), L levels (the same, falling), B draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facemetric.errors import DataError, WeightsError
from facemetric.evaluation.curves import Floats, OperatingPoint, allowed_errors
from facemetric.evaluation.intervals.counts import DrawnRates
from facemetric.evaluation.intervals.draws import DRAWS, person_weights
from facemetric.evaluation.intervals.records import Interval, percentiles
from facemetric.evaluation.table import EmbeddingTable
from facemetric.evaluation.verification import SCORE, Verification
from facemetric.model.weights.folder import CONFIG, amend_config, read_config

DEEP = 16  # up to so many times the wanted FAR the draws are followed; with two people they may leave it
LEVELS = 160  # thresholds that are watched, in equal steps of log FAR: some 10 % each
COUNTS = ("genuine_pairs", "impostor_pairs", "images", "identities")
KEY = "thresholds"


@dataclass(frozen=True)
class CalibratedThreshold:
    """A threshold on the cosine and the rates that it gives.

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

    @property
    def cosine(self) -> float:
        """The lowest cosine that is accepted."""
        return self.threshold.value

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under plain names, as config.json keeps them."""
        record: dict[str, Any] = {"wanted_far": self.wanted_far}
        for name in ("threshold", "far", "tar"):
            interval: Interval = getattr(self, name)
            record |= {name: interval.value, f"{name}_interval_95": [interval.low, interval.high]}
        return record | {name: getattr(self, name) for name in COUNTS}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> CalibratedThreshold:
        """The reverse of to_dict; other keys are skipped. Raises KeyError, TypeError or ValueError."""

        def interval(name: str) -> Interval:
            low, high = record[f"{name}_interval_95"]
            return Interval(float(record[name]), float(low), float(high))

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
) -> tuple[CalibratedThreshold, ...]:
    """The threshold for each wanted FAR, from all pairs of embeddings (N, D) with the identities (N,).

    Intervals at 95 %, people resampled as in `intervals.all_pairs`. With few people they are too narrow: in
    simulations they held the truth in 92 to 95 % of 400 cases with 100 people and more, in 86 to 91 % with 40
    to 60.
    Raises DataError where a FAR is below 1 / impostor pairs, or where the best impostors tie.
    """
    # Here, not above: whoever reads a stored threshold has no use for torch.
    from facemetric.evaluation.all_pairs import verify_all_pairs
    from facemetric.evaluation.intervals.all_pairs import count_by_person

    found = verify_all_pairs(embeddings, labels, fars=fars)
    for point in found.points:
        check_supported(point, found.n_impostor)
    counts = count_by_person(embeddings, labels, _levels(found))
    rates = DrawnRates(counts)
    # First everybody once: the draws then move the exact figures as they move those on the grid.
    weights = [np.ones((1, rates.identities)), *person_weights(rates.identities, draws, seed)]
    tar_BT, far_BT = (np.concatenate(rate) for rate in zip(*map(rates.at, weights), strict=True))
    thresholds = []
    for point in found.points:
        intervals = _intervals(point, counts.threshold, tar_BT, far_BT)
        sizes = (found.n_genuine, found.n_impostor, len(np.asarray(labels)), rates.identities)
        thresholds.append(CalibratedThreshold(point.wanted, *intervals, *sizes))
    return tuple(thresholds)


def supported_fars(labels: npt.ArrayLike, fars: Sequence[float]) -> list[float]:
    """Those of the FARs that the impostor pairs of these people (N,) support."""
    size_W = np.unique(np.asarray(labels), return_counts=True)[1]
    n_impostor = (int(size_W.sum()) ** 2 - int((size_W**2).sum())) // 2
    return [far for far in fars if n_impostor and allowed_errors(far, n_impostor)]


def check_supported(point: OperatingPoint, n_impostor: int) -> None:
    """Raise DataError where so many impostor pairs cannot give the FAR."""
    if not point.supported:
        digit = 10.0 ** (math.floor(math.log10(1 / n_impostor)) - 1)  # the second: what is said is rounded up
        lowest = math.ceil(1 / n_impostor / digit) * digit
        raise DataError(
            f"FAR {point.wanted:g} needs {math.ceil(1 / point.wanted):,} impostor pairs, these images have "
            f"{n_impostor:,}: they support {lowest:.2g} and above; choose such a FAR, or add people"
        )
    if not math.isfinite(point.threshold):
        raise DataError(
            f"no threshold gives FAR {point.wanted:g}: more impostor pairs tie for the highest score; "
            "is an image there under two identities?"
        )


def _levels(found: Verification) -> Floats:
    """Rising thresholds on the tally's grid: down to DEEP times the highest wanted FAR, and above the chosen."""
    from facemetric.evaluation.all_pairs import STEPS
    from facemetric.evaluation.intervals.all_pairs import curve_thresholds

    deepest = min(1.0, DEEP * max(point.wanted for point in found.points))
    fars = np.geomspace(1 / found.n_impostor, max(deepest, 1 / found.n_impostor), LEVELS)
    chosen = [math.ceil(point.threshold * STEPS) / STEPS for point in found.points]
    return np.unique([*curve_thresholds(found.roc, fars), *chosen])


def _intervals(
    point: OperatingPoint, threshold_T: Floats, tar_BT: Floats, far_BT: Floats
) -> tuple[Interval, Interval, Interval]:
    """Threshold, FAR and TAR of a wanted FAR, from the rates of the draws at rising thresholds."""
    at = int(np.searchsorted(threshold_T, point.threshold))
    # A draw's FAR may rise with the threshold by an error of some pairs; its curve must not turn back.
    falling_TB = np.maximum.accumulate(far_BT[:, ::-1], axis=1).T
    crossing_B = _crossing(threshold_T[::-1], falling_TB, point.wanted)
    threshold, far, tar = (
        percentiles(value, (drawn_B[1:] - drawn_B[0] + value).clip(-1, 1))
        for value, drawn_B in (
            (point.threshold, crossing_B),
            (point.false_rate, far_BT[:, at]),
            (point.true_rate, tar_BT[:, at]),
        )
    )
    return threshold, far._replace(low=max(far.low, 0.0)), tar._replace(low=max(tar.low, 0.0))


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


@dataclass(frozen=True)
class Stored:
    """A threshold, and what it was chosen on.

    `flip`: embeddings were averaged with those of the mirror image, and must be where it is used.
    `chosen_on` says in words which people; `image_size` (width, height) is their images' median, 0 unknown.
    """

    threshold: CalibratedThreshold
    flip: bool
    chosen_on: str
    data_fingerprint: str
    image_size: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """As config.json has it."""
        return self.threshold.to_dict() | {
            "score": SCORE,
            "flip": self.flip,
            "chosen_on": self.chosen_on,
            "data_fingerprint": self.data_fingerprint,
            "image_size": list(self.image_size),
        }


def store_thresholds(folder: Path, found: Iterable[Stored]) -> Path:
    """Write thresholds into the weights' config.json, in place of those of the same FAR; returns its path."""
    kept = dict(read_config(folder)["facemetric"].get(KEY) or {})
    kept |= {f"{stored.threshold.wanted_far:g}": stored.to_dict() for stored in found}
    return amend_config(folder, **{KEY: dict(sorted(kept.items(), key=lambda item: -float(item[0])))})


def stored_threshold(folder: Path, far: float, *, name: str | Path = "") -> Stored:
    """The threshold of a FAR. Raises WeightsError that says which there are and how to make one; `name` is what the
    user calls the weights, where that is not their folder."""
    return threshold_in(read_config(folder), far, name=name or folder, where=folder / CONFIG)


def threshold_in(config: Mapping[str, Any], far: float, *, name: str | Path, where: Path) -> Stored:
    """The threshold of a FAR in a config.json, which is `where`; as `stored_threshold`."""
    kept = config["facemetric"].get(KEY) or {}
    make = (
        f"make one with `facemetric calibrate DATA --weights {name} --far {far:g}` on people never trained on"
    )
    try:
        for key, record in kept.items():
            if math.isclose(float(key), far):
                width, height = record["image_size"]
                return Stored(
                    CalibratedThreshold.from_dict(record),
                    bool(record["flip"]),
                    str(record["chosen_on"]),
                    str(record["data_fingerprint"]),
                    (int(width), int(height)),
                )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{where}: the thresholds cannot be read ({error}); {make}") from error
    there = f"it has those for FAR {', '.join(kept)}: choose one of these, or {make}" if kept else make
    raise WeightsError(f"{name} holds no threshold for FAR {far:g}; {there}")


def check_same_weights(table: EmbeddingTable, folder: Path) -> None:
    """Raise DataError where embeddings cannot be of these weights: a threshold belongs to the weights that it was
    chosen for. A table that does not say which weights made it is judged by the size of its embeddings alone."""
    config = read_config(folder)
    size, wanted = table.embeddings.shape[1], config["facemetric"]["embedding_size"]
    theirs = str(config.get("sha256") or "")
    if size != wanted:
        why = f"have {size} numbers, its own have {wanted}"
    elif table.weights and theirs and table.weights != theirs:
        why = f"were made by other weights (sha256 {table.weights[:12]}..., its own {theirs[:12]}...)"
    else:
        return
    raise DataError(
        f"the embeddings {why}: a threshold of {folder} says nothing about them; give the weights that made them, or "
        "a threshold of your own"
    )
