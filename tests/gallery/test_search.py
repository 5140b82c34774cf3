"""People by their best face, and the nearest face of somebody else, against slow twins."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from enrolled_rows import D, new_folder, rows_of

from facemetric.gallery.search import Enrolled, drawn_rows, find_people, nearest_other, nearest_own

NAMES = ["ada"] * 40 + ["grace", "mary"] + ["hedy", "rosalind"] * 5


@pytest.fixture
def enrolled(tmp_path: Path) -> Enrolled:
    folder = new_folder(tmp_path / "g")
    folder.append(rows_of(NAMES, seed=1))
    folder.append(rows_of(["lise", "ada", "mary"], seed=2))
    assert len(folder.parts) == 2
    return Enrolled(tuple(folder.parts))


def whole(enrolled: Enrolled) -> np.ndarray:
    return np.concatenate(enrolled.embeddings)


@pytest.mark.parametrize("top", [1, 3, 6, 99])
def test_people_by_their_best_face(enrolled: Enrolled, top: int) -> None:
    query = np.random.default_rng(5).standard_normal((30, D))
    query[0] = whole(enrolled)[3] * 7  # the length does not matter
    names = [enrolled.names[i] for i in enrolled.person.tolist()]
    assert names == [*NAMES, "lise", "ada", "mary"]
    scores = query / np.linalg.norm(query, axis=1, keepdims=True) @ whole(enrolled).T
    for found, score in zip(find_people(enrolled, query, top), scores, strict=True):
        best: dict[str, float] = {}
        for name, value in zip(names, score.tolist(), strict=True):
            best[name] = max(best.get(name, -2), value)
        expected = sorted(best.items(), key=lambda item: -item[1])[:top]
        assert [match.name for match in found] == [name for name, _ in expected]
        np.testing.assert_allclose([match.score for match in found], [v for _, v in expected], atol=1e-6)
        assert [names[match.row] for match in found] == [match.name for match in found]
        np.testing.assert_allclose(score[[match.row for match in found]], [v for _, v in expected], atol=1e-6)


def test_the_nearest_of_others_and_of_the_same_person(enrolled: Enrolled) -> None:
    rows = drawn_rows(len(enrolled), 20)
    assert len(rows) == 20
    others, own = nearest_other(enrolled, rows), nearest_own(enrolled, rows)
    score = (whole(enrolled) @ whole(enrolled).T)[rows]
    same = enrolled.person[rows, None] == enrolled.person[None]
    itself = rows[:, None] == np.arange(len(enrolled))[None]
    for hidden, (best, row) in ((same, others), (~same | itself, own)):
        there = ~hidden.all(1)
        slow = np.where(hidden, -2, score)
        np.testing.assert_allclose(best, slow.max(1), atol=1e-6)
        assert (row[there] == slow.argmax(1)[there]).all()
        assert (row[~there] == -1).all()
    assert (own.score == -2).any()  # lise has one face


def test_what_belongs_to_a_row(enrolled: Enrolled) -> None:
    last = len(enrolled) - 1
    assert enrolled.photo(0) == "ada/1-0.jpg"
    assert enrolled.photo(last) == "mary/2-2.jpg"
    assert enrolled.crop(last) == b"crop of mary/2-2.jpg"
    assert enrolled.counts() == {"ada": 41, "grace": 1, "hedy": 5, "lise": 1, "mary": 2, "rosalind": 5}
    rows = np.array([0, 51, 54])
    np.testing.assert_array_equal(enrolled.rows(rows), whole(enrolled)[rows])
    sha256 = enrolled.parts[1].photo_hash[1].tobytes()
    assert enrolled.people_on(sha256) == {"ada"}
    assert enrolled.people_on(sha256[:8] + bytes(24)) == set()  # its first bytes alone


def test_nobody_is_found_where_nobody_is(tmp_path: Path) -> None:
    empty = Enrolled(tuple(new_folder(tmp_path / "g").parts))
    assert find_people(empty, np.ones((2, D)), 3) == [[], []]
