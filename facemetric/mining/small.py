"""The same three miners for a batch of a few hundred rows, where calls cost more than arithmetic.

Nothing is sorted or tiled: the N x N distances and, for all and semihard, one row of N for each of the T
pairs of one label are formed at once. The coefficients of x_i - x_j in the gradient make one matrix.

Shapes: N rows of the batch, D embedding, T pairs (anchor, positive).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from facemetric.mining.sparse import FAR, INTEGER, Rule, Sums, argmin_rows

# Above this many rows, or entries of a T x N table, the sorted and tiled miners are as fast.
SMALL_ROWS = 256
SMALL_TABLE = {"all": 2**15, "semihard": 2**18}
# What this way may take at most; where the caller states a smaller budget, tiles it is.
SMALL_MIB = 8.0


class _Table(NamedTuple):
    rows_ND: Tensor  # centred
    same_NN: Tensor  # one label, the row itself included
    dist_NN: Tensor  # squared


def _table(rows_ND: Tensor, labels_N: Tensor) -> _Table:
    rows_ND = rows_ND - rows_ND.mean(0)
    square_N = torch.linalg.vecdot(rows_ND, rows_ND)
    dist_NN = torch.addmm(square_N, rows_ND, rows_ND.T, alpha=-2).add_(square_N[:, None])
    return _Table(rows_ND, labels_N[:, None] == labels_N, dist_NN)


def _pairs(table: _Table, limit: int) -> tuple[Tensor, Tensor] | None:
    """Anchor and positive (T,) of every pair, by anchor; None where another way is needed."""
    pairs_T2 = table.same_NN.clone().fill_diagonal_(False).nonzero()
    N, T = len(table.same_NN), len(pairs_T2)
    entries = T * N
    if T in (0, N * (N - 1)) or entries > limit:
        return None
    return pairs_T2[:, 0].contiguous(), pairs_T2[:, 1].contiguous()


def small_all(rows_ND: Tensor, labels_N: Tensor, rule: Rule) -> Sums | None:
    """`batch_all_sums` of a small batch; None where it has no pair, one class, or too many pairs."""
    table = _table(rows_ND, labels_N)
    if rule.soft or (pairs := _pairs(table, SMALL_TABLE["all"])) is None:
        return None
    a_T, p_T = pairs
    squared_ap_T = _squared(table, a_T, p_T)
    dist_NN = table.dist_NN.masked_fill_(table.same_NN, FAR)
    active_TN = (dist_NN.index_select(0, a_T) < rule.squared_bound(squared_ap_T)[:, None]).to(dist_NN.dtype)
    count_T = active_TN.sum(1)
    of_anchor_NT = (torch.arange(len(dist_NN), device=a_T.device)[:, None] == a_T).to(dist_NN.dtype)
    weight_NN = of_anchor_NT @ active_TN
    # as a triplet's negative, in the loss and in the gradient
    slope_NN = rule.slope(dist_NN)
    sum_an = (weight_NN * rule.distance(dist_NN.clamp_(min=0))).sum(dtype=torch.float64)
    pull_NN = slope_NN.mul_(weight_NN).neg_()
    pull_NN[a_T, p_T] = count_T * rule.slope(squared_ap_T)
    sum_ap = (rule.distance(squared_ap_T).double() * count_T).sum()
    active = count_T.sum(dtype=torch.float64)
    negatives_N = len(dist_NN) - table.same_NN.sum(1)
    valid = int(negatives_N.index_select(0, a_T).sum())
    loss = sum_ap + rule.margin * active - sum_an
    return _sums(table, pull_NN, torch.stack([loss, active, sum_ap, sum_an]), valid, weight=active)


def small_semihard(rows_ND: Tensor, labels_N: Tensor, rule: Rule) -> Sums | None:
    """`pick_semihard` and its loss, of a small batch; None as in `small_all`."""
    table = _table(rows_ND, labels_N)
    if (pairs := _pairs(table, SMALL_TABLE["semihard"])) is None:
        return None
    a_T, p_T = pairs
    squared_ap_T = _squared(table, a_T, p_T)
    dist_NN = table.dist_NN.masked_fill_(table.same_NN, -torch.inf)
    gap_TN = squared_ap_T[:, None] - dist_NN.index_select(0, a_T)
    n_T = gap_TN.view(INTEGER[gap_TN.dtype]).min(1).indices  # see pick_semihard
    return _pay(table, rule, a_T, p_T, n_T)


def small_hard(rows_ND: Tensor, labels_N: Tensor, rule: Rule) -> Sums | None:
    """`pick_nearest`, the farthest positive and their loss, of a small batch; None as in `small_all`."""
    if len(labels_N) < 2:
        return None
    table = _table(rows_ND, labels_N)
    fewest, most = torch.aminmax(table.same_NN.sum(1))
    if int(fewest) < 2 or int(most) == len(labels_N):
        return None  # some anchors have no triplet
    same_NN = table.same_NN.to(rows_ND.dtype)  # sums are faster than masks
    p_N = torch.sub(table.dist_NN.fill_diagonal_(-1), 1 - same_NN, alpha=FAR).argmax(1)
    n_N = argmin_rows(table.dist_NN.add_(same_NN, alpha=FAR).view(INTEGER[rows_ND.dtype]))[1]
    return _pay(table, rule, None, p_N, n_N)


def _squared(table: _Table, a_T: Tensor, b_T: Tensor) -> Tensor:
    """Squared distance (T,) by direct difference."""
    apart_TD = table.rows_ND.index_select(0, a_T).sub_(table.rows_ND.index_select(0, b_T))
    return torch.linalg.vecdot(apart_TD, apart_TD)


def _pay(table: _Table, rule: Rule, a_T: Tensor | None, p_T: Tensor, n_T: Tensor) -> Sums:
    """The record for triplets; `a_T` None for one of each row, in order."""
    T = len(p_T)
    x_TD = table.rows_ND if a_T is None else table.rows_ND.index_select(0, a_T)
    ends_2T = torch.cat([p_T, n_T])
    apart_2TD = x_TD - table.rows_ND.index_select(0, ends_2T).view(2, T, -1)
    squared_2T = torch.linalg.vecdot(apart_2TD, apart_2TD)
    distance_2T = rule.distance(squared_2T)
    value_T, slope_T = rule.pay(distance_2T[0] - distance_2T[1])
    signed_2T = rule.slope(squared_2T) * slope_T
    signed_2T[1].neg_()
    pull_NN = torch.zeros_like(table.dist_NN)
    if a_T is None:
        pull_NN.scatter_add_(1, ends_2T.view(2, T).T, signed_2T.T)
    else:
        pull_NN.index_put_((a_T.repeat(2), ends_2T), signed_2T.view(-1), accumulate=True)
    sums = torch.cat([value_T[None], (value_T > 0)[None], distance_2T]).sum(1, dtype=torch.float64)
    return _sums(table, pull_NN, sums, T, weight=torch.full_like(sums[0], T))


def _sums(table: _Table, pull_NN: Tensor, sums: Tensor, valid: int, *, weight: Tensor) -> Sums:
    """The record, with sum_j P_ij (x_i - x_j) for both ends of every pair as the gradient."""
    both_NN = pull_NN + pull_NN.T
    grad_ND = torch.addmm(table.rows_ND * both_NN.sum(1, keepdim=True), both_NN, table.rows_ND, alpha=-1)
    loss, active, sum_ap, sum_an = sums.unbind()
    return Sums(loss, weight, active, valid, sum_ap, sum_an, grad_ND, grad_ND)
