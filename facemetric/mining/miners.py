"""Exact online triplet mining on (embeddings, labels): three miners, a sampler, and your own filter.

    mined = semihard(embeddings, labels, margin=0.2)
    mined.loss.backward()

No B x B x B tensor is formed: distances come in tiles inside `budget_mib`, and the gradient is made while
they are there, so that memory grows as B and time as B^2. d is the squared Euclidean distance (0..4 on the
unit sphere), or "euclidean" (0..2), or "cosine", 1 - cos (0..2; rows of any length but 0, which has no direction: it
lies at 1/2 from all others).

A tie is a tie: equal rows have equal distances, a negative as far as the positive is not farther, and a triplet that
just reaches the margin is not active. In a function that torch.compile compiles, a miner is one graph break.

Shapes: B rows of a batch, M anchors, D embedding.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from facemetric.errors import ConfigError, did_you_mean
from facemetric.mining.kernels import choice, gpu, panels_every_triplet, panels_one_negative
from facemetric.mining.kernels.common import Operands, Rule, TripletSums
from facemetric.mining.kernels.every_triplet import batch_all_sums
from facemetric.mining.kernels.one_negative import (
    Pick,
    pick_by_distance,
    pick_nearest,
    pick_semihard,
    sparse_sums,
)
from facemetric.mining.kernels.panels import Given
from facemetric.mining.kernels.panels_one_negative import hardest, one_negative
from facemetric.mining.kernels.small_batch import small_all, small_hard, small_semihard
from facemetric.mining.kernels.weighed import Select, weighted_sums
from facemetric.mining.mine import Anchors, Kernel, Margin, MiningOptions, mine
from facemetric.mining.order import Order
from facemetric.mining.record import Mined
from facemetric.mining.uncompiled import uncompiled


def _sparse(
    ops: Operands, order: Order, rule: Rule, budget: float, *, pick: Pick, farthest: bool
) -> TripletSums:
    return sparse_sums(ops, order, rule, pick=pick, farthest=farthest, budget_mib=budget)


def _all(ops: Operands, order: Order, rule: Rule, budget: float) -> TripletSums:
    return (
        weighted_sums(ops, order, rule, None, budget)
        if rule.soft
        else batch_all_sums(ops, order, rule, budget)
    )


def _way(given: Given) -> ModuleType:
    """Where a batch on a GPU finds one negative: in the fused kernels or in panels, which have the same functions."""
    return gpu if choice.fused(given.y_ND.device, given.y_ND.dtype) else panels_one_negative


def _semihard_on_gpu(given: Given, rule: Rule, budget: float) -> TripletSums:
    way = _way(given)
    return one_negative(given, rule, way.semihard_rows, budget, entries=way.ENTRIES)


def _hard_on_gpu(given: Given, rule: Rule, budget: float) -> TripletSums:
    way = _way(given)
    return hardest(given, rule, budget, way.nearest_rows, entries=way.ENTRIES)


def _all_on_gpu(given: Given, rule: Rule, budget: float) -> TripletSums:
    way = gpu if choice.fused(given.y_ND.device, given.y_ND.dtype) else panels_every_triplet
    return way.every_triplet(given, rule, budget)


_ALL = Kernel(_all, small_all, ties_count=True, on_gpu=_all_on_gpu)
_SEMIHARD = Kernel(
    partial(_sparse, pick=pick_semihard, farthest=False),
    small_semihard,
    ties_choose=True,
    on_gpu=_semihard_on_gpu,
    double_on_gpu=True,
)
_HARD = Kernel(
    partial(_sparse, pick=pick_nearest, farthest=True), small_hard, on_gpu=_hard_on_gpu, double_on_gpu=True
)


@uncompiled
def batch_all(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    *,
    margin: Margin = 0.2,
    distance: str = "squared",
    anchors: Anchors = None,
    budget_mib: float | None = None,
    weights: Tensor | None = None,
) -> Mined:
    """Mean over the active triplets of max(0, d_ap - d_an + margin), of every (a, p, n) there is.

    embeddings (B, D) floating, half precision computed in float32; labels (B,) of any dtype, any number of
    rows each. margin "soft" takes log1p(exp(d_ap - d_an)), of which all triplets are active. `anchors`: None
    for every row; a slice for those rows against all of them (one rank of a global batch, or the batch before
    a memory); (embeddings (M, D), labels (M,)) for rows apart. `weights` (B,), or (M,) of anchors apart, not below 0:
    how much the triplets of each anchor count in the mean; which are chosen does not change. For weights of
    positives and negatives as well, weigh `triplet_losses(embeddings, mined.triplets)`. A batch without a triplet,
    or whose triplets weigh 0, has loss 0 and gradient 0. The gradient of a "euclidean" distance is 0 at distance 0
    (in float32 below 1e-22).
    Errors: DataError for shapes that do not meet, embeddings that are not finite, or longer than 5e17 in float32,
    weights that are not finite or below 0; ConfigError for options.
    """
    return mine(embeddings_BD, labels_B, _ALL, MiningOptions(margin, distance, anchors, budget_mib, weights))


@uncompiled
def semihard(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    *,
    margin: Margin = 0.2,
    distance: str = "squared",
    anchors: Anchors = None,
    budget_mib: float | None = None,
    weights: Tensor | None = None,
) -> Mined:
    """Mean over every (a, p) of the loss with the nearest negative farther than p, or else the farthest.

    Arguments and errors as in `batch_all`. Source: Schroff et al. 2015, arXiv:1503.03832, section 3.2; the
    fallback is that of TensorFlow Addons.
    """
    return mine(
        embeddings_BD, labels_B, _SEMIHARD, MiningOptions(margin, distance, anchors, budget_mib, weights)
    )


@uncompiled
def batch_hard(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    *,
    margin: Margin = 0.2,
    distance: str = "squared",
    anchors: Anchors = None,
    budget_mib: float | None = None,
    weights: Tensor | None = None,
) -> Mined:
    """Mean over every anchor of the loss with its farthest positive and its nearest negative.

    Arguments and errors as in `batch_all`. Source: Hermans et al. 2017, arXiv:1703.07737.
    """
    return mine(embeddings_BD, labels_B, _HARD, MiningOptions(margin, distance, anchors, budget_mib, weights))


@uncompiled
def batch_select(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    *,
    select: Select,
    margin: Margin = 0.2,
    distance: str = "squared",
    anchors: Anchors = None,
    budget_mib: float | None = None,
    weights: Tensor | None = None,
) -> Mined:
    """Mean of the loss over every triplet, weighed by your `select(d_ap, d_an) -> weight`.

    It is called for some anchors and one positive of each: d_ap (n, 1), d_an (n, B) with the whole row of an
    anchor, in the chosen distance; it returns (n, B) weights >= 0, or booleans. Entries of d_an that are no
    negatives hold a huge number, and their weight is set to 0 afterwards. The gradient does not flow through
    the weights. Other arguments and errors as in `batch_all`.
    """

    def tiled(ops: Operands, order: Order, rule: Rule, budget: float) -> TripletSums:
        return weighted_sums(ops, order, rule, select, budget)

    return mine(
        embeddings_BD,
        labels_B,
        Kernel(tiled, select=select),
        MiningOptions(margin, distance, anchors, budget_mib, weights),
    )


@uncompiled
def distance_weighted(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    *,
    seed: int,
    margin: Margin = 0.2,
    distance: str = "squared",
    anchors: Anchors = None,
    budget_mib: float | None = None,
    weights: Tensor | None = None,
) -> Mined:
    """Mean over every (a, p) of the loss with one negative, drawn so that all distances come up alike.

    The weight of a negative is 1 / q(d), q the density of the distance between points of the unit sphere,
    with d held to 0.5..sqrt(2): nearer ones are mostly noise, and farther ones pay nothing. Rows are to be of
    unit length. The same `seed` draws the same negatives: pass another one every step. Other arguments and
    errors as in `batch_all`. Source: Wu et al. 2017, arXiv:1706.07567, section 4.2.
    """
    generator = make_generator(embeddings_BD.device).manual_seed(seed)
    square = 2.0 if distance == "cosine" else 1.0  # |x - y|^2 is 2 (1 - cos)
    pick = pick_by_distance(embeddings_BD.shape[-1], square, generator)

    def on_gpu(given: Given, rule: Rule, budget: float) -> TripletSums:
        way = _way(given)
        drawn_rows = way.drawn_rows(embeddings_BD.shape[-1], square, generator)
        return one_negative(given, rule, drawn_rows, budget, entries=way.ENTRIES)

    kernel = Kernel(partial(_sparse, pick=pick, farthest=False), on_gpu=on_gpu, double_on_gpu=True)
    return mine(
        embeddings_BD, labels_B, kernel, MiningOptions(margin, distance, anchors, budget_mib, weights)
    )


MINERS: dict[str, Callable[..., Mined]] = {
    "all": batch_all,
    "semihard": semihard,
    "hard": batch_hard,
    "distance-weighted": distance_weighted,
}
# On the device of the rows: replaced by the test that counts on a device without random numbers.
make_generator = torch.Generator

# These take a `seed`, a new one every step.
SEEDED_MINERS = ("distance-weighted",)


def resolve_miner(name: str) -> Callable[..., Mined]:
    """The miner of that name, or `batch_select` with the filter of "package.module:function".

    Errors: ConfigError for a name that is not known, a module that does not import, a function it lacks.
    """
    name = str(name)  # a numpy string would be quoted as np.str_('...')
    if ":" not in name:
        if name not in MINERS:
            raise ConfigError(
                f"unknown miner {name!r}{did_you_mean(name, MINERS)}, or package.module:function"
            )
        return MINERS[name]
    return partial(batch_select, select=find_function("miner", name))


def find_function(what: str, name: str) -> Callable[..., Any]:
    """The function that "package.module:function" names; `what` it is to be, for the message of a ConfigError."""
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:  # no name at all is a ValueError
        raise ConfigError(f"{what} {name!r}: {module_name} does not import ({error})") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise ConfigError(
            f"{what} {name!r}: no function {function_name!r} there{did_you_mean(function_name, known)}"
        )
    return function
