"""The miners against slow twins, by property, against another library, and in the corners where NaN lives."""

import sys
import types

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mined_batches import (
    DISTANCES,
    OPTIONS,
    TRIO,
    apart_or_equal,
    batch,
    batches,
    drawn_shares,
    folded,
    run,
    window,
)
from reference_mining import twin

from facemetric.errors import ConfigError, DataError
from facemetric.mining import (
    MINERS,
    TripletLoss,
    batch_all,
    batch_hard,
    batch_select,
    distance_weighted,
    resolve_miner,
    semihard,
)


@pytest.mark.parametrize("kind", [*TRIO, "select"])
@settings(max_examples=40, deadline=None)
@given(data=batches(), options=OPTIONS)
def test_equals_the_slow_twin(kind, data, options):
    emb, labels = data
    assume(options["distance"] != "euclidean" or apart_or_equal(emb, emb))
    mined, grad = run(kind, emb, labels, **options)
    loss, active, valid, (expected,) = twin(kind, emb, labels, options["margin"], options["distance"], window)
    assert mined.loss.item() == pytest.approx(loss.item(), abs=1e-12)
    assert mined.valid == valid
    assert abs(mined.active.item() - active) <= 2 * (
        options["margin"] in (0.0, "soft")
    )  # 0 or rounding: both are true
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
    else:
        anchors = slice(cut // 2, cut)
        assume(options["distance"] != "euclidean" or apart_or_equal(emb, emb))
    mined, grad = run(kind, emb, labels, anchors=anchors, **options)
    margin, distance = options["margin"], options["distance"]
    loss, _, valid, expected = twin(kind, emb, labels, margin, distance, window, anchors)
    assert mined.loss.item() == pytest.approx(loss.item(), abs=1e-12)
    assert mined.valid == valid
    torch.testing.assert_close(folded(grad, emb), folded(expected[0], emb), atol=2e-12, rtol=0)
    if apart:
        torch.testing.assert_close(anchors[0].grad, expected[1], atol=2e-12, rtol=0)


@pytest.mark.parametrize("kind", [*TRIO, "select"])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("margin", [0.3, "soft"])
def test_gradcheck(kind, distance, margin):
    emb, labels = batch(11, 3, seed=5)

    def loss(rows):
        if kind == "select":
            return batch_select(
                rows, labels, select=lambda d_ap, d_an: torch.ones_like(d_an), margin=margin
            ).loss
        return MINERS[kind](rows, labels, margin=margin, distance=distance).loss

    assert torch.autograd.gradcheck(loss, (emb.requires_grad_(),), eps=1e-7, atol=1e-6)


@pytest.mark.parametrize("kind", TRIO)
@pytest.mark.parametrize("distance", DISTANCES)
def test_ranks_add_up_to_one_process(kind, distance):
    emb, labels = batch(30, 6, seed=3)
    whole, grad = run(kind, emb, labels, distance=distance)
    parts = [
        run(kind, emb, labels, distance=distance, anchors=slice(a, b)) for a, b in ((0, 4), (4, 19), (19, 30))
    ]
    weight = sum(mined.weight for mined, _ in parts)
    loss = sum(mined.loss * mined.weight for mined, _ in parts) / weight
    assert loss.item() == pytest.approx(whole.loss.item(), abs=1e-12)
    assert sum(mined.valid for mined, _ in parts) == whole.valid
    torch.testing.assert_close(sum(g * mined.weight for mined, g in parts) / weight, grad, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", TRIO)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("budget_mib", [0.05, 0.5, 12.0])
def test_float32_is_near_float64_in_many_tiles(kind, distance, budget_mib):
    emb, _ = batch(400, 1, dim=32, seed=1)
    labels = torch.arange(400) // 5
    exact, expected = run(kind, emb, labels, distance=distance)
    mined, grad = run(kind, emb.float(), labels, distance=distance, budget_mib=budget_mib)
    assert mined.loss.item() == pytest.approx(exact.loss.item(), abs=1e-5)
    assert (grad - expected).abs().max() < 1e-6
    assert mined.d_ap.item() == pytest.approx(exact.d_ap.item(), abs=1e-5)
    assert mined.d_an.item() == pytest.approx(exact.d_an.item(), abs=1e-5)


def test_four_points_by_hand():
    """On a line: a at 0, p at 1, negatives at 1.2 and 3; squared 1, 1.44, 9 from a and .04, 4 from p."""
    emb = torch.tensor([[0.0], [1.0], [1.2], [3.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 2])
    # from a: 1 - 1.44 + .5 = .06; from p: 1 - .04 + .5 = 1.46 hard; semihard takes 4 there and pays nothing
    assert batch_hard(emb, labels, margin=0.5).loss.item() == pytest.approx((0.06 + 1.46) / 2)
    assert semihard(emb, labels, margin=0.5).loss.item() == pytest.approx(0.06 / 2)
    mined = batch_all(emb, labels, margin=0.5)
    assert mined.loss.item() == pytest.approx((0.06 + 1.46) / 2)
    assert (mined.active.item(), mined.valid) == (2, 4)
    assert mined.fraction_positive.item() == 0.5
    assert mined.d_ap.item() == pytest.approx(1)
    assert mined.d_an.item() == pytest.approx((1.44 + 0.04) / 2)


def test_semihard_needs_a_strictly_farther_negative_and_falls_back_to_the_farthest():
    # the negative at exactly d_ap is not farther; of the two left the nearer one counts
    tie = torch.tensor([[0.0], [1.0], [-1.0], [1.5]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    mined = semihard(tie, labels, margin=2.0, anchors=slice(0, 1))
    assert mined.d_an.item() == 1.5**2
    near = torch.tensor([[0.0], [5.0], [1.0], [2.0]], dtype=torch.float64)
    assert semihard(near, labels, anchors=slice(0, 1)).d_an.item() == 4.0


def test_errors_say_what_to_change():
    emb, labels = batch(6, 2)
    with pytest.raises(DataError, match="needed are"):
        semihard(emb, labels[:5])
    with pytest.raises(DataError, match="dimensions"):
        semihard(emb, labels, anchors=(emb[:, :2], labels))
    with pytest.raises(ConfigError, match="did you mean 'squared'"):
        semihard(emb, labels, distance="square")
    with pytest.raises(ConfigError, match="'soft'"):
        TripletLoss(margin="softly")
    with pytest.raises(ConfigError, match="did you mean 'semihard'"):
        resolve_miner("semi-hard")
    with pytest.raises(ConfigError, match="does not import"):
        resolve_miner("no_such_module_here:f")
    with pytest.raises(ConfigError, match="did you mean 'sqrt'"):
        resolve_miner("math:sqr")
    with pytest.raises(ConfigError, match="one weight a triplet"):
        batch_select(emb, labels, select=lambda d_ap, d_an: d_ap)


def test_a_filter_of_ones_own_by_name(monkeypatch):
    module = types.ModuleType("my_filters")
    module.window = window
    monkeypatch.setitem(sys.modules, "my_filters", module)
    emb, labels = batch(15, 4)
    expected = batch_select(emb, labels, select=window)
    assert resolve_miner("my_filters:window")(emb, labels).loss == expected.loss
    assert TripletLoss("my_filters:window")(emb, labels) == expected.loss


def test_a_filter_that_returns_its_argument_or_ones_is_safe():
    emb, labels = batch(15, 4)
    ones = batch_select(emb, labels, select=lambda d_ap, d_an: torch.ones_like(d_an), margin=0.4)
    active = batch_all(emb, labels, margin=0.4)
    assert ones.active == active.active
    assert ones.weight.item() == ones.valid == active.valid
    assert (ones.loss * ones.weight).item() == pytest.approx((active.loss * active.weight).item())
    itself = batch_select(emb, labels, select=lambda d_ap, d_an: d_an)
    expected = twin("select", emb, labels, select=lambda d_ap, d_an: d_an)[0]
    assert itself.loss.item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("distance", ["squared", "euclidean", "cosine"])
def test_distance_weighted_draws_by_inverse_density(distance):
    share, expected, room = drawn_shares(distance)
    assert ((share - expected).abs() < room).all(), (share, expected)


def test_distance_weighted_draws_by_its_seed():
    emb, labels = batch(14, 4, seed=10)
    first, second = (distance_weighted(emb, labels, seed=3) for _ in range(2))
    assert first.loss == second.loss


def test_loss_scales_with_the_incoming_gradient():
    emb, labels = batch(14, 4, seed=10)
    _, grad = run("all", emb, labels)
    rows = emb.clone().requires_grad_()
    (batch_all(rows, labels).loss * -3).backward()
    torch.testing.assert_close(rows.grad, grad * -3)
    with torch.no_grad():
        assert not batch_all(rows, labels).loss.requires_grad
