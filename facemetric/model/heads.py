"""Classification heads of stage one: embeddings and identities to logits for cross-entropy.

A head is a class and a line in HEADS: its name, its help and the errors for other names come from there.

Shapes: B batch, D embedding, C identities.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from facemetric.distributed import total
from facemetric.errors import ConfigError, did_you_mean, given

# Shorter embeddings are scaled up by no more than this one: 1 / length would let one image rule the gradient.
SHORTEST = 1e-3


class Head(nn.Module):
    """Logits of embeddings (B, D) -> (B, C), and the harder ones that the loss sees.

    `by_columns`: set by a class that defines `with_margin` where that works on some of the columns as well, which is
    what --head-shards asks of it. `sharded` is then true: the batch is that of all processes, and the label of a row
    whose identity is another process's is -1."""

    by_columns = True
    sharded = False

    of_batch = False  # whether an image's margin depends on the others of its batch

    def __init__(self, embedding_size: int, identities: int, *, scale: float, margin: float) -> None:
        super().__init__()
        self.scale, self.margin = scale, margin

    def forward(self, emb_BD: Tensor) -> Tensor:
        """Logits (B, C) without a margin: what is compared to tell who it is."""
        raise AssertionError("a head of HEADS has its own logits")

    def with_margin(
        self, logit_BC: Tensor, label_B: Tensor, strength: float = 1.0, *, emb_BD: Tensor | None = None
    ) -> Tensor:
        """The logits for the loss; as they are where a head has no margin.

        `strength` 0..1 scales the margin, so that training can start without it. `emb_BD` are the embeddings that the
        logits came from, as they left the network, for a head whose margin depends on their lengths.
        """
        return logit_BC

    def own(self, logit_BC: Tensor, label_B: Tensor) -> Tensor:
        """The logit (B,) of each row's own identity; 0 where its column is another process's."""
        return own_logits(logit_BC, label_B) if self.sharded else logit_BC.gather(1, label_B[:, None])[:, 0]

    def with_own(self, logit_BC: Tensor, label_B: Tensor, own_B: Tensor) -> Tensor:
        """The logits with `own_B` in the columns of the rows' own identities, where these are here."""
        own_B = own_B.to(logit_BC.dtype)
        if not self.sharded:
            return logit_BC.scatter(1, label_B[:, None], own_B[:, None])
        rows = (label_B >= 0).nonzero()[:, 0]
        return logit_BC.index_put((rows, label_B[rows]), own_B[rows])


class SoftmaxHead(Head):
    """Plain logits `W x + b` of embeddings as they come; scale and margin mean nothing to it."""

    def __init__(
        self, embedding_size: int, identities: int, *, scale: float = 1.0, margin: float = 0.0
    ) -> None:
        super().__init__(embedding_size, identities, scale=scale, margin=margin)
        # as nn.Linear draws before it is drawn again here: the same seed gives the same weights as ever
        linear = nn.Linear(embedding_size, identities)
        self.weight, self.bias = linear.weight, linear.bias
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def forward(self, emb_BD: Tensor) -> Tensor:
        """Logits (B, C) of any size."""
        return functional.linear(emb_BD, self.weight, self.bias)


