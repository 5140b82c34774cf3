import math
import tracemalloc

import numpy as np
import pytest
import reference_metrics as slow
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from facemetric.errors import ConfigError, DataError
from facemetric.evaluation.folds import draw_folds, fold_accuracy
from facemetric.evaluation.intervals import listed as listed_module
from facemetric.evaluation.intervals.counts import ListedCells, band_fars
from facemetric.evaluation.intervals.listed import _Figures, paired_differences, verification_intervals
from facemetric.evaluation.intervals.records import (
    Band,
    Interval,
    at_least_wilson,
    auc_alone,
    effective_pairs,
    effective_people,
    mean_intervals,
    newcombe,
    widened,
    wilson,
)


def population(persons, seed):
    """Two photos each of people whose photos differ more or less."""
    rng = np.random.default_rng(seed)
    noise = np.exp(0.3 * rng.normal(size=(persons, 1, 1)))
    emb = rng.normal(size=(persons, 1, 16)) + noise * rng.normal(size=(persons, 2, 16))
    return emb / np.linalg.norm(emb, axis=2, keepdims=True)


def pairs_of(emb, each, seed):
    rng = np.random.default_rng(seed)
    n = len(emb)
    i, j = rng.integers(n, size=(2, each))
    k = (j + 1 + rng.integers(n - 1, size=each)) % n
    score = np.concatenate([(emb[i, 0] * emb[i, 1]).sum(1), (emb[j, 0] * emb[k, 1]).sum(1)])
    return score, np.arange(2 * each) < each, (np.concatenate([i, j]), np.concatenate([i, k]))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans(), st.integers(1, 3)), max_size=20))
def test_whole_weights_are_repetitions(rows):
    rows = [(2, True, 1), (1, False, 2), *rows]
    score, same, times = (np.array(column) for column in zip(*rows, strict=True))
    fars = (0.5, 0.25)
    figures = _Figures(score / 3, same, fars)
    got = figures.weighted(np.stack([np.ones(len(times)), times]).astype(float))
    for line, repeat in zip(got, (np.ones(len(times), int), times), strict=True):
        s, y = np.repeat(score / 3, repeat), np.repeat(same, repeat)
        wanted = [slow.auc(s, y), slow.eer(s, y)] + [
            slow.tar_at_far(s, y, p.wanted)[0] for p in figures.points
        ]
        wanted += [slow.tar_at_far(s, y, far)[0] for far in figures.band_fars]
        np.testing.assert_allclose(line, wanted, atol=1e-9)
    np.testing.assert_allclose(got[0], [*figures.values().values(), *figures.band_tar()], atol=1e-9)


@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_as_scipy(total, share):
    successes = round(share * total)
    peer = binomtest(successes, total).proportion_ci(0.95, method="wilson")
    ours = wilson(successes, total)
    assert (ours.low, ours.high) == pytest.approx((peer.low, peer.high), abs=1e-9)
    assert ours.value == successes / total


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((6, 7), (2, 7), 0.0582, 0.8062),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((10, 10), (0, 20), 0.6791, 1.0),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_newcombe_as_in_the_papers_table(one, other, low, high):
    found = newcombe(wilson(*one), wilson(*other))
    assert found.value == one[0] / one[1] - other[0] / other[1]
    assert (found.low, found.high) == pytest.approx((low, high), abs=5.1e-5)


def test_seeded_and_around_the_value():
    score, same, persons = pairs_of(population(100, 0), 300, 0)
    first, again, other = (
        verification_intervals(score, same, persons, seed=s, draws=200).figures for s in (1, 1, 2)
    )
    assert first == again != other
    assert list(first) == [
        "auc",
        "eer",
        "tar_at_far_0.1",
        "tar_at_far_0.01",
    ]  # 1e-3 needs 1000 impostor pairs
    for interval in first.values():
        assert interval.low < interval.value < interval.high


