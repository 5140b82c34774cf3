"""Miners that keep one negative for an anchor, or for an (anchor, positive): pick it, then pay only for it.

A panel is a tile as wide as the reference. In it the negatives are picked by comparing, never by gathering;
the picked triplets are then computed again by direct difference, which keeps every digit near zero.

Shapes: M anchors, N reference rows, D embedding, R rows of a panel, T picked triplets.
"""

# ruff: noqa: N815  shape suffixes name the fields too

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from facemetric.mining.order import Order, Pairs
from facemetric.mining.tiles import product_tiles, row_distance

# Two levels of minimum find an index in half the time of argmin, which does not vectorise on a CPU.
CHUNK = 64

INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


class Operands(NamedTuple):
    """`left @ right.T` is the matrix of squared distances, in one product; columns of both below."""

    left_MD: Tensor  # [-2x, 1, |x|^2]
    right_ND: Tensor  # [y, |y|^2, 1]
    anchors_MD: Tensor  # x, centred as y is
    reference_ND: Tensor  # y, centred: distances do not change, digits are won where all rows are alike

    def anchor_side(self) -> Tensor:
        """[x, |x|^2, 1]: what `right_ND` is for the reference."""
        return torch.cat([self.anchors_MD, self.left_MD[:, -1:], self.left_MD[:, -2:-1]], 1)


def operands(anchors_MD: Tensor, reference_ND: Tensor | None, order: Order) -> Operands:
    """Sorts, centres and extends the rows; `reference_ND` None means that the anchors are the reference."""
    y_ND = (anchors_MD if reference_ND is None else reference_ND).index_select(0, order.reference_N)
    mean_D = y_ND.mean(0)
    y_ND = y_ND - mean_D
    x_MD = y_ND if reference_ND is None else anchors_MD.index_select(0, order.anchors_M) - mean_D
    y_sq_N1, ones_N1 = torch.linalg.vecdot(y_ND, y_ND)[:, None], y_ND.new_ones(len(y_ND), 1)
    x_sq_M1, ones_M1 = y_sq_N1, ones_N1
    if reference_ND is not None:
        x_sq_M1, ones_M1 = torch.linalg.vecdot(x_MD, x_MD)[:, None], x_MD.new_ones(len(x_MD), 1)
    right_ND = torch.cat([y_ND, y_sq_N1, ones_N1], 1)
    left_MD = torch.cat([x_MD * -2, ones_M1, x_sq_M1], 1)
    return Operands(left_MD, right_ND, x_MD, y_ND)


def argmin_rows(bits_RC: Tensor) -> Tensor:
    """Column (R,) of the minimum of each row; integers only, where it is fastest."""
    C = bits_RC.shape[1]
    if C < 4 * CHUNK:
        return bits_RC.min(1).indices
    full = C - C % CHUNK
    best_RK = bits_RC[:, :full].unflatten(1, (-1, CHUNK)).amin(2)
    if full < C:  # the last chunk reaches back, so that all have one width
        best_RK = torch.cat([best_RK, bits_RC[:, C - CHUNK :].amin(1, keepdim=True)], 1)
    start_R1 = (best_RK.argmin(1, keepdim=True) * CHUNK).clamp_(max=C - CHUNK)
    chunk_RK = bits_RC.gather(1, start_R1 + torch.arange(CHUNK, device=bits_RC.device))
    return start_R1[:, 0] + chunk_RK.min(1).indices


# Squared distances of a panel, its rows, scratch, order, squared d_ap of each k -> picked column of each k.
Pick = Callable[[Tensor, slice, Tensor, Order, list[Tensor]], list[Tensor]]


def pick_semihard(
    dist_RN: Tensor, rows: slice, scratch_RN: Tensor, order: Order, positive: list[Tensor]
) -> list[Tensor]:
    """For each (a, p) the nearest negative with d_an > d_ap; where there is none, the farthest negative.

    d_ap - d_an is negative exactly for those, and the bits of negative floats, read as integers, are below
    all others and grow with the distance from zero; among the others the smallest belongs to the farthest
    negative. So one subtraction and one integer minimum answer both. Source: Schroff et al. 2015,
    arXiv:1503.03832, section 3.2; the fallback as in TensorFlow Addons' triplet_semihard_loss.
    """
    order.fill_same(dist_RN, rows, slice(0, dist_RN.shape[1]), -torch.inf)
    picked = []
    for d_ap in positive:
        gap_nN = torch.sub(d_ap[:, None], dist_RN[: len(d_ap)], out=scratch_RN[: len(d_ap)])
        picked.append(argmin_rows(gap_nN.view(INTEGER[gap_nN.dtype])))
    return picked


