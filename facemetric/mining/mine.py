"""What all miners share: the checks, the sorting, the record, and a gradient that is known before backward.

Shapes: B rows of a batch, M anchors, D embedding, T triplets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from facemetric.errors import ConfigError, DataError, did_you_mean
from facemetric.mining.kernels import choice
from facemetric.mining.kernels.common import (
    Operands,
    Rule,
    TripletSums,
    is_coarse,
    on_a_grid,
    operands,
)
from facemetric.mining.kernels.panels import Given
from facemetric.mining.kernels.small_batch import SMALL_MIB, SMALL_ROWS
from facemetric.mining.kernels.weighed import Select, active_triplets, anchor_sums
from facemetric.mining.known_gradient import attach
from facemetric.mining.order import Facts, Order, fetch, order_against, order_on_host, order_whole
from facemetric.mining.record import Details, Mined, reciprocal
from facemetric.mining.rows import check_rows, check_shapes, compute_rows, longest
from facemetric.mining.tiles import budget_bytes, compute_dtype, row_distance

Margin = float | Literal["soft"]
Anchors = slice | tuple[Tensor, Tensor] | None


class Kernel(NamedTuple):
    """How one miner adds up: in tiles, and all at once for a small batch."""

    in_tiles: Callable[[Operands, Order, Rule, float], TripletSums]
    in_one_matrix: Callable[[Tensor, Tensor, Rule, Tensor | None], TripletSums | None] | None = (
        None  # None: tiles are to do it
    )
    ties_count: bool = False  # the loss is divided by a count that a tie changes
    ties_choose: bool = False  # a tie changes what is chosen
    select: Select | None = None  # the weights, where every triplet is weighed by them
    on_gpu: Callable[[Given, Rule, float], TripletSums] | None = None  # None: tiles do it there too
    double_on_gpu: bool = False  # it computes in float64 there

    def may_tie(self, rule: Rule, distance: str, device: torch.device) -> bool:
        """Whether there are rows in float32 whose ties rounding would decide; a GPU chooses in float64."""
        choosing = self.ties_choose and not choice.is_gpu(device)
        choosing = distance == "cosine" and (self.ties_count or choosing)
        return choosing or (self.ties_count and rule.can_tie())


DISTANCES = ("squared", "euclidean", "cosine")

# Three buffers of 4 MiB each: what the cache of two cores holds with room for the operands.
CPU_MINING_MIB = 12.0
# On a GPU every panel costs calls: at 4096 rows one panel holds all of them.
GPU_MINING_MIB = 2048.0
# Of plain distances: with a larger one the square of d_ap + margin leaves float32.
LARGEST_MARGIN = 1e18
# On a GPU, where nothing has weight, 0 is divided by it: a float32 above 0.
LEAST_WEIGHT = torch.finfo(torch.float32).tiny


def make_rule(margin: Margin, distance: str) -> Rule:
    """What a triplet costs. Raises ConfigError for another margin or distance than there is."""
    if not isinstance(distance, str):
        raise ConfigError(
            f"distance is a {type(distance).__name__}, it must be one of {', '.join(DISTANCES)}: for a distance of "
            "your own, map the embeddings so that one of these is it, or mine with distances and take "
            "mined.triplets for your own loss"
        )
    distance = str(distance)
    if distance not in DISTANCES:
        raise ConfigError(f"unknown distance {distance!r}{did_you_mean(distance, DISTANCES)}")
    if isinstance(margin, str):
        if margin != "soft":
            raise ConfigError(f"margin is {str(margin)!r}, it must be a number or 'soft'")
        return Rule(0.0, True, distance == "euclidean")
    try:
        number = float(margin)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"margin is a {type(margin).__name__}, it must be a number or 'soft': 0.2 suits unit rows"
        ) from error
    most = LARGEST_MARGIN if distance == "euclidean" else LARGEST_MARGIN**2
    if not abs(number) <= most:
        raise ConfigError(
            f"margin is {number}, it must be a number within {most:.0e} or 'soft': 0.2 suits unit rows"
        )
    return Rule(number, False, distance == "euclidean")


class MiningOptions(NamedTuple):
    """What a call of a miner may say beside embeddings and labels; `batch_all` tells what each means."""

    margin: Margin
    distance: str
    anchors: Anchors
    budget_mib: float | None
    weights: Tensor | None = None


class Batch(NamedTuple):
    """What is mined: rows in the dtype of the computation, cosine's brought to one length."""

    rows_BD: Tensor
    labels_B: Tensor
    anchors: Anchors
    rule: Rule
    kernel: Kernel
    budget_mib: float | None
    weight_M: Tensor | None = None  # of each anchor, in the dtype of the rows
    facts: Facts | None = None  # what the host knows of a batch on a GPU

    def sorted(self) -> tuple[Operands, Order]:
        """The rows in runs of one label."""
        rows_BD, anchors = self.rows_BD, self.anchors
        labels_B = self.labels_B.to(rows_BD.device)
        if isinstance(anchors, tuple):
            order = order_against(anchors[1].to(labels_B.device), labels_B, None)
            return operands(anchors[0], rows_BD, order, self.weight_M), order
        if isinstance(anchors, slice):
            order = order_against(labels_B[anchors], labels_B, self.own())
            return operands(rows_BD[anchors], rows_BD, order, self.weight_M), order
        order = order_whole(labels_B)
        return operands(rows_BD, None, order, self.weight_M), order

    def given(self, facts: Facts) -> Given:
        """The same for the kernels of a GPU, by what the host knows."""
        own = None
        if isinstance(self.anchors, slice):
            own = np.arange(len(facts.labels_N))[self.anchors]
        order = order_on_host(facts, own, self.rows_BD.device)
        y_ND = self.rows_BD.index_select(0, order.reference_N)
        x_MD = y_ND
        if not order.whole:
            anchors_MD = self.anchors[0] if isinstance(self.anchors, tuple) else self.rows_BD[self.anchors]
            x_MD = anchors_MD.index_select(0, order.anchors_M)
        weight_M = None if self.weight_M is None else self.weight_M.index_select(0, order.anchors_M)
        return Given(x_MD, y_ND, order, weight_M)

    def own(self) -> Tensor:
        """The batch's row of each anchor, where the anchors are rows of it."""
        rows_B = torch.arange(len(self.labels_B), device=self.rows_BD.device)
        return rows_B[self.anchors] if isinstance(self.anchors, slice) else rows_B

    def budget(self) -> float:
        """MiB for tiles."""
        if self.budget_mib is not None:
            return self.budget_mib
        return GPU_MINING_MIB if choice.is_gpu(self.rows_BD.device) else CPU_MINING_MIB


