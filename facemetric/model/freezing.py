"""What trains: the projection alone, the batch norm layers too, or everything; in turn, where several are named.

A frozen batch norm must also stay in evaluation mode: otherwise its running statistics drift while its
weights stand still.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from facemetric.errors import ConfigError, did_you_mean
from facemetric.model.embedder import Embedder

FREEZE = ("backbone", "batchnorm", "none")


def freeze(embedder: Embedder, mode: str) -> None:
    """Say what of the embedder trains: nothing of the `backbone`, its `batchnorm` layers, or all (`none`).

    The projection trains always. Raises ConfigError for another word."""
    if mode not in FREEZE:
        raise ConfigError(f"unknown freeze {mode!r}{did_you_mean(mode, FREEZE)}")
    embedder.backbone.requires_grad_(mode == "none")
    if mode == "batchnorm":
        for module in batch_norms(embedder.backbone):
            module.requires_grad_(True)
    embedder.projection.requires_grad_(True)


def widest(turns: Sequence[str]) -> str:
    """Of what is frozen in turn, that which trains all that trains in any turn."""
    return max(turns, key=FREEZE.index)


def turn(turns: Sequence[str], epochs: Sequence[int], epoch: int) -> str:
    """What is frozen in an epoch (from 0): each of `turns` has its number of `epochs`, the last has the rest."""
    return turns[bisect.bisect_right(list(itertools.accumulate(epochs)), epoch)]


def training_mode(embedder: Embedder, mode: str) -> None:
    """Put into training mode what trains, and everything else into evaluation mode."""
    embedder.train()
    if mode != "none":
        embedder.backbone.eval()
    if mode == "batchnorm":
        for module in batch_norms(embedder.backbone):
            module.train()


def batch_norms(module: nn.Module) -> list[nn.Module]:
    """The batch norm layers inside a module, timm's fused ones included."""
    return [child for child in module.modules() if isinstance(child, _BatchNorm)]
