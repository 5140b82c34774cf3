"""The records that miners and losses return: a loss, its figures, and which triplets were chosen, for who asks.

Shapes: B rows of a batch, M anchors, T triplets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from facemetric.errors import ConfigError
from facemetric.mining.kernels.common import LazyParts


class Details:
    """What is computed only when it is asked for, from the rows of the batch, which it keeps alive."""

    def triplets(self) -> Tensor:
        """(T, 3) int64."""
        raise AssertionError("a miner gives its own details")

    def of_anchors(self) -> Tensor:
        """(2, M) float64: what the triplets of each anchor cost, and weigh."""
        raise AssertionError("a miner gives its own details")


class Forgotten(Details):
    """Of a record that was saved: it keeps its figures, and no rows."""

    def triplets(self) -> Tensor:
        """Raises ConfigError."""
        raise ConfigError("a saved record keeps its figures, not the rows of its batch: mine the batch again")

    of_anchors = triplets


@dataclass(frozen=True, eq=False)
class Mined:
    """What a miner found. All but `valid` are tensors on the device; only `loss` carries a gradient.

    `loss` is the sum over triplets divided by `weight` (0 where there is nothing to divide), so several ranks
    combine as sum(loss * weight) / sum(weight). `d_ap` and `d_an` are means over the same triplets. What a
    property tells is added up when it is asked for. Saved, a record keeps its figures.
    """

    loss: Tensor
    valid: int  # triplets looked at
    _divisor: Tensor | int = field(repr=False)
    _parts: Tensor | LazyParts = field(repr=False)
    _details: Details = field(repr=False)

    @cached_property
    def _total(self) -> Tensor:
        if isinstance(self._parts, Tensor):
            return self._parts
        return torch.stack(self._parts()).sum(1, dtype=torch.float64)

    @property
    def weight(self) -> Tensor:
        """What the loss was divided by: active or valid triplets, or the sum of the weights that you gave them."""
        if isinstance(self._divisor, Tensor):
            return self._divisor
        return torch.full_like(self._total[0], self._divisor)

    @property
    def active(self) -> Tensor:
        """Triplets with a loss above 0."""
        return self._total[1]

    @property
    def d_ap(self) -> Tensor:
        """Mean distance of anchor and positive, weighed as the loss is."""
        return self._total[2] * reciprocal(self.weight)

    @property
    def d_an(self) -> Tensor:
        """Mean distance of anchor and negative, weighed as the loss is."""
        return self._total[3] * reciprocal(self.weight)

    @property
    def fraction_positive(self) -> Tensor:
        """active / valid, 0..1; 0 where nothing is valid."""
        return self.active / max(self.valid, 1)

    @property
    def figures(self) -> dict[str, Tensor]:
        """What a training run logs beside the loss, by name."""
        return {
            "fraction_positive": self.fraction_positive,
            "mean_d_ap": self.d_ap,
            "mean_d_an": self.d_an,
        }

    @cached_property
    def triplets(self) -> Tensor:
        """(T, 3) int64: the batch's rows of anchor, positive and negative of every triplet that was chosen.

        hard: one an anchor; semihard and distance-weighted: one an (anchor, positive); all: those with a loss above
        0; select: those with a weight. Anchors handed in apart from the batch are counted in their own rows.
        Errors: ConfigError where there are more than a million, as batch-all can find in a thousand rows.
        """
        return self._details.triplets()

    @property
    def anchor_losses(self) -> Tensor:
        """(M,) float64 without gradient: what each anchor adds; their sum divided by `weight` is the loss.

        With a gradient: `triplet_losses(embeddings, mined.triplets)`, which you weigh and add up as you like.
        """
        return self._of_anchors[0]

    @property
    def anchor_weights(self) -> Tensor:
        """(M,) float64: how much each anchor counts, which adds up to `weight`.

        Its triplets (of "all" those with a loss above 0), times its entry of `weights`, or with what a filter gave
        them: `anchor_losses / anchor_weights` is the mean of an anchor.
        """
        return self._of_anchors[1]

    @cached_property
    def _of_anchors(self) -> Tensor:
        return self._details.of_anchors()

    def __getstate__(self) -> dict[str, Any]:
        divisor = self._divisor.detach() if isinstance(self._divisor, Tensor) else self._divisor
        return {
            "loss": self.loss.detach(),
            "valid": self.valid,
            "_divisor": divisor,
            "_parts": self._total,
            "_details": Forgotten(),
        }


@dataclass(frozen=True, eq=False)
class LossRecord:
    """What a loss found: a scalar with its gradient, what it was divided by, and figures by name for the log.

    Ranks that each took a part of the anchors combine as sum(loss * weight) / sum(weight), and their figures with the
    weights of these. A function of your own sees the whole batch on every rank, so its weight is 1.
    """

    loss: Tensor
    weight: Tensor | float = 1.0
    figures: Mapping[str, Tensor | float] = field(default_factory=dict)
    mined: Mined | None = None  # the miner's own record, where there is one
    figure_weights: Mapping[str, float] = field(default_factory=dict)  # what a figure was divided by
    part: bool = False  # whether it is about the anchors alone that were handed in
    usable: int | None = None  # anchors with a positive and a negative; None where the loss does not say


def reciprocal(weight: Tensor) -> Tensor:
    """1 / weight, 0 where nothing has weight."""
    return torch.where(weight > 0, 1 / weight, 0.0)