def mine(embeddings_BD: Tensor, labels_B: Tensor, kernel: Kernel, options: MiningOptions) -> Mined:
    """Checks, orders, hands over to the kernel, and divides."""
    kind = embeddings_BD.device.type
    if kind == "mps":  # pragma: no cover - a Mac's GPU, which has no float64
        return _mine_on_cpu(embeddings_BD, labels_B, kernel, options)
    if torch.is_autocast_enabled(kind):
        with torch.autocast(kind, enabled=False):
            return mine(embeddings_BD, labels_B, kernel, options)
    margin, distance, anchors, budget_mib, weights = options
    rule = make_rule(margin, distance)
    if budget_mib is not None:
        budget_bytes(budget_mib)  # an error for small batches too, which have no tiles
    check_shapes(embeddings_BD, labels_B, "embeddings")
    may_tie = kernel.may_tie(rule, distance, embeddings_BD.device)
    facts = _facts(embeddings_BD, labels_B, anchors, first=may_tie) if kernel.on_gpu is not None else None
    if facts is None:
        labels_B = labels_B.to(embeddings_BD.device)
    dtype = compute_dtype(embeddings_BD.dtype)
    if facts is not None and may_tie and (rule.margin != 0 or rule.soft):
        may_tie = all(map(is_coarse, facts.first_D))
    if dtype == torch.float32 and may_tie and _ties_matter(embeddings_BD, kernel, rule, distance):
        embeddings_BD = embeddings_BD.double()
        if isinstance(anchors, tuple):
            anchors = anchors[0].double(), anchors[1]
    computed = compute_dtype(embeddings_BD.dtype)
    choice.check_picking(embeddings_BD.device, computed)
    double = kernel.double_on_gpu and not choice.fused(embeddings_BD.device, computed)
    y_BD = compute_rows(embeddings_BD, distance, double=double)
    x_MD: Tensor | None = None
    if isinstance(anchors, tuple):
        check_shapes(*anchors, "anchors")
        if anchors[0].shape[1] != embeddings_BD.shape[1]:
            raise DataError(
                f"anchors have {anchors[0].shape[1]} dimensions, embeddings {embeddings_BD.shape[1]}"
            )
        x_MD = compute_rows(anchors[0], distance, double=double)
        if facts is None:
            check_rows(x_MD, "anchors")
        anchors = x_MD.detach(), anchors[1]
    if facts is not None:
        _check_lengths(facts, y_BD, x_MD)
    weight_M = None if weights is None else _anchor_weights(weights, y_BD, anchors)
    device = y_BD.device
    with torch.no_grad(), choice.exact_products(device), choice.memory_named(len(y_BD)):
        batch = Batch(y_BD.detach(), labels_B, anchors, rule, kernel, budget_mib, weight_M, facts)
        sums = _add_up(batch)
        loss, weight, grad_MD = sums.loss, sums.weight, None if x_MD is None else sums.grad_MD
        if isinstance(weight, Tensor):
            # nothing weighs 0: neither loss nor gradient has anything to divide
            scale = reciprocal(weight) if facts is None else 1 / weight.clamp_min(LEAST_WEIGHT)
            loss = loss * scale
            for grad in (sums.grad_ND,) if grad_MD is None else (sums.grad_ND, grad_MD):
                grad.mul_(scale)
        if loss.dtype != dtype:
            loss = loss.to(dtype)
    loss = attach(loss, sums.grad_ND, y_BD, grad_MD, x_MD)
    return Mined(loss, sums.valid, weight, sums.lazy_parts, _Triplets(batch, sums.chosen))


