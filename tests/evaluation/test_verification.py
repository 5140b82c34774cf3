from __future__ import annotations

import json
import math
import tracemalloc

import numpy as np
import pytest
import reference_metrics as slow
from hypothesis import example, given
from hypothesis import strategies as st
from scored_pairs import quick, scored, whole
from sklearn import metrics

from facemetric.errors import ConfigError, DataError
from facemetric.evaluation.curves import allowed_errors, auc, eer, histogram, roc, split_scores, tar_at_far
from facemetric.evaluation.folds import draw_folds, fold_accuracy
from facemetric.evaluation.table import unit_rows
from facemetric.evaluation.verification import FARS, HARDEST, hardest_pairs, pair_scores, verify_pairs

TIED_FARS = (1.0, 0.5, 0.2, 0.1, 0.05)


def figures(score, same):
    g, i = split_scores(score, same)
    return auc(g, i), eer(g, i)[0], [tar_at_far(g, i, far)[1:3] for far in TIED_FARS]


@quick
@given(scored())
def test_roc_and_auc_as_scikit_learn(case):
    score, same = case
    far, tar, threshold = metrics.roc_curve(same, score, drop_intermediate=False)
    ours = roc(*split_scores(score, same))
    np.testing.assert_allclose(ours.far, far)
    np.testing.assert_allclose(ours.tar, tar)
    np.testing.assert_array_equal(ours.threshold, threshold)
    assert auc(*split_scores(score, same)) == pytest.approx(metrics.roc_auc_score(same, score), abs=1e-12)


@quick
@given(scored())
def test_figures_as_slow_twin(case):
    score, same = case
    g, i = split_scores(score, same)
    assert auc(g, i) == pytest.approx(slow.auc(score, same), abs=1e-12)
    assert eer(g, i)[0] == pytest.approx(slow.eer(score, same), abs=1e-12)
    for far in TIED_FARS:
        point = tar_at_far(g, i, far)
        if far * i.total < 1:
            assert not point.supported
            assert math.isnan(point.true_rate)
            continue
        tar, real_far, threshold = slow.tar_at_far(score, same, far)
        assert (point.true_rate, point.false_rate) == pytest.approx((tar, real_far))
        assert point.threshold == threshold
        assert point.accepted_impostors == round(real_far * i.total)


@quick
@given(scored(), st.randoms(use_true_random=False))
def test_invariant_to_order_repetition_and_monotone_maps(case, random):
    score, same = case
    expected = figures(score, same)
    order = list(range(len(score)))
    random.shuffle(order)
    np.testing.assert_equal(figures(score[order], same[order]), expected)
    np.testing.assert_equal(figures(np.exp(3 * score) + 7, same), expected)
    g, i = split_scores(np.tile(score, 3), np.tile(same, 3))
    assert (auc(g, i), eer(g, i)[0]) == pytest.approx(expected[:2])


@quick
@given(scored())
def test_turned_scores_turn_the_auc(case):
    score, same = case
    turned = figures(-score, same)
    assert turned[0] == pytest.approx(1 - figures(score, same)[0])
    assert turned[1] == pytest.approx(1 - figures(score, same)[1])


def test_by_hand():
    # genuine 4 3 2, impostor 3 2 1 0: the tie at 3 and the tie at 2 are one slanted piece each.
    score, same = [4, 3, 2, 3, 2, 1, 0], [1, 1, 1, 0, 0, 0, 0]
    g, i = split_scores(score, np.array(same, bool))
    assert auc(g, i) == pytest.approx((4 + 3.5 + 2.5) / 12)
    # FAR - FRR: -2/3 at (0, 1/3), -1/12 at (1/4, 2/3), 1/2 at (1/2, 1); the last piece is crossed at 1/7.
    assert eer(g, i)[0] == pytest.approx(0.25 + 0.25 / 7)
    assert tar_at_far(g, i, 0.49)[1:5] == (0.25, pytest.approx(2 / 3), 3.0, 1)
    assert tar_at_far(g, i, 0.5)[1:5] == (0.5, 1.0, 2.0, 2)


