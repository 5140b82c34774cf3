import json

import numpy as np
import pytest
import reference_metrics as slow
from hypothesis import given, settings
from hypothesis import strategies as st

from facemetric.errors import ConfigError, DataError, WeightsError
from facemetric.evaluation.thresholds import (
    CalibratedThreshold,
    Stored,
    choose_thresholds,
    store_thresholds,
    stored_threshold,
    supported_fars,
)


def people(persons, images, seed, size=16):
    """People, some of whom vary more from photo to photo: (persons, images, size) unit vectors."""
    rng = np.random.default_rng(seed)
    noise = np.exp(0.3 * rng.normal(size=(persons, 1, 1)))
    emb = rng.normal(size=(persons, 1, size)) + 0.6 * noise * rng.normal(size=(persons, images, size))
    return emb / np.linalg.norm(emb, axis=2, keepdims=True)


def flat(emb):
    """Embeddings (N, D) and labels (N,)."""
    return emb.reshape(-1, emb.shape[2]), np.repeat(np.arange(len(emb)), emb.shape[1])


def listed(emb, label):
    """Scores of all pairs, and whether each is one person."""
    unit = emb / np.linalg.norm(emb, axis=1, keepdims=True)
    i, j = np.triu_indices(len(emb), 1)
    return (unit @ unit.T)[i, j], label[i] == label[j]


