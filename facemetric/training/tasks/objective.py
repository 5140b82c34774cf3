"""The loss of a batch in stage two: over all processes, with the memory, the doctor and a teacher beside it.

Shapes: B rows of this process, A rows of all, D embedding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from facemetric import distributed
from facemetric.config import FinetuneConfig
from facemetric.distributed import say
from facemetric.errors import ConfigError
from facemetric.mining.losses import Loss, LossRecord
from facemetric.mining.memory import CrossBatchMemory
from facemetric.training.run.run import Run
from facemetric.training.step.readings import Figure
from facemetric.training.tasks.doctor import SPREAD, VALID, Doctor, see, spread
from facemetric.training.tasks.following import Following


def share(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 where the whole is 0."""
    return torch.where(whole != 0, part / whole, 0.0)


class Objective:
    """The loss of a batch and its figures by name, over all processes.

    Of the batch of all processes each answers for its own anchors; where the loss cannot be split so, each computes
    it whole and takes its share."""

    def __init__(self, config: FinetuneConfig, loss: Loss, run: Run) -> None:
        self.config, self.loss, self.run = config, loss, run
        self.calls = self.watched = 0  # steps taken, and those whose figures were read
        self.doctor = Doctor(
            margin=config.margin,
            soft=config.soft_margin,
            miner=config.miner if config.loss == "triplet" else "",
            loss=config.loss,
            say=self.report,
        )
        self.memory: CrossBatchMemory | None = None
        self.following: Following | None = None  # the teacher, where there is one

    def report(self, name: str, text: str) -> None:
        """What the doctor found, for the user and the log."""
        say(f"doctor: {text}")
        self.run.log("doctor", self.watched, finding=name, text=text)

    def __call__(
        self, emb_BD: Tensor, labels_B: Tensor, rows_B: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Figure]]:
        """Unit embeddings (B, D) and labels (B,) of this process -> (its part of the loss, figures of all).

        `rows_B` (B,) are the images' rows among the teacher's, where one is followed.
        The parts of all processes add up to the loss of one process with the whole batch. The figures are on the
        device, with what the doctor wants to know: `watch` takes them when they are read."""
        self.calls += 1
        seed = self.config.seed * 1_000_003 + self.calls
        emb_AD, labels_A, own = distributed.gather_rows(emb_BD, labels_B)
        anchors = own if distributed.together() and self.loss.splits else None
        if self.config.memory:
            memory = self.remembering(emb_AD)
            both, labels = memory.behind(emb_AD, labels_A)
            found = self.loss(both, labels, anchors=anchors or slice(0, len(labels_A)), seed=seed)
            memory.store(emb_AD, labels_A)
        else:
            found = self.loss(emb_AD, labels_A, anchors=anchors, seed=seed)
        loss, figures = self.of_all(found) if found.mined is not None else self.shared(found)
        figures = figures | {SPREAD: spread(emb_AD)}
        if self.following is None:
            return loss, figures
        assert rows_B is not None
        return self.following.beside(loss, figures, emb_BD, rows_B)

    def watch(self, figures: dict[str, float]) -> dict[str, float]:
        """Show the doctor the figures of a step, once they are read; return those for the log."""
        self.watched += 1
        self.doctor.watch(see(figures))
        return {name: value for name, value in figures.items() if name not in (SPREAD, VALID)}

    def of_all(self, found: LossRecord) -> tuple[Tensor, dict[str, Figure]]:
        """This process's part of a miner's mean over the triplets of all, and the figures of all of them."""
        mined = found.mined
        assert mined is not None
        weight, loss = mined.weight, found.loss
        sums = torch.stack([weight, mined.active, weight * mined.d_ap, weight * mined.d_an]).double()
        counts = distributed.total(torch.cat([sums, torch.full_like(sums[:1], mined.valid)]))
        total, active, d_ap, d_an, valid = counts
        if distributed.together():
            loss = loss * share(weight.double(), total).to(loss.dtype)
        figures: dict[str, Figure] = {
            "loss": distributed.total(loss),
            "fraction_positive": share(active, valid),
            "mean_d_ap": share(d_ap, total),
            "mean_d_an": share(d_an, total),
            VALID: valid,
        }
        return loss, figures

    def shared(self, found: LossRecord) -> tuple[Tensor, dict[str, Figure]]:
        """This process's part of a loss, its anchors' or its share of the whole, and the figures of all anchors."""
        named: dict[str, Figure] = {"loss": found.loss.detach()}
        for name, value in found.figures.items():
            named[name] = value.detach() if isinstance(value, Tensor) else float(value)
        usable: dict[str, Figure] = {} if found.usable is None else {VALID: found.usable}
        if not (found.part and self.loss.splits and distributed.together()):
            return found.loss / distributed.world_size(), named | usable

        def single(value: Figure) -> Tensor:
            if isinstance(value, Tensor):
                return value.detach().to(found.loss.device, torch.float64).reshape(())
            return torch.full((), value, dtype=torch.float64, device=found.loss.device)

        weights = [single(found.figure_weights.get(name, found.weight)) for name in named]
        sums = [weight * single(value) for weight, value in zip(weights, named.values(), strict=True)]
        totals = distributed.total(torch.stack([single(found.usable or 0), *weights, *sums]))
        of_K, sum_K = totals[1:].view(2, len(named))
        means: dict[str, Figure] = dict(zip(named, share(sum_K, of_K), strict=True))
        part = found.loss * share(single(found.weight), of_K[0]).to(found.loss.dtype)
        return part, means | {VALID: totals[0]}

    @torch.no_grad()
    def measure(self, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """The means over validation batches (B, D), (B,) of the loss and its figures, as `val_loss` and so on; of
        triplets, the share of all of them that violate the margin; {} of a loss that knows trained identities alone.

        In this process alone, and without the memory."""
        if self.loss.trained_only:
            return {}
        sums: dict[str, list[float]] = {}
        active, valid = 0.0, 0
        for emb_BD, labels_B in batches:
            found = self.loss(emb_BD, labels_B, seed=self.config.seed)
            figures = {"loss": found.loss} | ({} if found.mined is not None else dict(found.figures))
            for name, value in figures.items():
                sums.setdefault(f"val_{name}", []).append(float(value))
            if found.mined is not None:
                active, valid = active + float(found.mined.active), valid + int(found.mined.valid)
        means = {name: float(np.mean(values)) for name, values in sums.items()}
        if self.config.loss == "triplet":
            means["val_fraction_positive"] = active / valid if valid else 0.0
        return means

    def remembering(self, emb_AD: Tensor) -> CrossBatchMemory:
        """The memory, made when the first batch tells its dimension and device."""
        if self.memory is None:
            self.memory = new_memory(self.config, emb_AD.shape[1], emb_AD.device)
        return self.memory

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the calls so far, the memory, and what the doctor has seen."""
        memory = self.memory.state_dict() if self.memory is not None else None
        return {"calls": self.calls, "memory": memory, "doctor": self.doctor.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back. Raises ConfigError for a memory of another size."""
        self.calls = self.watched = state["calls"]  # figures are read before a checkpoint
        if "doctor" in state:
            self.doctor.load_state_dict(state["doctor"])
        if state["memory"] is None:
            return
        size, dim = state["memory"]["embeddings"].shape
        if size != self.config.memory:
            raise ConfigError(
                f"the checkpoint has --memory {size}, this run {self.config.memory}; resume with {size}"
            )
        self.memory = new_memory(self.config, dim, state["memory"]["embeddings"].device)
        self.memory.load_state_dict(state["memory"])


def new_memory(config: FinetuneConfig, dim: int, device: torch.device) -> CrossBatchMemory:
    """An empty memory of --memory embeddings."""
    return CrossBatchMemory(config.memory, dim=dim, miner=config.miner).to(device)