def test_the_band_is_the_interval_at_each_far():
    score, same, persons = pairs_of(population(100, 0), 300, 0)
    found = verification_intervals(score, same, persons, draws=200, fars=(1 / 300, 0.1, 1.0))
    band = found.band
    assert (band.far[0], band.far[-1]) == (1 / 300, 1)
    assert (np.diff(band.far) > 0).all()
    assert (np.diff(np.log10(band.far)) < 0.126).all()  # eight a decade
    for place, far in ((0, 1 / 300), (int(np.argmin(abs(band.far - 0.1))), 0.1), (-1, 1.0)):
        wanted = found.figures[f"tar_at_far_{far:g}"]
        assert (band.tar[place], band.low[place], band.high[place]) == pytest.approx(tuple(wanted)[:3])
    assert (band.low <= band.tar + 1e-12).all()
    assert (band.tar <= band.high + 1e-12).all()


def test_accuracy_over_folds():
    score, same, who = pairs_of(population(200, 0), 1000, 0)
    fold = draw_folds(same, 5)
    found = verification_intervals(score, same, who, fold=fold).figures["accuracy"]
    accuracy = fold_accuracy(score, same, fold)
    assert found.value == accuracy.mean
    peer = wilson(round(accuracy.mean * len(score)), len(score))
    # Each genuine pair stands there five times.
    assert 1.4 < (found.high - found.low) / (peer.high - peer.low) < 2 * 5**0.5
    assert found.low < found.value < found.high
    other = score + 0.1 * np.random.default_rng(0).normal(size=len(score))
    change = paired_differences((score, other), same, who, fold=fold)["accuracy"]
    assert change.value == fold_accuracy(other, same, fold).mean - accuracy.mean
    assert change.low < change.value < change.high
    assert change.high - change.low < found.high - found.low
    none = paired_differences((score, score), same, who, fold=fold)["accuracy"]
    assert tuple(none)[:3] == (0, 0, 0)


def test_order_of_the_pairs_does_not_matter():
    score, same, (a, b) = pairs_of(population(60, 0), 200, 0)
    order = np.random.default_rng(0).permutation(len(score))
    one = verification_intervals(score, same, (a, b), draws=128).figures
    two = verification_intervals(score[order], same[order], (b[order], a[order]), draws=128).figures
    np.testing.assert_allclose(list(one.values()), list(two.values()), atol=1e-9)


def test_repeating_every_pair_adds_no_certainty():
    score, same, (a, b) = pairs_of(population(60, 0), 300, 0)
    one = verification_intervals(score, same, (a, b), draws=400).figures["auc"]
    four = verification_intervals(
        *(np.tile(x, 4) for x in (score, same)), (np.tile(a, 4), np.tile(b, 4)), draws=400
    ).figures
    assert (four["auc"].high - four["auc"].low) > 0.85 * (one.high - one.low)


def test_coverage_is_near_what_it_says():
    # Few draws, so only a coarse check; tools/bench_eval.py measures it over 1,000.
    people = population(3000, 1)
    truth = {
        k: v.value for k, v in verification_intervals(*pairs_of(people, 60_000, 2), draws=100).figures.items()
    }
    hits = dict.fromkeys(("auc", "eer", "tar_at_far_0.1"), 0)
    for draw in range(100):
        rng = np.random.default_rng(draw)
        sample = people[rng.choice(len(people), 250, replace=False)]
        found = verification_intervals(*pairs_of(sample, 150, draw), draws=128, fars=(0.1,)).figures
        for name in hits:
            hits[name] += found[name].low <= truth[name] <= found[name].high
    assert all(87 <= n <= 100 for n in hits.values()), hits
    assert sum(hits.values()) < 300, "never wrong: the intervals are too wide"


def test_paired_difference():
    score, same, persons = pairs_of(population(80, 0), 400, 0)
    rng = np.random.default_rng(0)
    same_model = paired_differences((score, score), same, persons, draws=128)
    assert all(tuple(v)[:3] == (0, 0, 0) for v in same_model.values())
    worse = score + 0.02 * rng.normal(size=len(score))
    paired = paired_differences((score, worse), same, persons, draws=256, fars=(0.1,))
    alone = verification_intervals(score, same, persons, draws=256, fars=(0.1,)).figures
    assert paired["auc"].high - paired["auc"].low < 0.5 * (alone["auc"].high - alone["auc"].low)
    figures = [_Figures(s, same, (0.1,)).values() for s in (score, worse)]
    assert paired["eer"].value == figures[1]["eer"] - figures[0]["eer"]
    turned = paired_differences((score, -score), same, persons, draws=128)
    assert turned["auc"].high < 0 < turned["eer"].low


