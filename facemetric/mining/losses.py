"""Losses as modules: a miner with its options.

Shapes: B rows of a batch, D embedding.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from facemetric.mining.mine import Anchors, Margin, Mined, make_rule
from facemetric.mining.miners import SEEDED_MINERS, resolve_miner


class TripletLoss(nn.Module):
    """A miner as a module: `loss = TripletLoss("semihard", margin=0.2)(embeddings, labels)`.

    `miner` is a name of MINERS or "package.module:function". `.mined` holds the record of the last call.
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

    def forward(self, embeddings_BD: Tensor, labels_B: Tensor, anchors: Anchors = None) -> Tensor:
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
        )
        self.mined = replace(mined, loss=mined.loss.detach())
        return mined.loss

    def extra_repr(self) -> str:
        return f"{self.miner}, margin={self.margin}, distance={self.distance}"
