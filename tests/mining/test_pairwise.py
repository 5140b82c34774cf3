"""Losses of pairs against their papers, one pair at a time in float64, and against pytorch-metric-learning."""

import copy
import math
import re

import pytest
import reference_losses
import torch
from mined_batches import batch

from facemetric.errors import ConfigError, DataError
from facemetric.mining import (
    LOSSES,
    CrossBatchMemory,
    LossOptions,
    circle,
    contrastive,
    multi_similarity,
    resolve_loss,
    supcon,
)
from facemetric.mining.kernels import cosines
from facemetric.mining.tiles import MIB

CALLS = {
    "supcon": supcon,
    "multi-similarity": multi_similarity,
    "circle": circle,
    "contrastive": contrastive,
}
CASES = [
    ("supcon", {}),
    ("supcon", {"temperature": 0.01}),
    ("supcon", {"temperature": 2.0}),
    ("multi-similarity", {}),
    ("multi-similarity", {"epsilon": 0.0}),
    ("multi-similarity", {"epsilon": 2.5, "alpha": 5.0, "beta": 20.0, "base": 1.0}),
    ("circle", {}),
    ("circle", {"margin": 0.4, "gamma": 256.0}),
    ("circle", {"margin": 0.0, "gamma": 30.0}),
    ("contrastive", {}),
    ("contrastive", {"margin": 1.8}),
    ("contrastive", {"margin": 0.3}),
]
BUDGETS = [None, 8 * 30 / MIB, 8 * 500 / MIB]


def run(name, emb, labels, **options):
    rows = emb.clone().requires_grad_()
    found = CALLS[name](rows, labels, **options)
    found.loss.backward()
    return found, rows.grad


def twin(name, emb, labels, anchors=None, **options):
    rows = emb.clone().requires_grad_()
    every = list(range(len(labels)))
    loss = reference_losses.TWINS[name](rows, labels, every[anchors] if anchors else every, **options)
    loss.backward()
    return loss.detach(), rows.grad