def test_mean_interval_counts_persons_not_images():
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(50), 20)
    value = np.repeat(rng.integers(2, size=50), 20)
    interval = mean_intervals({"right": value}, person)["right"]
    expected = wilson(int(value[::20].sum()), 50)
    assert interval.value == value.mean()
    assert interval.high - interval.low == pytest.approx(expected.high - expected.low, rel=0.15)
    assert mean_intervals({"right": value}, np.zeros(len(value))) == {}
    uneven = mean_intervals({"right": np.ones(55)}, np.repeat(np.arange(10), np.arange(1, 11)))["right"]
    assert tuple(uneven)[:3] == pytest.approx((1, 1, 1))


def test_one_image_that_changes_is_no_difference():
    change = np.zeros((200, 1))
    change[7] = 1
    interval = mean_intervals({"knn": change[:, 0]}, np.arange(200))["knn"]
    assert interval.low == 0


def test_bad_input():
    score, same = np.array([0.9, 0.8, 0.1, 0.2]), np.array([True, True, False, False])
    with pytest.raises(DataError, match=r"1 of 4 pairs \(first: 3\) contradict"):
        verification_intervals(score, same, ([0, 1, 2, 3], [0, 1, 2, 0]))
    with pytest.raises(DataError, match="4 pairs need both of each"):
        verification_intervals(score, same, ([0, 1], [0, 1]))
    with pytest.raises(ConfigError, match="10 draws of 4 people"):
        verification_intervals(score, same, ([0, 1, 2, 3], [0, 1, 3, 0]), draws=10)
    with pytest.raises(DataError, match="3 successes of 2"):
        wilson(3, 2)


def test_intervals_of_few_pairs_stay_where_the_figure_can_be():
    """Fifty pairs of each kind, two of them wrong: percentiles about the figure would pass 1."""
    rng = np.random.default_rng(1)
    same = np.arange(100) < 50
    score = np.where(same, 0.8, 0.1) + 0.1 * rng.normal(size=100)
    score[[3, 60]] = 0.2, 0.75
    who = np.arange(100), np.where(same, np.arange(100), np.arange(100) + 100)
    found = verification_intervals(score, same, who, fold=draw_folds(same, 10), fars=(0.1,))
    for interval in found.figures.values():
        assert 0 <= interval.low <= interval.value <= interval.high <= 1
    assert found.figures["accuracy"].high < 1  # two wrong of a hundred: not never
    other = score + 0.3 * rng.normal(size=100)
    change = paired_differences((other, score), same, who, fold=draw_folds(same, 10))["accuracy"]
    assert -1 <= change.low < change.value < change.high <= 1


def test_where_no_pair_is_wrong_the_intervals_are_wilsons():
    """Draws of pairs that are all right never say wrong: of a hundred, chance shows none where one in 27 is wrong."""
    rng = np.random.default_rng(0)
    same = np.arange(100) < 40
    score = np.where(same, rng.uniform(0.6, 1, 100), rng.uniform(-0.5, 0.2, 100))
    who = np.arange(100), np.where(same, np.arange(100), np.arange(100) + 100)
    found = verification_intervals(score, same, who, fold=draw_folds(same, 10), fars=(0.1,))
    none, all_right = binomtest(0, 40), binomtest(100, 100)
    low = all_right.proportion_ci(method="wilson").low
    high = none.proportion_ci(method="wilson").high
    expected = {
        "accuracy": (1, low, 1),
        "auc": (1, 1 - high, 1),
        "eer": (0, 0, high),
        "tar_at_far_0.1": (1, 1 - high, 1),
    }
    for name, interval in found.figures.items():
        assert tuple(interval)[:3] == pytest.approx(expected[name], abs=1e-9), name
    assert found.band.low == pytest.approx(1 - high)
    turned = verification_intervals(-score, same, who, fars=(0.1,)).figures
    assert tuple(turned["auc"])[:3] == pytest.approx((0, 0, high))