def test_perfect_and_constant_scores():
    perfect = verify_pairs(np.repeat([1.0, 0.0], 20), np.repeat([True, False], 20), fars=(0.05,))
    assert (perfect.auc, perfect.eer, perfect.tar(0.05), perfect.accuracy.mean) == (1, 0, 1, 1)
    assert perfect.eer_threshold == 1
    constant = verify_pairs(np.zeros(40), np.repeat([True, False], 20), fars=(0.05,))
    assert (constant.auc, constant.eer, constant.tar(0.05), constant.accuracy.mean) == (0.5, 0.5, 0, 0.5)
    assert constant.to_dict()["tar_at_far"]["0.05"]["threshold"] is None


@quick
@example(29, 100)  # 29 / 100 * 100 is below 29
@example(5, 6)  # the float below 5 / 6, times 6, is 5
@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_allowed_errors_is_the_division_as_it_rounds(a, n):
    far = min(a, n) / n
    assert allowed_errors(far, n) == min(a, n)
    assert allowed_errors(float(np.nextafter(far, 0)), n) == min(a, n) - 1


def test_unsupported_far_says_what_is_needed():
    record = verify_pairs([0.9, 0.8, 0.2, 0.1], [True, True, False, False], fars=(0.5, 1e-3))
    assert record.tar(0.5) == 1
    with pytest.raises(ConfigError, match="needs 1000 impostor pairs, there are 2"):
        record.tar(1e-3)
    with pytest.raises(ConfigError, match=r"not asked for; there are 0\.5, 0\.001"):
        record.tar(0.1)
    assert record.to_dict()["tar_at_far"]["0.001"] == {
        "supported": False,
        "tar": None,
        "far": None,
        "threshold": None,
        "accepted_impostors": 0,
    }
    json.dumps(record.to_dict(), allow_nan=False)


def test_pair_scores_are_cosines_in_float64():
    rng = np.random.default_rng(0)
    emb = rng.normal(size=(50, 7)).astype(np.float32) * 30
    a, b = rng.integers(50, size=(2, 20_000))
    expected = (emb[a] * emb[b].astype(float)).sum(1) / np.linalg.norm(emb[a].astype(float), axis=1)
    expected /= np.linalg.norm(emb[b].astype(float), axis=1)
    got = pair_scores(emb, a, b)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, atol=1e-12)
    assert pair_scores(emb, np.arange(50), np.arange(50)).max() <= 1
    assert pair_scores(np.concatenate([emb, -emb]), np.arange(50), np.arange(50, 100)).min() >= -1


@quick
@given(scored())
def test_histogram_counts_every_score(case):
    score, same = case  # multiples of 1/4, so edges of bins too
    found = histogram(*split_scores(score, same))
    edge = np.linspace(-1, 1, 257)
    np.testing.assert_array_equal(found.edge, edge)
    for kind, count in ((True, found.genuine), (False, found.impostor)):
        expected, _ = np.histogram(score[same == kind].clip(-1, 1 - 1e-9), edge)
        np.testing.assert_array_equal(count, expected)


@quick
@given(scored(), st.integers(1, 9))
def test_hardest_pairs(case, count):
    score, same = case
    rows_a, rows_b = np.arange(len(score)) + 7, np.arange(len(score)) + 90
    found = hardest_pairs(score, same, rows_a, rows_b, count)
    for pairs, kind, sign in ((found.genuine, True, 1), (found.impostor, False, -1)):
        places = [i for _, i in sorted((sign * s, i) for i, s in enumerate(score) if same[i] == kind)]
        assert pairs.rows_a.tolist() == [i + 7 for i in places[:count]]
        assert pairs.rows_b.tolist() == [i + 90 for i in places[:count]]
        np.testing.assert_array_equal(pairs.score, score[places[:count]])


