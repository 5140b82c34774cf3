"""Parquet tables of images: those of Hugging Face's datasets and plain ones; what is damaged, and what is no image."""

from __future__ import annotations

import json
import os
import pickle
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from large_pictures import as_folder, held, pictures, unread
from large_sets import Picture, write_parquet
from pyarrow import parquet
from source_files import contents, message, names

from facemetric.data.index import read_index
from facemetric.data.readers import parquet as reader
from facemetric.errors import DataError


def table(path: Path, **columns: Any) -> Path:
    """A table of these columns, without metadata."""
    parquet.write_table(pa.table(columns), path)
    return path


def test_the_images_of_a_table(tmp_path: Path) -> None:
    images = pictures(300)
    path = write_parquet(tmp_path / "train.parquet", images, group=7)
    assert contents(path) == held(images)
    assert names(read_index(path)) == names(read_index(as_folder(tmp_path / "folder", images)))
    assert len(read_index(path).fingerprint) == 64
    (tmp_path / "README.md").write_text("a data card")
    (tmp_path / "folder").rename(tmp_path.parent / f"{tmp_path.name}_folder")
    assert contents(tmp_path) == held(images)


def test_names_of_classes_come_from_the_metadata(tmp_path: Path) -> None:
    images = [Picture(who, f"{n}.jpg", b"x") for n, who in enumerate(("anna", "bob", "anna"))]
    assert read_index(write_parquet(tmp_path / "a.parquet", images)).identities == ("anna", "bob")
    plain = table(tmp_path / "b.parquet", image=[b"x", b"y", b"z"], label=[3, 12, -1])
    index = read_index(plain)
    assert index.identities == ("12", "3")
    assert index.notes == ("skipped 1 image without a label: row 2 of b.parquet",)
    assert names(index) == ["12/b-00000001.jpg", "3/b-00000000.jpg"]
    assert names(read_index(plain, loose=True))[0] == "b-00000002.jpg"


def test_further_columns_are_groups(tmp_path: Path) -> None:
    groups = {"age": ["old", None, "young"], "camera": [1, 2, 1], "score": [0.5, 0.1, 0.2]}
    path = write_parquet(tmp_path / "a.parquet", pictures(3), groups=groups)
    found = read_index(path).groups()
    assert {name: column.tolist() for name, column in found.items()} == {
        "age": ["old", "", "young"],
        "camera": ["1", "2", "1"],
    }


def test_paths_that_name_two_rows_are_not_used(tmp_path: Path) -> None:
    images = [Picture("7", "same.jpg", b"a"), Picture("7", "same.jpg", b"b")]
    found = contents(write_parquet(tmp_path / "a.parquet", images))
    assert found == {"7/a-00000000.jpg": ("7", b"a"), "7/a-00000001.jpg": ("7", b"b")}


@pytest.mark.parametrize("path", [None, "notes.txt", "@eaDir/1.jpg", "a\n.jpg"])
def test_paths_that_are_no_images_are_not_used(tmp_path: Path, path: str | None) -> None:
    image = pa.array([{"bytes": b"x", "path": path}])
    file = table(tmp_path / "a.parquet", image=image, identity=["anna"])
    assert names(read_index(file)) == ["anna/a-00000000.jpg"]


def test_a_path_cannot_climb(tmp_path: Path) -> None:
    image = pa.array([{"bytes": b"x", "path": "..\\../etc/./1.jpg"}])
    assert names(read_index(table(tmp_path / "a.parquet", image=image, label=["anna"]))) == ["anna/etc/1.jpg"]


@pytest.mark.parametrize("label", [pa.array(["a", "b"]).dictionary_encode(), pa.array([1, 2], pa.uint8())])
def test_kinds_of_labels(tmp_path: Path, label: pa.Array) -> None:
    index = read_index(
        table(tmp_path / "a.parquet", img=pa.array([b"x", b"y"], pa.large_binary()), label=label)
    )
    assert index.identities in (("a", "b"), ("1", "2"))
    assert index.read(1) == b"y"


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (
            {"x": [1], "label": [1]},
            "has no column of images among x, label; needed is one, a struct of `bytes`",
        ),
        ({"image": ["a.jpg"], "label": [1]}, "has no column of images among image, label"),
        ({"image": [b"a"], "jpg": [b"b"], "label": [1]}, "has 2 columns of images (image, jpg)"),
        (
            {"image": [b"a"], "score": [0.5]},
            "has no column of identities among image, score; needed is one of",
        ),
        (
            {"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())},
            "holds no image of an identity",
        ),
    ],
)
def test_tables_without_what_is_needed(tmp_path: Path, columns: dict[str, Any], told: str) -> None:
    assert told in message(table(tmp_path / "a.parquet", **columns))


