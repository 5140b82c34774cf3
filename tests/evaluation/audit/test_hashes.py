"""Perceptual hashes: alike for copies, half the bits apart for others."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from drawn_pictures import drawn_arrays
from PIL import Image, ImageEnhance
from scipy.stats import norm

from facemetric.data.images import decode
from facemetric.data.index import read_index
from facemetric.evaluation.audit import hashes as duplicates
from facemetric.evaluation.audit.hashes import (
    LUMA,
    MIRROR,
    Chance,
    chance_of,
    close_across,
    close_pairs,
    hash_signs,
    low_frequencies,
    read_frequencies,
)


def frequencies(pictures: list[Image.Image]) -> np.ndarray:
    small = [np.asarray(p.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)) for p in pictures]
    return low_frequencies(np.stack(small))


@pytest.fixture(scope="module")
def faces_96() -> list[Image.Image]:
    """40 drawn people, a picture of each."""
    pictures, _ = drawn_arrays(40, 1, 96, seed=3)
    return [Image.fromarray(picture) for picture in pictures]


def test_frequencies_are_the_cosine_transform() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    grey = picture.astype(float) @ LUMA
    found = low_frequencies(picture[None])[0]
    at = 0
    for u in range(16):
        for v in range(16):
            if u == v == 0:
                continue
            if (u, v) in ((0, 1), (3, 7), (15, 15), (9, 0)):
                waves = [[math.cos(math.pi * (2 * p + 1) * f / 64) for p in range(32)] for f in (u, v)]
                scale = (math.sqrt(1 / 32) if u == 0 else 0.25) * (math.sqrt(1 / 32) if v == 0 else 0.25)
                wanted = scale * sum(
                    grey[y, x] * waves[0][y] * waves[1][x] for y in range(32) for x in range(32)
                )
                assert found[at] == pytest.approx(wanted, abs=1e-2)
            at += 1
    assert at == found.shape[0] == 255


def test_the_mirror_image_has_the_mirrored_frequencies(faces_96: list[Image.Image]) -> None:
    picture = faces_96[0].resize((32, 32))
    straight, mirrored = frequencies([picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    np.testing.assert_allclose(straight * MIRROR, mirrored, atol=1e-2)
    assert np.abs(straight - mirrored).max() > 10


def test_copies_are_near_and_others_half_the_bits_away(faces_96: list[Image.Image]) -> None:
    picture = faces_96[7]
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=30)
    copies = [
        picture.resize((300, 300), Image.Resampling.BICUBIC),
        picture.resize((40, 40)),
        decode(packed.getvalue()),
        ImageEnhance.Brightness(picture).enhance(0.6),
        picture.convert("L"),
    ]
    values = frequencies([*faces_96, *copies])
    signs = hash_signs(values, np.median(values[:40], 0))
    bits = (255 - signs @ signs.T) / 2
    assert bits[7, 40:].max() <= 40
    others = bits[:40, :40][~np.eye(40, dtype=bool)]
    assert 110 < others.mean() < 135
    assert others.min() > 40


def test_unreadable_images_are_listed(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set" / "someone"
    folder.mkdir(parents=True)
    (folder / "0.jpg").write_bytes(b"no picture")
    (folder / "1.jpg").write_bytes(sorted((faces / "drawn_0001").iterdir())[0].read_bytes())
    read = read_frequencies(read_index(tmp_path / "set"))
    assert read.bad == [(0, "no image of a known kind")]
    assert not read.values[0].any()
    assert read.values[1].any()


@pytest.fixture(scope="module")
def signs() -> np.ndarray:
    """120 random hashes of 64 bits; 30 of them again with up to 12 bits turned."""
    rng = np.random.default_rng(0)
    first = rng.choice(np.float32([-1, 1]), (120, 64))
    again = first[:30].copy()
    for row in range(30):
        again[row, rng.choice(64, row % 13, replace=False)] *= -1
    return np.concatenate([first, again])


def plain(a: np.ndarray, b: np.ndarray, limit: int, triangle: bool) -> set[tuple[int, int, int]]:
    return {
        (i, j, int((x != y).sum()))
        for i, x in enumerate(a)
        for j, y in enumerate(b)
        if (x != y).sum() <= limit and (i < j or not triangle)
    }


@pytest.mark.parametrize("limit", [0, 5, 20])
def test_close_pairs_are_those_of_a_plain_loop(
    signs: np.ndarray, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facemetric.mining.tiles.CPU_BUDGET_MIB", 0.01)  # many tiles
    found = close_pairs(signs, limit)
    assert set(zip(*map(np.ndarray.tolist, found[:3]), strict=True)) == plain(signs, signs, limit, True)
    assert (np.diff(found.bits) >= 0).all()
    assert len(found.first) >= 3
    across = close_across(signs[:70], signs[60:], limit)
    assert set(zip(*map(np.ndarray.tolist, across[:3]), strict=True)) == plain(
        signs[:70], signs[60:], limit, False
    )
    mirrored = close_pairs(signs, limit, mirrored_NK=-signs[::-1])
    wanted = plain(signs, -signs[::-1], limit, True)
    assert set(zip(*map(np.ndarray.tolist, mirrored[:3]), strict=True)) == wanted


def test_of_too_many_pairs_the_nearest_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 10)
    monkeypatch.setattr("facemetric.mining.tiles.CPU_BUDGET_MIB", 0.001)
    alike = np.ones((40, 64), np.float32)
    alike[20:, :3] = -1
    found = close_pairs(alike, 5)
    assert found.bits.tolist() == [0] * 10
    assert found.cut == 40 * 39 // 2 - 10
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 500)  # reached at the end only
    found = close_pairs(alike, 5)
    assert np.bincount(found.bits).tolist() == [380, 0, 0, 120]
    assert found.cut == 40 * 39 // 2 - 500


def test_chance_is_the_tail_of_different_identities() -> None:
    """Hashes whose bits go together in fives: their differences spread more widely than those of fair coins."""
    rng = np.random.default_rng(0)
    signs = np.repeat(rng.choice(np.float32([-1, 1]), (1200, 51)), 5, axis=1)
    who = np.arange(1200) // 2
    copied = signs.copy()
    copied[1::2] = copied[::2]  # each image twice under one identity: no sign of chance
    for hashes in (signs, copied):
        found = chance_of(hashes, who)
        assert found.mean == pytest.approx(127.5, abs=3)
        assert found.deviation == pytest.approx(5 * np.sqrt(51) / 2, rel=0.06)
    names = np.arange(1200)  # each image twice under two names: below a fifth of the bits, not counted
    assert chance_of(copied, names).deviation == pytest.approx(5 * np.sqrt(51) / 2, rel=0.06)
    assert chance_of(signs, np.zeros(1200, int)) == Chance(127.5, np.sqrt(255))
    assert chance_of(signs[:4], who[:4]) == Chance(127.5, np.sqrt(255))


def test_the_limit_is_where_chance_brings_a_tenth_of_a_pair() -> None:
    chance = Chance(127.5, 13.0)
    for pairs in (1e7, 7e8, 1e12):
        limit = chance.limit(pairs)
        assert chance.within(limit, pairs) <= 0.1 < chance.within(limit + 1, pairs)
        assert chance.within(limit, pairs) == pytest.approx(pairs * norm.cdf((limit - 127.5) / 13))
    assert chance.limit(7e8) == 45
    assert chance.limit(10) == duplicates.WIDEST
    assert Chance(127.5, 40).limit(1e9) == duplicates.NARROWEST
