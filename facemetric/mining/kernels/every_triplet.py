"""Miners that weigh every triplet: batch-all, and any `select(d_ap, d_an) -> weight`.

In a tile of distances D and for each positive, comparing with the threshold t = d_ap + margin gives the
active triplets. Their row sums are dL/d(d_ap); added over the positives they are W, and -W is dL/d(d_an). So
loss = sum(t * count) - sum(D * W), and the gradient is a product of W with the embeddings: no triplet is
formed.

Shapes: M anchors, N reference rows, D embedding, E = D + 2, R and C rows and columns of one tile, n rows with
a k-th positive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from facemetric.errors import ConfigError
from facemetric.mining.kernels.common import FAR_AWAY, NEAR, Operands, Rule, TripletSums, add_rows
from facemetric.mining.order import Order
from facemetric.mining.tiles import budget_bytes, product_tiles, row_distance

Select = Callable[[Tensor, Tensor], Tensor]

# From this many positives an anchor, bounds are sorted and searched; below it, each is compared with the tile.
MANY_POSITIVES = 80
# Indices of so many triplets take 24 MiB; a batch of 4096 rows with 4 images an identity has 50 million triplets.
MOST_TRIPLETS = 2**20
# The first three levels of the search compare with all seven bounds: that costs less than three gathers.
COARSE_BOUNDS = 8
# Distances to search at a time on a CPU, so that temporaries stay in its cache; a GPU takes a whole tile.
SEARCH_BLOCK = 2**16


class _Positives(NamedTuple):
    """The k-th positives of the first anchors, for every k; one list entry each."""

    at: list[Tensor]  # (n,) sorted reference row
    squared: list[Tensor]  # (n,) squared d_ap
    bound: list[Tensor]  # (n,) squared d_an below which the triplet is active
    active: list[Tensor]  # (n,) active triplets, which is dL/d(d_ap)


class _Ladder(NamedTuple):
    """Of the m anchors with many positives: bounds in ascending order, -inf in front, L one below a power of two."""

    bound_mL: Tensor
    place_mK: Tensor  # where the bound of the k-th positive went
    below_mS: Tensor  # S = L + 1: negatives by how many bounds lie at or below their distance


def valid_triplets(order: Order) -> int:
    """How many (a, p, n) there are."""
    negatives = len(order.reference_N) - (order.runs[1] - order.runs[0])
    return sum(int(negatives[:n].sum()) for n in order.prefix)


def batch_all_sums(ops: Operands, order: Order, rule: Rule, budget_mib: float) -> TripletSums:
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
    count = partial(_count, order, positives, ladder := _ladder(order, positives))
    near = _NearPairs(ops, budget_mib) if rule.root and n_rows else None
    spare = ops.left_MD.new_empty(0)
    for rows, cols, dist_RC in walk:
        if not len(spare):
            spare = dist_RC.new_empty(2, dist_RC.numel())
        weight_RC, scratch_RC = (b[: dist_RC.numel()].view(dist_RC.shape) for b in spare)
        order.fill_same(dist_RC, rows, cols, FAR_AWAY[dist_RC.dtype])
        pairs = None if near is None else near.find(dist_RC, rows, cols)
        count(dist_RC, rows, weight_RC, scratch_RC, fresh=True, tally=True)
        if order.whole:
            # on the diagonal both sides are the same triplets: add their weights, count them once
            count(dist_RC.T, cols, weight_RC.T, scratch_RC.T, fresh=False, tally=rows != cols)
        if near is not None and pairs is not None:
            near.add(pairs, weight_RC, one_side=order.whole and rows == cols)
        _to_coefficient(weight_RC, dist_RC, rule)
        out_ME[rows].addmm_(weight_RC, ops.right_ND[cols])
        if not (order.whole and rows == cols):
            out_NE[cols].addmm_(weight_RC.T, anchor_side_ME[rows])
    sum_an = (ops.left_MD.double() * out_ME.double()).sum()
    if order.whole:  # both sides of every pair are in there
        sum_an *= 0.5
    if near is not None:
        sum_an += near.sum_an
    if ladder is not None:
        active_mK = ladder.below_mS.cumsum(1).gather(1, ladder.place_mK)
        for k, active_n in enumerate(positives.active):
            m = min(len(active_n), len(active_mK))
            active_n[:m] = active_mK[:m, k]
    active, sum_ap = sum_an.new_zeros(()), sum_an.new_zeros(())
    for squared, active_n in zip(positives.squared, positives.active, strict=True):
        active += active_n.sum(dtype=torch.float64)
        sum_ap += (rule.distance(squared).double() * active_n).sum()
    loss = sum_ap + rule.margin * active - sum_an
    grads = _gradients(ops, order, rule, out_ME, out_NE, positives, near)
    total = torch.stack([loss, active, sum_ap, sum_an])
    return TripletSums(loss, active, valid_triplets(order), total, *grads)


def _positives(ops: Operands, order: Order, rule: Rule) -> _Positives:
    every = slice(0, len(ops.left_MD))
    at = [order.positive(k, every) for k in range(len(order.prefix))]
    squared = [row_distance(ops.anchors_MD[: len(p)], ops.reference_ND.index_select(0, p)) for p in at]
    bound = [rule.squared_bound(d) for d in squared]
    if (
        ops.left_MD.dtype == torch.float64
    ):  # what is no nearer than rounding is a tie, and a tie is not active
        slack_M = ops.slack()
        bound = [b - slack_M[: len(b)] - 4 * torch.finfo(b.dtype).eps * b.abs() for b in bound]
    return _Positives(at, squared, bound, [torch.zeros_like(d) for d in squared])


def _count(
    order: Order,
    positives: _Positives,
    ladder: _Ladder | None,
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
        _climb(ladder, dist_RC[:many], slice(rows.start, cut), weight_RC[:many], fresh=fresh, tally=tally)
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


def _ladder(order: Order, positives: _Positives) -> _Ladder | None:
    K = len(order.prefix)
    if K < MANY_POSITIVES:
        return None
    m, length = order.prefix[MANY_POSITIVES - 1], 2 ** K.bit_length() - 1
    bound_mL = positives.bound[0].new_full((m, length), -torch.inf)
    for k, bound in enumerate(positives.bound):
        bound_mL[: len(bound), k] = bound[:m]
    bound_mL, from_mL = bound_mL.sort(1)
    place_mL = torch.empty_like(from_mL)
    place_mL.scatter_(1, from_mL, torch.arange(length, device=from_mL.device).expand_as(from_mL))
    return _Ladder(bound_mL, place_mL[:, :K], bound_mL.new_zeros(m, length + 1))


def _climb(
    ladder: _Ladder, dist_RC: Tensor, rows: slice, weight_RC: Tensor, *, fresh: bool, tally: bool
) -> None:
    """The same by a binary search of every distance among the bounds of its anchor."""
    step = max(SEARCH_BLOCK // dist_RC.shape[1], 1) if dist_RC.device.type == "cpu" else len(dist_RC)
    for top in range(0, len(dist_RC), step):
        part = slice(top, top + step)
        mine = slice(rows.start + top, min(rows.start + top + step, rows.stop))
        rank_RC = _rank(dist_RC[part].contiguous(), ladder.bound_mL[mine])
        if tally:
            ladder.below_mS[mine].scatter_add_(1, rank_RC.long(), rank_RC.new_ones(1, 1).expand_as(rank_RC))
        rank_RC.neg_().add_(ladder.bound_mL.shape[1])
        weight_RC[part] = rank_RC if fresh else weight_RC[part].add_(rank_RC)


def _rank(dist_RC: Tensor, bound_RL: Tensor) -> Tensor:
    """How many of its anchor's bounds lie at or below each distance, as floats: they convert fastest."""
    step = bound_RL.shape[1] + 1
    coarse = min(COARSE_BOUNDS, step)
    step //= coarse
    rank_RC, above_RC = torch.zeros_like(dist_RC), torch.empty_like(dist_RC)
    for bound_R in bound_RL[:, step - 1 :: step].unbind(1):
        rank_RC.add_(torch.le(bound_R[:, None], dist_RC, out=above_RC), alpha=step)
    while step > 1:
        step //= 2
        at_RC = above_RC.copy_(rank_RC).add_(step - 1).long()
        torch.gather(bound_RL, 1, at_RC, out=above_RC)
        rank_RC.add_(torch.le(above_RC, dist_RC, out=above_RC), alpha=step)
    return rank_RC


