"""Classification heads of stage one: embeddings and identities to logits for cross-entropy.

A head is a class and a line in HEADS: its name, its help and the errors for other names come from there.

Shapes: B batch, D embedding, C identities.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from facemetric.errors import ConfigError, did_you_mean

# Shorter embeddings are scaled up by no more than this one: 1 / length would let one image rule the gradient.
SHORTEST = 1e-3


class Head(nn.Module):
    """Logits of embeddings (B, D) -> (B, C), and the harder ones that the loss sees."""

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

    def __init__(self, embedding_size: int, identities: int, *, scale: float, margin: float) -> None:
        super().__init__(embedding_size, identities, scale=scale, margin=margin)
        self.weight = nn.Parameter(torch.randn(identities, embedding_size) * 0.01)

    def harder(self, cosine_B: Tensor, margin: float, emb_BD: Tensor | None) -> Tensor:
        """The cosine (B,) of each image with its own identity, after the margin."""
        raise AssertionError("a margin head of HEADS has its own margin")

    def forward(self, emb_BD: Tensor) -> Tensor:
        """Logits (B, C) in [-scale, scale]; 0 for an embedding of length 0, which has no direction and no gradient."""
        with torch.autocast(emb_BD.device.type, enabled=False):  # float16 cosines cost accuracy
            emb_BD = directions(emb_BD.float())
            return self.scale * functional.linear(emb_BD, functional.normalize(self.weight.float(), dim=1))

    def with_margin(
        self, logit_BC: Tensor, label_B: Tensor, strength: float = 1.0, *, emb_BD: Tensor | None = None
    ) -> Tensor:
        """The logits for the loss, in [-scale * (1 + margin), scale]."""
        if strength == 0 or self.margin == 0:
            return logit_BC
        with torch.autocast(logit_BC.device.type, enabled=False):
            column_B1 = label_B[:, None]
            cosine_B = logit_BC.gather(1, column_B1)[:, 0] / self.scale
            own_B = self.harder(cosine_B, self.margin * strength, emb_BD)
            return logit_BC.scatter(1, column_B1, self.scale * own_B[:, None])


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


HEADS: dict[str, type[Head]] = {"softmax": SoftmaxHead, "arcface": ArcFaceHead, "cosface": CosFaceHead}


def heads_text() -> str:
    """What the heads are, one a line: each name, and the first line of its class."""
    return "\n".join(f"{name}: {(head.__doc__ or '').splitlines()[0]}" for name, head in HEADS.items())


def check_head(kind: str) -> None:
    """Raises ConfigError for a name that HEADS does not have."""
    if kind not in HEADS:
        raise ConfigError(f"unknown head {str(kind)!r}{did_you_mean(kind, HEADS)}")


def make_head(kind: str, embedding_size: int, identities: int, *, scale: float, margin: float) -> Head:
    """The head of a name in HEADS for so many identities. Raises ConfigError for another name."""
    check_head(kind)
    return HEADS[kind](embedding_size, identities, scale=scale, margin=margin)