@pytest.mark.parametrize("seed", range(4))
def test_threshold_far_and_tar_by_hand(seed):
    emb, label = flat(people(15, 4, seed))
    score, same = listed(emb, label)
    fars = (0.3, 0.05, 0.004)
    for far, found in zip(fars, choose_thresholds(emb, label, fars, draws=100), strict=True):
        tar, reached, threshold = slow.tar_at_far(score.tolist(), same.tolist(), far)
        assert found.threshold.value == pytest.approx(threshold, abs=1e-4)
        assert (found.far.value, found.tar.value) == pytest.approx((reached, tar))
        assert found.far.value <= far == found.wanted_far
        assert (found.genuine_pairs, found.impostor_pairs) == (15 * 6, 60 * 59 // 2 - 15 * 6)
        assert (found.images, found.identities) == (60, 15)
        for interval in (found.threshold, found.far, found.tar):
            assert interval.low <= interval.value <= interval.high
            assert interval.low < interval.high or interval.value == 1
            assert interval.level == 0.95


def test_neither_order_names_nor_lengths_matter_but_the_seed_does():
    emb, label = flat(people(30, 3, 0))
    rng = np.random.default_rng(0)
    first, again, other = (choose_thresholds(emb, label, (0.01,), draws=200, seed=s)[0] for s in (0, 0, 1))
    assert first == again
    assert first.far.low != other.far.low
    names = np.array([f"p{i:02d}" for i in range(30)])[label]
    order = rng.permutation(90)
    scaled = (emb * rng.uniform(0.5, 2, (90, 1)))[order]
    moved = choose_thresholds(scaled, names[order], (0.01,), draws=200)[0]
    for name in ("threshold", "far", "tar"):
        assert getattr(moved, name)[:3] == pytest.approx(getattr(first, name)[:3], abs=2e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(3, 30), st.integers(1, 4), st.integers(0, 2))
def test_few_people_and_ties_give_intervals_around_the_value(seed, persons, n, size, digits):
    rng = np.random.default_rng(seed)
    label, emb = rng.integers(persons, size=n), rng.normal(size=(n, size)).round(digits)
    emb[(emb == 0).all(1)] = 1
    fars = supported_fars(label, (1.0, 0.5, 0.1, 0.01))
    try:
        found = choose_thresholds(emb, label, fars, draws=100) if fars else ()
    except DataError:  # one kind of pairs is missing, or the best impostors tie
        found = ()
    for threshold in found:
        assert threshold.far.value <= threshold.wanted_far
        for interval in (threshold.threshold, threshold.far, threshold.tar):
            assert interval.low - 1e-9 <= interval.value <= interval.high + 1e-9


def test_a_copy_of_every_image_adds_no_certainty():
    emb, label = flat(people(40, 3, 1))
    one = choose_thresholds(emb, label, (0.01,), draws=400)[0]
    two = choose_thresholds(np.repeat(emb, 2, 0), np.repeat(label, 2), (0.01,), draws=400)[0]
    for name in ("threshold", "far", "tar"):
        width, wide = (i.high - i.low for i in (getattr(one, name), getattr(two, name)))
        assert wide > 0.75 * width


def test_intervals_are_as_wide_as_the_figures_vary_and_hold_the_truth():
    """120 times other people: what the threshold then chosen does on everybody."""
    wanted, runs = 0.02, 120
    many, label = flat(people(2500, 1, 10**6))
    impostor = np.sort(listed(many, label)[0])
    pairs = people(40_000, 2, 10**6 + 1)
    genuine = np.sort((pairs[:, 0] * pairs[:, 1]).sum(1))
    truth = float(np.quantile(impostor, 1 - wanted))
    held, width, value = np.zeros(3), np.zeros(3), []
    for seed in range(runs):
        found = choose_thresholds(*flat(people(80, 3, seed)), (wanted,), draws=150, seed=seed)[0]
        at = found.threshold.value
        true = (truth, *(1 - np.searchsorted(kind, at) / len(kind) for kind in (impostor, genuine)))
        three = (found.threshold, found.far, found.tar)
        held += [i.low <= t <= i.high for i, t in zip(three, true, strict=True)]
        width += [i.high - i.low for i in three]
        value.append((at, true[1] - wanted, found.tar.value - true[2]))
    held, width = held / runs, width / runs
    assert (held >= 0.85).all(), held
    spread = 2 * 1.96 * np.std(value, axis=0)
    np.testing.assert_allclose(width / spread, 1, atol=0.25)


def test_what_the_pairs_cannot_support_is_refused():
    emb, label = flat(people(10, 2, 0))
    with pytest.raises(
        DataError, match=r"FAR 0\.001 needs 1,000 impostor pairs, these images have 180: they support 0\.0056"
    ):
        choose_thresholds(emb, label, (0.1, 0.001))
    assert supported_fars(label, (0.1, 0.01, 1 / 180, 0.0055, 0.001)) == [0.1, 0.01, 1 / 180]
    assert supported_fars([0, 0], (1.0,)) == []
    few = flat(people(6, 8, 0))  # 960 pairs: 1 / 960 is 0.00104, which is not to be called 0.001
    with pytest.raises(DataError, match=r"these images have 960: they support 0\.0011 and above"):
        choose_thresholds(*few, (0.001,))
    copies = np.repeat(np.eye(4)[:1], 20, axis=0)
    with pytest.raises(DataError, match=r"no threshold gives FAR 0\.1: more impostor pairs tie"):
        choose_thresholds(copies, label, (0.1,))
    with pytest.raises(DataError, match="verification needs both kinds"):
        choose_thresholds(np.eye(4), np.arange(4), (0.5,))
    with pytest.raises(ConfigError, match="a FAR of 0"):
        choose_thresholds(emb, label, (0,))


# Kept with the weights


@pytest.fixture
def folder(tmp_path):
    config = {"architecture": "resnet10t", "facemetric": {"format": 1, "preprocess": {}, "embedding_size": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_thresholds_are_kept_by_far_and_come_back(folder):
    emb, label = flat(people(30, 3, 0))
    found = choose_thresholds(emb, label, (0.01, 0.1), draws=100)
    kept = [Stored(t, True, "somebody", "abc", (112, 96)) for t in found]
    before = json.loads((folder / "config.json").read_text())
    assert store_thresholds(folder, kept) == folder / "config.json"
    after = json.loads((folder / "config.json").read_text())
    assert list(after["facemetric"].pop("thresholds")) == ["0.1", "0.01"]
    assert after == before
    for stored in kept:
        assert stored_threshold(folder, stored.threshold.wanted_far) == stored
    one = Stored(found[0], False, "others", "def", (0, 0))
    store_thresholds(folder, [one])
    assert stored_threshold(folder, 0.01) == one
    assert stored_threshold(folder, 0.1) == kept[1]
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    record = json.loads((folder / "config.json").read_text())["facemetric"]["thresholds"]["0.01"]
    assert CalibratedThreshold.from_dict(record) == found[0]
    assert record["score"] == "cosine similarity"


def test_a_threshold_that_is_not_there_says_how_to_make_one(folder):
    with pytest.raises(
        WeightsError, match=r"no threshold for FAR 0\.01; make one with `facemetric calibrate"
    ):
        stored_threshold(folder, 0.01)
    emb, label = flat(people(30, 3, 0))
    found = choose_thresholds(emb, label, (0.1,), draws=100)
    store_thresholds(folder, [Stored(found[0], False, "", "", (0, 0))])
    with pytest.raises(WeightsError, match=r"it has those for FAR 0\.1: choose one of these, or make one"):
        stored_threshold(folder, 0.01)


@pytest.mark.parametrize(
    "thresholds", ["many", {"0.01": 3}, {"0.01": {}}, {"low": {}}, {"0.01": {"image_size": [1, 2, 3]}}]
)
def test_thresholds_that_are_none(folder, thresholds):
    config = json.loads((folder / "config.json").read_text())
    config["facemetric"]["thresholds"] = thresholds
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"the thresholds cannot be read .*; make one with"):
        stored_threshold(folder, 0.01)
