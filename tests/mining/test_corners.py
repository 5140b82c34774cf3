"""The miners in the corners where NaN, ties and wrong dtypes live."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mined_batches import DISTANCES, TRIO, batch, run
from reference_mining import twin

from facemetric.errors import DataError
from facemetric.mining import (
    MINERS,
    batch_all,
    batch_hard,
    semihard,
)
from facemetric.mining.tiles import MIB


@pytest.mark.parametrize("kind", TRIO)
def test_long_uneven_runs(kind):
    """Classes from 1 to 150 rows: both ways to mark one's own class, in tiles cut anywhere."""
    emb, _ = batch(260, 1, dim=3, seed=8)
    labels = torch.repeat_interleave(torch.arange(6), torch.tensor([1, 150, 2, 70, 30, 7]))
    labels = labels[torch.randperm(260, generator=torch.Generator().manual_seed(0))]
    one_tile, grad = run(kind, emb, labels)
    tiles, grad_tiles = run(kind, emb, labels, budget_mib=8 * 9000 / MIB)
    direct = twin_by_tensors(kind, emb, labels)
    assert one_tile.loss.item() == pytest.approx(direct, abs=1e-12)
    assert tiles.loss.item() == pytest.approx(direct, abs=1e-12)
    torch.testing.assert_close(grad, grad_tiles, atol=1e-12, rtol=0)


def twin_by_tensors(kind, emb, labels, margin=0.2):
    dist = (emb[:, None] - emb[None]).square().sum(2)
    same = labels[:, None] == labels
    losses = []
    for a in range(len(emb)):
        d_p, d_n = dist[a][same[a] & (torch.arange(len(emb)) != a)], dist[a][~same[a]]
        if not len(d_p) or not len(d_n):
            continue
        if kind == "all":
            gap = d_p[:, None] - d_n + margin
            losses.append(gap[gap > 0])
        elif kind == "hard":
            losses.append((d_p.max() - d_n.min() + margin).clamp(min=0)[None])
        else:
            farther = torch.where(d_n > d_p[:, None], d_n, torch.inf).amin(1)
            losses.append((d_p - torch.where(farther.isinf(), d_n.max(), farther) + margin).clamp(min=0))
    return torch.cat(losses).mean().item()


@pytest.mark.parametrize("kind", [*TRIO, "select", "distance-weighted"])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("margin", [0.2, "soft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_corners_have_finite_answers(kind, distance, margin, dtype):
    unit = torch.nn.functional.normalize(torch.arange(1.0, 5.0, dtype=dtype), dim=0)
    same_rows = unit.repeat(6, 1)
    spread = batch(6, 1, seed=2, dtype=dtype)[0]
    duplicates = spread[[0, 0, 0, 1, 1, 1]]
    cases = {
        "all equal": (same_rows, [0, 0, 1, 1, 2, 2]),
        "duplicates": (duplicates, [0, 0, 1, 1, 2, 2]),
        "one class": (spread, [4] * 6),
        "singletons": (spread, [0, 1, 2, 3, 4, 5]),
        "one pair": (spread, [0, 0, 1, 2, 3, 4]),
        "one row": (spread[:1], [0]),
        "no row": (spread[:0], []),
        "zeros": (torch.zeros_like(spread), [0, 0, 1, 1, 2, 2]),
    }
    for name, (emb, labels) in cases.items():
        options = {"seed": 1} if kind == "distance-weighted" else {}
        mined, grad = run(kind, emb, torch.tensor(labels), margin=margin, distance=distance, **options)
        assert torch.isfinite(mined.loss), name
        assert torch.isfinite(grad).all(), name
        assert all(torch.isfinite(v) for v in (mined.d_ap, mined.d_an, mined.fraction_positive)), name
        if name in ("one class", "singletons", "one row", "no row"):
            assert (mined.loss.item(), mined.valid, mined.active.item()) == (0, 0, 0), name
            assert (grad == 0).all(), name
        if name == "all equal" and kind in TRIO:
            assert mined.loss.item() == pytest.approx(math.log(2) if margin == "soft" else 0.2, abs=1e-5)
            assert grad.abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["all", "hard"])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), distance=st.sampled_from(DISTANCES))
def test_one_image_under_two_labels(kind, seed, distance):
    """Only the loss: at a tie the gradient is any of several."""
    emb, labels = batch(14, 4, seed=seed)
    emb[7:] = emb[:7]
    mined, grad = run(kind, emb, labels, distance=distance)
    # the square root turns rounding of 1e-16 into 1e-8
    expected = twin(kind, emb, labels, 0.2, distance)[0].item()
    assert mined.loss.item() == pytest.approx(expected, abs=1e-7 if distance == "euclidean" else 1e-12)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("kind", TRIO)
