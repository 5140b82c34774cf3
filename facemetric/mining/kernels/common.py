"""What all kernels share: the rows of a product of distances, what a triplet pays, and what is added up.

Shapes: M anchors, N reference rows, D embedding, T rows to add.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from facemetric.mining.order import Order

# Squared distance of a pair that shares a label while all negatives are weighed: beyond every threshold, yet
# finite, because a weight of 0 times infinity would be NaN.
FAR = 1e30


class Operands(NamedTuple):
    """`left @ right.T` is the matrix of squared distances, in one product; columns of both below."""

    left_MD: Tensor  # [-2x, 1, |x|^2]
    right_ND: Tensor  # [y, |y|^2, 1]
    anchors_MD: Tensor  # x, centred as y is
    reference_ND: Tensor  # y, centred: distances do not change, digits are won where all rows are alike

    def anchor_side(self) -> Tensor:
        """[x, |x|^2, 1]: what `right_ND` is for the reference."""
        return torch.cat([self.anchors_MD, self.left_MD[:, -1:], self.left_MD[:, -2:-1]], 1)


def operands(anchors_MD: Tensor, reference_ND: Tensor | None, order: Order) -> Operands:
    """Sorts, centres and extends the rows; `reference_ND` None means that the anchors are the reference."""
    y_ND = (anchors_MD if reference_ND is None else reference_ND).index_select(0, order.reference_N)
    mean_D = y_ND.mean(0)
    y_ND = y_ND - mean_D
    x_MD = y_ND if reference_ND is None else anchors_MD.index_select(0, order.anchors_M) - mean_D
    y_sq_N1, ones_N1 = torch.linalg.vecdot(y_ND, y_ND)[:, None], y_ND.new_ones(len(y_ND), 1)
    x_sq_M1, ones_M1 = y_sq_N1, ones_N1
    if reference_ND is not None:
        x_sq_M1, ones_M1 = torch.linalg.vecdot(x_MD, x_MD)[:, None], x_MD.new_ones(len(x_MD), 1)
    right_ND = torch.cat([y_ND, y_sq_N1, ones_N1], 1)
    left_MD = torch.cat([x_MD * -2, ones_M1, x_sq_M1], 1)
    return Operands(left_MD, right_ND, x_MD, y_ND)


class Rule(NamedTuple):
    """How a triplet is paid: hinge or soft margin, on squared or plain distances."""

    margin: float
    soft: bool
    root: bool  # plain Euclidean: the square root of the squared distance

    def distance(self, squared: Tensor) -> Tensor:
        return squared.sqrt() if self.root else squared

    def squared_bound(self, squared_ap: Tensor) -> Tensor:
        """A hinge is active exactly where the squared d_an is below this."""
        bound = self.distance(squared_ap) + self.margin
        return torch.where(bound > 0, bound * bound, -torch.inf) if self.root else bound

    def slope(self, squared: Tensor) -> Tensor:
        """1 / d of plain distances, 0 where d is noise."""
        tiny = self.tiny(squared.dtype)
        return torch.where(squared > tiny * tiny, squared.clamp(min=tiny * tiny).rsqrt(), 0.0)

    def pull(self, weight: Tensor, squared: Tensor, scale: float = 1.0) -> Tensor:
        """Gradient of scale * weight * distance, but for the factor x - y."""
        return weight * (self.slope(squared) * scale) if self.root else weight * (2 * scale)

    @staticmethod
    def tiny(dtype: torch.dtype) -> float:
        """Plain distance below which 1 / d would magnify little but rounding."""
        return 1e-3 if dtype == torch.float32 else 1e-7

    def pay(self, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and its slope for gap = d_ap - d_an, which is used up."""
        if self.soft:
            return torch.nn.functional.softplus(gap), torch.sigmoid(gap)
        value = gap.add_(self.margin).relu_()
        return value, value.sign()


Parts = Callable[[], tuple[Tensor, ...]]


class Sums(NamedTuple):
    """What a miner adds up, and the gradient of the loss in sorted order.

    Loss and gradient are divided already where `weight` is a number, known from the start.
    """

    loss: Tensor
    weight: Tensor | int  # what the loss and the two distances are to be divided by
    valid: int
    parts: Tensor | Parts  # loss, active, d_ap, d_an: float64 (4,), or what gives those of each triplet
    grad_MD: Tensor
    grad_ND: Tensor  # the same tensor where the anchors are the reference


def add_rows(grad_ND: Tensor, at_T: Tensor, rows_TD: Tensor) -> None:
    """grad[at] += rows, rows named twice counted twice, and the same bits every time."""
    if grad_ND.device.type == "cpu":
        grad_ND.scatter_add_(0, at_T.unsqueeze(1).expand_as(rows_TD), rows_TD)  # faster than index_add_
    else:  # pragma: no cover - CUDA, where index_add_ is atomic; this one sorts first
        grad_ND.index_put_((at_T,), rows_TD, accumulate=True)
