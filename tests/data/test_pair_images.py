"""Paths of pairs find their images in an index, or are listed."""

import numpy as np
import pytest

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