class MarginHead(Head):
    """Scaled cosines to one unit vector an identity; the true identity's cosine is made harder by a margin."""

    by_columns = True

    def __init__(self, embedding_size: int, identities: int, *, scale: float, margin: float) -> None:
        super().__init__(embedding_size, identities, scale=scale, margin=margin)
        self.weight = nn.Parameter(torch.randn(identities, embedding_size) * 0.01)

    def harder(self, cosine_B: Tensor, margin: float, emb_BD: Tensor | None) -> Tensor:
        """The cosine (B,) of each image with its own identity, after the margin."""
        raise AssertionError("a margin head of HEADS has its own margin")

    def forward(self, emb_BD: Tensor) -> Tensor:
        """Logits (B, C) in [-scale, scale]; 0 for an embedding of length 0, which has no direction and no gradient."""
        with torch.autocast(emb_BD.device.type, enabled=False):  # float16 cosines cost accuracy
            weight_CD = functional.normalize(at_least_single(self.weight), dim=1)
            return self.scale * functional.linear(directions(at_least_single(emb_BD)), weight_CD)

    @torch.no_grad()
    def start_from(self, centre_CD: Tensor) -> None:
        """Begin at one centre (C, D) an identity."""
        self.weight.copy_(centre_CD)

    def with_margin(
        self, logit_BC: Tensor, label_B: Tensor, strength: float = 1.0, *, emb_BD: Tensor | None = None
    ) -> Tensor:
        """The logits for the loss, in [-scale * (1 + margin), scale]."""
        if strength == 0 or self.margin == 0:
            return logit_BC
        with torch.autocast(logit_BC.device.type, enabled=False):
            cosine_B = self.own(logit_BC, label_B) / self.scale
            own_B = self.harder(cosine_B, self.margin * strength, emb_BD)
            return self.with_own(logit_BC, label_B, self.scale * own_B)


def own_logits(logit_BC: Tensor, label_B: Tensor) -> Tensor:
    """The logit (B,) of each row's own identity; 0 where the label is -1, as its column is another process's."""
    if not logit_BC.shape[1]:
        return logit_BC.new_zeros(len(logit_BC))
    return logit_BC.gather(1, label_B.clamp_min(0)[:, None])[:, 0].where(label_B >= 0, 0)


def at_least_single(numbers: Tensor) -> Tensor:
    """float64 as it is, other precisions as float32."""
    return numbers if numbers.dtype == torch.float64 else numbers.float()


def directions(emb_BD: Tensor) -> Tensor:
    """Embeddings brought to length 1; those shorter than SHORTEST stay shorter, those of length 0 have no gradient."""
    length_B1 = torch.linalg.vector_norm(emb_BD, dim=1, keepdim=True)
    return emb_BD / length_B1.clamp_min(SHORTEST).masked_fill(length_B1 == 0, torch.inf)


class ArcFaceHead(MarginHead):
    """cos(theta + margin), margin in radians. Source: Deng et al. 2019, arXiv:1801.07698."""

    def harder(self, cosine_B: Tensor, margin: float, emb_BD: Tensor | None) -> Tensor:
        """cos(theta + m); past theta = pi - m, where that would rise again, cos(theta) - m sin(m)."""
        sine_B = (1 - cosine_B.square()).clamp_min(1e-12).sqrt()
        turned_B = cosine_B * math.cos(margin) - sine_B * math.sin(margin)
        return torch.where(cosine_B > -math.cos(margin), turned_B, cosine_B - margin * math.sin(margin))


class CosFaceHead(MarginHead):
    """cos(theta) - margin. Source: Wang et al. 2018, arXiv:1801.09414."""

    def harder(self, cosine_B: Tensor, margin: float, emb_BD: Tensor | None) -> Tensor:
        """The cosine less the margin."""
        return cosine_B - margin


class CombinedHead(MarginHead):
    """cos(factor theta + margin) - shift. Source: Deng et al. 2019, arXiv:1801.07698, equation 4."""

    def __init__(
        self,
        embedding_size: int,
        identities: int,
        *,
        scale: float,
        margin: float,
        factor: float = 1.0,
        shift: float = 0.1,
    ) -> None:
        super().__init__(embedding_size, identities, scale=scale, margin=margin)
        check_argument("factor", factor, 1, 4)
        check_argument("shift", shift, 0, 1)
        self.factor, self.shift = factor, shift

    def harder(self, cosine_B: Tensor, margin: float, emb_BD: Tensor | None) -> Tensor:
        """cos(f theta + m) - s; past an angle of pi, where the cosine would rise again, it goes on in a line."""
        strength = margin / self.margin
        theta_B = cosine_B.clamp(-1 + 1e-6, 1 - 1e-6).acos()
        angle_B = theta_B * (1 + strength * (self.factor - 1)) + margin
        turned_B = torch.where(angle_B < math.pi, angle_B.cos(), math.pi - 1 - angle_B)
        return turned_B - strength * self.shift


