"""Labels that embeddings speak against, on people made of random directions, and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from facemetric.evaluation.labels import (
    alike_across,
    alike_identities,
    centred,
    chance_score,
    dimensions,
    half_scores,
    judge_images,
)

IMAGES = 6


def people(identities: int, seed: int = 0, dims: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, 64) of which `dims` numbers are used, all leaning to one side, and labels."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(identities, dims))
    emb = np.repeat(centre, IMAGES, 0) + 0.5 * rng.normal(size=(identities * IMAGES, dims))
    basis = np.random.default_rng(9).normal(size=(dims, 64))
    return (emb @ basis + 20).astype(np.float32), np.repeat(np.arange(identities), IMAGES)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_dimensions_of_random_directions() -> None:
    rng = np.random.default_rng(0)
    flat = np.zeros((400, 50))
    flat[:, :12] = rng.normal(size=(400, 12))
    assert dimensions(flat / np.linalg.norm(flat, axis=1, keepdims=True)) == pytest.approx(12, rel=0.05)


@pytest.mark.parametrize(("dims", "share"), [(8, 1e-2), (8, 1e-3), (40, 1e-2), (3, 0.25)])
def test_chance_exceeds_the_score_as_often_as_said(dims: int, share: float) -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=(200_000, dims)) for _ in range(2))
    score = np.einsum("nd,nd->n", a, b) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert (score > chance_score(share, dims)).mean() == pytest.approx(share, rel=0.2)


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
    emb, who = people(25)
    emb = centred(emb)
    found = alike_identities(emb, who, chance=1.0)
    centre = [emb[who == i].mean(0) for i in range(25)]
    wanted = {(i, j): cosine(centre[i], centre[j]) for i in range(25) for j in range(i + 1, 25)}
    wanted = {pair: score for pair, score in wanted.items() if score > found.threshold}
    assert 5 < len(wanted) < 60  # 25 are expected by chance
    pairs = dict(zip(zip(found.first, found.second, strict=True), found.score, strict=True))
    assert pairs == pytest.approx(wanted, abs=1e-5)
    assert (np.diff(found.score) <= 0).all()
    squares = [cosine(centre[i], centre[j]) ** 2 for i in range(25) for j in range(25) if i != j]
    assert found.threshold == pytest.approx(chance_score(25 / 300, 1 / np.mean(squares)), abs=1e-4)


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


def test_judged_as_in_a_plain_loop() -> None:
    emb, who = people(20)
    who[5], who[77] = 11, 3
    pair = np.flatnonzero(who == 19)
    emb, who = np.delete(emb, pair[2:], 0), np.delete(who, pair[2:])  # 19 keeps two images
    emb = centred(emb)
    found = judge_images(emb, who)
    for row in range(len(who)):
        rest = emb[(who == who[row]) & (np.arange(len(who)) != row)]
        own = cosine(emb[row], rest.mean(0))
        others = {i: cosine(emb[row], emb[who == i].mean(0)) for i in range(20) if i != who[row]}
        assert found.own[row] == pytest.approx(own, abs=1e-5)
        assert found.nearest[row] == max(others, key=others.__getitem__)
        assert found.best[row] == pytest.approx(max(others.values()), abs=1e-5)
        if who[row] == 19:
            assert np.isnan(found.above[row])
        else:
            assert found.above[row] == pytest.approx(np.mean([s > own for s in others.values()]), abs=1e-9)
    assert set(np.flatnonzero(found.above > 0)) == {5, 77}
    assert found.nearest[5] == 0
