"""Which images are shown, and where."""

from __future__ import annotations

import numpy as np

from facemetric.report.map import PER_PERSON, choose_images, lay_out


def test_whole_people_are_shown() -> None:
    who = np.repeat(np.arange(100), 6)[np.random.default_rng(0).permutation(600)]
    rows = choose_images(who, 120, 0)
    assert len(rows) == 120
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert np.unique(np.bincount(who[rows], minlength=100)).tolist() == [0, 6]
    assert choose_images(who, 120, 0).tolist() == rows.tolist()
    assert choose_images(who, 120, 1).tolist() != rows.tolist()
    assert choose_images(who, 10_000, 0).tolist() == list(range(600))


def test_people_with_two_images_come_first() -> None:
    who = np.array([*range(50), *np.repeat(np.arange(50, 60), 2)])
    assert sorted(who[choose_images(who, 20, 0)]) == sorted(np.repeat(np.arange(50, 60), 2))
    assert len(choose_images(who, 40, 0)) == 40


def test_nobody_fills_the_picture() -> None:
    who = np.repeat(np.arange(101), [500, *[2] * 100])
    shown = np.bincount(who[choose_images(who, 400, 0)])
    assert shown[0] == PER_PERSON
    assert set(shown[1:]) == {2}
    few = np.repeat(np.arange(10), 500)
    assert np.bincount(few[choose_images(few, 1000, 0)]).tolist() == [100] * 10


def test_neighbours_stay_neighbours() -> None:
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(8), 12)
    emb = 4 * rng.normal(size=(8, 64))[who] + rng.normal(size=(96, 64))
    place = lay_out(emb, seed=0, quick=True)
    assert place.shape == (96, 2)
    assert place.min() == 0
    assert place.max() == 1
    gap = np.linalg.norm(place[:, None] - place[None], axis=2) + np.diag(np.full(96, 9.0))
    assert np.mean(who[gap.argmin(1)] == who) > 0.95
    np.testing.assert_array_equal(lay_out(emb, seed=0, quick=True), place)


def test_two_numbers_are_drawn_as_they_are() -> None:
    emb = np.array([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    place = lay_out(emb)
    np.testing.assert_allclose((place - place[0]) * 2, emb - emb[0], atol=1e-6)


def test_one_alone_lies_in_the_middle() -> None:
    for size in (2, 8):
        np.testing.assert_array_equal(lay_out(np.ones((1, size))), [[0.5, 0.5]])
        assert lay_out(np.ones((0, size))).shape == (0, 2)


def test_a_handful_and_doubles() -> None:
    rng = np.random.default_rng(0)
    for emb in (rng.normal(size=(2, 8)), rng.normal(size=(6, 8)), np.ones((40, 8))):
        place = lay_out(emb, quick=True)
        assert np.isfinite(place).all()
        assert 0 <= place.min() <= place.max() <= 1
