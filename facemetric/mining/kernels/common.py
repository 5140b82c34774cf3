"""What all kernels share: the rows of a product of distances, what a triplet costs, and what is added up.

A product of rows gives squared distances with an error of about 1e-7 |x|^2 in float32: enough to choose by, not to
tell a tie, nor to divide by a small distance. `slack` bounds that error; what lies inside it is computed again, by
direct difference or in float64.

Shapes: M anchors, N reference rows, D embedding, E = D + 2, n anchors of a panel, T rows to add.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from facemetric.mining.order import Order

# Squared distance of a pair that shares a label while all negatives are weighed: beyond every threshold, yet
# finite, because a weight of 0 times infinity would be NaN.
FAR_AWAY = {torch.float32: 1e37, torch.float64: 1e300}

# A squared distance below so many times its error is computed again before anything is divided by it.
NEAR = 1000


class Operands(NamedTuple):
    """`left @ right.T` is the matrix of squared distances, in one product; columns of both below."""

    left_MD: Tensor  # [-2x, 1, |x|^2]
    right_ND: Tensor  # [y, |y|^2, 1]
    centred_MD: Tensor  # x, centred as y is
    centred_ND: Tensor  # y, centred: distances do not change, digits are won where all rows are alike
    anchors_MD: Tensor  # x as it came, for direct differences: equal rows have equal distances
    reference_ND: Tensor  # y as it came
    weight_M: Tensor | None = None  # how much the triplets of each anchor count; 1 without it

    def anchor_side(self) -> Tensor:
        """[x, |x|^2, 1]: what `right_ND` is for the reference."""
        return torch.cat([self.centred_MD, self.left_MD[:, -1:], self.left_MD[:, -2:-1]], 1)

    def slack(self) -> Tensor:
        """Bound (M,) of the error of an anchor's squared distances in the product."""
        return slack(self.left_MD[:, -1], self.right_ND[:, -2], self.reference_ND.shape[1])


def operands(
    anchors_MD: Tensor, reference_ND: Tensor | None, order: Order, weight_M: Tensor | None = None
) -> Operands:
    """Sorts, centres and extends the rows; `reference_ND` None means that the anchors are the reference.

    `weight_M`: of each anchor, in the order in which they were handed in.
    """
    raw_ND = (anchors_MD if reference_ND is None else reference_ND).index_select(0, order.reference_N)
    raw_MD = raw_ND if reference_ND is None else anchors_MD.index_select(0, order.anchors_M)
    y_ND, x_MD = centred(raw_ND, None if reference_ND is None else raw_MD)
    y_sq_N1, ones_N1 = torch.linalg.vecdot(y_ND, y_ND)[:, None], y_ND.new_ones(len(y_ND), 1)
    x_sq_M1, ones_M1 = y_sq_N1, ones_N1
    if reference_ND is not None:
        x_sq_M1, ones_M1 = torch.linalg.vecdot(x_MD, x_MD)[:, None], x_MD.new_ones(len(x_MD), 1)
    right_ND = torch.cat([y_ND, y_sq_N1, ones_N1], 1)
    left_MD = torch.cat([x_MD * -2, ones_M1, x_sq_M1], 1)
    if weight_M is not None:
        weight_M = weight_M.index_select(0, order.anchors_M)
    return Operands(left_MD, right_ND, x_MD, y_ND, raw_MD, raw_ND, weight_M)


