"""Which images are in the gallery too, by file, by bytes and by embedding."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from large_pictures import as_folder, held, pictures
from large_sets import write_parquet

from facemetric import evaluate
from facemetric.commands.evaluating.overlap import ImageSet, among_readable, find_overlap, same_files
from facemetric.data.index import ImageIndex, read_index
from facemetric.evaluation.table import EmbeddingTable
from facemetric.report.figures import evaluation_text

OPTIONS: dict[str, Any] = {"workers": 0, "device": "cpu", "batch_size": 16, "report": False}


@pytest.fixture
def some(faces: Path, tmp_path: Path) -> Path:
    """Four people with six images each."""
    for folder in sorted(faces.iterdir())[:4]:
        shutil.copytree(folder, tmp_path / "some" / folder.name)
    return tmp_path / "some"


def names_of(own: ImageIndex, gallery: ImageIndex) -> set[tuple[str, str]]:
    found = same_files(own, gallery)
    return {(own.name(int(a)), gallery.name(int(b))) for a, b in zip(found.probes, found.rows, strict=True)}


def test_a_file_is_the_same_by_any_path_and_so_is_a_copy(some: Path, tmp_path: Path) -> None:
    people = sorted(path.name for path in some.iterdir())
    own = read_index(str(some))
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "other_name").symlink_to(some / people[0])
    first = sorted(os.listdir(some / people[0]))
    assert names_of(own, read_index(str(tmp_path / "linked"))) == {
        (f"{people[0]}/{name}", f"other_name/{name}") for name in first
    }
    (tmp_path / "copies" / "anna").mkdir(parents=True)
    shutil.copy(some / people[1] / first[2], tmp_path / "copies" / "anna" / "1.jpg")
    shutil.copy(some / people[1] / first[2], tmp_path / "copies" / "anna" / "2.jpg")
    changed = bytearray((some / people[1] / first[3]).read_bytes())
    changed[-1] ^= 1
    (tmp_path / "copies" / "anna" / "3.jpg").write_bytes(changed)  # as long, and another file
    wanted = {(f"{people[1]}/{first[2]}", f"anna/{n}.jpg") for n in (1, 2)}
    assert names_of(own, read_index(str(tmp_path / "copies"))) == wanted
    with tarfile.open(tmp_path / "copies.tar", "w") as tar:
        tar.add(tmp_path / "copies" / "anna", "anna")
    inside = read_index(str(tmp_path / "copies.tar"))
    assert names_of(own, inside) == wanted
    assert len(same_files(inside, inside).probes) == 5  # two alike, each twice, and one


def test_files_are_told_where_embeddings_are_not(some: Path) -> None:
    """A model that gives every image one embedding: each is only its own file."""
    index = read_index(str(some))
    names = np.array([index.name(i) for i in range(len(index))])
    flat = EmbeddingTable(np.ones((24, 4)), names, names)
    found = find_overlap(ImageSet(flat, index), ImageSet(flat, index))
    assert found.probes.tolist() == found.rows.tolist() == list(range(24))
    assert not len(found.unsure)
    by_embeddings = find_overlap(ImageSet(flat, index), ImageSet(flat))
    assert (by_embeddings.images(), len(by_embeddings.unsure)) == (0, 24)
    # Another rounding of the same image is no reason to find it.
    rng = np.random.default_rng(0)
    one, other = (EmbeddingTable(rng.normal(size=(24, 4)), names, names) for _ in range(2))
    assert find_overlap(ImageSet(one, index), ImageSet(other, index)).images() == 24


def test_rows_of_readable_images(some: Path) -> None:
    index = read_index(str(some))
    kept = among_readable(index, [(0, "broken"), (5, "broken")])
    assert kept is not None
    assert [kept.name(i) for i in range(3)] == [index.name(i) for i in (1, 2, 3)]
    assert (len(kept), kept.name(4)) == (22, index.name(6))
    assert among_readable(index, []) is index


def test_an_image_with_many_copies_does_not_switch_the_others_off(
    untrained: Path, some: Path, tmp_path: Path
) -> None:
    gallery = tmp_path / "gallery"
    shutil.copytree(some, gallery)
    image = next(iter(sorted(some.rglob("*.jpg")) or sorted(some.rglob("*.png"))))
    for n in range(9):
        shutil.copy(image, gallery / image.parent.name / f"copy{n}{image.suffix}")
    broken = gallery / image.parent.name / "aa_broken.jpg"  # moves the rows of all that follow
    broken.write_bytes(b"no picture")
    found = evaluate(untrained, data=some, gallery=gallery, max_bad=0.1, out=tmp_path / "out", **OPTIONS)
    assert "24 of 24 images are in the gallery too: none finds itself there" in " ".join(found.notes)
    own_best, best = found.neighbours.each.score.max(), found.gallery.each.score.max()
    assert best == pytest.approx(own_best, abs=1e-6)
    assert best < 1 - 1e-6
    assert "the embedding of several images" not in evaluation_text(found)
    # Embeddings alone, without files: said, and the others are protected all the same.
    tables = (tmp_path / "out" / "embeddings.npz", tmp_path / "out" / "embeddings_gallery.npz")
    by_table = evaluate(embeddings=tables[0], gallery=tables[1], out=tmp_path / "b", report=False)
    notes = " ".join(by_table.notes)
    assert "23 of 24 images are in the gallery too" in notes
    assert "1 of 24 images have the embedding of several images of the gallery" in notes


def test_one_image_a_person_on_both_sides_is_a_note(table: Path, tmp_path: Path) -> None:
    t = EmbeddingTable.load(table)
    single = t.rows(np.unique(t.identities, return_index=True)[1]).save(tmp_path / "single.npz")
    found = evaluate(embeddings=single, gallery=single, all_pairs=False, out=tmp_path / "out")
    notes = " ".join(found.notes)
    assert (
        "no retrieval from the gallery: none of 16 probes is of a person in the gallery beside itself"
        in notes
    )
    assert "no open-set identification: every image is of a person in the gallery" in notes
    assert found.gallery is None
    assert (tmp_path / "out" / "report.html").is_file()


def test_images_of_a_table_whose_sizes_are_not_known(tmp_path: Path) -> None:
    """Parquet says no sizes: the bytes are compared, whichever side it is on."""
    images = pictures(6)
    table, folder = (
        read_index(write_parquet(tmp_path / "a.parquet", images)),
        as_folder(tmp_path / "in", images[2:]),
    )
    rows = {(int(p), int(r)) for p, r in zip(*same_files(read_index(folder), table)[:2], strict=True)}
    assert {(read_index(folder).name(p), table.name(r)) for p, r in rows} == {
        (n, n) for n in held(images[2:])
    }
    assert len(same_files(table, read_index(folder)).probes) == 4
