"""The same three miners for a batch of some hundred rows, where calls cost more than arithmetic.

Nothing is sorted or tiled: the N x N distances are formed at once, and the rows of one label are found on the
host. The fewest calls win here, not the fewest operations.

Each returns None where tiles are to do it: too many positives, a batch without triplets, or numbers that are not
finite, which all of its rows show in the loss.

Shapes: N rows of the batch, D embedding, K positives of the row with most of them, k triplets an anchor.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from facemetric.mining.kernels.argmin import INTEGER, argmin_rows
from facemetric.mining.kernels.common import FAR_AWAY, NEAR, Rule, TripletSums, add_rows, slack
from facemetric.mining.kernels.settle import (
    FEW_NUMBERS,
    UNSURE,
    UNSURE_NEAR,
    choose_directly,
    choose_in_float64,
)
from facemetric.mining.order import sortable
from facemetric.mining.tiles import row_distance

# Above this many rows the sorted and tiled miners are as fast.
SMALL_ROWS = 512
# Up to this many, masks of the whole matrix cost less than finding out who shares a label.
MASK_ROWS = 256
# Numbers in the differences of all rows from all their positives; above it memory would be the caller's worry.
SMALL_NUMBERS = 2**20
# What this way may take at most; where the caller states a smaller budget, tiles it is.
SMALL_MIB = 24.0


class Positives(NamedTuple):
    """Who shares a label with whom; a row with fewer than K positives is filled up with rows of its label."""

    at_KN: Tensor  # row of each positive
    absent_KN: Tensor | None  # which entries are filling, None where none is
    anchors: int  # rows with a positive
    pairs: int  # (anchor, positive)
    triplets: int  # (anchor, positive, negative)


def find_positives(labels_N: Tensor, dimensions: int) -> Positives | None:
    """None where no row has a positive, or none a negative, or differences would be more than a few."""
    labels = sortable(labels_N.detach()).cpu().numpy()
    N = len(labels)
    row_N = labels.argsort(kind="stable")
    ordered = labels[row_N]
    edges = (ordered[1:] != ordered[:-1]).nonzero()[0]
    bounds = np.empty(len(edges) + 2, dtype=np.int64)
    bounds[0], bounds[1:-1], bounds[-1] = -1, edges, N - 1
    count = bounds[1:] - bounds[:-1]
    K = int(count.max()) - 1
    if not 0 < K * N * dimensions <= SMALL_NUMBERS or not len(edges):
        return None
    start_N, count_N = (bounds[:-1] + 1).repeat(count), count.repeat(count)
    step_K1 = np.arange(1, K + 1)[:, None]
    next_KN = np.arange(N) - start_N + step_K1  # once around the rows of one label
    next_KN %= count_N
    next_KN += start_N
    at_KN = np.empty_like(next_KN)
    at_KN[:, row_N] = row_N[next_KN]
    anchors, pairs, triplets = N, N * K, N * K * (N - 1 - K)
    absent_KN = None
    if len(count) * (K + 1) > N:
        anchors, pairs = N - int((count == 1).sum()), int(count @ (count - 1))
        triplets = int((count * (count - 1)) @ (N - count))
        absent = np.empty((K, N), dtype=bool)
        absent[:, row_N] = step_K1 >= count_N
        absent_KN = torch.from_numpy(absent).to(labels_N.device)
    return Positives(torch.from_numpy(at_KN).to(labels_N.device), absent_KN, anchors, pairs, triplets)


class _Pairwise(NamedTuple):
    """All pairs of a batch in one matrix."""

    centred_ND: Tensor  # for the sake of digits
    dist_NN: Tensor  # squared
    square_N: Tensor  # squared lengths of the centred rows

    def slack(self) -> Tensor:
        """Bound (N,) of the error of the distances."""
        return slack(self.square_N, self.square_N, self.centred_ND.shape[1])


def _pairwise(rows_ND: Tensor) -> _Pairwise:
    centred_ND = rows_ND - rows_ND.mean(0)
    square_N = torch.linalg.vecdot(centred_ND, centred_ND)
    dist_NN = torch.addmm(square_N, centred_ND, centred_ND.T, alpha=-2).add_(square_N[:, None])
    return _Pairwise(centred_ND, dist_NN, square_N)


def _squared_ap(rows_ND: Tensor, near: Positives) -> Tensor:
    """Squared d_ap (K, N) by direct difference."""
    to_KND = rows_ND.index_select(0, near.at_KN.view(-1)).view(*near.at_KN.shape, -1).sub_(rows_ND)
    return torch.linalg.vecdot(to_KND, to_KND)


def _fill_same(dist_NN: Tensor, near: Positives, value: float) -> None:
    dist_NN.scatter_(1, near.at_KN.T, value).fill_diagonal_(value)


def small_all(
    rows_ND: Tensor, labels_N: Tensor, rule: Rule, weight_N: Tensor | None = None
) -> TripletSums | None:
    """`batch_all_sums` of a small batch; None where tiles are to do it, a soft margin among them."""
    if rule.soft or (near := find_positives(labels_N, rows_ND.shape[1])) is None:
        return None
    pairwise = _pairwise(rows_ND)
    centred_ND, dist_NN, _ = pairwise
    far_away = FAR_AWAY[rows_ND.dtype]
    _fill_same(dist_NN, near, far_away)
    if rule.root and bool((dist_NN < NEAR * pairwise.slack()[:, None]).any()):
        return None
    squared_KN = _squared_ap(rows_ND, near)
    bound_KN = rule.squared_bound(squared_KN)
    if not float(bound_KN.amax()) < far_away * 0.1:  # the filling would be a negative; tiles name the row
        return None
    if rows_ND.dtype == torch.float64:  # what is no nearer than rounding is a tie, and a tie is not active
        bound_KN -= pairwise.slack() + 4 * torch.finfo(bound_KN.dtype).eps * bound_KN.abs()
    if near.absent_KN is not None:
        bound_KN.masked_fill_(near.absent_KN, -torch.inf)
    count_KN = torch.empty_like(bound_KN)
    weight_NN = torch.zeros_like(dist_NN)
    active_NN = torch.empty_like(dist_NN)
    for bound_N, count_N in zip(bound_KN, count_KN, strict=True):
        torch.lt(dist_NN, bound_N[:, None], out=active_NN)
        torch.sum(active_NN, 1, out=count_N)
        weight_NN += active_NN
    active = None if weight_N is None else count_KN.sum(dtype=torch.float64)
    if weight_N is not None:
        count_KN *= weight_N
        weight_NN *= weight_N[:, None]
    # as a triplet's negative, in the loss and in the gradient
    d_an_NN = rule.distance(dist_NN.clamp_(min=0))
    d_ap_KN = rule.distance(squared_KN)
    rows_3N = torch.stack(
        [
            torch.linalg.vecdot(count_KN, d_ap_KN, dim=0),
            count_KN.sum(0),
            torch.linalg.vecdot(weight_NN, d_an_NN),
        ]
    )
    sum_ap, weight, sum_an = rows_3N.sum(1, dtype=torch.float64).unbind()
    loss = sum_ap + rule.margin * weight - sum_an
    if not math.isfinite(loss):
        return None
    total = torch.stack([loss, weight if active is None else active, sum_ap, sum_an])
    pull_NN = rule.gradient_weight(weight_NN, dist_NN).neg_()
    pull_NN.scatter_add_(1, near.at_KN.T, rule.gradient_weight(count_KN, squared_KN).T)  # filling adds 0
    both_NN = pull_NN + pull_NN.T
    grad_ND = torch.addmm(centred_ND * both_NN.sum(1, keepdim=True), both_NN, centred_ND, alpha=-1)
    return TripletSums(loss, weight, near.triplets, total, grad_ND, grad_ND)


def small_semihard(
    rows_ND: Tensor, labels_N: Tensor, rule: Rule, weight_N: Tensor | None = None
) -> TripletSums | None:
    """`pick_semihard` and its loss, of a small batch."""
    if (near := find_positives(labels_N, rows_ND.shape[1])) is None:
        return None
    pairwise = _pairwise(rows_ND)
    dist_NN, slack_N = pairwise.dist_NN, pairwise.slack()
    _fill_same(dist_NN, near, -torch.inf)
    squared_KN = _squared_ap(rows_ND, near)
    exact = rows_ND.dtype == torch.float64
    bound_KN = squared_KN + slack_N if exact else squared_KN - UNSURE * slack_N  # see pick_semihard
    gap_NN = torch.empty_like(dist_NN)
    bits_NN = gap_NN.view(INTEGER[gap_NN.dtype])
    picked = []
    for bound_N in bound_KN:
        torch.sub(bound_N[:, None], dist_NN, out=gap_NN)
        picked.append(argmin_rows(bits_NN))
    n_KN = torch.stack(picked)
    if not exact:
        doubtful_KN = dist_NN.gather(1, n_KN.T).T.sub_(squared_KN).abs_() <= UNSURE * slack_N
        if bool(doubtful_KN.any()):
            _settle(rows_ND, near, doubtful_KN, n_KN)
    ends = torch.cat([near.at_KN.view(-1), n_KN.view(-1)])
    chosen = _Chosen(ends, near.pairs, near.absent_KN)
    return _triplets(rows_ND, rule, chosen, pairwise.square_N, weight_N)


def _settle(rows_ND: Tensor, near: Positives, doubtful_KN: Tensor, n_KN: Tensor) -> None:
    """Chooses the doubtful negatives again, in float64."""
    t = doubtful_KN.reshape(-1).nonzero()[:, 0]
    a, p_T = t % len(rows_ND), near.at_KN.view(-1)[t]
    x_TD, same_TK = rows_ND[a], torch.cat([a[None], near.at_KN[:, a]]).T
    if len(t) * rows_ND.numel() <= FEW_NUMBERS:
        n_KN.view(-1)[t] = choose_directly(x_TD, rows_ND, p_T, same_TK)
        return
    x_TD = x_TD.double()
    squared_T = row_distance(x_TD, rows_ND[p_T].double())
    n_KN.view(-1)[t] = choose_in_float64(x_TD, rows_ND, squared_T, same_TK, SMALL_MIB)


def small_hard(
    rows_ND: Tensor, labels_N: Tensor, rule: Rule, weight_N: Tensor | None = None
) -> TripletSums | None:
    """`pick_nearest`, the farthest positive and their loss, of a small batch."""
    if len(labels_N) <= MASK_ROWS:
        return _hard_by_masks(rows_ND, labels_N, rule, weight_N)
    if (near := find_positives(labels_N, rows_ND.shape[1])) is None:
        return None
    pairwise = _pairwise(rows_ND)
    dist_NN = pairwise.dist_NN
    found_NK = dist_NN.gather(1, near.at_KN.T)
    if near.absent_KN is not None:
        found_NK.masked_fill_(near.absent_KN.T, -torch.inf)
    p_N = near.at_KN.gather(0, found_NK.argmax(1)[None])[0]
    _fill_same(dist_NN, near, torch.inf)
    n_N = argmin_rows(dist_NN.view(INTEGER[dist_NN.dtype]))
    absent_N = None if near.absent_KN is None else near.absent_KN[0]
    chosen = _Chosen(torch.cat([p_N, n_N]), near.anchors, absent_N)
    return _triplets(rows_ND, rule, chosen, pairwise.square_N, weight_N)


def _hard_by_masks(
    rows_ND: Tensor, labels_N: Tensor, rule: Rule, weight_N: Tensor | None
) -> TripletSums | None:
    """Fewer calls, more work; None where a row has no triplet, or a number is not finite."""
    N = len(rows_ND)
    centred_ND = rows_ND - rows_ND[0]  # the mean would win more digits, but for one more call
    square_N = torch.linalg.vecdot(centred_ND, centred_ND)
    dist_NN = torch.addmm(square_N, centred_ND, centred_ND.T, alpha=-2).fill_diagonal_(-torch.inf)
    same_NN = labels_N.unsqueeze(1) == labels_N
    d_ap_N, p_N = torch.where(same_NN, dist_NN, -torch.inf).max(1)
    d_an_N, n_N = torch.where(same_NN, torch.inf, dist_NN).min(1)
    gap_N = d_ap_N - d_an_N  # |x|^2 is missing in both
    if not math.isfinite(gap_N.sum()):
        return None
    ends = torch.cat([p_N, n_N])
    # a root would turn an error of 1e-7 into 3e-4; at the hinge it would decide
    if rule.root or rule.can_tie() or weight_N is not None:
        return _triplets(rows_ND, rule, _Chosen(ends, N), square_N, weight_N)
    value_N, slope_N = rule.loss_and_slope(gap_N)
    away_2ND = rows_ND.index_select(0, ends).view(2, N, -1).sub_(rows_ND)
    grad_ND = _gradient(away_2ND, rule.gradient_weight(slope_N, square_N, 1 / N), ends)
    parts = partial(_mask_parts, value_N, d_ap_N, d_an_N, square_N)
    return TripletSums(value_N.mean(), N, N, parts, grad_ND, grad_ND, partial(_listed, N, ends, None))


def _mask_parts(value_N: Tensor, d_ap_N: Tensor, d_an_N: Tensor, square_N: Tensor) -> tuple[Tensor, ...]:
    return value_N, value_N.sign(), d_ap_N + square_N, d_an_N + square_N


class _Chosen(NamedTuple):
    """k triplets of each anchor, but for those absent."""

    ends: Tensor  # rows of k N positives, then of k N negatives
    valid: int  # triplets that are not absent
    absent_T: Tensor | None = None


def _triplets(
    rows_ND: Tensor, rule: Rule, chosen: _Chosen, square_N: Tensor, weight_N: Tensor | None
) -> TripletSums | None:
    """The record for these triplets; None where plain distances are so small that rounding chose them."""
    ends, valid, absent_T = chosen
    N, D = rows_ND.shape
    k = len(ends) // (2 * N)
    away_2kND = rows_ND.index_select(0, ends).view(2, k, N, D).sub_(rows_ND)
    squared_2kN = torch.linalg.vecdot(away_2kND, away_2kND)
    if rule.root and rows_ND.dtype == torch.float32:
        near_2kN = squared_2kN <= UNSURE_NEAR * slack(square_N, square_N, D)
        if bool((near_2kN if absent_T is None else near_2kN & ~absent_T.view(k, N)).any()):
            return None
    distance_2kN = rule.distance(squared_2kN)
    value_kN, slope_kN = rule.loss_and_slope(torch.sub(*distance_2kN))
    terms_4kN = torch.cat([value_kN[None], value_kN.sign()[None], distance_2kN])
    if absent_T is not None:
        absent_kN = absent_T.view(k, N)
        slope_kN.masked_fill_(absent_kN, 0)
        terms_4kN.masked_fill_(absent_kN, 0)
    weight: Tensor | int = valid
    if weight_N is not None:
        slope_kN *= weight_N
        terms_4kN[[0, 2, 3]] *= weight_N
        weight_kN = weight_N.expand(k, N)
        weight_kN = weight_kN if absent_T is None else weight_kN.masked_fill(absent_kN, 0)
        weight = weight_kN.sum(dtype=torch.float64)
    total_4 = terms_4kN.sum((1, 2), dtype=torch.float64)
    if not math.isfinite(total_4[0]):
        return None
    divisor = 1 if isinstance(weight, Tensor) else valid  # a sum of weights divides later
    grad_ND = _gradient(away_2kND, rule.gradient_weight(slope_kN, squared_2kN, 1 / divisor), ends)
    listed = partial(_listed, N, ends, absent_T)
    return TripletSums(total_4[0] / divisor, weight, valid, total_4, grad_ND, grad_ND, listed)


def _listed(n_rows: int, ends: Tensor, absent_T: Tensor | None) -> Tensor:
    """(T, 3) rows of anchor, positive and negative; `ends` are k N positives, then negatives."""
    positive_T, negative_T = ends.view(2, -1)
    triplets_T3 = torch.stack(
        [torch.arange(len(positive_T), device=ends.device) % n_rows, positive_T, negative_T], 1
    )
    return triplets_T3 if absent_T is None else triplets_T3[~absent_T.view(-1)]


def _gradient(away: Tensor, coefficient: Tensor, ends: Tensor) -> Tensor:
    """Gradient (N, D) of N or (k, N) triplets; uses up `away` (2, ..., N, D), positive and negative less anchor."""
    to_p, to_n = away.mul_(coefficient.unsqueeze(-1)).unbind()
    grad_ND = to_n - to_p
    if grad_ND.dim() > 2:
        grad_ND = grad_ND.sum(0)
    to_n.neg_()
    add_rows(grad_ND, ends, away.view(len(ends), -1))
    return grad_ND
