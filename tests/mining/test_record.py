"""What a miner tells beside its loss, on every way there is to mine; its defaults; its work."""

import gc

import pytest
import torch
from reference_mining import means, pay
from reference_mining import triplets as reference_triplets
from torch.utils.flop_counter import FlopCounterMode

from facemetric.errors import ConfigError
from facemetric.mining import (
    MINERS,
    CrossBatchMemory,
    TripletLoss,
    batch_select,
    distance_weighted,
    semihard,
)
from facemetric.mining.kernels import ladder, weighed
from facemetric.mining.kernels import small_batch as small
from facemetric.mining.tiles import MIB


def batch(rows=26, classes=6, dim=3, seed=0):
    """Uneven classes, one of a single row."""
    generator = torch.Generator().manual_seed(seed)
    emb = torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64))
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[-1] = classes
    return emb, labels


def graded(d_ap, d_an):
    """Weights that are neither 0 nor 1, and differ within a row and between rows."""
    return d_ap + 0.5 * d_an


TILES = {"budget_mib": 8 * 200 / MIB}
WAYS = {
    "all": ("all", {}, {}),
    "all in tiles": ("all", TILES, {}),
    "all, bounds searched": ("all", TILES, {(ladder, "MANY_POSITIVES"): 2}),
    "all, soft": ("all", {"margin": "soft"}, {}),
    "semihard": ("semihard", {}, {}),
    "semihard in tiles": ("semihard", TILES, {}),
    "hard without masks": ("hard", {}, {(small, "MASK_ROWS"): 0}),
    "hard in tiles": ("hard", TILES, {}),
    "select": ("select", {}, {}),
    "select in tiles": ("select", TILES, {}),
}


@pytest.mark.parametrize("distance", ["squared", "euclidean", "cosine"])
@pytest.mark.parametrize("way", WAYS)
def test_weight_and_mean_distances(way, distance, monkeypatch):
    kind, options, patches = WAYS[way]
    for (module, name), value in patches.items():
        monkeypatch.setattr(module, name, value)
    emb, labels = batch()
    check(kind, emb, labels, distance, options)


@pytest.mark.parametrize("distance", ["squared", "euclidean", "cosine"])
def test_of_the_hardest_where_every_row_has_a_triplet(distance):
    """Then masks of the whole matrix serve."""
    emb, _ = batch()
    check("hard", emb, torch.arange(len(emb)) % 5, distance, {})


def check(kind, emb, labels, distance, options):
    margin = options.get("margin", 0.2)
    mine = MINERS.get(kind) or (lambda *args, **kw: batch_select(*args, select=graded, **kw))
    mined = mine(emb, labels, distance=distance, **options)
    weight, d_ap, d_an = means(kind, emb, labels, margin, distance, graded)
    assert mined.weight.item() == pytest.approx(weight, rel=1e-9)
    assert mined.d_ap.item() == pytest.approx(d_ap, rel=1e-9)
    assert mined.d_an.item() == pytest.approx(d_an, rel=1e-9)
    assert mined.fraction_positive.item() == pytest.approx(mined.active.item() / mined.valid)
    assert not any(v.requires_grad for v in (mined.weight, mined.d_ap, mined.d_an, mined.active))


def test_defaults():
    emb, labels = batch(seed=3)
    plain = {"margin": 0.2, "distance": "squared", "anchors": None, "budget_mib": None}
    mine = {
        **MINERS,
        "distance-weighted": lambda *args, **kw: distance_weighted(*args, seed=0, **kw),
        "select": lambda *args, **kw: batch_select(*args, select=graded, **kw),
    }
    for kind, miner in mine.items():
        assert miner(emb, labels).loss == miner(emb, labels, **plain).loss > 0, kind
    expected = semihard(emb, labels, **plain).loss
    assert TripletLoss()(emb, labels) == expected
    assert repr(TripletLoss()) == "TripletLoss(semihard, margin=0.2, distance=squared)"
    assert TripletLoss("distance-weighted")(emb, labels) == distance_weighted(emb, labels, seed=0).loss
    memory = CrossBatchMemory(8, dim=3).double()
    assert memory(emb, labels).loss.item() == pytest.approx(expected.item(), abs=1e-12)
    assert memory.filled == 8
    assert memory(emb, labels).valid > semihard(emb, labels).valid


