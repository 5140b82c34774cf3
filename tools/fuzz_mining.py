"""Batches of ties, copies, collapse and extremes for every miner, each against a float64 twin.

    python tools/fuzz_mining.py --cases 20000 --seed 0

A batch is drawn (rows copied under one name and under others, whole numbers and grids where most distances are
shared, networks that collapse to a point or two, rows of length 1e-20 to 2.5e18, of many lengths, far from the origin,
zero rows; labels of all kinds), in float64, float32, float16 or bfloat16, and mined with a drawn miner, margin,
distance, budget and anchors. The twin holds every distance as a difference of rows in float64. Right is: its loss, its
number of active triplets, and its gradient where no tie leaves it open; or a DataError where rows are longer than the
miners say. Where a decision hangs on less than the batch's own rounding, both ways are right, and the case counts as
open.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor

from facemetric.errors import DataError
from facemetric.mining import MINERS

MINED = ("all", "semihard", "hard")
DTYPES = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 2e-5, torch.bfloat16: 2e-5}
LONGEST = {torch.float64: math.inf, torch.float16: math.inf, torch.float32: 5e17, torch.bfloat16: 5e17}
TIE = 1e-12  # relative: nearer than that is a tie, as float64 rounds
SPREADS = (1e-2, 1e-3, 1e-4, 1e-5)


class Case(NamedTuple):
    """A batch and how it is mined. `shared`: distances are shared on purpose."""

    kind: str
    rows: Tensor
    labels: Tensor
    miner: str
    margin: float | str
    distance: str
    budget_mib: float | None
    anchors: slice | None
    shared: bool


class Twin(NamedTuple):
    """Loss, active triplets, gradient; `open_loss` and `open_active`: by how much they may differ, where decisions
    hang on rounding; `tied`: which of several rows takes the gradient is open."""

    loss: float
    active: int
    grad: Tensor
    open_loss: float
    open_active: int
    tied: bool


def draw_rows(generator: torch.Generator) -> tuple[str, Tensor, bool]:
    """A kind of batch, its float64 rows, and whether distances are shared."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def pick(options: tuple) -> object:  # type: ignore[type-arg]
        return options[int(torch.randint(len(options), (1,), generator=generator))]

    def unit(rows: Tensor) -> Tensor:
        return torch.nn.functional.normalize(rows)

    count = int(pick((2, 3, 5, 9, 16, 24, 40)))  # type: ignore[call-overload]
    side = int(pick((1, 2, 3, 6, 17)))  # type: ignore[call-overload]
    kind = str(
        pick(("unit", "copies", "whole", "grid", "point", "points", "length", "lengths", "far", "zeros"))
    )
    rows = unit(normal(count, side))
    if kind == "copies":
        rows = rows[(normal(count).abs() * count / 4).long().clamp(max=count - 1)]
    elif kind == "whole":
        rows = (normal(count, side) * 1.5).round()
    elif kind == "grid":
        rows = (normal(count, side) * 2).round() / 4
    elif kind == "point":
        rows = unit(unit(normal(1, side)) + float(pick(SPREADS)) * normal(count, side))  # type: ignore[arg-type]
    elif kind == "points":
        ends = unit(normal(2, side))[(normal(count) > 0).long()]
        rows = unit(ends + float(pick(SPREADS)) * normal(count, side))  # type: ignore[arg-type]
    elif kind == "length":
        rows = rows * 10.0 ** float(pick((-20, -10, -7, -3, 3, 7, 10, 15, 17, 18, 18.4)))  # type: ignore[arg-type]
    elif kind == "lengths":
        rows = rows * 10 ** (normal(count, 1) * float(pick((0.3, 2))))  # type: ignore[arg-type]
    elif kind == "far":
        rows = normal(count, side) + 1000
    elif kind == "zeros":
        rows[:: int(pick((2, 5)))] = 0  # type: ignore[call-overload]
    return kind, rows, kind in ("copies", "whole", "grid", "zeros") or side == 1


