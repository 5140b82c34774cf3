"""InsightFace's .bin: every way such files are written is read, and nothing that a hostile one asks for is done."""

from __future__ import annotations

import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from facemetric.data.images import decode
from facemetric.data.index import read_index
from facemetric.data.pair_images import resolve
from facemetric.data.pairs import read_pairs
from facemetric.data.readers import bin as bin_reader
from facemetric.data.readers.bin import read_bin
from facemetric.errors import DataError


def picture(number: int) -> bytes:
    out = io.BytesIO()
    grey = np.random.default_rng(number).integers(256, size=(20, 20, 3), dtype=np.uint8)
    Image.fromarray(grey).save(out, "jpeg")
    return out.getvalue()


PICTURES = [picture(n) for n in (0, 1, 2, 0, 1, 4, 5, 5)]  # 0 and 1 stand twice, 5 is a pair with itself
SAME = [True, False, False, True]


class Python2(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, and long ones with their four-byte length."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, text: bytes) -> None:
        short = len(text) < 256
        self.write(b"U" + bytes([len(text)]) if short else b"T" + struct.pack("<i", len(text)))
        self.write(text)
        self.memoize(text)

    dispatch[bytes] = save_string


def python_2(value: Any, protocol: int) -> bytes:
    out = io.BytesIO()
    Python2(out, protocol).dump(value)
    return out.getvalue()


def arrays(pictures: list[bytes]) -> list[np.ndarray]:
    return [np.frombuffer(p, np.uint8).copy() for p in pictures]


FORMS = {
    **{f"protocol {p}": pickle.dumps((PICTURES, SAME), p) for p in (3, 4, 5)},
    "a list of two": pickle.dumps([PICTURES, tuple(SAME)], 4),
    "zeros and ones": pickle.dumps((PICTURES, [1, 0, 0, 1]), 4),
    "python 2": python_2((PICTURES, SAME), 2),
    "python 2, protocol 1": python_2((PICTURES, SAME), 1),
    "python 2, numpy bools": python_2((PICTURES, [np.bool_(s) for s in SAME]), 2),
    **{f"arrays, {p}": pickle.dumps((arrays(PICTURES), SAME), p) for p in (3, 4, 5)},
    **{f"numpy bools, {p}": pickle.dumps((PICTURES, [np.bool_(s) for s in SAME]), p) for p in (3, 4, 5)},
    **{f"array of bools, {p}": pickle.dumps((PICTURES, np.array(SAME)), p) for p in (3, 4, 5)},
    "flags of one byte": pickle.dumps((PICTURES, [bytes([s]) for s in SAME]), 4),
    "numpy integers": pickle.dumps((PICTURES, [np.int64(s) for s in SAME]), 4),
    "old numpy": pickle.dumps((arrays(PICTURES), np.array(SAME)), 3).replace(b"numpy._core", b"numpy.core"),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_way_to_write_it(tmp_path: Path, form: str) -> None:
    file = tmp_path / "lfw.bin"
    file.write_bytes(FORMS[form])
    found = read_bin(file)
    data = file.read_bytes()
    assert found.same.tolist() == SAME
    for kind, rows in (("first", found.rows_a), ("second", found.rows_b)):
        expected = PICTURES[0 if kind == "first" else 1 :: 2]
        assert [data[p.offset : p.offset + p.size] for p in (found.images[r] for r in rows)] == expected
    assert len(found.images) == len(set(PICTURES)) == 5


def test_as_pairs_and_index(tmp_path: Path) -> None:
    file = tmp_path / "lfw.bin"
    file.write_bytes(FORMS["protocol 4"])
    pairs, index = read_pairs(file), read_index(file)
    assert pairs.holds_images
    rows_a, rows_b = resolve(pairs, index)
    assert pairs.same.tolist() == SAME
    assert [index.read(i) for i in rows_a] == PICTURES[::2]
    assert [index.read(i) for i in rows_b] == PICTURES[1::2]
    assert decode(index.read(0)).size == (20, 20)
    # Images 0 and 1 are one person by the first pair; 2, 4 and 5 are others.
    assert index.counts().tolist() == [2, 1, 1, 1]
    assert ((index.identity[rows_a] == index.identity[rows_b]) == SAME).all()


def test_folds_are_tenths_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "lfw.bin").write_bytes(pickle.dumps((PICTURES * 23, SAME * 23), 4))
    fold = read_pairs(tmp_path / "lfw.bin").fold
    assert fold is not None
    assert np.bincount(fold).tolist() == [10, 10, 9, 9, 9, 9, 9, 9, 9, 9]
    assert (np.diff(fold) >= 0).all()
    (tmp_path / "few.bin").write_bytes(FORMS["protocol 4"])
    assert read_pairs(tmp_path / "few.bin").fold is None


def test_images_as_text_say_how_to_write_them(tmp_path: Path) -> None:
    for same in (SAME, np.array(SAME)):
        (tmp_path / "a.bin").write_bytes(pickle.dumps((PICTURES, same), 2))
        with pytest.raises(DataError, match=r"image 0 is written as text .* protocol 3 or higher"):
            read_bin(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((PICTURES, SAME[:3]), "8 images for 3 pairs"),
        (([], []), "0 images for 0 pairs"),
        ((PICTURES,), r"no pair of \(images, same\)"),
        (PICTURES, r"no pair of \(images, same\)"),
        (7, r"no pair of \(images, same\)"),
        ((PICTURES, [True, False, 2, True]), "neither same nor different"),
        ((PICTURES, [True, False, None, True]), "neither same nor different"),
        (([1] * 8, SAME), "image 0 is not bytes"),
        (([[p] for p in PICTURES], SAME), "image 0 is not bytes"),
        (
            (PICTURES, {"a": 1}),
            "pickle opcode EMPTY_DICT at byte .*, which no list of images needs; it is not run",
        ),
        (([np.zeros((2, 2), np.uint8)] * 8, SAME), "damaged at byte"),
        (([np.zeros(3)] * 8, SAME), "damaged at byte"),
        ((PICTURES, np.array([1.0, 0, 0, 1])), "damaged at byte"),
    ],
)
def test_other_pickles(tmp_path: Path, value: Any, message: str) -> None:
    (tmp_path / "a.bin").write_bytes(pickle.dumps(value, 4))
    with pytest.raises(DataError, match=message):
        read_bin(tmp_path / "a.bin")


