"""Who shares a label in a small batch, and which batches are small."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mined_batches import OPTIONS, apart_or_equal, batches, folded, run
from reference_mining import twin

from facemetric.mining.kernels import small_batch as small
from facemetric.mining.kernels.small_batch import (
    SMALL_MIB,
    SMALL_NUMBERS,
    SMALL_ROWS,
    find_positives,
    small_hard,
)
from facemetric.mining.mine import Kernel, MiningOptions, mine
from facemetric.mining.miners import _HARD


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-2, 3), min_size=1, max_size=14))
def test_positives_by_loops(labels):
    N = len(labels)
    alike = [[j for j in range(N) if labels[j] == labels[i] and j != i] for i in range(N)]
    K = max(map(len, alike))
    found = find_positives(torch.tensor(labels), 3)
    if K == 0 or len(set(labels)) == 1:
        assert found is None
        return
    assert found.at_KN.shape == (K, N)
    absent = torch.zeros(K, N, dtype=torch.bool) if found.absent_KN is None else found.absent_KN
    assert (found.absent_KN is None) == all(len(a) == K for a in alike)
    for row in range(N):
        here, missing = found.at_KN[:, row], absent[:, row]
        assert sorted(here[~missing].tolist()) == alike[row]
        assert all(labels[j] == labels[row] for j in here[missing].tolist())
    assert found.anchors == sum(len(a) > 0 for a in alike)
    assert found.pairs == sum(map(len, alike))
    assert found.triplets == sum(len(a) * (N - 1 - len(a)) for a in alike)


def test_too_many_numbers_are_for_tiles():
    labels = torch.arange(64) // 4  # three positives each
    most = SMALL_NUMBERS // (3 * 64)
    assert find_positives(labels, most) is not None
    assert find_positives(labels, most + 1) is None


@pytest.mark.parametrize(
    ("rows", "budget_mib", "small"),
    [
        (0, None, False),
        (1, None, True),
        (SMALL_ROWS, None, True),
        (SMALL_ROWS + 1, None, False),
        (8, SMALL_MIB, True),
        (8, SMALL_MIB - 1, False),
    ],
)
def test_which_batches_are_small(rows, budget_mib, small):
    asked = []

    def nothing(rows_ND, labels_N, rule, weight_N):
        asked.append(len(labels_N))

    emb = torch.randn(rows, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(rows) // 2
    kernel = Kernel(_HARD.in_tiles, nothing)
    options = MiningOptions(0.2, "squared", None, budget_mib)
    found = mine(emb, labels, kernel, options)
    assert asked == ([rows] if small else [])
    assert found.loss == mine(emb, labels, Kernel(_HARD.in_tiles), options).loss
    mine(emb, labels, kernel, options._replace(anchors=slice(0, rows), budget_mib=None))
    assert asked == ([rows] if small else [])  # anchors that are named are mined in tiles


def test_masks_serve_where_every_row_has_a_triplet(monkeypatch):
    """The sum of what every row pays is finite only then."""
    emb = torch.randn(12, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rule = type("Rule", (), {"root": False, "margin": 0.2, "loss_and_slope": None})()
    for labels in ([0] * 12, list(range(12)), [0] * 11 + [1]):
        assert small_hard(emb, torch.tensor(labels), rule) is None


def test_the_same_whatever_numbers_name_the_people():
    labels = np.array([5, 5, -1, -1, 7, 5])
    first, other = (find_positives(torch.tensor(x), 2) for x in (labels, labels * 2.5))
    assert torch.equal(first.at_KN, other.at_KN)
    assert torch.equal(first.absent_KN, other.absent_KN)


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
