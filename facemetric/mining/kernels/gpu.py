"""The sweeps over all pairs as one kernel launch each, for CUDA: distances live in registers and are never stored.

A program owns a block of rows and goes through all columns. What it keeps of them is a number or two a row and positive
(in memory that is its own, so nothing is added atomically and the same bits come every time), or the gradient's row.
Written in Triton; where that is not installed, on a CPU, and for float64, the tiles of `tiles.py` serve.

Shapes: R rows, C columns, E = D + 2, K positives of the row with most.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from facemetric.mining.kernels.common import Operands
from facemetric.mining.order import Order

if TYPE_CHECKING:
    from types import ModuleType

BLOCK = 32  # rows and columns that a program looks at together
WIDTH = 128  # columns of the gradient that a program holds


@functools.cache
def _kernels() -> ModuleType:
    """The kernels, compiled when they are first used."""
    from facemetric.mining.kernels import gpu_kernels

    return gpu_kernels


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def serves(ops: Operands) -> bool:
    """Whether these rows are for the fused kernels."""
    rows = ops.left_MD
    return rows.device.type == "cuda" and rows.dtype == torch.float32 and has_triton()


def stack_bounds(bounds: list[Tensor], rows: int) -> Tensor:
    """(K, rows) of bounds (n,), -inf where a row has no k-th positive."""
    stacked = bounds[0].new_full((len(bounds), rows), -torch.inf)
    for k, bound in enumerate(bounds):
        stacked[k, : len(bound)] = bound
    return stacked


def sweep(
    ops: Operands, order: Order, bounds: list[Tensor], *, gap: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """As `one_negative._sweep`: for each bound the reference row with the least bits of the distance, or of the
    `gap` bound - d_an; and that number."""
    if not bounds:
        return [], []
    rows = len(bounds[0])
    bound_KR = stack_bounds(bounds, rows)
    best_KR = torch.full(
        bound_KR.shape, torch.iinfo(torch.int32).max, dtype=torch.int32, device=bound_KR.device
    )
    at_KR = torch.zeros_like(best_KR)
    kernels = _kernels()
    kernels.pick[(kernels.blocks(rows, BLOCK),)](
        ops.left_MD,
        ops.right_ND,
        order.start_M,
        order.count_M,
        bound_KR,
        best_KR,
        at_KR,
        rows,
        len(ops.right_ND),
        ops.left_MD.shape[1],
        len(bounds),
        GAP=gap,
        BLOCK=BLOCK,
    )
    best_KR = best_KR.view(torch.float32)
    at = [at_KR[k, : len(bound)].long() for k, bound in enumerate(bounds)]
    return at, [best_KR[k, : len(bound)] for k, bound in enumerate(bounds)]


class Weighed(NamedTuple):
    """Products of the pairs' coefficients with the other side's columns, and how many triplets of each (row, k) are
    active. `near`: pairs were nearer than a product can tell, and nothing of this counts."""

    out_ME: Tensor
    out_NE: Tensor
    active_KM: Tensor
    near: bool


def weigh(
    ops: Operands, order: Order, bounds: list[Tensor], *, root: bool, limit_M: Tensor | None
) -> Weighed:
    """Batch-all's sweep: W counts the active triplets of each pair, and the products W @ right and W.T @ left side
    come out (both in one where the anchors are the reference).

    `limit_M` is the squared distance of each anchor below which plain distances (`root`) need direct differences."""
    M = len(ops.left_MD)
    bound_KM = stack_bounds(bounds, M)
    weight_M = torch.ones_like(bound_KM[0]) if ops.weight_M is None else ops.weight_M
    limit_M = torch.zeros_like(bound_KM[0]) if limit_M is None else limit_M
    active_KM = torch.zeros_like(bound_KM)
    near_1 = torch.zeros(1, dtype=torch.int32, device=bound_KM.device)
    reference = _Side(ops.right_ND, ops.right_ND)
    shared = (bound_KM, weight_M, limit_M, order.start_M, order.count_M, active_KM, near_1)

    def run(rows: _Side, columns: _Side, *, own: bool, down: bool) -> Tensor:
        out_RE = torch.empty_like(rows.values_RE)
        kernels, width = _kernels(), out_RE.shape[1] - 2
        grid = (kernels.blocks(len(out_RE), BLOCK), max(kernels.blocks(width, WIDTH), 1))
        kernels.weigh[grid](
            rows.product_RE,
            columns.product_RE,
            columns.values_RE,
            *shared,
            out_RE,
            len(out_RE),
            len(columns.product_RE),
            M,
            width,
            len(bounds),
            OWN=own,
            DOWN=down,
            ROOT=root,
            BLOCK=BLOCK,
            WIDTH=WIDTH,
        )
        return out_RE

    if order.whole:
        out_ME = run(_Side(ops.left_MD, ops.right_ND), reference, own=True, down=True)
        return Weighed(out_ME, out_ME, active_KM, bool(near_1))
    anchors = _Side(ops.left_MD, ops.anchor_side())
    out_ME = run(anchors, reference, own=True, down=False)
    out_NE = run(reference, anchors, own=False, down=True)
    return Weighed(out_ME, out_NE, active_KM, bool(near_1))


class _Side(NamedTuple):
    """One side of the pairs: its factor of the squared distance, and what coefficients are multiplied with."""

    product_RE: Tensor
    values_RE: Tensor


def compiled_for(capability: int) -> dict[str, Any]:
    """The kernels' machine code for a compute capability (80, 90), made without a device: for a check."""
    return _kernels().compiled_for(capability, BLOCK, WIDTH)
