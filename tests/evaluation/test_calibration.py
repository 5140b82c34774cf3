"""Normalized and calibrated scores against values by hand, slow float64 loops and another optimizer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import reference_metrics as slow
from hypothesis import given
from scipy.optimize import minimize
from scored_pairs import quick, scored

from facemetric.errors import DataError
from facemetric.evaluation import calibration
from facemetric.evaluation.calibration import (
    CohortStatistics,
    Logistic,
    RisingFit,
    adaptive_s_norm,
    calibrate_across_people,
    calibrated,
    cllr,
    cohort_statistics,
    detection_cost,
    fit_logistic,
)


def listed(people: int = 60, pairs: int = 900, seed: int = 0) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Scores of pairs of people, `same`, and both identities."""
    rng = np.random.default_rng(seed)
    a = rng.integers(people, size=pairs)
    same = rng.random(pairs) < 0.3
    b = np.where(same, a, (a + rng.integers(1, people, size=pairs)) % people)
    return rng.normal(0.3 * same + 0.2, 0.12), same, (a, b)


def test_s_norm_by_hand() -> None:
    # Scores with the cohort: of the one 0.5 and 0.3 (mean 0.4, deviation 0.1), of the other 0.2 and 0 (0.1 and 0.1).
    one, other = CohortStatistics(*np.array([[0.4], [0.1]])), CohortStatistics(*np.array([[0.1], [0.1]]))
    assert adaptive_s_norm([0.6], one, other)[0] == pytest.approx((2 + 5) / 2)


def test_s_norm_as_a_slow_loop() -> None:
    rng = np.random.default_rng(1)
    emb, cohort = rng.normal(size=(8, 6)), rng.normal(size=(40, 6))
    a, b = np.array([0, 1, 2, 3]), np.array([4, 5, 6, 7])
    unit = emb / np.linalg.norm(emb, axis=1, keepdims=True)
    found = cohort_statistics(emb, cohort, 10)
    sides = (CohortStatistics(found.mean[rows], found.deviation[rows]) for rows in (a, b))
    normed = adaptive_s_norm((unit[a] * unit[b]).sum(1), *sides)
    wanted = [slow.s_norm(emb[i], emb[j], cohort, 10) for i, j in zip(a, b, strict=True)]
    np.testing.assert_allclose(normed, wanted, rtol=1e-5)
    np.testing.assert_array_equal(
        cohort_statistics(emb, cohort, 99).mean, cohort_statistics(emb, cohort, 40).mean
    )
    with pytest.raises(DataError, match="the 1 highest scores with the cohort of 8 images are all alike"):
        cohort_statistics(emb, cohort, 1)


def test_cllr_by_hand() -> None:
    assert cllr([0, 0, 0], [True, True, False]) == 1  # ratios that say nothing cost a bit
    assert cllr([math.log(3), -math.log(3)], [True, False]) == pytest.approx(math.log2(4 / 3))
    assert cllr([math.log(3), math.log(3)], [True, False]) == pytest.approx((math.log2(4 / 3) + 2) / 2)


def test_detection_costs_by_hand() -> None:
    # One of ten genuine pairs missed, 2 % of impostors accepted, 1 of 100 pairs genuine: (0.001 + 0.0198) / 0.01.
    assert detection_cost(0.9, 0.02, 0.01) == pytest.approx(2.08)
    assert detection_cost(0, 0, 0.01) == detection_cost(1, 1, 0.99) == 1


@quick
@given(scored())
def test_figures_as_slow_loops(drawn: tuple[np.ndarray, np.ndarray]) -> None:
    score, same = drawn
    found = calibrated(3 * score - 1, same, [Logistic(3, -1)], how="stored", scores="scores")
    assert found.cllr == pytest.approx(slow.cllr(3 * score - 1, same), abs=1e-12)
    assert found.min_cllr == pytest.approx(slow.min_cllr(score, same), abs=1e-9)
    assert found.min_cllr <= found.cllr + 1e-9
    for each in found.costs:
        assert each.minimum == pytest.approx(slow.min_dcf(score, same, each.prior), abs=1e-9)
        threshold = (math.log((1 - each.prior) / each.prior) + 1) / 3
        far, tar = slow.rates(score, same, threshold)
        assert each.actual == pytest.approx(
            (each.prior * (1 - tar) + (1 - each.prior) * far) / each.prior, abs=1e-9
        )
    weight = 0.5 + np.arange(len(score)) % 3
    assert RisingFit(score, same).cost(weight) == pytest.approx(slow.min_cllr(score, same, weight), abs=1e-9)


