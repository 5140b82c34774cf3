"""torch.compile of a step with a miner in it: the gradient of eager mode, and few graph breaks."""

import shutil
import subprocess
import sys

import pytest
import torch
import torch._dynamo
from torch import nn

from facemetric.mining import (
    MINERS,
    CrossBatchMemory,
    TripletLoss,
    batch_select,
    circle,
    contrastive,
    multi_similarity,
    pair_losses,
    proxy_anchor,
    supcon,
    triplet_losses,
)

CALLS = {
    **MINERS,
    "distance-weighted": lambda e, y, **kw: MINERS["distance-weighted"](e, y, seed=1, **kw),
    "select": lambda e, y, **kw: batch_select(e, y, select=lambda p, n: (n > p) & (n < p + 0.5), **kw),
}


def batch(rows, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows)
    emb = torch.randn(rows, 8, generator=generator, dtype=torch.float64)
    return nn.functional.normalize(emb).to(dtype), torch.arange(rows) // 4


def gradient(step, emb, labels, backend=None):
    """Of the loss for the matrix that makes the embeddings, and the graph breaks."""
    weight = nn.Parameter(torch.eye(8, dtype=emb.dtype) * 1.1)

    def whole(rows, labels):
        rows = nn.functional.normalize(rows @ weight)
        return step(rows, labels) + 0.01 * rows.pow(3).sum()

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run = whole if backend is None else torch.compile(whole, backend=backend)
    run(emb, labels).backward()
    return weight.grad, sum(torch._dynamo.utils.counters["graph_break"].values())


def compare(step, emb, labels, backend="eager", breaks=4):
    """A function within a function adds a break to the two of a miner."""
    expected, _ = gradient(step, emb, labels)
    alone, _ = gradient(lambda rows, labels: 0.0, emb, labels)
    assert not torch.allclose(expected, alone, rtol=1e-2)  # what is lost would show
    found, broken = gradient(step, emb, labels, backend)
    torch.testing.assert_close(found, expected)
    assert broken <= breaks


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("rows", [24, 520])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_miner(kind, rows, dtype):
    compare(lambda e, y: CALLS[kind](e, y).loss, *batch(rows, dtype))


@pytest.mark.parametrize("kind", ["all", "semihard", "hard"])
@pytest.mark.parametrize("margin", [0.3, "soft"])
@pytest.mark.parametrize("distance", ["squared", "euclidean", "cosine"])
def test_every_margin_and_distance(kind, margin, distance):
    compare(lambda e, y: CALLS[kind](e, y, margin=margin, distance=distance).loss, *batch(24))


def test_one_break_before_a_miner_and_one_in_it():
    emb, labels = batch(24)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    @torch.compile(backend="eager")
    def step(emb, labels):
        return MINERS["hard"](emb * 2, labels).loss * 3

    step(emb.requires_grad_(), labels).backward()
    assert emb.grad.any()
    assert sum(torch._dynamo.utils.counters["graph_break"].values()) <= 2


@pytest.mark.parametrize("kind", CALLS)
def test_under_autocast(kind):
    def step(emb, labels):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return CALLS[kind](emb, labels).loss

    compare(step, *batch(24), breaks=6)


def test_modules_and_triplets_of_ones_own():
    emb, labels = batch(24)
    compare(TripletLoss("hard"), emb, labels)
    compare(lambda e, y: CrossBatchMemory(8, dim=8, miner="hard").eval()(e, y).loss, emb, labels, breaks=9)
    triplets = MINERS["hard"](emb, labels).triplets
    compare(lambda e, y: triplet_losses(e, triplets, margin=1.0).mean(), emb, labels)
    compare(lambda e, y: pair_losses(e, triplets[:, :2], torch.ones(24) > 0).mean(), emb, labels)


@pytest.mark.parametrize("loss", [supcon, multi_similarity, circle, contrastive])
@pytest.mark.parametrize("rows", [24, 520])
def test_every_loss_of_pairs(loss, rows):
    compare(lambda e, y: loss(e, y).loss, *batch(rows))


def test_proxies():
    proxies = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
    compare(lambda e, y: proxy_anchor(e, y, proxies).loss, *batch(24))


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_the_default_backend():
    compare(lambda e, y: CALLS["hard"](e, y).loss, *batch(24), backend="inductor")


def test_who_does_not_compile_does_not_load_the_compiler():
    code = """
import sys, torch
from facemetric.mining import TripletLoss
emb = torch.eye(8, requires_grad=True)
TripletLoss("hard")(emb, torch.arange(8) // 2).backward()
assert not [name for name in sys.modules if name.startswith("torch._dynamo")]
"""
    subprocess.run([sys.executable, "-c", code], check=True)