class _NearPairs:
    """Negatives nearer than a product can tell, for plain distances: by direct difference, one pair at a time.

    1 / d of a product's d would be noise, and the gradient of a collapsed network with it.
    """

    def __init__(self, ops: Operands, budget_mib: float) -> None:
        self.ops = ops
        self.limit_M = (ops.slack() * NEAR).clamp_(min=1000 * torch.finfo(ops.left_MD.dtype).tiny)
        self.most = float(self.limit_M.max()) if len(self.limit_M) else 0.0
        self.step = max(budget_bytes(budget_mib) // (4 * ops.reference_ND[:1].nbytes), 1)
        self.sum_an = ops.left_MD.new_zeros((), dtype=torch.float64)
        self.grad_MD: Tensor | None = None
        self.grad_ND: Tensor | None = None

    def find(self, dist_RC: Tensor, rows: slice, cols: slice) -> _Pairs | None:
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
        return _Pairs(i, j, anchor, other, squared)

    def add(self, pairs: _Pairs, weight_RC: Tensor, *, one_side: bool) -> None:
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


class _Pairs(NamedTuple):
    """P pairs: their places in a tile, their sorted anchors and reference rows, and their squared distances."""

    i: Tensor
    j: Tensor
    anchor: Tensor
    other: Tensor
    squared: Tensor


def weighted_sums(
    ops: Operands, order: Order, rule: Rule, select: Select | None, budget_mib: float
) -> TripletSums:
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
    near = _NearPairs(ops, budget_mib) if rule.root and n_rows else None
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
            slope_nN, sums = _weigh(d_ap_n1, d_an_RN[:n], rule, select, order, anchor)
            total += sums
            positives.active[k][anchor] = slope_nN.sum(1)
            weight_RN[:n] += slope_nN
        if near is not None and pairs is not None:
            near.add(pairs, weight_RN, one_side=False)
        _to_coefficient(weight_RN, dist_RN, rule)
        out_ME[rows].addmm_(weight_RN, ops.right_ND)
        out_NE.addmm_(weight_RN.T, anchor_side_ME[rows])
    loss, weight, active, sum_ap, sum_an = total
    grads = _gradients(ops, order, rule, out_ME, out_NE, positives, near)
    total = torch.stack([loss, active, sum_ap, sum_an])
    return TripletSums(loss, weight, valid_triplets(order), total, *grads)


def _settle_ties(
    ops: Operands, order: Order, positives: _Positives, slack_M: Tensor, dist_RN: Tensor, rows: slice
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
    d_ap_n1: Tensor, d_an_nN: Tensor, rule: Rule, select: Select | None, order: Order, anchor: slice
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
    weight_n = chosen_nN.sum(1, dtype=torch.float64)
    active = (value_nN > 0).sum(dtype=torch.float64)
    sum_ap = (weight_n * d_ap_n1[:, 0]).sum()
    loss, weight = value_nN.sum(dtype=torch.float64), weight_n.sum()
    chosen_nN *= d_an_nN
    return slope_nN, torch.stack([loss, weight, active, sum_ap, chosen_nN.sum(dtype=torch.float64)])


class _Panel(NamedTuple):
    """Some anchors and one positive of each, against the whole reference."""

    anchor: slice
    at_p: Tensor  # (n,) sorted reference row
    loss_nN: Tensor  # of each triplet, times its weight; 0 where there is none
    chosen_nN: Tensor  # which count: with a loss above 0, or with a weight


def _panels(
    ops: Operands, order: Order, rule: Rule, select: Select | None, budget_mib: float
) -> Iterator[_Panel]:
    positives, slack_M = _positives(ops, order, rule), ops.slack()
    n_rows = order.prefix[0] if order.prefix else 0
    near = _NearPairs(ops, budget_mib) if rule.root and n_rows else None
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
                order.fill_same(loss_nN, anchor, cols, 0)
                chosen_nN = loss_nN > 0
            else:
                chosen_nN = dist_RN[:n] < positives.bound[k][anchor, None]
                loss_nN *= chosen_nN
            yield _Panel(anchor, positives.at[k][anchor], loss_nN, chosen_nN)


def anchor_sums(ops: Operands, order: Order, rule: Rule, select: Select | None, budget_mib: float) -> Tensor:
    """What the triplets of each sorted anchor (M,) cost together, in float64."""
    loss_M = ops.left_MD.new_zeros(len(ops.left_MD), dtype=torch.float64)
    for panel in _panels(ops, order, rule, select, budget_mib):
        loss_M[panel.anchor] += panel.loss_nN.sum(1, dtype=torch.float64)
    return loss_M


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


def _to_coefficient(weight_RC: Tensor, dist_RC: Tensor, rule: Rule) -> None:
    """Turns dL/d(d_an) into the factor of (x - y), but for the 2 of squared distances; uses both tiles up."""
    if rule.root:  # near pairs have no weight here, and 0 times infinity would be NaN
        weight_RC *= dist_RC.clamp_(min=torch.finfo(dist_RC.dtype).tiny).rsqrt_()


def _gradients(
    ops: Operands,
    order: Order,
    rule: Rule,
    out_ME: Tensor,
    out_NE: Tensor,
    positives: _Positives,
    near: _NearPairs | None,
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
