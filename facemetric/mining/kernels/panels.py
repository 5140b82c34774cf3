"""The miners on a GPU in plain torch: a call costs more than its work there, so that no loop goes over positives.

Anchors come in panels that fit the budget, a panel with all of its distances at once. batch-all
(`panels_every_triplet.py`) searches each distance among the bounds of its anchor, and counts them by where they fall;
semihard (`panels_one_negative.py`) sorts the distances of an anchor, and searches its bounds among them;
distance-weighted searches random numbers in the running sum of the weights. Nothing is asked of the device between two
panels. Where float32 could not tell (a choice, a plain distance), float64 does it all.

Shapes: M anchors, N reference rows, D embedding, R rows of a panel, K positives of the one with most, P of all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from facemetric.mining.kernels.common import TripletSums, add_rows, row_dot, slack
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


def total_of(parts: list[Tensor], like: Tensor) -> Tensor:
    """The sum of one number for each panel."""
    return (
        torch.stack(parts).sum()
        if len(parts) > 1
        else parts[0]
        if parts
        else like.new_zeros((), dtype=torch.float64)
    )
