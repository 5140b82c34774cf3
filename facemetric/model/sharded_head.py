"""A head whose identities are shared out over processes: each has the columns of some, and no process has all.

Every process sees the embeddings of all, makes the logits of its own identities, and puts the margin on in the rows
of these. The cross-entropy needs one maximum and a few sums of the batch over processes; the gradient of a column
stays where the column is. With a sample (Partial FC) each step sees the batch's own identities and, of the others,
some that are drawn. One process alone runs the same code.

Sources: Deng et al. 2019, arXiv:1801.07698, section 3.2 (centre parallel); An et al. 2022, arXiv:2203.15565 (sample).

Shapes: A images of all processes, B of this one, D embedding, C identities in all, S those of this process that the
step sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from facemetric import distributed
from facemetric.distributed import Shard
from facemetric.errors import ConfigError, given, plural
from facemetric.model.heads import HEADS, MarginHead, at_least_single, make_head, own_logits

BLOCK = 4096  # identities whose first weights are drawn together, whichever processes have them
AT_ONCE = 256  # embeddings of each process whose identities are looked for together
DEVIATION = 0.01  # of the first weights, as in heads.py


class HeadLoss(NamedTuple):
    """This process's part of the sums over the images of all: cross-entropy, and images told right without a margin.

    The gradient of `loss` is that of the whole sum, for the columns of this process and every embedding: hand it to
    `backward` with the same factor on every process."""

    loss: Tensor
    right: Tensor


class Drawn(NamedTuple):
    """The rows of a parameter that a step works on, and `part`, the parameter that they are meanwhile."""

    whole: nn.Parameter
    rows: Tensor
    part: nn.Parameter


class ShardedHead(nn.Module):
    """The columns of this process of a head in HEADS (`columns`); `shard` says which identities they are.

    `sample` is the share of all identities that a step sees, 0..1. The first weights, and who is drawn, depend on the
    seed alone, not on the number of processes. Raises ConfigError for a head that needs all columns."""

    steps: Tensor

    def __init__(
        self,
        kind: str,
        embedding_size: int,
        identities: int,
        *,
        scale: float,
        margin: float,
        arguments: Mapping[str, Any] = MappingProxyType({}),
        sample: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_by_columns(kind)
        self.shard = distributed.shard_of(identities)
        if identities < distributed.world_size():
            raise ConfigError(
                f"{plural(identities, 'identity')} cannot be shared out over {distributed.world_size()} processes; "
                "leave out --head-shards"
            )
        with torch.random.fork_rng(devices=[]):  # what is drawn here is not kept
            self.columns = make_head(
                kind, embedding_size, self.shard.size, scale=scale, margin=margin, arguments=arguments
            )
        self.columns.sharded = True
        self.sample, self.seed = sample, seed
        self.register_buffer("steps", torch.tensor(0))  # that drew a sample
        self.drawn: list[Drawn] = []
        with torch.no_grad():
            for parameter in self.columns.parameters():
                distributed.mark_shard(parameter)
                first_weights(parameter, self.shard, seed)

    @property
    def has_centres(self) -> bool:
        """Whether it can start from one vector an identity."""
        return isinstance(self.columns, MarginHead)

    def start_from(self, centre_CD: Tensor) -> None:
        """Begin at one centre (C, D) an identity."""
        assert isinstance(self.columns, MarginHead)
        self.columns.start_from(centre_CD[self.shard.first : self.shard.stop])

    def cross_entropy(
        self, emb_BD: Tensor, label_B: Tensor, strength: float = 1.0, smoothing: float = 0.0
    ) -> HeadLoss:
        """Cross-entropy of the images of all processes, the margin at `strength`. All processes call it together."""
        emb_AD, label_A, own = distributed.gather_rows(at_least_single(emb_BD), label_B)
        logit_AS, local_A, ids_S = self._logits(emb_AD, label_A)
        logit_AS = at_least_single(logit_AS)
        found_A = best(logit_AS.detach(), ids_S)
        harder_AS = self.columns.with_margin(logit_AS, local_A, strength, emb_BD=emb_AD)
        loss = SharedCrossEntropy.apply(harder_AS, local_A, own, smoothing, self.shard.total)
        return HeadLoss(loss, (found_A == label_A)[own].sum().to(emb_AD))

    @torch.no_grad()
    def identify(self, emb_ND: Tensor) -> Tensor:
        """The identity (N,) with the highest logit without a margin. All processes call it together, each with
        embeddings of its own, many or none."""
        most = int(distributed.highest(torch.tensor(len(emb_ND), device=emb_ND.device)))
        ids = torch.arange(self.shard.first, self.shard.stop, device=emb_ND.device)
        found = []
        for start in range(0, most, AT_ONCE):
            own_BD = at_least_single(emb_ND[start : start + AT_ONCE])
            emb_AD, _, own = distributed.gather_rows(own_BD, torch.zeros(len(own_BD), device=own_BD.device))
            found.append(best(at_least_single(self.columns(emb_AD)), ids)[own])
        return torch.cat(found) if found else ids[:0]

    def _logits(self, emb_AD: Tensor, label_A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(logits (A, S), the column of each label or -1, the identities (S,) of the columns)."""
        self.drawn = []
        device = emb_AD.device
        if self.sample == 1 or not self.training:
            ids_S = torch.arange(self.shard.first, self.shard.stop, device=device)
            mine_A = (label_A >= self.shard.first) & (label_A < self.shard.stop)
            return self.columns(emb_AD), torch.where(mine_A, label_A - self.shard.first, -1), ids_S
        ids_S = self._draw(label_A).to(device)
        active: dict[str, Tensor] = {}
        for name, parameter in self.columns.named_parameters():
            each = len(parameter) // self.shard.size  # rows of an identity
            rows = ((ids_S - self.shard.first)[:, None] * each + torch.arange(each, device=device)).reshape(
                -1
            )
            part = nn.Parameter(parameter.detach()[rows])
            distributed.mark_shard(part)
            self.drawn.append(Drawn(parameter, rows, part))
            active[name] = part
        place_A = torch.searchsorted(ids_S, label_A)
        found_A = place_A.clamp_max(max(len(ids_S) - 1, 0))
        mine_A = ids_S[found_A] == label_A if len(ids_S) else torch.zeros_like(label_A, dtype=torch.bool)
        logit_AS = torch.func.functional_call(self.columns, active, (emb_AD,))
        return logit_AS, torch.where(mine_A, found_A, -1), ids_S

    def _draw(self, label_A: Tensor) -> Tensor:
        """The identities of this process that the step sees, rising: every one of the batch, the others at random."""
        rng = np.random.default_rng([self.seed, 31, int(self.steps)])
        self.steps += 1
        chance_C = rng.random(self.shard.total, dtype=np.float32)
        own = np.unique(label_A.cpu().numpy())
        chance_C[own] = 2
        count = min(max(round(self.sample * self.shard.total), len(own)), self.shard.total)
        bound = np.partition(chance_C, self.shard.total - count)[self.shard.total - count]
        mine = np.flatnonzero(chance_C[self.shard.first : self.shard.stop] >= bound)
        return torch.from_numpy(mine + self.shard.first)