def centred(y_ND: Tensor, x_MD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """y and x (y itself without it) less the mean of y; rows that are all equal become exactly 0."""
    if not len(y_ND):
        return y_ND, y_ND if x_MD is None else x_MD
    first_D = y_ND[0].clone()
    y_ND = y_ND - first_D
    mean_D = y_ND.mean(0)
    y_ND -= mean_D
    return y_ND, y_ND if x_MD is None else (x_MD - first_D).sub_(mean_D)


def slack(x_square_M: Tensor, y_square_N: Tensor, dimensions: int) -> Tensor:
    """Bound (M,) of the error of |x|^2 + |y|^2 - 2 x.y, given the squared lengths.

    The largest error among 4 million pairs was 12 roundings of |x|^2 + |y|^2 (D 2 to 2048), the mean 0.7.
    """
    if not len(y_square_N):
        return torch.zeros_like(x_square_M)
    roundings = 10 + math.sqrt(dimensions) / 2
    return (x_square_M + y_square_N.max()) * (roundings * torch.finfo(x_square_M.dtype).eps / 2)


def row_dot(x_MD: Tensor, y_MD: Tensor) -> Tensor:
    """(M,) inner products of paired rows in one call; with the rounding of a product."""
    return torch.bmm(x_MD[:, None], y_MD[:, :, None]).view(-1)


class Rule(NamedTuple):
    """What a triplet costs: hinge or soft margin, on squared or plain distances."""

    margin: float
    soft: bool
    root: bool  # plain Euclidean: the square root of the squared distance

    def distance(self, squared: Tensor) -> Tensor:
        return squared.sqrt() if self.root else squared

    def squared_bound(self, squared_ap: Tensor) -> Tensor:
        """A hinge is active exactly where the squared d_an is below this."""
        if not self.root:
            return squared_ap + self.margin
        if self.margin == 0:  # a root squared is not what it was
            return squared_ap
        bound = squared_ap.sqrt() + self.margin
        if self.margin > 0:
            return bound * bound
        return torch.where(bound > 0, bound * bound, -torch.inf)

    def d_distance(self, squared: Tensor) -> Tensor:
        """1 / d of plain distances, 0 at distance 0; exact only where `squared` is a direct difference.

        In float32 a squared distance below 1e-45 is 0: rows nearer than 1e-22 have no direction.
        """
        return torch.where(squared > 0, squared.rsqrt(), 0.0)

    def gradient_weight(self, weight: Tensor, squared: Tensor, scale: float = 1.0) -> Tensor:
        """Gradient of scale * weight * distance, but for the factor x - y."""
        return weight * (self.d_distance(squared) * scale) if self.root else weight * (2 * scale)

    def loss_and_slope(self, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and its slope for gap = d_ap - d_an, which is used up."""
        if self.soft:
            return torch.nn.functional.softplus(gap), torch.sigmoid(gap)
        value = gap.add_(self.margin).relu_()
        return value, value.sign()

    def has_ties(self, rows_ND: Tensor) -> bool:
        """Whether a distance can be another one plus the margin, exactly: in float32 rounding would decide it.

        With margin 0 that needs two equal rows; with another, rows and margin on one coarse grid, as whole numbers.
        """
        if not self.can_tie() or rows_ND.dtype == torch.float64 or not len(rows_ND):
            return False
        return self.margin == 0 or on_a_grid(rows_ND)

    def can_tie(self) -> bool:
        """Whether the margin is 0 or a number of few bits, as 0.5 and 1 are, and 0.2 is not."""
        return not self.soft and is_coarse(self.margin)


# Numbers of at most so many bits are what a user may have put on a grid.
GRID = 2.0**12


def is_coarse(value: float) -> bool:
    """Whether a number has no more bits than a grid."""
    return (math.frexp(value)[0] * GRID).is_integer()


def on_a_grid(rows_ND: Tensor) -> bool:
    """Whether all numbers are multiples of the 4096th part of the largest; most batches say no at their first row."""
    if not len(rows_ND) or not all(is_coarse(v) for v in rows_ND[0].tolist()):
        return False
    largest = float(rows_ND.abs().amax())
    if not 0 < largest < math.inf:
        return False
    step = math.ldexp(1.0, math.frexp(largest)[1]) / GRID
    return bool((rows_ND.double().div_(step).frac_() == 0).all())


LazyParts = Callable[[], tuple[Tensor, ...]]


class TripletSums(NamedTuple):
    """What a miner adds up, and the gradient of the loss in sorted order.

    Loss and gradient are divided already where `weight` is a number, known from the start.
    """

    loss: Tensor
    weight: Tensor | int  # what the loss and the two distances are to be divided by
    valid: int
    lazy_parts: (
        Tensor | LazyParts
    )  # loss, active, d_ap, d_an: float64 (4,), or what gives those of each triplet
    grad_MD: Tensor
    grad_ND: Tensor  # the same tensor where the anchors are the reference
    chosen: Callable[[], Tensor] | None = None  # (T, 3) rows of anchor, positive, negative


def add_rows(grad_ND: Tensor, at_T: Tensor, rows_TD: Tensor) -> None:
    """grad[at] += rows, rows named twice counted twice, and the same bits every time."""
    if grad_ND.device.type == "cpu":
        grad_ND.scatter_add_(0, at_T.unsqueeze(1).expand_as(rows_TD), rows_TD)  # faster than index_add_
    else:  # pragma: no cover - CUDA, where index_add_ is atomic; this one sorts first
        grad_ND.index_put_((at_T,), rows_TD, accumulate=True)
