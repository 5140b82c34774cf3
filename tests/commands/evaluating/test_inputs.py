"""Two models' embeddings of the same images, row by row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facemetric import evaluate
from facemetric.commands.evaluating.inputs import aligned, list_pairs
from facemetric.data.index import read_index
from facemetric.data.pairs import read_pairs
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
        DataError, match=r"1 of the paths of the first model's .* are on several rows: a; name"
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
        DataError, match=r"6 of 7 images have no embedding of .*: b, c, d, e, f and 1 more; both"
    ):
        aligned(table("abcdefg", "xxxxxxx"), table("a", "x"))


def test_paths_of_pairs_that_are_below_another_folder(untrained: Path, faces: Path, tmp_path: Path) -> None:
    images = sorted(faces.glob("*/*"))[:4]
    names = [str(image.relative_to(faces)) for image in images]
    file = tmp_path / "pairs.csv"
    file.write_text(f"image1_path,image2_path,label\n{names[0]},{names[1]},1\n{names[2]},{names[3]},0\n")
    with pytest.raises(
        DataError, match=r"4 paths without a file below .*; or say with data= which images the pairs"
    ):
        evaluate(untrained, pairs=file, out=tmp_path / "out", report=False)


def test_pairs_of_one_kind_are_told_before_images_are_read(faces: Path, tmp_path: Path) -> None:
    one, other = sorted(path.relative_to(faces) for path in faces.glob("*/*"))[:2]
    file = tmp_path / "pairs.csv"
    for lines, kinds in (
        (f"{one},{other},1\n", "1 genuine and 0 impostor pairs; verification needs both kinds"),
        (
            f"{one},{one},1\n{one},{one},1\n",
            r"0 genuine and 0 impostor pairs \(2 of 2 listed pairs hold an image with itself: left out\)",
        ),
    ):
        file.write_text(f"path_a,path_b,same\n{lines}")
        with pytest.raises(DataError, match=kinds):
            list_pairs(read_pairs(file), read_index([str(faces)]), tmp_path)


def test_pairs_that_cannot_be_scored_are_told_before_images_are_read(tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("path_a,path_b,same,fold\na,b,1,1\na,c,1,1\na,d,0,2\n")
    with pytest.raises(DataError, match="fold 1 of 2 holds all 2 genuine pairs"):
        evaluate("faces-96", pairs=file, out=tmp_path / "out", report=False)
