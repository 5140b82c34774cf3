"""The miners against slow twins, by property, against another library, and in the corners where NaN lives."""

import math
import sys
import types

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
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
from facemetric.mining import mine as engine
from facemetric.mining.kernels import every_triplet as dense
from facemetric.mining.kernels import one_negative as sparse
from facemetric.mining.kernels import small_batch as small
from facemetric.mining.kernels.one_negative import argmin_columns, argmin_rows
from facemetric.mining.tiles import MIB

DISTANCES = ("squared", "euclidean", "cosine")
TRIO = ("all", "semihard", "hard")


def window(d_ap, d_an):
    return (d_an > d_ap) & (d_an < d_ap + 0.5)


def batch(rows, classes, *, dim=4, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    emb = torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator, dtype=dtype))
    return emb, torch.randint(classes, (rows,), generator=generator)


def run(kind, emb, labels, **options):
    emb = emb.clone().requires_grad_()
    if kind == "select":
        mined = batch_select(emb, labels, select=window, **options)
    else:
        mined = MINERS[kind](emb, labels, **options)
    mined.loss.backward()
    return mined, emb.grad


@st.composite
def batches(draw):
    """Uneven classes, and rows repeated under the same and under another label."""
    rows = draw(st.integers(1, 22))
    emb, labels = batch(
        rows, draw(st.integers(1, 6)), dim=draw(st.integers(2, 5)), seed=draw(st.integers(0, 10**6))
    )
    if rows > 3 and draw(st.booleans()):
        emb[1], labels[1] = emb[0], labels[0]  # a duplicate image
    return emb, labels


