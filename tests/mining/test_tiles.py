"""Every pair exactly once, the right value, and a buffer inside the budget."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from facemetric.errors import ConfigError, DataError
from facemetric.mining.tiles import (
    MIB,
    product_tiles,
    row_distance,
    tile_shape,
    triangle_in_threads,
)


def randn(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 40),
    n=st.integers(1, 40),
    d=st.integers(1, 5),
    elements=st.integers(1, 500),
    buffers=st.integers(1, 3),
    whole_rows=st.booleans(),
)
def test_rectangle_covers_every_pair_once(m, n, d, elements, buffers, whole_rows):
    x, y = randn(m, d), randn(n, d, 1)
    seen = torch.zeros(m, n)
    prod = torch.zeros(m, n, dtype=x.dtype)
    kwargs = {"budget_mib": elements * 8 / MIB, "buffers": buffers, "whole_rows": whole_rows}
    for rows, cols, values in product_tiles(x, y, **kwargs):
        assert whole_rows or values.numel() * buffers <= max(elements, buffers)
        seen[rows, cols] += 1
        prod[rows, cols] = values
    assert (seen == 1).all()
    torch.testing.assert_close(prod, x @ y.T)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), elements=st.integers(1, 900))
def test_triangle_covers_every_pair_once(n, elements):
    x = randn(n, 3)
    prod = torch.full((n, n), torch.nan, dtype=x.dtype)
    for rows, cols, values in product_tiles(x, budget_mib=elements * 8 / MIB, triangle=True):
        assert rows.start <= cols.start
        assert values.numel() <= elements
        assert prod[rows, cols].isnan().all()
        prod[rows, cols] = values
        prod[cols, rows] = values.T
    torch.testing.assert_close(prod, x @ x.T)


def test_one_buffer_serves_the_whole_walk():
    pointers = {values.data_ptr() for _, _, values in product_tiles(randn(50, 3), budget_mib=400 * 8 / MIB)}
    assert len(pointers) == 1


def test_half_precision_is_computed_in_float32_and_detached():
    x = randn(9, 4, dtype=torch.bfloat16).requires_grad_()
    ((_, _, values),) = product_tiles(x)
    assert values.dtype == torch.float32
    assert not values.requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ((_, _, under_autocast),) = product_tiles(x)
    assert torch.equal(values, under_autocast)


def test_row_distance_of_duplicates_is_zero():
    x = randn(5, 64, dtype=torch.float32)
    assert (row_distance(x, x.clone()) == 0).all()


def test_tile_shape_is_balanced_and_never_empty():
    assert tile_shape(1100, 1100, budget_mib=4, triangle=True) == (367, 367)
    assert tile_shape(10, 10**9, budget_mib=1, whole_rows=True) == (1, 10**9)
    assert tile_shape(0, 0, budget_mib=1) == (1, 1)
    assert list(product_tiles(randn(0, 3), randn(4, 3))) == []


def test_errors_say_what_to_change():
    x = randn(4, 3)
    with pytest.raises(ConfigError, match="above 0"):
        next(product_tiles(x, budget_mib=0))
    with pytest.raises(ConfigError, match="leave y out"):
        next(product_tiles(x, x[:2], triangle=True))
    with pytest.raises(DataError, match="needed are"):
        next(product_tiles(x, randn(4, 2)))
    with pytest.raises(DataError, match="floating point"):
        next(product_tiles(torch.ones(3, 3, dtype=torch.int64)))


@pytest.fixture
def two_threads():
    """torch computes with two threads before and after."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("n", [1, 7, 40])
def test_threads_walk_every_pair_of_the_triangle_once(n, threads):
    x = randn(n, 4)
    seen, prod = torch.zeros(n, n), torch.zeros(n, n, dtype=x.dtype)
    workers = set()

    def work(thread, tile):
        rows, cols, values = tile
        assert values.numel() <= max(60, 1)
        assert torch.get_num_threads() == 1
        seen[rows, cols] += 1
        prod[rows, cols] = values
        workers.add(thread)

    triangle_in_threads(x, work, threads=threads, budget_mib=threads * 60 * 8 / MIB)
    assert workers <= set(range(threads))
    upper = torch.ones(n, n).triu() > 0
    assert (seen[upper] == 1).all()
    assert seen.max() == 1
    torch.testing.assert_close(prod[upper], (x @ x.T)[upper])


@pytest.mark.usefixtures("two_threads")
def test_a_fault_of_a_thread_is_raised_and_torch_gets_its_threads_back():
    calls = []

    def work(thread, tile):
        calls.append(tile.rows)
        raise DataError("a fault")

    with pytest.raises(DataError, match="a fault"):
        triangle_in_threads(randn(400, 4), work, threads=2, budget_mib=2 * 16 * 8 / MIB)
    assert len(calls) <= 4  # nobody goes on
