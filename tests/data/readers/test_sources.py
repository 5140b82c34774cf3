"""Which reader a source gets, how several are told apart, and a reader of a user's own."""

from __future__ import annotations

import csv
import io
import os
import re
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from source_files import (
    PEOPLE,
    contents,
    fill,
    holds_its_name,
    member,
    message,
    names,
    pack,
    pack_people,
    put,
    tar_of,
)

import facemetric
from facemetric.data.batches import chunks
from facemetric.data.images import Preprocess
from facemetric.data.index import parse_source, read_index
from facemetric.data.loader import load_batches
from facemetric.data.readers import READERS
from facemetric.data.readers.reader import Member, Reader, Row, StoredRow, images_of
from facemetric.data.readers.skips import Skips
from facemetric.data.readers.sources import is_loose
from facemetric.data.transforms import eval_transform
from facemetric.errors import DataError


def test_nothing_there(tmp_path: Path) -> None:
    assert "no such file or folder" in message(tmp_path / "not_there")
    assert "holds no image" in message(tmp_path)
    put(tmp_path / "text.txt")
    assert "unknown kind of data" in message(tmp_path / "text.txt")


@pytest.mark.parametrize(
    ("name", "start", "kind"),
    [
        (
            "doc.pdf",
            b"%PDF-1.4\n",
            "is a PDF document; save its page as a picture, and give a folder of images",
        ),
        ("film.mp4", b"\0\0\0\x18ftypmp42", "is a video; save a frame of it as a picture, and give a folder"),
        ("film.mkv", b"\x1aE\xdf\xa3", "is a video; save a frame of it as a picture, and give a folder"),
    ],
)
def test_what_people_take_for_photographs(tmp_path: Path, name: str, start: bytes, kind: str) -> None:
    (tmp_path / name).write_bytes(start)
    with pytest.raises(DataError, match=f"{name}: {kind}"):
        read_index([tmp_path / name], loose=True)


def test_folder_tar_and_csv_are_one_index(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", PEOPLE)
    tar = pack_people(tmp_path / "images.tar", dict(reversed(PEOPLE.items())))
    table = root / "table.csv"
    with open(table, "w", newline="") as file:
        rows = [(f"{i}/{m}", "x", i) for i, images in PEOPLE.items() for m in images]
        csv.writer(file).writerows([("path", "age", "identity"), *reversed(rows)])
    by_folder, by_tar, by_csv = (read_index(path) for path in (root, tar, table))
    assert by_folder.fingerprint == by_tar.fingerprint == by_csv.fingerprint
    assert names(by_folder) == names(by_tar) == names(by_csv)
    assert holds_its_name(by_tar)
    assert holds_its_name(by_csv)


def test_data_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "faces", PEOPLE)
    assert read_index("~/faces").identities == ("anna", "bob", "carl")
    assert read_index("x=~/faces").identities == ("x/anna", "x/bob", "x/carl")
    fill(tmp_path / "~" / "faces", {"dora": ["f.jpg"]})
    assert read_index("~/faces").identities == ("dora",)


def test_sources_do_not_mix(tmp_path: Path) -> None:
    one = fill(tmp_path / "one", {"001": ["a.jpg"]})
    two = fill(tmp_path / "two.d", {"001": ["a.jpg"]})
    assert read_index([one, two]).identities == ("one/001", "two.d/001")
    dotted = [fill(tmp_path / name, {"001": ["a.jpg"]}) for name in ("set.v1", "set.v2")]
    assert read_index(dotted).identities == ("set.v1/001", "set.v2/001")
    index = read_index([f"x={one}", two])
    assert names(index) == ["two.d/001/a.jpg", "x/001/a.jpg"]
    assert read_index([f"x={one}"]).identities == ("x/001",)
    assert index.location(1).file == str(one / "001/a.jpg")
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"same name 'one'.*A=PATH"):
        read_index([one, fill(tmp_path / "other/one", {"001": ["a.jpg"]})])
    with pytest.raises(DataError, match=r"x/001/a\.jpg' is in both"):
        read_index([f"x={one}", f"x={two}"])


