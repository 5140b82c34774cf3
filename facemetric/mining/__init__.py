"""Exact online triplet mining in tiles: no B x B x B tensor, memory as B, time as B^2."""

from facemetric.mining.losses import TripletLoss
from facemetric.mining.memory import CrossBatchMemory
from facemetric.mining.mine import Mined
from facemetric.mining.miners import (
    MINERS,
    batch_all,
    batch_hard,
    batch_select,
    distance_weighted,
    resolve_miner,
    semihard,
)

__all__ = [
    "MINERS",
    "CrossBatchMemory",
    "Mined",
    "TripletLoss",
    "batch_all",
    "batch_hard",
    "batch_select",
    "distance_weighted",
    "resolve_miner",
    "semihard",
]
