"""Losses of pairs on (embeddings, labels), exact on any batch: contrastive, SupCon, multi-similarity, circle.

    found = supcon(embeddings, labels, temperature=0.1)
    found.loss.backward()                                   # found.figures: mean cosines of pairs

All are of cosines: rows of any length are brought to length 1, and one of length 0 has cosine 0 with all others and
no gradient. Cosines come in tiles inside `budget_mib`, and the gradient is made by hand while they are there: memory
grows as B and time as B^2. Half precision is computed in float32; where float32 cannot hold the range of the
exponentials (a temperature below 0.025, gamma above 80), float64 takes its place.

Shapes: B rows of a batch, M anchors, N reference rows, D embedding, R and C rows and columns of one tile.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from facemetric.mining.kernels.common import NEAR, slack
from facemetric.mining.kernels.cosines import Cosines, Some, Walk
from facemetric.mining.on_cosines import Sums, of_pairs, on_device, within
from facemetric.mining.record import LossRecord
from facemetric.mining.tiles import Tile
from facemetric.mining.uncompiled import uncompiled

# Where no more than this share of a tile costs anything, its pairs are taken one by one.
FEW = 0.02


@uncompiled
def supcon(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    *,
    temperature: float = 0.1,
    anchors: slice | None = None,
    budget_mib: float | None = None,
) -> LossRecord:
    """The mean over anchors with a positive of -mean over positives of log(softmax of cosines / temperature).

    The softmax is over all other rows of the batch, positives too. embeddings (B, D) floating, labels (B,) of any
    dtype, any number of rows each; `anchors` are the rows that are anchors, against all: one rank's part of a batch,
    or the batch before a memory. temperature 0.003 to 100. A batch without a positive has loss 0.
    Errors: DataError for shapes that do not meet or embeddings that are not finite; ConfigError for options.
    Source: Khosla et al. 2020, arXiv:2004.11362, equation 2 (L_out).
    """
    within("temperature", temperature, 0.003, 100)
    core = partial(_supcon, temperature=temperature)
    return of_pairs(embeddings_BD, labels_B, anchors, budget_mib, core, 2 / temperature)


def _supcon(cos: Cosines, *, temperature: float) -> Sums:
    runs, walk = cos.runs, cos.walk(1 / temperature, -1 / temperature)
    total_M = cos.x_MD.new_zeros(len(cos.x_MD), dtype=torch.float64)
    for tile in walk:
        _exponentials(cos, tile)
        walk.add_up(total_M, tile, tile.values)
    positives_M = on_device(cos, runs.positives)
    counted = int((runs.positives > 0).sum())
    weight_M = (positives_M > 0).double() / max(counted, 1)
    share_M = weight_M / positives_M.clamp_min(1)
    pulled_M = cos.positive_sums().double() / temperature
    # 1 / temperature is taken from both sides: what is left is small where they nearly meet
    loss_M = (total_M.clamp_min(torch.finfo(torch.float64).tiny).log() + 1 / temperature) * weight_M
    push_M = (weight_M / total_M.clamp_min(torch.finfo(torch.float64).tiny) / temperature).to(cos.x_MD.dtype)
    for tile in walk:
        if not walk.kept:
            _exponentials(cos, tile)
        cos.add(tile.rows, tile.cols, walk.scale(tile, tile.values, push_M))
    cos.pull((share_M / -temperature).to(cos.x_MD.dtype))
    return Sums((loss_M - pulled_M * share_M).sum(), counted)


@uncompiled
def multi_similarity(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    *,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float = 0.1,
    anchors: slice | None = None,
    budget_mib: float | None = None,
) -> LossRecord:
    """The mean over anchors of log(1 + sum e^(-alpha (s - base))) / alpha + log(1 + sum e^(beta (s - base))) / beta.

    The first sum is over the positives with a cosine s below the anchor's highest negative + epsilon, the second over
    the negatives above its lowest positive - epsilon; a tie is neither; epsilon 2 or more keeps all. alpha, beta above
    0 to 300, base -1 to 1. Other arguments and errors as in `supcon`.
    Source: Wang et al. 2019, arXiv:1904.06627, equations 11 to 16.
    """
    within("alpha", alpha, 0.01, 300)
    within("beta", beta, 0.01, 300)
    within("base", base, -1, 1)
    within("epsilon", epsilon, 0, math.inf)
    core = partial(_multi_similarity, alpha=alpha, beta=beta, base=base, epsilon=epsilon)
    widest = max(alpha * (1 + base), beta * (1 - base)) + 10  # sums of exponentials above 1
    return of_pairs(embeddings_BD, labels_B, anchors, budget_mib, core, widest)


def _multi_similarity(cos: Cosines, *, alpha: float, beta: float, base: float, epsilon: float) -> Sums:
    x_MD, walk, mined = cos.x_MD, cos.walk(beta, -beta * base), epsilon < 2
    anchors = max(len(x_MD), 1)
    lowest_M, highest_M = x_MD.new_full((len(x_MD),), torch.inf), x_MD.new_full((len(x_MD),), -torch.inf)
    limit_M = x_MD.new_full((len(x_MD),), -1.0)
    # two products of equal rows differ in their last digits: what is nearer to a limit than these is a tie, not above
    tie = float(slack(x_MD.new_ones(1), x_MD.new_ones(1), x_MD.shape[1]))
    tie += 4 * torch.finfo(x_MD.dtype).eps / beta
    if mined:
        for block in cos.genuine():
            lowest_M[block.rows] = block.cosine_nw.masked_fill(~block.genuine_nw, torch.inf).amin(1)
        # on the exponentials, which keep the order
        limit_M = ((lowest_M - epsilon + tie - base) * beta).exp_()
    total_M = x_MD.new_zeros(len(x_MD), dtype=torch.float64)
    for tile in walk:
        _without_genuine(cos, tile)
        if mined:
            highest_M[tile.rows] = torch.maximum(highest_M[tile.rows], tile.values.amax(1))
            if walk.both(tile):
                highest_M[tile.cols] = torch.maximum(highest_M[tile.cols], tile.values.amax(0))
        tile.values.exp_()
        if not mined:
            walk.add_up(total_M, tile, tile.values)
            continue
        kept_RC = walk.buffer(tile.values)
        total_M[tile.rows] += torch.mul(tile.values, tile.values > limit_M[tile.rows, None], out=kept_RC).sum(
            1
        )
        if walk.both(tile):
            kept_RC = torch.mul(tile.values, tile.values > limit_M[None, tile.cols], out=kept_RC)
            total_M[tile.cols] += kept_RC.sum(0)
    highest_M = highest_M / beta + base if mined else lowest_M
    pull_M = x_MD.new_zeros(len(x_MD), dtype=torch.float64)
    for block in cos.genuine():
        kept_nw = block.genuine_nw & (block.cosine_nw < highest_M[block.rows, None] + (epsilon - tie))
        power_nw = ((block.cosine_nw - base) * -alpha).exp_().masked_fill_(~kept_nw, 0)
        pull_M[block.rows] = power_nw.sum(1, dtype=torch.float64)
        share_n = (-1 / anchors / (1 + pull_M[block.rows])).to(x_MD.dtype)
        cos.add_block(block, power_nw.mul_(share_n[:, None]))
    push_M = (1 / anchors / (1 + total_M)).to(x_MD.dtype)
    for tile in walk:
        if not walk.kept:
            _without_genuine(cos, tile)
            tile.values.exp_()
        cos.add(
            tile.rows, tile.cols, _above(walk, tile, push_M, limit_M) if mined else _all(walk, tile, push_M)
        )
    return Sums((pull_M.log1p() / alpha + total_M.log1p() / beta).sum() / anchors, len(x_MD))


def _all(walk: Walk, tile: Tile, push_M: Tensor) -> Tensor:
    return walk.scale(tile, tile.values, push_M)


def _above(walk: Walk, tile: Tile, push_M: Tensor, limit_M: Tensor) -> Tensor:
    """Values times the weight of those of their anchors whose limit they are above."""
    rows, cols, values_RC = tile
    weight_RC = torch.mul(values_RC > limit_M[rows, None], push_M[rows, None], out=walk.buffer(values_RC))
    if walk.whole:
        weight_RC.addcmul_((values_RC > limit_M[None, cols]).to(values_RC.dtype), push_M[None, cols])
    return values_RC.mul_(weight_RC)


@uncompiled
def circle(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    *,
    margin: float = 0.25,
    gamma: float = 80.0,
    anchors: slice | None = None,
    budget_mib: float | None = None,
) -> LossRecord:
    """The mean over anchors with a positive and a negative of log(1 + sum e^(gamma a_n (s - m)) sum e^(-gamma a_p (s -
    1 + m))), with the weights a_n = max(0, s + m) and a_p = max(0, 1 + m - s), which have no gradient.

    margin m 0 to 1, gamma above 0 to 600. Other arguments and errors as in `supcon`.
    Source: Sun et al. 2020, arXiv:2002.10857, equations 6 and 8.
    """
    within("margin", margin, 0, 1)
    within("gamma", gamma, 0.01, 600)
    core = partial(_circle, margin=margin, gamma=gamma)
    return of_pairs(embeddings_BD, labels_B, anchors, budget_mib, core, gamma)


def _circle(cos: Cosines, *, margin: float, gamma: float) -> Sums:
    """On a tile of q = max(sqrt(gamma) s, -sqrt(gamma) m): the exponent of a negative is q^2 - gamma m^2, its slope
    sqrt(gamma) q + gamma m; gamma (1 - m^2), the largest, is taken from all exponents."""
    runs, x_MD, root = cos.runs, cos.x_MD, math.sqrt(gamma)
    walk = cos.walk(root, 0.0)
    total_M, positive_M = (x_MD.new_zeros(len(x_MD), dtype=torch.float64) for _ in range(2))
    for block in cos.genuine():
        positive_M[block.rows] = _circle_powers(block.cosine_nw, block.genuine_nw, margin, gamma).logsumexp(1)
    for tile in walk:
        powers_RC = _circle_negatives(cos, walk, tile, -root * margin, gamma)
        walk.add_up(total_M, tile, powers_RC)
    valid_M = on_device(cos, (runs.positives > 0) & (runs.negatives > 0))
    counted = int(valid_M.sum())
    negative_M = total_M.log() + gamma * (1 - margin * margin)
    both_M = (positive_M + negative_M).masked_fill(valid_M == 0, -torch.inf)
    share_M = both_M.sigmoid() / max(counted, 1)
    push_M = torch.where(valid_M > 0, share_M / total_M, 0.0).mul_(root).to(x_MD.dtype)
    for tile in walk:
        powers_RC = _circle_negatives(cos, walk, tile, -root * margin, gamma)
        coefficient_RC = tile.values.add_(root * margin).mul_(powers_RC)
        cos.add(tile.rows, tile.cols, walk.scale(tile, coefficient_RC, push_M))
    for block in cos.genuine():
        powers_nw = _circle_powers(block.cosine_nw, block.genuine_nw, margin, gamma)
        share_nw = (powers_nw - positive_M[block.rows, None]).exp_().mul_(share_M[block.rows, None])
        slope_nw = (1 + margin - block.cosine_nw).clamp_min_(0).mul_(-gamma)
        cos.add_block(block, slope_nw.mul_(share_nw.to(slope_nw.dtype).masked_fill_(~block.genuine_nw, 0)))
    loss = torch.nn.functional.softplus(both_M).sum() / max(counted, 1)
    return Sums(loss, counted)


def _circle_powers(cosine_nw: Tensor, genuine_nw: Tensor, margin: float, gamma: float) -> Tensor:
    """Exponents of positives in float64; -inf of other pairs."""
    away_nw = 1 - cosine_nw.double()
    power_nw = gamma * (away_nw + margin).clamp_min_(0) * (away_nw - margin)
    return power_nw.masked_fill_(~genuine_nw, -torch.inf)


def _circle_negatives(cos: Cosines, walk: Walk, tile: Tile, floor: float, gamma: float) -> Tensor:
    """e^(q^2 - gamma) of a tile's negatives, 0 of genuine pairs; the tile becomes q."""
    tile.values.clamp_min_(floor)
    powers_RC = torch.mul(tile.values, tile.values, out=walk.buffer(tile.values)).sub_(gamma).exp_()
    same = cos.runs.same(tile.rows, tile.cols)
    return powers_RC if same is None else powers_RC.masked_fill_(same, 0)


