import numpy as np
import pytest
import reference_metrics as slow
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from facemetric.errors import ConfigError
from facemetric.evaluation import retrieval as nearest_module
from facemetric.evaluation.retrieval import nearest
from facemetric.evaluation.table import unit_rows

CORNERS = hnp.arrays(
    np.float32, st.tuples(st.integers(8, 20), st.just(4)), elements=st.sampled_from([-1.0, 1.0])
)


@settings(max_examples=60, deadline=None)
@given(CORNERS, CORNERS, st.integers(1, 8))
def test_nearest_with_ties_takes_the_lower_row(queries, gallery, k):
    found = nearest(queries, gallery, k)
    for q, rows, score in zip(queries, found.rows, found.score, strict=True):
        ranked = slow.ranking(q, gallery)[:k]
        assert rows.tolist() == [i for i, _ in ranked]
        np.testing.assert_allclose(score, [s for _, s in ranked], atol=1e-6)


@pytest.fixture(params=[1, 3])
def threads(request, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    monkeypatch.setattr(nearest_module, "LEAST_A_THREAD", 10)
    yield request.param
    assert torch.get_num_threads() == request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("tiles", [1, 4, 300])
@pytest.mark.parametrize("k", [1, 7, 100])
@pytest.mark.parametrize("n", [511, 512, 513, 900])
def test_nearest_in_a_gallery_of_many(n, k, tiles, threads, monkeypatch):
    rng = np.random.default_rng(n)
    gallery = np.sign(rng.normal(size=(n, 16))).astype(np.float32)  # many ties, all products exact
    queries = gallery[::17]
    monkeypatch.setattr(nearest_module, "BUDGET_MIB", len(queries) * n * 4 / 2**20 / tiles)
    found = nearest(queries, gallery, k)
    score = queries @ gallery.T / 16
    for line, rows, best in zip(score, found.rows, found.score, strict=True):
        order = np.lexsort((np.arange(n), -line))[:k]
        assert rows.tolist() == order.tolist()
        np.testing.assert_array_equal(best, line[order])


@given(st.lists(st.tuples(st.floats(-2, 2, width=32), st.integers(0, 2**32 - 1)), min_size=1))
@example([(0.0, 3), (-0.0, 2), (0.0, 1), (-1e-30, 0), (1e-30, 9)])
def test_keys_put_the_higher_score_first_then_the_lower_row(pairs):
    score, row = np.array([s for s, _ in pairs], np.float32), np.array([r for _, r in pairs])
    order = np.argsort(nearest_module._keys(score, row), kind="stable")
    np.testing.assert_array_equal(order, np.lexsort((row, -score)))
    np.testing.assert_array_equal(nearest_module._scores(nearest_module._keys(score, row)), score)
    assert nearest_module._scores(np.array([nearest_module.NOBODY])) == -np.inf


def test_an_image_scores_1_with_its_copy_and_no_more():
    rows = unit_rows(np.random.default_rng(0).normal(size=(60, 64)))
    assert (rows @ rows.T).max() > 1  # as float32 rounds
    found = nearest(rows, rows, 2)
    assert found.rows[:, 0].tolist() == list(range(60))
    assert 1 - 1e-6 < found.score[:, 0].min() <= found.score.max() == 1


def test_k_that_the_gallery_cannot_give():
    for k in (0, 4):
        with pytest.raises(ConfigError, match=f"k = {k} neighbours of 3"):
            nearest(np.eye(3), np.eye(3), k)
