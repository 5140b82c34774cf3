"""The index: folders, csv files and tars, good and bad."""

from __future__ import annotations

import csv
import io
import os
import pickle
import sys
import tarfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from child_processes import fork
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from facemetric.data import store
from facemetric.data.index import ImageIndex, index_files, parse_source, read_index
from facemetric.data.store import Rows, SourceFile, Store
from facemetric.errors import DataError

PEOPLE = {"anna": ["a.jpg", "b.png"], "bob": ["c.jpeg"], "carl": ["deep/er/d.webp", "e.bmp"]}


def fill(root: Path, people: dict[str, list[str]]) -> Path:
    """A folder of files whose bytes are their names."""
    for identity, images in people.items():
        for image in images:
            path = root / identity / image
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{identity}/{image}".encode())
    return root


def pack(path: Path, members: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def pack_people(path: Path, people: dict[str, list[str]] = PEOPLE) -> Path:
    return pack(path, {f"{i}/{m}": f"{i}/{m}".encode() for i, images in people.items() for m in images})


def names(index: ImageIndex) -> list[str]:
    return [index.name(i) for i in range(len(index))]


def holds_its_name(index: ImageIndex, prefix: str = "") -> bool:
    return all(prefix + index.read(i).decode() == index.name(i) for i in range(len(index)))


# ---- what is read ----


def test_folder(tmp_path: Path) -> None:
    index = read_index(fill(tmp_path, PEOPLE))
    assert index.identities == ("anna", "bob", "carl")
    assert names(index) == ["anna/a.jpg", "anna/b.png", "bob/c.jpeg", "carl/deep/er/d.webp", "carl/e.bmp"]
    assert index.identity.tolist() == [0, 0, 1, 2, 2]
    assert index.counts().tolist() == [2, 1, 2]
    assert holds_its_name(index)
    assert index.location(3) == (str(tmp_path / "carl/deep/er/d.webp"), 0, 19)


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
    assert index.notes == ("column 'hash' has over 1,000 values: it is no group",)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tar_agrees_with_tarfile(tmp_path: Path, form: int) -> None:
    long = "n" * 90 + "/" + "m" * 90 + ".jpg"
    members = {"./anna/a.jpg": b"x" * 511, "anna//b.jpg": b"", "anna/c.jpg": b"y" * 512, long: b"z" * 513}
    if form != tarfile.USTAR_FORMAT:
        members["ünï/" + "ö" * 200 + ".jpg"] = b"long and not ascii"
    index = read_index(pack(tmp_path / "a.tar", members, form))
    with tarfile.open(tmp_path / "a.tar") as tar:
        expected = {m.name.replace("./", "").replace("//", "/"): (m.offset_data, m.size) for m in tar}
    assert {index.name(i): tuple(index.location(i)[1:]) for i in range(len(index))} == expected
    assert all(index.read(index.find(n)) == members.get(n, index.read(index.find(n))) for n in expected)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(
        st.text(
            st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=120
        ),
        st.binary(max_size=1500),
        min_size=1,
        max_size=8,
    ),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_tar_of_any_names(tmp_path: Path, found: dict[str, bytes], form: int) -> None:
    members = {f"{name.strip('.') or 'x'}/i{n}.jpg": data for n, (name, data) in enumerate(found.items())}
    index = read_index(pack(tmp_path / "any.tar", members, form))
    assert {index.name(i): index.read(i) for i in range(len(index))} == members


def test_shards_share_identities(tmp_path: Path) -> None:
    pack_people(tmp_path / "0.tar", {"anna": ["a.jpg"], "bob": ["b.jpg"]})
    pack_people(tmp_path / "1.tar", {"anna": ["c.jpg"]})
    index = read_index(tmp_path)
    assert names(index) == ["anna/a.jpg", "anna/c.jpg", "bob/b.jpg"]
    assert holds_its_name(index)
    assert names(read_index([f"s={tmp_path}/0.tar", f"s={tmp_path}/1.tar"])) == [
        f"s/{n}" for n in names(index)
    ]


def test_many_shards_keep_few_files_open(tmp_path: Path) -> None:
    for n in range(80):
        pack(tmp_path / f"{n:02}.tar", {f"p/{n}.jpg": b"%d" % n})
    index = read_index(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    assert sorted(int(index.read(i)) for i in range(80)) == list(range(80))
    assert 60 <= len(os.listdir("/proc/self/fd")) - before <= 65
    del index
    assert len(os.listdir("/proc/self/fd")) <= before


def test_threads_never_read_a_tar_that_another_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that has found the first tar waits while others read enough of them to have it closed, and its
    number given to another file; all have one size and one time of change, as a download may leave them."""
    for n in range(9):
        os.utime(pack(tmp_path / f"{n}.tar", {f"p/{n}.jpg": b"%d" % n}), (1e9, 1e9))
    index = read_index(tmp_path)
    monkeypatch.setattr(store, "OPEN_FILES", 4)
    check = store._same_file
    waiting = iter([True])

    def wait(*args: object) -> None:
        if next(waiting, False):
            with ThreadPoolExecutor(4) as pool:
                assert list(pool.map(index.read, range(1, 9))) == [b"%d" % n for n in range(1, 9)]
        check(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "_same_file", wait)
    assert index.read(0) == b"0"


def test_threads_and_forks_read_many_tars_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(40):
        os.utime(pack(tmp_path / f"{n:02}.tar", {f"p/{n}.jpg": b"%02d" % n}), (1e9, 1e9))
    index = read_index(tmp_path)
    wanted = {i: index.name(i)[2:-4].zfill(2).encode() for i in range(40)}
    monkeypatch.setattr(store, "OPEN_FILES", 3)
    before = len(os.listdir("/proc/self/fd"))

    def read(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, 40, 800).tolist():
            assert index.read(i) == wanted[i]

    def many() -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read, range(8)))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        many()
        child = fork(many)  # has the tars that are open here
        many()
        assert os.waitpid(child, 0)[1] == 0
    finally:
        sys.setswitchinterval(interval)
    assert len(os.listdir("/proc/self/fd")) - before <= 3 + 8


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
    with pytest.raises(DataError, match="stands in both"):
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


def test_listed_files(tmp_path: Path) -> None:
    root = fill(tmp_path, PEOPLE)
    index = index_files(["bob/c.jpeg", "anna/b.png", "anna/../anna/a.jpg", "bob/c.jpeg"], root)
    assert names(index) == ["anna/b.png", "anna/../anna/a.jpg", "bob/c.jpeg"]
    assert index.identities == ("anna", "anna/../anna", "bob")
    assert index.read(1) == b"anna/a.jpg"
    plain = index_files([root / "bob/c.jpeg"])
    assert plain.find(str(root / "bob/c.jpeg")) == 0
    assert plain.identities == (str(root / "bob"),)
    with pytest.raises(DataError, match=r"2 paths are no files below .*: x.jpg, y.jpg"):
        index_files(["x.jpg", "bob/c.jpeg", "y.jpg"], root)


# ---- look-ups and parts ----


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
    rows = Rows(files=[SourceFile("/data", False, "s/", 0, 0)])
    for path in ("/a.jpg", "b.jpg", "/c/d.jpg", "e/f.jpg"):
        rows.add("p", path, 0, 1, 0)
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


def test_memory_of_an_image() -> None:
    """Below 200 bytes an image, look-up by name and transients included, at 50,000 images."""
    rows = Rows(files=[SourceFile("x.tar", True, "src/", 0, 0)])
    tracemalloc.start()
    try:
        for i in range(5_000):
            for k in range(10):
                rows.add(f"person_{i:06}", f"person_{i:06}/image_{k:04}.jpg", 512 * i, 4000, 0)
        from facemetric.data.index import _in_order

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
