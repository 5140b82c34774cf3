"""A teacher's rows are matched to the images by name, whatever their order; what does not match is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from facemetric import load_embedder
from facemetric.data.index import ImageIndex, read_index
from facemetric.errors import DataError
from facemetric.evaluation.embed import embed_index
from facemetric.evaluation.table import EmbeddingTable
from facemetric.training.run.run import Trained
from facemetric.training.tasks.teacher_rows import UNLABELLED, Joined, Teacher, named, teacher_rows


def given(*tables: str) -> Teacher:
    """Tables, of a teacher that embeds nothing itself."""
    return Teacher(tables, Path("nowhere"))


def table_of(
    index: ImageIndex, file: Path, *, prefix: str = "", size: int = 4, seed: int = 0
) -> EmbeddingTable:
    """A table of random rows for the images of an index, in another order, saved; `prefix` is taken off its names."""
    order = np.random.default_rng(seed).permutation(len(index))
    rows = np.random.default_rng(seed + 1).integers(-120, 120, (len(index), size)).astype(np.int8)
    names = [index.name(i).removeprefix(prefix) for i in order]
    table = EmbeddingTable(rows, np.array(["x"] * len(index)), np.array(names))
    table.save(file)
    return table


def test_rows_follow_the_names_and_are_unit_vectors(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = read_index([f"a={faces}"])
    table = table_of(index, tmp_path / "t.npz", prefix="a/")
    found = teacher_rows(given(f"a={tmp_path / 't.npz'}"), Joined(index, None))
    assert found.shape == (96, 4)
    assert found.dtype == np.float32
    by_name = dict(zip(table.paths.tolist(), table.embeddings, strict=True))
    for i in range(len(index)):
        row = by_name[index.name(i).removeprefix("a/")]
        np.testing.assert_allclose(found[i], row / np.linalg.norm(row), rtol=1e-6)
    assert "96 of its 96 rows matched" in capsys.readouterr().out


def test_labelled_and_unlabelled_come_from_several_tables(faces: Path, tmp_path: Path) -> None:
    labelled, others = read_index([f"a={faces}"]), read_index([f"b={faces}"]).select(np.arange(7))
    table_of(labelled, tmp_path / "a.npz", prefix="a/")
    table_of(others, tmp_path / "b.npz", seed=5)  # names with the source in front match as they are
    images = Joined(labelled, others)
    assert len(images) == 103
    assert images.identity[:96].tolist() == labelled.identity.tolist()
    assert images.identity[96:].tolist() == [UNLABELLED] * 7
    assert images.name(96) == others.name(0)
    assert images.read(97) == others.read(1)
    assert images.location(98) == others.location(2)
    some = images.select(np.array([3, 96, 102]))
    assert [some.name(i) for i in range(len(some))] == [images.name(i) for i in (3, 96, 102)]
    assert some.identity.tolist() == [0, UNLABELLED, UNLABELLED]
    assert len(Joined(labelled, None).select(np.arange(4))) == 4
    found = teacher_rows(given(f"a={tmp_path / 'a.npz'}", str(tmp_path / "b.npz")), images)
    first = teacher_rows(given(str(tmp_path / "b.npz")), Joined(others, None))
    np.testing.assert_array_equal(found[96:], first)


def test_an_image_without_a_row_is_refused(faces: Path, tmp_path: Path) -> None:
    index = read_index([str(faces)])
    table_of(index.select(np.arange(90)), tmp_path / "t.npz")
    with pytest.raises(
        DataError, match=r"6 of 96 training images have no row in --teacher, first '"
    ) as caught:
        teacher_rows(given(str(tmp_path / "t.npz")), Joined(index, None))
    assert index.name(90) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_rows_of_one_image_and_two_teachers_are_refused(faces: Path, tmp_path: Path) -> None:
    index = read_index([str(faces)])
    table_of(index, tmp_path / "t.npz")
    again = str(tmp_path / "again.npz")
    table_of(index.select(np.arange(3, 4)), Path(again))
    with pytest.raises(DataError, match="a second row for") as caught:
        teacher_rows(given(str(tmp_path / "t.npz"), again), Joined(index, None))
    assert index.name(3) in str(caught.value)
    table_of(index.select(np.arange(3, 4)), Path(again), size=5)
    with pytest.raises(DataError, match="embeddings of 5 numbers, the one before it 4"):
        teacher_rows(given(str(tmp_path / "t.npz"), again), Joined(index, None))


def test_weights_embed_the_images_once(
    stage_one: Trained, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled = read_index([f"a={faces}"])
    broken = tmp_path / "b"
    shutil.copytree(faces, broken)
    victim = next(broken.rglob("*.*"))
    victim.write_bytes(b"no image")
    images = Joined(labelled, read_index([f"b={broken}"]))
    teacher = Teacher([str(stage_one.run)], tmp_path / "cache")
    found = teacher_rows(teacher, images)
    embedder = load_embedder(stage_one.run)
    wanted = embed_index(embedder, labelled, flip=True).table
    np.testing.assert_allclose(found[:96], wanted.embeddings, atol=1e-6)
    unread = [i for i in range(96, 192) if not found[i].any()]
    assert [images.name(i) for i in unread] == [f"b/{victim.relative_to(broken)}"]

    def again(*_: object, **__: object) -> None:
        raise AssertionError("embedded a second time")

    monkeypatch.setattr("facemetric.training.tasks.teacher_rows.embed_index", again)
    np.testing.assert_array_equal(teacher_rows(teacher, images), found)
    next((tmp_path / "cache").iterdir()).write_bytes(b"cut short")
    with pytest.raises(AssertionError, match="a second time"):
        teacher_rows(teacher, images)


@pytest.mark.parametrize(
    ("text", "found"),
    [("fiw=a/b.npz", ("fiw", "a/b.npz")), ("a/b=c.npz", ("", "a/b=c.npz")), ("t.npz", ("", "t.npz"))],
)
def test_a_name_stands_before_the_path(text: str, found: tuple[str, str]) -> None:
    assert named(text) == found


def test_a_folder_with_an_equals_sign_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`facemetric run --set lr=0.1,0.2` makes such folders."""
    (tmp_path / "lr=0.1" / "pretrain").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert named("lr=0.1/pretrain") == ("", "lr=0.1/pretrain")
    assert named("lr=0.2/pretrain") == ("lr", "0.2/pretrain")
