"""How a negative is drawn by its distance, and how a triplet is paid, against the formulas."""

import math

import pytest
import torch

from facemetric.mining import batch_hard
from facemetric.mining.kernels.common import Rule, operands
from facemetric.mining.kernels.one_negative import pick_by_distance
from facemetric.mining.order import order_against


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize(("dims", "distances"), [(5, (0.3, 0.8, 1.1, 1.3)), (9, (1.1, 1.3, 1.9))])
def test_negatives_are_drawn_by_inverse_density(dims, distances, scale):
    """20,000 anchors in one point; 0.3 and 1.9 lie outside 0.5..sqrt(2). `scale` is that of |x - y|^2 in the rows."""
    draws = 20_000
    rows = torch.zeros(1 + len(distances), dims, dtype=torch.float64)
    rows[0, 0] = 1
    for row, d in zip(rows[1:], distances, strict=True):
        row[0] = 1 - d * d / 2
        row[1] = math.sqrt(1 - float(row[0]) ** 2)
    rows *= math.sqrt(scale)
    anchors = rows[:1].expand(draws, -1)
    order = order_against(torch.zeros(draws, dtype=torch.int64), torch.arange(len(rows)), None)
    pick = pick_by_distance(dims, 1 / scale, torch.Generator().manual_seed(0))
    (at,) = pick(operands(anchors, rows, order), order, [torch.zeros(draws, dtype=torch.float64)], 0.5)
    counts = torch.bincount(order.reference_N[at], minlength=len(rows)).tolist()
    assert counts[0] == 0  # the positive is not drawn
    held = [min(max(d, 0.5), math.sqrt(2)) for d in distances]
    weight = [1 / (d ** (dims - 2) * (1 - d * d / 4) ** ((dims - 3) / 2)) for d in held]
    for count, w in zip(counts[1:], weight, strict=True):
        share = w / sum(weight)
        assert abs(count / draws - share) < 5 * math.sqrt(share * (1 - share) / draws)


SQUARED = torch.tensor([0.0, 1e-16, 0.04, 1.0, 4.0], dtype=torch.float64)


def test_a_rule_by_its_formulas():
    plain, root, soft = Rule(0.3, False, False), Rule(0.3, False, True), Rule(0.0, True, True)
    assert torch.equal(plain.distance(SQUARED), SQUARED)
    assert root.distance(SQUARED).tolist() == pytest.approx([0, 1e-8, 0.2, 1, 2])
    assert plain.squared_bound(SQUARED).tolist() == pytest.approx([0.3, 0.3, 0.34, 1.3, 4.3])
    assert root.squared_bound(SQUARED).tolist() == pytest.approx([0.09, 0.09, 0.25, 1.69, 5.29])
    assert Rule(-0.2, False, True).squared_bound(SQUARED).tolist() == pytest.approx(
        [-math.inf, -math.inf, -math.inf, 0.64, 3.24]
    )
    # 1 / d, and 0 at distance 0 alone
    assert root.d_distance(SQUARED).tolist() == pytest.approx([0, 1e8, 5, 1, 0.5])
    assert root.d_distance(torch.tensor([0, 1e-30, 1e-6])).tolist() == pytest.approx([0, 1e15, 1e3], rel=1e-5)
    # with margin 0 the bound is d_ap to the last bit, which a root squared is not
    assert torch.equal(Rule(0.0, False, True).squared_bound(SQUARED + 0.1), SQUARED + 0.1)
    weight = torch.arange(5.0, dtype=torch.float64)
    assert plain.gradient_weight(weight, SQUARED).tolist() == [0, 2, 4, 6, 8]
    assert plain.gradient_weight(weight, SQUARED, 0.5).tolist() == [0, 1, 2, 3, 4]
    assert root.gradient_weight(weight, SQUARED).tolist() == pytest.approx([0, 1e8, 10, 3, 2])
    assert root.gradient_weight(weight, SQUARED, 0.5).tolist() == pytest.approx([0, 0.5e8, 5, 1.5, 1])
    gap = torch.tensor([-1.0, -0.3, -0.1, 0.5])
    value, slope = plain.loss_and_slope(gap.clone())
    assert value.tolist() == pytest.approx([0, 0, 0.2, 0.8])
    assert slope.tolist() == [0, 0, 1, 1]
    value, slope = soft.loss_and_slope(gap.clone())
    assert value.tolist() == pytest.approx([math.log1p(math.exp(g)) for g in gap.tolist()])
    assert slope.tolist() == pytest.approx([1 / (1 + math.exp(-g)) for g in gap.tolist()])


@pytest.mark.parametrize("length", [1e-45, 1e-30, 1e-9, 1e-7, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cosine_is_that_of_rows_of_any_length(length, dtype):
    emb = torch.tensor([[length, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], dtype=dtype).requires_grad_()
    mined = batch_hard(emb, torch.tensor([0, 0, 1, 1]), distance="cosine", anchors=slice(0, 1))
    assert mined.d_ap.item() == pytest.approx(0, abs=1e-6)
    assert mined.d_an.item() == pytest.approx(1, abs=1e-6)
    mined.loss.backward()
    assert torch.isfinite(emb.grad).all() or length < 1e-38  # 1 / length does not fit float32 there


def test_a_zero_row_has_no_direction():
    emb = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    mined = batch_hard(emb, torch.tensor([0, 0, 1, 1]), distance="cosine")
    assert batch_hard(
        emb, torch.tensor([0, 0, 1, 1]), distance="cosine", anchors=slice(0, 1)
    ).d_ap.item() == pytest.approx(0.5)
    mined.loss.backward()
    assert not emb.grad[0].any()
    assert emb.grad[1:].norm() > 0.1
