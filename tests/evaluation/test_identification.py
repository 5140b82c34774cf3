import json

import numpy as np
import pytest
import reference_metrics as slow
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from facemetric.errors import DataError
from facemetric.evaluation.identification import (
    SvmAccuracy,
    draw_of_each,
    draw_open_set,
    identification_intervals,
    identify,
    svm_accuracy,
    svm_of_gallery,
)
from facemetric.evaluation.intervals import Interval


def people(n, ids, noise, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(ids, size=n)
    return rng.normal(size=(ids, 8))[labels] + noise * rng.normal(size=(n, 8)), labels


def test_tpir_at_fpir_as_slow_loop():
    emb, labels = people(240, 40, 0.5)
    gallery = (np.arange(240) < 120) & (labels < 25)
    probe = np.arange(240) >= 120
    found = identify(emb[gallery], labels[gallery], emb[probe], labels[probe], fpirs=(0.2, 0.1, 0.001, 1.0))
    known, unknown, right_at_all = [], [], 0
    for e, person in zip(emb[probe], labels[probe], strict=True):
        row, score = slow.ranking(e, emb[gallery])[0]
        if person in labels[gallery]:
            right = labels[gallery][row] == person
            right_at_all += right
            known.append((score, right))
        else:
            unknown.append(score)
    assert (found.known, found.unknown) == (len(known), len(unknown))
    assert found.rank_1 == pytest.approx(right_at_all / len(known))
    assert right_at_all < len(known)  # or the threshold alone would decide
    for point in found.points[:2]:
        best = 0.0
        for threshold in {s for s, _ in known} | set(unknown):
            if sum(s >= threshold for s in unknown) / len(unknown) <= point.wanted:
                best = max(best, sum(s >= threshold and right for s, right in known) / len(known))
        assert point.tar == pytest.approx(best)
        assert point.far <= point.wanted
    assert not found.points[2].supported
    assert found.points[3].tar == pytest.approx(found.rank_1)
    assert found.to_dict()["tpir_at_fpir"]["0.001"]["tpir"] is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_identification_needs_both_kinds():
    emb, labels = people(20, 4, 0.5)
    with pytest.raises(DataError, match="20 known and 0 unknown"):
        identify(emb, labels, emb, labels)
    with pytest.raises(DataError, match="one an embedding"):
        identify(emb, labels[:3], emb, labels)


def test_svm_as_scikit_learn_by_hand():
    emb, labels = people(200, 12, 1.0)
    labels[labels == 11] = 100 + np.arange((labels == 11).sum())
    found = svm_accuracy(emb, labels.astype(str), folds=4, seed=3)
    counts = {name: (labels == name).sum() for name in set(labels)}
    kept = np.array([counts[name] >= 4 for name in labels])
    x, y = emb[kept] / np.linalg.norm(emb[kept], axis=1, keepdims=True), labels[kept].astype(str)
    shares = []
    for train, test in StratifiedKFold(4, shuffle=True, random_state=3).split(x, y):
        shares.append(LinearSVC(random_state=3).fit(x[train], y[train]).score(x[test], y[test]))
    assert found.mean == pytest.approx(np.mean(shares), abs=0.011)  # names in another order: a tie or two
    assert 0.5 < found.mean < 1
    assert found.interval.low < found.interval.value < found.interval.high
    assert found.interval.value == pytest.approx(found.mean, abs=0.005)
    assert found.images == kept.sum()
    assert found.people == len(set(y))
    assert found.people_left_out == len(counts) - found.people
    assert found == svm_accuracy(emb, labels.astype(str), folds=4, seed=3)


def test_a_large_svm_draws_people_and_images():
    labels = np.repeat(np.arange(12), np.arange(3, 15))
    emb = np.eye(12)[labels] + 0.01 * np.random.default_rng(0).standard_normal((len(labels), 12))
    found = svm_accuracy(emb, labels, folds=4, most=(5, 6), seed=1)
    assert (found.people, found.people_left_out, found.people_not_drawn) == (5, 1, 6)
    assert found.mean == 1
    rng = np.random.default_rng(1)
    drawn = rng.choice(np.arange(1, 12), 5, replace=False)
    assert found.images == sum(min(6, 3 + k) for k in drawn)
    assert found.images_not_drawn == sum(max(0, k - 3) for k in drawn)
    assert found == svm_accuracy(emb, labels, folds=4, most=(5, 6), seed=1)
    assert "drawn from 11 people" in found.took_part()
    whole = svm_accuracy(emb, labels, folds=4, most=(11, 14), seed=1)
    assert (whole.people_not_drawn, whole.images_not_drawn, whole.images) == (0, 0, len(labels) - 3)
    assert "drawn" not in whole.took_part()


def test_images_drawn_of_each_person():
    who = np.array([2, -1, 0, 2, 0, 2, 2, 1, -1, 0])
    rows = draw_of_each(who, 2, np.random.default_rng(0))
    assert (np.diff(rows) > 0).all()
    assert np.bincount(who[rows]).tolist() == [2, 1, 2]
    others = {tuple(draw_of_each(who, 2, np.random.default_rng(seed))) for seed in range(400)}
    assert len(others) == 18  # 3 pairs of person 0, 6 of person 2: each is drawn


def test_svm_of_a_gallery_as_scikit_learn_by_hand():
    rng = np.random.default_rng(4)
    labels = np.repeat(list("abcd"), 15)
    emb = rng.normal(size=(60, 6)) + 1.2 * np.eye(6)[np.searchsorted(list("abcd"), labels)]
    emb /= np.linalg.norm(emb, axis=1, keepdims=True)
    known = np.isin(labels, list("abc"))
    learned, asked = np.flatnonzero(known)[::2], np.setdiff1d(np.arange(60), np.flatnonzero(known)[::2])
    found = svm_of_gallery(7 * emb[learned], labels[learned], emb[asked], labels[asked])
    machine = LinearSVC(random_state=0).fit(emb[learned], labels[learned])
    share = machine.score(emb[asked][labels[asked] != "d"], labels[asked][labels[asked] != "d"])
    assert 0.5 < share < 1
    assert (found.mean, found.folds, found.people, found.people_left_out) == (share, 0, 3, 1)
    assert found.images == (labels[asked] != "d").sum()
    assert found.interval.low <= share <= found.interval.high
    with pytest.raises(DataError, match="in it"):
        svm_of_gallery(emb[learned], labels[learned], emb[labels == "d"], labels[labels == "d"])


def test_svm_needs_people_with_images():
    with pytest.raises(DataError, match="1 of 3 people have 5 images or more"):
        svm_accuracy(np.ones((7, 2)), [0] * 5 + [1, 2])
    with pytest.raises(DataError, match="3 labels for 2"):
        svm_accuracy(np.ones((2, 2)), [0, 1, 2])


def test_a_drawn_open_set():
    labels = np.random.default_rng(0).integers(40, size=100)
    gallery, probes = draw_open_set(labels, seed=1)
    assert sorted([*gallery, *probes]) == list(range(100))
    several = np.flatnonzero(np.bincount(labels) >= 2)
    enrolled = labels[gallery]
    assert len(set(enrolled)) == len(enrolled) == len(several) // 2  # one image each
    assert set(enrolled) < set(several)
    assert set(enrolled) <= set(labels[probes])  # each has a probe to be found by
    assert set(several) - set(enrolled) <= set(labels[probes])
    np.testing.assert_array_equal(draw_open_set(labels, seed=1).gallery, gallery)
    assert draw_open_set(labels, seed=2).gallery.tolist() != gallery.tolist()
    assert len({int(draw_open_set([0, 0, 0, 1, 1], seed=s).gallery[0]) for s in range(30)}) == 5
    with pytest.raises(DataError, match="1 of 3 people have two images or more"):
        draw_open_set([0, 0, 1, 2])


def test_identification_intervals_hold_and_count_people():
    emb, labels = people(600, 80, 0.6)
    gallery, probes = draw_open_set(labels, seed=0)
    found = identify(emb[gallery], labels[gallery], emb[probes], labels[probes], fpirs=(0.1, 0.001))
    bounds = identification_intervals(found, labels[probes], seed=0)
    assert list(bounds) == ["rank_1", "tpir_at_fpir_0.1"]
    assert bounds["rank_1"].value == pytest.approx(found.rank_1)
    assert bounds["tpir_at_fpir_0.1"].value == pytest.approx(found.points[0].tar)
    for interval in bounds.values():
        assert 0.02 < interval.high - interval.low < 0.5
        assert interval.low < interval.value < interval.high
    # Four times the same probes are no more people.
    many = np.tile(probes, 4)
    again = identify(emb[gallery], labels[gallery], emb[many], labels[many], fpirs=(0.1,))
    wide = identification_intervals(again, labels[many], seed=0)
    for name in ("rank_1", "tpir_at_fpir_0.1"):
        assert wide[name].high - wide[name].low > 0.8 * (bounds[name].high - bounds[name].low)


def test_an_svms_figures_by_name():
    found = SvmAccuracy(0.5, 0.25, 4, 7, 1, 2, 60, 9, Interval(0.5, 0.4, 0.6, 0.95))
    assert found.to_dict() == {
        "accuracy": 0.5,
        "standard_deviation_sample": 0.25,
        "folds": 4,
        "people": 7,
        "people_left_out": 1,
        "people_not_drawn": 2,
        "images": 60,
        "images_not_drawn": 9,
        "intervals_95": {"accuracy": {"low": 0.4, "high": 0.6}},
    }
