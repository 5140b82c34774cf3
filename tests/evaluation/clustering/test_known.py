"""What is known before images are grouped is kept exactly, against a slow twin; contradictions name their lines."""

from __future__ import annotations

import numpy as np
import pytest
import reference_clusters as slow
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_rand_score

from facemetric.errors import ConfigError, DataError
from facemetric.evaluation.clustering.clusters import find_clusters
from facemetric.evaluation.clustering.known import NOBODY, KnownGroups, Link


def some_people(seed, n, size=6, noise=0.5):
    rng = np.random.default_rng(seed)
    people = rng.normal(size=(max(2, n // 6), size))
    return people[rng.integers(len(people), size=n)] + noise * rng.normal(size=(n, size))


def known(n, firm=(), earlier=(), one=(), two=(), last=NOBODY):
    """From {row: number} and pairs of rows."""
    numbers = []
    for given_numbers in (firm, earlier):
        column = np.full(n, NOBODY, np.int64)
        for row, number in dict(given_numbers).items():
            column[row] = number
        numbers.append(column)
    links = [
        tuple(Link(a, b, f"{name} line {i}") for i, (a, b) in enumerate(pairs, 1))
        for name, pairs in (("one.csv", one), ("two.csv", two))
    ]
    written = {row: f"groups.csv line {row}" for row in dict(firm)}
    return KnownGroups([f"p{i}" for i in range(n)], *numbers, *links, written, last)


def turned(*degrees):
    """Unit vectors in the plane."""
    angle = np.radians(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def grouped(emb, threshold, found):
    """(clusters, number of each image)."""
    start = found.start()
    clusters = find_clusters(emb, threshold, start=start)
    return clusters, found.numbered(start, clusters.number)[clusters.number].tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 22), st.floats(-0.2, 0.9))
def test_average_linkage_with_pairs_by_hand(seed, n, threshold):
    emb, rng = some_people(seed, n, size=4), np.random.default_rng(seed)
    score = slow.cosines(emb)
    one = [tuple(pair) for pair in rng.integers(n, size=(2, 2)).tolist() if pair[0] != pair[1]]
    together = slow.pieces(n, one)
    two = [(a, b) for a, b in rng.integers(n, size=(4, 2)).tolist() if a != b and together[a] != together[b]]
    found = known(n, one=one, two=two)
    got = find_clusters(emb, threshold, start=found.start()).number
    twin = slow.average_linkage(score, threshold, one, two)
    assert adjusted_rand_score(got, twin) == 1
    assert all(got[a] == got[b] for a, b in one)
    assert all(got[a] != got[b] for a, b in two)


def test_nothing_known_changes_nothing():
    emb = some_people(4, 90)
    plain = find_clusters(emb, 0.6)
    again = find_clusters(emb, 0.6, start=known(90).start())
    np.testing.assert_array_equal(plain.number, again.number)


def test_new_images_join_groups_that_keep_their_numbers():
    # Groups 7 and 3 lie 20 degrees apart and would be one; a new image between them joins the nearer one.
    emb = turned(0, 2, 20, 22, 8, 90, 91, 180)
    clusters, number = grouped(emb, np.cos(np.radians(25)), known(8, earlier={0: 7, 1: 7, 2: 3, 3: 3}))
    assert find_clusters(emb, np.cos(np.radians(25))).sizes().tolist() == [5, 2, 1]
    assert number == [7, 7, 3, 3, 7, 8, 8, 9]  # new numbers: the largest first
    assert sorted(clusters.sizes().tolist()) == [1, 2, 2, 3]


def test_numbers_of_groups_that_are_gone_are_not_given_again():
    _, number = grouped(turned(0, 1, 90), 0.99, known(3, earlier={0: 2, 1: 2}, last=40))
    assert number == [2, 2, 41]


def test_a_group_of_earlier_stays_though_it_is_not_alike():
    _, number = grouped(turned(0, 90, 1), 0.99, known(3, earlier={0: 5, 1: 5, 2: 6}))
    assert number == [5, 5, 6]


def test_what_was_confirmed_moves_its_image_and_no_other():
    earlier = {0: 1, 1: 1, 2: 1, 3: 2, 4: 2}
    emb = turned(0, 1, 2, 90, 91)
    _, number = grouped(emb, 0.99, known(5, firm={2: 2, 3: 2}, earlier=earlier))
    assert number == [1, 1, 2, 2, 2]
    _, parted = grouped(emb, 0.99, known(5, firm={0: 1, 1: 1, 2: 9}, earlier=earlier))
    assert parted == [1, 1, 9, 2, 2]


def test_a_pair_of_one_person_joins_two_groups_unless_both_are_confirmed():
    earlier = {0: 1, 1: 1, 2: 1, 3: 2, 4: 2}
    emb = turned(0, 1, 2, 90, 91)
    _, number = grouped(emb, 0.99, known(5, earlier=earlier, one=[(0, 4)]))
    assert number == [1] * 5  # the larger group keeps its number
    _, number = grouped(emb, 0.99, known(5, earlier=earlier, firm={3: 2}, one=[(0, 4)]))
    assert number == [2] * 5  # the confirmed one does
    firm = {1: 1, 2: 1, 3: 2}
    _, number = grouped(emb, 0.99, known(5, earlier=earlier, firm=firm, one=[(0, 4)]))
    assert number[0] == number[4]  # both groups stay, and the pair is together
    assert number[1:4] == [1, 1, 2]
    firm = {1: 1, 3: 2}
    _, number = grouped(emb, 0.99, known(5, earlier=earlier, firm=firm, one=[(0, 3)]))
    assert number == [2, 1, 1, 2, 2]  # the image goes to where its pair is confirmed


def test_a_pair_of_two_people_parts_a_group_and_the_larger_part_keeps_its_number():
    emb = turned(0, 1, 2, 12, 13, 90)
    earlier = {0: 4, 1: 4, 2: 4, 3: 4, 4: 4, 5: 5}
    _, number = grouped(emb, np.cos(np.radians(5)), known(6, earlier=earlier, two=[(0, 4)]))
    assert number == [4, 4, 4, 6, 6, 5]
    # A part that was confirmed keeps it, however small.
    _, number = grouped(emb, np.cos(np.radians(5)), known(6, earlier=earlier, firm={4: 4}, two=[(0, 4)]))
    assert number == [6, 6, 6, 4, 4, 5]


def test_contradictions_name_every_line_of_the_chain():
    with pytest.raises(
        DataError,
        match=r"^1 contradiction: p0 and p2 are two people by two\.csv line 1, and one by "
        r"one\.csv line 1 with one\.csv line 2; take one of the lines out$",
    ):
        known(4, one=[(0, 1), (1, 2)], two=[(0, 2)]).start()
    with pytest.raises(
        DataError,
        match=r"p0 and p3 are in two groups by groups\.csv line 0 and groups\.csv line 3, and one person by "
        r"one\.csv line 2 with one\.csv line 1",
    ):
        known(4, firm={0: 1, 3: 2}, one=[(1, 3), (0, 1)]).start()
    with pytest.raises(DataError, match=r"one by groups\.csv line 0 with groups\.csv line 1; take"):
        known(4, firm={0: 1, 1: 1}, two=[(0, 1)]).start()
    with pytest.raises(DataError, match=r"^5 contradictions: .*; and 2 more; take one of the lines out$"):
        known(3, one=[(0, 1)], two=[(0, 1)] * 5).start()


def test_other_methods_are_refused():
    with pytest.raises(ConfigError, match="components cannot keep to what is known before; choose agg"):
        find_clusters(np.eye(3), 0.5, method="components", start=known(3).start())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_whatever_is_known_is_kept(seed):
    """Random lists: either they are refused, or every statement holds."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(6, 30))
    emb = some_people(seed, n, size=3)
    earlier = {i: int(rng.integers(5)) for i in range(n) if rng.random() < 0.6}
    firm = {i: int(rng.integers(4)) for i in range(n) if rng.random() < 0.2}
    pairs = [tuple(p) for p in rng.integers(n, size=(3, 2)).tolist() if p[0] != p[1]]
    one, two = pairs[:1], pairs[1:]
    found = known(n, firm, earlier, one, two)
    piece = slow.pieces(n, [*one, *((a, b) for a in firm for b in firm if firm[a] == firm[b])])
    clash = any(piece[a] == piece[b] for a, b in two)
    if clash or any(piece[a] == piece[b] and firm[a] != firm[b] for a in firm for b in firm):
        with pytest.raises(DataError, match="contradiction"):
            found.start()
        return
    _, number = grouped(emb, 0.8, found)
    assert all(number[row] == group for row, group in firm.items())
    assert all(number[a] == number[b] for a, b in one)
    assert all(number[a] != number[b] for a, b in two)
    touched = {row for pair in pairs for row in pair}
    touched_groups = {earlier.get(row) for row in touched} | {firm.get(row) for row in touched}
    for row, group in earlier.items():  # nothing else moves
        if row not in firm and group not in touched_groups:
            assert number[row] == group