def pick_nearest(
    dist_RN: Tensor, rows: slice, scratch_RN: Tensor, order: Order, positive: list[Tensor]
) -> list[Tensor]:
    """For each anchor the nearest negative. Source: Hermans et al. 2017, arXiv:1703.07737."""
    order.fill_same(dist_RN, rows, slice(0, dist_RN.shape[1]), torch.inf)
    return [argmin_rows(dist_RN.view(INTEGER[dist_RN.dtype]))]


def pick_by_distance(dimensions: int, square: float, generator: torch.Generator) -> Pick:
    """Draws one negative for each (a, p), weighed by the inverse density of distances on the unit sphere.

    q(d) = d^(D - 2) (1 - d^2 / 4)^((D - 3) / 2); the panel times `square` is d^2. The argmax of log weight
    plus Gumbel noise is a draw by weight. Source: Wu et al. 2017, arXiv:1706.07567, section 4.2.
    """

    def pick(
        dist_RN: Tensor, rows: slice, scratch_RN: Tensor, order: Order, positive: list[Tensor]
    ) -> list[Tensor]:
        square_RN = torch.mul(dist_RN, square, out=dist_RN).clamp_(0.25, 2.0)
        log_weight_RN = torch.log(square_RN, out=scratch_RN).mul_(-(dimensions - 2) / 2)
        log_weight_RN -= square_RN.mul_(-0.25).log1p_().mul_((dimensions - 3) / 2)
        order.fill_same(log_weight_RN, rows, slice(0, dist_RN.shape[1]), -torch.inf)
        picked = []
        for d_ap in positive:
            n = len(d_ap)
            noise_nN = dist_RN[:n].exponential_(generator=generator).clamp_(min=1e-30).log_()
            picked.append(torch.sub(log_weight_RN[:n], noise_nN, out=noise_nN).argmax(1))
        return picked

    return pick


# --- the loss of what was picked


