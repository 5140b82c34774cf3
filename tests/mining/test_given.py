"""Losses of triplets and pairs of one's own against loops in float64."""

import re

import pytest
import torch
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st
from reference_mining import pair_distance, pay

from facemetric.errors import ConfigError, DataError
from facemetric.mining import MINERS, given, pair_losses, triplet_losses

DISTANCES = ("squared", "euclidean", "cosine")


def batch(rows=9, dim=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    emb = torch.randn(rows, dim, generator=generator, dtype=dtype)
    emb[1] = emb[0]  # a distance of 0
    return emb, generator


@settings(max_examples=40, deadline=None)
@hypothesis_given(
    seed=st.integers(0, 10**6),
    margin=st.sampled_from([0.0, 0.3, -0.4, "soft"]),
    distance=st.sampled_from(DISTANCES),
    count=st.integers(0, 12),
    budget_mib=st.sampled_from([1e-6, 12.0]),
)
def test_triplets_equal_a_loop(seed, margin, distance, count, budget_mib):
    emb, generator = batch(seed=seed)
    triplets = torch.randint(9, (count, 3), generator=generator)
    importance = torch.rand(count, generator=generator, dtype=torch.float64)
    ours, expected = emb.clone().requires_grad_(), emb.clone().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(given, "CPU_MINING_MIB", budget_mib)
        losses = triplet_losses(ours, triplets, margin=margin, distance=distance)
        (losses * importance).sum().backward()
    loop = [
        pay(*(pair_distance(expected[a], expected[b], distance) for b in (p, n)), margin)
        for a, p, n in triplets.tolist()
    ]
    assert losses.shape == (count,)
    if not count:
        assert not ours.grad.any()
        return
    loop = torch.stack(loop)
    (loop * importance).sum().backward()
    same = (triplets[:, 0] == triplets[:, 1]) | (triplets[:, 1] == triplets[:, 2])
    torch.testing.assert_close(losses.detach(), loop.detach(), atol=1e-7, rtol=0)
    if margin == "soft" or not (same & (loop.detach().abs() < 1e-6)).any():
        torch.testing.assert_close(ours.grad, expected.grad, atol=1e-6, rtol=0)


@settings(max_examples=30, deadline=None)
@hypothesis_given(seed=st.integers(0, 10**6), distance=st.sampled_from(DISTANCES))
def test_pairs_equal_a_loop(seed, distance):
    emb, generator = batch(seed=seed)
    pairs, genuine = torch.randint(9, (14, 2), generator=generator), torch.rand(14, generator=generator) > 0.5
    pairs[0] = torch.tensor([2, 3])
    ours, expected = emb.clone().requires_grad_(), emb.clone().requires_grad_()
    losses = pair_losses(ours, pairs, genuine, margin=1.5, distance=distance)
    loop = []
    for (a, b), same in zip(pairs.tolist(), genuine.tolist(), strict=True):
        d = pair_distance(expected[a], expected[b], distance)
        loop.append(d if same else (1.5 - d).clamp(min=0))
    loop = torch.stack(loop)
    losses.mean().backward()
    loop.mean().backward()
    torch.testing.assert_close(losses.detach(), loop.detach(), atol=1e-7, rtol=0)
    torch.testing.assert_close(ours.grad, expected.grad, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["all", "semihard", "hard"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_what_a_miner_chose_has_its_loss_and_gradient(kind, distance):
    emb, generator = batch(rows=40)
    emb[1] += 0.1
    labels = torch.randint(8, (40,), generator=generator)
    first, second = emb.clone().requires_grad_(), emb.clone().requires_grad_()
    mined = MINERS[kind](first, labels, margin=0.4, distance=distance)
    mined.loss.backward()
    loss = triplet_losses(second, mined.triplets, margin=0.4, distance=distance).sum() / mined.weight
    loss.backward()
    assert loss.item() == pytest.approx(mined.loss.item(), abs=1e-12)
    torch.testing.assert_close(first.grad, second.grad, atol=1e-12, rtol=0)


def test_half_precision_and_autocast_are_computed_in_float32():
    emb, generator = batch(dtype=torch.float32)
    triplets = torch.randint(9, (5, 3), generator=generator)
    half = emb.bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = triplet_losses(half, triplets, margin=2.0)
        pairs = pair_losses(half, triplets[:, :2], torch.ones(5, dtype=torch.bool))
    assert losses.dtype == pairs.dtype == torch.float32
    assert torch.equal(losses, triplet_losses(half.float(), triplets, margin=2.0))
    losses.sum().backward()
    assert half.grad.dtype == torch.bfloat16


def test_a_second_derivative_is_refused():
    emb, generator = batch()
    losses = triplet_losses(emb.requires_grad_(), torch.randint(9, (5, 3), generator=generator), margin=2.0)
    (grad,) = torch.autograd.grad(losses.sum(), emb, create_graph=True)
    with pytest.raises(RuntimeError, match="once, not twice"):
        (grad.square().sum() + emb.sum()).backward()


EMB, ROWS = torch.eye(4)[:, :3], torch.tensor([[0, 1, 2]])
DATA_ERRORS = {
    "triplets are (1, 2) of torch.int64, needed are (T, 3) integers: rows of the embeddings": lambda: (
        triplet_losses(EMB, ROWS[:, :2])
    ),
    "triplets are (1, 3) of torch.float32, needed are (T, 3) integers: rows of the embeddings": lambda: (
        triplet_losses(EMB, ROWS.float())
    ),
    "triplets name row 4, the embeddings have rows 0 to 3": lambda: triplet_losses(EMB, ROWS + 2),
    "triplets name row -1, the embeddings have rows 0 to 3": lambda: triplet_losses(EMB, ROWS - 1),
    "pairs name row 7, the embeddings have rows 0 to 3": lambda: pair_losses(
        EMB, ROWS[:, 1:] + 5, torch.tensor([True])
    ),
    "genuine is (1,) of torch.int64, needed is one boolean a pair: (1,)": lambda: pair_losses(
        EMB, ROWS[:, :2], torch.tensor([1])
    ),
    "embeddings are (3,), needed are (B, D)": lambda: triplet_losses(EMB[0], ROWS),
    "1 of 4 embeddings are NaN or infinite, the first is row 0: look at that image, or lower the learning rate": (
        lambda: triplet_losses(torch.where(EMB[:, :1] > 0, torch.nan, EMB), ROWS)
    ),
}


@pytest.mark.parametrize("message", DATA_ERRORS)
def test_what_is_refused(message):
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        DATA_ERRORS[message]()


def test_pairs_have_no_soft_margin():
    with pytest.raises(ConfigError, match="margin is 'soft', the loss of pairs needs a number"):
        pair_losses(EMB, ROWS[:, :2], torch.tensor([True]), margin="soft")
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        triplet_losses(EMB, ROWS, distance="cosin")
