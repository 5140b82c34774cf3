"""What all miners share: the checks, the sorting, the record, and a gradient that is known before backward.

Shapes: B rows of a batch, M anchors, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from facemetric.errors import ConfigError, DataError, did_you_mean
from facemetric.mining.kernels.common import Operands, Parts, Rule, Sums, operands
from facemetric.mining.kernels.small_batch import SMALL_MIB, SMALL_ROWS
from facemetric.mining.order import Order, order_against, order_whole
from facemetric.mining.tiles import CUDA_BUDGET_MIB, budget_bytes, compute_dtype

Margin = float | Literal["soft"]
Anchors = slice | tuple[Tensor, Tensor] | None


class Kernel(NamedTuple):
    """How one miner adds up: in tiles, and all at once for a small batch."""

    tiled: Callable[[Operands, Order, Rule, float], Sums]
    small: Callable[[Tensor, Tensor, Rule], Sums | None] | None = None  # None: tiles are to do it


DISTANCES = ("squared", "euclidean", "cosine")

# Three buffers of 4 MiB each: what the cache of two cores holds with room for the operands.
CPU_MINING_MIB = 12.0


@dataclass(frozen=True, eq=False)
class Mined:
    """What a miner found. All but `valid` are scalar tensors on the device; only `loss` carries a gradient.

    `loss` is the sum over triplets divided by `weight` (0 where there is nothing to divide), so several ranks
    combine as sum(loss * weight) / sum(weight). `d_ap` and `d_an` are means over the same triplets. What a
    property tells is added up when it is asked for.
    """

    loss: Tensor
    valid: int  # triplets looked at
    _divisor: Tensor | int = field(repr=False)
    _parts: Tensor | Parts = field(repr=False)

    @cached_property
    def _total(self) -> Tensor:
        if isinstance(self._parts, Tensor):
            return self._parts
        return torch.stack(self._parts()).sum(1, dtype=torch.float64)

    @property
    def weight(self) -> Tensor:
        """What the loss was divided by: active, valid, or the sum of your weights."""
        if isinstance(self._divisor, Tensor):
            return self._divisor
        return torch.full_like(self._total[0], self._divisor)

    @property
    def active(self) -> Tensor:
        """Triplets with a loss above 0."""
        return self._total[1]

    @property
    def d_ap(self) -> Tensor:
        """Mean distance of anchor and positive."""
        return self._total[2] * reciprocal(self.weight)

    @property
    def d_an(self) -> Tensor:
        """Mean distance of anchor and negative."""
        return self._total[3] * reciprocal(self.weight)

    @property
    def fraction_positive(self) -> Tensor:
        """active / valid, 0..1; 0 where nothing is valid."""
        return self.active / max(self.valid, 1)


def reciprocal(weight: Tensor) -> Tensor:
    """1 / weight, 0 where nothing has weight."""
    return torch.where(weight > 0, 1 / weight, 0.0)


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
    kind = embeddings_BD.device.type
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return mine(embeddings_BD, labels_B, kernel, margin, distance, anchors, budget_mib)
    rule = make_rule(margin, distance)
    if budget_mib is not None:
        budget_bytes(budget_mib)  # an error for small batches too, which have no tiles
    _check_shapes(embeddings_BD, labels_B, "embeddings")
    labels_B = labels_B.to(embeddings_BD.device)
    y_BD = _rows(embeddings_BD, distance)
    x_MD: Tensor | None = None
    if isinstance(anchors, tuple):
        _check_shapes(*anchors, "anchors")
        if anchors[0].shape[1] != embeddings_BD.shape[1]:
            raise DataError(
                f"anchors have {anchors[0].shape[1]} dimensions, embeddings {embeddings_BD.shape[1]}"
            )
        _check_finite(anchors[0], "anchors")
        x_MD = _rows(anchors[0], distance)
        anchors = x_MD, anchors[1]
    with torch.no_grad():
        sums = None
        roomy = budget_mib is None or budget_mib >= SMALL_MIB
        if anchors is None and kernel.small is not None and roomy and 0 < len(labels_B) <= SMALL_ROWS:
            sums = kernel.small(y_BD, labels_B, rule)
        if sums is None:
            _check_finite(embeddings_BD, "embeddings")
            sums = _tiled(y_BD, labels_B, kernel, rule, anchors, budget_mib)
        loss, weight, grad_MD = sums.loss, sums.weight, None if x_MD is None else sums.grad_MD
        if isinstance(weight, Tensor):
            scale = reciprocal(weight)
            loss = loss * scale
            for grad in (sums.grad_ND,) if grad_MD is None else (sums.grad_ND, grad_MD):
                grad.mul_(scale)
        if loss.dtype != y_BD.dtype:
            loss = loss.to(y_BD.dtype)
    loss = _Attach.apply((loss, sums.grad_ND, grad_MD), y_BD, x_MD)
    return Mined(loss, sums.valid, weight, sums.parts)


def _tiled(
    y_BD: Tensor,
    labels_B: Tensor,
    kernel: Kernel,
    rule: Rule,
    anchors: Anchors,
    budget_mib: float | None,
) -> Sums:
    """Sorts, mines in tiles, and brings the gradient back into the order of the rows handed in."""
    if isinstance(anchors, tuple):
        order = order_against(anchors[1].to(labels_B.device), labels_B, None)
        ops = operands(anchors[0], y_BD, order)
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
        ctx: Any, known: tuple[Tensor, Tensor, Tensor | None], y_BD: Tensor, x_MD: Tensor | None
    ) -> Tensor:
        loss, grad_BD, grad_x_MD = known
        ctx.save_for_backward(grad_BD, grad_x_MD, y_BD, x_MD)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_BD, grad_x_MD, y_BD, x_MD = ctx.saved_tensors
        grads: tuple[Tensor | None, ...] = (
            grad_BD * grad_loss,
            None if grad_x_MD is None else grad_x_MD * grad_loss,
        )
        if torch.is_grad_enabled():  # a graph of the gradient is asked for
            grads = tuple(g if g is None else _Last.apply(g, y_BD, x_MD) for g in grads)
        return None, *grads


class _Last(torch.autograd.Function):
    """A gradient known as numbers: to differentiate it again would silently take it for a constant."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, y_BD: Tensor, x_MD: Tensor | None) -> Tensor:
        return grad.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise RuntimeError("the loss of a miner can be differentiated once, not twice")