def test_where_errors_are_many_the_draws_decide():
    interval = Interval(0.9, 0.85, 0.92)
    assert at_least_wilson(interval, 101) is interval  # over ten errors
    wide = at_least_wilson(interval, 50)
    assert (wide.low, wide.high) == pytest.approx((wilson(45, 50).low, wilson(45, 50).high))
    assert at_least_wilson(Interval(0.9, 0.4, 0.999), 50) == (0.9, 0.4, 0.999, 0.95)


def test_pairs_that_err_together_count_as_fewer():
    """By hand: 95 of 100 right, draws between 0.87 and 0.99, pairs of people who are worth 22 equal ones."""
    drawn = Interval(0.95, 0.87, 0.99)
    variance = (0.12 / 2 / 1.959964) ** 2
    student = 2.079614  # of 21 degrees of freedom, 97.5 %, from a printed table
    count = 0.95 * 0.05 / variance * (1.959964 / student) ** 2
    assert count < 50
    assert effective_pairs(drawn, 100, 22) == pytest.approx(count, rel=1e-5)
    assert effective_pairs(drawn, 100, math.inf) == pytest.approx(0.95 * 0.05 / variance, rel=1e-5)
    found, alone = at_least_wilson(drawn, 100, 22), wilson(0.95 * count, count)
    assert found.low == pytest.approx(alone.low, abs=1e-6)
    assert found.low < wilson(95, 100).low < 0.87 + 0.02
    assert found.high == 0.99  # of the draws, which reach farther there
    # Never more than there are, and all of them where the draws say nothing.
    assert effective_pairs(Interval(0.95, 0.949, 0.951), 100, 22) == 100
    assert effective_pairs(Interval(1.0, 1.0, 1.0), 100, 22) == 100
    assert effective_pairs(Interval(0.5, 0.0, 1.0), 100, 1) == 1


def test_people_with_unequal_numbers_of_pairs_count_as_fewer():
    assert effective_people([3, 3, 3]) == 3
    assert effective_people([1, 3, 6, 0]) == pytest.approx(100 / 46)
    assert effective_people([0, 0]) == 0


def test_the_tar_of_few_people_takes_their_number_into_account():
    """The same pairs: of 20 people with five genuine pairs each, and of 100 with one each."""
    rng = np.random.default_rng(3)
    same = np.arange(200) < 100
    few, many = np.arange(100) // 5, np.arange(100)
    score = rng.normal(0.3, 0.1, 200) + 0.5 * same
    score[:4] = -0.5  # one person's: all errors are hers
    found = [
        verification_intervals(
            score, same, (np.append(who, who), np.append(who, (who + 1) % (who.max() + 1))), fars=(0.1,)
        )
        for who in (few, many)
    ]
    one, other = (each.figures["tar_at_far_0.1"] for each in found)
    assert one.value == other.value == 0.96
    assert other.low == pytest.approx(wilson(96, 100).low, abs=0.02)
    assert one.low < other.low - 0.06
    at = np.abs(found[0].band.far - 0.1).argmin()
    assert found[0].band.low[at] < found[1].band.low[at] - 0.06


@pytest.mark.parametrize(("genuine", "impostor"), [(40, 60), (60, 40), (1000, 3)])
def test_an_auc_of_independent_pairs(genuine, impostor):
    """The ends are where the measured value is 1.96 standard errors off; turned scores turn the interval."""

    def error(t):
        q_1, q_2 = (
            t / (2 - t),
            2 * t * t / (1 + t),
        )  # Hanley and McNeil 1982, with both kinds as many as their mean
        n = (genuine + impostor) / 2 - 1
        return np.sqrt((t * (1 - t) + n * (q_1 - t * t) + n * (q_2 - t * t)) / genuine / impostor)

    for value in (0.5, 0.9, 0.999, 1.0):
        found = auc_alone(value, genuine, impostor)
        assert 0 <= found.low < value <= found.high <= 1
        for end in (found.low, found.high):
            if end < 1:
                assert abs(value - end) / error(end) == pytest.approx(1.959964, abs=1e-4)
        turned = auc_alone(1 - value, genuine, impostor)
        assert (turned.low, turned.high) == pytest.approx((1 - found.high, 1 - found.low), abs=1e-9)


