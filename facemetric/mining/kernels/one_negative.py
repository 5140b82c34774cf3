"""Miners that keep one negative for an anchor, or for an (anchor, positive): pick it, then pay only for it.

In a tile the negatives are picked by comparing, never by gathering; the picked triplets are then computed
again by direct difference, which keeps every digit near zero.

Shapes: M anchors, N reference rows, D embedding, R and C rows and columns of a tile, n rows with a k-th
positive, T triplets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from facemetric.mining.kernels.common import Operands, Rule, Sums, add_rows
from facemetric.mining.order import Order
from facemetric.mining.tiles import budget_bytes, product_tiles, row_distance

# Two levels of minimum find an index in half the time of argmin, which does not vectorise on a CPU.
CHUNK = 32

# numpy's argmin is vectorised, but runs on one core: up to this many entries it is the fastest.
NUMPY_ENTRIES = 2**18

INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}


def argmin_rows(bits_RC: Tensor) -> Tensor:
    """Column (R,) of the minimum of each row; integers only, where it is fastest."""
    C = bits_RC.shape[1]
    if bits_RC.device.type == "cpu" and bits_RC.numel() <= NUMPY_ENTRIES:
        return torch.from_numpy(bits_RC.numpy().argmin(1))
    if C < 4 * CHUNK:
        return bits_RC.argmin(1)
    full = C - C % CHUNK
    best_RK = bits_RC[:, :full].unflatten(1, (-1, CHUNK)).amin(2)
    if full < C:  # the last chunk reaches back, so that all have one width
        best_RK = torch.cat([best_RK, bits_RC[:, C - CHUNK :].amin(1, keepdim=True)], 1)
    start_R1 = (best_RK.argmin(1, keepdim=True) * CHUNK).clamp_(max=C - CHUNK)
    at_R = bits_RC.gather(1, start_R1 + torch.arange(CHUNK, device=bits_RC.device)).argmin(1)
    return start_R1[:, 0] + at_R


def argmin_columns(bits_RC: Tensor) -> Tensor:
    """Row (C,) of the minimum of each column."""
    R, C = bits_RC.shape
    if R < 4 * CHUNK:
        return argmin_rows(bits_RC.T.contiguous())
    full = R - R % CHUNK
    best_KC = bits_RC[:full].unflatten(0, (-1, CHUNK)).amin(1)
    if full < R:
        best_KC = torch.cat([best_KC, bits_RC[R - CHUNK :].amin(0, keepdim=True)])
    start_C1 = (best_KC.T.contiguous().argmin(1, keepdim=True) * CHUNK).clamp_(max=R - CHUNK)
    step = torch.arange(CHUNK, device=bits_RC.device)
    at_C = bits_RC[start_C1 + step, torch.arange(C, device=step.device)[:, None]].argmin(1)
    return start_C1[:, 0] + at_C


# Operands, order, squared d_ap of the k-th positives (n,) for each k, budget -> sorted reference row of the
# negative, (n,) for each k.
Pick = Callable[[Operands, Order, list[Tensor], float], list[Tensor]]


def pick_semihard(ops: Operands, order: Order, squared_ap: list[Tensor], budget_mib: float) -> list[Tensor]:
    """For each (a, p) the nearest negative with d_an > d_ap; where there is none, the farthest negative.

    d_ap - d_an is negative exactly for those, and the bits of negative floats, read as integers, are below
    all others and grow with the distance from zero; among the others the smallest belongs to the farthest
    negative. So one subtraction and one integer minimum answer both. Source: Schroff et al. 2015,
    arXiv:1503.03832, section 3.2; the fallback as in TensorFlow Addons' triplet_semihard_loss.
    """
    return _sweep(ops, order, squared_ap, budget_mib, gap=True)


def pick_nearest(ops: Operands, order: Order, squared_ap: list[Tensor], budget_mib: float) -> list[Tensor]:
    """For each anchor the nearest negative. Source: Hermans et al. 2017, arXiv:1703.07737."""
    return _sweep(ops, order, squared_ap, budget_mib, gap=False)


def _sweep(
    ops: Operands, order: Order, squared_ap: list[Tensor], budget_mib: float, *, gap: bool
) -> list[Tensor]:
    """Reference row with the least bits of the distance, or of the `gap` d_ap - d_an.

    In a whole batch a tile above the diagonal is read along its rows and down its columns: half the product.
    """
    integer = INTEGER[ops.left_MD.dtype]
    best = [torch.full_like(d, torch.iinfo(integer).max, dtype=integer) for d in squared_ap]
    at = [torch.zeros_like(d, dtype=torch.int64) for d in squared_ap]
    n_rows = len(squared_ap[0]) if squared_ap else 0
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
            for k, d_ap in enumerate(squared_ap):
                if not (n := order.having(k, side)):
                    break
                mine = slice(side.start, side.start + n)
                part = dist_RC[:, :n] if down else dist_RC[:n]
                if gap:
                    d_ap_part = d_ap[mine] if down else d_ap[mine, None]
                    part = torch.sub(d_ap_part, part, out=scratch[: part.numel()].view(part.shape))
                bits = part.view(integer)
                where = (argmin_columns if down else argmin_rows)(bits)
                found = bits.gather(0, where[None])[0] if down else bits.gather(1, where[:, None])[:, 0]
                better = found < best[k][mine]
                best[k][mine] = torch.where(better, found, best[k][mine])
                at[k][mine] = torch.where(better, where + other.start, at[k][mine])
    return at


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
) -> Sums:
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
    total = ops.left_MD.new_zeros(4, dtype=torch.float64)  # loss, active, d_ap, d_an
    grad_MD = torch.zeros_like(ops.anchors_MD)
    grad_ND = grad_MD if order.whole else torch.zeros_like(ops.reference_ND)
    for p, n, squared in zip(at_p, at_n, squared_ap, strict=True):
        for top in range(0, len(p), step):
            part = slice(top, min(top + step, len(p)))
            triplets = (part, p[part], n[part], squared[part])
            total += _pay_triplets(ops, rule, *triplets, 1 / valid, grad_MD, grad_ND)
    return Sums(total[0] / max(valid, 1), valid, valid, total, grad_MD, grad_ND)


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


def _pay_triplets(
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
    squared_an_T = torch.linalg.vecdot(to_n_TD, to_n_TD)
    d_ap_T, d_an_T = rule.distance(squared_ap_T), rule.distance(squared_an_T)
    value_T, slope_T = rule.pay(d_ap_T - d_an_T)
    to_p_TD = x_TD - ops.reference_ND.index_select(0, p_T)
    to_p_TD *= rule.pull(slope_T, squared_ap_T, scale)[:, None]
    to_n_TD *= rule.pull(slope_T, squared_an_T, scale)[:, None]
    grad_MD[anchor] += to_p_TD
    grad_MD[anchor] -= to_n_TD
    add_rows(grad_ND, p_T, to_p_TD.neg_())
    add_rows(grad_ND, n_T, to_n_TD)
    return torch.stack([value_T, value_T > 0, d_ap_T, d_an_T]).sum(1, dtype=torch.float64)
