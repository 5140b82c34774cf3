"""Pairs drawn from an index."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facemetric.data.pair_images import make_pairs
from facemetric.errors import DataError


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=8, max_size=30), st.integers(1, 3), st.integers(0, 99))
def test_drawn_pairs_are_balanced_distinct_and_disjoint(sizes, folds, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    count = 4 * folds
    try:
        drawn = make_pairs(labels, count=count, folds=folds, seed=seed)
    except DataError:
        assert sum(s >= 3 for s in sizes) < folds  # otherwise each fold has three pairs of one person
        return
    assert len(drawn.a) == count
    assert (drawn.same == (labels[drawn.a] == labels[drawn.b])).all()
    assert (drawn.a != drawn.b).all()
    assert len({frozenset(p) for p in zip(drawn.a, drawn.b, strict=True)}) == count
    for fold in range(folds):
        assert drawn.same[drawn.fold == fold].sum() == (~drawn.same[drawn.fold == fold]).sum() == 2
        mine = set(labels[drawn.a[drawn.fold == fold]]) | set(labels[drawn.b[drawn.fold == fold]])
        rest = set(labels[drawn.a[drawn.fold != fold]]) | set(labels[drawn.b[drawn.fold != fold]])
        assert not mine & rest


def test_drawn_pairs_are_seeded():
    labels = np.repeat(np.arange(40), 5)
    first, again, other = (make_pairs(labels, count=100, folds=5, seed=s) for s in (1, 1, 2))
    assert all((x == y).all() for x, y in zip(first, again, strict=True))
    assert (first.a != other.a).any()


def test_a_large_person_does_not_swamp_the_pairs():
    labels = np.repeat(np.arange(21), [200] + [4] * 20)
    drawn = make_pairs(labels, count=80, folds=1, seed=0)
    of_large = (labels[drawn.a[drawn.same]] == 0).sum()
    assert of_large <= 3  # 19,900 of its 20,020 genuine pairs are of one person; an even share of 40 is 2


def test_every_pair_can_be_drawn():
    drawn = make_pairs([0, 0, 0, 1], count=6, folds=1, seed=0)
    assert sorted(map(sorted, zip(drawn.a[:3].tolist(), drawn.b[:3].tolist(), strict=True))) == [
        [0, 1],
        [0, 2],
        [1, 2],
    ]
    assert sorted(map(sorted, zip(drawn.a[3:].tolist(), drawn.b[3:].tolist(), strict=True))) == [
        [0, 3],
        [1, 3],
        [2, 3],
    ]


@pytest.mark.parametrize(
    ("labels", "count", "folds", "message"),
    [
        ([0, 0, 1, 1], 10, 3, "multiple of 6"),
        ([0, 0, 1, 1], 8, 1, "gives 2 pairs of one person, 4 were asked; ask for at most 4"),
        ([0, 0, 0, 0], 2, 1, "gives 0 pairs of two persons"),
    ],
)
def test_too_few_images(labels, count, folds, message):
    with pytest.raises(DataError, match=message):
        make_pairs(labels, count=count, folds=folds)


def test_every_fold_gets_its_share_of_people_with_images():
    labels = np.repeat(np.arange(44), [3] * 4 + [1] * 40)
    for seed in range(10):
        assert len(make_pairs(labels, count=24, folds=4, seed=seed).a) == 24


def test_people_with_images_give_what_people_without_leave_open():
    """An even share of 9 pairs is 3; two people have one pair each, so the third gives the other seven."""
    drawn = make_pairs([0] * 8 + [1, 1, 2, 2], count=18, folds=1, seed=0)
    who = np.array([0] * 8 + [1, 1, 2, 2])[drawn.a[drawn.same]]
    assert np.bincount(who).tolist() == [7, 1, 1]
    assert len({frozenset(p) for p in zip(drawn.a.tolist(), drawn.b.tolist(), strict=True)}) == 18
