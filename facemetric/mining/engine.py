"""What all miners share: the checks, the sorting, the record, and a gradient that is known before backward.

Shapes: B rows of a batch, M anchors, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from facemetric.errors import ConfigError, DataError, did_you_mean
from facemetric.mining.order import Order, order_against, order_whole
from facemetric.mining.small import SMALL_MIB, SMALL_ROWS
from facemetric.mining.sparse import Operands, Rule, Sums, operands
from facemetric.mining.tiles import CUDA_BUDGET_MIB, compute_dtype

Margin = float | Literal["soft"]
Anchors = slice | tuple[Tensor, Tensor] | None


class Kernel(NamedTuple):
    """How one miner adds up: in tiles, and all at once for a small batch (None where that has no answer)."""

    tiled: Callable[[Operands, Order, Rule, float], Sums]
    small: Callable[[Tensor, Tensor, Rule], Sums | None] | None = None


DISTANCES = ("squared", "euclidean", "cosine")

# Three buffers of 4 MiB each: what the cache of two cores holds with room for the operands.
CPU_MINING_MIB = 12.0


class Mined(NamedTuple):
    """What a miner found. All but `valid` are scalar tensors on the device; only `loss` carries a gradient.

    `loss` is the sum over triplets divided by `weight` (0 where there is nothing to divide), so several ranks
    combine as sum(loss * weight) / sum(weight). `d_ap` and `d_an` are means over the same triplets.
    """

    loss: Tensor
    active: Tensor  # triplets with a loss above 0
    valid: int  # triplets looked at
    d_ap: Tensor
    d_an: Tensor
    weight: Tensor  # what the loss was divided by: active, valid, or the sum of your weights

    @property
    def fraction_positive(self) -> Tensor:
        """active / valid, 0..1; 0 where nothing is valid."""
        return self.active / max(self.valid, 1)


def make_rule(margin: Margin, distance: str) -> Rule:
    if distance not in DISTANCES:
        raise ConfigError(f"unknown distance {distance!r}{did_you_mean(distance, DISTANCES)}")
    if isinstance(margin, str):
        if margin != "soft":
            raise ConfigError(f"margin is {margin!r}, it must be a number or 'soft'")
        return Rule(0.0, True, distance == "euclidean")
    return Rule(float(margin), False, distance == "euclidean")


def mine(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    kernel: Kernel,
    margin: Margin,
    distance: str,
    anchors: Anchors,
    budget_mib: float | None,
) -> Mined:
    """Checks, orders, hands over to the kernel, and divides."""
    rule = make_rule(margin, distance)
    _check(embeddings_BD, labels_B, "embeddings")
    if labels_B.device != embeddings_BD.device:
        labels_B = labels_B.to(embeddings_BD.device)
    y_BD = _rows(embeddings_BD, distance)
    x_MD: Tensor | None = None
    if isinstance(anchors, tuple):
        _check(*anchors, "anchors")
        if anchors[0].shape[1] != embeddings_BD.shape[1]:
            raise DataError(
                f"anchors have {anchors[0].shape[1]} dimensions, embeddings {embeddings_BD.shape[1]}"
            )
        x_MD = _rows(anchors[0], distance)
    kind = y_BD.device.type
    plain = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()
    with torch.no_grad(), plain:
        sums = None
        roomy = budget_mib is None or budget_mib >= SMALL_MIB
        if anchors is None and kernel.small is not None and roomy and len(labels_B) <= SMALL_ROWS:
            sums = kernel.small(y_BD, labels_B, rule)
        if sums is None:
            sums = _tiled(y_BD, labels_B, kernel, rule, anchors, x_MD, budget_mib)
        scale = torch.where(sums.weight > 0, 1 / sums.weight, 0.0)
        loss = (sums.loss * scale).to(y_BD.dtype)
        grad_x_MD = sums.grad_MD * scale if x_MD is not None else None
    loss = _Attach.apply(loss, y_BD, sums.grad_ND.mul_(scale), x_MD, grad_x_MD)
    return Mined(loss, sums.active, sums.valid, sums.d_ap * scale, sums.d_an * scale, sums.weight)


def _tiled(
    y_BD: Tensor,
    labels_B: Tensor,
    kernel: Kernel,
    rule: Rule,
    anchors: Anchors,
    x_MD: Tensor | None,
    budget_mib: float | None,
) -> Sums:
    """Sorts, mines in tiles, and brings the gradient back into the order of the rows handed in."""
    if isinstance(anchors, tuple):
        order = order_against(anchors[1].to(labels_B.device), labels_B, None)
        ops = operands(anchors[0] if x_MD is None else x_MD, y_BD, order)
    elif isinstance(anchors, slice):
        own_M = torch.arange(len(labels_B), device=labels_B.device)[anchors]
        order = order_against(labels_B[anchors], labels_B, own_M)
        ops = operands(y_BD[anchors], y_BD, order)
    else:
        order = order_whole(labels_B)
        ops = operands(y_BD, None, order)
    if budget_mib is None:
        budget_mib = CPU_MINING_MIB if y_BD.device.type == "cpu" else CUDA_BUDGET_MIB
    sums = kernel.tiled(ops, order, rule, budget_mib)
    grad_BD = torch.empty_like(sums.grad_ND).index_copy_(0, order.reference_N, sums.grad_ND)
    if order.whole:
        return sums._replace(grad_MD=grad_BD, grad_ND=grad_BD)
    grad_MD = torch.empty_like(sums.grad_MD).index_copy_(0, order.anchors_M, sums.grad_MD)
    if isinstance(anchors, slice):
        grad_BD[anchors] += grad_MD
    return sums._replace(grad_MD=grad_MD, grad_ND=grad_BD)


class _Attach(torch.autograd.Function):
    """A loss that is already known, with its gradient for the embeddings and for anchors apart from them."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, y_BD: Tensor, grad_BD: Tensor, x_MD: Tensor | None, grad_x_MD: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(grad_BD, grad_x_MD if x_MD is not None else None)
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_BD, grad_x_MD = ctx.saved_tensors
        return None, grad_BD * grad_loss, None, None if grad_x_MD is None else grad_x_MD * grad_loss, None


def _check(rows_BD: Tensor, labels_B: Tensor, what: str) -> None:
    if rows_BD.dim() != 2 or labels_B.shape != rows_BD.shape[:1]:
        raise DataError(
            f"{what} are {tuple(rows_BD.shape)}, labels {tuple(labels_B.shape)}: needed are (B, D) and (B,)"
        )
    rows_BD = rows_BD.detach()
    if math.isfinite(
        rows_BD.sum(dtype=compute_dtype(rows_BD.dtype))
    ):  # one pass; a sum may overflow, so look
        return
    bad = (~torch.isfinite(rows_BD).all(1)).nonzero()[:, 0]
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(rows_BD)} {what} are NaN or infinite, the first is row {int(bad[0])}: "
            "look at that image, or lower the learning rate"
        )


def _rows(rows_BD: Tensor, distance: str) -> Tensor:
    rows_BD = rows_BD.to(compute_dtype(rows_BD.dtype))
    if distance != "cosine":
        return rows_BD
    # |x - y|^2 of rows of length sqrt(1/2) is 1 - cos
    return nn.functional.normalize(rows_BD, eps=1e-6) * 0.5**0.5