@pytest.mark.parametrize("budget_mib", [None, 0.01])
def test_gradients_of_near_duplicates_stay_small(kind, budget_mib):
    """1 / d of rows 1e-6 apart is noise in float32: no row is pushed harder than its triplets allow."""
    emb, labels = batch(60, 12, dim=16, seed=3, dtype=torch.float32)
    emb[30:] = emb[:30] + 1e-6 * torch.randn(30, 16, generator=torch.Generator().manual_seed(0))
    mined, grad = run(kind, emb, labels, distance="euclidean", budget_mib=budget_mib)
    assert torch.isfinite(mined.loss)
    # every triplet pulls with unit vectors: 2 on its anchor, 1 on each of the others
    assert grad.norm(dim=1).sum() < 4


@pytest.mark.parametrize("kind", TRIO)
@pytest.mark.parametrize("budget_mib", [None, 0.001])
def test_duplicates_do_not_spoil_the_digits_of_others(kind, budget_mib):
    emb, labels = batch(24, 4, dim=3, seed=12)
    emb[8:16] = emb[:8]
    labels[8:16] = labels[:8]
    _, grad = run(kind, emb, labels, margin=1.5, distance="euclidean", budget_mib=budget_mib)
    expected = twin(kind, emb, labels, 1.5, "euclidean")[3][0]
    pairs, expected_pairs = grad[:8] + grad[8:16], expected[:8] + expected[8:16]
    torch.testing.assert_close(pairs, expected_pairs, atol=2e-12, rtol=0)
    torch.testing.assert_close(grad[16:], expected[16:], atol=2e-12, rtol=0)


@pytest.mark.parametrize("kind", TRIO)
def test_label_dtypes_and_values_do_not_matter(kind):
    emb, labels = batch(12, 2, seed=4)
    expected, grad = run(kind, emb, labels)
    wide = labels.to(torch.int64) * 2**62 - 5
    kinds = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.bool, torch.float16, torch.float64)
    for other in (wide, *(labels.to(kind_) for kind_ in kinds)):
        mined, other_grad = run(kind, emb, other)
        assert mined.loss == expected.loss, other.dtype
        assert torch.equal(grad, other_grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", TRIO)
def test_half_precision_is_mined_in_float32(kind, dtype):
    emb, labels = batch(16, 4, seed=6, dtype=torch.float32)
    emb = emb.to(dtype)
    expected, grad = run(kind, emb.float(), labels)
    mined, half_grad = run(kind, emb, labels)
    assert mined.loss.dtype == torch.float32
    assert mined.loss == expected.loss
    assert torch.equal(half_grad, grad.to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast, _ = run(kind, emb.float(), labels)
    assert under_autocast.loss == expected.loss


@pytest.mark.parametrize("kind", TRIO)
def test_same_bits_twice_and_in_any_row_order(kind):
    emb, labels = batch(200, 40, dim=16, seed=7, dtype=torch.float32)
    first, grad = run(kind, emb, labels)
    again, grad_again = run(kind, emb, labels)
    assert torch.equal(first.loss, again.loss)
    assert torch.equal(grad, grad_again)
    shuffle = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    mixed, grad_mixed = run(kind, emb[shuffle], labels[shuffle])
    assert mixed.loss.item() == pytest.approx(first.loss.item(), abs=1e-6)
    torch.testing.assert_close(grad_mixed, grad[shuffle], atol=1e-6, rtol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_embeddings_that_are_not_finite_are_an_error_that_names_the_row(bad):
    emb, labels = batch(6, 2)
    emb[4, 1] = bad
    for miner in (batch_all, semihard, batch_hard):
        with pytest.raises(DataError, match=r"1 of 6 embeddings .* row 4"):
            miner(emb, labels)


@pytest.mark.parametrize("kind", TRIO)
@pytest.mark.parametrize(("dtype", "length"), [(torch.float32, 1e30), (torch.float64, 1e155)])
@pytest.mark.parametrize("anchors", [None, slice(0, 6)])
def test_numbers_too_large_to_square_are_refused_with_the_row(kind, dtype, length, anchors):
    emb, labels = batch(6, 2, dtype=dtype)
    emb[3] *= length
    with pytest.raises(
        DataError, match=r"1 of 6 embeddings are longer than .*, the first is row 3 of length 1.0e"
    ):
        run(kind, emb, labels, anchors=anchors)
    assert run(kind, emb, labels, distance="cosine")[0].loss.isfinite()


@pytest.mark.parametrize("kind", TRIO)
def test_a_second_derivative_is_refused_and_a_graph_is_not(kind):
    """The gradient is known as numbers: differentiated again it would silently count as a constant."""
    emb, labels = batch(12, 3, seed=11)
    rows = emb.clone().requires_grad_()
    loss = MINERS[kind](rows, labels, margin=0.5).loss
    (grad,) = torch.autograd.grad(loss, rows, create_graph=True)
    torch.testing.assert_close(grad.detach(), run(kind, emb, labels, margin=0.5)[1])
    with pytest.raises(RuntimeError, match="once, not twice"):
        (grad.square().sum() + rows.sum()).backward()
