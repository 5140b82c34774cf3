"""The record that a loss returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from facemetric.mining.record import Mined


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
