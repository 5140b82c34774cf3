"""Exact online triplet mining in tiles: no B x B x B tensor, memory as B, time as B^2."""

from facemetric.mining.given import pair_losses, triplet_losses
from facemetric.mining.losses import LOSSES, LossOptions, LossRecord, TripletLoss, resolve_loss
from facemetric.mining.memory import CrossBatchMemory
from facemetric.mining.miners import (
    MINERS,
    SEEDED_MINERS,
    batch_all,
    batch_hard,
    batch_select,
    distance_weighted,
    resolve_miner,
    semihard,
)
from facemetric.mining.record import Mined

__all__ = [
    "LOSSES",
    "MINERS",
    "SEEDED_MINERS",
    "CrossBatchMemory",
    "LossOptions",
    "LossRecord",
    "Mined",
    "TripletLoss",
    "batch_all",
    "batch_hard",
    "batch_select",
    "distance_weighted",
    "pair_losses",
    "resolve_loss",
    "resolve_miner",
    "semihard",
    "triplet_losses",
]
