"""Batch-all: every triplet that is nearer than the margin.

In a tile of distances D and for each positive, comparing with the threshold t = d_ap + margin gives the
active triplets. Their row sums are dL/d(d_ap); added over the positives they are W, and -W is dL/d(d_an). So
loss = sum(t * count) - sum(D * W), and the gradient is a product of W with the embeddings: no triplet is
formed.

Shapes: M anchors, N reference rows, D embedding, E = D + 2, R and C rows and columns of one tile, n rows with
a k-th positive.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from facemetric.mining.kernels.common import FAR_AWAY, NEAR, Operands, Rule, TripletSums, add_rows
from facemetric.mining.kernels.ladder import Ladder, climb, make_ladder
from facemetric.mining.order import Order
from facemetric.mining.tiles import budget_bytes, product_tiles, row_distance


class Positives(NamedTuple):
    """The k-th positives of the first anchors, for every k; one list entry each."""

    at: list[Tensor]  # (n,) sorted reference row
    squared: list[Tensor]  # (n,) squared d_ap
    bound: list[Tensor]  # (n,) squared d_an below which the triplet is active
    active: list[Tensor]  # (n,) active triplets, in the end times the weight of the anchor: dL/d(d_ap)


def valid_triplets(order: Order) -> int:
    """How many (a, p, n) there are."""
    negatives = len(order.reference_N) - (order.runs[1] - order.runs[0])
    return sum(int(negatives[:n].sum()) for n in order.prefix)


def batch_all_sums(ops: Operands, order: Order, rule: Rule, budget_mib: float) -> TripletSums:
    """Hinge over every triplet."""
    positives = find_bounds(ops, order, rule)
    out_ME, out_NE, near = _in_tiles(ops, order, rule, positives, budget_mib)
    weight_M = ops.weight_M
    sum_an = (ops.left_MD.double() * out_ME.double()).sum()
    if order.whole:  # both sides of every pair are in there
        sum_an *= 0.5
    if near is not None:
        sum_an += near.sum_an
    active, sum_ap = sum_an.new_zeros(()), sum_an.new_zeros(())
    for active_n in positives.active:
        active += active_n.sum(dtype=torch.float64)
    weight = active
    if weight_M is not None:
        weight = sum_an.new_zeros(())
        for active_n in positives.active:
            active_n *= weight_M[: len(active_n)]
            weight += active_n.sum(dtype=torch.float64)
    for squared, active_n in zip(positives.squared, positives.active, strict=True):
        sum_ap += (rule.distance(squared).double() * active_n).sum()
    loss = sum_ap + rule.margin * weight - sum_an
    grads = gradients(ops, order, rule, out_ME, out_NE, positives, near)
    total = torch.stack([loss, active, sum_ap, sum_an])
    return TripletSums(loss, weight, valid_triplets(order), total, *grads)


class Weighed(NamedTuple):
    """The products of coefficients with the other side's columns; `near`: pairs that were taken out of them."""

    out_ME: Tensor
    out_NE: Tensor
    near: NearPairs | None


