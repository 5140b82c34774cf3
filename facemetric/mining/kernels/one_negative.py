"""Miners that keep one negative for an anchor, or for an (anchor, positive): pick it, then pay only for it.

In a tile the negatives are picked by comparing, never by gathering; the picked triplets are then computed
again by direct difference, which keeps every digit near zero.

Shapes: M anchors, N reference rows, D embedding, R and C rows and columns of a tile, n rows with a k-th
positive, T triplets.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from facemetric.mining.kernels.argmin import INTEGER, argmin_columns, argmin_rows
from facemetric.mining.kernels.common import Operands, Rule, TripletSums, add_rows
from facemetric.mining.kernels.settle import UNSURE, UNSURE_NEAR, Doubt, choose_in_float64, settle
from facemetric.mining.order import Order
from facemetric.mining.tiles import budget_bytes, product_tiles, row_distance

# Operands, order, squared d_ap of the k-th positives (n,) for each k, budget -> sorted reference row of the
# negative, (n,) for each k.
Pick = Callable[[Operands, Order, list[Tensor], float], list[Tensor]]


def pick_semihard(ops: Operands, order: Order, squared_ap: list[Tensor], budget_mib: float) -> list[Tensor]:
    """For each (a, p) the nearest negative with d_an > d_ap; where there is none, the farthest negative.

    d_ap - d_an is negative exactly for those, and the bits of negative floats, read as integers, are below
    all others and grow with the distance from zero; among the others the smallest belongs to the farthest
    negative. So one subtraction and one integer minimum answer both. A tie is not farther: float64 takes for one
    what lies within its rounding; float32 asks for all that could be farther, and has the doubtful decided in
    float64. Source: Schroff et al. 2015, arXiv:1503.03832, section 3.2; the fallback as in TensorFlow Addons'
    triplet_semihard_loss.
    """
    slack_M = ops.slack()
    if slack_M.dtype == torch.float64:
        return _sweep(ops, order, [d + slack_M[: len(d)] for d in squared_ap], budget_mib, gap=True)[0]
    bounds = [d - UNSURE * slack_M[: len(d)] for d in squared_ap]
    at, found = _sweep(ops, order, bounds, budget_mib, gap=True)
    if not at:
        return at
    anchor_T = torch.cat([torch.arange(len(d), device=d.device) for d in squared_ap])
    gap_T, bound_T, band_T = torch.cat(found), torch.cat(bounds), 2 * UNSURE * slack_M[anchor_T]
    near_T = gap_T >= bound_T - UNSURE_NEAR * slack_M[anchor_T]
    t = ((gap_T < 0) & (near_T | (gap_T >= -band_T))).nonzero()[:, 0]
    if len(t):
        p_T = torch.cat([order.positive(k, slice(0, len(d))) for k, d in enumerate(squared_ap)])
        at_T, a = torch.cat(at), anchor_T[t]
        doubt = Doubt(a, p_T[t], at_T[t], bound_T[t], band_T[t], near_T[t], _same(order, a))

        def panel(some: Tensor) -> Tensor:
            return torch.mm(ops.left_MD[a[some]], ops.right_ND.T)

        at_T[t] = settle(ops.anchors_MD, ops.reference_ND, doubt, panel, budget_mib)
        at = list(at_T.split([len(d) for d in squared_ap]))
    return at


def pick_nearest(ops: Operands, order: Order, squared_ap: list[Tensor], budget_mib: float) -> list[Tensor]:
    """For each anchor the nearest negative. Source: Hermans et al. 2017, arXiv:1703.07737."""
    at, found = _sweep(ops, order, squared_ap, budget_mib, gap=False)
    if at and ops.left_MD.dtype == torch.float32:
        t = (found[0] <= UNSURE_NEAR * ops.slack()[: len(at[0])]).nonzero()[:, 0]
        if len(t):
            rows = ops.anchors_MD[t].double(), ops.reference_ND
            at[0][t] = choose_in_float64(*rows, None, _same(order, t), budget_mib)
    return at


def _same(order: Order, anchor_T: Tensor) -> Tensor:
    """(T, K) sorted reference rows of each anchor's label, some named twice where others have more."""
    start_T1, count_T1 = order.start_M[anchor_T, None], order.count_M[anchor_T, None]
    step_K = torch.arange(int(count_T1.max()), device=anchor_T.device)
    return start_T1 + torch.minimum(step_K, count_T1 - 1)


