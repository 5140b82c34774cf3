import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold
from sklearn.svm import LinearSVC

from facemetric.errors import DataError
from facemetric.evaluation.intervals.records import Interval
from facemetric.evaluation.svm import SvmAccuracy, draw_of_each, svm_accuracy, svm_of_gallery


def test_svm_as_scikit_learn_by_hand():
    rng = np.random.default_rng(0)
    labels = rng.integers(12, size=200)
    emb = rng.normal(size=(12, 8))[labels] + rng.normal(size=(200, 8))
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


def test_a_large_gallery_draws_people_who_are_asked_for_and_images():
    gallery = np.repeat(np.arange(12), np.arange(3, 15))
    asked = np.repeat([1, 4, 5, 9, 50], 3)
    near = 0.01 * np.random.default_rng(0).standard_normal((len(gallery), 12))
    args = np.eye(12)[gallery] + near, gallery.astype(str), np.eye(12)[asked % 12], asked.astype(str)
    found = svm_of_gallery(*args, most=(6, 5), seed=1)
    assert (found.mean, found.people, found.people_not_drawn, found.people_left_out) == (1, 6, 6, 1)
    assert found.images == 12  # the four who are in the gallery come before those whom nobody asks for
    assert found == svm_of_gallery(*args, most=(6, 5), seed=1)
    assert "drawn from 12 people" in found.took_part()
    few = [svm_of_gallery(*args, most=(2, 5), seed=seed) for seed in range(20)]
    assert {found.images for found in few} == {6}
    assert len({found.images_not_drawn for found in few}) > 3  # other people
    whole = svm_of_gallery(*args, most=(12, 14), seed=1)
    assert (whole.people_not_drawn, whole.images_not_drawn, whole.images) == (0, 0, 12)


def test_one_person_to_ask_for_has_no_interval():
    emb = np.eye(4)[[0, 0, 1, 1]]
    found = svm_of_gallery(emb, list("aabb"), emb[:1], ["a"])
    assert (found.mean, found.interval) == (1, None)
    assert found.to_dict()["intervals_95"] == {}


def test_svm_needs_people_with_images():
    with pytest.raises(DataError, match="1 of 3 people have 5 images or more"):
        svm_accuracy(np.ones((7, 2)), [0] * 5 + [1, 2])
    with pytest.raises(DataError, match="3 labels for 2"):
        svm_accuracy(np.ones((2, 2)), [0, 1, 2])


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
