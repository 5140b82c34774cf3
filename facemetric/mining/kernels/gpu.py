"""The sweeps over all pairs as one kernel launch each, for CUDA: distances live in registers and are never stored.

A program owns a block of rows and goes through all columns. What it keeps of them is a number or two a row and positive
(in memory that is its own, so nothing is added atomically and the same bits come every time), or the gradient's row.
Written in Triton; `choice.py` says when they serve. What is around the sweeps is that of `panels.py`.

Shapes: M anchors, N reference rows, R anchors of a panel, K positives of the one with most, P pairs.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from facemetric.mining.kernels import choice
from facemetric.mining.kernels.common import NEAR, Rule, TripletSums
from facemetric.mining.kernels.panels import Given, Panel, Work
from facemetric.mining.kernels.panels_every_triplet import Sums, finish
from facemetric.mining.kernels.panels_one_negative import PickRows
from facemetric.mining.kernels.settle import UNSURE, UNSURE_NEAR

if TYPE_CHECKING:
    from types import ModuleType

# Rows, columns and columns of the operands that a program looks at together; WIDTH: columns of the gradient it holds.
SIZES: dict[str, dict[str, int]] = {
    "pick": {"BLOCK": 64, "COLUMNS": 64, "CHUNK": 32, "num_warps": 4},
    "settle": {"COLUMNS": 32, "CHUNK": 32, "num_warps": 1},
    "draw": {"BLOCK": 32, "COLUMNS": 64, "CHUNK": 32, "num_warps": 4},
    "weigh": {"BLOCK": 32, "COLUMNS": 32, "CHUNK": 32, "WIDTH": 128, "num_warps": 4},
}
CAP = 8  # negatives of a pair whose distance rounding cannot tell from the positive's: more, and all are looked at
ENTRIES = 0  # as `panels_one_negative.ENTRIES`: no distance is held
MOST = torch.iinfo(torch.int32).max


@functools.cache
def _kernels() -> ModuleType:
    """The kernels, compiled when they are first used."""
    from facemetric.mining.kernels import gpu_kernels

    return gpu_kernels


def _grid(kernel: str, rows: int) -> tuple[int]:
    return (_kernels().blocks(rows, SIZES[kernel]["BLOCK"]),)


def _sides(work: Work) -> tuple[Tensor, ...]:
    return work.centred_MD, work.centred_ND, work.square_M, work.square_N


def semihard_rows(work: Work, panel: Panel, squared_P: Tensor) -> Tensor:
    """As `panels_one_negative.semihard_rows`: two launches."""
    slack_M = work.slack()
    slack_R1 = UNSURE * slack_M[panel.rows, None]
    squared_RK = panel.padded(squared_P, torch.inf)
    low_RK, high_RK = squared_RK - slack_R1, squared_RK + slack_R1
    return _pick(work, panel.rows, low_RK, high_RK, panel.padded(panel.at_P, 0), slack_M, gap=True)


def nearest_rows(work: Work, rows: slice) -> Tensor:
    """The nearest negative (R,) of some anchors: two launches."""
    none_R1 = work.square_M[rows, None]
    at_p_R1 = work.order.self_M[rows, None]
    return _pick(work, rows, none_R1, none_R1, at_p_R1, work.slack(), gap=False)[:, 0]


def _pick(
    work: Work, rows: slice, low_RK: Tensor, high_RK: Tensor, at_p_RK: Tensor, slack_M: Tensor, *, gap: bool
) -> Tensor:
    precision, (R, K) = choice.picking_precision(), low_RK.shape
    lists = gap and precision == "ieee"
    best_RK = torch.full((R, K), MOST, dtype=torch.int32, device=low_RK.device)
    at_RK, n_listed_RK = torch.zeros_like(best_RK), torch.zeros_like(best_RK)
    listed = best_RK.new_empty((R, K, CAP) if lists else 1)
    order, D, N = work.order, work.y_ND.shape[1], len(work.y_ND)
    runs, found = (order.start_M, order.count_M), (best_RK, at_RK, listed, n_listed_RK)
    low_RK, high_RK = low_RK.contiguous(), high_RK.contiguous()
    flags: dict[str, Any] = {"GAP": gap, "LIST": lists, "CAP": CAP, "PRECISION": precision}
    sizes = (rows.start, R, N, D, K)
    _kernels().pick[_grid("pick", R)](
        *_sides(work), *runs, low_RK, high_RK, *found, *sizes, **flags, **SIZES["pick"]
    )
    if precision == "ieee":
        near_M, at_p_RK = slack_M * UNSURE_NEAR, at_p_RK.contiguous()
        _kernels().settle[(R * K,)](
            work.x_MD, work.y_ND, *runs, at_p_RK, best_RK, high_RK, near_M, at_RK, listed, n_listed_RK,
            rows.start, N, D, K, GAP=gap, CAP=CAP, **SIZES["settle"],
        )  # fmt: skip
    return at_RK.long()


def drawn_rows(dimensions: int, square: float, generator: torch.Generator) -> PickRows:
    """As `panels_one_negative.drawn_rows`: one launch, which walks over the distances three times."""

    def pick(work: Work, panel: Panel, squared_P: Tensor) -> Tensor:
        R, K = panel.rows.stop - panel.rows.start, panel.K
        drawn_RK = torch.empty(R, K, dtype=torch.float64, device=squared_P.device)
        drawn_RK.uniform_(0, 1 - 2.0**-30, generator=generator)  # below the sum, however it is rounded
        at_RK = torch.zeros(R, K, dtype=torch.int32, device=squared_P.device)
        order, D, N = work.order, work.y_ND.shape[1], len(work.y_ND)
        shape = (0.25 / square, 2.0 / square, (2 - dimensions) / 2, (3 - dimensions) / 2, square / 4)
        _kernels().draw[_grid("draw", R)](
            *_sides(work), order.start_M, order.count_M, drawn_RK, at_RK, panel.rows.start, R, N, D, K, *shape,
            PRECISION=choice.picking_precision(), **SIZES["draw"],
        )  # fmt: skip
        return at_RK.long()

    return pick


def every_triplet(given: Given, rule: Rule, budget_mib: float) -> TripletSums:
    """Batch-all, hinge or soft: one launch where the anchors are the reference, two where they are not."""
    work = Work(given, budget_mib, entries=0)
    M, K = len(work.x_MD), len(work.order.prefix)
    d_ap_MK = work.x_MD.new_full((M, max(K, 1)), -torch.inf)
    bound_MK = d_ap_MK if rule.soft else d_ap_MK.clone()
    for panel in work.panels:
        *_, squared_P = work.to_positives(panel)
        d_ap_MK[panel.rows, : panel.K] = panel.padded(rule.distance(squared_P), -torch.inf)
        if not rule.soft:
            bound_MK[panel.rows, : panel.K] = panel.padded(rule.squared_bound(squared_P), -torch.inf)
    active_MK, loss_M, row_sum_M = _weigh(work, rule, d_ap_MK, bound_MK)
    sums = []
    for panel in work.panels:
        _, away_PD, squared_P = work.to_positives(panel)
        counted_P = slope_P = panel.flat(active_MK[panel.rows, : panel.K])
        loss_R = loss_M[panel.rows]
        if work.weight_M is not None:
            slope_P = counted_P * work.weight_M.index_select(0, panel.anchor_P)
            loss_R = loss_R * work.weight_M[panel.rows]
        work.pull(panel, away_PD, rule.gradient_weight(slope_P, squared_P))
        sums.append(Sums.of_panel(work, rule, panel, loss_R, counted_P, squared_P, row_sum_M[panel.rows]))
    return finish(work, rule, sums, given.y_ND.dtype)


def _weigh(work: Work, rule: Rule, d_ap_MK: Tensor, bound_MK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Active triplets, or slopes added up, of each pair; losses of anchors and sums of their distances to negatives;
    and the gradient of the negatives, which is left in `work`."""
    order, K = work.order, d_ap_MK.shape[1]
    weight_M = torch.ones_like(work.square_M) if work.weight_M is None else work.weight_M
    limit_M = torch.zeros_like(work.square_M)
    if rule.root:
        limit_M = (work.slack() * NEAR).clamp_(min=1000 * torch.finfo(torch.float32).tiny)
    active_MK = torch.zeros_like(d_ap_MK)
    loss_M = work.square_M.new_zeros(len(work.square_M), dtype=torch.float64)
    row_sum_M = torch.zeros_like(loss_M)
    anchors = (work.centred_MD, work.square_M, work.x_MD)
    reference = (work.centred_ND, work.square_N, work.y_ND)
    known = (d_ap_MK, bound_MK, weight_M, limit_M, order.start_M, order.count_M, active_MK, loss_M, row_sum_M)

    def run(rows: tuple[Tensor, ...], columns: tuple[Tensor, ...], *, own: bool, down: bool) -> Tensor:
        out_RD, D = torch.empty_like(rows[0]), rows[0].shape[1]
        grid = (*_grid("weigh", len(out_RD)), max(_kernels().blocks(D, SIZES["weigh"]["WIDTH"]), 1))
        _kernels().weigh[grid](
            rows[0], columns[0], rows[1], columns[1], rows[2], columns[2], *known, out_RD,
            len(out_RD), len(columns[0]), K, D, rule.margin,
            OWN=own, DOWN=down, ROOT=rule.root, SOFT=rule.soft, **SIZES["weigh"],
        )  # fmt: skip
        return out_RD if rule.root else out_RD.mul_(2)

    if order.whole:
        work.grad_MD = run(anchors, anchors, own=True, down=True)
    else:
        work.grad_MD = run(anchors, reference, own=True, down=False)
        work.grad_ND = run(reference, anchors, own=False, down=True)
    return active_MK, loss_M, row_sum_M
