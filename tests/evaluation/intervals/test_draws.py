from __future__ import annotations

import numpy as np
import pytest
import reference_metrics as slow

from facemetric.errors import DataError
from facemetric.evaluation.folds import fold_accuracy
from facemetric.evaluation.intervals import draws as person_draws
from facemetric.evaluation.intervals.draws import (
    FoldDraws,
    _scale,
    centred,
    mean_draws,
    numbered_persons,
    pair_weights,
    persons_of_pairs,
)


def test_persons_that_are_numbered_already_are_not_copied():
    """Pairs may be many millions."""
    one, other = np.array([0, 1, 2, 0], np.int32), np.array([0, 2, 2, 1], np.int32)
    (a, b), number = numbered_persons((one, other), one == other)
    assert a is one
    assert b is other
    assert number == 3
    (a, b), number = numbered_persons((one * 2, other * 2), one == other)  # not every number is somebody
    assert (a.tolist(), b.tolist(), number) == (one.tolist(), other.tolist(), 3)
    assert a.dtype == np.int32


def test_scale_between_pairs_alone_and_all_pairs():
    rng = np.random.default_rng(0)
    alone = _scale(rng.normal(size=4000), np.arange(4000), np.arange(4000) + 4000, 8000)
    assert alone == pytest.approx((2**0.5 - 1) ** 0.5)  # (1 + v)^2 - 1 = 1
    i, j = np.triu_indices(120, 1)
    difficulty = rng.normal(size=120)
    together = _scale(difficulty[i] + difficulty[j] + 0.1 * rng.normal(size=len(i)), i, j, 120)
    assert 0.97 < together <= 1
    assert _scale(np.zeros(5), np.arange(5), np.arange(5) + 5, 10) == 1


def test_a_pair_of_people_seen_once_has_the_variance_of_one_trial():
    same = np.arange(600) < 300
    score = np.random.default_rng(0).normal(same)
    persons = np.arange(600), np.where(same, np.arange(600), np.arange(600) + 600)
    weight = np.concatenate(list(pair_weights(score, same, persons, 2000, 0)))
    assert weight.shape == (2000, 600)
    assert weight[:, same].var() == pytest.approx(1, rel=0.05)
    assert weight[:, ~same].var() == pytest.approx(1, rel=0.05)
    assert weight[:, ~same].mean() == pytest.approx(1, rel=0.01)


def test_many_pairs_are_drawn_a_few_at_a_time_and_the_same(monkeypatch):
    same = np.arange(600) < 300
    score = np.random.default_rng(0).normal(same)
    persons = np.arange(600) % 90, np.where(same, np.arange(600) % 90, (np.arange(600) + 1) % 90)
    whole = list(pair_weights(score, same, persons, 150, 0))
    assert [len(chunk) for chunk in whole] == [64, 64, 22]
    for budget, size in ((8 * 600 * 7 + 1, 7), (1, 1)):
        monkeypatch.setattr(person_draws, "BUDGET", budget)
        pieces = list(pair_weights(score, same, persons, 150, 0))
        assert {len(chunk) for chunk in pieces[:-1]} == {size}
        np.testing.assert_array_equal(np.concatenate(pieces), np.concatenate(whole))


def test_means_of_one_image_that_changes():
    change = np.zeros((200, 1))
    change[7] = 1
    drawn = mean_draws(change, np.arange(200), draws=4000)
    assert (drawn == 0).mean() == pytest.approx((1 - 1 / 200) ** 200, abs=0.03)
    assert drawn.mean() == pytest.approx(1 / 200, rel=0.1)


def test_persons_from_genuine_links():
    a, b = persons_of_pairs([0, 1, 3, 0, 5], [1, 2, 4, 3, 0], [True, True, True, False, False])
    assert a[0] == b[0] == a[1] == b[1]
    assert a[2] == b[2] != a[0]
    assert len({a[0], a[2], a[4]}) == 3


def test_values_and_persons_that_do_not_match():
    with pytest.raises(
        DataError, match=r"values of shape \(3,\) and persons of shape \(2,\); needed one for"
    ):
        mean_draws(np.ones((3, 4)), [0, 1])
    with pytest.raises(DataError, match=r"values of shape \(0,\)"):
        mean_draws(np.ones((0, 4)), [])


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

        others = score[~test].tolist()
        tried = [np.inf, *sorted(set(others), reverse=True)]
        threshold = slow.halfway_below(tried[int(np.argmax([won(t, ~test) for t in tried]))], others)
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
