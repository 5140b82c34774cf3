"""Same person or not: verification of listed pairs and of all pairs.

The score is the cosine similarity of two embeddings, -1..1, higher = more alike; the squared distance of
their unit vectors is 2 - 2 * score. A pair is accepted when `score >= threshold`.
Shapes: P pairs, K hardest pairs, N images, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.errors import ConfigError, DataError
from facemetric.evaluation.curves import (
    CURVE_POINTS,
    MANY_PAIRS,
    Floats,
    Histogram,
    Ints,
    OperatingPoint,
    Roc,
    Scores,
    auc,
    eer,
    histogram,
    roc,
    split_scores,
    tar_at_far,
)
from facemetric.evaluation.figures import Figure, Heading, tar_name
from facemetric.evaluation.folds import FoldAccuracy, check_folds, draw_folds, fold_accuracy

if TYPE_CHECKING:
    from facemetric.evaluation.intervals.records import Interval  # imports this file

SCORE = "cosine similarity"
FARS = (1e-1, 1e-2, 1e-3)
LEADING_FAR = 1e-3  # the TAR that leads the figures is that of the nearest FAR
CHUNK = 8192  # pairs scored at once: 8 MiB of float64 at D = 128
HARDEST = 24  # mistakes of each kind that are kept to be looked at


class HardPairs(NamedTuple):
    """Pairs of images, the hardest first: rows of both (K,) and their scores (K,)."""

    rows_a: Ints
    rows_b: Ints
    score: Floats


class Hardest(NamedTuple):
    """The genuine pairs of the lowest scores and the impostor pairs of the highest, mistakes or not."""

    genuine: HardPairs
    impostor: HardPairs


@dataclass(frozen=True, repr=False)
class Verification:
    """How well scores tell one person from two. `accuracy` is None for all pairs, which have no folds;
    `hardest` where rows of images are known.

    `exact_from`: thresholds below this score lie on a grid (all pairs of a large set); -inf where none do.
    """

    n_genuine: int
    n_impostor: int
    auc: float
    eer: float
    eer_threshold: float
    points: tuple[OperatingPoint, ...]
    roc: Roc
    histogram: Histogram
    accuracy: FoldAccuracy | None = None
    hardest: Hardest | None = None
    score: str = SCORE
    exact_from: float = -math.inf

    def __repr__(self) -> str:
        pairs = f"{self.n_genuine:,} genuine and {self.n_impostor:,} impostor pairs"
        return f"Verification({pairs}, AUC {self.auc:.4f}, EER {self.eer:.4f})"

    def tar(self, far: float) -> float:
        """TAR at a FAR that was asked for. Raises ConfigError where it was not, or impostors are too few."""
        for point in self.points:
            if math.isclose(point.wanted, far):
                if not point.supported:
                    raise ConfigError(
                        f"FAR {far:g} needs {1 / far:.0f} impostor pairs, there are {self.n_impostor}"
                    )
                return point.true_rate
        raise ConfigError(
            f"FAR {far:g} was not asked for; there are {', '.join(f'{p.wanted:g}' for p in self.points)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under plain names, without the curve; what is undefined is None."""
        fars = {}
        for p in self.points:
            fars[f"{p.wanted:g}"] = {
                "supported": p.supported,
                "tar": plain(p.true_rate),
                "far": plain(p.false_rate),
                "threshold": plain(p.threshold),
                "accepted_impostors": p.accepted_impostors,
            }
        out: dict[str, Any] = {
            "score": self.score,
            "genuine_pairs": self.n_genuine,
            "impostor_pairs": self.n_impostor,
            "lowest_supported_far": 1 / self.n_impostor,
            "auc": self.auc,
            "eer": self.eer,
            "eer_threshold": plain(self.eer_threshold),
            "tar_at_far": fars,
            "thresholds_on_a_grid_below": plain(self.exact_from),
        }
        if self.accuracy is not None:
            a = self.accuracy
            out["accuracy"] = {
                "mean": a.mean,
                "standard_deviation_population": a.deviation_population,
                "standard_deviation_sample": plain(a.deviation_sample),
                "standard_error": plain(a.standard_error),
                "folds": a.accuracies.tolist(),
                "thresholds": [plain(t) for t in a.thresholds.tolist()],
                "folds_drawn_at_random": a.drawn,
            }
        return out

    def figures(self, intervals: Mapping[str, Interval]) -> list[Figure]:
        """TAR at each FAR, EER, AUC, accuracy, with intervals by name; what lacks pairs comes last of its kind."""
        heading = Heading("Verification")
        measured = [p for p in self.points if p.supported]
        lead = min(measured, key=lambda p: abs(math.log10(p.wanted / LEADING_FAR)), default=None)
        rows = []
        for p in measured + sorted((p for p in self.points if not p.supported), key=lambda p: -p.wanted):
            several = "" if p.accepted_impostors == 1 else "s"
            note = f"threshold {p.threshold:.4f}, {p.accepted_impostors:,} false accept{several}"
            lacking = f"has {self.n_impostor:,} of {1 / p.wanted:,.0f} impostor pairs"
            rows.append(
                Figure(
                    tar_name(p.wanted),
                    f"TAR at FAR = {p.wanted:g}",
                    p.true_rate if p.supported else None,
                    intervals.get(tar_name(p.wanted)),
                    heading,
                    note if p.supported else lacking,
                    "of pairs of one person, the share that is accepted where that share of two people's is",
                    headline=1 if p is lead else 0,
                    series="TAR at FAR",
                )
            )
        about = "equal error rate; lower is better"
        rows.append(
            Figure("eer", "EER", self.eer, intervals.get("eer"), heading, about=about, headline=3, error=True)
        )
        about = "area under the ROC"
        rows.append(Figure("auc", "AUC", self.auc, intervals.get("auc"), heading, about=about, headline=4))
        if self.accuracy is not None:
            a = self.accuracy
            rows.append(
                Figure(
                    "accuracy",
                    "Accuracy",
                    a.mean,
                    intervals.get("accuracy"),
                    heading,
                    f"over folds: deviation {a.deviation_sample:.4f} (population {a.deviation_population:.4f}), "
                    f"standard error {a.standard_error:.4f}{', folds drawn at random' if a.drawn else ''}",
                    f"mean of {len(a.accuracies)} folds",
                    headline=2,
                )
            )
        return rows


