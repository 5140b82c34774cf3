"""The numbers under the slider, the bars and the curve: counts at each threshold, every score once, the ROC itself."""

from __future__ import annotations

import numpy as np
import pytest

from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.intervals.listed import verification_intervals
from facemetric.evaluation.verification import Verification, verify_pairs
from facemetric.report.page_curves import roc_curve, thresholds_of

CURVE_RNG = np.random.default_rng(0)


SAME = np.arange(4000) % 2 == 0


SCORE = np.clip(CURVE_RNG.normal(np.where(SAME, 0.55, 0.1), 0.2), -1, 1)


def listed(score: np.ndarray = SCORE, same: np.ndarray = SAME) -> Verification:
    return verify_pairs(score, same)


@pytest.mark.parametrize("digits", [8, 2], ids=["few ties", "many ties"])
def test_counts_at_every_threshold(digits: int) -> None:
    score = SCORE.round(digits)
    found = thresholds_of(listed(score))
    assert 50 < len(found.threshold) < 1000
    assert list(found.threshold) == sorted(found.threshold)
    for threshold, genuine, impostor in zip(found.threshold, found.genuine, found.impostor, strict=True):
        accepted = score >= threshold - 1e-9  # nine digits are kept
        assert (genuine, impostor) == (accepted[SAME].sum(), accepted[~SAME].sum())
    assert (found.n_genuine, found.n_impostor) == (2000, 2000)
    assert found.genuine[0] == found.impostor[0] == 2000  # the slider's left end accepts all


def test_every_false_accept_of_the_low_end_can_be_chosen() -> None:
    rare = np.concatenate([np.linspace(0.9, 0.90001, 12), SCORE])  # twelve impostors closer than a step
    table = thresholds_of(listed(rare, np.concatenate([np.zeros(12, bool), SCORE > 0.6])))
    assert set(range(13)) <= set(table.impostor)


def test_marks_are_the_figures() -> None:
    found = listed()
    table = thresholds_of(found)
    rows = {mark.label: mark.row for mark in table.marks}
    assert table.start == rows["equal errors"]
    assert table.threshold[rows["equal errors"]] == pytest.approx(found.eer_threshold, abs=1e-6)
    for point in found.points:
        row = rows[f"FAR {point.wanted:g}"]
        assert table.threshold[row] == pytest.approx(point.threshold, abs=1e-6)
        assert table.impostor[row] == point.accepted_impostors
        assert table.genuine[row] == round(point.true_rate * 2000)


def test_a_far_that_is_not_supported_has_no_mark() -> None:
    labels = [mark.label for mark in thresholds_of(listed(SCORE[:400], SAME[:400])).marks]
    assert labels == ["equal errors", "FAR 0.1", "FAR 0.01"]


def test_counts_over_all_pairs() -> None:
    who = np.repeat(np.arange(60), 5)
    emb = CURVE_RNG.normal(size=(60, 8))[who] + CURVE_RNG.normal(size=(300, 8))
    found = verify_all_pairs(emb, who)
    table = thresholds_of(found)
    unit = (emb / np.linalg.norm(emb, axis=1, keepdims=True)).astype(np.float32)
    i, j = np.triu_indices(300, 1)
    score, same = (unit @ unit.T)[i, j], who[i] == who[j]
    for threshold, genuine, impostor in zip(table.threshold, table.genuine, table.impostor, strict=True):
        low, high = (score >= threshold + e for e in (1e-5, -1e-5))  # float32 products
        assert low[same].sum() <= genuine <= high[same].sum()
        assert low[~same].sum() <= impostor <= high[~same].sum()


@pytest.mark.parametrize("spread", [1.0, 0.001], ids=["wide", "collapsed"])
def test_bars_hold_every_score_once(spread: float) -> None:
    score = 0.9 + spread * (SCORE - 0.9)
    found = thresholds_of(listed(score))
    assert 60 <= len(found.edge) - 1 <= 80
    edge = np.array(found.edge)
    for kind, counted in ((SAME, found.bin_genuine), (~SAME, found.bin_impostor)):
        assert sum(counted) == 2000
        by_hand = np.histogram(score[kind], np.append(edge[:-1], 2) - 1e-9)[0]  # nine digits are kept
        np.testing.assert_array_equal(by_hand, counted)


def test_bars_of_scores_that_are_all_alike() -> None:
    found = thresholds_of(listed(np.full(4000, 0.3)))
    assert found.bin_genuine == found.bin_impostor == (2000,)
    assert found.edge[0] == 0.3 < found.edge[1]


def test_the_curve_is_the_roc() -> None:
    found = listed()
    people = np.arange(4000)
    persons = people, np.where(SAME, people, people + 4000)
    band = verification_intervals(SCORE, SAME, persons).band
    curve = roc_curve("model", found.roc, band)
    assert curve.far[0] == 1 / 2000
    assert (curve.far[-1], curve.tar[-1]) == (1, 1)
    assert len(curve.far) <= 400
    impostor = np.sort(SCORE[~SAME])[::-1]
    for far, tar in zip(curve.far, curve.tar, strict=True):
        refused = impostor[round(far * 2000)] if far < 1 else -2
        assert tar == pytest.approx(np.mean(SCORE[SAME] > refused), abs=1e-6)
    middle = np.interp(band.far, curve.far, curve.tar)
    assert np.all(np.array(curve.band_low) <= middle + 0.02)
    assert np.all(np.array(curve.band_high) >= middle - 0.02)
    assert roc_curve("model", found.roc, None).band_far == ()
