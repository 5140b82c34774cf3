"""What a score says beside the threshold of a FAR: thresholds of FRRs by hand, and probabilities that are reliable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facemetric.data.images import Preprocess
from facemetric.errors import WeightsError
from facemetric.evaluation.answers import (
    Answers,
    choose_answers,
    fit_probability,
    store_answers,
    stored_answers,
)
from facemetric.model.embedder import build_embedder
from facemetric.model.weights.save_load import save_weights


def people(persons: int, images: int, seed: int, noise: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, 16) and labels (N,) of people with some images each."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(persons, 1, 16))
    emb = centre + noise * rng.normal(size=(persons, images, 16))
    return emb.reshape(-1, 16), np.repeat(np.arange(persons), images)


def scores(emb: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    unit = emb / np.linalg.norm(emb, axis=1, keepdims=True)
    i, j = np.triu_indices(len(emb), 1)
    return (unit @ unit.T)[i, j], label[i] == label[j]


def chosen(emb: np.ndarray, label: np.ndarray, **options: Any) -> Answers:
    return choose_answers(emb, label, flip=False, data_fingerprint="d", **options)


def test_below_the_lower_threshold_are_so_many_genuine_pairs() -> None:
    emb, label = people(30, 5, 0)
    score, same = scores(emb, label)
    found = chosen(emb, label, frrs=(0.01, 0.2))
    assert [each.wanted_frr for each in found.lower] == [0.2, 0.01]
    assert found.lower[0].threshold > found.lower[1].threshold
    for each in found.lower:
        missed, accepted = (score[same] < each.threshold).mean(), (score[~same] >= each.threshold).mean()
        assert each.frr.value == pytest.approx(missed)
        assert each.far.value == pytest.approx(accepted)
        # The next genuine pair up would be one too many.
        above = np.sort(score[same])[int(missed * same.sum()) :][:2]
        assert missed <= each.wanted_frr < (score[same] < above[1] + 1e-3).mean()
        for interval in (each.frr, each.far):
            assert interval.low <= interval.value <= interval.high
            assert interval.low < interval.high
    assert found.at_frr(0.2) == found.lower[0]
    assert found.at_frr(0.05) is None


def test_a_frr_needs_so_many_genuine_pairs() -> None:
    emb, label = people(25, 3, 0)  # 75 genuine pairs
    assert [each.wanted_frr for each in chosen(emb, label).lower] == [0.05]


def test_probabilities_are_shares_of_genuine_pairs_among_other_people() -> None:
    found = fit_probability(*people(120, 5, 1))
    assert found is not None
    assert found.error < 0.03
    assert sum(each.share for each in found.reliability) == pytest.approx(1)
    predicted = [each.predicted for each in found.reliability]
    assert predicted == sorted(predicted)
    score, same = scores(*people(120, 5, 2))
    p, weight = found.at(score), np.where(same, 1 / same.sum(), 1 / (~same).sum())
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        here = (p >= low) & (p < low + 0.2)
        observed = weight[here & same].sum() / weight[here].sum()
        assert observed == pytest.approx((p * weight)[here].sum() / weight[here].sum(), abs=0.1)


def test_the_reliability_is_of_people_that_were_not_fitted_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit that knows nothing of other people is found out."""
    fitted = []

    def wrong(pairs: Any) -> tuple[float, float]:
        fitted.append(pairs)
        return 1.0, 10.0  # everything is one person

    monkeypatch.setattr("facemetric.evaluation.answers._logistic", wrong)
    found = fit_probability(*people(60, 4, 3))
    assert found is not None
    assert found.error == pytest.approx(0.5, abs=0.01)
    assert len(fitted) == 3
    assert fitted[0].genuine.sum() + fitted[1].genuine.sum() == fitted[2].genuine.sum() == 60 * 6
    assert fitted[0].impostor.sum() + fitted[1].impostor.sum() < fitted[2].impostor.sum()


def test_few_people_give_no_probability() -> None:
    assert fit_probability(*people(19, 4, 0)) is None
    emb, label = people(40, 2, 0)
    label[:] = np.arange(80)
    label[:2] = 0  # one person of two images alone
    assert fit_probability(emb, label) is None


def test_they_are_kept_with_the_weights(tmp_path: Path) -> None:
    embedder = build_embedder("test_resnet", preprocess=Preprocess(size=(32, 32)))
    save_weights(tmp_path / "w", embedder, provenance={}, metrics={})
    assert stored_answers(tmp_path / "w") is None
    answers = chosen(*people(60, 4, 0))
    assert answers.probability is not None
    store_answers(tmp_path / "w", answers)
    again = stored_answers(tmp_path / "w")
    assert again is not None
    assert again.lower == answers.lower
    assert again.probability is not None
    assert again.probability.at([0.1, 0.5, 0.9]) == pytest.approx(answers.probability.at([0.1, 0.5, 0.9]))
    assert again.probability.error == answers.probability.error
    few = chosen(*people(10, 5, 0))
    store_answers(tmp_path / "w", few)
    assert stored_answers(tmp_path / "w") == few
    path = tmp_path / "w" / "config.json"
    config = json.loads(path.read_text())
    config["facemetric"]["answers"]["different_below"] = {"0.05": {"threshold": "high"}}
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="the answers cannot be read"):
        stored_answers(tmp_path / "w")
