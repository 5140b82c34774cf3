"""Batches of ties, copies, collapse and extremes, each against a float64 twin: where rounding used to decide."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference_mining import cube, twin

from facemetric.errors import DataError
from facemetric.mining import MINERS, batch_all, batch_hard, batch_select, semihard
from facemetric.mining.kernels import settle, small_batch

TRIO = ("all", "semihard", "hard")
DISTANCES = ("squared", "euclidean", "cosine")
DTYPES = (torch.float32, torch.float64)
ROWS, SIDE = 16, 6


def unit(rows):
    return torch.nn.functional.normalize(rows)


def copies(draw):
    """Photographs under two names or more, and one name's own copies."""
    rows = unit(draw(ROWS, SIDE))
    return rows[(draw(ROWS).abs() * 3).long() % (ROWS // 2)]


def whole(draw):
    """Whole numbers: most distances are shared."""
    return (draw(ROWS, 3) * 1.5).round()


def grid(draw):
    return (draw(ROWS, 2) * 2).round() / 4


def collapsed(spread):
    return lambda draw: unit(unit(draw(1, SIDE)) + spread * draw(ROWS, SIDE))


def two_points(spread):
    return lambda draw: unit(unit(draw(2, SIDE))[(draw(ROWS) > 0).long()] + spread * draw(ROWS, SIDE))


def scaled(length):
    return lambda draw: unit(draw(ROWS, SIDE)) * length


def off_centre(draw):
    return draw(ROWS, SIDE) + 1000


def zeros(draw):
    rows = unit(draw(ROWS, SIDE))
    rows[::5] = 0
    return rows


EXACT_TIES = {"copies": copies, "whole": whole, "grid": grid}
SPREAD = {f"collapsed to {s}": collapsed(s) for s in (1e-3, 5e-4, 1e-4, 1e-5)}
SPREAD |= {f"two points, {s}": two_points(s) for s in (1e-2, 1e-3, 1e-4)}
SPREAD |= {f"length {s}": scaled(s) for s in (1e-20, 1e-7, 1e7, 1e15)} | {"off centre": off_centre}


def batch(make, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    rows = make(lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64))
    return rows.to(dtype), torch.randint(4, (len(rows),), generator=generator)


def mined_and_twin(kind, emb, labels, margin, distance, budget_mib):
    rows = emb.clone().requires_grad_()
    mined = MINERS[kind](rows, labels, margin=margin, distance=distance, budget_mib=budget_mib)
    mined.loss.backward()
    loss, active, _, (grad,) = cube(kind, emb, labels, margin, distance)
    return mined, rows.grad.double(), loss.item(), active, grad


OPTIONS = {
    "margin": st.sampled_from([0.0, 0.2, 0.5, 1.0, -0.5]),
    "distance": st.sampled_from(DISTANCES),
    "budget_mib": st.sampled_from([None, 0.002]),
    "seed": st.integers(0, 10**6),
}


@pytest.mark.parametrize("kind", [*TRIO, "select"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_both_twins_agree(kind, distance):
    def select(d_ap, d_an):
        return (d_an > d_ap) & (d_an < d_ap + 0.5)

    for make in (copies, whole, scaled(1.0)):
        emb, labels = batch(make, 0, torch.float64)
        if kind == "select" and make is whole:
            continue  # a filter of one's own decides ties as it likes
        for margin in (0.5, "soft"):
            slow, fast = (f(kind, emb, labels, margin, distance, select) for f in (twin, cube))
            assert fast[0].item() == pytest.approx(slow[0].item(), abs=1e-12)
            assert fast[1:3] == slow[1:3]
            if make not in (copies, whole):
                torch.testing.assert_close(fast[3][0], slow[3][0], atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", EXACT_TIES)
@pytest.mark.parametrize("kind", TRIO)
@settings(max_examples=25, deadline=None)
@given(**OPTIONS)
def test_ties_decide_as_the_definition_says(kind, name, dtype, margin, distance, budget_mib, seed):
    """The loss alone: of several negatives at one distance any has a right gradient."""
    # rows of several lengths, brought to unit length in float32, tie or not by rounding: without a margin it decides
    assume(
        (name, distance, margin, dtype) not in [(n, "cosine", 0.0, torch.float32) for n in ("whole", "grid")]
    )
    emb, labels = batch(EXACT_TIES[name], seed, dtype)
    mined, _, loss, active, _ = mined_and_twin(kind, emb, labels, margin, distance, budget_mib)
    assert mined.loss.item() == pytest.approx(loss, abs=1e-6 if dtype == torch.float32 else 1e-12, rel=1e-6)
    if kind == "all":
        assert mined.active == active


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TRIO)
@settings(max_examples=25, deadline=None)
@given(**OPTIONS)
def test_gradients_of_copies(kind, dtype, margin, distance, budget_mib, seed):
    """Which of the copies takes a gradient is open: it is added up over them."""
    emb, labels = batch(copies, seed, dtype)
    _, grad, _, _, expected = mined_and_twin(kind, emb, labels, margin, distance, budget_mib)
    _, group = emb.unique(dim=0, return_inverse=True)
    sums, expected_sums = (
        torch.zeros(len(emb), SIDE, dtype=torch.float64).index_add_(0, group, g) for g in (grad, expected)
    )
    tolerance = 2e-6 if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(sums, expected_sums, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPREAD)
@pytest.mark.parametrize("kind", TRIO)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("budget_mib", [None, 0.002])
def test_collapse_and_extremes(kind, name, distance, dtype, budget_mib):
    for seed in range(2):
        emb, labels = batch(SPREAD[name], seed, dtype)
        mined, grad, loss, _, expected = mined_and_twin(kind, emb, labels, 0.2, distance, budget_mib)
        single = dtype == torch.float32
        assert mined.loss.item() == pytest.approx(loss, rel=1e-5 if single else 1e-12)
        tolerance = 5e-3 if single else 1e-6
        if single and distance == "cosine" and name == "collapsed to 1e-05":
            tolerance = 0.2  # rows brought to unit length are rounded by 6e-8, a hundredth of their spread
        assert (grad - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("name", ["two points, 0.001", "two points, 0.0001"])
@pytest.mark.parametrize("budget_mib", [None, 0.01])
def test_a_soft_margin_of_a_network_collapsed_to_two_points(name, budget_mib):
    """Pairs of one point are nearer than a product tells; all of them weigh."""
    for seed in range(3):
        emb, labels = batch(SPREAD[name], seed, torch.float32)
        mined, grad, loss, _, expected = mined_and_twin("all", emb, labels, "soft", "euclidean", budget_mib)
        assert mined.loss.item() == pytest.approx(loss, rel=1e-6)
        assert (mined.anchor_losses.sum() / mined.weight).item() == pytest.approx(loss, rel=1e-6)
        assert (grad - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", TRIO)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("budget_mib", [None, 0.002])
def test_rows_too_long_are_right_or_refused(kind, distance, dtype, budget_mib):
    for length in (1e18, 3e18, 1e19) if dtype == torch.float32 else (1e150, 3e150, 1e151):
        emb, labels = batch(scaled(length), 0, dtype)
        try:
            mined, _, loss, _, _ = mined_and_twin(kind, emb, labels, 0.2, distance, budget_mib)
        except DataError:
            continue
        assert mined.loss.item() == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("kind", TRIO)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_rows(kind, distance, dtype):
    emb, labels = batch(zeros, 0, dtype)
    mined, grad, loss, _, _ = mined_and_twin(kind, emb, labels, 0.2, distance, None)
    assert mined.loss.item() == pytest.approx(loss, rel=1e-5)
    assert torch.isfinite(grad).all()
    if distance == "cosine":
        assert not grad[::5].any()


@pytest.mark.parametrize("budget_mib", [None, 0.05])
@pytest.mark.parametrize("kind", TRIO)
def test_a_collapsed_network_gets_its_gradient(kind, budget_mib):
    """96 unit rows of 64 numbers within 5e-4: the gradient's norm was 0, and is 0.43 to 0.45 for the hardest."""
    generator = torch.Generator().manual_seed(0)
    base, noise = torch.randn(1, 64, generator=generator), torch.randn(96, 64, generator=generator)
    emb, labels = unit(unit(base) + 4e-5 * noise), torch.arange(96) // 4
    assert torch.cdist(emb.double(), emb.double()).max() < 1e-3
    _, grad, _, _, expected = mined_and_twin(kind, emb, labels, 0.2, "euclidean", budget_mib)
    assert expected.norm() > 0.05
    torch.testing.assert_close(grad, expected, rtol=1e-2, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("kind", TRIO)
def test_only_equal_rows_have_no_gradient(kind):
    emb = torch.zeros(4, 2)
    emb[:, 0] = torch.tensor([1.0, 1.0 + 2.0**-23, 1.0, 1.0])
    labels = torch.tensor([0, 0, 1, 1])
    _, grad, _, _, expected = mined_and_twin(kind, emb, labels, 0.2, "euclidean", None)
    torch.testing.assert_close(grad, expected, atol=1e-6, rtol=0)
    _, grad, *_ = mined_and_twin(kind, torch.ones(4, 2), labels, 0.2, "euclidean", None)
    assert not grad.any()


@pytest.mark.parametrize("tries", [0, 1, 3])
@pytest.mark.parametrize("budget_mib", [None, 0.01])
def test_many_negatives_at_the_distance_of_the_positive(tries, budget_mib, monkeypatch):
    """More of them than are looked at one by one."""
    monkeypatch.setattr(settle, "TRIES", tries)
    monkeypatch.setattr(small_batch, "FEW_NUMBERS", tries * 10**5)  # all at once in float64, or directly
    generator = torch.Generator().manual_seed(3)
    emb = unit(torch.randn(9, 5, generator=generator))
    emb = emb[[0, *[1] * 12, *range(2, 9)]]  # the positive twelve times, eleven under another name
    labels = torch.tensor([0, 0, *[1] * 11, *range(2, 9)])
    mined = semihard(emb, labels, margin=1.0, budget_mib=budget_mib)
    loss, *_ = cube("semihard", emb, labels, 1.0)
    assert mined.loss.item() == pytest.approx(loss.item(), abs=1e-6)
    near = labels < 2  # nobody is farther: the farthest negative lies as far as the positive
    mined = semihard(emb[near], labels[near], margin=1.0, budget_mib=budget_mib)
    loss, *_ = cube("semihard", emb[near], labels[near], 1.0)
    assert mined.loss.item() == pytest.approx(loss.item(), abs=1e-6)


@pytest.mark.parametrize("kind", TRIO)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dead_network_is_mined_at_once(kind, dtype):
    """All rows one: nothing is looked at pair by pair."""
    rows = unit(torch.randn(1, 64, generator=torch.Generator().manual_seed(0), dtype=dtype)).repeat(1200, 1)
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settle, "_settle_panel", lambda *args: calls.append(args))
        mined = MINERS[kind](rows, torch.arange(1200) // 4)
    assert mined.loss.item() == pytest.approx(0.2)
    assert not calls


def test_float32_and_float64_choose_alike():
    """Of 4,800 pairs some have a negative within float32's rounding of d_ap."""
    generator = torch.Generator().manual_seed(5)
    emb, labels = unit(torch.randn(1600, 6, generator=generator)), torch.arange(1600) // 4
    mined, exact = semihard(emb, labels), semihard(emb.double(), labels)
    d = [
        (emb.double()[m.triplets[:, 0]] - emb.double()[m.triplets[:, 2]]).square().sum(1)
        for m in (mined, exact)
    ]
    torch.testing.assert_close(d[0].sort().values, d[1].sort().values, atol=2e-6, rtol=0)


def test_a_filter_sees_equal_rows_at_equal_distances():
    emb, labels = batch(copies, 1, torch.float32)
    for budget_mib in (None, 0.01, 0.002):
        mined = batch_select(
            emb, labels, select=lambda d_ap, d_an: d_an == d_ap, margin=0.5, budget_mib=budget_mib
        )
        loss, _, _, _ = twin("select", emb, labels, 0.5, "squared", lambda d_ap, d_an: d_ap == d_an)
        assert mined.weight > 0
        assert mined.loss.item() == pytest.approx(loss.item()) == 0.5


def test_a_hinge_that_is_just_reached_pays_nothing():
    """d_ap + margin is d_an: squared 1 + 3 = 4, plain 1 + 1 = 2."""
    emb = (
        torch.tensor([[0.0], [1.0], [-2.0], [100.0]]) + 1 / 3
    )  # which float32 rounds: 1/3 + 1 - 1/3 is not 1
    labels = torch.tensor([0, 0, 1, 2])
    exact = torch.tensor([[0.0], [1.0], [-2.0], [100.0]])
    for distance, margin in (("squared", 3.0), ("euclidean", 1.0)):
        for miner in (batch_all, batch_hard):
            mined = miner(exact, labels, margin=margin, distance=distance, anchors=slice(0, 1))
            assert (mined.active.item(), mined.loss.item()) == (0, 0)
            whole_batch = miner(exact, labels, margin=margin, distance=distance)
            assert whole_batch.active.item() == 0
    assert math.isfinite(batch_all(emb, labels, margin=3.0).loss)
