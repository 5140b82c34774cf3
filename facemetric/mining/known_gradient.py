"""A loss whose gradient is known before backward.

Shapes: B rows of a batch, M anchors, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def attach(
    loss: Tensor, grad_BD: Tensor, y_BD: Tensor, grad_MD: Tensor | None = None, x_MD: Tensor | None = None
) -> Tensor:
    """A loss whose gradient for y, and for x where there is one, is known."""
    return _Attach.apply((loss, grad_BD, grad_MD), y_BD, x_MD)


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
            grads = tuple(g if g is None else DifferentiatedOnce.apply(g, y_BD, x_MD) for g in grads)
        return None, *grads


class DifferentiatedOnce(torch.autograd.Function):
    """A gradient known as numbers: to differentiate it again would silently take it for a constant."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, y_BD: Tensor, x_MD: Tensor | None) -> Tensor:
        return grad.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, ...]:
        raise RuntimeError("a loss of the miners can be differentiated once, not twice")
