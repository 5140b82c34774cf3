"""Every triplet in panels: hinge and soft margin.

Shapes: as in `panels.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from facemetric.mining.kernels.common import FAR_AWAY, Rule, TripletSums, row_dot
from facemetric.mining.kernels.panels import Given, Panel, Work, total_of


def every_triplet(given: Given, rule: Rule, budget_mib: float) -> TripletSums:
    """Batch-all, with a hinge or a soft margin."""
    dtype = given.y_ND.dtype
    if rule.root:
        given = given.double()
    work = Work(given, budget_mib, entries=8)
    valid = _valid(work)
    sums: list[Sums] = []
    for panel in work.panels:
        *_, squared_P = work.to_positives(panel)
        if rule.soft:
            sums.append(_soft(work, rule, panel, squared_P, valid))
        else:
            sums.append(_hinge(work, rule, panel, squared_P, exact=dtype == torch.float64))
    return finish(work, rule, sums, dtype, divided=rule.soft and work.weight_M is None)


def finish(
    work: Work, rule: Rule, sums: list[Sums], dtype: torch.dtype, *, divided: bool = False
) -> TripletSums:
    """The record of all panels; `divided`: the gradient is divided by the number of triplets already."""
    valid, loss = _valid(work), total_of([s.loss for s in sums], work.y_ND)
    weight: Tensor | int = valid
    if divided:
        loss = loss / max(valid, 1)
    else:
        weight = total_of([s.weight() for s in sums], work.y_ND)
    unknown = work.y_ND.new_empty(0)
    return work.sums(TripletSums(loss, weight, valid, partial(_parts, sums), unknown, unknown), dtype)


class Sums(NamedTuple):
    """What a panel adds up."""

    loss: Tensor  # float64
    weight: Callable[[], Tensor]
    parts: Callable[[], tuple[Tensor, ...]]  # active triplets, and the sums of d_ap and of d_an

    @staticmethod
    def of_panel(
        work: Work,
        rule: Rule,
        panel: Panel,
        loss_R: Tensor,
        active_P: Tensor,
        squared_P: Tensor,
        row_sum_R: Tensor,
    ) -> Sums:
        """Of the losses of anchors, the active triplets of pairs, and for a soft margin the sums of distances from
        negatives; all but the first without weights."""
        negatives_P, d_ap_P = _negatives(work, panel), rule.distance(squared_P)
        counted_P = negatives_P if rule.soft else active_P
        local_P = panel.anchor_P - panel.rows.start
        weighed_P = counted_P.double()
        if work.weight_M is not None:
            weighed_P = weighed_P * work.weight_M.index_select(0, panel.anchor_P)
        loss, weight = loss_R.sum(dtype=torch.float64), weighed_P.sum()

        def parts() -> tuple[Tensor, ...]:
            sum_ap = torch.dot(d_ap_P.double(), weighed_P)
            sum_an = sum_ap + rule.margin * weight - loss
            if rule.soft:
                sum_an = torch.dot(
                    row_sum_R.double().index_select(0, local_P), weighed_P / negatives_P.double()
                )
            return counted_P.sum(dtype=torch.float64), sum_ap, sum_an

        return Sums(loss, lambda: weight, parts)


def _hinge(work: Work, rule: Rule, panel: Panel, squared_P: Tensor, *, exact: bool) -> Sums:
    rows, weight_M, K = panel.rows, work.weight_M, panel.K
    d_ap_P = rule.distance(squared_P)
    one_call = rule.root and rule.margin > 0  # `squared_bound` without a second root
    bound_P = (d_ap_P + rule.margin).square() if one_call else rule.squared_bound(squared_P)
    bound_RK = panel.padded(bound_P, -torch.inf)
    if exact:  # what is no nearer than rounding is a tie, and a tie is not active
        eps = torch.finfo(torch.float64).eps
        bound_RK = bound_RK - work.slack()[rows, None] - 4 * eps * bound_RK.abs().nan_to_num_(posinf=0)
    bound_RK, from_RK = bound_RK.sort(1)
    dist_RN = work.distances(rows).masked_fill_(work.same(rows), FAR_AWAY[squared_P.dtype])
    rank_RN = torch.searchsorted(bound_RK, dist_RN, right=True)  # how many bounds are at or below
    below_RS = dist_RN.new_zeros(len(dist_RN), K + 1).scatter_(1, rank_RN, 1.0, reduce="add")
    active_RK = torch.empty_like(bound_RK).scatter_(1, from_RK, below_RS.cumsum(1)[:, :K])
    active_P = counted_P = panel.flat(active_RK)
    slope_RN = torch.sub(rank_RN, K, out=torch.empty_like(dist_RN))  # minus the active triplets
    if weight_M is not None:
        active_P = counted_P * weight_M.index_select(0, panel.anchor_P)
        slope_RN *= weight_M[rows, None]
    if rule.root:
        dist_RN = _roots(work, dist_RN)
    work.place(panel, slope_RN, active_P)
    work.place(panel, dist_RN, d_ap_P)
    gap = row_dot(slope_RN, dist_RN).sum(dtype=torch.float64)  # d_ap - d_an of all active
    weight = active_P.sum(dtype=torch.float64)
    work.push(rows, _slopes(slope_RN, dist_RN, rule), 1.0 if rule.root else 2.0)

    def parts() -> tuple[Tensor, ...]:
        sum_ap = torch.dot(d_ap_P.double(), active_P.double())
        return counted_P.sum(dtype=torch.float64), sum_ap, sum_ap - gap

    return Sums(torch.add(gap, weight, alpha=rule.margin), lambda: weight, parts)


def _roots(work: Work, dist_RN: Tensor) -> Tensor:
    """Plain distances; 0 where rounding is all there is of the squared ones, so that equal rows have distance 0."""
    noise = work.square_N.amax() * (8 * torch.finfo(dist_RN.dtype).eps)
    return dist_RN.masked_fill_(dist_RN <= noise, 0).sqrt_()


def _slopes(slope_RN: Tensor, dist_RN: Tensor, rule: Rule) -> Tensor:
    """dL/d(d) as the factor of x - y, but for the 2 of squared distances."""
    if not rule.root:
        return slope_RN
    return slope_RN.div_(dist_RN.masked_fill_(dist_RN == 0, torch.inf))


def _soft(work: Work, rule: Rule, panel: Panel, squared_P: Tensor, valid: int) -> Sums:
    rows, weight_M, top = panel.rows, work.weight_M, panel.rows.start
    d_ap_P = rule.distance(squared_P)
    dist_RN = work.distances(rows)
    if rule.root:
        dist_RN = _roots(work, dist_RN)
    row_sum_R = dist_RN.sum(1)
    dist_RN.masked_fill_(work.same(rows), FAR_AWAY[dist_RN.dtype])
    loss_R, slope_RN, slope_RK = _soft_sums(work, panel, panel.padded(d_ap_P, -torch.inf), dist_RN)
    slope_P = panel.flat(slope_RK).neg()
    if weight_M is not None:
        loss_R, slope_RN = loss_R * weight_M[rows], slope_RN.mul_(weight_M[rows, None])
        slope_P *= weight_M.index_select(0, panel.anchor_P)
    work.place(panel, slope_RN, slope_P)
    if rule.root:
        work.place(panel, dist_RN, d_ap_P)
    scale = (1.0 if rule.root else 2.0) / (max(valid, 1) if weight_M is None else 1)
    work.push(rows, _slopes(slope_RN, dist_RN, rule), scale)
    negatives_P = partial(_negatives, work, panel)

    def weights() -> Tensor:
        counted_P = negatives_P()
        return counted_P if weight_M is None else counted_P * weight_M.index_select(0, panel.anchor_P)

    def parts() -> tuple[Tensor, ...]:
        counted_P, weight_P = negatives_P(), weights()
        same_R = torch.zeros_like(row_sum_R).index_add_(0, panel.anchor_P - top, d_ap_P)
        d_an_P = (row_sum_R - same_R).double().index_select(0, panel.anchor_P - top)
        sum_an = torch.dot(d_an_P, weight_P.double() / counted_P)
        return counted_P.sum(dtype=torch.float64), torch.dot(d_ap_P.double(), weight_P.double()), sum_an

    return Sums(loss_R.sum(dtype=torch.float64), lambda: weights().sum(dtype=torch.float64), parts)


def _negatives(work: Work, panel: Panel) -> Tensor:
    """How many negatives each pair (P,) has."""
    return work.last_M.index_select(0, panel.anchor_P) + 1.0


def _soft_sums(work: Work, panel: Panel, d_ap_RK: Tensor, dist_RN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses (R,), and minus the slopes added up over positives (R, N) and over negatives (R, K)."""
    loss_R, slope_RN = dist_RN.new_empty(len(dist_RN)), torch.empty_like(dist_RN)
    slope_RK = torch.empty_like(d_ap_RK)
    having = [work.order.having(k, panel.rows) for k in range(panel.K)]
    step = max(work.budget // max(panel.K * dist_RN[:1].nbytes, 1), 1)
    for top in range(0, len(dist_RN), step):
        part = slice(top, min(top + step, len(dist_RN)))
        K = sum(n > top for n in having)  # anchors come most positives first
        if K < panel.K:
            slope_RK[part, K:] = 0
        gap_rKN = d_ap_RK[part, :K, None] - dist_RN[part, None]
        torch._C._nn.softplus(gap_rKN, out=gap_rKN)  # type: ignore[call-arg]
        torch.sum(gap_rKN, (1, 2), out=loss_R[part])
        gap_rKN.neg_().expm1_()
        torch.sum(gap_rKN, 1, out=slope_RN[part])
        torch.sum(gap_rKN, 2, out=slope_RK[part, :K])
    return loss_R, slope_RN, slope_RK


def _parts(sums: list[Sums]) -> tuple[Tensor, ...]:
    """Loss, active triplets, d_ap and d_an, as a record adds them up: one number for each panel."""
    if not sums:
        return (torch.zeros(1, dtype=torch.float64),) * 4
    return torch.stack([s.loss for s in sums]), *map(
        torch.stack, zip(*(s.parts() for s in sums), strict=True)
    )


def _valid(work: Work) -> int:
    """How many (a, p, n) there are."""
    negatives = len(work.y_ND) - (work.order.runs[1] - work.order.runs[0])
    return sum(int(negatives[:n].sum()) for n in work.order.prefix)
