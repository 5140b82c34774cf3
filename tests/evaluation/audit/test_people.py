"""Identities of one person: on people made of random directions, and against plain loops."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy.stats import beta, norm
from synthetic_people import IMAGES, cosine, people

from facemetric.evaluation.audit import people as alike
from facemetric.evaluation.audit.labels import centred, dimensions
from facemetric.evaluation.audit.people import alike_across, alike_identities, half_scores, strangers_of
from facemetric.mining.tiles import product_tiles


def test_a_person_under_two_names_is_found_and_nobody_else() -> None:
    emb, who = people(60)
    names = who.copy()
    names[(who == 17) & (np.arange(len(who)) % 2 == 0)] = 60  # half of 17's images
    found = alike_identities(centred(emb), names, chance=0.002)
    assert list(zip(found.first, found.second, strict=True)) == [(17, 60)]
    assert found.score[0] > found.threshold
    assert found.expected == pytest.approx(0.122)
    assert found.found_halves > 0.9


def test_pairs_of_identities_are_those_of_a_plain_loop() -> None:
    emb, who = people(44)
    emb = centred(emb)
    found = alike_identities(emb, who, chance=1.0)
    centre = [emb[who == i].mean(0) for i in range(44)]
    nearest = [sorted((cosine(c, d) for d in centre if d is not c), reverse=True) for c in centre]
    crowd = [np.mean(scores[:10]) for scores in nearest]
    score = {
        (i, j): cosine(centre[i], centre[j]) - (crowd[i] + crowd[j]) / 2 for i in range(44) for j in range(44)
    }
    wanted = {pair: value for pair, value in score.items() if pair[0] < pair[1] and value > found.threshold}
    assert 15 < len(wanted) < 90  # 44 are expected by chance
    pairs = dict(zip(zip(found.first, found.second, strict=True), found.score, strict=True))
    assert pairs == pytest.approx(wanted, abs=1e-5)
    assert (np.diff(found.score) <= 0).all()
    second = [sorted(score[i, j] for j in range(44) if j != i)[-2] for i in range(44)]
    share = np.linspace(0.02, 0.9, 45)
    below = beta.ppf(share, 42, 2)  # of the second highest of 43
    deviation, mean = np.polyfit(norm.ppf(below), np.quantile(second, share), 1)
    assert found.threshold == pytest.approx(mean + deviation * norm.isf(2 / 43), abs=1e-4)


def directions(count: int, dims: int = 16, seed: int = 0) -> np.ndarray:
    centre = np.random.default_rng(seed).normal(size=(count, dims)).astype(np.float32)
    return centre / np.linalg.norm(centre, axis=1, keepdims=True)


@pytest.mark.parametrize("doubled", [0.0, 0.1, 1.0])
def test_chance_brings_as_many_as_expected_however_many_are_doubled(doubled: float) -> None:
    centre = directions(900)
    twice = centre[: round(900 * doubled)]
    noise = 0.05 * np.random.default_rng(5).normal(size=twice.shape)
    emb = centred(np.concatenate([centre, twice + noise]))
    count = len(emb)
    found = alike_identities(emb, np.arange(count), chance=0.1)
    own = found.second - found.first == 900
    assert own.sum() == len(twice)
    assert (~own).sum() < 0.2 * count  # 0.1 * count are expected
    assert doubled == 1 or (~own).sum() > 0.05 * count  # where each has a copy, scores come in pairs: fewer


def test_many_who_look_alike_do_not_hide_a_person_with_two_names() -> None:
    """Thirty babies: nearer to one another than the two names of one person are."""
    rng = np.random.default_rng(3)
    centre = directions(300, seed=4)
    centre[:30] = centre[0] + 0.08 * rng.normal(size=(30, 16))
    again = centre[200] + 0.14 * rng.normal(size=16)
    emb = centred(np.concatenate([centre, again[None]]))
    plain = emb @ emb.T
    assert (np.triu(plain[:30, :30], 1) > plain[200, 300]).sum() > 30
    found = alike_identities(emb, np.arange(301), chance=0.01)
    assert (found.first[0], found.second[0]) == (200, 300)
    assert len(found.first) < 10


def test_few_identities_are_taken_for_random_directions() -> None:
    centre = directions(7)
    strangers = strangers_of(centre)
    assert (strangers.crowd == 0).all()
    assert (strangers.mean, strangers.deviation) == (0, pytest.approx(dimensions(centre) ** -0.5))
    emb = np.concatenate([centre[:3], centre[:1]])
    found = alike_across(centre, np.arange(7), emb, np.arange(4), chance=0.01)
    assert set(zip(found.first, found.second, strict=True)) >= {(0, 0), (1, 1), (2, 2), (0, 3)}


def test_people_of_a_test_set_are_found() -> None:
    emb, who = people(60)
    test = (who >= 40) | ((who == 5) & (np.arange(len(who)) % 2 == 0))  # 5 has other images there
    train = ~test
    emb /= np.linalg.norm(emb, axis=1, keepdims=True)
    mean = emb[train].mean(0)
    numbers = np.unique(who[test], return_inverse=True)
    found = alike_across(
        centred(emb[train], mean), who[train], centred(emb[test], mean), numbers[1], chance=0.002
    )
    assert [(i, numbers[0][j]) for i, j in zip(found.first, found.second, strict=True)] == [(5, 5)]


def test_halves_are_halves_of_one_identity() -> None:
    emb, who = people(30)
    emb = centred(emb)
    scores = half_scores(emb, who)
    assert scores.shape == (30,)
    assert scores.min() > 0.6
    assert not np.array_equal(scores, half_scores(emb, who, seed=1))
    alone = np.concatenate(
        [who[who < 3], np.arange(3, 3 + (who >= 3).sum())]
    )  # three with six, others with one
    assert half_scores(emb, alone).shape == (3,)
    two = half_scores(emb[: 2 * IMAGES], np.repeat([0, 1, 2], [4, 4, 4]))
    assert two[0] > two[1]  # the middle one is half of one person and half of another


def test_of_too_many_pairs_the_highest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    emb, who = people(40)
    emb = centred(emb)
    every = alike_identities(emb, who, chance=4.0)
    assert len(every.score) > 60
    monkeypatch.setattr(alike, "MOST_PAIRS", 20)
    monkeypatch.setattr(alike, "product_tiles", partial(product_tiles, budget_mib=7 * 7 * 4 / 2**20))
    found = alike_identities(emb, who, chance=4.0)
    assert found.first.tolist() == every.first[:20].tolist()
    assert found.second.tolist() == every.second[:20].tolist()
    np.testing.assert_allclose(found.score, every.score[:20], atol=1e-6)