@pytest.mark.parametrize("kind", ["all", "semihard", "hard"])
def test_a_whole_batch_costs_half_the_products(kind):
    """Of 8 x 8 tiles the 36 on and above the diagonal are formed."""
    rows, dim, buffers = 400, 6, 3 if kind == "all" else 2
    generator = torch.Generator().manual_seed(0)
    emb = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:  # it counts mm, and not addmm_, the gradient's
        MINERS[kind](emb, torch.arange(rows) // 2, budget_mib=buffers * 50 * 50 * 8 / MIB)
    assert counter.get_total_flops() == 2 * rows * rows * (dim + 2) * 36 / 64


@pytest.mark.parametrize("kind", ["semihard", "hard"])
def test_distances_are_added_up_in_float64(kind):
    """Twelve times 2^23 + 1, which float32 holds and twelve of which it does not."""
    step = torch.tensor([2896.0, 42.0, 5.0, 2.0])
    assert step.square().sum() == 2**23 + 1
    emb = torch.stack([step, 0 * step, -step, 0 * step] * 3)  # their mean is 0
    mined = MINERS[kind](emb, torch.arange(12) // 2, budget_mib=1.0)
    assert mined.d_ap.item() == pytest.approx(2**23 + 1, rel=1e-12)


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("anchors", [None, slice(3, 17), "apart"])
@pytest.mark.parametrize("way", WAYS)
def test_triplets_and_the_loss_of_each_anchor(way, anchors, weighed, monkeypatch):
    kind, options, patches = WAYS[way]
    for (module, name), value in patches.items():
        monkeypatch.setattr(module, name, value)
    emb, labels = batch()
    emb[5], labels[5] = emb[4], labels[4]
    own = torch.arange(26)[anchors] if isinstance(anchors, slice) else torch.arange(26)
    rows, asked = emb[own], labels[own]
    if anchors == "apart":
        rows, asked = batch(9, seed=4)
        anchors, own = (rows, asked), None
    mine = MINERS.get(kind) or (lambda *args, **kw: batch_select(*args, select=graded, **kw))
    generator = torch.Generator().manual_seed(7)
    weights = torch.rand(len(rows) if own is None else 26, generator=generator, dtype=torch.float64)
    weights[5] = 0
    mined = mine(emb, labels, anchors=anchors, weights=weights if weighed else None, **options)
    if not weighed:
        weights = torch.ones_like(weights)
    weights = weights if own is None else weights[own]
    margin = options.get("margin", 0.2)
    expected, chosen = torch.zeros(len(rows), dtype=torch.float64), set()
    counted_of_each = torch.zeros_like(expected)
    for t, (a, p, n) in enumerate(mined.triplets.tolist()):
        i = a if own is None else own.tolist().index(a)
        assert asked[i] == labels[p] != labels[n]
        assert own is None or p != a
        d_ap, d_an = ((rows[i] - emb[j]).square().sum() for j in (p, n))
        weight = weights[i] * (graded(d_ap, d_an) if kind == "select" else 1)
        expected[i] += weight * pay(d_ap, d_an, margin)
        counted_of_each[i] += weight
        chosen.add((a, p, n))
        assert len(chosen) == t + 1
    torch.testing.assert_close(mined.anchor_losses, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(mined.anchor_weights, counted_of_each, atol=1e-12, rtol=0)
    assert mined.anchor_weights.sum().item() == pytest.approx(mined.weight.item(), abs=1e-12)
    assert (mined.anchor_losses.sum() / mined.weight).item() == pytest.approx(mined.loss.item(), abs=1e-12)
    counted = mined.active if kind == "all" else mined.valid
    assert len(chosen) == counted
    if kind in ("semihard", "hard"):
        own_rows = None if own is None or isinstance(anchors, tuple) else own.tolist()
        found = list(reference_triplets(kind, rows, emb, labels, asked, own_rows, margin, "squared", None))
        assert len(found) == len(chosen)
        mean = sum(float(weights[a] * dn) for a, _, dn, _ in found) / sum(
            float(weights[a]) for a, *_ in found
        )
        assert mined.d_an.item() == pytest.approx(mean)
    assert mined.triplets.shape == (len(chosen), 3)
    assert mined.triplets.dtype == torch.int64


@pytest.mark.parametrize("kind", MINERS)
def test_what_anchors_add_is_float64_of_float32_rows_too(kind):
    emb, labels = batch()
    mined = MINERS[kind](emb.float(), labels, **({"seed": 0} if kind == "distance-weighted" else {}))
    assert mined.anchor_losses.dtype == mined.anchor_weights.dtype == torch.float64


def test_a_batch_without_triplets_has_none():
    emb, _ = batch()
    for kind, miner in MINERS.items():
        options = {"seed": 0} if kind == "distance-weighted" else {}
        for labels in (torch.zeros(26), torch.arange(26)):
            mined = miner(emb, labels, **options)
            assert mined.triplets.shape == (0, 3)
            assert not mined.anchor_losses.any()
            assert len(mined.anchor_losses) == 26
            assert not mined.anchor_weights.any()


def test_too_many_triplets_to_list_are_refused(monkeypatch):
    monkeypatch.setattr(weighed, "MOST_TRIPLETS", 100)
    emb, labels = batch()
    with pytest.raises(
        ConfigError, match=r"^more than 100 triplets count, too many to list: mine fewer anchors"
    ):
        MINERS["all"](emb, labels).triplets  # noqa: B018
    assert len(MINERS["hard"](emb, labels).triplets) <= 26


@pytest.mark.parametrize("kind", ["semihard", "hard"])
@pytest.mark.parametrize("budget_mib", [None, 0.05])
def test_chosen_triplets_are_no_more_than_the_rows(kind, budget_mib):
    """What a record keeps of a batch grows as the batch: rows, labels, and one row of indices a triplet."""
    gc.collect()
    before = {
        id(t) for t in gc.get_objects() if type(t) is torch.Tensor
    }  # not those that compiling traces with
    emb, labels = batch(400, 100)
    mined = MINERS[kind](emb, labels, budget_mib=budget_mib)
    kept = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in gc.get_objects()
        if type(t) is torch.Tensor and id(t) not in before and t.numel() >= 400 * 400 // 8
    }
    assert sum(kept.values()) < 400 * 400 * 8
    assert mined.triplets.shape[1] == 3
