"""What stage two can minimise: a loss is a function of embeddings and labels, and a line in LOSSES.

    loss = resolve_loss("my_losses:centre_loss")            # or "triplet", with LossOptions
    found = loss(embeddings, labels)
    found.loss.backward()                                   # found.figures: named numbers for the log

Shapes: B rows of a batch, M anchors, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from facemetric.errors import ConfigError, did_you_mean
from facemetric.mining.mine import Anchors, Margin, make_rule
from facemetric.mining.miners import SEEDED_MINERS, find_function, resolve_miner
from facemetric.mining.record import Mined
from facemetric.mining.uncompiled import uncompiled

# Names that a line of a training's log, or its validation, has for figures of its own.
RESERVED = (
    *("event", "step", "epoch", "seconds", "loss", "lr", "grad_norm"),
    *("steps_per_second", "minutes_left", "memory_mib", "gpu_mib"),
    *("auc", "eer", "knn_accuracy"),
)
RESERVED_START = "tar_at_far_"


@dataclass(frozen=True, eq=False)
class LossRecord:
    """What a loss found: a scalar with its gradient, what it was divided by, and figures by name for the log.

    Ranks that each mined a part combine as sum(loss * weight) / sum(weight). A function of your own sees the whole
    batch on every rank, so its weight is 1.
    """

    loss: Tensor
    weight: Tensor | float = 1.0
    figures: Mapping[str, Tensor | float] = field(default_factory=dict)
    mined: Mined | None = None  # the miner's own record, where there is one


class LossOptions(NamedTuple):
    """The options of the built-in losses; a function of your own has its own."""

    miner: str = "semihard"  # a name of MINERS, or package.module:function
    margin: Margin = 0.2
    distance: str = "squared"
    seed: int = 0  # of a miner that draws
    budget_mib: float | None = None


class Loss(Protocol):
    """A resolved loss: (embeddings (B, D), labels (B,)) -> LossRecord.

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


def triplet_loss(options: LossOptions) -> Loss:
    """A miner's mean loss over its triplets; figures fraction_positive, mean_d_ap, mean_d_an."""
    make_rule(options.margin, options.distance)
    mine = resolve_miner(options.miner)

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

    return call


# Name -> what makes the loss of its options.
LOSSES: dict[str, Callable[[LossOptions], Loss]] = {"triplet": triplet_loss}


def resolve_loss(name: str, options: LossOptions | None = None) -> Loss:
    """The loss of a name in LOSSES, or your function "package.module:function" of (embeddings, labels).

    Your function returns a scalar tensor, or a record: anything with `loss` (a scalar tensor) and, where it has them,
    `figures` (a mapping from names to numbers; RESERVED lists the names that are taken). It sees the whole batch, with
    any `anchors`.
    Errors: ConfigError for a name that is not known, a module that does not import, a function it lacks, options that
    cannot be; and in a call, for another thing returned.
    """
    name = str(name)
    if ":" not in name:
        if name not in LOSSES:
            raise ConfigError(
                f"unknown loss {name!r}{did_you_mean(name, LOSSES)}, or package.module:function"
            )
        return LOSSES[name](options or LossOptions())
    function = find_function("loss", name)

    def call(
        embeddings_BD: Tensor, labels_B: Tensor, *, anchors: slice | None = None, seed: int | None = None
    ) -> LossRecord:
        return as_record(function(embeddings_BD, labels_B), name)

    return call


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
