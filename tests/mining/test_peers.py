"""Against pytorch-metric-learning where the definitions agree."""

import pytest
import torch

from facemetric.mining import CrossBatchMemory, batch_all, batch_hard, batch_select, semihard

pml = pytest.importorskip("pytorch_metric_learning")
from pytorch_metric_learning import distances, losses, miners  # noqa: E402


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    emb = torch.nn.functional.normalize(torch.randn(40, 8, generator=generator, dtype=torch.float64))
    return emb, torch.randint(7, (40,), generator=generator)


def compare(ours, theirs, emb):
    a, b = emb.clone().requires_grad_(), emb.clone().requires_grad_()
    ours, theirs = ours(a), theirs(b)
    ours.backward()
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-10)
    torch.testing.assert_close(a.grad, b.grad, atol=1e-9, rtol=0)


SQUARED = distances.LpDistance(normalize_embeddings=False, power=2)
PLAIN = distances.LpDistance(normalize_embeddings=False)


@pytest.mark.parametrize(("name", "distance"), [("squared", SQUARED), ("euclidean", PLAIN)])
@pytest.mark.parametrize("margin", [0.1, 0.6])
def test_all(name, distance, margin):
    emb, labels = batch()
    loss = losses.TripletMarginLoss(margin=margin, distance=distance)
    compare(lambda e: batch_all(e, labels, margin=margin, distance=name).loss, lambda e: loss(e, labels), emb)


@pytest.mark.parametrize(("name", "distance"), [("squared", SQUARED), ("euclidean", PLAIN)])
def test_hard(name, distance):
    emb, labels = batch(1)
    loss, miner = (
        losses.TripletMarginLoss(margin=0.5, distance=distance),
        miners.BatchHardMiner(distance=distance),
    )
    with torch.no_grad():
        triplets = miner(emb, labels)
    ours = batch_hard(emb, labels, margin=0.5, distance=name)
    assert ours.active == ours.valid  # PML averages the active ones, and here all are
    compare(
        lambda e: batch_hard(e, labels, margin=0.5, distance=name).loss,
        lambda e: loss(e, labels, triplets),
        emb,
    )


def test_their_semihard_is_a_filter_here():
    emb, labels = batch(2)
    loss = losses.TripletMarginLoss(margin=0.3, distance=SQUARED)
    miner = miners.TripletMarginMiner(margin=0.3, type_of_triplets="semihard", distance=SQUARED)
    with torch.no_grad():
        triplets = miner(emb, labels)

    def inside(d_ap, d_an):
        return (d_an > d_ap) & (d_an <= d_ap + 0.3)

    compare(
        lambda e: batch_select(e, labels, select=inside, margin=0.3).loss,
        lambda e: loss(e, labels, triplets),
        emb,
    )


def test_semihard_as_tensorflow_addons_defines_it():
    """Masked extremes over a (p, a, n) cube: the nearest negative outside d_ap, else the farthest one."""
    emb, labels = batch(3)
    dist = torch.cdist(emb, emb).square()
    same = labels[:, None] == labels
    negative = ~same
    outside = negative[None] & (dist[None] > dist.T[:, :, None])  # [p, a, n]
    nearest = torch.where(outside, dist[None], torch.inf).amin(2)
    farthest = torch.where(negative, dist, -torch.inf).amax(1)
    d_an = torch.where(outside.any(2), nearest, farthest[None])
    pairs = same & ~torch.eye(len(emb), dtype=torch.bool)
    expected = (0.2 + dist.T - d_an).clamp(min=0)[pairs].sum() / pairs.sum()
    assert semihard(emb, labels).loss.item() == pytest.approx(expected.item(), abs=1e-12)


def test_cross_batch_memory():
    theirs = losses.CrossBatchMemory(
        losses.TripletMarginLoss(margin=0.3, distance=SQUARED), embedding_size=8, memory_size=500
    )
    ours = CrossBatchMemory(500, dim=8, miner="all").double()
    for seed in range(4):
        emb, labels = batch(seed)
        expected = theirs(emb.clone(), labels)
        mined = ours(emb, labels, margin=0.3)
        assert mined.loss.item() == pytest.approx(expected.item(), abs=1e-6)  # theirs stores float32
