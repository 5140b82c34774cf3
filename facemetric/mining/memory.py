"""Cross-batch memory: the embeddings of past batches as further positives and negatives of this one.

Source: Wang et al. 2020, arXiv:1912.06798. Shapes: B rows of a batch, S rows of memory, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from facemetric.errors import ConfigError, DataError
from facemetric.mining.miners import SEEDED_MINERS, resolve_miner
from facemetric.mining.record import Mined
from facemetric.mining.uncompiled import uncompiled


class CrossBatchMemory(nn.Module):
    """The last `size` embeddings, without gradient; the batch is mined against itself and all of them.

        memory = CrossBatchMemory(4096, dim=128, miner="hard")
        mined = memory(embeddings, labels, margin=0.2)

    The memory is made of buffers: `state_dict` saves it and `load_state_dict` brings it back. Embeddings are
    stored as float32 after they were mined, in training mode only.
    A miner that draws at random takes seed + the number of batches, unless a call names its seed.
    """

    embeddings: Tensor
    labels: Tensor
    filled: Tensor
    cursor: Tensor
    batches: Tensor

    def __init__(self, size: int, *, dim: int, miner: str = "semihard", seed: int = 0) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ConfigError(
                f"a memory of {size} rows of {dim} numbers holds nothing: both must be at least 1"
            )
        self.size, self.seed, self.seeded = size, seed, miner in SEEDED_MINERS
        self.mine = resolve_miner(miner)
        self.register_buffer("embeddings", torch.zeros(size, dim))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        for name in ("filled", "cursor", "batches"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    @uncompiled
    def forward(
        self,
        embeddings_BD: Tensor,
        labels_B: Tensor,
        *,
        rows: slice | None = None,
        weights: Tensor | None = None,
        **options: Any,
    ) -> Mined:
        """Mines the rows of the batch against the batch and the memory; `options` are those of the miner.

        `rows` are those to mine, all without it: under torchrun one process's part of the gathered batch. `weights`
        (B,) are those of the batch's rows as anchors, which the memory's are not.
        Errors: DataError for another dimension than `dim` or for labels that are not integers.
        """
        if self.seeded:
            options = {"seed": self.seed + int(self.batches)} | options
        both, labels = self.behind(embeddings_BD, labels_B)
        if weights is not None:
            options["weights"] = torch.cat([weights, weights.new_ones(len(labels) - len(labels_B))])
        mined = self.mine(both, labels, anchors=rows or slice(0, len(labels_B)), **options)
        if self.training:
            self.store(embeddings_BD, labels_B)
        return mined

    def behind(self, embeddings_BD: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B + S, D), (B + S,): the batch, and behind it what is remembered; for a loss that takes `anchors`.

        Errors: as in a call.
        """
        self.check(embeddings_BD, labels_B)
        known = int(self.filled)
        return (
            torch.cat([embeddings_BD, self.embeddings[:known]]),
            torch.cat([labels_B.to(torch.int64), self.labels[:known]]),
        )

    def check(self, embeddings_BD: Tensor, labels_B: Tensor) -> None:
        """Raises DataError for embeddings of another dimension, or labels that are not integers."""
        if embeddings_BD.dim() != 2 or embeddings_BD.shape[1] != self.embeddings.shape[1]:
            raise DataError(
                f"embeddings are {tuple(embeddings_BD.shape)}, needed are (B, {self.embeddings.shape[1]})"
            )
        if labels_B.dtype.is_floating_point:
            raise DataError(
                f"labels are {labels_B.dtype}, a memory keeps integers: convert them with .long()"
            )

    @torch.no_grad()
    def store(self, embeddings_BD: Tensor, labels_B: Tensor) -> None:
        """Writes a batch over the oldest rows; of a batch larger than the memory its last rows stay."""
        keep = min(len(labels_B), self.size)
        at_K = (self.cursor + torch.arange(keep, device=self.cursor.device)) % self.size
        self.embeddings[at_K] = embeddings_BD[len(labels_B) - keep :].to(self.embeddings.dtype)
        self.labels[at_K] = labels_B[len(labels_B) - keep :].to(torch.int64)
        self.cursor.copy_((self.cursor + keep) % self.size)
        self.filled.copy_((self.filled + keep).clamp(max=self.size))
        self.batches += 1
