"""One negative for each anchor and positive, or for each anchor, in panels.

Shapes: as in `panels.py`; T triplets.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from facemetric.mining.kernels.common import Rule, TripletSums, add_rows
from facemetric.mining.kernels.panels import Given, Panel, Work, total_of
from facemetric.mining.order import Order

# Work, panel, squared d_ap (P,) -> (R, K) sorted reference rows of the negatives.
PickRows = Callable[[Work, Panel, Tensor], Tensor]


def semihard_rows(work: Work, panel: Panel, squared_P: Tensor) -> Tensor:
    """The nearest negative farther than the positive, or the farthest: as `one_negative.pick_semihard`."""
    rows = panel.rows
    bound_RK = panel.padded(squared_P, torch.inf) + work.slack()[rows, None]
    dist_RN = work.distances(rows).masked_fill_(work.same(rows), torch.inf)
    dist_RN, column_RN = dist_RN.sort(1)
    place_RK = torch.searchsorted(dist_RN, bound_RK, right=True)
    return column_RN.gather(1, torch.minimum(place_RK, work.last_M[rows, None]))


def drawn_rows(dimensions: int, square: float, generator: torch.Generator) -> PickRows:
    """Draws by the inverse density of distances, as `one_negative.pick_by_distance`: where a random number falls in
    the running sum of the weights."""

    def pick(work: Work, panel: Panel, squared_P: Tensor) -> Tensor:
        dist_RN = work.distances(panel.rows).clamp_(0.25 / square, 2.0 / square)
        log_weight_RN = torch.xlogy((2 - dimensions) / 2, dist_RN)  # a factor of all weights changes nothing
        log_weight_RN += torch.special.xlog1py((3 - dimensions) / 2, dist_RN.mul_(-square / 4))
        log_weight_RN.masked_fill_(work.same(panel.rows), -torch.inf)
        below_RN = torch.softmax(log_weight_RN, 1, dtype=torch.float64).cumsum_(1)
        drawn_RK = below_RN.new_empty(len(below_RN), panel.K)
        drawn_RK.uniform_(
            0, 1 - 2.0**-30, generator=generator
        )  # below the last sum, which rounding moves from 1
        return torch.searchsorted(below_RN, drawn_RK, right=True)

    return pick


# Numbers of the size of a distance that a sweep holds, each of 8 bytes.
ENTRIES = 6


def one_negative(given: Given, rule: Rule, pick: PickRows, budget_mib: float, *, entries: int) -> TripletSums:
    """Semihard, or distance-weighted: every anchor and positive with one negative. With 0
    `entries`, in the dtype in which the rows came; with more in float64."""
    dtype = given.y_ND.dtype
    work = Work(given.double() if entries else given, budget_mib, entries=entries)
    valid = sum(work.order.prefix)
    paid = []
    for panel in work.panels:
        x_PD, away_PD, squared_P = work.to_positives(panel)
        n_P = panel.flat(pick(work, panel, squared_P))
        triplets = (panel.anchor_P, panel.at_P, n_P)
        paid.append(_pay(work, rule, triplets, x_PD, away_PD, squared_P, valid))
    return work.sums(_of_picked(work, paid, valid), dtype)


def nearest_rows(work: Work, rows: slice) -> Tensor:
    """The nearest negative (R,) of some anchors."""
    return work.distances(rows).masked_fill_(work.same(rows), torch.inf).argmin(1)


def hardest(
    given: Given,
    rule: Rule,
    budget_mib: float,
    nearest: Callable[[Work, slice], Tensor],
    *,
    entries: int,
) -> TripletSums:
    """Batch-hard: the farthest positive and the nearest negative of every anchor that has both; `entries` as in
    `one_negative`."""
    dtype = given.y_ND.dtype
    work = Work(given.double() if entries else given, budget_mib, entries=entries)
    valid = work.order.prefix[0] if work.order.prefix else 0
    paid = []
    for panel in work.panels:
        n = work.order.having(0, panel.rows)
        rows = slice(panel.rows.start, panel.rows.start + n)
        *_, squared_P = work.to_positives(panel)
        farthest = panel.padded(squared_P, -torch.inf)[:n].max(1)
        p_R = panel.padded(panel.at_P, 0)[:n].gather(1, farthest.indices[:, None])[:, 0]
        n_R = nearest(work, rows)
        anchor_R = torch.arange(rows.start, rows.stop, device=n_R.device)
        away_RD = work.x_MD[rows] - work.y_ND.index_select(0, p_R)
        triplets = (anchor_R, p_R, n_R)
        paid.append(_pay(work, rule, triplets, work.x_MD[rows], away_RD, farthest.values, valid))
    return work.sums(_of_picked(work, paid, valid), dtype)


class _Paid(NamedTuple):
    """T triplets, what each costs, and its distances."""

    rows_3T: tuple[Tensor, Tensor, Tensor]  # sorted anchors, reference rows of positives and of negatives
    value_T: Tensor
    cost_T: Tensor  # without its weight
    d_ap_T: Tensor
    d_an_T: Tensor
    weight_T: Tensor | None


def _pay(
    work: Work,
    rule: Rule,
    triplets: tuple[Tensor, Tensor, Tensor],
    x_TD: Tensor,
    to_p_TD: Tensor,
    squared_ap_T: Tensor,
    valid: int,
) -> _Paid:
    """Triplets by direct difference, which is known of the positives, x - p; their gradient is added."""
    anchor_T, p_T, n_T = triplets
    to_n_TD = x_TD - work.y_ND.index_select(0, n_T)
    squared_an_T = torch.linalg.vecdot(to_n_TD, to_n_TD)
    d_ap_T, d_an_T = rule.distance(squared_ap_T), rule.distance(squared_an_T)
    value_T, slope_T = rule.loss_and_slope(d_ap_T - d_an_T)
    cost_T = value_T
    weight_T, scale = None, (1 if rule.root else 2) / max(valid, 1)
    if work.weight_M is not None:
        weight_T, scale = work.weight_M.index_select(0, anchor_T), 1 if rule.root else 2  # divided later
        slope_T, value_T = slope_T * weight_T, value_T * weight_T
    slope_T = slope_T * scale
    for away_TD, d_T in ((to_p_TD, d_ap_T), (to_n_TD, d_an_T)):
        # equal rows: a huge number times a difference of 0
        factor_T = slope_T / d_T.clamp_min(torch.finfo(d_T.dtype).tiny) if rule.root else slope_T
        away_TD *= factor_T[:, None]
    add_rows(work.gradient(), anchor_T, to_p_TD - to_n_TD)
    add_rows(work.gradient(reference=True), p_T, to_p_TD.neg_())
    add_rows(work.gradient(reference=True), n_T, to_n_TD)
    return _Paid(triplets, value_T, cost_T, d_ap_T, d_an_T, weight_T)


def _of_picked(work: Work, paid: list[_Paid], valid: int) -> TripletSums:
    weight: Tensor | int = valid
    if len(paid) == 1 and work.weight_M is None:
        loss = paid[0].value_T.mean()
    elif work.weight_M is None:
        loss = total_of([one.value_T.sum() for one in paid], work.y_ND) / max(valid, 1)
    else:
        loss = total_of([one.value_T.sum() for one in paid], work.y_ND)
        weight = total_of(
            [one.weight_T.sum(dtype=torch.float64) for one in paid if one.weight_T is not None], work.y_ND
        )
    parts, listed = partial(_picked_parts, paid, work.y_ND), partial(_listed, work.order, paid)
    unknown = work.y_ND.new_empty(0)
    return TripletSums(loss, weight, valid, parts, unknown, unknown, listed)


def _picked_parts(paid: list[_Paid], like: Tensor) -> tuple[Tensor, ...]:
    if not paid:
        return (like.new_zeros(1),) * 4
    value_T, cost_T, d_ap_T, d_an_T = (torch.cat([one[i] for one in paid]) for i in (1, 2, 3, 4))  # type: ignore[misc]
    if paid[0].weight_T is not None:
        weight_T = torch.cat([one.weight_T for one in paid if one.weight_T is not None])
        d_ap_T, d_an_T = d_ap_T * weight_T, d_an_T * weight_T
    return value_T, (cost_T > 0).to(value_T.dtype), d_ap_T, d_an_T


def _listed(order: Order, paid: list[_Paid]) -> Tensor:
    """(T, 3) rows of anchor, positive and negative as they were handed in."""
    rows = [torch.stack(one.rows_3T) for one in paid]
    if not rows:
        return order.anchors_M.new_empty(0, 3)
    anchor_T, p_T, n_T = torch.cat(rows, 1)
    return torch.stack([order.anchors_M[anchor_T], order.reference_N[p_T], order.reference_N[n_T]], 1)
