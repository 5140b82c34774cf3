"""The index: look-ups, parts, fingerprints and what it costs."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from source_files import (
    PEOPLE,
    fill,
    holds_its_name,
    names,
    pack_people,
    put,
)

from facemetric.data.index import _in_order, read_index
from facemetric.data.readers.folder import FolderReader
from facemetric.data.readers.reader import Row
from facemetric.data.readers.tar import TarReader
from facemetric.data.store import Rows, SourceFile, Store
from facemetric.errors import DataError


def test_find_and_select(tmp_path: Path) -> None:
    index = read_index(fill(tmp_path, PEOPLE))
    assert [index.find(name) for name in names(index)] == list(range(5))
    assert index.find("anna/z.jpg") is None
    part = index.select(index.identity != 1)
    assert part.identities == ("anna", "carl")
    assert part.identity.tolist() == [0, 0, 1, 1]
    assert part.find("bob/c.jpeg") is None
    assert part.find("carl/e.bmp") == 3
    assert holds_its_name(part)
    again = index.select(np.array([4, 0]))
    assert names(again) == ["carl/e.bmp", "anna/a.jpg"]
    assert again.identities == ("anna", "carl")
    assert len(index.select(np.zeros(5, bool))) == 0


def test_find_survives_equal_hashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("facemetric.data.index.hash", lambda name: 1, raising=False)
    index = read_index(fill(tmp_path, PEOPLE))
    assert [index.find(name) for name in names(index)] == list(range(5))


def test_travels_to_another_process(tmp_path: Path) -> None:
    index = read_index(pack_people(tmp_path / "a.tar"))
    index.read(0)
    packed = pickle.dumps(index)
    del index  # and with it the open file
    assert holds_its_name(pickle.loads(packed))


def test_names_at_the_root() -> None:
    rows = Rows(files=[SourceFile(FolderReader("/data"), "s/")])
    for path in ("/a.jpg", "b.jpg", "/c/d.jpg", "e/f.jpg"):
        rows.add(Row("p", path, 1))
    store = Store(rows)
    assert [store.name(i) for i in range(4)] == ["s//a.jpg", "s/b.jpg", "s//c/d.jpg", "s/e/f.jpg"]
    files = [store.location(i).file for i in range(4)]
    assert files == ["/a.jpg", "/data/b.jpg", "/c/d.jpg", "/data/e/f.jpg"]


def test_fingerprint_and_state(tmp_path: Path) -> None:
    root = fill(tmp_path / "a", PEOPLE)
    index = read_index(root)
    elsewhere = read_index(fill(tmp_path / "b", PEOPLE))
    assert elsewhere.fingerprint == index.fingerprint
    part = index.select(index.identity > 0)
    alone = read_index(fill(tmp_path / "c", {k: v for k, v in PEOPLE.items() if k != "anna"}))
    assert part.fingerprint == alone.fingerprint != index.fingerprint
    os.utime(root / "bob/c.jpeg", ns=(0, 0))
    touched = read_index(root)
    assert touched.fingerprint == index.fingerprint
    assert touched.state_key != index.state_key
    os.rename(root / "bob/c.jpeg", root / "bob/d.jpeg")
    renamed = read_index(root).fingerprint
    (root / "bob/d.jpeg").write_bytes(b"longer than it was")
    assert len({index.fingerprint, renamed, read_index(root).fingerprint}) == 3


def test_state_of_a_tar(tmp_path: Path) -> None:
    tar = pack_people(tmp_path / "a.tar")
    before = read_index(tar).state_key
    os.utime(tar, ns=(5, 5))
    assert read_index(tar).state_key != before


def test_the_sizes_and_the_look_of_an_index(tmp_path: Path) -> None:
    put(tmp_path / "anna" / "1.jpg", b"abc")
    put(tmp_path / "bob" / "1.jpg", b"a")
    put(tmp_path / "bob" / "2.jpg", b"")
    index = read_index(tmp_path)
    assert index.sizes().tolist() == [3, 1, 0]
    assert index.select(index.identity == 1).sizes().tolist() == [1, 0]
    assert repr(index) == "<ImageIndex: 3 images of 2 identities>"


def test_memory_of_an_image() -> None:
    """Below 200 bytes an image, look-up by name and transients included, at 50,000 images."""
    rows = Rows(files=[SourceFile(TarReader("x.tar"), "src/")])
    tracemalloc.start()
    try:
        for i in range(5_000):
            for k in range(10):
                rows.add(Row(f"person_{i:06}", f"person_{i:06}/image_{k:04}.jpg", 4000, 512 * i))
        index = _in_order(rows)
        del rows
        held, peak = tracemalloc.get_traced_memory()
        index.find("src/person_000001/image_0001.jpg")
        with_names, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(index) == 50_000
    assert held / len(index) < 120
    assert with_names / len(index) < 140
    assert peak / len(index) < 300
    assert index.nbytes / len(index) < 100


def test_names_from_numpy_are_plain_texts(tmp_path: Path) -> None:
    """Messages show names by their repr: `np.str_('anna')` would be one for programmers."""
    index = read_index(fill(tmp_path, PEOPLE))
    joined = index.relabel(np.array([0, 0, 1, 1, 1]), np.array(["anna", "carl"]), {})  # type: ignore[arg-type]
    assert repr(joined.identities) == "('anna', 'carl')"
    with pytest.raises(DataError, match="1 listed identity not in the data, first 'bert'"):
        joined.split_identities(np.array(["bert"]))  # type: ignore[arg-type]
