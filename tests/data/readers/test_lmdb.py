"""LMDB databases: both layouts, values in leaves and on pages of their own, damage of every kind."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from large_pictures import as_folder, held, pictures
from large_sets import PAGE, write_lmdb
from source_files import contents, message, names, put

from facemetric.data.index import read_index
from facemetric.errors import DataError


def by_path(count: int = 30) -> dict[bytes, bytes]:
    return {name.encode(): data for name, (_, data) in held(pictures(count)).items()}


def numbered(count: int = 30) -> dict[bytes, bytes]:
    values = {b"num-samples": b"%d" % count}
    for n, image in enumerate(pictures(count), 1):
        values[b"image-%09d" % n] = image.data
        values[b"label-%09d" % n] = image.identity.encode()
    return values


@pytest.mark.parametrize("count", [1, 30, 800])
def test_keys_that_are_paths(tmp_path: Path, count: int) -> None:
    images = pictures(count)
    path = write_lmdb(tmp_path / "data.mdb", by_path(count) | {b"__len__": b"30"})
    assert contents(path) == held(images)
    index = read_index(path)
    assert index.fingerprint == read_index(as_folder(tmp_path / "folder", images)).fingerprint
    assert index.notes == ("skipped 1 file that is no image: __len__",)


def test_numbers_with_labels(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "data.mdb", numbered())
    expected = {f"{i.identity}/{n:09d}.jpg": (i.identity, i.data) for n, i in enumerate(pictures(), 1)}
    assert contents(path) == expected


def test_numbers_without_a_label(tmp_path: Path) -> None:
    values = {b"image-1": b"a", b"image-2": b"b", b"image-3": b"c", b"label-1": b"7", b"label-3": b"\xff"}
    path = write_lmdb(tmp_path / "data.mdb", values)
    index = read_index(path)
    assert names(index) == ["7/000000001.jpg"]
    assert index.notes == ("skipped 2 images without a label: image-000000002, image-000000003",)
    assert names(read_index(path, loose=True)) == ["000000002.jpg", "000000003.jpg", "7/000000001.jpg"]


def test_folders_and_files(tmp_path: Path) -> None:
    (tmp_path / "a.lmdb").mkdir()
    write_lmdb(tmp_path / "a.lmdb" / "data.mdb", by_path())
    (tmp_path / "a.lmdb" / "lock.mdb").write_bytes(b"lock")
    assert contents(tmp_path / "a.lmdb") == held(pictures())
    assert contents(write_lmdb(tmp_path / "b.lmdb", by_path())) == held(pictures())


def test_other_databases(tmp_path: Path) -> None:
    pickled = {b"%d" % n: b"\x80\x04pickle" for n in range(9)}
    told = message(write_lmdb(tmp_path / "data.mdb", pickled))
    assert "no key of it is an image of an identity; needed are keys `identity/image.jpg`" in told
    assert "no key of it" in message(write_lmdb(tmp_path / "data.mdb", {}))
    assert "is no LMDB database" in message(put(tmp_path / "data.mdb", b"Standard Jet DB" * 1000))
    assert "cut short at byte 0" in message(put(tmp_path / "data.mdb", b""))


def change(path: Path, at: int, kind: str, *values: int) -> Path:
    data = bytearray(path.read_bytes())
    struct.pack_into("<" + kind, data, at, *values)
    path.write_bytes(data)
    return path


META = PAGE + 16  # of the second page, which counts


@pytest.mark.parametrize(
    ("at", "kind", "value", "told"),
    [
        (META + 4, "I", 2, f"damaged at byte {PAGE:,}"),
        (16 + 4, "I", 2, "is no LMDB database"),
        (META + 24, "I", 5000, "damaged at byte 16"),
        (META + 24 + 48 + 4, "H", 4, "keys have several values"),
        (META + 24 + 48 + 40, "Q", 1 << 40, "cut short"),
        (META + 24 + 48 + 40, "Q", 0, "damaged at byte 0"),
        (META + 24 + 48 + 32, "Q", 31, "damaged: 30 keys of 31 are there"),
    ],
)
def test_what_is_wrong_in_the_first_pages(tmp_path: Path, at: int, kind: str, value: int, told: str) -> None:
    assert told in message(change(write_lmdb(tmp_path / "data.mdb", by_path()), at, kind, value))


def test_what_is_wrong_in_a_leaf(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "data.mdb", {b"a/1.jpg": b"x" * 100, b"a/2.jpg": b"y" * 2000})
    whole = path.read_bytes()
    leaf = max(at for at in range(0, len(whole), PAGE) if struct.unpack_from("<H", whole, at + 10) == (2,))
    one, two = (leaf + place for place in struct.unpack_from("<HH", whole, leaf + 16))
    for at, kind, value, told in [
        (leaf + 12, "H", 15, f"damaged at byte {leaf:,}"),
        (leaf + 12, "H", PAGE + 1, f"damaged at byte {leaf:,}"),
        (leaf + 16, "H", 4090, f"damaged at byte {leaf:,}"),
        (one, "H", 5000, f"damaged at byte {one:,}"),
        (one + 4, "H", 2, "holds databases of their own"),
        (two + 6, "H", 5000, "damaged at byte"),
        (two + 8 + 7, "Q", 1 << 50, "cut short"),
    ]:
        path.write_bytes(whole)
        assert told in message(change(path, at, kind, value)), (at, kind, value)


def test_a_branch_that_leads_in_a_circle(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "data.mdb", by_path(800))
    whole = path.read_bytes()
    (root,) = struct.unpack_from("<Q", whole, META + 24 + 48 + 40)
    (first,) = struct.unpack_from("<H", whole, root * PAGE + 16)
    told = message(change(path, root * PAGE + first, "H", root))
    assert told == f"{path}: damaged at byte {root * PAGE:,}; copy it again"


def test_cut_short(tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "data.mdb", by_path())
    whole = path.read_bytes()
    for size in (1, 100, PAGE - 1, PAGE, PAGE + 100, 2 * PAGE, len(whole) - PAGE):
        assert "cut short" in message(put(path, whole[:size])), size


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12 * PAGE - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_database_is_read_or_refused(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    whole = bytearray(write_lmdb(tmp_path / "a.mdb", by_path(20)).read_bytes())
    for place, value in changes:
        whole[place % len(whole)] = value
    path = put(tmp_path / "b.mdb", bytes(whole))
    try:
        index = read_index(path)
    except DataError:
        return
    for i in range(len(index)):
        assert len(index.read(i)) == index.size(i)


def test_a_database_that_lmdb_itself_wrote(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    chance, expected = random.Random(0), {}
    with lmdb.open(str(tmp_path / "a"), map_size=1 << 28) as database:
        with database.begin(write=True) as writing:
            for n in range(2000):
                name, data = f"p{n % 7}/{n:05d}.jpg", chance.randbytes(chance.choice([0, 9, 500, 2000, 9000]))
                writing.put(name.encode(), data)
                expected[name] = (f"p{n % 7}", data)
        with database.begin(write=True) as writing:
            for name in list(expected)[::3]:
                writing.delete(name.encode())
                del expected[name]
    assert contents(tmp_path / "a") == expected
    write_lmdb(tmp_path / "ours.mdb", by_path(800))
    ours = lmdb.open(str(tmp_path / "ours.mdb"), subdir=False, readonly=True, lock=False)
    with ours, ours.begin() as reading:
        assert dict(reading.cursor()) == by_path(800)
