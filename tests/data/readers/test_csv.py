"""Lists of images, as people and programs write them."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from source_files import (
    DENIED,
    PEOPLE,
    contents,
    fill,
    message,
    names,
    put,
)

from facemetric.data.index import index_files, read_index
from facemetric.errors import DataError


def test_other_columns_of_a_csv_are_groups(tmp_path: Path) -> None:
    root = fill(tmp_path / "images", PEOPLE)
    fill(tmp_path / "more", {"dora": ["f.jpg"]})
    lines = [
        "path,age,identity,camera",
        "carl/e.bmp,old,carl,left",
        "anna/b.png,young,anna",
        "bob/c.jpeg,,bob,right",
    ]
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    index = read_index([f"a={root / 'table.csv'}", f"b={tmp_path / 'more'}"])
    assert names(index) == ["a/anna/b.png", "a/bob/c.jpeg", "a/carl/e.bmp", "b/dora/f.jpg"]
    assert index.groups()["age"].tolist() == ["young", "", "old", ""]
    assert index.groups()["camera"].tolist() == ["", "right", "left", ""]
    picked = index.select(np.array([3, 2, 0]))
    assert picked.groups()["age"].tolist() == ["", "old", "young"]
    joined = index.relabel(np.array([1, 0, 0, 1]), ["one", "two"], {})
    assert names(joined)[0] == "a/bob/c.jpeg"
    assert joined.groups()["age"].tolist() == ["", "old", "young", ""]
    assert read_index(root).groups() == {}


def test_a_column_of_many_values_is_no_group_and_that_is_said(tmp_path: Path) -> None:
    fill(tmp_path, {"anna": [f"{i}.jpg" for i in range(1100)]})
    lines = [f"anna/{i}.jpg,anna,{i},{i % 7}" for i in range(1100)]
    (tmp_path / "table.csv").write_text("\n".join(["path,identity,hash,week", *lines]))
    index = read_index(tmp_path / "table.csv")
    assert set(index.groups()) == {"week"}
    assert index.notes == ("column 'hash' has over 1,000 values: it is not used as a group",)


def test_csv_faults(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    table = tmp_path / "t.csv"
    for text, expected in [
        ("", "no column 'path'"),
        ("pth,identity\na.jpg,x\n", "did you mean 'pth'"),
        ("path,person\na.jpg,x\n", "no column 'identity'"),
        ("path,identity\n", "holds no image"),
        ("path,identity\na.jpg,\n", "line 2: an empty identity"),
        ("path,identity\na.jpg\n", "line 2: an empty identity"),
        ("path,identity\n,x\n", "line 2: an empty path"),
        ("path,identity\nb.jpg,x\na.jpg,x\nc.jpg,x\n", "2 paths without a file below"),
        ("path,identity\na.jpg,x\n.,x\n", "1 path without a file below"),
        ("path,identity\na.jpg,x\na.jpg,y\n", "listed for both 'x' and 'y'"),
        ("path,identity\n\0,x\n", "t.csv"),
    ]:
        table.write_text(text)
        assert expected in message(table)
    table.write_bytes(b"path,identity\n\xff\xfe,x\n")
    assert "no UTF-8 csv" in message(table)
    table.write_bytes(b"path,identity\n" + b"x" * 200_000 + b",x\n")
    assert "line 2: is no csv (field larger than" in message(table)
    table.write_text("path,identity\n\na.jpg,x\na, b.jpg,x\n")
    assert "line 4: 3 fields, the header has 2; quote a field that holds the separator" in message(table)
    table.write_text("path,note,identity,Note\na.jpg,1,x,2\n")
    assert "a column is there twice in 'path, note, identity, Note'" in message(table)


def test_csv_as_windows_and_excel_write_it(tmp_path: Path) -> None:
    """`;`, a BOM, \\r\\n, other letter case, rows and columns that are empty, `\\` in paths."""
    for name in ("anna/1.jpg", "bob/2.jpg", "odd\\3.jpg"):
        put(tmp_path / name, name.encode())
    rows = ["Path;Identity;Age;", "anna\\1.jpg;anna;old;", ";;;", "odd\\3.jpg;carl", "bob/2.jpg;bob;;"]
    table = put(tmp_path / "t.csv", ("\ufeff" + "\r\n".join(["", *rows]) + "\r\n;;\r\n").encode())
    index = read_index(table)
    assert [index.name(i) for i in range(3)] == ["anna/1.jpg", "bob/2.jpg", "odd\\3.jpg"]
    assert index.identities == ("anna", "bob", "carl")
    assert [index.read(i).decode() for i in range(3)] == ["anna/1.jpg", "bob/2.jpg", "odd\\3.jpg"]
    assert index.groups()["Age"].tolist() == ["old", "", ""]


def test_csv_listed_twice_and_absolute(tmp_path: Path) -> None:
    image = put(tmp_path / "images/a.jpg", b"here")
    table = put(
        tmp_path / "t.csv", f"\ufeffidentity,path\nx,images/a.jpg\nx,images/a.jpg\ny,{image}\n".encode()
    )
    index = read_index(table)
    assert [index.name(i) for i in range(len(index))] == ["images/a.jpg", str(image)]
    assert index.ignored == 1
    assert index.read(0) == index.read(1) == b"here"
    named = read_index(f"n={table}")
    assert named.location(1).file == str(image)
    assert named.identities == ("n/x", "n/y")


def test_empty_lines_of_a_csv_are_none(tmp_path: Path) -> None:
    put(tmp_path / "a.jpg")
    put(tmp_path / "b.jpg")
    index = read_index(put(tmp_path / "list.csv", b"path,identity\n\na.jpg,anna\n\n\nb.jpg,bob\n\n"))
    assert index.identities == ("anna", "bob")


def test_a_csv_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "list.csv", b"path,identity\na.jpg,anna\n")

    def refuse(*_: object, **__: object) -> object:
        raise DENIED

    monkeypatch.setattr("builtins.open", refuse)
    assert message(path) == f"{path}: cannot be read (Permission denied)"


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


def test_listed_files(tmp_path: Path) -> None:
    root = fill(tmp_path, PEOPLE)
    index = index_files(["bob/c.jpeg", "anna/b.png", "anna/../anna/a.jpg", "bob/c.jpeg"], root)
    assert names(index) == ["anna/b.png", "anna/../anna/a.jpg", "bob/c.jpeg"]
    assert index.identities == ("anna", "anna/../anna", "bob")
    assert index.read(1) == b"anna/a.jpg"
    plain = index_files([root / "bob/c.jpeg"])
    assert plain.find(str(root / "bob/c.jpeg")) == 0
    assert plain.identities == (str(root / "bob"),)
    with pytest.raises(DataError, match=r"2 paths without a file below .*: x.jpg, y.jpg"):
        index_files(["x.jpg", "bob/c.jpeg", "y.jpg"], root)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=300))
def test_a_csv_of_any_bytes_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = put(tmp_path / "a.csv", b"path,identity\n" + data)
    with contextlib.suppress(DataError):
        read_index(path)
