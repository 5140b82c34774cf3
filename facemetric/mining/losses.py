"""What stage two can minimise: losses of embeddings and labels, made by a factory of LOSSES or named by their module.

    loss = resolve_loss("my_losses:centre_loss")            # or "triplet", with LossOptions
    found = loss(embeddings, labels)
    found.loss.backward()                                   # found.figures: named numbers for the log

Shapes: B rows of a batch, M anchors, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from facemetric.errors import ConfigError, did_you_mean
from facemetric.mining.mine import Anchors, Margin, make_rule
from facemetric.mining.miners import SEEDED_MINERS, resolve_miner
from facemetric.mining.pairwise import circle, contrastive, multi_similarity, supcon
from facemetric.mining.plugs import Plug, check_arguments, find_plug
from facemetric.mining.proxies import ProxyAnchor
from facemetric.mining.record import LossRecord, Mined
from facemetric.mining.uncompiled import uncompiled

# Names that a line of a training's log, or its validation, has for figures of its own.
RESERVED = (
    *("event", "step", "epoch", "seconds", "loss", "lr", "grad_norm"),
    *("steps_per_second", "minutes_left", "memory_mib", "gpu_mib"),
    *("auc", "eer", "knn_accuracy"),
)
RESERVED_START = "tar_at_far_"


class LossOptions(NamedTuple):
    """The options of a loss: those of the triplets, and arguments by name of any other."""

    miner: str = "semihard"  # a name of MINERS, or package.module:function
    margin: Margin = 0.2
    distance: str = "squared"
    seed: int = 0  # of a miner that draws
    budget_mib: float | None = None
    arguments: Mapping[str, Any] = MappingProxyType({})  # --loss-args


class LossFunction(Protocol):
    """(embeddings (B, D), labels (B,)) -> LossRecord.

    `anchors` are the rows that this process answers for, all without it; `seed` is another one every step.
    """

    def __call__(
        self,
        embeddings_BD: Tensor,
        labels_B: Tensor,
        *,
        anchors: slice | None = None,
        seed: int | None = None,
    ) -> LossRecord:
        """The loss of a batch."""


@dataclass(eq=False)
class Loss:
    """A resolved loss: it is called as a LossFunction, and says what a training has to know of it."""

    call: LossFunction | None
    splits: bool = False  # it takes `anchors`: each process can answer for its own
    remembers: bool = False  # embeddings of past batches may stand behind those of this one
    trained_only: bool = False  # it knows the identities that it is trained with, and no others
    make: Callable[[int, int], tuple[LossFunction, nn.Module | None]] | None = None
    weights: nn.Module | None = None  # what it learns itself, such as proxies

    def prepare(self, identities: int, embedding_size: int) -> None:
        """Make what needs these sizes. Raises ConfigError where it cannot be made."""
        if self.make is not None:
            self.call, self.weights = self.make(identities, embedding_size)

    def __call__(
        self,
        embeddings_BD: Tensor,
        labels_B: Tensor,
        *,
        anchors: slice | None = None,
        seed: int | None = None,
    ) -> LossRecord:
        """The loss of a batch."""
        assert self.call is not None, "prepare it first"
        return self.call(embeddings_BD, labels_B, anchors=anchors, seed=seed)


def triplet_loss(options: LossOptions) -> Loss:
    """Triplets of the miner of --miner, with --margin and --distance.

    Figures fraction_positive, mean_d_ap, mean_d_an."""
    make_rule(options.margin, options.distance)
    mine = resolve_miner(options.miner)
    if options.arguments:
        raise ConfigError(
            f"--loss-args has {', '.join(options.arguments)}, and --loss=triplet has options of its own: --miner, "
            "--margin, --soft-margin, --distance"
        )

    def call(
        embeddings_BD: Tensor, labels_B: Tensor, *, anchors: slice | None = None, seed: int | None = None
    ) -> LossRecord:
        mined = _with_seed(mine, options.miner, options.seed if seed is None else seed)(
            embeddings_BD,
            labels_B,
            margin=options.margin,
            distance=options.distance,
            anchors=anchors,
            budget_mib=options.budget_mib,
        )
        return LossRecord(mined.loss, mined.weight, mined.figures, mined)

    return Loss(call, splits=True, remembers=True)


def pair_loss(name: str, function: Callable[..., LossRecord], *, splits: bool = True) -> Factory:
    """What makes the loss of a function of `pairwise`: its arguments are checked before any image is read."""

    def make(options: LossOptions) -> Loss:
        check_arguments(name, partial(function, anchors=None, budget_mib=None), options.arguments, first=2)

        def call(
            embeddings_BD: Tensor, labels_B: Tensor, *, anchors: slice | None = None, seed: int | None = None
        ) -> LossRecord:
            return function(
                embeddings_BD,
                labels_B,
                anchors=anchors,
                budget_mib=options.budget_mib,
                **options.arguments,
            )

        try:
            call(torch.eye(2), torch.arange(2))
        except ConfigError as error:
            raise ConfigError(f"--loss-args of {name}: {error}") from error
        return Loss(call, splits=splits, remembers=True)

    make.__doc__ = function.__doc__
    return make


def proxy_anchor_loss(options: LossOptions) -> Loss:
    """One learned row an identity: near for its images, far from all others.

    Arguments alpha and delta. Source: Kim et al. 2020, arXiv:2003.13911."""
    name = "proxy-anchor"
    check_arguments(name, ProxyAnchor, options.arguments, first=0)
    try:
        ProxyAnchor(identities=2, embedding_size=2, **options.arguments)
    except ConfigError as error:
        raise ConfigError(f"--loss-args of {name}: {error}") from error
    return _from_elsewhere(name, Plug(make=lambda c, d: _proxies(c, d, options.arguments)))


def _proxies(identities: int, embedding_size: int, arguments: Mapping[str, Any]) -> ProxyAnchor:
    return ProxyAnchor(identities=identities, embedding_size=embedding_size, **arguments)


Factory = Callable[[LossOptions], LossFunction | Loss]

# Name -> what makes the loss of its options.
LOSSES: dict[str, Factory] = {
    "triplet": triplet_loss,
    "contrastive": pair_loss("contrastive", contrastive, splits=False),
    "supcon": pair_loss("supcon", supcon),
    "multi-similarity": pair_loss("multi-similarity", multi_similarity),
    "circle": pair_loss("circle", circle),
    "proxy-anchor": proxy_anchor_loss,
}


def resolve_loss(name: str, options: LossOptions | None = None) -> Loss:
    """The loss of a name in LOSSES, "package.module:name" of your own, or "pml:Name" of pytorch-metric-learning.

    Yours is a function of (embeddings, labels), or a class that is made once and then called like one. It returns a
    scalar tensor, or a record: anything with `loss` (a scalar tensor) and, where it has them, `figures` (a mapping
    from names to numbers; RESERVED lists the names that are taken). It sees the whole batch, with any `anchors`.
    `prepare` it before the first call.
    Errors: ConfigError for a name that is not known, a module that does not import, a function it lacks, options that
    cannot be; and in a call, for another thing returned.
    """
    name, options = str(name), options or LossOptions()
    if ":" in name:
        return _from_elsewhere(name, find_plug(name, options.arguments))
    if name not in LOSSES:
        raise ConfigError(
            f"unknown loss {name!r}{did_you_mean(name, LOSSES)}, or package.module:function, or pml:Name of "
            "pytorch-metric-learning"
        )
    made = LOSSES[name](options)
    return made if isinstance(made, Loss) else Loss(made)


def _from_elsewhere(name: str, plug: Plug) -> Loss:
    """A plug as a loss: what it learns is what it holds of weights and buffers."""

    def as_call(function: Callable[[Tensor, Tensor], Any]) -> tuple[LossFunction, nn.Module | None]:
        def call(
            embeddings_BD: Tensor, labels_B: Tensor, *, anchors: slice | None = None, seed: int | None = None
        ) -> LossRecord:
            return as_record(function(embeddings_BD, labels_B), name)

        holds = isinstance(function, nn.Module) and bool(function.state_dict())
        return call, function if holds else None  # type: ignore[return-value]

    if plug.function is not None:
        call, weights = as_call(plug.function)
        return Loss(call, weights=weights)
    make = plug.make
    assert make is not None
    return Loss(None, trained_only=True, make=lambda c, d: as_call(make(c, d)))


def as_record(returned: Any, name: str) -> LossRecord:
    """What a loss function returned, as a record. Raises ConfigError that says what came and what is needed."""
    loss = getattr(returned, "loss", None)
    if isinstance(returned, Tensor):
        loss = returned
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.dtype.is_floating_point:
        came = (
            f"a tensor {tuple(loss.shape)} of {loss.dtype}"
            if isinstance(loss, Tensor)
            else f"a {type(returned).__name__}"
        )
        raise ConfigError(
            f"loss {name!r} returned {came}: needed is a scalar floating tensor, or a record with .loss and .figures; "
            "take the mean of losses"
        )
    figures = {} if isinstance(returned, Tensor) else getattr(returned, "figures", {})
    if not isinstance(figures, Mapping):
        raise ConfigError(
            f"loss {name!r}: .figures is a {type(figures).__name__}, needed is a dict from names to numbers"
        )
    for key, value in figures.items():
        if not isinstance(key, str) or (isinstance(value, Tensor) and value.numel() != 1):
            raise ConfigError(f"loss {name!r}: figure {key!r} is no number with a name; take its mean")
    taken = [key for key in figures if key in RESERVED or key.startswith(RESERVED_START)]
    if taken:
        raise ConfigError(
            f"loss {name!r}: the training has figures of its own by the name of {', '.join(taken)}; rename them (taken "
            f"are {', '.join(RESERVED)} and {RESERVED_START}...)"
        )
    mined = returned if isinstance(returned, Mined) else None
    return LossRecord(loss.reshape(()), mined.weight if mined is not None else 1.0, figures, mined)


def _with_seed(mine: Callable[..., Mined], miner: str, seed: int) -> Callable[..., Mined]:
    return partial(mine, seed=seed) if miner in SEEDED_MINERS else mine


class TripletLoss(nn.Module):
    """A miner as a module: `loss = TripletLoss("semihard", margin=0.2)(embeddings, labels)`.

    `miner` is a name of MINERS or "package.module:function". `.mined` holds the record of the last call, with the
    rows of its batch; saved (`torch.save`, pickle, `copy.deepcopy`), it keeps the figures of that record.
    A miner that draws at random takes seed + the number of calls, which is saved with the module.
    """

    calls: Tensor

    def __init__(
        self,
        miner: str = "semihard",
        *,
        margin: Margin = 0.2,
        distance: str = "squared",
        budget_mib: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        make_rule(margin, distance)
        self.seed = seed
        if miner in SEEDED_MINERS:
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.miner, self.margin, self.distance, self.budget_mib = miner, margin, distance, budget_mib
        self.mine = resolve_miner(miner)
        self.mined: Mined | None = None

    @uncompiled
    def forward(
        self,
        embeddings_BD: Tensor,
        labels_B: Tensor,
        anchors: Anchors = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of a batch, a scalar with its gradient; `anchors` and `weights` as in `batch_all`."""
        mine = self.mine
        if self.miner in SEEDED_MINERS:
            mine = partial(mine, seed=self.seed + int(self.calls))
            self.calls += 1
        mined = mine(
            embeddings_BD,
            labels_B,
            margin=self.margin,
            distance=self.distance,
            anchors=anchors,
            budget_mib=self.budget_mib,
            weights=weights,
        )
        self.mined = replace(mined, loss=mined.loss.detach())
        return mined.loss

    def extra_repr(self) -> str:
        """The options."""
        return f"{self.miner}, margin={self.margin}, distance={self.distance}"
