"""Verification at its edges: the record word for word, the messages whole, odd inputs, memory."""

import math
import re
import tracemalloc

import numpy as np
import pytest

from facemetric.errors import DataError
from facemetric.evaluation.curves import auc, eer, histogram, roc, split_scores
from facemetric.evaluation.table import unit_rows
from facemetric.evaluation.verification import (
    FARS,
    HARDEST,
    draw_folds,
    fold_accuracy,
    hardest_pairs,
    pair_scores,
    verify_pairs,
)


def whole(message):
    return f"^{re.escape(message)}$"


def test_the_record_word_for_word():
    # Fold 0 is judged at 0.8, and 0.4 is then wrong; fold 1 at 0.4, the middle of 0.9 and 0.4 that are as good.
    score, same, fold = [0.9, 0.8, 0.4, 0.6, 0.2, 0.1], [1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 1]
    record = verify_pairs(score, same, fold=fold, fars=(0.4, 0.1))
    assert record.to_dict() == {
        "score": "cosine similarity",
        "genuine_pairs": 3,
        "impostor_pairs": 3,
        "lowest_supported_far": 1 / 3,
        "auc": pytest.approx(8 / 9),
        "eer": pytest.approx(1 / 3),
        "eer_threshold": 0.6,
        "tar_at_far": {
            "0.4": {
                "supported": True,
                "tar": 1.0,
                "far": pytest.approx(1 / 3),
                "threshold": 0.4,
                "accepted_impostors": 1,
            },
            "0.1": {
                "supported": False,
                "tar": None,
                "far": None,
                "threshold": None,
                "accepted_impostors": 0,
            },
        },
        "thresholds_on_a_grid_below": None,
        "accuracy": {
            "mean": 0.875,
            "standard_deviation_population": 0.125,
            "standard_deviation_sample": pytest.approx(0.125 * math.sqrt(2)),
            "standard_error": pytest.approx(0.125),
            "folds": [0.75, 1.0],
            "thresholds": [0.8, 0.4],
            "folds_drawn_at_random": False,
        },
    }
    np.testing.assert_array_equal(record.accuracy.fold, fold)
    kinds = split_scores(score, same)
    np.testing.assert_equal(record.roc, roc(*kinds))
    np.testing.assert_equal(record.histogram, histogram(*kinds))
    assert (record.n_genuine, record.n_impostor) == (3, 3)
    assert (record.auc, (record.eer, record.eer_threshold)) == (auc(*kinds), eer(*kinds))


def test_the_folds_of_a_seed_stay_what_they_are():
    """Figures of two versions are comparable only where the same pairs are judged together."""
    assert draw_folds(np.arange(12) % 3 == 0, 3, seed=0).tolist() == [1, 1, 0, 2, 2, 1, 0, 0, 2, 0, 1, 0]
    assert not fold_accuracy([0.1, 0.2], [True, False], [0, 1]).drawn


def test_defaults_are_those_of_the_protocol():
    rng = np.random.default_rng(5)
    same = np.arange(60) % 3 == 0
    score = rng.normal(size=60)
    np.testing.assert_array_equal(draw_folds(same), draw_folds(same, 10, 0))
    record = verify_pairs(score, same)
    assert tuple(p.wanted for p in record.points) == FARS == (0.1, 0.01, 0.001)
    np.testing.assert_array_equal(record.accuracy.fold, draw_folds(same, 10, 0))
    chosen = verify_pairs(score, same, folds=4, seed=7)
    np.testing.assert_array_equal(chosen.accuracy.fold, draw_folds(same, 4, 7))
    rows = np.arange(60)
    found = hardest_pairs(score, same, rows, rows)
    assert (len(found.genuine.score), len(found.impostor.score)) == (20, HARDEST)


