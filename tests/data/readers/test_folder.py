"""Folders of identities: links, odd names, what cannot be listed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from source_files import (
    PEOPLE,
    contents,
    deny,
    fill,
    holds_its_name,
    message,
    names,
    put,
)

from facemetric.data.index import read_index
from facemetric.data.readers import folder
from facemetric.errors import DataError


def test_folder(tmp_path: Path) -> None:
    index = read_index(fill(tmp_path, PEOPLE))
    assert index.identities == ("anna", "bob", "carl")
    assert names(index) == ["anna/a.jpg", "anna/b.png", "bob/c.jpeg", "carl/deep/er/d.webp", "carl/e.bmp"]
    assert index.identity.tolist() == [0, 0, 1, 2, 2]
    assert index.counts().tolist() == [2, 1, 2]
    assert holds_its_name(index)
    assert index.location(3) == (str(tmp_path / "carl/deep/er/d.webp"), 0, 19)


def test_order_does_not_follow_the_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = read_index(fill(tmp_path, PEOPLE))
    listed = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            with listed(path) as entries:
                self.entries = list(entries)[::-1]

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert names(read_index(tmp_path)) == names(index)


def test_images_without_identity_folders(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "readme.txt")
    told = message(tmp_path)
    assert "(skipped 1 image outside an identity's folder, 1 file that is no image)" in told
    assert "identity/image.jpg" in told


def test_zero_byte_images_stay_for_the_list_of_bad_ones(tmp_path: Path) -> None:
    put(tmp_path / "anna/a.jpg", b"")
    assert read_index(tmp_path).location(0).size == 0


def test_pipes_and_empty_folders(tmp_path: Path) -> None:
    put(tmp_path / "anna/a.jpg")
    put(tmp_path / "bob/notes.txt")
    os.mkfifo(tmp_path / "anna/b.jpg")
    os.mkfifo(tmp_path / "c.tar")
    index = read_index(tmp_path / "anna/..")
    assert index.identities == ("anna",)
    assert "skipped 1 pipe or device: anna/b.jpg" in index.notes
    assert "skipped 1 folder without an image: bob" in index.notes
    assert "no such file or folder" in message(tmp_path / "c.tar")


def test_links_and_loops(tmp_path: Path) -> None:
    data = tmp_path / "data"
    put(data / "anna/a.jpg")
    put(data / "bob/b.jpg")
    put(tmp_path / "elsewhere/c.jpg")
    os.symlink("../anna", data / "anna/loop")
    os.symlink("self", data / "anna/self")
    os.symlink("top", data / "top")
    os.symlink("..", data / "bob/up")
    os.symlink("/", data / "bob/root")
    os.symlink(tmp_path / "elsewhere", data / "carl")
    index = read_index(data)
    assert [index.name(i) for i in range(len(index))] == ["anna/a.jpg", "bob/b.jpg", "carl/c.jpg"]
    assert "3 links to a folder already walked" in " ".join(index.notes)


@pytest.mark.parametrize("name", ["a b c", "ünïcødé 人", "x" * 250, "=,;\"'", "new\nline", "-rf", "#hash"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    put(tmp_path / name / f"{name[:200]}.jpg", b"here")
    index = read_index(tmp_path)
    assert index.identities == (name,)
    assert index.name(0) == f"{name}/{name[:200]}.jpg"
    assert index.read(0) == b"here"
    assert index.find(index.name(0)) == 0


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.mkdir(path)
    with open(path + b"/\xe9.jpg", "wb") as file:
        file.write(b"here")
    index = read_index(tmp_path)
    assert index.read(0) == b"here"
    assert len(index.fingerprint) == 64


def test_a_folder_with_loose_images(photos: Path) -> None:
    found = contents(photos, loose=True)
    assert found == {
        "a.png": ("", b"a.png"),
        "b.jpg": ("", b"b.jpg"),
        "c.JPG": ("", b"c.JPG"),
        "anna/1.jpg": ("anna", b"anna/1.jpg"),
    }
    notes = " ".join(read_index(photos, loose=True).notes)
    for what in ("1 broken link:", "1 pipe or device:", "2 files that are no images"):
        assert what in notes
    assert list(contents(photos)) == ["anna/1.jpg"]
    assert "images outside an identity's folder" in " ".join(read_index(photos).notes)


def test_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "anna" / "1.jpg")
    deny(monkeypatch, "scandir", tmp_path / "anna")
    assert message(tmp_path) == (
        f"{tmp_path / 'anna'}: cannot be listed (Permission denied); give a readable folder without link loops"
    )


def test_a_folder_that_cannot_be_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"anna: cannot be entered \(No such file or directory\)"):
        folder._place_of(str(tmp_path / "anna"))
