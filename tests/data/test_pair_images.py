"""Paths of pairs find their images in an index, or are listed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facemetric.data.pair_images import make_pairs, name_pairs, resolve
from facemetric.data.pairs import Pairs, read_pairs, write_pairs
from facemetric.errors import DataError


class Index:
    def __init__(self, *names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def name(self, i):
        return self.names[i]

    def find(self, name):
        return self.names.index(name) if name in self.names else None


def simple(*paths, bare=False):
    return Pairs(
        tuple(paths[::2]), tuple(paths[1::2]), np.ones(len(paths) // 2, bool), bare=bare, source="p.csv"
    )


def test_resolve_exact_by_root_and_by_bare_name():
    index = Index("A/1.jpg", "A/2.jpg", "B/1.jpg", "B/only.png")
    a, b = resolve(simple("A/1.jpg", "/data/x/B/1.jpg", "only.png", "./A\\2.jpg"), index)
    assert (a.tolist(), b.tolist()) == ([0, 3], [2, 1])
    assert a.dtype == np.int64


def test_resolve_takes_the_longest_ending():
    index = Index("1.jpg", "A/1.jpg")
    assert resolve(simple("/x/A/1.jpg", "/x/C/1.jpg"), index)[0].tolist() == [1]
    assert resolve(simple("/x/A/1.jpg", "/x/C/1.jpg"), index)[1].tolist() == [0]


def test_resolve_lfw_names_with_any_extension_and_source():
    index = Index("lfw/Ann/Ann_0001.png", "lfw/J.R._Bo/J.R._Bo_0002.jpeg", "lfw/Cy/Cy_0003")
    pairs = simple("Ann/Ann_0001", "J.R._Bo/J.R._Bo_0002", "Cy/Cy_0003", "Ann/Ann_0001", bare=True)
    assert [r.tolist() for r in resolve(pairs, index)] == [[0, 2], [1, 0]]


def test_same_file_name_of_another_person_is_missing_not_taken():
    with pytest.raises(DataError, match=r"1 missing of the 2 images it names: B/1\.jpg;"):
        resolve(simple("A/1.jpg", "B/1.jpg"), Index("A/1.jpg"))


def test_missing_and_ambiguous_are_counted_listed_and_written(tmp_path):
    index = Index("x/A/1.jpg", "y/A/1.jpg", "x/A/2.jpg")
    pairs = simple(*[f"B/{i}.jpg" for i in range(12)], "A/1.jpg", "A/2.jpg")
    with pytest.raises(DataError) as error:
        resolve(pairs, index, missing_list=tmp_path / "missing.txt")
    text = str(error.value)
    assert text.startswith("p.csv: 12 missing and 1 ambiguous of the 14 images it names: B/0.jpg, B/1.jpg")
    assert "B/9.jpg, ..." in text
    assert "B/10.jpg" not in text
    assert "\n" not in text
    lines = (tmp_path / "missing.txt").read_text().splitlines()
    assert len(lines) == 13
    assert lines[-1] == "A/1.jpg\tambiguous"


def test_an_lfw_name_in_two_formats_is_ambiguous():
    with pytest.raises(DataError, match=r"Ann/Ann_0001 \(fits 2 images\)"):
        resolve(
            simple("Ann/Ann_0001", "Ann/Ann_0001", bare=True), Index("Ann/Ann_0001.png", "Ann/Ann_0001.jpg")
        )


def test_named_pairs_resolve_to_the_same_rows(tmp_path):
    index = Index(*(f"{p}/{i}.jpg" for p in "ABCDEFGH" for i in range(4)))
    drawn = make_pairs([n[0] for n in index.names], count=16, folds=2, seed=5)
    write_pairs(tmp_path / "p.csv", name_pairs(drawn, index))
    back = read_pairs(tmp_path / "p.csv")
    a, b = resolve(back, index)
    assert (a == drawn.a).all()
    assert (b == drawn.b).all()
    assert (back.fold == drawn.fold).all()


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