def _mine_on_cpu(embeddings_BD: Tensor, labels_B: Tensor, kernel: Kernel, options: MiningOptions) -> Mined:
    """The same where the device cannot do it: the gradient goes back to it."""
    anchors, weights = options.anchors, options.weights
    if isinstance(anchors, tuple):
        anchors = anchors[0].cpu(), anchors[1].cpu()
    weights = weights.cpu() if isinstance(weights, Tensor) else weights
    found = mine(
        embeddings_BD.cpu(), labels_B.cpu(), kernel, options._replace(anchors=anchors, weights=weights)
    )
    return replace(found, loss=found.loss.to(embeddings_BD.device))


def _add_up(batch: Batch) -> TripletSums:
    """All at once where the batch is small, else in tiles; the gradient in the order of the rows handed in."""
    roomy = batch.budget_mib is None or batch.budget_mib >= SMALL_MIB
    at_once = batch.kernel.in_one_matrix
    few = 0 < len(batch.labels_B) <= SMALL_ROWS and batch.facts is None
    if batch.anchors is None and at_once is not None and roomy and few:
        sums = at_once(batch.rows_BD, batch.labels_B, batch.rule, batch.weight_M)
        if sums is not None:
            return sums
    if batch.facts is not None and batch.kernel.on_gpu is not None:
        given = batch.given(batch.facts)
        order, sums = given.order, batch.kernel.on_gpu(given, batch.rule, batch.budget())
    else:
        check_rows(batch.rows_BD, "embeddings")
        ops, order = batch.sorted()
        sums = batch.kernel.in_tiles(ops, order, batch.rule, batch.budget())
    grad_BD = torch.empty_like(sums.grad_ND).index_copy_(0, order.reference_N, sums.grad_ND)
    if order.whole:
        return sums._replace(grad_MD=grad_BD, grad_ND=grad_BD)
    grad_MD = torch.empty_like(sums.grad_MD).index_copy_(0, order.anchors_M, sums.grad_MD)
    if isinstance(batch.anchors, slice):
        grad_BD[batch.anchors] += grad_MD
    return sums._replace(grad_MD=grad_MD, grad_ND=grad_BD)