def _sweep(
    ops: Operands, order: Order, bounds: list[Tensor], budget_mib: float, *, gap: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Reference row with the least bits of the distance, or of the `gap` bound - d_an; and that number.

    In a whole batch a tile above the diagonal is read along its rows and down its columns: half the product.
    """
    integer = INTEGER[ops.left_MD.dtype]
    best = [torch.full_like(d, torch.iinfo(integer).max, dtype=integer) for d in bounds]
    at = [torch.zeros_like(d, dtype=torch.int64) for d in bounds]
    n_rows = len(bounds[0]) if bounds else 0
    if order.whole and n_rows:
        n_rows = len(ops.left_MD)  # rows without a positive are still negatives of the others
    walk = product_tiles(
        ops.left_MD[:n_rows],
        ops.right_ND,
        budget_mib=budget_mib,
        buffers=2,
        triangle=order.whole and n_rows > 0,
    )
    scratch = ops.left_MD.new_empty(0)
    for rows, cols, dist_RC in walk:
        if gap and not len(scratch):
            scratch = torch.empty_like(dist_RC).view(-1)
        order.fill_same(dist_RC, rows, cols, -torch.inf if gap else torch.inf)
        for down in (False, True) if order.whole and rows != cols else (False,):
            side, other = (cols, rows) if down else (rows, cols)
            for k, bound in enumerate(bounds):
                if not (n := order.having(k, side)):
                    break
                mine = slice(side.start, side.start + n)
                part = dist_RC[:, :n] if down else dist_RC[:n]
                if gap:
                    bound_part = bound[mine] if down else bound[mine, None]
                    part = torch.sub(bound_part, part, out=scratch[: part.numel()].view(part.shape))
                bits = part.view(integer)
                where = (argmin_columns if down else argmin_rows)(bits)
                found = bits.gather(0, where[None])[0] if down else bits.gather(1, where[:, None])[:, 0]
                better = found < best[k][mine]
                best[k][mine] = torch.where(better, found, best[k][mine])
                at[k][mine] = torch.where(better, where + other.start, at[k][mine])
    return at, [b.view(ops.left_MD.dtype) for b in best]


def pick_by_distance(dimensions: int, square: float, generator: torch.Generator) -> Pick:
    """Draws one negative for each (a, p), weighed by the inverse density of distances on the unit sphere.

    q(d) = d^(D - 2) (1 - d^2 / 4)^((D - 3) / 2); a squared distance of `ops` times `square` is d^2. The
    argmax of log weight plus Gumbel noise is a draw by weight. Source: Wu et al. 2017, arXiv:1706.07567,
    section 4.2.
    """

    def pick(ops: Operands, order: Order, squared_ap: list[Tensor], budget_mib: float) -> list[Tensor]:
        picked: list[list[Tensor]] = [[] for _ in squared_ap]
        left_MD = ops.left_MD[: len(squared_ap[0]) if squared_ap else 0]
        walk = product_tiles(left_MD, ops.right_ND, budget_mib=budget_mib, buffers=2, whole_rows=True)
        spare = left_MD.new_empty(0)
        for rows, cols, dist_RN in walk:
            if not len(spare):
                spare = dist_RN.new_empty(dist_RN.numel())
            square_RN = dist_RN.mul_(square).clamp_(0.25, 2.0)
            log_weight_RN = torch.log(square_RN, out=spare[: dist_RN.numel()].view(dist_RN.shape))
            log_weight_RN.mul_(-(dimensions - 2) / 2)
            log_weight_RN -= square_RN.mul_(-0.25).log1p_().mul_((dimensions - 3) / 2)
            order.fill_same(log_weight_RN, rows, cols, -torch.inf)
            for k in range(len(squared_ap)):
                n = order.having(k, rows)
                noise_nN = dist_RN[:n].exponential_(generator=generator).clamp_(min=1e-30).log_()
                picked[k].append(torch.sub(log_weight_RN[:n], noise_nN, out=noise_nN).argmax(1))
        return [torch.cat(parts) for parts in picked]

    return pick


# --- the loss of what was picked


def sparse_sums(
    ops: Operands, order: Order, rule: Rule, *, pick: Pick, farthest: bool, budget_mib: float
) -> TripletSums:
    """Sum of the loss over picked triplets; `farthest` keeps one positive an anchor, else every one."""
    D = ops.reference_ND.shape[1]
    # rows of differences at a time: x, both differences and a temporary share the budget
    step = max(budget_bytes(budget_mib) // (4 * D * ops.left_MD.element_size()), 1)
    every = slice(0, len(ops.left_MD))
    at_p = [order.positive(k, every) for k in range(len(order.prefix))]
    squared_ap = [_squared(ops, p, step) for p in at_p]
    if farthest and at_p:
        at_p, squared_ap = _farthest(at_p, squared_ap)
    at_n = pick(ops, order, squared_ap, budget_mib)
    valid = sum(len(p) for p in at_p)
    weight, scale = _weight(ops, at_p, valid)
    total = ops.left_MD.new_zeros(4, dtype=torch.float64)  # loss, active, d_ap, d_an
    grad_MD = torch.zeros_like(ops.anchors_MD)
    grad_ND = grad_MD if order.whole else torch.zeros_like(ops.reference_ND)
    for p, n, squared in zip(at_p, at_n, squared_ap, strict=True):
        for top in range(0, len(p), step):
            part = slice(top, min(top + step, len(p)))
            triplets = (part, p[part], n[part], squared[part])
            total += _accumulate_triplets(ops, rule, *triplets, scale, grad_MD, grad_ND)
    chosen = partial(_chosen, order, at_p, at_n)
    loss = total[0] if isinstance(weight, Tensor) else total[0] / max(valid, 1)
    return TripletSums(loss, weight, valid, total, grad_MD, grad_ND, chosen)


def _weight(ops: Operands, at_p: list[Tensor], valid: int) -> tuple[Tensor | int, float]:
    """What the loss is divided by, and what its gradient is scaled by already while it is added up."""
    if ops.weight_M is None:
        return valid, 1 / max(valid, 1)
    weight = ops.weight_M.new_zeros((), dtype=torch.float64)
    for p in at_p:
        weight += ops.weight_M[: len(p)].sum(dtype=torch.float64)
    return weight, 1.0


def _chosen(order: Order, at_p: list[Tensor], at_n: list[Tensor]) -> Tensor:
    """(T, 3) rows of anchor, positive and negative as they were handed in."""
    anchors = [order.anchors_M[: len(p)] for p in at_p] or [order.anchors_M[:0]]
    ends = [order.reference_N[torch.cat(at)] if at else anchors[0] for at in (at_p, at_n)]
    return torch.stack([torch.cat(anchors), *ends], 1)


def _squared(ops: Operands, at_p: Tensor, step: int) -> Tensor:
    """Squared distance (n,) of the first anchors to these reference rows, some at a time."""
    parts = zip(ops.anchors_MD[: len(at_p)].split(step), at_p.split(step), strict=True)
    return torch.cat([row_distance(x, ops.reference_ND.index_select(0, p)) for x, p in parts])


def _farthest(at_p: list[Tensor], squared_ap: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """One positive for each anchor."""
    at, best = at_p[0].clone(), squared_ap[0].clone()
    for other, d in zip(at_p[1:], squared_ap[1:], strict=True):
        n = len(d)
        farther = d > best[:n]
        at[:n] = torch.where(farther, other, at[:n])
        best[:n] = torch.where(farther, d, best[:n])
    return [at], [best]


def _accumulate_triplets(
    ops: Operands,
    rule: Rule,
    anchor: slice,
    p_T: Tensor,
    n_T: Tensor,
    squared_ap_T: Tensor,
    scale: float,
    grad_MD: Tensor,
    grad_ND: Tensor,
) -> Tensor:
    """Loss, active count and both distances of triplets (anchor, p, n), summed.

    Their gradient times `scale` is added.
    """
    x_TD = ops.anchors_MD[anchor]
    to_n_TD = x_TD - ops.reference_ND.index_select(0, n_T)
    squared_an_T = torch.linalg.vecdot(to_n_TD, to_n_TD)  # as row_distance: equal rows, equal distances
    d_ap_T, d_an_T = rule.distance(squared_ap_T), rule.distance(squared_an_T)
    value_T, slope_T = rule.loss_and_slope(d_ap_T - d_an_T)
    terms_4T = torch.stack([value_T, value_T > 0, d_ap_T, d_an_T])
    if ops.weight_M is not None:
        weight_T = ops.weight_M[anchor]
        slope_T = slope_T * weight_T
        terms_4T[[0, 2, 3]] *= weight_T
    to_p_TD = x_TD - ops.reference_ND.index_select(0, p_T)
    to_p_TD *= rule.gradient_weight(slope_T, squared_ap_T, scale)[:, None]
    to_n_TD *= rule.gradient_weight(slope_T, squared_an_T, scale)[:, None]
    grad_MD[anchor] += to_p_TD
    grad_MD[anchor] -= to_n_TD
    add_rows(grad_ND, p_T, to_p_TD.neg_())
    add_rows(grad_ND, n_T, to_n_TD)
    return terms_4T.sum(1, dtype=torch.float64)
