"""Blocks of the pairwise distance matrix inside a stated memory budget: the one place where pairs are formed.

    best = torch.full((len(x),), -torch.inf)
    for rows, cols, score in product_tiles(x, y, budget_mib=4):
        best[rows] = torch.maximum(best[rows], score.amax(1))     # most similar y of every x, no M x N matrix

Shapes: M rows of x, N rows of y, D embedding, R and C rows and columns of one tile.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from facemetric.errors import ConfigError, DataError

# A tile that stays in the cache of a CPU core pair costs no memory traffic; on a GPU launches are the cost.
CPU_BUDGET_MIB = 4.0
CUDA_BUDGET_MIB = 512.0
MIB = 1024 * 1024

# A triangle of one tile saves nothing, of two blocks a quarter, of four 3/8; below this side calls cost more.
TRIANGLE_SIDE = 512


class Tile(NamedTuple):
    """One block: `values[i, j]` belongs to row `rows.start + i` of x and row `cols.start + j` of y.

    `values` is a view of a buffer which the next step of the walk overwrites: reduce it, change it in place,
    or copy it, but do not keep it.
    """

    rows: slice
    cols: slice
    values: Tensor  # (R, C)


def default_budget_mib(device: torch.device) -> float:
    """MiB for the tiles of one walk where the caller states none: 4 on a CPU, 512 on a GPU."""
    return CPU_BUDGET_MIB if device.type == "cpu" else CUDA_BUDGET_MIB


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 stays; every other floating dtype is computed in float32."""
    if not dtype.is_floating_point:
        raise DataError(f"embeddings are {dtype}, they must be floating point; convert them with .float()")
    return torch.float64 if dtype == torch.float64 else torch.float32


def budget_bytes(budget_mib: float) -> int:
    """A budget in bytes. ConfigError for one that is not above 0, or no number."""
    if not 0 < budget_mib < math.inf:
        raise ConfigError(
            f"the tile budget is {budget_mib} MiB, it must be above 0: 4 suits a CPU, 512 a GPU"
        )
    return int(budget_mib * MIB)


