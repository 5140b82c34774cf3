"""Pairs of nearly equal hashes against a plain loop, and the limits that chance sets."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from facemetric.evaluation.audit import hashes as duplicates
from facemetric.evaluation.audit.hashes import Chance, chance_of, close_across, close_pairs


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