def test_no_fold_is_without_one_of_each_kind_while_that_can_be():
    few = verify_pairs([0.9, 0.8, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1], [1, 1, 1, 0, 0, 0, 0, 0])
    assert len(few.accuracy.accuracies) == 3
    least = verify_pairs([0.9, 0.5, 0.4, 0.3], [1, 0, 0, 0])
    assert len(least.accuracy.accuracies) == 2
    one_of_each = verify_pairs([0.9, 0.3], [1, 0])
    assert sorted(one_of_each.accuracy.fold) == [0, 1]
    assert sorted(draw_folds([1, 0, 1, 0, 0], 5)) == [0, 1, 2, 3, 4]


def test_any_number_but_zero_says_same():
    score, same, other = [0.9, 0.3, 0.4, 0.1], [3, 2, 0, 0], [True, True, False, False]
    rows, fold = [0, 1, 2, 3], [0, 1, 0, 1]
    np.testing.assert_array_equal(draw_folds(same, 2), draw_folds(other, 2))
    np.testing.assert_array_equal(
        fold_accuracy(score, same, fold).accuracies, fold_accuracy(score, other, fold).accuracies
    )
    found = hardest_pairs(score, same, rows, rows)
    assert found.genuine.rows_a.tolist() == [1, 0]
    assert found.impostor.rows_a.tolist() == [2, 3]


def test_the_first_of_equally_hard_pairs_comes_first():
    score, same = np.zeros(200), np.arange(200) % 2 == 0
    found = hardest_pairs(score, same, np.arange(200), np.arange(200), 5)
    assert found.genuine.rows_a.tolist() == [0, 2, 4, 6, 8]
    assert found.impostor.rows_b.tolist() == [1, 3, 5, 7, 9]


def test_unit_rows_are_of_length_one_and_float32():
    for rows in ([[3.0, 4.0]], np.array([[3, 4]]), np.array([[3.0, 4.0]], np.float16)):
        unit = unit_rows(rows)
        assert unit.dtype == np.float32
        np.testing.assert_allclose(unit, [[0.6, 0.8]], rtol=1e-7)
    # the squares are above what float32 holds
    np.testing.assert_allclose(unit_rows(np.array([[3e30, 4e30]], np.float32)), [[0.6, 0.8]], rtol=1e-6)
    with pytest.raises(DataError, match="1 of 1 embeddings are zero"):
        unit_rows([[1e-60, 0.0]])  # 0 as float32


@pytest.mark.parametrize("shape", [(3,), (2, 2, 2), (0, 3), (3, 0)])
def test_unit_rows_of_another_shape(shape):
    with pytest.raises(DataError, match=whole(f"embeddings of shape {shape}; needed (images, size)")):
        unit_rows(np.ones(shape))


def test_pair_scores_of_rows_that_do_not_meet():
    emb = np.ones((4, 2))
    for a, b in (((2,), (3,)), ((2, 2), (2, 2)), ((2, 1), (2,))):
        with pytest.raises(
            DataError, match=whole(f"rows of shapes {a} and {b}; needed two of shape (pairs,)")
        ):
            pair_scores(emb, np.zeros(a, int), np.zeros(b, int))


@pytest.mark.parametrize("bad", [0.0, np.inf, np.nan])
def test_pair_scores_of_a_row_without_direction(bad):
    emb = np.array([[0.1, 0.2], [bad, 0.0]])
    with pytest.raises(
        DataError,
        match=whole("an embedding among the pairs is zero or not finite; embed these images again"),
    ):
        pair_scores(emb, [0, 0], [0, 1])
    np.testing.assert_allclose(pair_scores(emb, [0, 0], [0, 0]), 1)  # short rows are rows


def test_pair_scores_take_little_memory():
    """50,000 pairs of 64 numbers are 24 MiB a side in float64; the pairs go through in parts."""
    emb = np.random.default_rng(0).normal(size=(10, 64)).astype(np.float32)
    rows = np.arange(50_000) % 10
    tracemalloc.start()
    try:
        pair_scores(emb, rows, rows[::-1])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 24 * 2**20


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
