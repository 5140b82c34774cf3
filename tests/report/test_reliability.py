"""The reliability curve of the weights' probability on a report's pairs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from facemetric.evaluation.answers import Probability, ReliabilityBin, reliability_of
from facemetric.evaluation.verification import verify_pairs
from facemetric.report.page import Origin, Page, render
from facemetric.report.reliability import reliability_section

KNOWN = Probability(8.0, -2.0, 0.02, (ReliabilityBin(0.1, 0.15, 0.5), ReliabilityBin(0.9, 0.85, 0.5)))


def scored(pairs: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Scores whose probability of one person is the one that is known: genuine pairs are drawn by it."""
    rng = np.random.default_rng(0)
    score = rng.uniform(-0.5, 1, pairs)
    return score, rng.random(pairs) < KNOWN.at(score)


def test_error_and_brier_score_are_those_of_the_formulas() -> None:
    score, same = scored()
    found = reliability_of(KNOWN, verify_pairs(score, same).histogram)
    weight = np.where(same, 1 / same.sum(), 1 / (~same).sum()) / 2  # both kinds count the same
    p = KNOWN.at(score)
    assert found.brier == pytest.approx(float((weight * (p - same) ** 2).sum()), abs=2e-4)
    error = 0.0
    for low in np.arange(10) / 10:
        inside = (p >= low) & (p < low + 0.1)
        error += abs((weight * (p - same))[inside].sum())
    assert found.error == pytest.approx(error, abs=4e-3)
    assert sum(one.share for one in found.bins) == pytest.approx(1)
    assert [one.predicted for one in found.bins] == sorted(one.predicted for one in found.bins)
    assert reliability_of(KNOWN, verify_pairs(score, ~same).histogram).error > 0.4


def test_the_section_is_on_the_page_where_the_weights_know_a_probability() -> None:
    verification = verify_pairs(*scored())
    section = reliability_section(KNOWN, verification)
    assert section is not None
    here = reliability_of(KNOWN, verification.histogram)
    assert f"off by {here.error:.3f} on average, its Brier score is {here.brier:.4f}" in section.lead
    assert section.curves[1].points == ((10.0, 15.0), (90.0, 85.0))
    assert len(section.table.rows) == len(here.bins)
    page = Page("m", "", Origin("", ()), reliability=section)
    html = render(page)
    assert '<a href="#reliability">Probability</a>' in html
    assert "M10.0 85.0 90.0 15.0" in re.sub(r"\s+", " ", html)  # upwards on the screen is less
    assert reliability_section(None, verification) is None
    assert reliability_section(KNOWN, None) is None
    assert "reliability-title" not in render(Page("m", "", Origin("", ())))


def test_eval_draws_it(tmp_path: Path, untrained: Path, faces: Path, pairs: Path) -> None:
    import shutil

    from facemetric import evaluate
    from facemetric.evaluation.answers import Answers, store_answers

    weights = Path(shutil.copytree(untrained, tmp_path / "w"))
    store_answers(weights, Answers((), KNOWN, False, "x"))
    options = {"data": faces, "pairs": pairs, "workers": 0, "device": "cpu"}
    for flip in (False, True):
        found = evaluate(weights, out=tmp_path / str(flip), flip=flip, **options)
        assert found.report is not None
        assert ('id="reliability"' in found.report.read_text()) is not flip