def tile_shape(
    n_rows: int,
    n_cols: int,
    *,
    budget_mib: float,
    buffers: int = 1,
    itemsize: int = 4,
    triangle: bool = False,
    whole_rows: bool = False,
) -> tuple[int, int]:
    """Rows and columns of a tile such that `buffers` of them fit in `budget_mib`; never below one row."""
    elements = max(budget_bytes(budget_mib) // (itemsize * buffers), 1)
    n_rows, n_cols = max(n_rows, 1), max(n_cols, 1)
    if triangle:  # balanced, so that the last block is not a sliver
        side = min(math.isqrt(elements), n_rows, max(TRIANGLE_SIDE, math.ceil(n_rows / 4)))
        side = math.ceil(n_rows / math.ceil(n_rows / side))
        return side, side
    if whole_rows:
        return min(max(elements // n_cols, 1), n_rows), n_cols
    rows = min(n_rows, max(math.isqrt(elements), elements // n_cols))
    return rows, min(n_cols, max(elements // rows, 1))


def product_tiles(
    x_MD: Tensor,
    y_ND: Tensor | None = None,
    *,
    budget_mib: float | None = None,
    buffers: int = 1,
    triangle: bool = False,
    whole_rows: bool = False,
    keep: bool = False,
) -> Iterator[Tile]:
    """Walk the inner products x @ y.T in tiles, left to right, then down.

    x (M, D) and y (N, D), x itself when y is left out; half precision is computed in float32. `budget_mib`
    is the memory for tiles (default: see `default_budget_mib`), of which the caller holds `buffers` in all,
    this walk's own included. `triangle` (y of x's length) yields only the tiles on and above the
    diagonal; those on it (`rows == cols`) hold both triangles. `whole_rows` makes every tile N wide. With `keep`
    every tile has memory of its own, which nothing overwrites: M N numbers in all.
    Gradients do not flow.
    Errors: ConfigError for a budget that is not above 0, DataError for shapes that do not meet.
    """
    x_MD, y_ND, budget_mib = _check(x_MD, y_ND, budget_mib, triangle)
    walk = _walk(x_MD, y_ND, budget_mib, buffers, triangle, whole_rows, keep)
    for rows, cols, out in walk:
        torch.mm(x_MD[rows], y_ND[cols].T, out=out)
        yield Tile(rows, cols, out)


def triangle_in_threads(
    x_ND: Tensor,
    work: Callable[[int, Tile], None],
    *,
    threads: int,
    budget_mib: float | None = None,
    share: tuple[int, int] = (0, 1),
) -> None:
    """`work(thread, tile)` for the inner products of x (N, D) with itself, on and above the diagonal.

    As `product_tiles` with `triangle`, but `threads` walk at once, numbered from 0, each with its share of the
    budget and torch on one thread: for work that takes longer than the product. Which thread gets which tile
    is left to chance. `share` (number, of): only every so many rows of tiles, for one of several processes. What
    `work` raises is raised, after the other threads have ended their row of tiles.
    """
    x_ND, _, budget_mib = _check(x_ND, None, budget_mib, True)
    side, _ = tile_shape(
        len(x_ND), len(x_ND), budget_mib=budget_mib / threads, itemsize=x_ND.element_size(), triangle=True
    )
    tops = iter(range(0, len(x_ND), side)[share[0] :: share[1]])  # the longest rows of tiles come first
    lock, stop = threading.Lock(), threading.Event()

    def walk(thread: int) -> None:
        buffer = x_ND.new_empty(side * side)
        while not stop.is_set():
            with lock:
                top = next(tops, None)
            if top is None:
                return
            rows = slice(top, min(top + side, len(x_ND)))
            for left in range(top, len(x_ND), side):
                cols = slice(left, min(left + side, len(x_ND)))
                out = buffer[: (rows.stop - top) * (cols.stop - left)].view(rows.stop - top, -1)
                torch.mm(x_ND[rows], x_ND[cols].T, out=out)
                work(thread, Tile(rows, cols, out))

    in_threads([partial(walk, thread) for thread in range(threads)], stop.set)


def in_threads(works: Sequence[Callable[[], None]], on_error: Callable[[], None] = lambda: None) -> None:
    """Each of `works` in a thread of its own, torch on one thread in each; what one raises is raised.

    `on_error` is called as soon as one raises, so that the others may end early.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(len(works)) as pool:
            jobs = [pool.submit(work) for work in works]
            try:
                for job in as_completed(jobs):
                    job.result()
            except BaseException:
                on_error()
                raise
    finally:
        torch.set_num_threads(before)


def row_distance(x_PD: Tensor, y_PD: Tensor) -> Tensor:
    """Squared distance (P,) of paired rows by direct difference: every digit, duplicates give exactly 0."""
    away_PD = x_PD - y_PD
    return torch.linalg.vecdot(away_PD, away_PD)


def _check(
    x_MD: Tensor, y_ND: Tensor | None, budget_mib: float | None, triangle: bool
) -> tuple[Tensor, Tensor, float]:
    other_ND = x_MD if y_ND is None else y_ND
    if triangle and len(x_MD) != len(other_ND):
        raise ConfigError(
            f"x has {len(x_MD)} rows and y {len(other_ND)}, the triangle walk needs one number: leave y out"
        )
    if x_MD.dim() != 2 or other_ND.dim() != 2 or x_MD.shape[1] != other_ND.shape[1]:
        raise DataError(
            f"x is {tuple(x_MD.shape)}, y is {tuple(other_ND.shape)}: needed are (M, D) and (N, D)"
        )
    dtype = torch.promote_types(compute_dtype(x_MD.dtype), compute_dtype(other_ND.dtype))
    x_MD = x_MD.detach().to(dtype)
    other_ND = x_MD if y_ND is None else other_ND.detach().to(dtype)
    return x_MD, other_ND, default_budget_mib(x_MD.device) if budget_mib is None else budget_mib


def _walk(
    x_MD: Tensor,
    y_ND: Tensor,
    budget_mib: float,
    buffers: int,
    triangle: bool,
    whole_rows: bool,
    keep: bool,
) -> Iterator[Tile]:
    """The slices and the view of the one buffer for each step; with `keep`, a buffer of its own."""
    M, N = len(x_MD), len(y_ND)
    R, C = tile_shape(
        M,
        N,
        budget_mib=budget_mib,
        buffers=buffers,
        itemsize=x_MD.element_size(),
        triangle=triangle,
        whole_rows=whole_rows,
    )
    buffer = x_MD.new_empty(0 if keep else R * C)
    for top in range(0, M, R):
        rows = slice(top, min(top + R, M))
        for left in range(top if triangle else 0, N, C):
            cols = slice(left, min(left + C, N))
            height, width = rows.stop - rows.start, cols.stop - cols.start
            if keep:
                buffer = x_MD.new_empty(height * width)
            yield Tile(rows, cols, buffer[: height * width].view(height, width))
