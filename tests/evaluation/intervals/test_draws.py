import numpy as np
import pytest

from facemetric.errors import DataError
from facemetric.evaluation.intervals import draws as person_draws
from facemetric.evaluation.intervals.draws import _scale, mean_draws, pair_weights, persons_of_pairs


def test_scale_between_pairs_alone_and_all_pairs():
    rng = np.random.default_rng(0)
    alone = _scale(rng.normal(size=4000), np.arange(4000), np.arange(4000) + 4000, 8000)
    assert alone == pytest.approx((2**0.5 - 1) ** 0.5)  # (1 + v)^2 - 1 = 1
    i, j = np.triu_indices(120, 1)
    difficulty = rng.normal(size=120)
    together = _scale(difficulty[i] + difficulty[j] + 0.1 * rng.normal(size=len(i)), i, j, 120)
    assert 0.97 < together <= 1
    assert _scale(np.zeros(5), np.arange(5), np.arange(5) + 5, 10) == 1


def test_a_pair_of_people_seen_once_has_the_variance_of_one_trial():
    same = np.arange(600) < 300
    score = np.random.default_rng(0).normal(same)
    persons = np.arange(600), np.where(same, np.arange(600), np.arange(600) + 600)
    weight = np.concatenate(list(pair_weights(score, same, persons, 2000, 0)))
    assert weight.shape == (2000, 600)
    assert weight[:, same].var() == pytest.approx(1, rel=0.05)
    assert weight[:, ~same].var() == pytest.approx(1, rel=0.05)
    assert weight[:, ~same].mean() == pytest.approx(1, rel=0.01)


def test_many_pairs_are_drawn_a_few_at_a_time_and_the_same(monkeypatch):
    same = np.arange(600) < 300
    score = np.random.default_rng(0).normal(same)
    persons = np.arange(600) % 90, np.where(same, np.arange(600) % 90, (np.arange(600) + 1) % 90)
    whole = list(pair_weights(score, same, persons, 150, 0))
    assert [len(chunk) for chunk in whole] == [64, 64, 22]
    for budget, size in ((8 * 600 * 7 + 1, 7), (1, 1)):
        monkeypatch.setattr(person_draws, "BUDGET", budget)
        pieces = list(pair_weights(score, same, persons, 150, 0))
        assert {len(chunk) for chunk in pieces[:-1]} == {size}
        np.testing.assert_array_equal(np.concatenate(pieces), np.concatenate(whole))


def test_means_of_one_image_that_changes():
    change = np.zeros((200, 1))
    change[7] = 1
    drawn = mean_draws(change, np.arange(200), draws=4000)
    assert (drawn == 0).mean() == pytest.approx((1 - 1 / 200) ** 200, abs=0.03)
    assert drawn.mean() == pytest.approx(1 / 200, rel=0.1)


def test_persons_from_genuine_links():
    a, b = persons_of_pairs([0, 1, 3, 0, 5], [1, 2, 4, 3, 0], [True, True, True, False, False])
    assert a[0] == b[0] == a[1] == b[1]
    assert a[2] == b[2] != a[0]
    assert len({a[0], a[2], a[4]}) == 3


def test_values_and_persons_that_do_not_match():
    with pytest.raises(
        DataError, match=r"values of shape \(3,\) and persons of shape \(2,\); needed one for"
    ):
        mean_draws(np.ones((3, 4)), [0, 1])
    with pytest.raises(DataError, match=r"values of shape \(0,\)"):
        mean_draws(np.ones((0, 4)), [])
