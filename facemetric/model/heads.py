"""Classification heads of stage one: embeddings and identities to logits for cross-entropy.

Shapes: B batch, D embedding, C identities.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from facemetric.errors import ConfigError, did_you_mean


class SoftmaxHead(nn.Linear):
    """Plain logits `W x + b` of embeddings as they come, (B, D) -> (B, C)."""

    def __init__(self, embedding_size: int, identities: int) -> None:
        super().__init__(embedding_size, identities)
        nn.init.normal_(self.weight, std=0.01)
        nn.init.zeros_(self.bias)

    def with_margin(self, logit_BC: Tensor, label_B: Tensor, strength: float = 1.0) -> Tensor:
        """The logits as they are: this head has no margin."""
        return logit_BC


class MarginHead(nn.Module):
    """Scaled cosines to one unit vector an identity; the true identity's cosine is made harder by a margin."""

    def __init__(self, embedding_size: int, identities: int, *, scale: float, margin: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(identities, embedding_size) * 0.01)
        self.scale, self.margin = scale, margin

    def harder(self, cosine_B: Tensor, margin: float) -> Tensor:
        """The cosine (B,) of each image with its own identity, after the margin."""
        raise AssertionError("a MarginHead is an ArcFaceHead or a CosFaceHead")

    def forward(self, emb_BD: Tensor) -> Tensor:
        """Logits (B, C) in [-scale, scale], without the margin: what is compared to tell who it is."""
        with torch.autocast(emb_BD.device.type, enabled=False):  # float16 cosines cost accuracy
            emb_BD = functional.normalize(emb_BD.float(), dim=1)
            return self.scale * functional.linear(emb_BD, functional.normalize(self.weight.float(), dim=1))

    def with_margin(self, logit_BC: Tensor, label_B: Tensor, strength: float = 1.0) -> Tensor:
        """The logits for the loss, in [-scale * (1 + margin), scale].

        `strength` 0..1 scales the margin, so that training can start without it."""
        if strength == 0 or self.margin == 0:
            return logit_BC
        with torch.autocast(logit_BC.device.type, enabled=False):
            column_B1 = label_B[:, None]
            own_B = self.harder(logit_BC.gather(1, column_B1)[:, 0] / self.scale, self.margin * strength)
            return logit_BC.scatter(1, column_B1, self.scale * own_B[:, None])


class ArcFaceHead(MarginHead):
    """cos(theta + margin), margin in radians. Source: Deng et al. 2019, arXiv:1801.07698."""

    def harder(self, cosine_B: Tensor, margin: float) -> Tensor:
        """cos(theta + m); past theta = pi - m, where that would rise again, cos(theta) - m sin(m)."""
        sine_B = (1 - cosine_B.square()).clamp_min(1e-12).sqrt()
        turned_B = cosine_B * math.cos(margin) - sine_B * math.sin(margin)
        return torch.where(cosine_B > -math.cos(margin), turned_B, cosine_B - margin * math.sin(margin))


class CosFaceHead(MarginHead):
    """cos(theta) - margin. Source: Wang et al. 2018, arXiv:1801.09414."""

    def harder(self, cosine_B: Tensor, margin: float) -> Tensor:
        """The cosine less the margin."""
        return cosine_B - margin


Head = SoftmaxHead | MarginHead
HEADS = {"softmax": SoftmaxHead, "arcface": ArcFaceHead, "cosface": CosFaceHead}


def make_head(kind: str, embedding_size: int, identities: int, *, scale: float, margin: float) -> Head:
    """The head of a name in HEADS for so many identities. Raises ConfigError for another name."""
    if kind not in HEADS:
        raise ConfigError(f"unknown head {kind!r}{did_you_mean(kind, HEADS)}")
    if kind == "softmax":
        return SoftmaxHead(embedding_size, identities)
    head: type[MarginHead] = HEADS[kind]  # type: ignore[assignment]
    return head(embedding_size, identities, scale=scale, margin=margin)