class Runs:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


HOSTILE = {
    "a command": Runs(os.system, "touch {out}"),
    "a folder": Runs(os.mkdir, "{out}"),
    "eval": Runs(eval, "__import__('os').mkdir('{out}')"),
    "getattr": Runs(getattr, "", "join"),
    "numpy's load": Runs(np.load, "{out}"),
    "a file": Runs(open, "{out}", "w"),
    "an object": Path("x"),
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_pickle_runs_nothing(tmp_path: Path, what: str, protocol: int) -> None:
    target = tmp_path / "made"
    thing = HOSTILE[what]
    if isinstance(thing, Runs):
        function, arguments = thing.call
        thing = Runs(function, *(a.format(out=target) if isinstance(a, str) else a for a in arguments))
    for value in ((PICTURES, thing), ([thing, *PICTURES[1:]], SAME), thing):
        (tmp_path / "a.bin").write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(DataError, match=r"it is not run|damaged"):
            read_bin(tmp_path / "a.bin")
    assert not target.exists()


def test_names_are_refused_before_they_are_used(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"cos\nsystem\n.")
    with pytest.raises(DataError, match=r"names os\.system, which no list of images needs"):
        read_bin(tmp_path / "a.bin")
    # A call of a known name with a list in the place of its arguments, and of something that is no name.
    for body in (b"cnumpy\ndtype\n]R.", b"K\x01)R.", b"cnumpy\nndarray\n)R.", b"]}b."):
        (tmp_path / "a.bin").write_bytes(b"\x80\x02" + body)
        with pytest.raises(DataError, match=r"damaged|no list of images needs"):
            read_bin(tmp_path / "a.bin")


@pytest.mark.parametrize(
    "bomb",
    [
        b"\x80\x04" + b"(" * 5000,
        b"\x80\x04" + b"]\x94" + b"h\x00a" * 3000,  # a list in itself, again and again
        b"\x80\x04B\xff\xff\xff\xff" + b"x" * 100,  # 4 GiB that are not there
        b"\x80\x04\x8e" + b"\xff" * 8,
        b"\x80\x04\x8a\xff" + b"\x7f" * 254,
        b"\x80\x04I" + b"9" * 100_000 + b"\n.",
        b"\x80\x02c" + b"a" * 100_000,
        b"\x80\x02T\xff\xff\xff\xff",  # a negative length
        b"\x80\x02.",  # nothing
        b"\x80\x02(.",
    ],
)
def test_bombs(tmp_path: Path, bomb: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bin_reader, "MOST_STEPS", 2000)
    (tmp_path / "a.bin").write_bytes(bomb)
    with pytest.raises(DataError, match=r"more than 2,000 instructions|cut short|damaged"):
        read_bin(tmp_path / "a.bin")


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(sorted(FORMS)), st.data())
def test_damage_is_an_error_or_another_list(tmp_path_factory: Any, form: str, data: Any) -> None:
    raw = bytearray(FORMS[form])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] = data.draw(st.integers(0, 255))
    del raw[data.draw(st.integers(len(raw) // 2, len(raw))) :]
    file = tmp_path_factory.getbasetemp() / "damaged.bin"
    file.write_bytes(raw)
    try:
        found = read_bin(file)
    except DataError:
        return
    assert 2 * len(found.same) == len(found.rows_a) + len(found.rows_b)
    assert all(0 <= p.offset <= p.offset + p.size <= len(raw) for p in found.images)


def test_missing_and_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_bin(tmp_path / "a.bin")
    (tmp_path / "a.bin").write_bytes(b"")
    with pytest.raises(DataError, match="cut short at byte 0"):
        read_bin(tmp_path / "a.bin")
    with pytest.raises(DataError, match="no such file or folder"):
        read_index(tmp_path / "b.bin")


@pytest.mark.parametrize(
    ("body", "at"),
    [
        (b"Nt.", 3),  # a tuple of what lies above a mark that is not there
        (b"NNa.", 4),  # something put at the end of what is no list
        (b"N(Ne.", 5),
        (b"NN\x93.", 4),  # a name that is no text
        (b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n\x8c\x02u4\x85RC\x04abcd\x86R.", 58),
        (b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n\x8c\x02i8\x85RC\x04abcd\x86R.", 58),
        (b"N]b.", 4),  # a state for what has none
        (b"cnumpy\ndtype\n\x8c\x00\x85R.", 18),  # a dtype without a code
    ],
)
def test_instructions_that_do_not_fit(tmp_path: Path, body: bytes, at: int) -> None:
    (tmp_path / "a.bin").write_bytes(b"\x80\x02" + body)
    with pytest.raises(DataError, match=f"damaged at byte {at};"):
        read_bin(tmp_path / "a.bin")
