"""What losses of cosines share: their options, rows of length 1, a batch sorted by label, the record.

Shapes: B rows of a batch, M anchors, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from facemetric.errors import ConfigError
from facemetric.mining.kernels.cosines import Cosines
from facemetric.mining.known_gradient import attach
from facemetric.mining.mine import CPU_MINING_MIB
from facemetric.mining.order import sort_runs
from facemetric.mining.record import LossRecord
from facemetric.mining.rows import check_rows, check_shapes, compute_rows
from facemetric.mining.tiles import CUDA_BUDGET_MIB, budget_bytes

# exp holds about +-87 in float32 and +-708 in float64; the ranges of the options end below 680.
RANGE_FLOAT32 = 80.0


class Sums(NamedTuple):
    """What a loss adds up; its gradient is in the Cosines."""

    loss: Tensor  # a scalar, divided already
    weight: float  # what it was divided by


Core = Callable[[Cosines], Sums]


def of_pairs(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    anchors: slice | None,
    budget_mib: float | None,
    core: Core,
    widest: float,
) -> LossRecord:
    """Checks, brings the rows to length 1, sorts them, and hands them to the loss; `widest` is the range of its
    exponents."""
    kind = embeddings_BD.device.type
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return of_pairs(embeddings_BD, labels_B, anchors, budget_mib, core, widest)
    budget = (CPU_MINING_MIB if kind == "cpu" else CUDA_BUDGET_MIB) if budget_mib is None else budget_mib
    budget_bytes(budget)
    check_shapes(embeddings_BD, labels_B, "embeddings")
    y_BD = unit_rows(embeddings_BD, widest)
    check_rows(y_BD, "embeddings")
    with torch.no_grad():
        runs = sort_runs(labels_B.to(embeddings_BD.device), anchors)
        cos = Cosines(y_BD.detach(), runs, budget)
        sums = core(cos)
        usable = int(((runs.positives > 0) & (runs.negatives > 0)).sum())
        gradient, figures = cos.gradient(), cos.figures()
    loss = attach(sums.loss.to(y_BD.dtype), gradient, y_BD)
    return LossRecord(
        loss,
        sums.weight,
        figures,
        figure_weights=cos.pairs(),
        part=anchors is not None,
        usable=usable,
    )


def unit_rows(rows_BD: Tensor, widest: float) -> Tensor:
    """Rows (B, D) of length 1, those of length 0 as they are, in the dtype that holds exponents as large."""
    if widest > RANGE_FLOAT32:
        rows_BD = rows_BD.double()
    return compute_rows(rows_BD, "cosine") * 2**0.5


def within(name: str, value: float, low: float, high: float) -> None:
    """Raises ConfigError for an option of a loss that is no number, or out of its range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        text = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
        raise ConfigError(f"{name} is {value!r}; it must be a number, {text}")


def on_device(cos: Cosines, counts: object) -> Tensor:
    """Counts (M,) of the host as float64 on the device."""
    return torch.as_tensor(counts).to(cos.x_MD.device, torch.float64)
