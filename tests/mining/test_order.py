"""The order of a batch against loops over its labels: runs, positives, and the marking of one's own class."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from facemetric.mining import order as module
from facemetric.mining.order import order_against, order_whole, sortable

LABELS = st.lists(st.integers(0, 4), max_size=20)


def check(order, asked, labels, own):
    """`asked` are the labels of the anchors, `own` their rows in `labels`, None where they are apart."""
    N = len(labels)
    assert sorted(order.anchors_M.tolist()) == list(range(len(asked)))
    assert sorted(order.reference_N.tolist()) == list(range(N))
    positives = []
    for i, anchor in enumerate(order.anchors_M.tolist()):
        start, count = int(order.start_M[i]), int(order.count_M[i])
        assert order.runs[:, i].tolist() == [start, start + count]
        alike = {j for j in range(N) if labels[j] == asked[anchor]}
        assert set(order.reference_N[start : start + count].tolist()) == alike
        me = int(order.self_M[i])
        assert me == N if own is None else int(order.reference_N[me]) == own[anchor]
        positives.append(alike - (set() if own is None else {own[anchor]}) if len(alike) < N else set())
    assert order.prefix == [
        sum(len(p) > k for p in positives) for k in range(max(map(len, positives), default=0))
    ]
    counts = [len(p) for p in positives]
    assert counts == sorted(counts, reverse=True)
    found = [set() for _ in positives]
    every = slice(0, len(positives))
    for k, n in enumerate(order.prefix):
        rows = order.positive(k, every).tolist()
        assert len(rows) == order.having(k, every) == n
        for i, row in enumerate(rows):
            found[i].add(int(order.reference_N[row]))
        for cut in range(len(positives)):
            part = slice(cut, min(cut + 3, len(positives)))
            assert order.positive(k, part).tolist() == rows[part]
            assert order.having(k, part) == len(rows[part])
    assert found == positives


def check_marks(order, asked, labels, height, width):
    """Every tile of this size, one's own class marked in it; anchors without a positive are in none."""
    anchors = len(asked) if order.whole else max(order.prefix, default=0)
    expected = torch.tensor(asked)[order.anchors_M][:, None] == torch.tensor(labels)[order.reference_N]
    for top in range(0, anchors, height):
        for left in range(0, len(labels), width):
            rows, cols = (
                slice(top, min(top + height, anchors)),
                slice(left, min(left + width, len(labels))),
            )
            tile = torch.zeros(rows.stop - top, cols.stop - left)
            order.fill_same(tile, rows, cols, 7.0)
            assert torch.equal(tile, expected[rows, cols] * 7.0)


@settings(max_examples=40, deadline=None)
@given(labels=LABELS, height=st.integers(1, 21), width=st.integers(1, 21), run=st.sampled_from([0, 1, 3, 64]))
def test_a_whole_batch(labels, height, width, run):
    order = order_whole(torch.tensor(labels, dtype=torch.int64))
    assert order.whole
    assert torch.equal(order.anchors_M, order.reference_N)
    check(order, labels, labels, range(len(labels)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SCATTER_RUN", run)  # a scatter for short runs, a slice for each long one
        check_marks(order, labels, labels, height, width)


@settings(max_examples=60, deadline=None)
@given(
    labels=LABELS,
    others=st.lists(st.integers(0, 5), max_size=12),
    cut=st.integers(0, 20),
    apart=st.booleans(),
    height=st.integers(1, 21),
    width=st.integers(1, 21),
    run=st.sampled_from([0, 1, 3, 64]),
)
def test_anchors_against_a_reference(labels, others, cut, apart, height, width, run):
    own = None if apart else list(range(len(labels)))[cut // 2 : cut]
    asked = others if own is None else [labels[j] for j in own]
    order = order_against(
        torch.tensor(asked, dtype=torch.int64),
        torch.tensor(labels, dtype=torch.int64),
        None if own is None else torch.tensor(own, dtype=torch.int64),
    )
    assert not order.whole
    check(order, asked, labels, own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SCATTER_RUN", run)
        check_marks(order, asked, labels, height, width)


def test_a_tile_beside_the_class_is_left_alone():
    order = order_whole(torch.tensor([0, 0, 1, 1]))
    for rows, cols in ((slice(0, 2), slice(2, 4)), (slice(2, 4), slice(0, 2))):
        tile = torch.zeros(2, 2)
        order.fill_same(tile, rows, cols, 1.0)
        assert not tile.any()


def test_anchors_of_another_dtype_meet_the_labels():
    order = order_against(torch.tensor([1.0, 0.5]), torch.tensor([1, 1, 0]), None)
    assert order.prefix == [1, 1]
    assert order.anchors_M.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.int64, torch.int64),
        (torch.int32, torch.int32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.int16, torch.int64),
        (torch.uint8, torch.int64),
        (torch.bool, torch.int64),
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
)
def test_labels_are_sorted_as_a_dtype_that_holds_them(dtype, expected):
    labels = torch.tensor([0, 1, 1]).to(dtype)
    assert sortable(labels).dtype == expected
    assert sortable(labels).tolist() == [0, 1, 1]
    assert isinstance(order_whole(labels).runs, np.ndarray)