class AdaFaceHead(MarginHead):
    """A margin that grows with the length of the embedding, its quality. Source: Kim et al. 2022, arXiv:2204.00964."""

    of_batch = True
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        embedding_size: int,
        identities: int,
        *,
        scale: float,
        margin: float,
        spread: float = 0.333,
        momentum: float = 0.99,
    ) -> None:
        super().__init__(embedding_size, identities, scale=scale, margin=margin)
        check_argument("spread", spread, 0, 10)
        check_argument("momentum", momentum, 0, 1)
        self.spread, self.momentum = spread, momentum  # h and alpha of the paper
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("deviation", torch.tensor(100.0))

    def harder(self, cosine_B: Tensor, margin: float, emb_BD: Tensor | None) -> Tensor:
        """cos(theta - m z) - m (z + 1), z the length against its running mean, in deviations times `spread`."""
        assert emb_BD is not None
        length_B = torch.linalg.vector_norm(at_least_single(emb_BD.detach()), dim=1).clamp(1e-3, 100)
        if self.training:
            self.follow(length_B)
        z_B = ((length_B - self.mean) / (self.deviation + 1e-3) * self.spread).clamp(-1, 1)
        angle_B = cosine_B.clamp(-1 + 1e-6, 1 - 1e-6).acos() - margin * z_B
        return angle_B.clamp(1e-3, math.pi - 1e-3).cos() - margin * (z_B + 1)

    def follow(self, length_B: Tensor) -> None:
        """Move the running mean and deviation towards those of the batch of all processes."""
        sums = torch.stack(
            [length_B.new_full((), len(length_B)), length_B.sum(), length_B.square().sum()]
        ).double()
        count, lengths, squares = sums if self.sharded else total(sums)
        mean = lengths / count
        self.mean.lerp_(mean.to(self.mean.dtype), 1 - self.momentum)
        deviation = torch.sqrt((squares - count * mean * mean).clamp_min(0) / (count - 1).clamp_min(1))
        followed = self.deviation.lerp(deviation.to(self.deviation.dtype), 1 - self.momentum)
        self.deviation.copy_(torch.where(count > 1, followed, self.deviation))  # one deviates from nothing


class CurricularHead(ArcFaceHead):
    """ArcFace whose hard negatives weigh more as training goes. Source: Huang et al. 2020, arXiv:2004.00288."""

    of_batch = True
    progress: Tensor
    by_columns = True

    def __init__(
        self, embedding_size: int, identities: int, *, scale: float, margin: float, momentum: float = 0.99
    ) -> None:
        super().__init__(embedding_size, identities, scale=scale, margin=margin)
        check_argument("momentum", momentum, 0, 1)
        self.momentum = momentum
        self.register_buffer("progress", torch.tensor(0.0))  # t of the paper

    def with_margin(
        self, logit_BC: Tensor, label_B: Tensor, strength: float = 1.0, *, emb_BD: Tensor | None = None
    ) -> Tensor:
        """As ArcFace; a negative with a cosine c above the image's own after the margin becomes c (t + c)."""
        if strength == 0 or self.margin == 0:
            return logit_BC
        harder_BC = super().with_margin(logit_BC, label_B, strength, emb_BD=emb_BD)
        with torch.autocast(logit_BC.device.type, enabled=False):
            if self.training:
                own_B = self.own(logit_BC.detach(), label_B) / self.scale
                cosines, count = total(
                    torch.stack([own_B.sum(), (label_B >= 0).sum().to(own_B.dtype)]).double()
                )
                self.progress.lerp_((cosines / count).to(self.progress.dtype), 1 - self.momentum)
            own_B = self.own(harder_BC, label_B)
            hard_BC = logit_BC > (total(own_B) if self.sharded else own_B)[:, None]
            weighed_BC = torch.where(hard_BC, logit_BC * (self.progress + logit_BC / self.scale), logit_BC)
            return self.with_own(weighed_BC, label_B, own_B)


