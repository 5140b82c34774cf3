"""Many positives an anchor: a distance is searched among their bounds, instead of compared with each.

Shapes: m anchors with many positives, K positives, L bounds, S = L + 1, R and C rows and columns of a tile.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# From this many positives an anchor, bounds are sorted and searched; below it, each is compared with the tile.
MANY_POSITIVES = 80
# The first three levels of the search compare with all seven bounds: that costs less than three gathers.
COARSE_BOUNDS = 8
# Distances to search at a time on a CPU, so that temporaries stay in its cache; a GPU takes a whole tile.
SEARCH_BLOCK = 2**16


class Ladder(NamedTuple):
    """Of the m anchors with many positives: bounds in ascending order, -inf in front, L one below a power of two."""

    bound_mL: Tensor
    place_mK: Tensor  # where the bound of the k-th positive went
    below_mS: Tensor  # S = L + 1: negatives by how many bounds lie at or below their distance


def make_ladder(prefix: list[int], bounds: list[Tensor]) -> Ladder | None:
    """Of the anchors with more than MANY_POSITIVES of them; None where there is no such anchor."""
    K = len(prefix)
    if K < MANY_POSITIVES:
        return None
    m, length = prefix[MANY_POSITIVES - 1], 2 ** K.bit_length() - 1
    bound_mL = bounds[0].new_full((m, length), -torch.inf)
    for k, bound in enumerate(bounds):
        bound_mL[: len(bound), k] = bound[:m]
    bound_mL, from_mL = bound_mL.sort(1)
    place_mL = torch.empty_like(from_mL)
    place_mL.scatter_(1, from_mL, torch.arange(length, device=from_mL.device).expand_as(from_mL))
    return Ladder(bound_mL, place_mL[:, :K], bound_mL.new_zeros(m, length + 1))


def climb(
    ladder: Ladder, dist_RC: Tensor, rows: slice, weight_RC: Tensor, *, fresh: bool, tally: bool
) -> None:
    """Adds the active triplets of some anchors to `weight_RC` (`fresh` writes it), by a binary search."""
    step = max(SEARCH_BLOCK // dist_RC.shape[1], 1) if dist_RC.device.type == "cpu" else len(dist_RC)
    for top in range(0, len(dist_RC), step):
        part = slice(top, top + step)
        mine = slice(rows.start + top, min(rows.start + top + step, rows.stop))
        rank_RC = _rank(dist_RC[part].contiguous(), ladder.bound_mL[mine])
        if tally:
            ladder.below_mS[mine].scatter_add_(1, rank_RC.long(), rank_RC.new_ones(1, 1).expand_as(rank_RC))
        rank_RC.neg_().add_(ladder.bound_mL.shape[1])
        weight_RC[part] = rank_RC if fresh else weight_RC[part].add_(rank_RC)


def _rank(dist_RC: Tensor, bound_RL: Tensor) -> Tensor:
    """How many of its anchor's bounds lie at or below each distance, as floats: they convert fastest."""
    step = bound_RL.shape[1] + 1
    coarse = min(COARSE_BOUNDS, step)
    step //= coarse
    rank_RC, above_RC = torch.zeros_like(dist_RC), torch.empty_like(dist_RC)
    for bound_R in bound_RL[:, step - 1 :: step].unbind(1):
        rank_RC.add_(torch.le(bound_R[:, None], dist_RC, out=above_RC), alpha=step)
    while step > 1:
        step //= 2
        at_RC = above_RC.copy_(rank_RC).add_(step - 1).long()
        torch.gather(bound_RL, 1, at_RC, out=above_RC)
        rank_RC.add_(torch.le(above_RC, dist_RC, out=above_RC), alpha=step)
    return rank_RC
