from __future__ import annotations

import math

import numpy as np
import pytest
import reference_metrics as slow
from hypothesis import given
from hypothesis import strategies as st
from scored_pairs import quick, scored, whole

from facemetric.errors import DataError
from facemetric.evaluation.folds import check_folds, draw_folds, fold_accuracy
from facemetric.evaluation.verification import verify_pairs


@quick
@given(scored(), st.integers(2, 4), st.integers(0, 5))
def test_fold_accuracy_as_slow_twin(case, folds, seed):
    score, same = case
    fold = np.random.default_rng(seed).permutation(np.arange(len(score)) % folds)
    ours = fold_accuracy(score, same, fold)
    accuracies, thresholds = slow.fold_accuracies(score, same, fold)
    np.testing.assert_allclose(ours.accuracies, accuracies)
    np.testing.assert_array_equal(ours.thresholds, thresholds)
    assert ours.mean == pytest.approx(np.mean(accuracies))
    assert ours.deviation_sample == pytest.approx(np.std(accuracies, ddof=1))
    assert ours.deviation_population == pytest.approx(np.std(accuracies))
    n = len(accuracies)
    assert ours.standard_error == pytest.approx(np.std(accuracies, ddof=1) / n**0.5)
    mapped = fold_accuracy(4 * score - 1, same, fold)
    np.testing.assert_array_equal(mapped.accuracies, ours.accuracies)


def test_the_threshold_never_sees_its_own_fold():
    # Fold 0 alone would accept 0.9 only; the other folds accept 0.5, at which fold 0 has one of two right.
    score = [0.9, 0.8, 0.5, 0.1, 0.5, 0.1]
    same = [True, False, True, False, True, False]
    result = fold_accuracy(score, same, [0, 0, 1, 1, 2, 2])
    assert result.thresholds[0] == pytest.approx(0.3)
    assert result.accuracies[0] == 0.5


@pytest.mark.parametrize("each", [10, 50, 300])
def test_scores_that_are_told_apart_are_right_in_every_fold(each):
    """The lowest genuine pair is above the middle of the gap of the others, whichever fold it is in."""
    rng = np.random.default_rng(each)
    score = np.concatenate([rng.uniform(0.6, 1, each), rng.uniform(-0.5, 0.2, each)])
    found = verify_pairs(score, np.arange(2 * each) < each, folds=10)
    assert (found.auc, found.eer, found.accuracy.mean) == (1, 0, 1)
    genuine, impostor = score[:each], score[each:]
    for name, threshold in enumerate(found.accuracy.thresholds):
        others = found.accuracy.fold != name
        middle = (genuine[others[:each]].min() + impostor[others[each:]].max()) / 2
        assert threshold == pytest.approx(middle)


def test_a_gap_of_one_float_has_no_middle():
    low = np.float64(0.5)
    high = np.nextafter(low, 1)
    found = fold_accuracy([high, low, high, low], [1, 0, 1, 0], [0, 0, 1, 1])
    assert (found.mean, found.thresholds.tolist()) == (1, [high, high])
    small = np.array(
        [high, low, high, low], np.float32
    )  # equal as float32: one score, refused or accepted as one
    assert fold_accuracy(small, [1, 0, 1, 0], [0, 0, 1, 1]).mean == 0.5
    close = np.array([0.5, 0.5 - 2**-25, 0.5, 0.5 - 2**-25], np.float32)  # their middle is no float32
    assert fold_accuracy(close, [1, 0, 1, 0], [0, 0, 1, 1]).mean == 1


