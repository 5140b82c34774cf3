"""A threshold for a wanted FPIR: what strangers then really get, and where it comes from."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from enrolled_rows import new_folder
from scipy import stats

from facemetric.errors import WeightsError
from facemetric.gallery.parts import Rows
from facemetric.gallery.search import Enrolled
from facemetric.gallery.threshold import (
    PRIOR,
    BestOfOthers,
    StoredCurve,
    best_of_others,
    choose_threshold,
)

SIZE = 32


def config_of(points: dict[float, float], flip: bool = False) -> dict:
    records = {f"{far:g}": {"threshold": t, "far": far, "flip": flip} for far, t in points.items()}
    return {"facemetric": {"thresholds": records}}


CURVE = StoredCurve.of(config_of({0.1: 0.2, 0.01: 0.35, 0.001: 0.45}), flip=False)


def faces(people: int, each: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """Faces of people who are drawn from a population that is not the same in all directions."""
    rng = np.random.default_rng(seed)
    spread = np.geomspace(2, 0.3, SIZE)
    centre = rng.standard_normal((people, SIZE)) * spread
    emb = np.repeat(centre, each, 0) + 0.6 * rng.standard_normal((people * each, SIZE))
    emb /= np.linalg.norm(emb, axis=1, keepdims=True)
    return emb.astype(np.float32), [f"p{i // each}" for i in range(people * each)]


def enrolled_of(path: Path, people: int, each: int, seed: int) -> Enrolled:
    emb, names = faces(people, each, seed)
    count = len(names)
    folder = new_folder(path, SIZE)
    hashes, quality = np.zeros((count, 32), np.uint8), np.ones(count, np.float32)
    folder.append(Rows(emb, names, names, hashes, quality, [b""] * count))
    return Enrolled(tuple(folder.parts))


@pytest.mark.parametrize(("people", "each", "fpir"), [(300, 1, 0.1), (150, 2, 0.05), (300, 1, 0.01)])
def test_strangers_are_named_about_as_often_as_wanted(
    tmp_path: Path, people: int, each: int, fpir: float
) -> None:
    seen, inside = [], 0
    for seed in range(12):
        enrolled = enrolled_of(tmp_path / f"{seed}", people, each, seed)
        strangers, _ = faces(3000, 1, 1000 + seed)
        best = (strangers @ np.concatenate(enrolled.embeddings).T).max(1)
        found = choose_threshold(best_of_others(enrolled), None, fpir)
        seen.append(float((best >= found.cosine).mean()))
        assert found.seen is not None
        inside += found.seen.low <= seen[-1] <= found.seen.high
    assert fpir / 2 < np.mean(seen) < 2 * fpir
    assert inside >= 10


def test_the_best_of_others_by_hand() -> None:
    own = BestOfOthers(np.array([0.9, 0.1, 0.5, 0.7], np.float32), np.array([0, 0, 1, 2], np.int32), 4, 3)
    np.testing.assert_allclose(own.weight, [1 / 6, 1 / 6, 1 / 3, 1 / 3])
    assert own.share_above(0.6) == pytest.approx(1 / 6 + 1 / 3)
    assert own.share_above(0.9) == pytest.approx(1 / 6)
    assert own.share_above(0.91) == 0
    mean = 0.9 / 6 + 0.1 / 6 + 0.5 / 3 + 0.7 / 3
    squares = ((0.9 - mean) ** 2 + (0.1 - mean) ** 2) / 6 + ((0.5 - mean) ** 2 + (0.7 - mean) ** 2) / 3
    deviation = math.sqrt(squares * 3 / 2)  # of three people
    assert own.threshold(0.1) == pytest.approx(mean + deviation * stats.norm.ppf(0.9), abs=1e-6)


def test_with_many_people_the_quantile_counts() -> None:
    score = np.linspace(0.2, 0.8, 1001).astype(np.float32)
    own = BestOfOthers(score, np.arange(1001, dtype=np.int32), 1001, 1001)
    threshold = own.threshold(0.1)
    assert int((score >= threshold).sum()) == 100  # as many as 0.1 allows, and not one more
    tied = BestOfOthers(np.full(200, 0.5, np.float32), np.arange(200, dtype=np.int32), 200, 200)
    assert tied.share_above(tied.threshold(0.1)) == 0  # where all tie, none is above


def test_the_stored_curve_between_and_beyond_its_points() -> None:
    assert CURVE is not None
    assert CURVE.threshold(0.01) == pytest.approx(0.35)
    assert CURVE.threshold(math.sqrt(0.1 * 0.01)) == pytest.approx(0.275)
    assert CURVE.threshold(1e-5) == pytest.approx(0.65)  # 0.1 for each of two decades more
    assert CURVE.threshold(1.0) == pytest.approx(0.05)
    assert CURVE.threshold(1e-300) == 1


@pytest.mark.parametrize(
    "config",
    [
        {"facemetric": {}},
        config_of({0.1: 0.2}),
        config_of({0.1: 0.2, 0.01: 0.35}, flip=True),
        config_of({0.1: 0.4, 0.01: 0.35}),
        {"facemetric": {"thresholds": {"0.1": {"threshold": "x"}}}},
        {"facemetric": {"thresholds": [1]}},
    ],
)
def test_weights_without_a_curve(config: dict) -> None:
    assert StoredCurve.of(config, flip=False) is None


def test_few_people_follow_the_weights_and_many_themselves() -> None:
    def own_of(people: int) -> BestOfOthers:
        score = np.random.default_rng(people).normal(0.3, 0.05, people).astype(np.float32)
        return BestOfOthers(score, np.arange(people, dtype=np.int32), people, people)

    few = choose_threshold(own_of(4), CURVE, 0.01)
    far = 1 - 0.99 ** (1 / 4)
    assert CURVE is not None
    assert (few.cosine, few.seen, few.from_people) == (pytest.approx(CURVE.threshold(far)), None, 0)
    assert "not checked, which needs 5 enrolled people" in few.text()
    some = choose_threshold(own_of(20), CURVE, 0.01)
    assert some.from_people == 20 / (20 + PRIOR)
    far = 1 - 0.99 ** (1 / 20)
    half = (own_of(20).threshold(0.01) + CURVE.threshold(far)) / 2
    assert some.cosine == pytest.approx(half)
    many = choose_threshold(own_of(10_000), CURVE, 0.01)
    assert many.cosine == pytest.approx(own_of(10_000).threshold(0.01), abs=2e-3)
    assert choose_threshold(own_of(20), None, 0.01).cosine == own_of(20).threshold(0.01)
    stricter = [choose_threshold(own_of(20), CURVE, fpir).cosine for fpir in (0.3, 0.1, 0.01, 0.001)]
    assert stricter == sorted(stricter)


def test_nothing_to_choose_from() -> None:
    own = BestOfOthers(np.zeros(0, np.float32), np.zeros(0, np.int32), 3, 1)
    with pytest.raises(
        WeightsError, match=r"no threshold for 1 enrolled person.*facemetric calibrate DATA --far"
    ):
        choose_threshold(own, None, 0.01)
    assert choose_threshold(own, CURVE, 0.01).seen is None
    given = choose_threshold(own, None, 0.01, given=0.5)
    assert given.cosine == 0.5
    assert given.to_dict()["wanted_fpir"] is None
    assert given.text().startswith("threshold 0.5000, as given, for 1 person, 3 faces; not checked")


def test_only_some_rows_of_a_large_gallery_are_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facemetric.gallery.threshold.SAMPLE", 50)
    enrolled = enrolled_of(tmp_path / "g", 100, 2, 0)
    own = best_of_others(enrolled)
    assert (len(own.score), own.rows, own.people) == (50, 200, 100)
    assert own.is_of(203)
    assert not own.is_of(205)
    assert best_of_others(enrolled_of(tmp_path / "one", 1, 3, 0)).score.size == 0