def test_an_auc_with_few_errors_is_no_surer_than_independent_pairs_say():
    """Fifty pairs of each kind, one of which lies below some others: draws that leave it out say never."""
    rng = np.random.default_rng(1)
    same = np.arange(100) < 50
    score = np.where(same, rng.uniform(0.6, 1, 100), rng.uniform(-0.5, 0.2, 100))
    score[3] = 0.1
    who = np.arange(100), np.where(same, np.arange(100), np.arange(100) + 100)
    found = verification_intervals(score, same, who, fars=(0.1,)).figures["auc"]
    alone = auc_alone(found.value, 50, 50)
    assert found.value > 0.99
    assert found.low == pytest.approx(alone.low)
    assert alone.low < 0.96 < 0.99 < found.high < 1
    many = Interval(0.9, 0.89, 0.91)
    band = Band(*np.ones((4, 1)))
    assert widened({"auc": many}, band, 101, 500).figures["auc"] is many  # over ten errors
    assert widened({"auc": many}, band, 99, 500).figures["auc"].low < 0.87


def grid_of(people, trials, seed):
    """Some enrolled people, one photograph each, against photographs of all: what speakers' protocols list."""
    emb = population(people, seed)
    rng = np.random.default_rng(seed)
    enrolled = rng.choice(people, trials, replace=False)
    a, b = np.repeat(enrolled, people), np.tile(np.arange(people), trials)
    score = np.einsum("pd,pd->p", emb[a, 0], emb[b, 1])
    return score, a == b, (a, b)


@pytest.mark.parametrize("shape", ["grid", "pairs"])
def test_counts_of_each_person_say_what_weights_of_every_pair_say(shape, monkeypatch):
    """The two ways to draw, on the same pairs: intervals whose ends agree within a quarter of their width."""
    score, same, who = grid_of(150, 60, 0) if shape == "grid" else pairs_of(population(300, 0), 3000, 0)
    other = score + 0.05 * np.random.default_rng(0).normal(size=len(score))
    fold = draw_folds(same, 5)
    options = {"fars": (0.1, 0.01), "fold": fold}
    found = []
    for many in (len(score), len(score) - 1):
        monkeypatch.setattr(listed_module, "MANY_PAIRS", many)
        bounds = verification_intervals(score, same, who, **options)
        change = paired_differences((score, other), same, who, **options)
        found.append((bounds, {f"change of {name}": interval for name, interval in change.items()}))
    (weighed, changes), (counted, others) = found
    for exact, quick in ((weighed.figures, counted.figures), (changes, others)):
        assert list(exact) == list(quick)
        for name, interval in exact.items():
            assert quick[name].value == interval.value, name
            near = pytest.approx((interval.low, interval.high), abs=(interval.high - interval.low) / 4)
            assert (quick[name].low, quick[name].high) == near, name
    np.testing.assert_array_equal(weighed.band.tar, counted.band.tar)
    assert (counted.band.low <= counted.band.tar + 1e-12).all()
    assert (counted.band.tar <= counted.band.high + 1e-12).all()


def test_counts_of_people_take_few_bytes_a_pair():
    rng = np.random.default_rng(0)
    one = np.repeat(np.arange(100, dtype=np.int32), 4000)
    other = np.tile(np.arange(4000, dtype=np.int32), 100)
    score = rng.normal(size=len(one))
    cells = ListedCells(score, one == other, (one, other), 4000, np.linspace(-3, 3, 16))
    tracemalloc.start()
    try:
        cells.counts()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 65 * len(one)


def test_the_fars_of_the_band_begin_at_the_lowest_that_is_supported():
    for pairs in (*range(1, 1000), 10**4, 10**6):
        fars = band_fars(pairs)
        assert fars[0] == 1 / pairs
        assert fars[-1] == 1
        assert (np.diff(fars) > 1e-9 * fars[:-1]).all()