def test_folds_that_hold_one_kind_are_refused_or_said():
    score = [0.9, 0.8, 0.3, 0.2]
    with pytest.raises(
        DataError, match=r"fold 1 of 2 holds all 2 genuine pairs: a threshold is chosen on the other"
    ):
        verify_pairs(score, [1, 1, 0, 0], fold=[5, 5, 7, 7])
    with pytest.raises(DataError, match=r"fold 2 of 2 holds all 1 impostor pairs"):
        verify_pairs(score, [1, 1, 1, 0], fold=[5, 7, 5, 7])
    same, fold = np.tile([1, 1, 0, 0], 2), np.repeat([0, 1, 2, 3], 2)
    assert verify_pairs(np.tile(score, 2), same, fold=fold).accuracy.mean == 1
    assert check_folds(same, fold).startswith(
        "4 of 4 folds hold one kind of pairs alone (first: fold 1, 2 genuine and 0 impostor pairs): "
    )
    assert check_folds([1, 0, 1, 0], [0, 0, 1, 1]) == ""


def test_drawn_folds_are_balanced_seeded_and_said():
    same = np.arange(200) % 4 == 0
    fold = draw_folds(same, 10, seed=3)
    np.testing.assert_array_equal(np.bincount(fold[same]), 5)
    np.testing.assert_array_equal(np.bincount(fold[~same]), 15)
    np.testing.assert_array_equal(fold, draw_folds(same, 10, seed=3))
    assert (fold != draw_folds(same, 10, seed=4)).any()
    score = np.linspace(0, 1, 200)
    assert verify_pairs(score, same).to_dict()["accuracy"]["folds_drawn_at_random"] is True
    assert verify_pairs(score, same, fold=fold).to_dict()["accuracy"]["folds_drawn_at_random"] is False


def test_the_folds_of_a_seed_stay_what_they_are():
    """Figures of two versions are comparable only where the same pairs are judged together."""
    assert draw_folds(np.arange(12) % 3 == 0, 3, seed=0).tolist() == [1, 1, 0, 2, 2, 1, 0, 0, 2, 0, 1, 0]
    assert not fold_accuracy([0.1, 0.2], [True, False], [0, 1]).drawn


def test_no_fold_is_without_one_of_each_kind_while_that_can_be():
    few = verify_pairs([0.9, 0.8, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1], [1, 1, 1, 0, 0, 0, 0, 0])
    assert len(few.accuracy.accuracies) == 3
    least = verify_pairs([0.9, 0.5, 0.4, 0.3], [1, 0, 0, 0])
    assert len(least.accuracy.accuracies) == 2
    one_of_each = verify_pairs([0.9, 0.3], [1, 0])
    assert sorted(one_of_each.accuracy.fold) == [0, 1]
    assert sorted(draw_folds([1, 0, 1, 0, 0], 5)) == [0, 1, 2, 3, 4]


def test_fold_accuracy_says_what_it_got():
    with pytest.raises(DataError, match=whole("scores, labels and folds of shapes (2,), (3,), (2,)")):
        fold_accuracy([0.1, 0.2], [True, False, True], [0, 1])
    with pytest.raises(DataError, match=whole("scores, labels and folds of shapes (1, 2), (1, 2), (1, 2)")):
        fold_accuracy([[0.1, 0.2]], [[True, False]], [[0, 1]])
    with pytest.raises(DataError, match=whole("scores, labels and folds of shapes (2,), (2,), (3,)")):
        fold_accuracy([0.1, 0.2], [True, False], [0, 1, 1])
    with pytest.raises(
        DataError, match=whole("1 fold; the threshold is chosen on the other folds, so needed two or more")
    ):
        fold_accuracy([0.1, 0.2], [True, False], [0, 0])


def test_where_nothing_is_worth_accepting_nothing_is():
    result = fold_accuracy([0.9, 0.1, 0.8, 0.2], [False, True, False, True], [0, 0, 1, 1])
    # on two pairs: reject all has one right, accept all has one right, and only the impostor none
    assert result.thresholds.tolist() == [0.2, 0.1]
    none = fold_accuracy([0.9, 0.1, 0.8, 0.2], [False, True, False, False], [0, 0, 1, 1])
    assert none.thresholds[0] == math.inf
    assert none.accuracies[0] == 0.5
