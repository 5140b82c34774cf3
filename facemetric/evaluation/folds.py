"""Folds of listed pairs: the accuracy of each fold, at the threshold that is best on the others.

Source: Huang et al. 2007, Labeled Faces in the Wild, View 2.
Shapes: P pairs, F folds, T scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from facemetric.errors import DataError, plural
from facemetric.evaluation.curves import Floats


@dataclass(frozen=True, repr=False)
class FoldAccuracy:
    """Accuracy 0..1 in each fold, (F,), at the threshold (F,) chosen on the other folds (see `fold_accuracy`).

    `deviation_population` divides by F, `deviation_sample` by F - 1; `standard_error` is the sample deviation
    over sqrt(F), what the LFW protocol reports. `drawn`: the pairs had no folds and were dealt out
    at random. `fold` (P,): the fold of each pair.
    """

    mean: float
    deviation_population: float
    deviation_sample: float
    standard_error: float
    accuracies: Floats
    thresholds: Floats
    drawn: bool
    fold: npt.NDArray

    def __repr__(self) -> str:
        return f"FoldAccuracy({self.mean:.4f} +- {self.standard_error:.4f}, {len(self.accuracies)} folds)"


def draw_folds(same: npt.ArrayLike, folds: int = 10, seed: int = 0) -> npt.NDArray[np.int32]:
    """Fold 0..F-1 for each pair (P,), the same share of each kind in each, at random."""
    same_P = np.asarray(same, dtype=bool)
    fold_P = np.empty(len(same_P), dtype=np.int32)
    rng, first = np.random.default_rng(seed), 0
    for kind in (True, False):
        rows = rng.permutation(np.flatnonzero(same_P == kind))
        fold_P[rows] = (first + np.arange(len(rows))) % folds
        first = len(rows) if len(rows) < folds else 0  # too few for every fold: the others begin after them
    return fold_P


def below_each(value_T: Floats) -> Floats:
    """For falling scores (T,), the threshold that accepts each and none below: halfway to the next, the last itself."""
    middle_T = value_T.copy()
    middle_T[:-1] += (value_T[1:] - value_T[:-1]) / 2
    middle_T[:-1] = np.where(
        middle_T[:-1] > value_T[1:], middle_T[:-1], value_T[:-1]
    )  # neighbours of a float
    return middle_T


def check_folds(same: npt.ArrayLike, fold: npt.ArrayLike) -> str:
    """What to know of folds (P,) that hold one kind of pairs alone; empty where none does.

    Raises DataError where the folds beside one hold one kind alone: no threshold can be chosen on them.
    """
    same_P = np.asarray(same, dtype=bool)
    names, place_P = np.unique(np.asarray(fold), return_inverse=True)
    count_2F = np.stack(
        [np.bincount(place_P[same_P == kind], minlength=len(names)) for kind in (True, False)]
    )
    for kind, (total, count_F) in zip(
        ("genuine", "impostor"), zip(count_2F.sum(1), count_2F, strict=True), strict=True
    ):
        if total and (alone := np.flatnonzero(count_F == total)).size:
            raise DataError(
                f"fold {alone[0] + 1} of {len(names)} holds all {total} {kind} pairs: a threshold is chosen on the "
                "other folds, which need both kinds; deal the pairs out again, or leave the folds out"
            )
    single = np.flatnonzero((count_2F == 0).any(0))
    if not len(single):
        return ""
    genuine, impostor = count_2F[:, single[0]]
    return (
        f"{len(single)} of {len(names)} folds hold one kind of pairs alone (first: fold {single[0] + 1}, {genuine} "
        f"genuine and {impostor} impostor pairs): the mean over folds then weighs the kinds unevenly"
    )


def fold_accuracy(
    score: npt.ArrayLike, same: npt.ArrayLike, fold: npt.ArrayLike, *, drawn: bool = False
) -> FoldAccuracy:
    """Accuracy of each fold at the threshold that is best on all other folds: scores, `same` and `fold` (P,).

    Every different score of the other folds is tried as the lowest that is accepted, and none. Of equally good
    ones the middle one is taken. The threshold lies halfway from it to the next lower score of those folds, so that
    it is no pair's own score: where all others are told apart, it is in the middle of the gap. (Where all or none
    are accepted there is no gap: it is the lowest score, or inf.)
    Source: Huang et al. 2007, Labeled Faces in the Wild, View 2.
    """
    score_P, same_P = np.asarray(score, dtype=np.float64), np.asarray(same, dtype=bool)
    fold_P = np.asarray(fold)
    if not score_P.shape == same_P.shape == fold_P.shape or score_P.ndim != 1:
        raise DataError(f"scores, labels and folds of shapes {score_P.shape}, {same_P.shape}, {fold_P.shape}")
    names = np.unique(fold_P)
    if len(names) < 2:
        raise DataError(
            f"{plural(len(names), 'fold')}; the threshold is chosen on the other folds, so needed two or more"
        )
    order = np.argsort(score_P)[::-1]
    falling_P, same_falling_P, fold_falling_P = score_P[order], same_P[order], fold_P[order]
    del order  # millions of pairs
    accuracies, thresholds = [], []
    for name in names:
        others = fold_falling_P != name
        thresholds.append(_best_threshold(falling_P[others], same_falling_P[others]))
        test = fold_P == name
        accuracies.append(float(((score_P[test] >= thresholds[-1]) == same_P[test]).mean()))
    acc = np.array(accuracies)
    sample = float(acc.std(ddof=1))
    return FoldAccuracy(
        float(acc.mean()),
        float(acc.std()),
        sample,
        sample / math.sqrt(len(acc)),
        acc,
        np.array(thresholds),
        drawn,
        fold_P,
    )


def _best_threshold(value_T: Floats, same_T: npt.NDArray[np.bool_]) -> float:
    """The threshold of falling scores, of which several may be equal, that most answers are right at."""
    different = np.append(value_T[1:] != value_T[:-1], True)
    # Accepting raises the number of right answers by one for a genuine pair, lowers it for an impostor pair.
    gain = np.cumsum(np.where(same_T, np.int8(1), np.int8(-1)), dtype=np.int32)[different]
    most = max(int(gain.max()), 0)
    best = np.flatnonzero(gain == most) + 1
    if most == 0:  # none accepted is as good
        best = np.append(0, best)
    cut = int(best[len(best) // 2])
    del gain, best  # millions of pairs
    return float(below_each(value_T[different][cut - 1 : cut + 1])[0]) if cut else math.inf
