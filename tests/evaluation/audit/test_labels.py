"""Labels that embeddings speak against, on people made of random directions, and against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic_people import cosine, people

from facemetric.evaluation.audit.labels import centred, chance_score, dimensions, judge_images


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
