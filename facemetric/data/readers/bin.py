"""InsightFace's verification sets (`lfw.bin`, `agedb_30.bin`, ...): where their images lie and who is one person.

Such a file is a Python pickle of (images, same), images 2i and 2i + 1 being pair i. It is not run: `pickle_layout.py`
says where its images lie.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from facemetric.errors import DataError

MOST_STEPS = 4_000_000  # instructions: about three an image, so a million images; real sets have 14,000


MOST_TEXT = 128  # bytes of a text or number that is looked into


class Range(NamedTuple):
    """Bytes [offset, offset + size) of the file; `coded`: Python 3 wrote them as text (protocol 2)."""

    offset: int
    size: int
    coded: bool = False


class Name(NamedTuple):
    """A function or class that the pickle names."""

    module: str
    name: str


class Dtype(NamedTuple):
    code: str


class Array:
    """A numpy array in the making."""

    code = ""
    shape: tuple[int, ...] = ()
    data: Any = None


class Mark:
    pass


MARK = Mark()


STOP = b"."


KNOWN = {
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


class Machine:
    """A stack, a memo, and the harmless instructions. What an instruction makes is a value of this module."""

    def __init__(self, where: str, file: BinaryIO, total: int) -> None:
        self.where, self.file, self.total, self.at = where, file, total, 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The value that the pickle stands for."""
        for _ in range(MOST_STEPS):
            place = self.at
            code = self.take(1)
            step = STEPS.get(code)
            if step is None and code != STOP:
                raise DataError(
                    f"{self.where}: instruction {code!r} at byte {place} is none that a list of images needs; "
                    "it is not run, and the file not read"
                )
            try:
                if step is None:
                    return self.pop()
                step(self)
            except DataError:
                raise
            except (IndexError, TypeError, ValueError, KeyError, AttributeError, struct.error):
                raise DataError(
                    f"{self.where}: damaged at byte {place}; needed a verification set of InsightFace"
                ) from None
        raise DataError(
            f"{self.where}: more than {MOST_STEPS:,} instructions; no list of images needs so many"
        )

    def take(self, size: int) -> bytes:
        """The next bytes, few of them."""
        if size > MOST_TEXT:
            raise ValueError
        data = self.file.read(size)
        if len(data) < size:
            raise DataError(f"{self.where}: cut short at byte {self.total}; copy it again")
        self.at += size
        return data

    def number(self, form: str) -> int:
        return int(struct.unpack("<" + form, self.take(struct.calcsize(form)))[0])

    def skip(self, size: int, coded: bool = False) -> Range:
        """Leave bytes where they are."""
        if size < 0 or self.at + size > self.total:
            raise DataError(f"{self.where}: cut short at byte {self.total}; copy it again")
        place = Range(self.at, size, coded)
        self.at += size
        self.file.seek(self.at)
        return place

    def line(self) -> str:
        data = self.file.readline(MOST_TEXT)
        if not data.endswith(b"\n"):
            raise ValueError
        self.at += len(data)
        return data[:-1].decode("ascii")

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is MARK:
            raise ValueError
        return value

    def since_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not MARK:
            at -= 1
            if at < 0:
                raise ValueError
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def extend(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise ValueError
        self.stack[-1].extend(values)

    def tuple_of(self, size: int) -> None:
        values = [self.pop() for _ in range(size)]
        self.push(tuple(reversed(values)))

    def text(self, value: Any) -> str:
        """A short text, or short bytes, which are Python 2's texts."""
        if not isinstance(value, Range) or value.size > MOST_TEXT:
            raise ValueError
        self.file.seek(value.offset)
        raw = self.file.read(value.size)
        self.file.seek(self.at)
        return raw.decode("utf-8" if value.coded else "latin-1")

    def name(self, module: str, name: str) -> None:
        if (module, name) not in KNOWN:
            raise DataError(
                f"{self.where}: names {module}.{name}, which no list of images needs; "
                "it is not run, and the file not read"
            )
        self.push(Name(module, name))

    def reduce(self) -> None:
        """A call, of one of the known names."""
        arguments, called = self.pop(), self.pop()
        if not isinstance(called, Name) or not isinstance(arguments, tuple):
            raise ValueError
        if called.name == "encode":
            self.push(arguments[0]._replace(coded=True))
        elif called.name == "dtype":
            self.push(Dtype(self.text(arguments[0])))
        elif called.name == "scalar":
            code, raw = arguments[0].code, self.text(arguments[1]).encode("latin-1")
            if code not in ("b1", "i1", "u1", "i8", "i4") or len(raw) != int(code[1]):
                raise ValueError
            self.push(int.from_bytes(raw, "little"))
        elif called.name == "_reconstruct":
            self.push(Array())
        elif called.name == "_frombuffer":
            self.push(_array(arguments[1].code, arguments[2], arguments[0]))
        else:
            raise ValueError

    def build(self) -> None:
        """The state of an array; that of a dtype says nothing new."""
        state, value = self.pop(), self.stack[-1]
        if isinstance(value, Array):
            _, shape, dtype, _, data = state
            made = _array(dtype.code, shape, data)
            value.code, value.shape, value.data = made.code, made.shape, made.data
        elif not isinstance(value, Dtype):
            raise ValueError


def _array(code: str, shape: Any, data: Any) -> Array:
    """A flat array of single bytes whose data lie in the file."""
    made = Array()
    made.code, made.shape, made.data = code, shape, data
    coded = isinstance(data, Range) and data.coded  # then its size is not known
    if code not in ("b1", "u1", "i1") or len(shape) != 1 or not (coded or data.size == shape[0]):
        raise ValueError
    return made


def _memoize(machine: Machine, key: int) -> None:
    machine.memo[key] = machine.stack[-1]


def _stack_global(machine: Machine) -> None:
    name, module = machine.text(machine.pop()), machine.text(machine.pop())
    machine.name(module, name)


def _decimal(machine: Machine) -> None:
    line = machine.line()
    machine.push({"00": False, "01": True}[line] if line in ("00", "01") else int(line.rstrip("L")))


STEPS: dict[bytes, Callable[[Machine], object]] = {
    b"\x80": lambda m: m.take(1),  # protocol
    b"\x95": lambda m: m.take(8),  # frame
    b"(": lambda m: m.push(MARK),
    b"0": lambda m: m.pop(),
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"I": _decimal,
    b"L": _decimal,
    b"J": lambda m: m.push(m.number("i")),
    b"K": lambda m: m.push(m.number("B")),
    b"M": lambda m: m.push(m.number("H")),
    b"\x8a": lambda m: m.push(int.from_bytes(m.take(m.number("B")), "little", signed=True)),
    b"T": lambda m: m.push(m.skip(m.number("i"))),
    b"U": lambda m: m.push(m.skip(m.number("B"))),
    b"B": lambda m: m.push(m.skip(m.number("I"))),
    b"C": lambda m: m.push(m.skip(m.number("B"))),
    b"\x8e": lambda m: m.push(m.skip(m.number("Q"))),
    b"\x96": lambda m: m.push(m.skip(m.number("Q"))),
    b"X": lambda m: m.push(m.skip(m.number("I"), coded=True)),
    b"\x8c": lambda m: m.push(m.skip(m.number("B"), coded=True)),
    b"\x8d": lambda m: m.push(m.skip(m.number("Q"), coded=True)),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m.since_mark()),
    b"a": lambda m: m.extend([m.pop()]),
    b"e": lambda m: m.extend(m.since_mark()),
    b")": lambda m: m.push(()),
    b"t": lambda m: m.push(tuple(m.since_mark())),
    b"\x85": lambda m: m.tuple_of(1),
    b"\x86": lambda m: m.tuple_of(2),
    b"\x87": lambda m: m.tuple_of(3),
    b"q": lambda m: _memoize(m, m.number("B")),
    b"r": lambda m: _memoize(m, m.number("I")),
    b"p": lambda m: _memoize(m, int(m.line())),
    b"\x94": lambda m: _memoize(m, len(m.memo)),
    b"h": lambda m: m.push(m.memo[m.number("B")]),
    b"j": lambda m: m.push(m.memo[m.number("I")]),
    b"g": lambda m: m.push(m.memo[int(m.line())]),
    b"c": lambda m: m.name(m.line(), m.line()),
    b"\x93": _stack_global,
    b"R": lambda m: m.reduce(),
    b"b": lambda m: m.build(),
}