OPTIONS = st.fixed_dictionaries(
    {
        "margin": st.sampled_from([0.0, 0.2, 0.9, -0.3, "soft"]),
        "distance": st.sampled_from(DISTANCES),
        "budget_mib": st.sampled_from([8 * 30 / MIB, 8 * 700 / MIB, 1.0, None]),
    }
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


def apart_or_equal(x, y):
    """1 / d of a tile's d has an error of about 1e-16 / d^2: 1e-12 is for rows not nearer than 0.05."""
    dist = (x[:, None] - y[None]).detach().norm(dim=2)
    return bool(((dist == 0) | (dist > 0.05)).all())


def folded(grad, emb):
    """Which of two equal rows takes the gradient is open: their sum is compared."""
    return (
        torch.cat([grad[:1] + grad[1:2], grad[2:]]) if len(emb) > 1 and torch.equal(emb[0], emb[1]) else grad
    )


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


@settings(max_examples=40, deadline=None)
@given(data=batches(), options=OPTIONS)
def test_hard_without_masks_equals_the_slow_twin(data, options):
    """How some hundred rows are mined: anchors without a positive among them."""
    emb, labels = data
    assume(options["distance"] != "euclidean" or apart_or_equal(emb, emb))
    options = options | {"budget_mib": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small, "MASK_ROWS", 0)
        mined, grad = run("hard", emb, labels, **options)
    loss, active, valid, (expected,) = twin("hard", emb, labels, options["margin"], options["distance"])
    assert mined.loss.item() == pytest.approx(loss.item(), abs=1e-12)
    assert mined.valid == valid
    assert mined.active.item() == pytest.approx(active, abs=options["margin"] in (0.0, "soft"))
    torch.testing.assert_close(folded(grad, emb), folded(expected, emb), atol=2e-12, rtol=0)


@pytest.mark.parametrize("many", [1, 2, 5, 8])
@settings(max_examples=40, deadline=None)
@given(data=batches(), options=OPTIONS, whole=st.booleans())
def test_bounds_searched_equal_bounds_compared(many, data, options, whole):
    """Anchors with few and with many positives in one batch, ties with a duplicate among them."""
    emb, labels = data
    assume(options["distance"] != "euclidean" or apart_or_equal(emb, emb))
    anchors = None if whole else slice(0, len(emb) // 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "SMALL_ROWS", 0)
        compared, grad_compared = run("all", emb, labels, anchors=anchors, **options)
        patch.setattr(dense, "MANY_POSITIVES", many)
        patch.setattr(dense, "SEARCH_BLOCK", 30)
        searched, grad = run("all", emb, labels, anchors=anchors, **options)
    assert searched.active == compared.active
    assert searched.loss.item() == pytest.approx(compared.loss.item(), abs=1e-13)
    torch.testing.assert_close(grad, grad_compared, atol=1e-13, rtol=0)


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


@pytest.mark.parametrize("rows", [1, 127, 128, 131, 160, 300])
@pytest.mark.parametrize("cols", [1, 129, 200])
@pytest.mark.parametrize("numpy_entries", [0, 10**6])
def test_minimum_in_two_levels(rows, cols, numpy_entries, monkeypatch):
    monkeypatch.setattr(sparse, "NUMPY_ENTRIES", numpy_entries)
    bits = torch.randint(-(10**9), 10**9, (rows, cols), generator=torch.Generator().manual_seed(0))
    assert torch.equal(argmin_rows(bits), bits.argmin(1))
    assert torch.equal(argmin_columns(bits), bits.argmin(0))


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


def test_distance_weighted_draws_by_inverse_density():
    """Two negatives at chosen distances: the odds are q(far) / q(near), D = 32."""
    anchor = torch.eye(32, dtype=torch.float64)[0]

    def at(d):
        cos = 1 - d * d / 2
        return torch.tensor([cos, math.sqrt(1 - cos * cos), *[0.0] * 30], dtype=torch.float64)

    near, far = 1.2, 1.35
    emb, labels = torch.stack([anchor, anchor, at(near), at(far)]), torch.tensor([0, 0, 1, 2])
    draws = 400
    for distance, d_near in (("squared", near**2), ("euclidean", near), ("cosine", near**2 / 2)):
        means = [
            distance_weighted(emb, labels, seed=s, distance=distance, anchors=slice(0, 1)).d_an.item()
            for s in range(draws)
        ]
        share = sum(abs(m - d_near) < 1e-9 for m in means) / draws
        q = [d**30 * (1 - d * d / 4) ** 14.5 for d in (near, far)]
        expected = q[1] / (q[0] + q[1])
        assert abs(share - expected) < 5 * math.sqrt(expected * (1 - expected) / draws)
    first, second = (distance_weighted(emb, labels, seed=3) for _ in range(2))
    assert first.loss == second.loss


def test_module_counts_its_draws_and_keeps_the_record():
    emb, labels = batch(40, 8, seed=9)
    loss = TripletLoss("distance-weighted", seed=5)
    first, second = loss(emb, labels), loss(emb, labels)
    assert first == distance_weighted(emb, labels, seed=5).loss
    assert second == distance_weighted(emb, labels, seed=6).loss
    other = TripletLoss("distance-weighted", seed=5)
    other.load_state_dict(loss.state_dict())
    assert other(emb, labels) == distance_weighted(emb, labels, seed=7).loss
    module = TripletLoss("hard", margin="soft", distance="cosine")
    assert repr(module) == "TripletLoss(hard, margin=soft, distance=cosine)"
    value = module(emb.requires_grad_(), labels)
    value.backward()
    assert module.mined is not None
    assert not module.mined.loss.requires_grad
    assert value == batch_hard(emb, labels, margin="soft", distance="cosine").loss


def test_loss_scales_with_the_incoming_gradient():
    emb, labels = batch(14, 4, seed=10)
    _, grad = run("all", emb, labels)
    rows = emb.clone().requires_grad_()
    (batch_all(rows, labels).loss * -3).backward()
    torch.testing.assert_close(rows.grad, grad * -3)
    with torch.no_grad():
        assert not batch_all(rows, labels).loss.requires_grad