def test_thinned_curve_lies_on_the_whole():
    rng = np.random.default_rng(1)
    score = np.concatenate([rng.normal(1, 1, 3000), rng.normal(0, 1, 50_000)]).astype(np.float32)
    same = np.arange(len(score)) < 3000
    g, i = split_scores(score, same)
    thin, whole = roc(g, i, 200), roc(g, i)
    assert 200 < len(thin.far) < 420
    assert set(zip(thin.far, thin.tar, thin.threshold, strict=True)) <= set(
        zip(whole.far, whole.tar, whole.threshold, strict=True)
    )
    assert (thin.far[-1], thin.tar[-1], thin.far[0]) == (1, 1, 0)
    assert (thin.far == 1 / 50_000).any()


@pytest.mark.parametrize(
    ("score", "same", "message"),
    [
        ([0.1, 0.2], [True, True], "2 genuine and 0 impostor"),
        ([0.1, np.nan], [True, False], "1 of 2 scores are not finite"),
        ([0.1, 0.2, 0.3], [True, False], "one label a score"),
    ],
)
def test_bad_scores(score, same, message):
    with pytest.raises(DataError, match=message):
        verify_pairs(score, same)


def test_bad_embeddings_and_fars():
    with pytest.raises(DataError, match="1 of 2 embeddings are zero or not finite, first row 1"):
        unit_rows([[1.0, 0], [0, 0]])
    with pytest.raises(DataError, match="zero or not finite"):
        pair_scores(np.array([[1.0, 0], [np.nan, 0]]), [0], [1])
    with pytest.raises(ConfigError, match="a FAR of 0"):
        verify_pairs([0.1, 0.2], [True, False], fars=(0,))
    with pytest.raises(DataError, match="1 fold"):
        fold_accuracy([0.1, 0.2], [True, False], [0, 0])


def test_the_record_word_for_word():
    # Fold 0 is judged at 0.45, halfway from 0.8 to 0.1: 0.4 and 0.6 are wrong; fold 1 at 0.3, halfway from 0.4 to
    # 0.2: of 0.9 and 0.4, which are as good, the middle one is taken.
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
            "mean": 0.75,
            "standard_deviation_population": 0.25,
            "standard_deviation_sample": pytest.approx(0.25 * math.sqrt(2)),
            "standard_error": pytest.approx(0.25),
            "folds": [0.5, 1.0],
            "thresholds": [pytest.approx(0.45), pytest.approx(0.3)],
            "folds_drawn_at_random": False,
        },
    }
    np.testing.assert_array_equal(record.accuracy.fold, fold)
    kinds = split_scores(score, same)
    np.testing.assert_equal(record.roc, roc(*kinds))
    np.testing.assert_equal(record.histogram, histogram(*kinds))
    assert (record.n_genuine, record.n_impostor) == (3, 3)
    assert (record.auc, (record.eer, record.eer_threshold)) == (auc(*kinds), eer(*kinds))


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


def test_figures_of_listed_pairs_take_few_bytes_a_pair():
    """Lists have millions: beside the scores there are an order, a copy, and what one fold looks at."""
    rng = np.random.default_rng(0)
    same = rng.random(200_000) < 0.01
    score, fold = rng.normal(size=len(same)) + 3 * same, draw_folds(same)
    tracemalloc.start()
    try:
        verify_pairs(score, same, fold=fold)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 * len(same)


def test_records_show_in_a_line():
    found = verify_pairs([0.9, 0.8, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1], [1, 1, 1, 0, 0, 0, 0, 0])
    assert repr(found) == "Verification(3 genuine and 5 impostor pairs, AUC 1.0000, EER 0.0000)"
    assert repr(found.accuracy) == "FoldAccuracy(1.0000 +- 0.0000, 3 folds)"