@uncompiled
def contrastive(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    *,
    margin: float = 1.0,
    anchors: slice | None = None,
    budget_mib: float | None = None,
) -> LossRecord:
    """The mean of d^2 over genuine pairs + the mean of (margin - d)^2 over the impostor pairs nearer than the margin.

    d is the Euclidean distance of unit rows, 0 to 2; margin above 0 to 2. The halves of the source are left out. Its
    two means are over different pairs, so ranks cannot each take a part of the anchors. At d = 0 an impostor pair has
    no gradient. Other arguments and errors as in `supcon`.
    Source: Hadsell et al. 2006, CVPR, equation 4.
    """
    within("margin", margin, 1e-3, 2)
    core = partial(_contrastive, margin=margin)
    return of_pairs(embeddings_BD, labels_B, anchors, budget_mib, core, 0.0)


def _contrastive(cos: Cosines, *, margin: float) -> Sums:
    x_MD, whole = cos.x_MD, cos.runs.whole
    walk = cos.walk(-2.0, 2.0, twice=False)  # squared distances
    tiny, impostors, active = torch.finfo(x_MD.dtype).tiny, x_MD.new_zeros((), dtype=torch.float64), 0
    # nearer than this, a product cannot tell the distance, nor the direction: the pairs are computed one by one
    near = NEAR * float(slack(x_MD.new_ones(1), x_MD.new_ones(1), x_MD.shape[1])) if len(x_MD) else 0.0
    for tile in walk:
        squared_RC = tile.values
        same = cos.runs.same(tile.rows, tile.cols)
        if same is not None:
            squared_RC.masked_fill_(same, 9.0)
        nearest = float(squared_RC.amin())
        if nearest >= margin * margin:
            continue
        found = int((squared_RC < margin * margin).count_nonzero())
        alone = found <= FEW * squared_RC.numel()
        some = Some(cos, tile, margin * margin if alone else near) if alone or nearest < near else None
        times, factor = (2, 2.0) if walk.both(tile) else (1, 2.0 if whole else 1.0)  # (i, j) and (j, i)
        if some is not None:
            hinge_P = (margin - some.distance_P).relu_()
            impostors += times * hinge_P.double().square().sum()
            active += times * int(hinge_P.count_nonzero())
            some.add(hinge_P * factor / some.distance_P.clamp_min(tiny**0.5))
            squared_RC[some.i, some.j] = 9.0
        if alone:
            continue
        distance_RC = torch.sqrt(squared_RC.clamp_min_(tiny), out=walk.buffer(squared_RC))
        hinge_RC = torch.neg(distance_RC, out=squared_RC).add_(margin).relu_()
        impostors += times * torch.dot(hinge_RC.flatten(), hinge_RC.flatten()).double()
        active += times * int(hinge_RC.count_nonzero())
        cos.add(tile.rows, tile.cols, hinge_RC.div_(distance_RC).mul_(factor))
    for grad in (cos.grad_MD,) if whole else (cos.grad_MD, cos.grad_ND):
        grad.mul_(2 / max(active, 1))
    genuine = max(int(cos.runs.positives.sum()), 1)
    positive = (2 * (on_device(cos, cos.runs.positives) - cos.positive_sums().double())).sum() / genuine
    cos.pull(x_MD.new_full((len(x_MD),), -2 / genuine))
    return Sums(positive.clamp_min(0) + impostors / max(active, 1), 1.0)


def _exponentials(cos: Cosines, tile: Tile) -> None:
    """e^values, 0 where an anchor meets itself."""
    tile.values.exp_()
    if cos.runs.whole:
        if tile.rows == tile.cols:
            tile.values.fill_diagonal_(0)
    elif (own := cos.runs.itself(tile.rows, tile.cols)) is not None:
        tile.values.masked_fill_(own, 0)


def _without_genuine(cos: Cosines, tile: Tile) -> None:
    """-inf, whose exponential is 0, where a pair shares a label."""
    same = cos.runs.same(tile.rows, tile.cols)
    if same is not None:
        tile.values.masked_fill_(same, -torch.inf)
