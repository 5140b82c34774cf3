"""The accuracy over folds when persons are drawn anew: each draw chooses its thresholds again, as the protocol does.

Thresholds held fast would make the interval a tenth too narrow. Shapes: P pairs, B draws, T different scores.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from facemetric.evaluation.curves import Floats
from facemetric.evaluation.verification import fold_accuracy


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
        weight_BP = weight_BP[:, self.order]
        for kind in (self.same, ~self.same):
            weight_BP[:, kind] *= kind.sum() / weight_BP[:, kind].sum(1, keepdims=True)
        # Accepting one pair more wins its weight where it is genuine, and loses it where it is not.
        gain_BP = np.where(self.same, weight_BP, -weight_BP)
        won_BT = self._won(gain_BP)
        draw_B = np.arange(len(weight_BP))
        accuracy_B = np.zeros(len(weight_BP))
        for test in self.folds:
            own_BT = self._won(np.where(test, gain_BP, 0))
            cut_B = (won_BT - own_BT).argmax(1)
            right_B = own_BT[draw_B, cut_B] + weight_BP[:, test & ~self.same].sum(1)
            accuracy_B += right_B / weight_BP[:, test].sum(1)
        return accuracy_B[:, None] / len(self.folds)

    def _won(self, gain_BP: Floats) -> Floats:
        """Sums (B, T + 1) down to each different score, the first for accepting nothing."""
        won_BT = np.cumsum(gain_BP, axis=1)[:, self.ends]
        return np.concatenate([np.zeros((len(won_BT), 1)), won_BT], axis=1)


def centred(draws_B1: Floats, value: float) -> Floats:
    """Draws about the figure itself: choosing on a draw costs a little accuracy a second time."""
    return draws_B1 + (value - draws_B1.mean())