def draw_case(seed: int) -> Case:
    """The case of a number."""
    generator = torch.Generator().manual_seed(seed)

    def pick(options: tuple) -> object:  # type: ignore[type-arg]
        return options[int(torch.randint(len(options), (1,), generator=generator))]

    kind, rows, shared = draw_rows(generator)
    dtype = pick((torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16))
    assert isinstance(dtype, torch.dtype)
    rows = rows.to(dtype)
    names = int(pick((1, 2, 3, 4, len(rows))))  # type: ignore[call-overload]
    labels = torch.randint(names, (len(rows),), generator=generator)
    anchors = pick((None, None, slice(0, len(rows) // 2 + 1), slice(1, None, 2)))
    return Case(
        kind,
        rows,
        labels,
        str(pick(MINED)),
        pick((0.0, 0.2, 0.2, 0.5, 1.0, -0.5, "soft")),  # type: ignore[arg-type]
        str(pick(("squared", "euclidean", "cosine"))),
        pick((None, None, 0.002, 0.05)),  # type: ignore[arg-type]
        anchors,  # type: ignore[arg-type]
        shared or dtype in (torch.float16, torch.bfloat16),
    )


def distances(rows_BD: Tensor, distance: str) -> Tensor:
    """(B, B), each from the difference of two rows."""
    if distance == "cosine":
        length_B1 = rows_BD.norm(dim=1, keepdim=True)
        rows_BD = rows_BD / torch.where(length_B1 > 0, length_B1, math.inf) * 0.5**0.5
    square_BB = (rows_BD[:, None] - rows_BD[None]).square().sum(2)
    if distance != "euclidean":
        return square_BB
    return torch.where(square_BB > 0, square_BB, 1.0).sqrt() * (square_BB > 0)


def twin(case: Case, slack: float) -> Twin:
    """The definition in float64. `slack`: how far a distance may be off, of the largest of its row."""
    y_BD = case.rows.double().clone().requires_grad_()
    scale = (
        float(y_BD.detach().norm(dim=1).max()) or 1.0
    )  # squares of 1e-20 are below what autograd divides by
    scale = 1.0 if case.distance == "cosine" or 1e-6 < scale < 1e6 else scale
    power = 2 if case.distance == "squared" else 1
    rows_BD = y_BD / scale
    margin: float | str = case.margin if isinstance(case.margin, str) else case.margin / scale**power
    if case.margin == "soft" and scale != 1.0:
        rows_BD, scale = y_BD, 1.0
    dist_BB = distances(rows_BD, case.distance)
    B, labels = len(y_BD), case.labels
    same_BB = labels[:, None] == labels[None]
    asked_B = torch.zeros(B, dtype=torch.bool)
    asked_B[case.anchors if case.anchors is not None else slice(None)] = True
    pair_BB = same_BB & ~torch.eye(B, dtype=torch.bool) & (~same_BB).any(1, keepdim=True) & asked_B[:, None]
    a, p = pair_BB.nonzero(as_tuple=True)
    d_BB = dist_BB.detach()
    reach_B = slack * (d_BB.amax(1) + (0 if case.distance != "cosine" else 1))
    open_choice, tied = torch.zeros(len(a), dtype=torch.bool), False
    if case.miner == "semihard":
        gap_PB = d_BB[a] - d_BB[a, p][:, None]
        tie_PB = TIE * (d_BB[a, p][:, None] + d_BB[a]) + (1e-14 if case.distance == "cosine" else 0)
        farther_PB = ~same_BB[a] & (gap_PB > tie_PB)
        near_PB = ~same_BB[a] & (gap_PB.abs() <= reach_B[a][:, None]) & (gap_PB.abs() > tie_PB)
        open_choice = near_PB.any(1)
        nearest = torch.where(farther_PB, d_BB[a], math.inf).argmin(1)
        farthest = torch.where(~same_BB[a], d_BB[a], -math.inf).argmax(1)
        n = torch.where(farther_PB.any(1), nearest, farthest)
    elif case.miner == "hard":
        a = pair_BB.any(1).nonzero()[:, 0]
        p = torch.where(pair_BB[a], d_BB[a], -math.inf).argmax(1)
        n = torch.where(~same_BB[a], d_BB[a], math.inf).argmin(1)
        open_choice = torch.zeros(len(a), dtype=torch.bool)
        for chosen, others in ((p, pair_BB), (n, ~same_BB)):
            close = others[a] & ((d_BB[a] - d_BB[a, chosen][:, None]).abs() <= reach_B[a][:, None])
            tied = tied or bool((close.sum(1) > 1).any())
    else:
        i, n = (~same_BB)[a].nonzero(as_tuple=True)
        a, p = a[i], p[i]
        open_choice = torch.zeros(len(a), dtype=torch.bool)
    if case.miner == "semihard":
        close = ~same_BB[a] & ((d_BB[a] - d_BB[a, n][:, None]).abs() <= reach_B[a][:, None])
        tied = bool((close.sum(1) > 1).any())
    return settle(case, y_BD, dist_BB, (a, p, n), margin, scale**power, (reach_B, open_choice, tied))


def settle(
    case: Case,
    y_BD: Tensor,
    dist_BB: Tensor,
    chosen: tuple[Tensor, Tensor, Tensor],
    margin: float | str,
    unit: float,
    doubt: tuple[Tensor, Tensor, bool],
) -> Twin:
    """Loss, gradient and what is open of chosen triplets; `margin` and distances are in `unit`s."""
    a, p, n = chosen
    reach_B, open_choice, tied = doubt
    gap_T = dist_BB[a, p] - dist_BB[a, n]
    zero = torch.zeros(len(y_BD), y_BD.shape[1], dtype=torch.float64)
    if not len(a):
        return Twin(0.0, 0, zero, 0.0, 0, tied)
    if isinstance(margin, str):
        value_T = torch.logaddexp(gap_T, gap_T * 0)
        active_T = torch.ones(len(a), dtype=torch.bool)
        edge_T = torch.zeros(len(a), dtype=torch.bool)
    else:
        value_T = (gap_T + margin).clamp(min=0)
        d_sum_T = (dist_BB[a, p] + dist_BB[a, n]).detach()
        active_T = (gap_T + margin).detach() > TIE * d_sum_T
        edge_T = ((gap_T + margin).detach().abs() <= reach_B[a]) & (d_sum_T > 0)
    weight_T = active_T.double() if case.miner == "all" else torch.ones(len(a), dtype=torch.float64)
    if not weight_T.sum():
        return Twin(0.0, 0, zero, float(reach_B.max()) * unit, int(edge_T.sum()), tied)
    loss = (value_T * weight_T).sum() / weight_T.sum() * unit
    (grad,) = torch.autograd.grad(loss, y_BD)
    spread = float(dist_BB.detach().max()) * unit
    # A choice that is open moves one triplet by as much as distances differ; an open edge the count of all.
    open_loss = float(open_choice.sum()) / float(weight_T.sum()) * spread
    if case.miner == "all":
        open_loss += loss.item() * int(edge_T.sum()) / max(1.0, float(weight_T.sum()) - int(edge_T.sum()))
    open_loss += float(reach_B.max()) * unit
    hinge = bool(edge_T.any()) or bool(open_choice.any())
    return Twin(loss.item(), int(active_T.sum()), grad, open_loss, int(edge_T.sum()), tied or hinge)


def check(case: Case) -> tuple[str, str]:
    """What is wrong with a case, "" where nothing is; and what was compared."""
    rows = case.rows.clone().requires_grad_()
    longest = float(case.rows.double().norm(dim=1).max())
    options = {"margin": case.margin, "distance": case.distance, "budget_mib": case.budget_mib}
    finite = bool(torch.isfinite(case.rows).all())
    try:
        mined = MINERS[case.miner](rows, case.labels, anchors=case.anchors, **options)
        mined.loss.backward()
    except DataError as error:
        if "\n" in str(error).strip():
            return f"an error of several lines: {error}", "refused"
        refusable = not finite or longest > 0.99 * LONGEST[case.rows.dtype] or case.distance == "cosine"
        return ("" if refusable else f"refused: {error}"), "refused"
    if not finite:
        return "rows that are not finite were not refused", "refused"
    assert rows.grad is not None
    grad, loss = rows.grad.double(), float(mined.loss.detach().double())
    tolerance = DTYPES[case.rows.dtype]
    expected = twin(case, 1e-6 if tolerance > 1e-6 else 1e-13)
    if expected.grad.abs().max() > 0.5 * torch.finfo(case.rows.dtype).max:
        return "", "too steep"  # for the dtype: rows of 1e-7 in float16, and a cosine
    if not math.isfinite(loss) or not torch.isfinite(grad).all():
        return f"loss {loss}, gradient finite: {bool(torch.isfinite(grad).all())}", "compared"
    if abs(loss - expected.loss) > tolerance * abs(expected.loss) + expected.open_loss:
        return f"loss {loss}, not {expected.loss} (+- {expected.open_loss})", "compared"
    active = int(mined.active)
    if case.margin != "soft" and case.miner == "all" and abs(active - expected.active) > expected.open_active:
        return f"{active} active, not {expected.active} (+- {expected.open_active})", "compared"
    if case.shared or expected.tied or case.kind in ("far", "lengths"):
        return "", "loss"
    if rows.dtype == torch.float32 and case.kind in ("point", "points"):
        tolerance = 0.3 if case.distance == "cosine" else 0.02  # of a spread of 1e-5 rows keep two digits
    off, size = float((grad - expected.grad).norm()), float(expected.grad.norm())
    floor = 1e-9 * (1.0 if case.distance == "cosine" and longest > 1 else max(longest, 1e-30))
    if off > max(5e-3 if rows.dtype == torch.float32 else 1e-6, tolerance) * size + floor:
        return f"gradient off by {off:.3g} of {size:.3g}", "gradient"
    return "", "gradient"


def main() -> None:
    """Run the campaign; status 1 where a miner and its twin differ."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began, wrong, seen = time.monotonic(), 0, Counter[str]()
    for number in range(given.cases):
        case = draw_case(given.seed * 1_000_003 + number)
        what, compared = check(case)
        seen[compared] += 1
        if what:
            wrong += 1
            shape, dtype = tuple(case.rows.shape), case.rows.dtype
            print(
                f"case {number}: {what}; {case.kind} {shape} {dtype}, {case.miner}, margin {case.margin}, "
                f"{case.distance}, budget {case.budget_mib}, anchors {case.anchors}",
                flush=True,
            )
    print(f"{given.cases:,} cases, {time.monotonic() - began:.0f} s; {wrong} wrong; {dict(seen)}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
