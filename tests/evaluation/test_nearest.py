"""The one exact kNN over a gallery in parts; tests of `nearest` itself lie in test_retrieval.py."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from facemetric.errors import ConfigError
from facemetric.evaluation import nearest as module
from facemetric.evaluation.nearest import nearest, nearest_in_parts
from facemetric.evaluation.table import unit_rows


def people(count: int, seed: int, size: int = 8) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).integers(-2, 3, (count, size)) + 0.25)


@pytest.mark.parametrize("queries", [1, 2, 15, 16, 17, 40])
@pytest.mark.parametrize("k", [1, 7, 60])
def test_parts_give_what_the_whole_gives(queries: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small whole numbers: many scores tie, and then the lower row comes first."""
    monkeypatch.setattr(module, "ROWS_A_THREAD", 20)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    gallery, query = people(101, 1), people(queries, 2)
    whole = nearest(query, gallery, k)
    for cuts in ([], [1, 2, 3], [50], [0, 99, 99]):
        found = nearest_in_parts(query, np.split(gallery, cuts), k)
        np.testing.assert_allclose(found.score, whole.score, atol=1e-6)
        exact = (query.astype(np.float64) @ gallery.T.astype(np.float64)).astype(np.float32)
        taken = np.take_along_axis(exact, found.rows, 1)
        np.testing.assert_allclose(taken, whole.score, atol=1e-6)
        assert all(len(set(rows)) == k for rows in found.rows.tolist())


def test_equal_scores_give_the_lower_row_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_A_THREAD", 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    gallery = np.tile(unit_rows([[0, 1, 0, 0]]), (40, 1))  # products without rounding
    assert nearest_in_parts(gallery[:1], np.split(gallery, [3, 25]), 5).rows.tolist() == [[0, 1, 2, 3, 4]]


def test_a_gallery_larger_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUDGET_MIB", 1e-3)
    gallery = people(3000, 3)
    for count in (1, 3, 12, 20):  # each way of the product
        query = people(count, 4)
        found = nearest_in_parts(query, np.split(gallery, [1000]), 4)
        score = query @ gallery.T
        best = np.sort(score, axis=1)[:, ::-1][:, :4]
        np.testing.assert_allclose(found.score, best, atol=1e-6)
        np.testing.assert_allclose(np.take_along_axis(score, found.rows, 1), best, atol=1e-6)


def test_a_process_without_torch_gets_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_OF_NUMPY", 700)
    gallery, query = people(3000, 3), people(16, 4)
    for queries, k in ((1, 1), (1, 40), (3, 7), (16, 60)):
        wanted = nearest(query[:queries], gallery, k)
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, "torch")
            found = nearest_in_parts(query[:queries], np.split(gallery, [1, 1000]), k)
        np.testing.assert_allclose(found.score, wanted.score, atol=1e-6)
        taken = np.einsum("qd,qkd->qk", query[:queries].astype(float), gallery[found.rows].astype(float))
        np.testing.assert_allclose(taken, wanted.score, atol=1e-6)
        assert all(len(set(rows)) == k for rows in found.rows.tolist())


def test_more_neighbours_than_there_are_is_an_error() -> None:
    with pytest.raises(ConfigError, match="k = 6 neighbours of 5 images"):
        nearest_in_parts(people(1, 1), [people(2, 2), people(3, 3)], 6)
