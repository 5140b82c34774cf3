"""The geometry of crops: maps, cuts, what lies beyond the edge."""

from __future__ import annotations

import numpy as np
import pytest
from photographs import turned
from PIL import Image

from facemetric.faces.template import TEMPLATE, apply_map, chain, cut_out, invert, share_inside, similarity


def test_similarity_finds_the_map_that_was_there() -> None:
    there = turned(-37, 2.3, (56, 60), (200, 91))
    np.testing.assert_allclose(similarity(TEMPLATE, apply_map(there, TEMPLATE)), there, atol=1e-9)
    np.testing.assert_allclose(apply_map(invert(there), apply_map(there, TEMPLATE)), TEMPLATE, atol=1e-9)


def test_a_chain_is_one_map_after_the_other() -> None:
    one, other = turned(12, 1.4, (3, 4), (50, 60)), turned(-80, 0.3, (9, 1), (-7, 20))
    np.testing.assert_allclose(
        apply_map(chain(one, other), TEMPLATE), apply_map(other, apply_map(one, TEMPLATE))
    )


def test_similarity_is_the_least_squares_solution_and_never_mirrors() -> None:
    rng = np.random.default_rng(0)
    for points in (TEMPLATE * 2 + rng.normal(0, 9, (5, 2)), TEMPLATE * [-1, 1]):
        rows = [[[x, -y, 1, 0], [y, x, 0, 1]] for x, y in points]
        a, b, c, d = np.linalg.lstsq(np.reshape(rows, (10, 4)), TEMPLATE.ravel(), rcond=None)[0]
        found = similarity(points, TEMPLATE)
        np.testing.assert_allclose(found, [[a, -b, c], [b, a, d]], atol=1e-8)
        assert np.linalg.det(found[:, :2]) > 0


@pytest.mark.parametrize(
    ("degrees", "scale"), [(7, 1), (25, 0.9), (-50, 1.7), (10, 0.45), (170, 0.2), (3, 0.06)]
)
def test_a_crop_shows_what_the_map_says(degrees: float, scale: float) -> None:
    """A ramp has a known brightness at every point: an eighth of the crop's pixel off would be seen."""
    side = round(120 / scale)
    y, x = np.mgrid[:side, :side]
    slope = 2 * scale
    ramp = np.stack([x * slope, y * slope, (x + y) * slope / 2], 2)
    dither = np.random.default_rng(0).uniform(size=ramp.shape)  # rounding would lean to one side
    there = turned(degrees, scale, (side / 2 + 0.3, side / 2 - 0.1), (40, 40))
    crop = np.asarray(cut_out(Image.fromarray((ramp + dither).astype(np.uint8)), there, 80), float)
    rows, columns = np.mgrid[:80, :80]
    at = apply_map(invert(there), np.stack([columns.ravel(), rows.ravel()], 1).astype(float)).reshape(
        80, 80, 2
    )
    inside = ((at > 4 / scale) & (at < side - 4 / scale)).all(2)
    assert inside.mean() > 0.5
    error = (crop - np.stack([at[..., 0], at[..., 1], at.mean(2)], 2) * slope)[inside]
    assert abs(error.mean(0) + 0.4).max() < 0.2  # PIL cuts off fractions of its 256 levels
    assert abs(error).max() < 3


def test_the_map_that_changes_nothing_gives_every_pixel_back() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    crop = cut_out(Image.fromarray(picture), turned(0, 1, (0, 0), (0, 0)), 40)
    np.testing.assert_array_equal(np.asarray(crop), picture)


def test_beyond_the_edge_the_last_pixel_is_repeated() -> None:
    picture = np.zeros((50, 60, 3), np.uint8)
    picture[:, :10], picture[:, -10:] = 200, 90
    there = turned(0, 1, (0, 0), (40, 30))
    crop = np.asarray(cut_out(Image.fromarray(picture), there, 140))
    assert (crop[:, :38] == 200).all()
    assert (crop[:, 102:] == 90).all()
    assert share_inside(there, (60, 50), 140) == pytest.approx(50 * 60 / 140**2)
