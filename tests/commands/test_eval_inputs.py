"""Two models' embeddings of the same images, row by row."""

from __future__ import annotations

import numpy as np
import pytest

from facemetric.commands.eval_inputs import aligned
from facemetric.errors import DataError
from facemetric.evaluation.table import EmbeddingTable


def table(paths: str, people: str, first: float = 1.0) -> EmbeddingTable:
    """An image for each letter; its embedding is its row."""
    rows = np.arange(len(paths))[:, None] + [first, 0]
    return EmbeddingTable(rows, np.array(list(people)), np.array(list(paths)))


def test_rows_come_in_the_order_of_the_first_and_more_may_be_there() -> None:
    found = aligned(table("abc", "xxy"), table("zcab", "wyxx", first=10))
    assert found.embeddings[:, 0].tolist() == [12, 13, 11]
    assert (found.paths.tolist(), found.identities.tolist()) == (list("abc"), list("xxy"))


def test_a_path_that_stands_twice_is_no_name() -> None:
    with pytest.raises(
        DataError, match=r"1 of the paths of the first model's .* stand on several rows: a; name"
    ):
        aligned(table("aba", "xxy"), table("ab", "xx"))
    with pytest.raises(DataError, match=r"2 of the paths of the second model's .* several rows: b, c; name"):
        aligned(table("abc", "xxy"), table("abbcc", "xxxyy"))
    # The same paths in the same order go row by row.
    assert aligned(table("aba", "xxy"), table("aba", "xxy")).embeddings[:, 0].tolist() == [1, 2, 3]


def test_both_tables_must_have_the_same_people_under_any_names() -> None:
    assert aligned(table("abc", "xxy"), table("cab", "qpp")).identities.tolist() == list("xxy")
    for other in ("pqr", "ppp", "pqq"):
        with pytest.raises(
            DataError, match=r"images are of another person for the second model: first [bc], '"
        ):
            aligned(table("abc", "xxy"), table("abc", other))
    with pytest.raises(DataError, match=r"1 of 3 images .*: first c, 'y' and 'p'; give both models the same"):
        aligned(table("abc", "xxy"), table("abc", "ppp"))


def test_images_without_a_second_embedding_are_named() -> None:
    with pytest.raises(
        DataError, match=r"6 of 7 images have no embedding of .*: b, c, d, e, f, \.\.\.; both"
    ):
        aligned(table("abcdefg", "xxxxxxx"), table("a", "x"))
