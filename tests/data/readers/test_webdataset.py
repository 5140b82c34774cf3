"""Shards of WebDataset: samples with a .cls or .json, patterns of shards, and plain tars that stay what they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from large_pictures import as_folder, held, pictures
from large_sets import Picture, write_webdataset
from source_files import contents, message, names, pack

from facemetric.data.index import read_index


@pytest.mark.parametrize("label", ["cls", "label", "identity", "class", "target"])
def test_the_images_of_a_shard(tmp_path: Path, label: str) -> None:
    images = pictures()
    path = write_webdataset(tmp_path / "a.tar", images, label=label)
    assert contents(path) == held(images)
    assert read_index(path).fingerprint == read_index(as_folder(tmp_path / "folder", images)).fingerprint


def test_a_number_in_json_and_text_in_cls(tmp_path: Path) -> None:
    members = {
        "1.jpg": b"a",
        "1.json": json.dumps({"label": 7, "caption": "x"}).encode(),
        "2.cls": b" Anna Lovelace\n",
        "2.left.jpg": b"b",
        "2.right.png": b"c",
        "deep/3.jpg": b"d",
        "deep/3.cls": b"7",
        "7/4.jpg": b"e",
        "7/4.cls": b"7",
        "5.cls": b"8",
        "5.json": b'{"label": 9}',
        "5.jpg": b"f",
        "5.txt": b"a caption",
    }
    assert contents(pack(tmp_path / "a.tar", members)) == {
        "7/1.jpg": ("7", b"a"),
        "Anna Lovelace/2.left.jpg": ("Anna Lovelace", b"b"),
        "Anna Lovelace/2.right.png": ("Anna Lovelace", b"c"),
        "7/deep/3.jpg": ("7", b"d"),
        "7/4.jpg": ("7", b"e"),
        "8/5.jpg": ("8", b"f"),
    }


def test_images_without_a_label_are_counted_or_loose(tmp_path: Path) -> None:
    members = {"1.jpg": b"a", "1.cls": b"7", "2.jpg": b"b", "3.jpg": b"c", "3.cls": b"-1", "4.cls": b"x/"}
    members |= {"4.jpg": b"d", "5.jpg": b"e", "5.cls": b"", "._6.jpg": b"f"}
    path = pack(tmp_path / "a.tar", members)
    index = read_index(path)
    assert names(index) == ["7/1.jpg"]
    assert index.notes == ("skipped 4 images without a label: 2.jpg, 3.jpg, 4.jpg, 5.jpg",)
    assert names(read_index(path, loose=True)) == ["2.jpg", "3.jpg", "4.jpg", "5.jpg", "7/1.jpg"]


def test_plain_tars_stay_plain(tmp_path: Path) -> None:
    """Notes beside the images of identity folders are no labels, and loose photographs have none to lose."""
    members = {"anna/1.jpg": b"a", "anna/1.json": b'{"label": 3}', "bob/1.jpg": b"b", "bob/1.txt": b"x"}
    index = read_index(pack(tmp_path / "a.tar", members))
    assert (names(index), index.identities) == (["anna/1.jpg", "bob/1.jpg"], ("anna", "bob"))
    assert index.notes == ("skipped 2 files that are no images: anna/1.json, bob/1.txt",)
    loose = pack(
        tmp_path / "b.tar", {"1.jpg": b"a", "1.jpg.json": b"{}", "2.jpg": b"b", "2.json": b'{"place": 1}'}
    )
    assert names(read_index(loose, loose=True)) == ["1.jpg", "2.jpg"]


def test_a_label_far_from_the_start_is_no_matter(tmp_path: Path) -> None:
    """The kind is known by the first samples; the rest is read as they are."""
    images = pictures(300)
    assert contents(write_webdataset(tmp_path / "a.tar", images)) == held(images)


def test_several_shards(tmp_path: Path) -> None:
    images = pictures(40)
    for n in range(4):
        write_webdataset(tmp_path / f"faces-{n:06d}.tar", images[10 * n : 10 * n + 10])
    whole = held(images)
    assert contents(tmp_path) == whole
    pattern = f"{tmp_path}/faces-{{000000..000003}}.tar"
    assert contents(pattern) == whole
    assert contents(f"{tmp_path}/faces-00000{{0,1,2,3}}.tar") == whole
    assert contents(f"{tmp_path}/{{faces,faces}}-{{000000..000003}}.tar") == whole
    assert contents(f"{tmp_path}/faces-00000{{0..1}}.tar") == held(images[:20])
    named = read_index([f"w={pattern}", f"v={tmp_path}/faces-000000.tar"])
    assert {name.partition("/")[0] for name in named.identities} == {"w", "v"}
    unnamed = read_index([pattern.replace("3}", "2}"), str(tmp_path / "faces-000003.tar")])
    assert {name.partition("/")[0] for name in unnamed.identities} == {"faces", "faces-000003"}


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("faces-{000000..000002}.tar", "1 of 3 shards missing: "),
        ("faces-{1..x}.tar", "no range; needed is such as {000000..000123} or {a,b}"),
        ("faces-{5..1}.tar", "no range"),
        ("faces-{}.tar", "no range"),
        ("faces-{000000..999999}{0,1}.tar", "names over 1,000,000 files"),
        ("faces-{0..99999999}.tar", "no range"),
        ("faces-{000000,000001}.csv", "names files of the kind .csv; shards are .tar"),
        ("faces-{0.tar,1.rec}", "names files of the kind .rec, .tar"),
    ],
)
def test_patterns_that_cannot_be_read(tmp_path: Path, pattern: str, told: str) -> None:
    for n in range(2):
        write_webdataset(tmp_path / f"faces-{n:06d}.tar", pictures(3))
    assert told in message(f"{tmp_path}/{pattern}")


def test_a_file_whose_name_has_braces(tmp_path: Path) -> None:
    assert contents(write_webdataset(tmp_path / "a{1..2}.tar", pictures())) == held(pictures())


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("1.cls", b"\xff\xfe", "1.cls is no UTF-8 text"),
        ("1.json", b"{", "1.json is no JSON"),
        ("1.json", b"[" * 100_000, "1.json is no JSON"),
        ("1.cls", b"7" * (1 << 20) + b"7", "1.cls has 1,048,577 bytes, which no label needs"),
    ],
)
def test_labels_that_cannot_be_read(tmp_path: Path, name: str, data: bytes, told: str) -> None:
    assert told in message(pack(tmp_path / "a.tar", {"1.jpg": b"x", name: data}))


@pytest.mark.parametrize(
    "label", [b"null", b"[1]", b'{"label": null}', b'{"label": true}', b'{"label": [1]}']
)
def test_labels_that_name_nobody(tmp_path: Path, label: bytes) -> None:
    path = pack(tmp_path / "a.tar", {"1.jpg": b"x", "1.json": label})
    assert "holds no image of an identity (skipped 1 image without a label)" in message(path)


def test_a_shard_that_webdataset_itself_wrote(tmp_path: Path) -> None:
    writer = pytest.importorskip("webdataset")
    images = [Picture(str(n % 3), f"{n:06d}.jpg", bytes([n] * n)) for n in range(1, 9)]
    with writer.TarWriter(str(tmp_path / "a.tar")) as tar:
        for n, image in enumerate(images):
            tar.write({"__key__": image.name[:6], "jpg": image.data, "cls": n % 3 + 10, "json": {"n": n}})
    expected = {f"{n % 3 + 10}/{image.name}": (str(n % 3 + 10), image.data) for n, image in enumerate(images)}
    assert contents(tmp_path / "a.tar") == expected