def agree(name, emb, labels, *, anchors=None, budget_mib=None, **options):
    found, grad = run(name, emb, labels, anchors=anchors, budget_mib=budget_mib, **options)
    loss, expected = twin(name, emb, labels, anchors, **options)
    torch.testing.assert_close(found.loss, loss, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(grad, expected, rtol=1e-7, atol=1e-9)
    return found


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("budget_mib", BUDGETS)
@pytest.mark.parametrize("anchors", [None, slice(1, 8)])
def test_as_the_paper_has_it(name, options, budget_mib, anchors):
    """Rows of any length, uneven identities, some with one image."""
    for seed, (rows, classes) in enumerate([(15, 4), (12, 12), (21, 6)]):
        emb, labels = batch(rows, classes, seed=seed, dim=3)
        emb = emb * torch.arange(1, rows + 1)[:, None]
        found = agree(name, emb, labels, anchors=anchors, budget_mib=budget_mib, **options)
        assert found.part == (anchors is not None)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("budget_mib", BUDGETS)
def test_one_identity_no_genuine_pair_and_batches_of_one(name, options, budget_mib):
    emb, _ = batch(6, 2, seed=3)
    for rows in (1, 2, 6):
        for labels in (torch.zeros(rows, dtype=torch.int64), torch.arange(rows)):
            found = agree(name, emb[:rows], labels, budget_mib=budget_mib, **options)
            assert found.usable == 0
    none, grad = run(name, emb[:0], torch.zeros(0), budget_mib=budget_mib, **options)
    assert none.loss == 0
    assert grad.shape == (0, 4)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("budget_mib", BUDGETS)
def test_copies_under_the_same_and_another_name(name, options, budget_mib):
    emb, labels = batch(12, 4, seed=5)
    emb[1], labels[1] = emb[0], labels[0]
    emb[3] = emb[2]
    labels[3] = labels[2] + 1
    emb[7] = 0  # no direction: cosine 0 with all, and no gradient
    agree(name, emb, labels, budget_mib=budget_mib, **options)
    _, grad = run(name, emb, labels, budget_mib=budget_mib, **options)
    assert not grad[7].any()
    equal = emb[:1].expand(12, -1)
    found, grad = run(name, equal, labels, budget_mib=budget_mib, **options)
    assert math.isfinite(float(found.loss.detach()))
    assert grad.abs().max() < 1e-9  # any move of a row is along its length, or cancels


@pytest.mark.parametrize(("name", "options"), [case for case in CASES if case[0] != "circle"])
def test_gradcheck(name, options):
    """But for circle, whose weights have no gradient by its paper."""
    emb, labels = batch(9, 3, seed=1)

    def loss(rows):
        return CALLS[name](rows, labels, **options).loss

    assert torch.autograd.gradcheck(loss, (emb.clone().requires_grad_(),), atol=1e-5)
    rows = emb.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(rows), rows, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        grad.sum().backward()


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(name, options, dtype):
    emb, labels = batch(40, 9, dim=16, seed=2)
    expected, grad = run(name, emb.to(dtype).double(), labels, **options)
    rows = emb.to(dtype).requires_grad_()
    found = CALLS[name](rows, labels.to(torch.int16), **options)
    found.loss.backward()
    assert rows.grad.dtype == dtype
    assert options or found.loss.dtype == torch.float32  # as computed; options may ask for float64
    torch.testing.assert_close(found.loss.double(), expected.loss, rtol=2e-4, atol=1e-6)
    torch.testing.assert_close(
        rows.grad.double(), grad, rtol=2e-2 if dtype == torch.bfloat16 else 2e-3, atol=2e-5
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert CALLS[name](rows, labels, **options).loss == found.loss


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kept", [0.0, 64.0])
def test_large_batches_in_many_tiles(monkeypatch, name, kept):
    """Kept from the first walk or made again; in whole runs or in pieces; as many rows of an identity as a block."""
    emb, labels = batch(1500, 300, dim=8, seed=4)
    labels[:300] = 7
    emb = torch.nn.functional.normalize(emb + 0.5)  # many impostor pairs inside every margin
    whole, grad = run(name, emb, labels, budget_mib=1000)
    monkeypatch.setitem(cosines.KEPT_MIB, "cpu", kept)
    for budget in (0.3, 4.0):
        found, other = run(name, emb, labels, budget_mib=budget)
        torch.testing.assert_close(found.loss, whole.loss, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(other, grad, rtol=1e-7, atol=1e-12)
        for figure, value in whole.figures.items():
            torch.testing.assert_close(found.figures[figure], value)


@pytest.mark.parametrize("name", CALLS)
def test_figures_are_the_mean_cosines(name):
    emb, labels = batch(20, 5, seed=8)
    score = emb @ emb.T
    same = labels[:, None] == labels
    own = torch.eye(20, dtype=torch.bool)
    found, _ = run(name, emb, labels)
    torch.testing.assert_close(found.figures["mean_positive"], score[same & ~own].mean())
    torch.testing.assert_close(found.figures["mean_negative"], score[~same].mean())
    counts = torch.bincount(labels)[labels]
    assert found.usable == int((counts > 1).sum())
    part = CALLS[name](emb, labels, anchors=slice(5, 9))
    torch.testing.assert_close(part.figures["mean_positive"], score[5:9][(same & ~own)[5:9]].mean())


@pytest.mark.parametrize("name", ["supcon", "multi-similarity", "circle"])
def test_parts_of_the_anchors_add_up(name):
    emb, labels = batch(24, 6, seed=9)
    whole, grad = run(name, emb, labels)
    parts = [run(name, emb, labels, anchors=part) for part in (slice(0, 5), slice(5, 17), slice(17, 24))]
    weight = sum(found.weight for found, _ in parts)
    assert weight == whole.weight
    loss = sum(found.loss * found.weight for found, _ in parts) / weight
    torch.testing.assert_close(loss, whole.loss)
    torch.testing.assert_close(sum(g * found.weight for found, g in parts) / weight, grad)


@pytest.mark.parametrize("name", CALLS)
def test_with_a_memory_behind_the_batch(name):
    emb, labels = batch(30, 5, seed=6)
    memory = CrossBatchMemory(64, dim=4)
    memory.store(emb[10:], labels[10:])
    rows = emb[:10].clone().requires_grad_()
    both, who = memory.behind(rows, labels[:10])
    found = CALLS[name](both, who, anchors=slice(0, 10))
    found.loss.backward()
    stored = torch.cat([emb[:10], emb[10:].float().double()])
    loss, grad = twin(name, stored, labels, slice(0, 10))
    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(rows.grad, grad[:10])


def peers(name, options):
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    from pytorch_metric_learning import distances, miners, reducers

    if name == "supcon":
        return losses.SupConLoss(**options)
    if name == "circle":
        return losses.CircleLoss(m=options.get("margin", 0.25), gamma=options.get("gamma", 80))
    if name == "multi-similarity":
        ours = {"alpha": 2.0, "beta": 50.0, "base": 0.5, "epsilon": 0.1} | options
        epsilon = ours.pop("epsilon")
        loss, mine = losses.MultiSimilarityLoss(**ours), miners.MultiSimilarityMiner(epsilon=epsilon)
        return loss if epsilon >= 2 else lambda e, y: loss(e, y, mine(e, y))
    # its terms are distances and hinges: the paper's are their squares
    loss = losses.ContrastiveLoss(
        neg_margin=options.get("margin", 1.0),
        distance=distances.LpDistance(),
        reducer=reducers.DoNothingReducer(),
    )

    def squared(emb, labels):
        found = loss(emb, labels)
        genuine, impostor = (found[side]["losses"].square() for side in ("pos_loss", "neg_loss"))
        return genuine.mean() + impostor[impostor > 0].mean()

    return squared


@pytest.mark.parametrize(("name", "options"), CASES)
def test_as_pytorch_metric_learning_has_it(name, options):
    emb, labels = batch(60, 12, dim=6, seed=7)
    peer = peers(name, options)
    rows = emb.clone().requires_grad_()
    loss = peer(rows, labels)
    loss.backward()
    found, grad = run(name, emb, labels, **options)
    torch.testing.assert_close(found.loss, loss.detach(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(grad, rows.grad, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("supcon", {"temperature": 0}, "temperature is 0; it must be a number, 0.003 to 100"),
        ("supcon", {"temperature": True}, "temperature is True; it must be a number"),
        ("supcon", {"temperature": "warm"}, "temperature is 'warm'; it must be a number"),
        ("multi-similarity", {"beta": -1.0}, "beta is -1.0; it must be a number, 0.01 to 300"),
        ("multi-similarity", {"alpha": math.nan}, "alpha is nan"),
        ("multi-similarity", {"epsilon": -0.1}, "epsilon is -0.1; it must be a number, at least 0"),
        ("multi-similarity", {"base": 1.5}, "base is 1.5; it must be a number, -1 to 1"),
        ("circle", {"gamma": 1000}, "gamma is 1000; it must be a number, 0.01 to 600"),
        ("circle", {"margin": 2}, "margin is 2; it must be a number, 0 to 1"),
        ("contrastive", {"margin": 2.5}, "margin is 2.5; it must be a number, 0.001 to 2"),
        ("supcon", {"budget_mib": 0}, "the tile budget is 0 MiB"),
    ],
)
def test_options_that_cannot_be(name, options, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        CALLS[name](*batch(8, 2), **options)
    if "budget_mib" not in options:
        with pytest.raises(ConfigError, match=f"^--loss-args of {name}: {re.escape(message)}"):
            resolve_loss(name, LossOptions(arguments=options))


@pytest.mark.parametrize("name", CALLS)
def test_data_that_cannot_be(name):
    emb, labels = batch(8, 2)
    with pytest.raises(DataError, match=r"embeddings are \(8, 4\), labels \(7,\)"):
        CALLS[name](emb, labels[:7])
    emb[3, 1] = torch.nan
    with pytest.raises(DataError, match="1 of 8 embeddings are NaN or infinite, the first is row 3"):
        CALLS[name](emb, labels)


@pytest.mark.parametrize("name", CALLS)
def test_in_the_registry(name):
    emb, labels = batch(20, 5)
    options = {"supcon": {"temperature": 0.2}, "circle": {"gamma": 50}}.get(name, {})
    loss = resolve_loss(name, LossOptions(arguments=options))
    found = loss(emb, labels, seed=3)
    assert found.loss == CALLS[name](emb, labels, **options).loss
    assert (loss.remembers, loss.splits, loss.trained_only) == (True, name != "contrastive", False)
    assert (
        loss(emb, labels, anchors=slice(2, 6)).loss
        == CALLS[name](emb, labels, anchors=slice(2, 6), **options).loss
    )
    with pytest.raises(ConfigError, match=f"loss '{name}' has no argument 'temprature'"):
        resolve_loss(name, LossOptions(arguments={"temprature": 1}))
    assert "Source: " in LOSSES[name].__doc__
    assert copy.deepcopy(found.figures)


def test_triplets_take_no_arguments():
    with pytest.raises(
        ConfigError, match="--loss-args has margin, and --loss=triplet has options of its own"
    ):
        resolve_loss("triplet", LossOptions(arguments={"margin": 1}))
