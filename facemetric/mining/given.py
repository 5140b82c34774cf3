"""Triplets and pairs of your own: the loss of each, with the exact gradient, in memory that grows as the rows.

    mined = batch_hard(embeddings, labels)
    loss = (triplet_losses(embeddings, mined.triplets) * importance).mean()

Shapes: B rows, D embedding, T triplets, P pairs, n of them at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from facemetric.errors import ConfigError, DataError
from facemetric.mining.kernels.common import Rule, add_rows
from facemetric.mining.known_gradient import DifferentiatedOnce
from facemetric.mining.mine import CPU_MINING_MIB, Margin, make_rule
from facemetric.mining.rows import check_rows, compute_rows
from facemetric.mining.tiles import CUDA_BUDGET_MIB, MIB, row_distance
from facemetric.mining.uncompiled import uncompiled


@uncompiled
def triplet_losses(
    embeddings_BD: Tensor, triplets_T3: Tensor, *, margin: Margin = 0.2, distance: str = "squared"
) -> Tensor:
    """max(0, d_ap - d_an + margin) of each triplet (T,): rows of anchor, positive and negative in `embeddings`.

    embeddings (B, D) floating, half precision computed in float32; triplets (T, 3) integers of 0..B - 1, as
    `Mined.triplets` gives them: a miner's loss is their sum divided by its `weight`. Weigh the losses, add them up by
    anchor, or take their mean. margin and distance as in `batch_all`.
    Errors: DataError for another shape, or a row that is not in the batch; ConfigError for options.
    """
    rule = make_rule(margin, distance)
    rows_T3 = _check_rows_named(triplets_T3, embeddings_BD, 3, "triplets")
    with torch.autocast(embeddings_BD.device.type, enabled=False):
        rows_BD = compute_rows(embeddings_BD, distance)
        check_rows(rows_BD, "embeddings")
        gap_T = _Distances.apply(rows_BD, rows_T3[:, :2], rule) - _Distances.apply(
            rows_BD, rows_T3[:, ::2], rule
        )
        return torch.nn.functional.softplus(gap_T) if rule.soft else (gap_T + rule.margin).clamp_min(0)


@uncompiled
def pair_losses(
    embeddings_BD: Tensor,
    pairs_P2: Tensor,
    genuine_P: Tensor,
    *,
    margin: float = 1.0,
    distance: str = "squared",
) -> Tensor:
    """The contrastive loss of each pair (P,): d of a genuine one, max(0, margin - d) of an impostor pair.

    pairs (P, 2) are rows of `embeddings` (B, D), genuine (P,) booleans. With distance "squared" a genuine pair costs
    d^2 as in the source, an impostor pair max(0, margin - d^2).
    Errors: as in `triplet_losses`; ConfigError for margin "soft". Source: Hadsell et al. 2006, CVPR.
    """
    rule = make_rule(margin, distance)
    if rule.soft:
        raise ConfigError("margin is 'soft', the loss of pairs needs a number: 1.0 suits unit rows")
    rows_P2 = _check_rows_named(pairs_P2, embeddings_BD, 2, "pairs")
    if genuine_P.shape != rows_P2.shape[:1] or genuine_P.dtype != torch.bool:
        raise DataError(
            f"genuine is {tuple(genuine_P.shape)} of {genuine_P.dtype}, needed is one boolean a pair: "
            f"({len(rows_P2)},)"
        )
    with torch.autocast(embeddings_BD.device.type, enabled=False):
        rows_BD = compute_rows(embeddings_BD, distance)
        check_rows(rows_BD, "embeddings")
        d_P = _Distances.apply(rows_BD, rows_P2, rule)
        return torch.where(genuine_P.to(d_P.device), d_P, (rule.margin - d_P).clamp_min(0))


class _Distances(torch.autograd.Function):
    """Distance (P,) of paired rows; differences are formed some at a time, forward and again backward."""

    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor, pairs_P2: Tensor, rule: Rule) -> Tensor:
        ctx.save_for_backward(rows_BD, pairs_P2)
        ctx.rule = rule
        squared = [row_distance(rows_BD[a], rows_BD[b]) for a, b in _some(rows_BD, pairs_P2)]
        return rule.distance(torch.cat(squared))

    @staticmethod
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor | None, ...]:
        rows_BD, pairs_P2 = ctx.saved_tensors
        with torch.no_grad():
            grad_BD = _gradient(rows_BD, pairs_P2, grad_P, ctx.rule)
        if torch.is_grad_enabled():  # a graph of the gradient is asked for
            grad_BD = DifferentiatedOnce.apply(grad_BD, rows_BD, None)
        return grad_BD, None, None


def _gradient(rows_BD: Tensor, pairs_P2: Tensor, grad_P: Tensor, rule: Rule) -> Tensor:
    grad_BD, top = torch.zeros_like(rows_BD), 0
    for a, b in _some(rows_BD, pairs_P2):
        away_nD = rows_BD[a] - rows_BD[b]
        squared_n = torch.linalg.vecdot(away_nD, away_nD)
        away_nD *= rule.gradient_weight(grad_P[top : top + len(a)], squared_n)[:, None]
        add_rows(grad_BD, a, away_nD)
        add_rows(grad_BD, b, away_nD.neg_())
        top += len(a)
    return grad_BD


def _some(rows_BD: Tensor, pairs_P2: Tensor) -> list[tuple[Tensor, ...]]:
    mib = CPU_MINING_MIB if rows_BD.device.type == "cpu" else CUDA_BUDGET_MIB
    step = max(int(mib * MIB) // (4 * max(rows_BD.shape[1], 1) * rows_BD.element_size()), 1)
    return [part.unbind(1) for part in pairs_P2.split(step)]


def _check_rows_named(rows: Tensor, embeddings_BD: Tensor, width: int, what: str) -> Tensor:
    if embeddings_BD.dim() != 2:
        raise DataError(f"embeddings are {tuple(embeddings_BD.shape)}, needed are (B, D)")
    if rows.dim() != 2 or rows.shape[1] != width or rows.dtype.is_floating_point or rows.dtype == torch.bool:
        raise DataError(
            f"{what} are {tuple(rows.shape)} of {rows.dtype}, needed are ({what[0].upper()}, {width}) integers: "
            "rows of the embeddings"
        )
    rows = rows.to(embeddings_BD.device, torch.int64)
    if len(rows):
        low, high = (int(v) for v in rows.aminmax())
        if low < 0 or high >= len(embeddings_BD):
            raise DataError(
                f"{what} name row {low if low < 0 else high}, the embeddings have rows 0 to {len(embeddings_BD) - 1}"
            )
    return rows