def test_loose_images_need_no_identities(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", image=[b"x", b"y"])
    assert names(read_index(path, loose=True)) == ["a-00000000.jpg", "a-00000001.jpg"]


def test_one_class_label_of_another_name(tmp_path: Path) -> None:
    metadata = {"info": {"features": {"who": {"_type": "ClassLabel", "names": ["anna"]}, "image": "?"}}}
    found = pa.table({"image": [b"x"], "who": [0]})
    found = found.replace_schema_metadata({b"huggingface": json.dumps(metadata).encode()})
    parquet.write_table(found, tmp_path / "a.parquet")
    assert read_index(tmp_path / "a.parquet").identities == ("anna",)


@pytest.mark.parametrize(
    "metadata", [b"{", b"[]", b'{"info": {"features": 3}}', b'{"info": null}', b"[" * 99_999]
)
def test_metadata_of_another_kind(tmp_path: Path, metadata: bytes) -> None:
    found = pa.table({"image": [b"x"], "label": [5]}).replace_schema_metadata({b"huggingface": metadata})
    parquet.write_table(found, tmp_path / "a.parquet")
    assert read_index(tmp_path / "a.parquet").identities == ("5",)


def test_a_row_without_bytes(tmp_path: Path) -> None:
    image = pa.array([{"bytes": None, "path": "1.jpg"}, {"bytes": b"x", "path": "2.jpg"}])
    path = table(tmp_path / "a.parquet", image=image, label=[1, 1])
    assert unread(path) == {"1/1.jpg": f"row 0 of {path} holds no bytes of an image"}


def test_damaged_and_cut_files(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures())
    whole = path.read_bytes()
    for wrong in (whole[:-1], whole[: len(whole) // 2], b"", b"PAR1", whole[:-8] + b"\xff" * 4 + b"PAR1"):
        path.write_bytes(wrong)
        assert "cannot be read as Parquet" in message(path)


def test_a_damaged_row_group_is_bad_images_and_no_end(tmp_path: Path) -> None:
    images = pictures(40)
    path = write_parquet(tmp_path / "a.parquet", images, group=10)
    place = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    assert place.path_in_schema == "image.bytes"
    data = bytearray(path.read_bytes())
    first = place.dictionary_page_offset or place.data_page_offset
    data[first : first + place.total_compressed_size] = b"\xff" * place.total_compressed_size
    path.write_bytes(data)
    found = unread(path)
    assert set(found) == set(held(images[10:20]))
    assert all("is damaged" in reason for reason in found.values())


def test_a_file_that_was_changed(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures())
    index = read_index(path)
    index.read(0)
    os.utime(path, ns=(5, 5))
    with pytest.raises(OSError, match="was changed since it was indexed"):
        index.read(1)
    again = pickle.loads(pickle.dumps(index))
    path.write_bytes(b"")
    with pytest.raises(OSError, match="was cut short since it was indexed"):
        again.read(1)


def test_threads_and_forks_read_the_same(tmp_path: Path) -> None:
    images = pictures(200)
    index = read_index(write_parquet(tmp_path / "a.parquet", images, group=10))
    expected = [index.read(i) for i in range(200)]
    wrong: list[int] = []

    def look(first: int) -> None:
        wrong.extend(i for i in range(first, 200, 3) if index.read(i) != expected[i])

    threads = [threading.Thread(target=look, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    if (child := os.fork()) == 0:  # beside threads that read
        status = 1
        try:
            status = int([index.read(i) for i in range(200)] != expected)
        finally:
            os._exit(status)
    for thread in threads:
        thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not wrong


def test_few_row_groups_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [Picture("7", f"{n:03d}.jpg", bytes(1000)) for n in range(100)]
    index = read_index(write_parquet(tmp_path / "a.parquet", images, group=10))
    monkeypatch.setattr(reader, "CACHE", 35_000)
    for i in range(100):
        index.read(i)
    source = index._store.files[0].reader
    assert isinstance(source, reader.ParquetReader)
    assert source._parquet is not None
    assert sorted(source._parquet.kept) == [7, 8, 9]


def test_large_row_groups_are_noted_and_too_large_ones_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures(40), group=40)
    assert read_index(path).notes == ()
    monkeypatch.setattr(reader, "LARGE_GROUP", 39)
    assert "its row groups have up to 40 images" in read_index(path).notes[0]
    monkeypatch.setattr(reader, "MOST_GROUP", 1000)
    assert "has 0.0 GiB, which would be read for each of its images" in message(path)


def test_of_a_damaged_column_the_record_is_not_asked_for(tmp_path: Path) -> None:
    """A flipped bit in a column's histogram: pyarrow 26 throws past Python there, and the process ends. Found by
    tools/fuzz_readers.py; to read the column is an error of Python's."""
    path = write_parquet(tmp_path / "a.parquet", pictures(3))
    group = SimpleNamespace(num_rows=3, total_byte_size=900)  # without column()
    file = SimpleNamespace(metadata=SimpleNamespace(num_row_groups=1, row_group=lambda number: group))
    reader.ParquetReader(str(path))._check_groups(file)


def test_beside_images_a_table_is_no_source(tmp_path: Path) -> None:
    """`embed` may have put its table there."""
    as_folder(tmp_path, pictures())
    write_parquet(tmp_path / "E.parquet", pictures())
    index = read_index(tmp_path)
    assert len(index) == 30
    assert not any("parquet" in index.location(i).file for i in range(30))


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", pictures())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"Parquet is read by pyarrow; pip install 'facemetric\[parquet\]'$"):
        read_index(path)
