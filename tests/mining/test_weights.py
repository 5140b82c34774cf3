"""How much each row counts as an anchor: the weighted mean of its triplets, on every way there is to mine."""

import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mined_batches import DISTANCES, OPTIONS, TRIO, apart_or_equal, batch, batches, folded, run, window
from reference_mining import twin

from facemetric.errors import DataError
from facemetric.mining import MINERS, CrossBatchMemory, TripletLoss, batch_all, distance_weighted, semihard
from facemetric.mining.kernels import ladder
from facemetric.mining.tiles import MIB


def some_weights(rows, seed=0):
    """0..2, a third of them exactly 0, 1 or 2."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(rows, generator=generator, dtype=torch.float64) * 2
    whole = torch.rand(rows, generator=generator) < 1 / 3
    return torch.where(whole, weights.round(), weights)


@pytest.mark.parametrize("kind", [*TRIO, "select"])
@settings(max_examples=40, deadline=None)
@given(data=batches(), options=OPTIONS, seed=st.integers(0, 999))
def test_equals_the_slow_twin(kind, data, options, seed):
    emb, labels = data
    assume(options["distance"] != "euclidean" or apart_or_equal(emb, emb))
    weights = some_weights(len(emb), seed)
    weights[1:2] = weights[0]  # which of two equal rows takes the gradient is open
    mined, grad = run(kind, emb, labels, weights=weights, **options)
    margin, distance = options["margin"], options["distance"]
    loss, active, valid, (expected,) = twin(kind, emb, labels, margin, distance, window, None, weights)
    assert mined.loss.item() == pytest.approx(loss.item(), abs=1e-12)
    assert mined.valid == valid
    assert abs(mined.active.item() - active) <= 2 * (margin in (0.0, "soft"))  # 0 or rounding: both are true
    torch.testing.assert_close(folded(grad, emb), folded(expected, emb), atol=2e-12, rtol=0)


@pytest.mark.parametrize("kind", [*TRIO, "select"])
@settings(max_examples=25, deadline=None)
@given(data=batches(), options=OPTIONS, cut=st.integers(0, 22), apart=st.booleans(), seed=st.integers(0, 999))
def test_anchors_against_a_larger_set_equal_the_slow_twin(kind, data, options, cut, apart, seed):
    emb, labels = data
    if apart:
        other, other_labels = batch(7, 5, dim=emb.shape[1], seed=seed)
        anchors = (other.requires_grad_(), other_labels)
        assume(options["distance"] != "euclidean" or apart_or_equal(other, emb))
        weights = importance = some_weights(7, seed)
    else:
        anchors = slice(cut // 2, cut)
        assume(options["distance"] != "euclidean" or apart_or_equal(emb, emb))
        weights = some_weights(len(emb), seed)
        importance = weights[anchors]
    mined, grad = run(kind, emb, labels, anchors=anchors, weights=weights, **options)
    margin, distance = options["margin"], options["distance"]
    loss, _, valid, expected = twin(kind, emb, labels, margin, distance, window, anchors, importance)
    assert mined.loss.item() == pytest.approx(loss.item(), abs=1e-12)
    assert mined.valid == valid
    torch.testing.assert_close(folded(grad, emb), folded(expected[0], emb), atol=2e-12, rtol=0)
    if apart:
        torch.testing.assert_close(anchors[0].grad, expected[1], atol=2e-12, rtol=0)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("budget_mib", [None, 8 * 200 / MIB])
def test_many_positives_whose_bounds_are_searched(distance, budget_mib, monkeypatch):
    monkeypatch.setattr(ladder, "MANY_POSITIVES", 2)
    emb, labels = batch(30, 4, seed=2)
    weights = some_weights(30)
    mined, grad = run("all", emb, labels, distance=distance, weights=weights, budget_mib=budget_mib)
    loss, _, _, (expected,) = twin("all", emb, labels, 0.2, distance, None, None, weights)
    assert mined.loss.item() == pytest.approx(loss.item(), abs=1e-12)
    torch.testing.assert_close(grad, expected, atol=2e-12, rtol=0)


@pytest.mark.parametrize("kind", [*TRIO, "select"])
@pytest.mark.parametrize("budget_mib", [None, 0.05])
def test_only_ratios_of_weights_matter_and_ones_change_nothing(kind, budget_mib):
    emb, labels = batch(60, 12, seed=1)
    plain, grad = run(kind, emb, labels, budget_mib=budget_mib)
    for number in (1, 3):
        same, same_grad = run(kind, emb, labels, budget_mib=budget_mib, weights=torch.full((60,), number))
        assert same.loss.item() == pytest.approx(plain.loss.item(), abs=1e-12)
        assert same.d_ap.item() == pytest.approx(plain.d_ap.item(), abs=1e-12)
        assert same.d_an.item() == pytest.approx(plain.d_an.item(), abs=1e-12)
        assert same.weight.item() == pytest.approx(number * plain.weight.item())
        assert same.active == plain.active
        torch.testing.assert_close(same_grad, grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", TRIO)
@pytest.mark.parametrize("budget_mib", [None, 0.05])
def test_which_triplets_are_chosen_does_not_change(kind, budget_mib):
    emb, labels = batch(60, 12, seed=1)
    plain, _ = run(kind, emb, labels, budget_mib=budget_mib)
    weighed, _ = run(kind, emb, labels, budget_mib=budget_mib, weights=some_weights(60))
    assert torch.equal(weighed.triplets, plain.triplets)
    assert weighed.active == plain.active
    assert weighed.fraction_positive == plain.fraction_positive
    assert weighed.loss != plain.loss


@pytest.mark.parametrize("kind", [*TRIO, "select"])
def test_anchors_of_weight_0_teach_nothing(kind):
    emb, labels = batch(20, 5)
    mined, grad = run(kind, emb, labels, weights=torch.zeros(20))
    assert mined.loss == 0
    assert not grad.any()
    one = torch.zeros(20, dtype=torch.bool)
    one[3] = True
    mined, _ = run(kind, emb, labels, weights=one)
    alone, _ = run(kind, emb, labels, anchors=slice(3, 4))
    assert mined.loss.item() == pytest.approx(alone.loss.item(), abs=1e-12)


@pytest.mark.parametrize("kind", TRIO)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("budget_mib", [0.05, 12.0])
def test_float32_is_near_float64_in_many_tiles(kind, distance, budget_mib):
    emb, _ = batch(400, 1, dim=32, seed=1)
    labels, weights = torch.arange(400) // 5, some_weights(400)
    exact, expected = run(kind, emb, labels, distance=distance, weights=weights)
    options = {"distance": distance, "budget_mib": budget_mib, "weights": weights}
    mined, grad = run(kind, emb.float(), labels, **options)
    assert mined.loss.dtype == torch.float32
    assert mined.loss.item() == pytest.approx(exact.loss.item(), abs=1e-5)
    assert (grad - expected).abs().max() < 1e-6
    assert mined.d_ap.item() == pytest.approx(exact.d_ap.item(), abs=1e-5)
    assert mined.d_an.item() == pytest.approx(exact.d_an.item(), abs=1e-5)


@pytest.mark.parametrize("kind", TRIO)
def test_ranks_add_up_to_one_process(kind):
    emb, labels = batch(30, 6, seed=3)
    weights = some_weights(30)
    whole, grad = run(kind, emb, labels, weights=weights)
    cuts = (slice(0, 4), slice(4, 19), slice(19, 30))
    parts = [run(kind, emb, labels, anchors=cut, weights=weights) for cut in cuts]
    weight = sum(mined.weight for mined, _ in parts)
    loss = sum(mined.loss * mined.weight for mined, _ in parts) / weight
    assert loss.item() == pytest.approx(whole.loss.item(), abs=1e-12)
    torch.testing.assert_close(sum(g * mined.weight for mined, g in parts) / weight, grad, atol=1e-12, rtol=0)


def test_of_drawn_triplets():
    emb, labels = batch(20, 4)
    weights = some_weights(20)
    mined = distance_weighted(emb, labels, seed=3, weights=weights)
    losses = distance_weighted(emb, labels, seed=3).anchor_losses * weights
    counts = distance_weighted(emb, labels, seed=3).anchor_weights * weights
    assert mined.loss.item() == pytest.approx((losses.sum() / counts.sum()).item(), abs=1e-12)


def test_of_the_module_and_of_a_memory():
    emb, labels = batch(20, 4)
    weights = some_weights(20)
    expected = semihard(emb, labels, weights=weights)
    assert TripletLoss()(emb, labels, weights=weights) == expected.loss
    memory = CrossBatchMemory(16, dim=4).double()
    assert memory(emb, labels, weights=weights).loss.item() == pytest.approx(expected.loss.item(), abs=1e-12)
    together, both = torch.cat([emb, memory.embeddings]), torch.cat([labels, memory.labels])
    second = semihard(together, both, anchors=slice(0, 20), weights=torch.cat([weights, torch.ones(16)]))
    assert second.loss.item() != pytest.approx(expected.loss.item(), abs=1e-6)
    assert memory(emb, labels, weights=weights).loss.item() == pytest.approx(second.loss.item(), abs=1e-12)


EMB, LABELS = batch(6, 2)
REFUSED = {
    "weights are (5,), needed is one number for each row of the batch: a tensor (6,)": {
        "weights": torch.ones(5)
    },
    "weights are (6, 1), needed is one number for each row of the batch: a tensor (6,)": {
        "weights": torch.ones(6, 1)
    },
    "weights are a list, needed is one number for each row of the batch: a tensor (6,)": {
        "weights": [1.0] * 6
    },
    "weights are (6,), needed is one number for each anchor: a tensor (2,)": {
        "weights": torch.ones(6),
        "anchors": (EMB[:2], LABELS[:2]),
    },
    "weights must be finite and not below 0, that of row 1 is -2; a weight of 0 leaves a row out as an anchor": {
        "weights": torch.tensor([1, -2, 1, 1, 1, 1])
    },
    "weights must be finite and not below 0, that of row 0 is nan; a weight of 0 leaves a row out as an anchor": {
        "weights": torch.full((6,), torch.nan)
    },
}


@pytest.mark.parametrize("message", REFUSED)
@pytest.mark.parametrize("kind", TRIO)
def test_what_is_refused(kind, message):
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        MINERS[kind](EMB, LABELS, **REFUSED[message])


def test_weights_get_no_gradient():
    weights = torch.ones(6, requires_grad=True)
    batch_all(EMB.clone().requires_grad_(), LABELS, weights=weights).loss.backward()
    assert weights.grad is None
