"""Heads against the formulas of their papers in float64."""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import pytest
import torch

from facemetric.errors import ConfigError
from facemetric.model.heads import HEADS, SHORTEST, MarginHead, check_head, heads_text, make_head

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


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_an_embedding_without_a_length_does_not_rule_the_gradient(kind: str) -> None:
    torch.manual_seed(0)
    head = make_head(kind, D, C, scale=64.0, margin=0.5)
    emb, labels = torch.randn(B, D), torch.arange(B) % C
    emb[3], emb[4] = 0, emb[4] * 1e-8
    emb.requires_grad_()
    logits = head(emb)
    assert not logits[3].any()
    torch.nn.functional.cross_entropy(head.with_margin(logits, labels), labels).backward()
    assert not emb.grad[3].any()
    usual = torch.cat([emb.grad[:3], emb.grad[5:]]).norm(dim=1)
    assert 0 < emb.grad[4].norm() < 64 / SHORTEST / B * 2
    assert usual.max() < 64  # as it was: 1 / length of rows of usual length
    assert torch.isfinite(head.weight.grad).all()


@pytest.mark.parametrize("kind", ["arcface", "cosface"])
def test_short_embeddings_have_the_direction_of_long_ones(kind: str) -> None:
    head = make_head(kind, D, C, scale=64.0, margin=0.5)
    emb = torch.nn.functional.normalize(torch.randn(B, D))
    torch.testing.assert_close(head(emb * SHORTEST * 1.01), head(emb))
    torch.testing.assert_close(head(emb * SHORTEST / 2), head(emb) / 2)


def test_heads_say_what_they_are_and_which_there_are() -> None:
    for name in HEADS:
        assert f"{name}: " in heads_text()
    assert "cosface: cos(theta) - margin. Source: Wang et al. 2018" in heads_text()
    with pytest.raises(ConfigError, match="unknown head 'cosfase': did you mean 'cosface'"):
        check_head(np.str_("cosfase"))
    check_head("arcface")


class AdaFace(MarginHead):
    """A margin that grows with the length of the embedding. Source: Kim et al. 2022, arXiv:2204.00964."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, embedding_size: int, identities: int, *, scale: float, margin: float) -> None:
        super().__init__(embedding_size, identities, scale=scale, margin=margin)
        self.register_buffer("mean", torch.tensor(20.0))
        self.register_buffer("deviation", torch.tensor(100.0))

    def harder(self, cosine_B: torch.Tensor, margin: float, emb_BD: torch.Tensor | None) -> torch.Tensor:
        """cos(theta - m z) - m (z + 1), z the length against the running mean, in thirds of a deviation."""
        assert emb_BD is not None
        length_B = emb_BD.detach().float().norm(dim=1).clamp(0.001, 100)
        if self.training:
            self.mean.lerp_(length_B.mean(), 0.01)
            if len(length_B) > 1:  # one image deviates from nothing
                self.deviation.lerp_(length_B.std(), 0.01)
        z_B = ((length_B - self.mean) / (self.deviation + 1e-3) * 0.333).clamp(-1, 1)
        angle_B = cosine_B.clamp(-1 + 1e-6, 1 - 1e-6).acos() - margin * z_B
        return angle_B.clamp(1e-3, math.pi - 1e-3).cos() - margin * (z_B + 1)


def test_a_head_of_ones_own_is_a_class_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdaFace, which needs the lengths of the embeddings, against its formulas (2) to (6) one image at a time."""
    monkeypatch.setitem(HEADS, "adaface", AdaFace)
    assert "adaface: A margin that grows with the length" in heads_text()
    torch.manual_seed(1)
    head = make_head("adaface", D, C, scale=64.0, margin=0.4)
    emb, labels = torch.randn(B, D) * 30, torch.arange(B) % C
    emb[0] = 25 * head.weight[0].detach()  # theta = 0
    got = head.with_margin(head(emb), labels, emb_BD=emb).detach()
    after = deepcopy(head)
    one = after.with_margin(after(emb[:1]), labels[:1], emb_BD=emb[:1])  # the last batch may hold one image
    assert torch.isfinite(one).all()
    assert all(torch.isfinite(number).all() for number in after.state_dict().values())
    lengths = [min(max(float(x.norm()), 0.001), 100) for x in emb.double()]
    mu = 0.99 * 20 + 0.01 * float(np.mean(lengths))
    sigma = 0.99 * 100 + 0.01 * float(np.std(lengths, ddof=1))
    weight = head.weight.detach().double()
    for i, (x, label) in enumerate(zip(emb.double(), labels.tolist(), strict=True)):
        for j in range(C):
            cosine = float(x @ weight[j] / x.norm() / weight[j].norm())
            if j == label:
                z = min(max((lengths[i] - mu) / (sigma + 1e-3) * 0.333, -1), 1)
                g_angle, g_add = -0.4 * z, 0.4 * z + 0.4
                theta = min(max(math.acos(min(max(cosine, -1), 1)) + g_angle, 1e-3), math.pi - 1e-3)
                cosine = math.cos(theta) - g_add
            assert got[i, j].item() == pytest.approx(64 * cosine, abs=0.05)
