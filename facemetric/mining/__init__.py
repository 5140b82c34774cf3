"""Exact online triplet mining in tiles: no B x B x B tensor, memory as B, time as B^2."""

from facemetric.mining.triplets import (
    MINERS,
    Mined,
    TripletLoss,
    batch_all,
    batch_hard,
    batch_select,
    resolve_miner,
    semihard,
)

__all__ = [
    "MINERS",
    "Mined",
    "TripletLoss",
    "batch_all",
    "batch_hard",
    "batch_select",
    "resolve_miner",
    "semihard",
]
