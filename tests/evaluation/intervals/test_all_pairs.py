import numpy as np
import pytest
import reference_metrics as slow

from facemetric.errors import DataError
from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.curves import split_scores, tar_at_far
from facemetric.evaluation.intervals import all_pairs as person_counts
from facemetric.evaluation.intervals.all_pairs import (
    all_pairs_differences,
    all_pairs_intervals,
    count_by_person,
    curve_thresholds,
)
from facemetric.evaluation.intervals.counts import DrawnRates
from facemetric.evaluation.intervals.draws import person_weights
from facemetric.evaluation.intervals.listed import verification_intervals
from facemetric.evaluation.intervals.records import wilson

FARS = (0.1, 0.01)


def people(n, ids, noise=1.0, seed=0):
    """Images of persons who differ in how hard they are, one person with most of them."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([rng.integers(ids, size=n - n // 5), np.zeros(n // 5, int)])
    hard = np.exp(0.5 * rng.normal(size=(ids, 1)))
    emb = rng.normal(size=(ids, 12))[labels] + noise * hard[labels] * rng.normal(size=(n, 12))
    order = rng.permutation(n)
    return emb[order].astype(np.float32), labels[order]


def test_where_no_pair_is_wrong_the_intervals_are_those_of_as_many_independent_pairs():
    """Draws of pairs that are all right never say wrong."""
    labels = np.repeat(np.arange(20), 3)
    emb = np.random.default_rng(0).normal(size=(20, 12))[labels] + 1e-3 * np.arange(60)[:, None]
    verified = verify_all_pairs(emb.astype(np.float32), labels, fars=(0.1,))
    assert (verified.auc, verified.n_genuine) == (1, 60)
    bounds = all_pairs_intervals(emb.astype(np.float32), labels, verified, draws=100)
    alone = wilson(60, 60)
    for name in ("auc", "tar_at_far_0.1"):
        assert tuple(bounds.figures[name])[:3] == pytest.approx((1, alone.low, 1)), name
    assert tuple(bounds.figures["eer"])[:3] == pytest.approx((0, 0, 1 - alone.low))
    assert bounds.band.low == pytest.approx(alone.low)


def listed(emb, labels):
    score, same = slow.all_pairs(emb, labels)
    i, j = np.triu_indices(len(emb), 1)
    return score, same, (labels[i], labels[j])


@pytest.mark.parametrize("pieces", [1, 9])
@pytest.mark.parametrize("thresholds", [3, 40])
def test_counts_as_slow_twin(pieces, thresholds):
    emb, labels = people(80, 9)
    threshold = np.unique(np.round(np.linspace(-0.7, 0.95, thresholds) * 16384) / 16384)
    found = count_by_person(emb, labels, threshold, budget_mib=80 * 80 * 4 / 2**20 / pieces)
    genuine, n_genuine, impostor, n_impostor, alone = slow.person_counts(*listed(emb, labels), threshold)
    for ours, theirs in (
        (found.genuine, genuine),
        (found.n_genuine, n_genuine),
        (found.impostor, impostor),
        (found.n_impostor, n_impostor),
    ):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(found.alone, alone, rtol=1e-9, atol=1e-6)


def test_few_thresholds_may_lie_anywhere():
    emb, labels = people(60, 9)
    score, same, _ = listed(emb, labels)
    between = np.sort(score)[[500, 501, 502, 1700]].astype(np.float32).astype(float)
    found = count_by_person(emb, labels, between)
    accepted = [(score[~same] >= t - 1e-6).sum() for t in between]
    assert (found.impostor.sum(0) / 2).tolist() == pytest.approx(accepted, abs=1)
    assert len(set(found.impostor.sum(0).tolist())) > 2


def test_many_thresholds_off_the_grid_or_out_of_order_are_a_bug_and_no_count():
    emb, labels = people(60, 9)
    on_grid = np.arange(9) / 16
    for wrong in (on_grid + 1e-6, on_grid[::-1], np.arange(256) / 16384):
        with pytest.raises(AssertionError, match=r"off the grid|must rise"):
            count_by_person(emb, labels, wrong)


def test_beyond_the_listed_pairs_alone_is_carried_on(monkeypatch):
    emb, labels = people(120, 30)
    threshold = np.arange(-8, 15) / 16
    whole = count_by_person(emb, labels, threshold)
    monkeypatch.setattr(person_counts, "LISTED", 300)
    some = count_by_person(emb, labels, threshold, budget_mib=120 * 120 * 4 / 2**20 / 9)
    accepted = whole.impostor.sum(0) // 2
    few = accepted <= 300
    assert 3 < few.sum() < 20
    np.testing.assert_allclose(some.alone[few], whole.alone[few])
    far = accepted / (whole.n_impostor.sum() / 2)
    lowest = int(np.argmax(few))
    carried = whole.alone[lowest] / (accepted * (1 - far))[lowest] * (accepted * (1 - far))
    np.testing.assert_allclose(some.alone[~few], carried[~few])


@pytest.mark.parametrize("listed", [300, 10**6])
def test_threads_change_nothing(listed, monkeypatch):
    emb, labels = people(400, 60)
    threshold = np.arange(-8, 15) / 16
    monkeypatch.setattr(person_counts, "LISTED", listed)
    budget = 400 * 400 * 4 / 2**20 / 60
    one = count_by_person(emb, labels, threshold, budget_mib=budget)
    monkeypatch.setattr(person_counts, "walking_threads", lambda n: 3)
    for _ in range(3):
        three = count_by_person(emb, labels, threshold, budget_mib=3 * budget)
        for mine, other in zip(one, three, strict=True):
            np.testing.assert_array_equal(mine, other)


def test_thresholds_of_a_curve_rise_and_stand_for_the_fars():
    emb, labels = people(300, 60)
    found = verify_all_pairs(emb, labels, fars=FARS)
    fars = np.array([1e-3, 0.01, 0.1, 0.5, 1.0])
    threshold = curve_thresholds(found.roc, fars)
    assert (np.diff(threshold) > 0).all()
    counts = count_by_person(emb, labels, threshold)
    reached = (counts.impostor.sum(0) / counts.n_impostor.sum())[::-1]
    np.testing.assert_allclose(reached, fars, rtol=0.1)


def test_as_the_listed_bootstrap():
    # Where everybody shares persons with many, the weights of listed pairs do nearly the same.
    emb, labels = people(150, 40, noise=0.8)
    found = verify_all_pairs(emb, labels, fars=FARS)
    ours = all_pairs_intervals(emb, labels, found, draws=400, seed=1)
    theirs = verification_intervals(*listed(emb, labels), fars=FARS, draws=400, seed=1)
    assert list(ours.figures) == list(theirs.figures)
    for name, interval in theirs.figures.items():
        mine = ours.figures[name]
        assert mine.value == pytest.approx(interval.value, abs=2e-3)
        assert mine.low < mine.value < mine.high
        assert mine.high - mine.low == pytest.approx(interval.high - interval.low, rel=0.3)
    place = int(np.argmin(abs(ours.band.far - 0.01)))
    assert (ours.band.low[place], ours.band.high[place]) == pytest.approx(
        (ours.figures["tar_at_far_0.01"].low, ours.figures["tar_at_far_0.01"].high), abs=1e-6
    )


def test_the_far_moves_as_the_weighted_pairs_do():
    # One person alone weighs more: to first order the FAR is that of the pairs weighted by both persons.
    emb, labels = people(90, 15)
    score, same, (a, b) = listed(emb, labels)
    threshold = np.array([0.125, 0.25, 0.5])
    rates = DrawnRates(count_by_person(emb, labels, threshold)._replace(alone=np.zeros(3)))
    small = 1e-4
    for person in (0, 7):
        w = np.full(15, 1 - small / 14)
        w[person] = 1 + small
        tar, far = rates.at(w[None])
        pair = w[a] * np.where(same, 1, w[b])
        for t, threshold_t in enumerate(threshold):
            hit = score >= threshold_t
            for kind, rate in ((same, tar), (~same, far)):
                start = hit[kind].mean()
                moved = (pair[kind] * hit[kind]).sum() / pair[kind].sum() - start
                assert rate[0, t] - start == pytest.approx(moved, rel=2e-3, abs=1e-10)


def test_pairs_of_people_met_once_have_the_variance_of_trials():
    # Two images a person: at a high threshold accepted pairs share hardly any person.
    rng = np.random.default_rng(0)
    emb = rng.normal(size=(800, 6))
    counts = count_by_person(emb, np.repeat(np.arange(400), 2), np.array([0.9375, 0.953125]))
    rates = DrawnRates(counts)
    far = np.concatenate([rates.at(w)[1] for w in person_weights(400, 2000, 0)])
    accepted = counts.impostor.sum(0) / 2
    assert (accepted > 100).all()
    trials = np.sqrt(accepted) / (counts.n_impostor.sum() / 2)
    assert far.std(0) == pytest.approx(trials, rel=0.45)
    twice = ((counts.impostor - rates.far_T * counts.n_impostor[:, None]) ** 2).sum(0)
    # Where people share less than nothing, the half is kept.
    robust = np.sqrt(np.maximum(twice - counts.alone, twice / 2)) / (counts.n_impostor.sum() / 2)
    assert far.std(0) == pytest.approx(robust, rel=0.06)


def test_differences_of_two_models():
    emb, labels = people(200, 50)
    found = verify_all_pairs(emb, labels, fars=FARS)
    alike = all_pairs_differences((emb, emb), labels, (found, found), draws=128)
    assert all(tuple(d)[:3] == (0, 0, 0) for d in alike.values())
    worse = emb + np.random.default_rng(1).normal(size=emb.shape)
    other = verify_all_pairs(worse, labels, fars=FARS)
    paired = all_pairs_differences((emb, worse), labels, (found, other), draws=256)
    assert paired["auc"].value == other.auc - found.auc
    assert paired["auc"].high < 0 < paired["eer"].low
    back = all_pairs_differences((worse, emb), labels, (other, found), draws=256)
    assert back["auc"].low == pytest.approx(-paired["auc"].high)
    alone = all_pairs_intervals(emb, labels, found, draws=256).figures["auc"]
    near = emb + 0.1 * np.random.default_rng(2).normal(size=emb.shape)
    close = all_pairs_differences((emb, near), labels, (found, verify_all_pairs(near, labels, fars=FARS)))
    assert close["auc"].high - close["auc"].low < 0.5 * (alone.high - alone.low)
    with pytest.raises(DataError, match="needed the same images"):
        all_pairs_differences((emb, emb[1:]), labels, (found, verify_all_pairs(emb[1:], labels[1:])))


def test_order_of_the_images_does_not_matter():
    emb, labels = people(150, 40)
    order = np.random.default_rng(3).permutation(150)
    one, two = (
        all_pairs_intervals(e, n, verify_all_pairs(e, n, fars=FARS), draws=200).figures
        for e, n in ((emb, labels), (emb[order], labels[order]))
    )
    for name in one:
        assert tuple(one[name])[:3] == pytest.approx(tuple(two[name])[:3], abs=2e-3)


def test_coverage_is_near_what_it_says():
    # Few draws, so only a coarse check; tools/bench_eval.py measures it over 1,000.
    rng = np.random.default_rng(0)
    noise = np.exp(0.3 * rng.normal(size=(2000, 1, 1)))
    everybody = (rng.normal(size=(2000, 1, 12)) + noise * rng.normal(size=(2000, 2, 12))).astype(np.float32)
    whole = verify_all_pairs(everybody.reshape(-1, 12), np.repeat(np.arange(2000), 2), fars=FARS)
    truth = {"auc": whole.auc, "eer": whole.eer, **{f"tar_at_far_{f:g}": whole.tar(f) for f in FARS}}
    hits = dict.fromkeys(truth, 0)
    for draw in range(40):
        chosen = np.random.default_rng(draw).choice(2000, 120, replace=False)
        emb, labels = everybody[chosen].reshape(-1, 12), np.repeat(np.arange(120), 2)
        found = all_pairs_intervals(
            emb, labels, verify_all_pairs(emb, labels, fars=FARS), draws=128, seed=draw
        )
        for name, value in truth.items():
            hits[name] += found.figures[name].low <= value <= found.figures[name].high
    assert all(n >= 33 for n in hits.values()), hits
    assert sum(hits.values()) < 4 * 40, "never wrong: the intervals are too wide"


def test_split_scores_and_band_agree():
    emb, labels = people(120, 30)
    score, same, _ = listed(emb, labels)
    genuine, impostor = split_scores(score, same)
    found = verify_all_pairs(emb, labels, fars=FARS)
    band = all_pairs_intervals(emb, labels, found, draws=100).band
    for far, tar in zip(band.far, band.tar, strict=True):
        assert tar == pytest.approx(
            tar_at_far(genuine, impostor, min(far * (1 + 1e-9), 1)).true_rate, abs=0.01
        )
