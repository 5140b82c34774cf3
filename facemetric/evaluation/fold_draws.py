"""The accuracy over folds when persons are drawn anew: each draw chooses its thresholds again, as the protocol does.

Thresholds held fast would make the interval a tenth too narrow. Shapes: P pairs, B draws, T different scores.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from facemetric.evaluation.curves import Floats
from facemetric.evaluation.verification import fold_accuracy

PER_PASS = 16  # draws at once: 16 x 6,000 pairs of float64 stay in a core's cache


class FoldDraws:
    """Mean accuracy over folds of scores, `same` and `fold` (P,), for weighted pairs. `value`: with equal weights."""

    def __init__(self, score: npt.ArrayLike, same: npt.ArrayLike, fold: npt.ArrayLike) -> None:
        self.value = fold_accuracy(score, same, fold).mean
        score_P = np.asarray(score)
        self.order = np.argsort(-score_P, kind="stable")
        self.same = np.asarray(same, dtype=bool)[self.order]
        fold_P = np.asarray(fold)[self.order]
        self.folds = [fold_P == name for name in np.unique(fold_P)]
        self.ends = np.append(np.flatnonzero(np.diff(score_P[self.order])), len(score_P) - 1)

    def weighted(self, weight_BP: Floats) -> Floats:
        """The accuracy (B, 1) of each draw of weights; both kinds keep their share, as a protocol does."""
        parts = range(0, len(weight_BP), PER_PASS)
        return np.concatenate([self._weighted(weight_BP[at : at + PER_PASS, self.order]) for at in parts])

    def _weighted(self, weight_BP: Floats) -> Floats:
        for kind in (self.same, ~self.same):
            weight_BP[:, kind] *= kind.sum() / weight_BP[:, kind].sum(1, keepdims=True)
        # Accepting one pair more wins its weight where it is genuine, and loses it where it is not.
        gain_BP = weight_BP * np.where(self.same, 1, -1)
        won_BT = self._won(gain_BP)
        draw_B = np.arange(len(weight_BP))
        accuracy_B = np.zeros(len(weight_BP))
        for test in self.folds:
            others_BT = self._won(gain_BP * ~test)
            cut_B = others_BT.argmax(1)
            none_B = others_BT[draw_B, cut_B] < 0  # accepting nothing wins more
            right_B = np.where(none_B, 0, won_BT[draw_B, cut_B] - others_BT[draw_B, cut_B])
            right_B += weight_BP[:, test & ~self.same].sum(1)
            accuracy_B += right_B / weight_BP[:, test].sum(1)
        return accuracy_B[:, None] / len(self.folds)

    def _won(self, gain_BP: Floats) -> Floats:
        """Sums (B, T) down to each different score."""
        won_BP = np.cumsum(gain_BP, axis=1)
        return won_BP if len(self.ends) == won_BP.shape[1] else won_BP[:, self.ends]


def centred(draws_B1: Floats, value: float) -> Floats:
    """Draws about the figure itself: choosing on a draw costs a little accuracy a second time."""
    return draws_B1 + (value - draws_B1.mean())