@dataclass(frozen=True)
class _Triplets(Details):
    batch: Batch
    chosen: Callable[[], Tensor] | None  # (T, 3); None where every triplet was weighed

    @torch.no_grad()
    def triplets(self) -> Tensor:
        if self.chosen is not None:
            triplets_T3 = self.chosen()
        else:
            ops, order = self.batch.sorted()
            select = self.batch.kernel.select
            triplets_T3 = active_triplets(ops, order, self.batch.rule, select, self.batch.budget())
        if isinstance(self.batch.anchors, slice):
            triplets_T3 = torch.cat([self.batch.own()[triplets_T3[:, :1]], triplets_T3[:, 1:]], 1)
        return triplets_T3

    @torch.no_grad()
    def of_anchors(self) -> Tensor:
        rows_BD, anchors, rule = self.batch.rows_BD, self.batch.anchors, self.batch.rule
        if self.chosen is None:
            ops, order = self.batch.sorted()
            sums_2M = anchor_sums(ops, order, rule, self.batch.kernel.select, self.batch.budget())
            return torch.empty_like(sums_2M).index_copy_(1, order.anchors_M, sums_2M)
        anchor_T, positive_T, negative_T = self.chosen().unbind(1)
        x_MD = rows_BD if anchors is None else anchors[0] if isinstance(anchors, tuple) else rows_BD[anchors]
        sums_2M = x_MD.new_zeros(2, len(x_MD), dtype=torch.float64)
        step = max(budget_bytes(self.batch.budget()) // (4 * max(x_MD.shape[1], 1) * x_MD.element_size()), 1)
        for a, p, n in zip(anchor_T.split(step), positive_T.split(step), negative_T.split(step), strict=True):
            d_ap, d_an = (rule.distance(row_distance(x_MD[a], rows_BD[at])) for at in (p, n))
            loss = rule.loss_and_slope(d_ap - d_an)[0].double()
            sums_2M.index_add_(1, a, torch.stack([loss, torch.ones_like(loss)]))
        return sums_2M if self.batch.weight_M is None else sums_2M * self.batch.weight_M


def _facts(embeddings_BD: Tensor, labels_B: Tensor, anchors: Anchors, *, first: bool) -> Facts | None:
    """What the host has to know of a batch on a GPU; None on a CPU."""
    if not choice.is_gpu(embeddings_BD.device):
        return None
    rows, labels = [embeddings_BD], [labels_B]
    if isinstance(anchors, tuple):
        check_shapes(*anchors, "anchors")
        rows, labels = [embeddings_BD, anchors[0]], [labels_B, anchors[1]]
    return fetch(rows, labels, first=first)


def _check_lengths(facts: Facts, y_BD: Tensor, x_MD: Tensor | None) -> None:
    """DataError as `check_rows`, which looks where all rows together are too long, or not finite."""
    for rows, length, what in zip((y_BD, x_MD), facts.lengths, ("embeddings", "anchors"), strict=False):
        if rows is not None and not length <= longest(rows.dtype):
            check_rows(rows, what)


def _ties_matter(rows_BD: Tensor, kernel: Kernel, rule: Rule, distance: str) -> bool:
    """Whether rows in float32 can tie where it counts, so that float64 is to tell ties from rounding."""
    if kernel.ties_count and rule.has_ties(rows_BD.detach()):
        return True
    # rows on a grid are on it no longer when they are brought to unit length
    return distance == "cosine" and (kernel.ties_count or kernel.ties_choose) and on_a_grid(rows_BD.detach())


def _anchor_weights(weights: Tensor, y_BD: Tensor, anchors: Anchors) -> Tensor:
    """The weight (M,) of each anchor, in the dtype of the rows."""
    rows = len(anchors[0]) if isinstance(anchors, tuple) else len(y_BD)
    what = "anchor" if isinstance(anchors, tuple) else "row of the batch"
    if not isinstance(weights, Tensor) or weights.shape != (rows,):
        came = tuple(weights.shape) if isinstance(weights, Tensor) else f"a {type(weights).__name__}"
        raise DataError(f"weights are {came}, needed is one number for each {what}: a tensor ({rows},)")
    weight_M = weights.detach().to(y_BD.device, y_BD.dtype)
    bad = (~(torch.isfinite(weight_M) & (weight_M >= 0))).nonzero()[:, 0]
    if len(bad):
        raise DataError(
            f"weights must be finite and not below 0, that of row {int(bad[0])} is {float(weight_M[bad[0]]):g}; "
            "a weight of 0 leaves a row out as an anchor"
        )
    return weight_M[anchors] if isinstance(anchors, slice) else weight_M