class BinPairs(NamedTuple):
    """M different images and P pairs of them: `images` (M,), rows of both (P,), `same` bool (P,)."""

    images: list[Range]
    rows_a: np.ndarray
    rows_b: np.ndarray
    same: np.ndarray

    def names(self) -> list[str]:
        """What the index calls the images: `person/image`, people being what genuine pairs link."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        links = (np.ones(int(self.same.sum()), np.int8), (self.rows_a[self.same], self.rows_b[self.same]))
        count = len(self.images)
        person = connected_components(coo_array(links, shape=(count, count)), directed=False)[1]
        return [f"{person[row]:06d}/{row:06d}" for row in range(count)]


def read_bin(path: str | os.PathLike[str]) -> BinPairs:
    """The images and pairs of a `.bin`; images whose bytes are equal are one. DataError for anything else."""
    where = os.fspath(path)
    try:
        with open(where, "rb") as file:
            total = os.fstat(file.fileno()).st_size
            found = Machine(where, file, total).run()
            images, same = _checked(where, file, found)
            rows, unique = _without_doubles(file, images)
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror})") from None
    return BinPairs(unique, rows[::2], rows[1::2], np.array(same, dtype=bool))


def _checked(where: str, file: BinaryIO, found: Any) -> tuple[list[Range], list[bool]]:
    if not (isinstance(found, tuple | list) and len(found) == 2):
        raise DataError(f"{where}: is no pair of (images, same); needed a verification set of InsightFace")
    images, same = ([*_items(part)] for part in found)
    if len(images) != 2 * len(same) or not same:
        raise DataError(
            f"{where}: {len(images)} images for {len(same)} pairs; needed two a pair, of one or more"
        )
    flags = [_flag(where, file, value) for value in same]
    ranges = []
    for number, image in enumerate(images):
        place = image.data if isinstance(image, Array) and image.code in ("u1", "i1") else image
        if not isinstance(place, Range):
            raise DataError(f"{where}: image {number} is no bytes; needed encoded pictures (JPEG, PNG)")
        if place.coded:
            raise DataError(
                f"{where}: image {number} is written as text (protocol 2 of Python 3); "
                "write the file again with pickle's protocol 3 or higher"
            )
        ranges.append(place)
    return ranges, flags


def _items(part: Any) -> list[Any]:
    """The entries of a list, a tuple or a flat array of bools."""
    if isinstance(part, Array) and part.code == "b1" and isinstance(part.data, Range):
        return [Range(part.data.offset + i, 1, part.data.coded) for i in range(part.data.size)]
    return list(part) if isinstance(part, tuple | list) else []


def _flag(where: str, file: BinaryIO, value: Any) -> bool:
    if isinstance(value, Range) and value.size == 1:
        value = _raw(file, value)[0]
    if value not in (0, 1) or not isinstance(value, int):
        raise DataError(f"{where}: a pair is neither same nor different; needed True or False for each")
    return bool(value)


def _raw(file: BinaryIO, place: Range) -> bytes:
    file.seek(place.offset)
    raw = file.read(place.size)
    return raw.decode("utf-8", "replace").encode("latin-1", "replace") if place.coded else raw


def _without_doubles(file: BinaryIO, images: list[Range]) -> tuple[np.ndarray, list[Range]]:
    """The row of each image among the different ones: sets name an image anew in every pair it is in."""
    row_of: dict[bytes, int] = {}
    rows: list[int] = []
    unique: list[Range] = []
    for place in images:
        key = hashlib.blake2b(_raw(file, place), digest_size=16).digest()
        row = row_of.setdefault(key, len(unique))
        if row == len(unique):
            unique.append(place)
        rows.append(row)
    return np.array(rows, np.int64), unique
