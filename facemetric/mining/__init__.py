"""Exact online mining of triplets and pairs in tiles: no B x B x B tensor, memory as B, time as B^2."""

from facemetric.mining.given import pair_losses, triplet_losses
from facemetric.mining.kernels.choice import picking
from facemetric.mining.losses import LOSSES, Loss, LossOptions, TripletLoss, resolve_loss
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
from facemetric.mining.pairwise import circle, contrastive, multi_similarity, supcon
from facemetric.mining.proxies import ProxyAnchor, proxy_anchor
from facemetric.mining.record import LossRecord, Mined

__all__ = [
    "LOSSES",
    "MINERS",
    "SEEDED_MINERS",
    "CrossBatchMemory",
    "Loss",
    "LossOptions",
    "LossRecord",
    "Mined",
    "ProxyAnchor",
    "TripletLoss",
    "batch_all",
    "batch_hard",
    "batch_select",
    "circle",
    "contrastive",
    "distance_weighted",
    "multi_similarity",
    "pair_losses",
    "picking",
    "proxy_anchor",
    "resolve_loss",
    "resolve_miner",
    "semihard",
    "supcon",
    "triplet_losses",
]