class Rule(NamedTuple):
    """How a triplet is paid: hinge or soft margin, on squared or plain distances."""

    margin: float
    soft: bool
    root: bool  # plain Euclidean: the square root of the squared distance

    def distance(self, squared: Tensor) -> Tensor:
        return squared.sqrt() if self.root else squared

    def squared_bound(self, squared_ap: Tensor) -> Tensor:
        """A hinge is active exactly where the squared d_an is below this."""
        bound = self.distance(squared_ap) + self.margin
        return torch.where(bound > 0, bound * bound, -torch.inf) if self.root else bound

    def slope(self, squared: Tensor) -> Tensor:
        """Factor which turns x - y into the gradient of their distance: 2, or 1 / d (0 where d is noise)."""
        if not self.root:
            return torch.full_like(squared, 2.0)
        tiny = self.tiny(squared.dtype)
        return torch.where(squared > tiny * tiny, squared.clamp(min=tiny * tiny).rsqrt(), 0.0)

    @staticmethod
    def tiny(dtype: torch.dtype) -> float:
        """Plain distance below which 1 / d would magnify little but rounding."""
        return 1e-3 if dtype == torch.float32 else 1e-7

    def pay(self, gap: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and its slope for gap = d_ap - d_an."""
        if self.soft:
            return torch.nn.functional.softplus(gap), torch.sigmoid(gap)
        value = gap + self.margin
        return value.clamp(min=0), (value > 0).to(gap.dtype)


class Sums(NamedTuple):
    """What a miner adds up, float64 on the device, and the gradient of the summed loss in sorted order."""

    loss: Tensor
    weight: Tensor  # what the loss and the two distances are divided by
    active: Tensor
    valid: int
    d_ap: Tensor
    d_an: Tensor
    grad_MD: Tensor
    grad_ND: Tensor  # the same tensor where the anchors are the reference


def add_rows(grad_ND: Tensor, at_T: Tensor, rows_TD: Tensor) -> None:
    """grad[at] += rows, rows named twice counted twice, and the same bits every time."""
    if grad_ND.device.type == "cpu":
        grad_ND.index_add_(0, at_T, rows_TD)
    else:  # index_add_ is atomic there; this one sorts first
        grad_ND.index_put_((at_T,), rows_TD, accumulate=True)


def sparse_sums(
    ops: Operands, order: Order, rule: Rule, *, pick: Pick, farthest: bool, budget_mib: float
) -> Sums:
    """Sum of the loss over picked triplets; `farthest` keeps one positive an anchor, else every one."""
    total = ops.left_MD.new_zeros(4, dtype=torch.float64)  # loss, active, d_ap, d_an
    grad_MD = torch.zeros_like(ops.anchors_MD)
    grad_ND = grad_MD if order.whole else torch.zeros_like(ops.reference_ND)
    active_rows = order.prefix[0] if order.prefix else 0
    valid = active_rows if farthest else sum(order.prefix)
    walk = product_tiles(
        ops.left_MD[:active_rows], ops.right_ND, budget_mib=budget_mib, buffers=2, whole_rows=True
    )
    scratch = ops.left_MD.new_empty(0)
    for rows, _, dist_RN in walk:
        if not len(scratch):
            scratch = torch.empty_like(dist_RN)
        # a group of pairs takes no more room than a tile
        groups = order.pairs(rows, max(len(dist_RN), dist_RN.numel() // ops.left_MD.shape[1]))
        squared = [row_distance(*_ends(ops, rows, pairs)) for pairs in groups]
        if farthest:
            groups, squared = _farthest(groups, squared)
        d_ap = [part for pairs, d in zip(groups, squared, strict=True) for part in d.split(pairs.counts)]
        picked = pick(dist_RN, rows, scratch[: len(dist_RN)], order, d_ap)
        for pairs, squared_ap in zip(groups, squared, strict=True):
            at_n_T = torch.cat([picked.pop(0) for _ in pairs.counts])
            total += _pay_triplets(ops, rule, rows, pairs, at_n_T, squared_ap, (grad_MD, grad_ND))
    loss, active, sum_ap, sum_an = total
    return Sums(loss, torch.full_like(loss, valid), active, valid, sum_ap, sum_an, grad_MD, grad_ND)


def _ends(ops: Operands, rows: slice, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Embeddings (T, D) of the anchors and of their positives."""
    return ops.anchors_MD[rows].index_select(0, pairs.anchor_T), ops.reference_ND.index_select(0, pairs.row_T)


def _farthest(groups: list[Pairs], squared: list[Tensor]) -> tuple[list[Pairs], list[Tensor]]:
    """One positive for each anchor, as one group."""
    first = groups[0]
    at, best = first.row_T[: first.counts[0]].clone(), squared[0][: first.counts[0]].clone()
    for pairs, squared_T in zip(groups, squared, strict=True):
        for row, d in zip(pairs.row_T.split(pairs.counts), squared_T.split(pairs.counts), strict=True):
            farther = d > best[: len(d)]
            at[: len(d)] = torch.where(farther, row, at[: len(d)])
            best[: len(d)] = torch.where(farther, d, best[: len(d)])
    return [Pairs(first.anchor_T[: len(at)], at, [len(at)])], [best]


def _pay_triplets(
    ops: Operands,
    rule: Rule,
    rows: slice,
    pairs: Pairs,
    at_n_T: Tensor,
    squared_ap_T: Tensor,
    grads: tuple[Tensor, Tensor],
) -> Tensor:
    """Loss, active count and both distances of triplets, summed; their gradient is added to `grads`."""
    x_TD, to_p_TD = _ends(ops, rows, pairs)
    to_n_TD = x_TD - ops.reference_ND.index_select(0, at_n_T)
    torch.sub(x_TD, to_p_TD, out=to_p_TD)
    squared_an_T = torch.linalg.vecdot(to_n_TD, to_n_TD)
    d_ap_T, d_an_T = rule.distance(squared_ap_T), rule.distance(squared_an_T)
    value_T, slope_T = rule.pay(d_ap_T - d_an_T)
    to_p_TD *= (slope_T * rule.slope(squared_ap_T))[:, None]
    to_n_TD *= (slope_T * rule.slope(squared_an_T))[:, None]
    push_TD = torch.sub(to_p_TD, to_n_TD, out=x_TD)
    grad_MD, grad_ND = grads
    for part in push_TD.split(pairs.counts):
        grad_MD[rows.start : rows.start + len(part)] += part
    add_rows(grad_ND, pairs.row_T, to_p_TD.neg_())
    add_rows(grad_ND, at_n_T, to_n_TD)
    return torch.stack([value_T, value_T > 0, d_ap_T, d_an_T]).sum(1, dtype=torch.float64)
