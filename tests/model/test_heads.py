"""Heads against the formulas of their papers in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from facemetric.errors import ConfigError
from facemetric.model.heads import make_head

B, D, C = 32, 8, 5


def slow_logits(
    kind: str, emb: np.ndarray, weight: np.ndarray, labels: np.ndarray, scale: float, margin: float
) -> np.ndarray:
    """One image and one identity at a time, with the angle itself."""
    logits = np.empty((len(emb), len(weight)))
    for i, x in enumerate(emb):
        for j, w in enumerate(weight):
            cosine = float(x @ w / math.sqrt(x @ x) / math.sqrt(w @ w))
            if j == labels[i]:
                theta = math.acos(max(-1.0, min(1.0, cosine)))
                if kind == "cosface":
                    cosine -= margin
                elif theta + margin < math.pi:
                    cosine = math.cos(theta + margin)
                else:
                    cosine -= margin * math.sin(margin)
            logits[i, j] = scale * cosine
    return logits


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
@pytest.mark.parametrize("margin", [0.0, 0.3, 1.2])
def test_margin_heads_match_the_papers(kind: str, margin: float) -> None:
    torch.manual_seed(0)
    head = make_head(kind, D, C, scale=20.0, margin=margin).double()
    emb, labels = torch.randn(B, D, dtype=torch.float64), torch.arange(B) % C
    emb[0] = -3 * head.weight[0].detach()  # theta = pi, past the end of the margin
    expected = slow_logits(kind, emb.numpy(), head.weight.detach().numpy(), labels.numpy(), 20.0, margin)
    got = head.with_margin(head(emb), labels).detach().numpy()
    # The head computes cosines in float32 on purpose.
    np.testing.assert_allclose(got, expected, atol=2e-3 if kind == "arcface" else 1e-4)


def test_without_labels_or_strength_there_is_no_margin() -> None:
    head = make_head("arcface", D, C, scale=10.0, margin=0.5)
    emb, labels = torch.randn(B, D), torch.arange(B) % C
    torch.testing.assert_close(head(emb), head.with_margin(head(emb), labels, 0.0))
    own = head.with_margin(head(emb), labels).gather(1, labels[:, None])
    assert (own < head(emb).gather(1, labels[:, None])).all()


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_gradient_is_finite_at_the_poles(kind: str) -> None:
    head = make_head(kind, D, C, scale=10.0, margin=0.5)
    emb = torch.stack([head.weight[0].detach(), -head.weight[1].detach()]).requires_grad_()
    head.with_margin(head(emb), torch.tensor([0, 1])).sum().backward()
    assert torch.isfinite(emb.grad).all()
    assert torch.isfinite(head.weight.grad).all()


def test_softmax_head_is_linear() -> None:
    head = make_head("softmax", D, C, scale=1.0, margin=0.0)
    emb = torch.randn(B, D)
    torch.testing.assert_close(
        head.with_margin(head(emb), torch.zeros(B, dtype=torch.long)), emb @ head.weight.T + head.bias
    )


def test_unknown_head_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'arcface'"):
        make_head("arcfase", D, C, scale=1.0, margin=0.1)