def test_parse_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_source("fiw=a/b.tar") == ("fiw", Path("a/b.tar"), True)
    assert parse_source("a/b.tar") == ("b", Path("a/b.tar"), False)
    assert parse_source("./a=b") == ("a=b", Path("a=b"), False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    assert parse_source("a=b").named is False
    for bad in ("a=", ""):
        with pytest.raises(DataError):
            parse_source(bad)
    with pytest.raises(DataError, match="no data"):
        read_index([])


def test_shards_beside_folders(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", member("anna/a.jpg"))
    put(tmp_path / "bob/b.jpg")
    assert "both .tar shards and folders" in message(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_the_folder_above_train_and_test_is_told(tmp_path: Path, packed: bool) -> None:
    files = [f"{part}/{who}/1.jpg" for part in ("test", "train") for who in ("anna", "bob")]
    for name in files:
        put(tmp_path / "a" / name)
    data = tar_of(tmp_path / "a.tar", *map(member, files)) if packed else tmp_path / "a"
    assert read_index(data).notes == (
        f"{data}: all images of its 2 identities (test, train) lie in folders further down, such as 'test/anna'; "
        "if these are the identities, name the folders above them, or each as a source",
    )
    assert "'test/anna'" in read_index(f"x={data}").notes[0]
    put(tmp_path / "a" / "train" / "1.jpg")
    assert read_index(tmp_path / "a").notes == ()
    (tmp_path / "l.csv").write_text("path,identity\na/train/bob/1.jpg,bob\na/train/anna/1.jpg,anna\n")
    assert read_index(tmp_path / "l.csv").notes == ()


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


def test_what_cannot_be_read(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"holds no image.*1 file that is no image.*needed is image\.jpg"):
        read_index(tmp_path / "empty", loose=True)
    with tarfile.open(photos / "old.tar", "w") as tar:
        tar.add(photos / "anna" / "1.jpg", arcname="anna/1.jpg")
    (photos / "anna" / "1.jpg").unlink()
    (photos / "anna").rmdir()
    # Only the tar would be read, and the photographs beside it be lost without a word.
    with pytest.raises(DataError, match=r"both \.tar shards and images"):
        read_index(photos, loose=True)
    assert list(contents(photos)) == ["anna/1.jpg"]


def picture(n: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(n).integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


class SqliteReader(Reader):
    """What a user would write for a database, whose pictures are no byte ranges of the file."""

    may_be_shard = True

    def scan(self, skips: Skips, *, loose: bool) -> Iterator[Row]:
        with closing(sqlite3.connect(self.path)) as base:
            found = base.execute("SELECT name, length(picture) FROM images").fetchall()
        members = [Member(name, size) for name, size in found]
        return images_of(members, skips, loose=loose)

    def open(self, row: StoredRow) -> bytes:
        with closing(sqlite3.connect(self.path)) as base:
            wanted = "SELECT picture FROM images WHERE name = ?"
            return base.execute(wanted, [row.name]).fetchone()[0]


def stored(path: Path, files: dict[str, bytes]) -> Path:
    with closing(sqlite3.connect(path)) as base, base:
        base.execute("CREATE TABLE images (name TEXT PRIMARY KEY, picture BLOB)")
        base.executemany("INSERT INTO images VALUES (?, ?)", files.items())
    return path


def test_a_new_reader_is_one_class_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that other sources do works with it: batches, workers, mixing, shards, caches, what is skipped."""
    files = {f"{who}/{n}.png": picture(n) for who in ("anna", "bob") for n in range(3)}
    skipped = {"anna/@eaDir/0.png": b"small", "anna/notes.txt": b"x", "top.png": b"x"}
    path = stored(tmp_path / "a.sqlite", files | skipped)
    assert "unknown kind of data" in message(path)
    assert "is packed" in message(put(tmp_path / "a.zip", b"PK"))
    monkeypatch.setitem(READERS, ".sqlite", SqliteReader)
    index = read_index(path)
    assert {index.name(i): index.read(i) for i in range(len(index))} == files
    assert index.location(1) == (str(path), 0, len(files["anna/1.png"]))
    assert len(index.notes) == 3
    assert index.fingerprint == read_index(pack(tmp_path / "a.tar", files)).fingerprint
    transform = eval_transform(Preprocess(size=(8, 8)))
    alone, with_workers = (
        [batch.images for batch in load_batches(index, chunks(6, 4), transform, workers=workers)]
        for workers in (0, 1)
    )
    assert [len(images) for images in alone] == [4, 2]
    assert all(torch.equal(one, other) for one, other in zip(alone, with_workers, strict=True))
    before = index.state_key
    os.utime(path, ns=(5, 5))
    assert read_index(path).state_key != before
    (tmp_path / "bases").mkdir()
    path = path.rename(tmp_path / "bases" / "a.sqlite")
    stored(tmp_path / "bases" / "b.sqlite", {"carl/7.png": picture(7)})
    assert read_index(path.parent).identities == ("anna", "bob", "carl")
    both = read_index([f"s={path}", f"t={tmp_path}/a.tar"])
    assert both.identities == ("s/anna", "s/bob", "t/anna", "t/bob")
    assert names(read_index(path, loose=True))[0] == "top.png"


def test_shards_of_two_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(READERS, ".sqlite", SqliteReader)
    stored(tmp_path / "a.sqlite", {"anna/1.png": b"x"})
    pack(tmp_path / "b.tar", {"anna/2.png": b"x"})
    assert "holds files of several kinds (.sqlite, .tar); put them apart" in message(tmp_path)


def test_nothing_outside_readers_knows_the_kinds() -> None:
    """A source is a plug only while no other module asks which one it is."""
    root = Path(facemetric.__file__).parent
    for file in root.rglob("*.py"):
        if file.parent.name != "readers":
            text = file.read_text(encoding="utf-8")
            assert not re.search(
                r"is_tar|walk_tar|readers\.(tar|folder)\b|\.(Tar|Folder|Csv|Bin)Reader", text
            ), file


def test_pictures_by_name_are_nobodys_where_images_may_be_loose(tmp_path: Path) -> None:
    people = fill(tmp_path / "people", PEOPLE)
    places = (("a/1.png", b"1"), ("a/2.png", b"2"), ("b/1.png", b"3"))
    files = [put(tmp_path / name, data) for name, data in places]
    one = read_index(files[0], loose=True)
    assert (names(one), one.identities, one.read(0)) == (["1.png"], ("",), b"1")
    assert names(read_index(files[:2], loose=True)) == ["1.png", "2.png"]
    three = read_index(files, loose=True)
    assert tuple((name, three.read(i)) for i, name in enumerate(names(three))) == places
    both = read_index([people, *files[:2]], loose=True)
    assert {name for name in both.identities if is_loose(name)} == {"a/"}
    assert {"a/1.png", "a/2.png"} <= set(names(both))
    assert "is one image; give a folder of identities" in message(files[0])