def check_by_columns(kind: str) -> None:
    """Raise ConfigError for a head whose margin was not written for some of the columns."""
    owner = next(c for c in HEADS[kind].__mro__ if "with_margin" in vars(c)) if kind in HEADS else None
    if owner is not None and not vars(owner).get("by_columns"):
        raise ConfigError(
            f"{given('--head', kind)} sees all logits of an image at once, so it cannot be shared out over "
            "processes; leave out --head-shards, or see `by_columns` in model/heads.py "
            f"({owner.__name__} does not set it)"
        )


def first_weights(parameter: nn.Parameter, shard: Shard, seed: int) -> None:
    """Fill this process's rows: normal numbers drawn for BLOCK identities at a time; a bias is 0."""
    if parameter.dim() == 1:
        parameter.zero_()
        return
    each = len(parameter) // shard.size
    for block in range(shard.first // BLOCK, -(-shard.stop // BLOCK)):
        low, high = max(block * BLOCK, shard.first), min((block + 1) * BLOCK, shard.stop)
        numbers = np.random.default_rng([seed, 29, block]).standard_normal(
            ((high - block * BLOCK) * each, parameter.shape[1]), dtype=np.float32
        )
        rows = torch.from_numpy(numbers[(low - block * BLOCK) * each :]).mul_(DEVIATION)
        parameter[(low - shard.first) * each : (high - shard.first) * each] = rows.to(parameter)


def best(logit_AS: Tensor, ids_S: Tensor) -> Tensor:
    """The identity (A,) of the highest logit on any process; of equal ones the lowest number."""
    score_A = logit_AS.new_full((len(logit_AS),), -torch.inf)
    id_A = ids_S.new_full((len(logit_AS),), -1)
    if len(ids_S):
        score_A, place_A = logit_AS.max(1)
        id_A = ids_S[place_A]
    top_A = distributed.highest(score_A)
    none = torch.iinfo(id_A.dtype).max
    return -distributed.highest(-id_A.where((score_A == top_A) & (id_A >= 0), none))


class SharedCrossEntropy(torch.autograd.Function):
    """Cross-entropy of logits whose columns lie on several processes.

    Forward returns the sum over the rows `own`, those of this process; backward gives the gradient of the sum over
    all rows, for the columns of this process. `local_A` is the column of a row's own identity, -1 on the other
    processes; `smoothing` spreads that share of the target over all `identities`."""

    @staticmethod
    def forward(
        ctx: Any, logit_AS: Tensor, local_A: Tensor, own: slice, smoothing: float, identities: int
    ) -> Tensor:
        empty = not logit_AS.shape[1]
        top_A = logit_AS.new_full((len(logit_AS),), -torch.inf) if empty else logit_AS.amax(1)
        top_A = distributed.highest(top_A)
        sums = [(logit_AS - top_A[:, None]).exp_().sum(1), own_logits(logit_AS, local_A)]
        if smoothing:
            sums.append(logit_AS.sum(1))
        found = distributed.total(torch.stack(sums))
        log_sum_A = top_A + found[0].log()
        loss_A = (1 - smoothing) * (log_sum_A - found[1])
        if smoothing:
            loss_A += smoothing * (log_sum_A - found[2] / identities)
        ctx.save_for_backward(logit_AS, local_A, log_sum_A)
        ctx.smoothing, ctx.identities = smoothing, identities
        return loss_A[own].sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logit_AS, local_A, log_sum_A = ctx.saved_tensors
        grad_AS = (logit_AS - log_sum_A[:, None]).exp_()
        if ctx.smoothing:
            grad_AS -= ctx.smoothing / ctx.identities
        rows = (local_A >= 0).nonzero()[:, 0]
        grad_AS[rows, local_A[rows]] -= 1 - ctx.smoothing
        return grad_AS.mul_(grad), None, None, None, None