def _check_shapes(rows_BD: Tensor, labels_B: Tensor, what: str) -> None:
    if rows_BD.dim() != 2 or labels_B.dim() != 1 or len(labels_B) != len(rows_BD):
        raise DataError(
            f"{what} are {tuple(rows_BD.shape)}, labels {tuple(labels_B.shape)}: needed are (B, D) and (B,)"
        )


def _check_finite(rows_BD: Tensor, what: str) -> None:
    rows_BD = rows_BD.detach()
    total = rows_BD.sum(dtype=compute_dtype(rows_BD.dtype))
    if math.isfinite(total):  # one pass; a sum may overflow, so look
        return
    bad = (~torch.isfinite(rows_BD).all(1)).nonzero()[:, 0]
    if len(bad):
        raise DataError(
            f"{len(bad)} of {len(rows_BD)} {what} are NaN or infinite, the first is row {int(bad[0])}: "
            "look at that image, or lower the learning rate"
        )


def _rows(rows_BD: Tensor, distance: str) -> Tensor:
    if rows_BD.dtype not in (torch.float32, torch.float64):
        rows_BD = rows_BD.to(compute_dtype(rows_BD.dtype))
    if distance != "cosine":
        return rows_BD
    # |x - y|^2 of rows of length sqrt(1/2) is 1 - cos
    return nn.functional.normalize(rows_BD, eps=1e-6) * 0.5**0.5
