"""The miners on a GPU in plain torch: a call costs more than its work there, so that no loop goes over positives.

Anchors come in panels that fit the budget, a panel with all of its distances at once. batch-all searches each distance
among the bounds of its anchor, and counts them by where they fall; semihard sorts the distances of an anchor, and
searches its bounds among them; distance-weighted searches random numbers in the running sum of the weights. Nothing is
asked of the device between two panels. Where float32 could not tell (a choice, a plain distance), float64 does it all.

Shapes: M anchors, N reference rows, D embedding, R rows of a panel, K positives of the one with most, P of all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from facemetric.mining.kernels.common import FAR_AWAY, Rule, TripletSums, add_rows, row_dot, slack
from facemetric.mining.order import Order, upload
from facemetric.mining.tiles import budget_bytes

# Differences of pairs that are held at once: positive and negative, and a temporary.
DIFFERENCES = 3


class Given(NamedTuple):
    """Sorted rows as they came."""

    x_MD: Tensor
    y_ND: Tensor  # the same tensor where the anchors are the reference
    order: Order
    weight_M: Tensor | None = None

    def double(self) -> Given:
        """The same in float64."""
        y_ND = self.y_ND.double()
        x_MD = y_ND if self.order.whole else self.x_MD.double()
        return self._replace(
            x_MD=x_MD, y_ND=y_ND, weight_M=None if self.weight_M is None else self.weight_M.double()
        )


class Panel(NamedTuple):
    """Some anchors, and their pairs of anchor and positive."""

    rows: slice
    K: int
    anchor_P: Tensor  # sorted anchor
    at_P: Tensor  # sorted reference row of the positive
    slot_P: Tensor | None  # place in (R, K); None where every anchor has K positives

    def padded(self, values_P: Tensor, fill: float) -> Tensor:
        """(R, K), with `fill` where an anchor has no k-th positive."""
        R = self.rows.stop - self.rows.start
        if self.slot_P is None:
            return values_P.view(R, self.K)
        return values_P.new_full((R * self.K,), fill).index_copy_(0, self.slot_P, values_P).view(R, self.K)

    def flat(self, values_RK: Tensor) -> Tensor:
        """(P,) of (R, K)."""
        return (
            values_RK.reshape(-1)
            if self.slot_P is None
            else values_RK.reshape(-1).index_select(0, self.slot_P)
        )


class Work:
    """What the panels share: centred rows, squared lengths, and the gradient."""

    def __init__(self, given: Given, budget_mib: float, *, entries: int) -> None:
        self.given, self.order, self.budget = given, given.order, budget_bytes(budget_mib)
        self.x_MD, self.y_ND, self.weight_M = given.x_MD, given.y_ND, given.weight_M
        mean_D = self.y_ND.mean(0)
        self.centred_ND = self.y_ND - mean_D
        self.square_N = row_dot(self.centred_ND, self.centred_ND)
        self.centred_MD, self.square_M = self.centred_ND, self.square_N
        if not self.order.whole:
            self.centred_MD = self.x_MD - mean_D
            self.square_M = row_dot(self.centred_MD, self.centred_MD)
        self.grad_MD: Tensor | None = None
        self.grad_ND: Tensor | None = None  # the other side of them where the anchors are not the reference
        self.panels, self.group_N, self.last_M = self._cut(entries * self.y_ND.element_size())

    def _cut(self, entry: int) -> tuple[list[Panel], Tensor, Tensor]:
        """Panels of `entry` bytes for each distance; the label of each reference row, as the first row that has it;
        and the place of the last negative among an anchor's sorted distances."""
        order, N = self.order, len(self.y_ND)
        start, stop = order.runs
        count = stop - start
        positives = np.where(count < N, count - (order.own < N), 0)
        group = np.arange(N)
        if len(start):
            group[np.minimum(np.repeat(start, count) + _steps(count), N - 1)] = np.repeat(start, count)
        cost = N * entry + positives * (self.y_ND.shape[1] * self.y_ND.element_size() * DIFFERENCES)
        # a whole batch in one panel has its gradient in one product, rows without a positive among them
        tops, top, M = [], 0, len(start) if order.whole else (order.prefix[0] if order.prefix else 0)
        reach = np.cumsum(cost)
        while top < M and positives[top]:
            tops.append(top)
            spent = reach[top - 1] if top else 0
            top = max(int(np.searchsorted(reach, spent + self.budget, side="right")), top + 1)
        arrays = [group, np.maximum(N - 1 - count, 0)]
        slices = [slice(a, min(b, M)) for a, b in zip(tops, [*tops[1:], M], strict=True)] if tops else []
        for rows in slices:
            n, k = positives[rows], _steps(positives[rows])
            anchor = np.repeat(np.arange(rows.start, rows.stop), n)
            at = start[anchor] + k
            arrays += [anchor, at + (at >= order.own[anchor]), (anchor - rows.start) * int(n[0]) + k]
        group_N, last_M, *rest = upload(arrays, self.y_ND.device)
        made = []
        for i, rows in enumerate(slices):
            anchor_P, at_P, slot_P = rest[3 * i : 3 * i + 3]
            K = int(positives[rows.start])
            even = len(slot_P) == K * (rows.stop - rows.start)
            made.append(Panel(rows, K, anchor_P, at_P, None if even else slot_P))
        return made, group_N, last_M

    def distances(self, rows: slice) -> Tensor:
        """(R, N) squared, by a product."""
        dist_RN = torch.addmm(self.square_N, self.centred_MD[rows], self.centred_ND.T, alpha=-2)
        return dist_RN.add_(self.square_M[rows, None])

    def same(self, rows: slice) -> Tensor:
        """(R, N) booleans: which share a label, itself included."""
        return self.order.start_M[rows, None] == self.group_N

    def slack(self) -> Tensor:
        """Bound (M,) of the error of the distances."""
        return slack(self.square_M, self.square_N, self.y_ND.shape[1])

    def to_positives(self, panel: Panel) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors (P, D), their differences from their positives, and the squared lengths (P,) of these."""
        x_PD = self.x_MD.index_select(0, panel.anchor_P)
        away_PD = x_PD - self.y_ND.index_select(0, panel.at_P)
        return x_PD, away_PD, torch.linalg.vecdot(away_PD, away_PD)

    def pull(self, panel: Panel, away_PD: Tensor, coefficient_P: Tensor) -> None:
        """The gradient of positives: coefficient * (x - p)."""
        away_PD *= coefficient_P[:, None]
        add_rows(self.gradient(), panel.anchor_P, away_PD)
        add_rows(self.gradient(reference=True), panel.at_P, away_PD.neg_())

    def place(self, panel: Panel, values_RN: Tensor, values_P: Tensor) -> None:
        """Writes numbers of pairs where they belong among all distances of a panel."""
        top = panel.rows.start
        values_RN.index_put_((panel.anchor_P - top if top else panel.anchor_P, panel.at_P), values_P)

    def push(self, rows: slice, slope_RN: Tensor, factor: float) -> None:
        """The gradient of all distances of a panel, whose slopes are known: factor * sum_j S_ij (x_i - y_j)."""
        whole = self.order.whole and rows.stop - rows.start == len(self.y_ND)
        both_RN = slope_RN + slope_RN.T if whole else slope_RN
        grad_RD = _towards(both_RN, self.centred_MD[rows], self.centred_ND, factor)
        if whole:
            self.grad_MD = grad_RD
            return
        self.gradient()[rows] += grad_RD
        self.gradient(reference=True).add_(
            _towards(slope_RN.T, self.centred_ND, self.centred_MD[rows], factor)
        )

    def gradient(self, *, reference: bool = False) -> Tensor:
        """Where the gradient of anchors is added up, or of the `reference` rows."""
        if self.grad_MD is None:
            self.grad_MD = torch.zeros_like(self.x_MD)
        if not reference or self.order.whole:
            return self.grad_MD
        if self.grad_ND is None:
            self.grad_ND = torch.zeros_like(self.y_ND)
        return self.grad_ND

    def sums(self, found: TripletSums, dtype: torch.dtype) -> TripletSums:
        """A record with the gradient, in the dtype in which the rows came."""
        grad_MD = self.gradient().to(dtype)
        grad_ND = grad_MD if self.order.whole else self.gradient(reference=True).to(dtype)
        return found._replace(grad_MD=grad_MD, grad_ND=grad_ND)


def _towards(slope_RN: Tensor, x_RD: Tensor, y_ND: Tensor, factor: float) -> Tensor:
    """factor * sum_j S_ij (x_i - y_j)."""
    return torch.addmm(slope_RN.sum(1)[:, None] * x_RD, slope_RN, y_ND, beta=factor, alpha=-factor)


def _steps(count: np.ndarray) -> np.ndarray:
    """0, 1, ..., n - 1 for each n of `count`, one after the other."""
    return np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)


# --- every triplet


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
    valid, loss = _valid(work), _total([s.loss for s in sums], work.y_ND)
    weight: Tensor | int = valid
    if divided:
        loss = loss / max(valid, 1)
    else:
        weight = _total([s.weight() for s in sums], work.y_ND)
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


def _total(parts: list[Tensor], like: Tensor) -> Tensor:
    return (
        torch.stack(parts).sum()
        if len(parts) > 1
        else parts[0]
        if parts
        else like.new_zeros((), dtype=torch.float64)
    )


# --- one negative for each anchor and positive

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
SWEPT = 6


def one_negative(
    given: Given, rule: Rule, pick: PickRows, budget_mib: float, *, entries: int = SWEPT
) -> TripletSums:
    """Semihard, or distance-weighted: every anchor and positive with one negative. Without `entries`, in the dtype in
    which the rows came; with them in float64."""
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
    nearest: Callable[[Work, slice], Tensor] = nearest_rows,
    *,
    entries: int = SWEPT,
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
        loss = _total([one.value_T.sum() for one in paid], work.y_ND) / max(valid, 1)
    else:
        loss = _total([one.value_T.sum() for one in paid], work.y_ND)
        weight = _total(
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
