"""Paths of pairs find their images in an index, or are listed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facemetric.data.pair_images import distinct_pairs, make_pairs, name_pairs, resolve
from facemetric.data.pair_list import Pairs
from facemetric.data.pairs import read_pairs, write_pairs
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
    return Pairs.of(
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
    assert "B/9.jpg and 3 more" in text
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
        ([0, 0, 0, 0], 2, 1, "gives 0 pairs of two people"),
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


def listed_slowly(listed):
    """What a list of (image, image, same, fold) holds, line by line: pairs kept, and the counts of what is not."""
    kept, itself, repeated, moved = {}, 0, 0, 0
    for a, b, same, fold in listed:
        if a == b:
            itself += 1
        elif (pair := frozenset((a, b))) not in kept:
            kept[pair] = (a, b, same, fold)
        else:
            assert kept[pair][2] == same, "contradiction"
            repeated += 1
            moved += kept[pair][3] != fold
    return list(kept.values()), itself, repeated, moved


@st.composite
def odd_lists(draw):
    """Lines of a pairs file with self pairs, repeats, swaps, labels that may contradict, one fold or several."""
    images, identities = draw(st.integers(1, 9)), draw(st.integers(1, 4))
    faults = draw(st.lists(st.sampled_from(["self", "repeat", "swap", "lie", "none"]), max_size=40))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    folds = draw(st.integers(2, 4))
    lines = []
    for fault in faults:
        a, b = rng.integers(images, size=2).tolist()
        if fault in ("repeat", "swap") and lines:
            a, b = lines[rng.integers(len(lines))][:2]
            a, b = (b, a) if fault == "swap" else (a, b)
        b = a if fault == "self" else b
        same = (a % identities == b % identities) != (fault == "lie")
        lines.append((a, b, same, int(rng.integers(folds))))
    return lines


@settings(max_examples=150, deadline=None)
@given(odd_lists(), st.sampled_from([",", ";", "\t"]), st.booleans())
def test_odd_lists_of_pairs_against_a_slow_twin(tmp_path_factory, lines, mark, spelt):
    """A path of two spellings is one image; folds are those of the file, by their order."""
    file = tmp_path_factory.mktemp("p") / "p.csv"
    index = Index(*(f"A/{i}.jpg" for i in range(9)))
    text = [mark.join(("image1_path", "image2_path", "label", "fold"))]
    for n, (a, b, same, fold) in enumerate(lines):
        text.append(
            mark.join((f"{'./' * (spelt and n % 2)}A/{a}.jpg", f"A/{b}.jpg", str(int(same)), str(fold + 7)))
        )
    file.write_text("\n".join(text))
    if len({fold for *_, fold in lines}) < 2:
        with pytest.raises(DataError, match=r"a header but no pairs|one fold only"):
            read_pairs(file)
        return
    pairs = read_pairs(file)
    rows = resolve(pairs, index)
    try:
        kept, *counts = listed_slowly(lines)
    except AssertionError:
        with pytest.raises(
            DataError, match=r"pairs \d+ and \d+ are of the same two images \(.*A/\d.jpg\), once"
        ):
            distinct_pairs(pairs, *rows)
        return
    found = distinct_pairs(pairs, *rows)
    assert [found.itself, found.repeated, found.moved] == counts
    number = {fold: place for place, fold in enumerate(sorted({fold for *_, fold in lines}))}
    theirs = found.rows_a, found.rows_b, found.pairs.same, found.pairs.fold
    assert list(zip(*(column.tolist() for column in theirs), strict=True)) == [
        (a, b, same, number[fold]) for a, b, same, fold in kept
    ]
    assert [r.tolist() for r in resolve(found.pairs, index)] == [theirs[0].tolist(), theirs[1].tolist()]


def test_what_is_left_out_of_a_list_is_said():
    pairs = Pairs.of(
        ["a", "b", "a", "c", "a", "a"],
        ["b", "a", "c", "c", "b", "a"],
        np.array([True, True, False, True, True, True]),
        np.array([0, 1, 1, 0, 0, 1]),
    )
    found = distinct_pairs(pairs, *resolve(pairs, Index("a", "b", "c")))
    assert found.notes() == (
        "2 of 6 listed pairs hold an image with itself: left out",
        "2 of 6 listed pairs repeat one before, as it is or the other way round, 1 of them in another fold: "
        "counted once",
    )
    assert (found.pairs.paths_a, found.pairs.paths_b) == (("a", "a"), ("b", "c"))
    clean = distinct_pairs(found.pairs, found.rows_a, found.rows_b)
    assert clean.notes() == ()
    assert clean.pairs is found.pairs
