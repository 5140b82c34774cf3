"""InsightFace's .rec and .idx: every way they are written is read in place; what is damaged is refused."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from large_pictures import as_folder, held, pictures
from large_sets import MAGIC, Picture, framed, header, write_rec
from source_files import contents, message

from facemetric.data.index import read_index
from facemetric.data.readers import rec


@pytest.mark.parametrize("options", [{}, {"ranges": False}, {"idx": False}, {"boxes": True}])
def test_the_images_of_a_set(tmp_path: Path, options: dict[str, bool]) -> None:
    images = pictures(first=0 if options == {"ranges": False} else 1)
    assert contents(write_rec(tmp_path / "train.rec", images, **options)) == held(images)


def test_the_index_is_that_of_the_folder(tmp_path: Path) -> None:
    images = pictures()
    index = read_index(write_rec(tmp_path / "train.rec", images))
    folder = read_index(as_folder(tmp_path / "folder", images))
    assert index.fingerprint == folder.fingerprint
    assert [index.read(i) for i in range(30)] == [folder.read(i) for i in range(30)]
    before = index.state_key
    os.utime(tmp_path / "train.rec", ns=(5, 5))
    assert read_index(tmp_path / "train.rec").state_key != before


def test_a_folder_as_it_is_handed_out(tmp_path: Path) -> None:
    images = pictures()
    write_rec(tmp_path / "train.rec", images)
    for name in ("property", "lfw.bin", "agedb_30.bin"):
        (tmp_path / name).write_bytes(b"10,112,112")
    assert contents(tmp_path) == held(images)


@pytest.mark.parametrize("idx", [True, False])
@pytest.mark.parametrize("boxes", [True, False])
def test_records_in_parts(tmp_path: Path, idx: bool, boxes: bool) -> None:
    """An image that holds the magic number itself, at its start, in a row, at its end and not on four bytes."""
    bodies = [MAGIC + b"abcd", b"abcd" + MAGIC * 3 + b"x", b"abcdabcd" + MAGIC, b"a" + MAGIC + b"bcd"]
    images = [Picture("7", f"{n:08d}.jpg", body) for n, body in enumerate(bodies, 1)]
    path = write_rec(tmp_path / "train.rec", images, idx=idx, boxes=boxes)
    assert [framed(header(1, 7.0) + body)[7] >> 5 for body in bodies] == [1, 1, 1, 0]
    assert contents(path) == held(images)
    index = read_index(path)
    assert [index.size(i) for i in range(4)] == list(map(len, bodies))


def test_a_record_in_parts_that_was_changed(tmp_path: Path) -> None:
    path = write_rec(tmp_path / "train.rec", [Picture("7", "1", b"abcd" + MAGIC), *pictures(2)])
    index = read_index(path)
    state, data = path.stat(), bytearray(path.read_bytes())
    at = data.index(b"abcd") + 4  # the second part
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="was changed since it was indexed"):
        index.read(index.find("7/00000001.jpg"))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(OSError, match="cut short since"):
        index.read(index.find("7/00000001.jpg"))


def test_an_idx_in_any_order_and_of_some_records(tmp_path: Path) -> None:
    images = pictures()
    path = write_rec(tmp_path / "train.rec", images)
    lines = (tmp_path / "train.idx").read_text().splitlines()
    (tmp_path / "train.idx").write_text("\r\n".join(lines[20:0:-1]))
    assert contents(path) == held(images[:20])


def test_chunks_of_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures()
    path = write_rec(tmp_path / "train.rec", images)
    monkeypatch.setattr(rec, "TEXT", 7)
    monkeypatch.setattr(rec, "CHUNK", 4)
    assert contents(path) == held(images)


def test_cut_short_at_every_byte(tmp_path: Path) -> None:
    images = [Picture("1", "1", b"x" * 9), Picture("2", "2", b"yyyy")]
    path = write_rec(tmp_path / "train.rec", images)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with_idx = message(path)
        assert "cut short" in with_idx, size
        assert "copy" in with_idx
    (tmp_path / "train.idx").unlink()
    begins = [at for at in range(len(whole)) if whole[at : at + 4] == MAGIC]
    for size in set(range(len(whole))) - set(begins):
        path.write_bytes(whole[:size])
        record = max(at for at in begins if at < size)
        assert f"cut short at byte {size:,}, in the record at byte {record:,}" in message(path), size


def test_an_idx_that_is_wrong(tmp_path: Path) -> None:
    path = write_rec(tmp_path / "train.rec", pictures())
    idx, size = tmp_path / "train.idx", path.stat().st_size
    text = idx.read_text()
    for wrong, told in {
        text + f"99\t{size}\n": f"key 99 is at byte {size:,}, and {path} has {size:,}: it is cut short, or",
        text + "99\t9999999999999999999999\n": "are not all `key<tab>byte`",
        text.replace("\t", " ", 1) + "7\n": "are not all `key<tab>byte`",
        text.replace("3\t", "three\t", 1): "lines 1..41 are not all `key<tab>byte`",
        "": "is empty; copy it again",
        text + text.splitlines()[4] + "\n": "key 4 is there twice",
        text + f"77\t{text.splitlines()[4].split()[1]}\n": "is there twice",
        text + "77\t13\n": "no record of an InsightFace set begins at byte 13",
    }.items():
        idx.write_text(wrong)
        assert told in message(path), wrong[-40:]


def test_what_is_no_record(tmp_path: Path) -> None:
    path = write_rec(tmp_path / "train.rec", pictures(), idx=False)
    whole = path.read_bytes()
    path.write_bytes(b"RIFF" + whole[4:])
    assert "no record of an InsightFace set begins at byte 0" in message(path)
    path.write_bytes(b"")
    assert "cut short at byte 0" in message(path)
    content = [
        framed(header(0, 1.0) + b"image"),
        framed(b"short"),
        framed(struct.pack("<IfQQ", 1 << 30, 0, 0, 0)),
    ]
    for bad in (*content[1:], framed(struct.pack("<IfQQ", 2, 0, 0, 0) + b"abcd")):
        path.write_bytes(content[0] + bad)
        assert f"begins at byte {len(content[0])}" in message(path)


@pytest.mark.parametrize("label", [-1.0, 0.5, float("nan"), float("inf"), 2e9])
def test_labels_that_are_no_number_of_an_identity(tmp_path: Path, label: float) -> None:
    path = tmp_path / "train.rec"
    path.write_bytes(framed(header(0, 1.0) + b"image") + framed(header(1, label) + b"image"))
    assert f"the label of record 1 is {label:g}; needed is a number" in message(path)


def test_parts_out_of_order(tmp_path: Path) -> None:
    whole = framed(header(0, 1.0) + b"abcd" + MAGIC + b"efgh")
    second = whole.index(MAGIC, 4)
    path = tmp_path / "train.rec"
    path.write_bytes(whole[second:])
    assert "no record of an InsightFace set begins at byte 0" in message(path)
    path.write_bytes(whole[:second])
    assert "cut short" in message(path)
    path.write_bytes(whole[:second] + framed(header(0, 1.0) + b"image"))
    assert f"begins at byte {second}" in message(path)


def test_records_of_mxnet_with_nothing_in_them(tmp_path: Path) -> None:
    path = tmp_path / "train.rec"
    path.write_bytes(framed(header(0, 5.0)))
    assert "holds no image of an identity" in message(path)
