"""Images that belong to no identity, read with `loose`: folders, tars and csv files of photographs."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from facemetric.data.index import read_index
from facemetric.data.readers.sources import is_loose
from facemetric.errors import DataError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three loose images, one of an identity, and what is no image."""
    root = tmp_path / "photos"
    (root / "anna").mkdir(parents=True)
    for name in ("b.jpg", "a.png", "c.JPG", "anna/1.jpg", "notes.txt", "._b.jpg"):
        (root / name).write_bytes(name.encode())
    (root / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    os.mkfifo(root / "pipe.jpg")
    return root


def contents(data: object, **options: bool) -> dict[str, tuple[str, bytes]]:
    index = read_index(data, **options)  # type: ignore[arg-type]
    return {index.name(i): (index.identities[index.identity[i]], index.read(i)) for i in range(len(index))}


def test_a_folder_with_loose_images(photos: Path) -> None:
    found = contents(photos, loose=True)
    assert found == {
        "a.png": ("", b"a.png"),
        "b.jpg": ("", b"b.jpg"),
        "c.JPG": ("", b"c.JPG"),
        "anna/1.jpg": ("anna", b"anna/1.jpg"),
    }
    notes = " ".join(read_index(photos, loose=True).notes)
    for what in ("1 broken links", "1 pipes and devices", "2 files that are no images"):
        assert what in notes
    assert list(contents(photos)) == ["anna/1.jpg"]
    assert "images outside an identity's folder" in " ".join(read_index(photos).notes)


def test_loose_images_of_a_tar_and_of_named_sources(photos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "p.tar", "w") as tar:
        for name in ("a.png", "anna/1.jpg"):
            tar.add(photos / name, arcname=name)
    assert contents(tmp_path / "p.tar", loose=True) == {
        "a.png": ("", b"a.png"),
        "anna/1.jpg": ("anna", b"anna/1.jpg"),
    }
    both = contents([f"x={tmp_path / 'p.tar'}", f"y={photos}"], loose=True)
    assert {name: identity for name, (identity, _) in both.items()} == {
        "x/a.png": "x/",
        "x/anna/1.jpg": "x/anna",
        "y/a.png": "y/",
        "y/b.jpg": "y/",
        "y/c.JPG": "y/",
        "y/anna/1.jpg": "y/anna",
    }
    assert [is_loose(name) for name in ("", "x/", "x/anna", "anna")] == [True, True, False, False]


def test_a_csv_without_identities_or_with_some(photos: Path) -> None:
    (photos / "list.csv").write_text("path,note\nb.jpg,x\nanna/1.jpg,y\n")
    assert contents(photos / "list.csv", loose=True) == {
        "b.jpg": ("", b"b.jpg"),
        "anna/1.jpg": ("", b"anna/1.jpg"),
    }
    with pytest.raises(DataError, match="no column 'identity'"):
        read_index(photos / "list.csv")
    (photos / "list.csv").write_text("identity,path\n,b.jpg\nberta,c.JPG\n")
    found = contents(photos / "list.csv", loose=True)
    assert {name: identity for name, (identity, _) in found.items()} == {"b.jpg": "", "c.JPG": "berta"}
    with pytest.raises(DataError, match="line 2: an empty identity"):
        read_index(photos / "list.csv")
    (photos / "list.csv").write_text("identity,path\nberta,\n")
    with pytest.raises(DataError, match="line 2: an empty path"):
        read_index(photos / "list.csv", loose=True)


def test_what_cannot_be_read(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds no image.*1 files that are no images.*needed is image\.jpg"):
        read_index(tmp_path / "empty", loose=True)
    with tarfile.open(photos / "old.tar", "w") as tar:
        tar.add(photos / "anna" / "1.jpg", arcname="anna/1.jpg")
    (photos / "anna" / "1.jpg").unlink()
    (photos / "anna").rmdir()
    # Only the tar would be read, and the photographs beside it be lost without a word.
    with pytest.raises(DataError, match=r"both \.tar shards and images"):
        read_index(photos, loose=True)
    assert list(contents(photos)) == ["anna/1.jpg"]
