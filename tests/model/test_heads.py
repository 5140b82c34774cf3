"""Heads against the formulas of their papers in float64."""

from __future__ import annotations

import math
import re
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


def cosines(emb: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    emb, weight = emb / emb.norm(dim=1, keepdim=True), weight / weight.norm(dim=1, keepdim=True)
    return emb @ weight.T


def double_head(
    kind: str, margin: float, **arguments: float
) -> tuple[MarginHead, torch.Tensor, torch.Tensor]:
    """A head, embeddings of all angles from their own centre, and labels, in float64."""
    torch.manual_seed(2)
    head = make_head(kind, D, C, scale=20.0, margin=margin, arguments=arguments).double()
    assert isinstance(head, MarginHead)
    labels = torch.arange(B) % C
    emb = torch.randn(B, D, dtype=torch.float64) * 30
    first = head.weight.detach().unflatten(0, (C, -1))[:, 0]
    emb[:6] += first[labels[:6]] * torch.tensor([9.0, 4, 1, -1, -4, -9])[:, None] * 3000
    return head, emb, labels


@pytest.mark.parametrize(("factor", "shift"), [(1.0, 0.1), (1.3, 0.0), (2.0, 0.35)])
def test_combined_margin(factor: float, shift: float) -> None:
    head, emb, labels = double_head("combined", 0.3, factor=factor, shift=shift)
    got = head.with_margin(head(emb), labels).detach()
    cosine = cosines(emb, head.weight.detach())
    beyond = 0
    for i, label in enumerate(labels.tolist()):
        angle = factor * math.acos(float(cosine[i, label])) + 0.3
        beyond += angle >= math.pi
        cosine[i, label] = (math.cos(angle) if angle < math.pi else math.pi - 1 - angle) - shift
    assert beyond
    torch.testing.assert_close(got, 20 * cosine, rtol=0, atol=1e-6)
    half = head.with_margin(head(emb), labels, 0.5)[0, labels[0]]
    angle = (1 + 0.5 * (factor - 1)) * math.acos(float(cosines(emb, head.weight)[0, labels[0]])) + 0.15
    assert float(half.detach()) == pytest.approx(20 * (math.cos(angle) - shift / 2), abs=1e-6)


def test_adaface_follows_the_lengths() -> None:
    head, emb, labels = double_head("adaface", 0.4, momentum=0.9)
    lengths = emb.norm(dim=1).clamp(1e-3, 100)
    got = head.with_margin(head(emb), labels, emb_BD=emb).detach()
    mu, sigma = 0.9 * 20 + 0.1 * float(lengths.mean()), 0.9 * 100 + 0.1 * float(lengths.std())
    assert float(head.mean) == pytest.approx(mu)
    assert float(head.deviation) == pytest.approx(sigma)
    cosine = cosines(emb, head.weight.detach())
    for i, label in enumerate(labels.tolist()):
        z = min(max((float(lengths[i]) - mu) / (sigma + 1e-3) * 0.333, -1), 1)
        theta = min(max(math.acos(float(cosine[i, label])) - 0.4 * z, 1e-3), math.pi - 1e-3)
        cosine[i, label] = math.cos(theta) - (0.4 * z + 0.4)
    torch.testing.assert_close(got, 20 * cosine, rtol=0, atol=1e-4)  # at the poles, where angles are clamped
    before = head.state_dict()["mean"].clone()
    head.eval()
    head.with_margin(head(emb), labels, emb_BD=emb)
    assert head.mean == before
    head.train()
    assert torch.isfinite(head.with_margin(head(emb[:1]), labels[:1], emb_BD=emb[:1])).all()
    assert torch.isfinite(head.deviation)


def test_curricular_face() -> None:
    head, emb, labels = double_head("curricular", 0.5, momentum=0.8)
    got = head.with_margin(head(emb), labels).detach()
    cosine = cosines(emb, head.weight.detach())
    t = 0.2 * float(cosine[torch.arange(B), labels].mean())
    assert float(head.progress) == pytest.approx(t)
    hard = 0
    for i, label in enumerate(labels.tolist()):
        theta = math.acos(float(cosine[i, label]))
        own = math.cos(theta + 0.5) if theta + 0.5 < math.pi else math.cos(theta) - 0.5 * math.sin(0.5)
        for j in range(C):
            if j != label and float(cosine[i, j]) > own:
                cosine[i, j] *= t + float(cosine[i, j])
                hard += 1
        cosine[i, label] = own
    assert hard > 10
    torch.testing.assert_close(got, 20 * cosine, rtol=0, atol=1e-9)
    logits = head(emb)
    assert head.with_margin(logits, labels, 0.0) is logits


def test_subcentre_arcface_takes_the_nearest_centre() -> None:
    head, emb, labels = double_head("subcentre-arcface", 0.5, centres=4)
    assert head.weight.shape == (C * 4, D)
    best = cosines(emb, head.weight.detach()).view(B, C, 4).max(2).values
    torch.testing.assert_close(head(emb).detach(), 20 * best)
    plain = make_head("arcface", D, C, scale=20.0, margin=0.5)
    torch.testing.assert_close(
        head.with_margin(head(emb), labels), plain.with_margin(20 * best, labels), check_stride=False
    )
    own = head.own_cosines(emb, labels)
    expected = cosines(emb, head.weight.detach()).view(B, C, 4)[torch.arange(B), labels]
    torch.testing.assert_close(own, expected.float())
    others = head.weight.detach().view(C, 4, D)[:, 1:].clone()
    head.start_from(torch.eye(C, D))
    torch.testing.assert_close(head.weight.view(C, 4, D)[:, 0].detach(), torch.eye(C, D).double())
    torch.testing.assert_close(head.weight.view(C, 4, D)[:, 1:].detach(), others)


@pytest.mark.parametrize("kind", ["combined", "adaface", "curricular", "subcentre-arcface"])
def test_gradients_are_finite_at_the_poles_and_without_a_length(kind: str) -> None:
    head = make_head(kind, D, C, scale=30.0, margin=0.5)
    first = head.weight.detach().unflatten(0, (C, -1))[:, 0]
    emb = torch.stack([first[0], -first[1], first[2] * 0]).requires_grad_()
    labels = torch.tensor([0, 1, 2])
    torch.nn.functional.cross_entropy(head.with_margin(head(emb), labels, emb_BD=emb), labels).backward()
    assert torch.isfinite(emb.grad).all()
    assert torch.isfinite(head.weight.grad).all()


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("arcface", {"centres": 3}, "--head=arcface has no argument 'centres': it takes none"),
        (
            "subcentre-arcface",
            {"centers": 3},
            "--head=subcentre-arcface has no argument 'centers': did you mean",
        ),
        ("subcentre-arcface", {"centres": 0}, "centres is 0; it must be a whole number, 1 to 100"),
        ("combined", {"factor": 0.5}, "factor is 0.5; it must be a number, 1 to 4"),
        ("combined", {"shift": "low"}, "shift is 'low'; it must be a number, 0 to 1"),
        ("adaface", {"momentum": 2}, "momentum is 2; it must be a number, 0 to 1"),
        ("curricular", {"momentum": True}, "momentum is True; it must be a number"),
    ],
)
def test_arguments_that_cannot_be(kind: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        check_head(kind, arguments)
