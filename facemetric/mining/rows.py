"""The rows that losses and miners compute with: checked, in float32 or float64, for cosine at one length.

Shapes: B rows of a batch, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from facemetric.errors import DataError
from facemetric.mining.kernels import choice
from facemetric.mining.kernels.common import FAR_AWAY, row_dot
from facemetric.mining.tiles import compute_dtype


def longest(dtype: torch.dtype) -> float:
    """Of a row: 40 for twice as long, and ten times nearer."""
    return math.sqrt(FAR_AWAY[dtype] / 40)


def check_shapes(rows_BD: Tensor, labels_B: Tensor, what: str) -> None:
    """DataError unless there are rows (B, D) with a label each."""
    if rows_BD.dim() != 2 or labels_B.dim() != 1 or len(labels_B) != len(rows_BD):
        raise DataError(
            f"{what} are {tuple(rows_BD.shape)}, labels {tuple(labels_B.shape)}: needed are (B, D) and (B,)"
        )


def check_rows(rows_BD: Tensor, what: str) -> None:
    """DataError for a row that is not finite, or too long for squared distances in its dtype."""
    if not rows_BD.numel():
        return
    rows_BD = rows_BD.detach()
    low, high = (float(v) for v in rows_BD.aminmax())  # one pass; NaN comes through
    most = longest(rows_BD.dtype)
    if max(-low, high) <= most / math.sqrt(rows_BD.shape[1]):
        return
    bad = (~torch.isfinite(rows_BD).all(1)).nonzero()[:, 0]
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(rows_BD)} {what} are NaN or infinite, the first is row {int(bad[0])}: "
            "look at that image, or lower the learning rate"
        )
    length_B = rows_BD.double().div(max(-low, high)).norm(dim=1) * max(-low, high)
    bad = (length_B > most).nonzero()[:, 0]
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(rows_BD)} {what} are longer than {most:.0e}, the first is row {int(bad[0])} of length "
            f"{float(length_B[bad[0]]):.1e}: their squared distances do not fit {rows_BD.dtype}; normalise them, or "
            "take distance='cosine'"
        )


def compute_rows(rows_BD: Tensor, distance: str, *, double: bool = False) -> Tensor:
    """Rows in float32 or float64; for cosine of length sqrt(1/2), which makes |x - y|^2 = 1 - cos; a zero row stays.

    Zero rows have no direction: they lie at distance 1/2 from all others, and have no gradient. `double`: on a GPU in
    float64, where that is next.
    """
    if rows_BD.dtype not in (torch.float32, torch.float64):
        rows_BD = rows_BD.to(compute_dtype(rows_BD.dtype))
    if distance != "cosine" or not rows_BD.numel():
        return rows_BD
    if choice.is_gpu(rows_BD.device):
        return _Directions.apply(rows_BD, double)
    largest_B1 = rows_BD.detach().abs().amax(1, keepdim=True)
    # a power of two changes no digit: squares of rows of 1e-30 or 1e30 would leave the range
    rows_BD = rows_BD * _power_of_two(-torch.frexp(largest_B1).exponent, rows_BD.dtype)
    length_B1 = torch.linalg.vector_norm(rows_BD, dim=1, keepdim=True)
    return rows_BD / length_B1.masked_fill(length_B1 == 0, torch.inf) * 0.5**0.5


class _Directions(torch.autograd.Function):
    """Rows of length sqrt(1/2), as `compute_rows` makes them, in few calls: through float64."""

    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor, double: bool) -> Tensor:
        length_B1 = torch.linalg.vector_norm(rows_BD, dim=1, keepdim=True, dtype=torch.float64)
        scale_B1 = (0.5**0.5 / length_B1).nan_to_num_(posinf=0)
        unit_BD = (rows_BD * scale_B1).to(torch.float64 if double else rows_BD.dtype)
        ctx.save_for_backward(unit_BD, scale_B1)
        ctx.dtype = rows_BD.dtype
        return unit_BD

    @staticmethod
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor, None]:
        unit_BD, scale_B1 = ctx.saved_tensors
        across_BD = torch.addcmul(grad_BD, unit_BD, row_dot(unit_BD, grad_BD)[:, None], value=-2)
        return (across_BD * scale_B1).to(ctx.dtype), None


def _power_of_two(exponent: Tensor, dtype: torch.dtype) -> Tensor:
    """2^exponent by its bits, held inside the range of normal numbers."""
    integer, bias, digits = (torch.int32, 127, 23) if dtype == torch.float32 else (torch.int64, 1023, 52)
    return (exponent.clamp(1 - bias, bias).to(integer) + bias).bitwise_left_shift(digits).view(dtype)
