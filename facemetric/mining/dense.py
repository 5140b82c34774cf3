"""Miners that weigh every triplet: batch-all, and any `select(d_ap, d_an) -> weight`.

In a tile of distances D and for each positive, comparing with the threshold t = d_ap + margin gives the
active triplets. Their row sums are dL/d(d_ap); added over the positives they are W, and -W is dL/d(d_an). So
loss = sum(t * count) - sum(D * W), and the gradient is a product of W with the embeddings: no triplet is
formed.

Shapes: M anchors, N reference rows, D embedding, E = D + 2, R and C rows and columns of one tile, n rows with
a k-th positive.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from facemetric.errors import ConfigError
from facemetric.mining.order import Order
from facemetric.mining.sparse import FAR, Operands, Rule, Sums, add_rows
from facemetric.mining.tiles import product_tiles, row_distance

Select = Callable[[Tensor, Tensor], Tensor]


class _Positives(NamedTuple):
    """The k-th positives of the first anchors, for every k; one list entry each."""

    at: list[Tensor]  # (n,) sorted reference row
    squared: list[Tensor]  # (n,) squared d_ap
    bound: list[Tensor]  # (n,) squared d_an below which the triplet is active
    active: list[Tensor]  # (n,) active triplets, which is dL/d(d_ap)


def valid_triplets(order: Order) -> int:
    """How many (a, p, n) there are."""
    negatives = len(order.reference_N) - (order.runs[1] - order.runs[0])
    return sum(int(negatives[:n].sum()) for n in order.prefix)


def batch_all_sums(ops: Operands, order: Order, rule: Rule, budget_mib: float) -> Sums:
    """Hinge over every triplet. In a whole batch a tile above the diagonal serves both of its sides.

    With the gradient that is 3 N^2 D multiplications and additions instead of 6.
    """
    positives = _positives(ops, order, rule)
    anchor_side_ME = ops.right_ND if order.whole else ops.anchor_side()
    out_ME = torch.zeros_like(anchor_side_ME)
    out_NE = out_ME if order.whole else torch.zeros_like(ops.right_ND)
    n_rows = order.prefix[0] if order.prefix else 0
    if order.whole and n_rows:
        n_rows = len(ops.left_MD)  # rows without a positive are still negatives of the others
    walk = product_tiles(
        ops.left_MD[:n_rows],
        ops.right_ND,
        budget_mib=budget_mib,
        buffers=3,
        triangle=order.whole and n_rows > 0,
    )
    spare = ops.left_MD.new_empty(0)
    for rows, cols, dist_RC in walk:
        if not len(spare):
            spare = dist_RC.new_empty(2, dist_RC.numel())
        weight_RC, scratch_RC = (b[: dist_RC.numel()].view(dist_RC.shape) for b in spare)
        order.fill_same(dist_RC, rows, cols, FAR)
        _count_active(dist_RC, rows, order, positives, weight_RC, scratch_RC, fresh=True)
        if (
            order.whole
        ):  # on the diagonal both sides are the same triplets: add their weights, count them once
            tally = rows != cols
            _count_active(dist_RC.T, cols, order, positives, weight_RC.T, scratch_RC.T, tally=tally)
        _to_coefficient(weight_RC, dist_RC, rule)
        out_ME[rows].addmm_(weight_RC, ops.right_ND[cols])
        if not (order.whole and rows == cols):
            out_NE[cols].addmm_(weight_RC.T, anchor_side_ME[rows])
    sum_an = (ops.left_MD.double() * out_ME.double()).sum()
    if order.whole:  # both sides of every pair are in there
        sum_an *= 0.5
    active, sum_ap = sum_an.new_zeros(()), sum_an.new_zeros(())
    for squared, count in zip(positives.squared, positives.active, strict=True):
        active += count.sum(dtype=torch.float64)
        sum_ap += (rule.distance(squared).double() * count).sum()
    loss = sum_ap + rule.margin * active - sum_an
    grads = _gradients(ops, order, rule, out_ME, out_NE, positives)
    return Sums(loss, active, active, valid_triplets(order), sum_ap, sum_an, *grads)


def _positives(ops: Operands, order: Order, rule: Rule) -> _Positives:
    every = slice(0, len(ops.left_MD))
    at = [order.positive(k, every) for k in range(len(order.prefix))]
    squared = [row_distance(ops.anchors_MD[: len(p)], ops.reference_ND.index_select(0, p)) for p in at]
    return _Positives(
        at, squared, [rule.squared_bound(d) for d in squared], [torch.zeros_like(d) for d in squared]
    )


def _count_active(
    dist_RC: Tensor,
    rows: slice,
    order: Order,
    positives: _Positives,
    weight_RC: Tensor,
    scratch_RC: Tensor,
    *,
    fresh: bool = False,
    tally: bool = True,
) -> None:
    """Adds the active triplets of one side of a tile to the counts and to `weight_RC` (`fresh` writes it)."""
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


def weighted_sums(ops: Operands, order: Order, rule: Rule, select: Select | None, budget_mib: float) -> Sums:
    """Every triplet with the weight that `select` gives it, or 1, in panels as wide as the reference."""
    positives = _positives(ops, order, rule)
    anchor_side_ME = ops.right_ND if order.whole else ops.anchor_side()
    out_ME = torch.zeros_like(anchor_side_ME)
    out_NE = out_ME if order.whole else torch.zeros_like(ops.right_ND)
    total = ops.left_MD.new_zeros(5, dtype=torch.float64)
    n_rows = order.prefix[0] if order.prefix else 0
    # the distances, their roots, W, and for one positive gap, loss, slope and weight with a temporary
    walk = product_tiles(
        ops.left_MD[:n_rows], ops.right_ND, budget_mib=budget_mib, buffers=8, whole_rows=True
    )
    for rows, cols, dist_RN in walk:
        order.fill_same(dist_RN, rows, cols, FAR)
        d_an_RN = rule.distance(dist_RN.clamp(min=0))
        weight_RN = torch.zeros_like(dist_RN)
        for k in range(len(order.prefix)):
            if not (n := order.having(k, rows)):
                break
            anchor = slice(rows.start, rows.start + n)
            d_ap_n1 = rule.distance(positives.squared[k][anchor, None])
            slope_nN, sums = _weigh(d_ap_n1, d_an_RN[:n], rule, select, order, anchor)
            total += sums
            positives.active[k][anchor] = slope_nN.sum(1)
            weight_RN[:n] += slope_nN
        _to_coefficient(weight_RN, dist_RN, rule)
        out_ME[rows].addmm_(weight_RN, ops.right_ND)
        out_NE.addmm_(weight_RN.T, anchor_side_ME[rows])
    loss, weight, active, sum_ap, sum_an = total
    grads = _gradients(ops, order, rule, out_ME, out_NE, positives)
    return Sums(loss, weight, active, valid_triplets(order), sum_ap, sum_an, *grads)


def _weigh(
    d_ap_n1: Tensor, d_an_nN: Tensor, rule: Rule, select: Select | None, order: Order, anchor: slice
) -> tuple[Tensor, Tensor]:
    """Weighted slope of each triplet of one positive, and (loss, weight, active, d_ap, d_an) summed."""
    value_nN, slope_nN = rule.pay(d_ap_n1 - d_an_nN)
    if select is None:
        chosen_nN = torch.ones_like(value_nN)
    else:
        chosen_nN = select(d_ap_n1, d_an_nN)
        if not isinstance(chosen_nN, Tensor) or chosen_nN.shape != d_an_nN.shape:
            came = tuple(chosen_nN.shape) if isinstance(chosen_nN, Tensor) else type(chosen_nN).__name__
            raise ConfigError(
                f"select returned {came}, needed is one weight a triplet: {tuple(d_an_nN.shape)}"
            )
        chosen_nN = torch.empty_like(d_an_nN).copy_(chosen_nN)
    order.fill_same(chosen_nN, anchor, slice(0, d_an_nN.shape[1]), 0)
    value_nN *= chosen_nN
    slope_nN *= chosen_nN
    weight_n = chosen_nN.sum(1, dtype=torch.float64)
    active = (value_nN > 0).sum(dtype=torch.float64)
    sum_ap = (weight_n * d_ap_n1[:, 0]).sum()
    loss, weight = value_nN.sum(dtype=torch.float64), weight_n.sum()
    chosen_nN *= d_an_nN
    return slope_nN, torch.stack([loss, weight, active, sum_ap, chosen_nN.sum(dtype=torch.float64)])


def _to_coefficient(weight_RC: Tensor, dist_RC: Tensor, rule: Rule) -> None:
    """Turns dL/d(d_an) into the factor of (x - y), but for the 2 of squared distances; uses both tiles up."""
    if rule.root:
        tiny = rule.tiny(dist_RC.dtype)
        inverse_RC = dist_RC.clamp_(min=tiny * tiny).rsqrt_()
        weight_RC *= inverse_RC
        weight_RC *= inverse_RC < 0.999 / tiny  # what was clamped is noise, and products would magnify it


def _gradients(
    ops: Operands, order: Order, rule: Rule, out_ME: Tensor, out_NE: Tensor, positives: _Positives
) -> tuple[Tensor, Tensor]:
    """The push of negatives, from products of coefficients with [y, |y|^2, 1], and the pull of positives."""
    grad_MD = _push(out_ME, ops.anchors_MD, rule)
    grad_ND = grad_MD if order.whole else _push(out_NE, ops.reference_ND, rule)
    for p, squared, count in zip(positives.at, positives.squared, positives.active, strict=True):
        pull_TD = ops.anchors_MD[: len(p)] - ops.reference_ND.index_select(0, p)
        pull_TD *= (count * rule.slope(squared))[:, None]
        grad_MD[: len(p)] += pull_TD
        add_rows(grad_ND, p, pull_TD.neg_())
    return grad_MD, grad_ND


def _push(out_ME: Tensor, x_MD: Tensor, rule: Rule) -> Tensor:
    """sum_j C_ij (y_j - x_i), which is dL/dx_i of the negatives."""
    return torch.addcmul(out_ME[:, :-2], x_MD, out_ME[:, -1:], value=-1).mul_(1.0 if rule.root else 2.0)
