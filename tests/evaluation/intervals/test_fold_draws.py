"""The accuracy of weighted pairs against the protocol, written as loops."""

from __future__ import annotations

import numpy as np
import pytest

from facemetric.evaluation.intervals.draws import FoldDraws, centred
from facemetric.evaluation.verification import fold_accuracy


def by_loops(score: np.ndarray, same: np.ndarray, fold: np.ndarray, weight: np.ndarray) -> float:
    """The mean over folds of the weighted share that is right, at the best threshold of the other folds."""
    weight = weight.copy()
    for kind in (True, False):
        weight[same == kind] *= (same == kind).sum() / weight[same == kind].sum()
    shares = []
    for name in set(fold.tolist()):
        test = fold == name

        def won(threshold: float, rows: np.ndarray) -> float:
            return float(weight[rows][(score[rows] >= threshold) == same[rows]].sum())

        tried = [np.inf, *sorted(set(score.tolist()), reverse=True)]
        threshold = tried[int(np.argmax([won(t, ~test) for t in tried]))]
        shares.append(won(threshold, test) / weight[test].sum())
    return float(np.mean(shares))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [60, 400])
def test_weighted_accuracy_as_by_loops(n: int, ties: bool) -> None:
    rng = np.random.default_rng(0)
    same, fold = np.arange(n) % 5 < 2, rng.permutation(n) % 4
    score = same + rng.normal(size=n)
    if ties:
        score = np.round(score, 1)
    weight = rng.exponential(size=(18, n))  # more than one pass
    found = FoldDraws(score, same, fold).weighted(weight)
    assert found.shape == (18, 1)
    assert found[:, 0] == pytest.approx([by_loops(score, same, fold, w) for w in weight])


def test_equal_weights_give_the_figure_where_no_thresholds_tie() -> None:
    same = np.arange(400) % 2 == 0
    score = np.where(same, 1.0, -1.0) + np.where(np.arange(400) % 8 < 2, -2.0 * (2 * same - 1), 0)
    draws = FoldDraws(score, same, np.arange(400) // 40)
    assert draws.value == fold_accuracy(score, same, np.arange(400) // 40).mean == 0.75
    assert draws.weighted(np.full((1, 400), 3.0))[0, 0] == pytest.approx(0.75)


def test_draws_stand_about_the_figure() -> None:
    moved = centred(np.array([[0.5], [0.7]]), 0.9)
    assert moved[:, 0] == pytest.approx([0.8, 1.0])