def _in_tiles(ops: Operands, order: Order, rule: Rule, positives: Positives, budget_mib: float) -> Weighed:
    """In a whole batch a tile above the diagonal serves both of its sides.

    With the gradient that is 3 N^2 D multiplications and additions instead of 6.
    """
    anchor_side_ME = ops.right_ND if order.whole else ops.anchor_side()
    out_ME = torch.zeros_like(anchor_side_ME)
    out_NE = out_ME if order.whole else torch.zeros_like(ops.right_ND)
    n_rows = order.prefix[0] if order.prefix else 0
    if order.whole and n_rows:
        n_rows = len(ops.left_MD)  # rows without a positive are still negatives of the others
    weight_M, buffers = ops.weight_M, 2 if ops.weight_M is None else 3  # beside the distances
    walk = product_tiles(
        ops.left_MD[:n_rows],
        ops.right_ND,
        budget_mib=budget_mib,
        buffers=buffers + 1,
        triangle=order.whole and n_rows > 0,
    )
    count = partial(_count, order, positives, ladder := make_ladder(order.prefix, positives.bound))
    near = NearPairs(ops, budget_mib) if rule.root and n_rows else None
    spare = ops.left_MD.new_empty(0)
    for rows, cols, dist_RC in walk:
        if not len(spare):
            spare = dist_RC.new_empty(buffers, dist_RC.numel())
        weight_RC, scratch_RC, *down_RC = (b[: dist_RC.numel()].view(dist_RC.shape) for b in spare)
        order.fill_same(dist_RC, rows, cols, FAR_AWAY[dist_RC.dtype])
        pairs = None if near is None else near.find(dist_RC, rows, cols)
        count(dist_RC, rows, weight_RC, scratch_RC, fresh=True, tally=True)
        if weight_M is not None:
            weight_RC *= weight_M[rows, None]
        # on the diagonal both sides are the same triplets: add their weights, count them once
        if order.whole and weight_M is None:
            count(dist_RC.T, cols, weight_RC.T, scratch_RC.T, fresh=False, tally=rows != cols)
        elif order.whole and weight_M is not None:
            count(dist_RC.T, cols, down_RC[0].T, scratch_RC.T, fresh=True, tally=rows != cols)
            weight_RC += down_RC[0].mul_(weight_M[cols])
        if near is not None and pairs is not None:
            near.add(pairs, weight_RC, one_side=order.whole and rows == cols)
        to_coefficient(weight_RC, dist_RC, rule)
        out_ME[rows].addmm_(weight_RC, ops.right_ND[cols])
        if not (order.whole and rows == cols):
            out_NE[cols].addmm_(weight_RC.T, anchor_side_ME[rows])
    if ladder is not None:
        active_mK = ladder.below_mS.cumsum(1).gather(1, ladder.place_mK)
        for k, active_n in enumerate(positives.active):
            m = min(len(active_n), len(active_mK))
            active_n[:m] = active_mK[:m, k]
    return Weighed(out_ME, out_NE, near)


def find_bounds(ops: Operands, order: Order, rule: Rule) -> Positives:
    """The positives of all anchors by direct difference, and the distance below which a negative is active."""
    every = slice(0, len(ops.left_MD))
    at = [order.positive(k, every) for k in range(len(order.prefix))]
    squared = [row_distance(ops.anchors_MD[: len(p)], ops.reference_ND.index_select(0, p)) for p in at]
    bound = [rule.squared_bound(d) for d in squared]
    if (
        ops.left_MD.dtype == torch.float64
    ):  # what is no nearer than rounding is a tie, and a tie is not active
        slack_M = ops.slack()
        bound = [b - slack_M[: len(b)] - 4 * torch.finfo(b.dtype).eps * b.abs() for b in bound]
    return Positives(at, squared, bound, [torch.zeros_like(d) for d in squared])


def _count(
    order: Order,
    positives: Positives,
    ladder: Ladder | None,
    dist_RC: Tensor,
    rows: slice,
    weight_RC: Tensor,
    scratch_RC: Tensor,
    *,
    fresh: bool,
    tally: bool,
) -> None:
    """Adds the active triplets of one side of a tile to the counts and to `weight_RC` (`fresh` writes it)."""
    many = 0 if ladder is None else min(max(len(ladder.bound_mL) - rows.start, 0), len(dist_RC))
    cut = rows.start + many
    if ladder is not None and many:
        climb(ladder, dist_RC[:many], slice(rows.start, cut), weight_RC[:many], fresh=fresh, tally=tally)
    if many == len(dist_RC):
        return
    dist_RC, weight_RC, scratch_RC, rows = (
        dist_RC[many:],
        weight_RC[many:],
        scratch_RC[many:],
        slice(cut, rows.stop),
    )
    for k in range(len(order.prefix)):
        n = order.having(k, rows)
        mine = slice(rows.start, rows.start + n)
        first = fresh and k == 0
        active_nC = (weight_RC if first else scratch_RC)[:n]
        if first:
            weight_RC[n:] = 0
        if not n:
            break
        torch.lt(dist_RC[:n], positives.bound[k][mine, None], out=active_nC)
        if tally:
            positives.active[k][mine] += active_nC.sum(1)
        if not first:
            weight_RC[:n] += active_nC


def near_limits(ops: Operands) -> Tensor:
    """Squared distance (M,) of each anchor below which a product cannot tell a plain distance well enough."""
    return (ops.slack() * NEAR).clamp_(min=1000 * torch.finfo(ops.left_MD.dtype).tiny)