class SubcentreArcFaceHead(ArcFaceHead):
    """ArcFace with several centres an identity: noise gathers at the lesser ones. Source: Deng et al. 2020, ECCV."""

    def __init__(
        self, embedding_size: int, identities: int, *, scale: float, margin: float, centres: int = 3
    ) -> None:
        super().__init__(embedding_size, identities, scale=scale, margin=margin)
        if not isinstance(centres, int) or not 1 <= centres <= 100:
            raise ConfigError(f"centres is {centres!r}; it must be a whole number, 1 to 100")
        self.centres = centres
        self.weight = nn.Parameter(torch.randn(identities * centres, embedding_size) * 0.01)

    def forward(self, emb_BD: Tensor) -> Tensor:
        """Logits (B, C): of the nearest centre of each identity."""
        return super().forward(emb_BD).unflatten(1, (-1, self.centres)).amax(2)

    @torch.no_grad()
    def start_from(self, centre_CD: Tensor) -> None:
        """Begin with the first centre there; the others stay where they were drawn, near to nobody."""
        self.weight.unflatten(0, (-1, self.centres))[:, 0] = centre_CD.to(self.weight)

    @torch.no_grad()
    def own_cosines(self, emb_BD: Tensor, label_B: Tensor) -> Tensor:
        """(B, K) cosines of embeddings with the centres of their own identity."""
        weight_CKD = functional.normalize(self.weight.float(), dim=1).unflatten(0, (-1, self.centres))
        return torch.einsum("bd,bkd->bk", directions(emb_BD.float()), weight_CKD[label_B])


def check_argument(name: str, value: float, low: float, high: float) -> None:
    """Raises ConfigError for an argument of a head that is no number, or out of its range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ConfigError(f"{name} is {value!r}; it must be a number, {low:g} to {high:g}")


HEADS: dict[str, type[Head]] = {
    "softmax": SoftmaxHead,
    "arcface": ArcFaceHead,
    "cosface": CosFaceHead,
    "combined": CombinedHead,
    "adaface": AdaFaceHead,
    "curricular": CurricularHead,
    "subcentre-arcface": SubcentreArcFaceHead,
}
# What every head is made of; the rest are its own arguments.
GIVEN = ("self", "embedding_size", "identities", "scale", "margin")


def heads_text() -> str:
    """What the heads are, one a line: each name, and the first line of its class."""
    return "\n".join(f"{name}: {(head.__doc__ or '').splitlines()[0]}" for name, head in HEADS.items())


def check_head(kind: str, arguments: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Raises ConfigError for a name that HEADS does not have, and for arguments that the head does not."""
    if kind not in HEADS:
        raise ConfigError(f"unknown head {str(kind)!r}{did_you_mean(kind, HEADS)}")
    known = [name for name in inspect.signature(HEADS[kind].__init__).parameters if name not in GIVEN]
    for name in arguments:
        if name not in known:
            nearest = did_you_mean(name, known) if known else ": it takes none"
            raise ConfigError(f"{given('--head', kind)} has no argument {name!r}{nearest}")
    if arguments:
        HEADS[kind](2, 2, scale=1.0, margin=0.1, **arguments)


def make_head(
    kind: str,
    embedding_size: int,
    identities: int,
    *,
    scale: float,
    margin: float,
    arguments: Mapping[str, Any] = MappingProxyType({}),
) -> Head:
    """The head of a name in HEADS for so many identities, with its own `arguments`. Raises ConfigError for others."""
    check_head(kind, arguments)
    return HEADS[kind](embedding_size, identities, scale=scale, margin=margin, **arguments)
