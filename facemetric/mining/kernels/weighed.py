"""Every triplet with a weight: a filter `select(d_ap, d_an) -> weight`, the soft margin, and lists of what counts.

In panels as wide as the reference, so that a filter sees the whole row of an anchor.

Shapes: M anchors, N reference rows, D embedding, E = D + 2, R rows of a panel, n of them with a k-th positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from facemetric.errors import ConfigError
from facemetric.mining.kernels.common import FAR_AWAY, Operands, Rule, TripletSums
from facemetric.mining.kernels.every_triplet import (
    NearPairs,
    Positives,
    find_bounds,
    gradients,
    to_coefficient,
    valid_triplets,
)
from facemetric.mining.kernels.ladder import SEARCH_BLOCK
from facemetric.mining.order import Order
from facemetric.mining.tiles import product_tiles, row_distance

Select = Callable[[Tensor, Tensor], Tensor]

# Indices of so many triplets take 24 MiB; a batch of 4096 rows with 4 images an identity has 50 million triplets.
MOST_TRIPLETS = 2**20


def weighted_sums(
    ops: Operands, order: Order, rule: Rule, select: Select | None, budget_mib: float
) -> TripletSums:
    """Every triplet with the weight that `select` gives it, or 1, in panels as wide as the reference."""
    positives = find_bounds(ops, order, rule)
    anchor_side_ME = ops.right_ND if order.whole else ops.anchor_side()
    out_ME = torch.zeros_like(anchor_side_ME)
    out_NE = out_ME if order.whole else torch.zeros_like(ops.right_ND)
    total = ops.left_MD.new_zeros(5, dtype=torch.float64)
    n_rows = order.prefix[0] if order.prefix else 0
    # the distances, their roots, W, and for one positive gap, loss, slope and weight with a temporary
    walk = product_tiles(
        ops.left_MD[:n_rows], ops.right_ND, budget_mib=budget_mib, buffers=8, whole_rows=True
    )
    near = NearPairs(ops, budget_mib) if rule.root and n_rows else None
    slack_M = ops.slack()
    for rows, cols, dist_RN in walk:
        order.fill_same(dist_RN, rows, cols, FAR_AWAY[dist_RN.dtype])
        pairs = None if near is None else near.find(dist_RN, rows, cols)
        if select is not None:
            _settle_ties(ops, order, positives, slack_M, dist_RN, rows)
        d_an_RN = rule.distance(dist_RN.clamp(min=0))
        weight_RN = torch.zeros_like(dist_RN)
        for k in range(len(order.prefix)):
            if not (n := order.having(k, rows)):
                break
            anchor = slice(rows.start, rows.start + n)
            d_ap_n1 = rule.distance(positives.squared[k][anchor, None])
            slope_nN, sums = _weigh(ops, d_ap_n1, d_an_RN[:n], rule, select, order, anchor)
            total += sums
            positives.active[k][anchor] = slope_nN.sum(1)
            weight_RN[:n] += slope_nN
        if near is not None and pairs is not None:
            near.add(pairs, weight_RN, one_side=False)
        to_coefficient(weight_RN, dist_RN, rule)
        out_ME[rows].addmm_(weight_RN, ops.right_ND)
        out_NE.addmm_(weight_RN.T, anchor_side_ME[rows])
    loss, weight, active, sum_ap, sum_an = total
    grads = gradients(ops, order, rule, out_ME, out_NE, positives, near)
    total = torch.stack([loss, active, sum_ap, sum_an])
    return TripletSums(loss, weight, valid_triplets(order), total, *grads)


def _settle_ties(
    ops: Operands, order: Order, positives: Positives, slack_M: Tensor, dist_RN: Tensor, rows: slice
) -> None:
    """Distances that rounding could confuse with d_ap, by direct difference: equal rows have equal distances."""
    for k, squared in enumerate(positives.squared):
        n = order.having(k, rows)
        anchor = slice(rows.start, rows.start + n)
        close_nN = (dist_RN[:n] - squared[anchor, None]).abs_() <= 2 * slack_M[anchor, None]
        for a, b in zip(*(v.split(SEARCH_BLOCK) for v in close_nN.nonzero(as_tuple=True)), strict=True):
            dist_RN[a, b] = row_distance(
                ops.anchors_MD.index_select(0, a + rows.start), ops.reference_ND.index_select(0, b)
            )


def _weigh(
    ops: Operands,
    d_ap_n1: Tensor,
    d_an_nN: Tensor,
    rule: Rule,
    select: Select | None,
    order: Order,
    anchor: slice,
) -> tuple[Tensor, Tensor]:
    """Weighted slope of each triplet of one positive, and (loss, weight, active, d_ap, d_an) summed."""
    value_nN, slope_nN = rule.loss_and_slope(d_ap_n1 - d_an_nN)
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
    active = (value_nN > 0).sum(dtype=torch.float64)
    if ops.weight_M is not None:
        for part_nN in (value_nN, slope_nN, chosen_nN):
            part_nN *= ops.weight_M[anchor, None]
    weight_n = chosen_nN.sum(1, dtype=torch.float64)
    sum_ap = (weight_n * d_ap_n1[:, 0]).sum()
    loss, weight = value_nN.sum(dtype=torch.float64), weight_n.sum()
    chosen_nN *= d_an_nN
    return slope_nN, torch.stack([loss, weight, active, sum_ap, chosen_nN.sum(dtype=torch.float64)])


class _Panel(NamedTuple):
    """Some anchors and one positive of each, against the whole reference."""

    anchor: slice
    at_p: Tensor  # (n,) sorted reference row
    loss_nN: Tensor  # of each triplet, times its weight; 0 where there is none
    weight_nN: Tensor  # what each is divided by: what `select` gave it, or 1 where it counts
    chosen_nN: Tensor  # which to list: with a loss above 0, or with a weight


def _panels(
    ops: Operands, order: Order, rule: Rule, select: Select | None, budget_mib: float
) -> Iterator[_Panel]:
    positives, slack_M = find_bounds(ops, order, rule), ops.slack()
    n_rows = order.prefix[0] if order.prefix else 0
    near = NearPairs(ops, budget_mib) if rule.root and n_rows else None
    walk = product_tiles(
        ops.left_MD[:n_rows], ops.right_ND, budget_mib=budget_mib, buffers=8, whole_rows=True
    )
    for rows, cols, dist_RN in walk:
        order.fill_same(dist_RN, rows, cols, FAR_AWAY[dist_RN.dtype])
        if near is not None:
            near.find(dist_RN, rows, cols)
        if select is not None:
            _settle_ties(ops, order, positives, slack_M, dist_RN, rows)
        d_an_RN = rule.distance(dist_RN.clamp(min=0))
        for k in range(len(order.prefix)):
            if not (n := order.having(k, rows)):
                break
            anchor = slice(rows.start, rows.start + n)
            d_ap_n1 = rule.distance(positives.squared[k][anchor, None])
            loss_nN = rule.loss_and_slope(d_ap_n1 - d_an_RN[:n])[0]
            if select is not None:
                weight_nN = torch.empty_like(loss_nN).copy_(select(d_ap_n1, d_an_RN[:n]))
                order.fill_same(weight_nN, anchor, cols, 0)
                loss_nN *= weight_nN
                chosen_nN = weight_nN != 0
            elif rule.soft:
                weight_nN = torch.ones_like(loss_nN)
                for part_nN in (loss_nN, weight_nN):
                    order.fill_same(part_nN, anchor, cols, 0)
                chosen_nN = loss_nN > 0
            else:
                chosen_nN = weight_nN = dist_RN[:n] < positives.bound[k][anchor, None]
                loss_nN *= chosen_nN
            yield _Panel(anchor, positives.at[k][anchor], loss_nN, weight_nN, chosen_nN)


def anchor_sums(ops: Operands, order: Order, rule: Rule, select: Select | None, budget_mib: float) -> Tensor:
    """What the triplets of each sorted anchor cost together, and weigh: (2, M) in float64."""
    sums_2M = ops.left_MD.new_zeros(2, len(ops.left_MD), dtype=torch.float64)
    for panel in _panels(ops, order, rule, select, budget_mib):
        for sum_M, part_nN in zip(sums_2M, (panel.loss_nN, panel.weight_nN), strict=True):
            sum_M[panel.anchor] += part_nN.sum(1, dtype=torch.float64)
    return sums_2M if ops.weight_M is None else sums_2M * ops.weight_M


def active_triplets(
    ops: Operands, order: Order, rule: Rule, select: Select | None, budget_mib: float
) -> Tensor:
    """(T, 3) rows, as they were handed in, of every triplet with a loss above 0, or with a weight.

    Errors: ConfigError for more than MOST_TRIPLETS.
    """
    found, count = [ops.left_MD.new_empty((0, 3), dtype=torch.int64)], 0
    for panel in _panels(ops, order, rule, select, budget_mib):
        i, n = panel.chosen_nN.nonzero(as_tuple=True)
        count += len(i)
        if count > MOST_TRIPLETS:
            raise ConfigError(
                f"more than {MOST_TRIPLETS:,} triplets count, too many to list: mine fewer anchors at a time "
                "(anchors=slice(0, 64)), or take 'hard' or 'semihard', which choose one for each anchor or pair"
            )
        anchor = order.anchors_M[panel.anchor.start + i]
        found.append(torch.stack([anchor, order.reference_N[panel.at_p[i]], order.reference_N[n]], 1))
    return torch.cat(found)
