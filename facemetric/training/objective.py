"""What stage two minimises: triplets mined in the global batch and the memory, watched by the doctor.

Shapes: B rows of this process, A rows of all processes, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facemetric.errors import ConfigError
from facemetric.mining.memory import CrossBatchMemory
from facemetric.mining.miners import SEEDED_MINERS, resolve_miner
from facemetric.training import distributed
from facemetric.training.distributed import say
from facemetric.training.doctor import Doctor, see
from facemetric.training.run import Run


class TripletObjective:
    """The loss of a batch and its figures. `memory` is the number of past embeddings to mine against, 0 for none."""

    def __init__(
        self, miner: str, *, margin: float, soft: bool, distance: str, memory: int, seed: int, run: Run
    ) -> None:
        self.options: dict[str, Any] = {"margin": "soft" if soft else margin, "distance": distance}
        self.mine = resolve_miner(miner)
        self.seeded, self.seed, self.calls = miner in SEEDED_MINERS, seed, 0
        self.run = run
        self.doctor = Doctor(margin=margin, soft=soft, miner=miner, say=self.report)
        self.miner, self.size = miner, memory
        self.memory: CrossBatchMemory | None = None

    def report(self, name: str, text: str) -> None:
        """What the doctor found, for the user and the log."""
        say(f"doctor: {text}")
        self.run.log("doctor", self.calls, finding=name, text=text)

    def __call__(self, emb_BD: Tensor, labels_B: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Unit embeddings (B, D) and labels (B,) of this process -> (its part of the loss, figures of all).

        The parts of all processes add up to the loss of one process with the whole batch."""
        self.calls += 1
        options = dict(self.options)
        if self.seeded:
            options["seed"] = self.seed * 1_000_003 + self.calls
        emb_AD, labels_A, own = distributed.gather_rows(emb_BD, labels_B)
        if self.size:
            mined = self.remembering(emb_AD)(emb_AD, labels_A, rows=own, **options)
        else:
            anchors = own if distributed.together() else None
            mined = self.mine(emb_AD, labels_A, anchors=anchors, **options)
        loss = mined.loss
        weight = mined.weight
        sums = torch.stack([weight, mined.active, weight * mined.d_ap, weight * mined.d_an]).double()
        counts = distributed.total(torch.cat([sums, sums.new_tensor([mined.valid])]))
        total, active, d_ap, d_an, valid = counts.tolist()
        if distributed.together():
            loss = loss * (float(weight) / total if total else 0.0)
        figures = {
            "loss": float(distributed.total(loss)),
            "fraction_positive": active / valid if valid else 0.0,
            "mean_d_ap": d_ap / total if total else 0.0,
            "mean_d_an": d_an / total if total else 0.0,
        }
        self.doctor.watch(see(emb_AD, figures, int(valid)))
        return loss, figures

    @torch.no_grad()
    def measure(self, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """The mean loss of validation batches (B, D), (B,), and the share of their triplets that violate the margin.

        In this process alone, and without the memory."""
        losses, active, valid = [], 0.0, 0
        for emb_BD, labels_B in batches:
            options = self.options | ({"seed": self.seed} if self.seeded else {})
            mined = self.mine(emb_BD, labels_B, **options)
            losses.append(float(mined.loss))
            active, valid = active + float(mined.active), valid + int(mined.valid)
        return {"val_loss": float(np.mean(losses)), "val_fraction_positive": active / valid if valid else 0.0}

    def remembering(self, emb_AD: Tensor) -> CrossBatchMemory:
        """The memory, made when the first batch tells its dimension and device."""
        if self.memory is None:
            self.memory = CrossBatchMemory(self.size, dim=emb_AD.shape[1], miner=self.miner).to(emb_AD.device)
        return self.memory

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the calls so far, the memory, and what the doctor has seen."""
        memory = self.memory.state_dict() if self.memory is not None else None
        return {"calls": self.calls, "memory": memory, "doctor": self.doctor.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back. Raises ConfigError for a memory of another size."""
        self.calls = state["calls"]
        if "doctor" in state:
            self.doctor.load_state_dict(state["doctor"])
        if state["memory"] is None:
            return
        size, dim = state["memory"]["embeddings"].shape
        if size != self.size:
            raise ConfigError(f"the checkpoint has --memory {size}, this run {self.size}; resume with {size}")
        self.memory = CrossBatchMemory(size, dim=dim, miner=self.miner).to(
            state["memory"]["embeddings"].device
        )
        self.memory.load_state_dict(state["memory"])