class NearPairs:
    """Negatives nearer than a product can tell, for plain distances: by direct difference, one pair at a time.

    1 / d of a product's d would be noise, and the gradient of a collapsed network with it.
    """

    def __init__(self, ops: Operands, budget_mib: float) -> None:
        self.ops = ops
        self.limit_M = near_limits(ops)
        self.most = float(self.limit_M.max()) if len(self.limit_M) else 0.0
        self.step = max(budget_bytes(budget_mib) // (4 * ops.reference_ND[:1].nbytes), 1)
        self.sum_an = ops.left_MD.new_zeros((), dtype=torch.float64)
        self.grad_MD: Tensor | None = None
        self.grad_ND: Tensor | None = None

    def find(self, dist_RC: Tensor, rows: slice, cols: slice) -> Pairs | None:
        """The near pairs of a tile, whose exact squared distances are written into it; None where there is none."""
        if float(dist_RC.amin()) >= self.most:
            return None
        i, j = (dist_RC < self.limit_M[rows, None]).nonzero(as_tuple=True)
        if not len(i):
            return None
        anchor, other = i + rows.start, j + cols.start
        squared = torch.cat(
            [
                row_distance(self.ops.anchors_MD.index_select(0, a), self.ops.reference_ND.index_select(0, b))
                for a, b in zip(anchor.split(self.step), other.split(self.step), strict=True)
            ]
        )
        dist_RC[i, j] = squared
        return Pairs(i, j, anchor, other, squared)

    def add(self, pairs: Pairs, weight_RC: Tensor, *, one_side: bool) -> None:
        """Takes their weights out of the tile and adds their gradient here; `one_side`: the tile has (j, i) too."""
        weight_P = weight_RC[pairs.i, pairs.j]
        weight_RC[pairs.i, pairs.j] = 0
        root_P = pairs.squared.sqrt()
        self.sum_an += (weight_P.double() * root_P).sum() * (0.5 if one_side else 1.0)
        coefficient_P = weight_P * torch.where(root_P > 0, 1 / root_P, 0.0)
        if self.grad_MD is None or self.grad_ND is None:
            self.grad_MD = torch.zeros_like(self.ops.anchors_MD)
            same = self.ops.anchors_MD is self.ops.reference_ND
            self.grad_ND = self.grad_MD if same else torch.zeros_like(self.ops.reference_ND)
        for c, a, b in zip(
            *(v.split(self.step) for v in (coefficient_P, pairs.anchor, pairs.other)), strict=True
        ):
            away_PD = self.ops.reference_ND.index_select(0, b) - self.ops.anchors_MD.index_select(0, a)
            away_PD *= c[:, None]
            add_rows(self.grad_MD, a, away_PD)
            if not one_side:
                add_rows(self.grad_ND, b, away_PD.neg_())


class Pairs(NamedTuple):
    """P pairs: their places in a tile, their sorted anchors and reference rows, and their squared distances."""

    i: Tensor
    j: Tensor
    anchor: Tensor
    other: Tensor
    squared: Tensor


def to_coefficient(weight_RC: Tensor, dist_RC: Tensor, rule: Rule) -> None:
    """Turns dL/d(d_an) into the factor of (x - y), but for the 2 of squared distances; uses both tiles up."""
    if rule.root:  # near pairs have no weight here, and 0 times infinity would be NaN
        weight_RC *= dist_RC.clamp_(min=torch.finfo(dist_RC.dtype).tiny).rsqrt_()


def gradients(
    ops: Operands,
    order: Order,
    rule: Rule,
    out_ME: Tensor,
    out_NE: Tensor,
    positives: Positives,
    near: NearPairs | None,
) -> tuple[Tensor, Tensor]:
    """The push of negatives, from products of coefficients with [y, |y|^2, 1], and the pull of positives."""
    grad_MD = _push(out_ME, ops.centred_MD, rule)
    grad_ND = grad_MD if order.whole else _push(out_NE, ops.centred_ND, rule)
    if near is not None and near.grad_MD is not None and near.grad_ND is not None:
        grad_MD += near.grad_MD
        if not order.whole:
            grad_ND += near.grad_ND
    for p, squared, count in zip(positives.at, positives.squared, positives.active, strict=True):
        pull_TD = ops.anchors_MD[: len(p)] - ops.reference_ND.index_select(0, p)
        pull_TD *= rule.gradient_weight(count, squared)[:, None]
        grad_MD[: len(p)] += pull_TD
        add_rows(grad_ND, p, pull_TD.neg_())
    return grad_MD, grad_ND


def _push(out_ME: Tensor, x_MD: Tensor, rule: Rule) -> Tensor:
    """sum_j C_ij (y_j - x_i), which is dL/dx_i of the negatives."""
    return torch.addcmul(out_ME[:, :-2], x_MD, out_ME[:, -1:], value=-1).mul_(1.0 if rule.root else 2.0)