def test_the_fit_is_the_minimum() -> None:
    score, same, _ = listed()
    found = fit_logistic(score, same, ~same)

    def cost(at: np.ndarray) -> float:
        return slow.cllr(at[0] * score + at[1], same)

    other = minimize(
        cost, [1.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 4000}
    )
    assert cost(np.array(found)) == pytest.approx(other.fun, abs=2e-7)  # the ridge's share
    assert found.slope == pytest.approx(other.x[0], rel=1e-3)
    assert found.intercept == pytest.approx(other.x[1], rel=1e-3)
    counted = fit_logistic([0.0, 1.0], [1, 3], [3, 1])  # by hand: the log odds are -log 3 and log 3
    assert counted.ratios([0.0, 1.0]) == pytest.approx([-math.log(3), math.log(3)], rel=1e-4)
    assert math.isfinite(fit_logistic([0.0, 1.0], [0, 5], [5, 0]).slope)  # kinds that do not overlap
    with pytest.raises(DataError, match="0 genuine and 2 impostor pairs"):
        fit_logistic([0.0, 1.0], [0, 0], [1, 1])
    with pytest.raises(DataError, match="all scores are alike"):
        fit_logistic([1.0, 1.0], [1, 0], [0, 1])


def test_no_pair_is_judged_by_a_curve_that_saw_its_people(monkeypatch: pytest.MonkeyPatch) -> None:
    score, same, identities = listed()
    ratio, curves = calibrate_across_people(score, same, identities, seed=3)
    number = 60
    part = np.empty(number, int)
    part[np.random.default_rng(3).permutation(number)] = np.arange(number) % 10
    for p in range(0, len(score), 97):
        own = {part[identities[0][p]], part[identities[1][p]]}
        left = [q for q in range(len(score)) if not {part[identities[0][q]], part[identities[1][q]]} & own]
        wanted = fit_logistic(score[left], same[left], ~same[left])
        assert ratio[p] == pytest.approx(float(wanted.ratios(score[p])), rel=1e-9)
    assert len(curves) == 55
    # Fitted on counts in bins, as where pairs are many, nearly the same.
    monkeypatch.setattr(calibration, "MANY_PAIRS", 100)
    np.testing.assert_allclose(calibrate_across_people(score, same, identities, seed=3)[0], ratio, atol=0.02)
    with pytest.raises(DataError, match="4 people; a calibration across people needs 6 or more"):
        calibrate_across_people(score[:4], [True] * 4, (np.arange(4), np.arange(4)))


def test_intervals_and_what_metrics_json_has() -> None:
    score, same, identities = listed(people=200, pairs=3000)
    ratio, curves = calibrate_across_people(score, same, identities)
    found = calibrated(ratio, same, curves, how="people", scores="cosines", identities=identities)
    dcf = {f"{kind}_dcf_{prior}" for kind in ("min", "act") for prior in ("0.01", "0.001")}
    assert set(found.intervals) == {"cllr", "min_cllr"} | dcf
    assert found.min_cllr < found.cllr < 0.7
    for name in ("cllr", "min_cllr", "min_dcf_0.01"):
        interval = found.intervals[name]
        assert interval.low < interval.high
        assert interval.value == pytest.approx(getattr(found, name, found.costs[0].minimum))
    assert found.to_dict()["dcf"]["0.01"]["min_dcf"] == found.costs[0].minimum
    assert [f.key for f in found.figures()][:3] == ["cllr", "min_cllr", "min_dcf_0.01"]
