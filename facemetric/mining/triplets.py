"""Exact online triplet mining on (embeddings, labels): batch-all, semihard, batch-hard and your own filter.

    mined = semihard(embeddings, labels, margin=0.2)
    mined.loss.backward()

No B x B x B tensor is formed: distances come in tiles inside `budget_mib`, and the gradient is made while
they are there, so that memory grows as B and time as B^2. d is the squared Euclidean distance (0..4 on the unit
sphere), or "euclidean" (0..2), or "cosine", 1 - cos (0..2; rows are brought to unit length first).

Shapes: B rows of a batch, M anchors, D embedding.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from facemetric.errors import ConfigError, DataError, did_you_mean
from facemetric.mining.dense import Select, batch_all_sums, weighted_sums
from facemetric.mining.order import Order, order_against, order_whole
from facemetric.mining.sparse import (
    Operands,
    Rule,
    Sums,
    operands,
    pick_nearest,
    pick_semihard,
    sparse_sums,
)
from facemetric.mining.tiles import CUDA_BUDGET_MIB, compute_dtype

Margin = float | Literal["soft"]
Anchors = slice | tuple[Tensor, Tensor] | None
Kernel = Callable[[Operands, Order, Rule, float], Sums]

DISTANCES = ("squared", "euclidean", "cosine")

# Three buffers of 4 MiB each: what the cache of two cores holds with room for the operands.
CPU_MINING_MIB = 12.0


class Mined(NamedTuple):
    """What a miner found. All but `valid` are scalar tensors on the device; only `loss` carries a gradient.

    `loss` is the sum over triplets divided by `weight` (0 where there is nothing to divide), so several ranks
    combine as sum(loss * weight) / sum(weight). `d_ap` and `d_an` are means over the same triplets.
    """

    loss: Tensor
    active: Tensor  # triplets with a loss above 0
    valid: int  # triplets looked at
    d_ap: Tensor
    d_an: Tensor
    weight: Tensor  # what the loss was divided by: active, valid, or the sum of your weights

    @property
    def fraction_positive(self) -> Tensor:
        """active / valid, 0..1; 0 where nothing is valid."""
        return self.active / max(self.valid, 1)


def batch_all(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    *,
    margin: Margin = 0.2,
    distance: str = "squared",
    anchors: Anchors = None,
    budget_mib: float | None = None,
) -> Mined:
    """Mean over the active triplets of max(0, d_ap - d_an + margin), of every (a, p, n) there is.

    embeddings (B, D) floating, half precision computed in float32; labels (B,) of any dtype, any number of
    rows each. margin "soft" takes log1p(exp(d_ap - d_an)), of which all triplets are active. `anchors`: None
    for every row; a slice for those rows against all of them (one rank of a global batch, or the batch before
    a memory); (embeddings (M, D), labels (M,)) for rows apart. A batch without a triplet has loss 0 and
    gradient 0.
    Errors: DataError for shapes that do not meet or embeddings that are not finite, ConfigError for options.
    """

    def kernel(ops: Operands, order: Order, rule: Rule, budget: float) -> Sums:
        return (
            weighted_sums(ops, order, rule, None, budget)
            if rule.soft
            else batch_all_sums(ops, order, rule, budget)
        )

    return _mine(embeddings_BD, labels_B, kernel, margin, distance, anchors, budget_mib)


def semihard(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    *,
    margin: Margin = 0.2,
    distance: str = "squared",
    anchors: Anchors = None,
    budget_mib: float | None = None,
) -> Mined:
    """Mean over every (a, p) of the loss with the nearest negative farther than p, or else the farthest.

    Arguments and errors as in `batch_all`. Source: Schroff et al. 2015, arXiv:1503.03832, section 3.2; the
    fallback is that of TensorFlow Addons.
    """
    kernel = partial(_sparse, pick=pick_semihard, farthest=False)
    return _mine(embeddings_BD, labels_B, kernel, margin, distance, anchors, budget_mib)


def batch_hard(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    *,
    margin: Margin = 0.2,
    distance: str = "squared",
    anchors: Anchors = None,
    budget_mib: float | None = None,
) -> Mined:
    """Mean over every anchor of the loss with its farthest positive and its nearest negative.

    Arguments and errors as in `batch_all`. Source: Hermans et al. 2017, arXiv:1703.07737.
    """
    kernel = partial(_sparse, pick=pick_nearest, farthest=True)
    return _mine(embeddings_BD, labels_B, kernel, margin, distance, anchors, budget_mib)


def batch_select(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    *,
    select: Select,
    margin: Margin = 0.2,
    distance: str = "squared",
    anchors: Anchors = None,
    budget_mib: float | None = None,
) -> Mined:
    """Mean of the loss over every triplet, weighed by your `select(d_ap, d_an) -> weight`.

    It is called for some anchors and one positive of each: d_ap (n, 1), d_an (n, B) with the whole row of an
    anchor, in the chosen distance; it returns (n, B) weights >= 0, or booleans. Entries of d_an that are no
    negatives hold a huge number, and their weight is set to 0 afterwards. The gradient does not flow through
    the weights. Other arguments and errors as in `batch_all`.
    """

    def kernel(ops: Operands, order: Order, rule: Rule, budget: float) -> Sums:
        return weighted_sums(ops, order, rule, select, budget)

    return _mine(embeddings_BD, labels_B, kernel, margin, distance, anchors, budget_mib)


MINERS: dict[str, Callable[..., Mined]] = {"all": batch_all, "semihard": semihard, "hard": batch_hard}


def resolve_miner(name: str) -> Callable[..., Mined]:
    """The miner of that name, or `batch_select` with the filter of "package.module:function".

    Errors: ConfigError for a name that is not known, a module that does not import, a function it lacks.
    """
    if ":" not in name:
        if name not in MINERS:
            raise ConfigError(
                f"unknown miner {name!r}{did_you_mean(name, MINERS)}, or package.module:function"
            )
        return MINERS[name]
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"miner {name!r}: {module_name} does not import ({error})") from error
    select = getattr(module, function_name, None)
    if not callable(select):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise ConfigError(
            f"miner {name!r}: no function {function_name!r} there{did_you_mean(function_name, known)}"
        )
    return partial(batch_select, select=select)


class TripletLoss(nn.Module):
    """A miner as a module: `loss = TripletLoss("semihard", margin=0.2)(embeddings, labels)`.

    `miner` is a name of MINERS or "package.module:function". `.mined` holds the record of the last call.
    """

    def __init__(
        self,
        miner: str = "semihard",
        *,
        margin: Margin = 0.2,
        distance: str = "squared",
        budget_mib: float | None = None,
    ) -> None:
        super().__init__()
        self.miner, self.margin, self.distance, self.budget_mib = miner, margin, distance, budget_mib
        self.mine = resolve_miner(miner)
        self.mined: Mined | None = None
        _rule(margin, distance)

    def forward(self, embeddings_BD: Tensor, labels_B: Tensor, anchors: Anchors = None) -> Tensor:
        mined = self.mine(
            embeddings_BD,
            labels_B,
            margin=self.margin,
            distance=self.distance,
            anchors=anchors,
            budget_mib=self.budget_mib,
        )
        self.mined = mined._replace(loss=mined.loss.detach())
        return mined.loss

    def extra_repr(self) -> str:
        return f"{self.miner}, margin={self.margin}, distance={self.distance}"


def _sparse(ops: Operands, order: Order, rule: Rule, budget: float, *, pick: Any, farthest: bool) -> Sums:
    return sparse_sums(ops, order, rule, pick=pick, farthest=farthest, budget_mib=budget)


def _rule(margin: Margin, distance: str) -> Rule:
    if distance not in DISTANCES:
        raise ConfigError(f"unknown distance {distance!r}{did_you_mean(distance, DISTANCES)}")
    if isinstance(margin, str):
        if margin != "soft":
            raise ConfigError(f"margin is {margin!r}, it must be a number or 'soft'")
        return Rule(0.0, True, distance == "euclidean")
    return Rule(float(margin), False, distance == "euclidean")


def _mine(
    embeddings_BD: Tensor,
    labels_B: Tensor,
    kernel: Kernel,
    margin: Margin,
    distance: str,
    anchors: Anchors,
    budget_mib: float | None,
) -> Mined:
    """Checks, orders, hands over to the kernel, and divides."""
    rule = _rule(margin, distance)
    _check(embeddings_BD, labels_B, "embeddings")
    x_MD: Tensor | None = None
    if isinstance(anchors, tuple):
        _check(*anchors, "anchors")
        if anchors[0].shape[1] != embeddings_BD.shape[1]:
            raise DataError(
                f"anchors have {anchors[0].shape[1]} dimensions, embeddings {embeddings_BD.shape[1]}"
            )
        x_MD = _rows(anchors[0], distance)
        order = order_against(anchors[1], labels_B, None)
    elif isinstance(anchors, slice):
        own_M = torch.arange(len(labels_B), device=labels_B.device)[anchors]
        order = order_against(labels_B[anchors], labels_B, own_M)
    else:
        order = order_whole(labels_B)
    if budget_mib is None:
        budget_mib = CPU_MINING_MIB if embeddings_BD.device.type == "cpu" else CUDA_BUDGET_MIB
    y_BD = _rows(embeddings_BD, distance)
    with torch.no_grad():
        if isinstance(anchors, slice):
            ops = operands(y_BD[anchors], y_BD, order)
        elif x_MD is not None:
            ops = operands(x_MD, y_BD, order)
        else:
            ops = operands(y_BD, None, order)
        sums = kernel(ops, order, rule, budget_mib)
        scale = torch.where(sums.weight > 0, 1 / sums.weight, 0.0)
        grad_BD = torch.empty_like(sums.grad_ND).index_copy_(0, order.reference_N, sums.grad_ND)
        grad_x_MD = None
        if not order.whole:
            grad_x_MD = torch.empty_like(sums.grad_MD).index_copy_(0, order.anchors_M, sums.grad_MD)
            if isinstance(anchors, slice):
                grad_BD[anchors] += grad_x_MD
            else:
                grad_x_MD *= scale
        grad_BD *= scale
        loss = (sums.loss * scale).to(y_BD.dtype)
    loss = _Attach.apply(loss, y_BD, grad_BD, x_MD, grad_x_MD)
    return Mined(loss, sums.active, sums.valid, sums.d_ap * scale, sums.d_an * scale, sums.weight)


class _Attach(torch.autograd.Function):
    """A loss that is already known, with its gradient for the embeddings and for anchors apart from them."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, y_BD: Tensor, grad_BD: Tensor, x_MD: Tensor | None, grad_x_MD: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(grad_BD, grad_x_MD if x_MD is not None else None)
        return loss.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        grad_BD, grad_x_MD = ctx.saved_tensors
        return None, grad_BD * grad_loss, None, None if grad_x_MD is None else grad_x_MD * grad_loss, None


def _check(rows_BD: Tensor, labels_B: Tensor, what: str) -> None:
    if rows_BD.dim() != 2 or labels_B.shape != rows_BD.shape[:1]:
        raise DataError(
            f"{what} are {tuple(rows_BD.shape)}, labels {tuple(labels_B.shape)}: needed are (B, D) and (B,)"
        )
    finite = torch.isfinite(rows_BD.detach()).all()
    if not finite:
        bad = (~torch.isfinite(rows_BD.detach()).all(1)).nonzero()[:, 0]
        raise DataError(
            f"{len(bad)} of {len(rows_BD)} {what} are NaN or infinite, the first is row {int(bad[0])}: "
            "look at that image, or lower the learning rate"
        )


def _rows(rows_BD: Tensor, distance: str) -> Tensor:
    rows_BD = rows_BD.to(compute_dtype(rows_BD.dtype))
    if distance != "cosine":
        return rows_BD
    # |x - y|^2 of rows of length sqrt(1/2) is 1 - cos
    return nn.functional.normalize(rows_BD, eps=1e-6) * 0.5**0.5