def plain(value: float) -> float | None:
    """A number as JSON can hold it: None where it is not finite."""
    return float(value) if math.isfinite(value) else None


def pair_scores(
    embeddings: npt.ArrayLike, rows_a: npt.ArrayLike, rows_b: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Cosine similarity (P,) of rows_a (P,) and rows_b (P,) of embeddings (N, D), float64 in -1..1."""
    emb_ND, a, b = np.asarray(embeddings), np.asarray(rows_a), np.asarray(rows_b)
    if a.shape != b.shape or a.ndim != 1:
        raise DataError(f"rows of shapes {a.shape} and {b.shape}; needed two of shape (pairs,)")
    score_P = np.empty(len(a))
    for start in range(0, len(a), CHUNK):
        part = slice(start, start + CHUNK)
        one, two = emb_ND[a[part]].astype(np.float64), emb_ND[b[part]].astype(np.float64)
        lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise DataError("an embedding among the pairs is zero or not finite; embed these images again")
        score_P[part] = np.einsum("pd,pd->p", one, two) / lengths
    return score_P.clip(-1, 1, out=score_P)  # rounded cosines pass 1


def hardest_pairs(
    score: npt.ArrayLike,
    same: npt.ArrayLike,
    rows_a: npt.ArrayLike,
    rows_b: npt.ArrayLike,
    count: int = HARDEST,
) -> Hardest:
    """The `count` hardest of each kind among listed pairs: scores, `same` and both rows (P,)."""
    score_P, same_P = np.asarray(score), np.asarray(same, dtype=bool)
    a_P, b_P = np.asarray(rows_a), np.asarray(rows_b)
    kinds = []
    for kind, hardness_P in ((True, score_P), (False, -score_P)):
        places = np.flatnonzero(same_P == kind)
        worst = places[np.argsort(hardness_P[places], kind="stable")[:count]]
        kinds.append(HardPairs(a_P[worst], b_P[worst], score_P[worst]))
    return Hardest(*kinds)


def verify_pairs(
    score: npt.ArrayLike,
    same: npt.ArrayLike,
    *,
    fold: npt.ArrayLike | None = None,
    fars: Sequence[float] = FARS,
    folds: int = 10,
    seed: int = 0,
) -> Verification:
    """All figures of listed pairs: scores (P,), higher = more alike, `same` (P,), `fold` (P,).

    Without `fold`, `folds` are drawn at random with `seed` (and the record says so). Raises DataError where scores
    are not finite, a kind is missing, or `fold` leaves a fold no threshold (`check_folds`).
    """
    points = CURVE_POINTS if np.size(same) > MANY_PAIRS else None
    found = figures_of_scores(*split_scores(score, same), fars, points)
    if fold is None:
        least = min(found.n_genuine, found.n_impostor)
        fold_P = draw_folds(same, max(2, min(folds, least)), seed)
    else:
        fold_P = np.asarray(fold)
        check_folds(same, fold_P)
    return replace(found, accuracy=fold_accuracy(score, same, fold_P, drawn=fold is None))


def figures_of_scores(
    genuine: Scores, impostor: Scores, fars: Sequence[float], points: int | None
) -> Verification:
    """The figures of both kinds of scores, without folds; the curve has `points` at most, all where None."""
    rate, threshold = eer(genuine, impostor)
    return Verification(
        genuine.total,
        impostor.total,
        auc(genuine, impostor),
        rate,
        threshold,
        tuple(tar_at_far(genuine, impostor, far) for far in fars),
        roc(genuine, impostor, points),
        histogram(genuine, impostor),
    )
