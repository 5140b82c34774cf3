"""What is skipped beside photographs, and that it is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from source_files import (
    folder_or_tar,
    message,
    names,
    put,
)

from facemetric.data.index import index_files, read_index


def test_what_is_skipped_is_told(tmp_path: Path) -> None:
    for name in ("anna/a.jpg", "anna/notes.txt", "anna/.DS_Store", "anna/._a.jpg", "top.jpg", ".git/x.jpg"):
        put(tmp_path / name)
    os.symlink("gone.jpg", tmp_path / "anna/broken.jpg")
    index = read_index(tmp_path)
    assert [index.name(i) for i in range(len(index))] == ["anna/a.jpg"]
    assert index.ignored == 6
    told = " ".join(index.notes)
    for part in ("3 files that are no images", "notes.txt", "1 broken link:", "1 hidden folder:", "top.jpg"):
        assert part in told
    assert index.select(index.identity == 0).notes == index.notes


def test_only_some_examples_are_named(tmp_path: Path) -> None:
    put(tmp_path / "anna/a.jpg")
    for n in range(7):
        put(tmp_path / f"anna/{n}.txt")
    (note,) = read_index(tmp_path).notes
    assert note == (
        "skipped 7 files that are no images: anna/0.txt, anna/1.txt, anna/2.txt, anna/3.txt, anna/4.txt and 2 more"
    )


@pytest.mark.parametrize("packed", [False, True])
def test_hidden_folders_at_any_depth_are_skipped(tmp_path: Path, packed: bool) -> None:
    files = [
        "anna/1.jpg",
        "anna/.thumbnails/1.jpg",
        "anna/.thumbnails/deep/2.jpg",
        "bob/a.b/.c.d.jpg",
        "bob/1.jpg",
    ]
    files += [".trash/1.jpg", ".trash/2.jpg"]
    data = folder_or_tar(tmp_path, files, packed)
    index = read_index(data)
    assert [index.name(i) for i in range(len(index))] == ["anna/1.jpg", "bob/1.jpg"]
    assert sorted(index.notes) == [
        "skipped 1 file that is no image: bob/a.b/.c.d.jpg",
        f"skipped 2 hidden folders: {'anna/.thumbnails, .trash' if packed else '.trash, anna/.thumbnails'}",
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_photographs_that_are_not_read_are_told(
    tmp_path: Path, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("facemetric.data.readers.skips._read_phones", lambda ending: False)
    files = ["anna/1.HEIC", "anna/2.avif", "anna/._3.heic"]
    data = folder_or_tar(tmp_path, files, packed)
    expected = (
        "2 HEIC or AVIF files, which are not read (pip install 'facemetric[heic]', or convert them to JPEG)"
    )
    assert expected in message(data)
    assert "1 file that is no image" in message(data)
    put(tmp_path / "b" / "anna" / "1.jpg")
    put(tmp_path / "b" / "anna" / "2.heif")
    assert read_index(tmp_path / "b").notes == (
        "skipped 1 HEIC or AVIF file, which is not read (pip install 'facemetric[heic]', or convert it to JPEG): "
        "anna/2.heif",
    )


LEFT_BEHIND = [
    "anna/@eaDir/1.jpg/SYNOPHOTO_THUMB_M.jpg",  # Synology
    "anna/@eaDir/2.jpg/SYNOPHOTO_THUMB_XL.jpg",
    "#recycle/anna/old.jpg",
    "#snapshot/GMT+01-2024.01.01-00.00.00/anna/1.jpg",
    "anna/.@__thumb/default1.jpg",  # QNAP
    "@Recycle/anna/old.jpg",
    "anna/@Transcode/1.jpg",
    "$RECYCLE.BIN/S-1-5-21/$RAB12.jpg",  # Windows
    "System Volume Information/x.jpg",
    "RECYCLER/x.jpg",
    "lost+found/#123.jpg",  # Linux
    "anna/.thumbnails/1.jpg",  # Android
    "__MACOSX/anna/1.jpg",  # macOS
    ".Trashes/501/1.jpg",
    "Network Trash Folder/1.jpg",
    "anna/.picasaoriginals/1.jpg",  # Picasa
    "anna/Lightroom Catalog Previews.lrdata/1/1.jpg",  # Lightroom
    "bob.photoslibrary/resources/derivatives/1.jpg",  # Apple Photos
    "anna/deep/Thumbs/1.jpg",
]


def quoted(name: str) -> str:
    return f'"{name}","{name.split("/")[0]}"'


@pytest.mark.parametrize("kind", ["folder", "tar", "csv"])
def test_three_photographs_stay_three(tmp_path: Path, kind: str) -> None:
    """What drives and programs leave behind is no person, and no image of one: each folder is counted once."""
    photographs = ["anna/1.jpg", "anna/deep/2.jpg", "bob/1.jpg"]
    data = folder_or_tar(tmp_path, photographs + LEFT_BEHIND, packed=kind == "tar")
    if kind == "csv":  # as `find . -name '*.jpg'` would make it; hidden folders may be listed on purpose
        listed = [*photographs, *(name for name in LEFT_BEHIND if "/." not in name and name[0] != ".")]
        data = put(data / "l.csv", "\n".join(["path,identity", *map(quoted, listed)]).encode())
    index = read_index(data)
    assert names(index) == photographs
    assert index.identities == ("anna", "bob")
    told = sorted(note.split(":")[0] for note in index.notes)
    system = "skipped 14 folders of thumbnails, of deleted files or of the system"
    assert told == ([system] if kind == "csv" else [system, "skipped 4 hidden folders"])
    assert index.ignored == (14 if kind == "csv" else 18)


def test_the_files_of_a_network_drive_outside_its_folders(tmp_path: Path) -> None:
    data = folder_or_tar(
        tmp_path, ["anna/1.jpg", "anna/SYNOFILE_THUMB_M.jpg", "anna/Thumbs.db"], packed=False
    )
    index = read_index(data)
    assert names(index) == ["anna/1.jpg"]
    assert index.ignored == 2
    assert "skipped 1 thumbnail of a network drive: anna/SYNOFILE_THUMB_M.jpg" in index.notes


@pytest.mark.parametrize("packed", [False, True])
def test_names_that_people_give_are_no_system_folders(tmp_path: Path, packed: bool) -> None:
    people = ["Archive", "Bin", "Originals", "Trash", "eadir", "found", "recycle", "thumbelina"]
    index = read_index(folder_or_tar(tmp_path, [f"{name}/1.jpg" for name in people], packed))
    assert index.identities == tuple(people)
    assert index.notes == ()


def test_a_source_may_itself_lie_in_such_a_folder(tmp_path: Path) -> None:
    """The rule is about what lies in a source; which source to read the user has said."""
    put(tmp_path / "lost+found" / "anna" / "1.jpg")
    put(tmp_path / "lost+found" / "l.csv", b"path,identity\nanna/1.jpg,anna\n")
    assert names(read_index(tmp_path / "lost+found")) == ["anna/1.jpg"]
    assert names(read_index(tmp_path / "lost+found" / "l.csv")) == ["anna/1.jpg"]
    assert names(index_files(["lost+found/anna/1.jpg"], tmp_path)) == ["lost+found/anna/1.jpg"]


def test_a_list_of_nothing_but_thumbnails(tmp_path: Path) -> None:
    put(tmp_path / "@eaDir" / "1.jpg")
    told = message(put(tmp_path / "l.csv", b"path,identity\n@eaDir/1.jpg,anna\n@eaDir\\1.jpg,anna\n"))
    assert "holds no image of an identity (skipped 1 folder of thumbnails, of deleted files" in told
