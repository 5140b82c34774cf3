"""InsightFace's verification sets (`lfw.bin`, `agedb_30.bin`, ...): where their images lie, and who is one person.

Such a file is a Python pickle of (images, same), images 2i and 2i + 1 being pair i. It is not run: `pickletools`
names its opcodes one by one, and a stack of plain values follows the harmless ones of them. Images stay where they
are, as byte ranges.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import pickletools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from facemetric.data.readers.reader import RangeReader, Row
from facemetric.data.readers.skips import Skips
from facemetric.errors import DataError, plural

MOST_STEPS = 4_000_000  # opcodes: about three an image, so a million images; real sets have 14,000
SHORT = 128  # bytes that are kept of what is no image: names, single numbers


class Range(NamedTuple):
    """Bytes [offset, offset + size) of the file; `short` holds them where they are few."""

    offset: int
    size: int
    short: bytes = b""


class Text(NamedTuple):
    """A text; `encoded` where it means bytes, as protocol 2 of Python 3 writes them."""

    text: str
    encoded: bool = False


class Name(NamedTuple):
    """A function or class that the pickle names."""

    module: str
    name: str


class Dtype(NamedTuple):
    code: str


class Array:
    """A flat numpy array of single bytes, once its state has come."""

    def __init__(self, code: str = "", data: Range | Text | None = None) -> None:
        self.code, self.data = code, data


MARK = object()
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
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": (), "MARK": MARK}
BYTES = {"BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
TEXTS = {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
NUMBERS = {"INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1"}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS, GETS = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}


class Unknown(Exception):  # noqa: N818 (becomes a DataError with the file's name)
    """A name that no list of images needs."""


class Stack:
    """The values that the opcodes leave, and a memo. `end` is where the opcode's argument ends in the file."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, code: str, argument: Any, end: int) -> None:
        """Follow an opcode. ValueError, IndexError, ... where it does not fit; DataError where it is refused."""
        if code in VALUES:
            self.values.append(VALUES[code])
        elif code in NUMBERS:
            self.values.append(argument)
        elif code in BYTES:
            size = len(argument)
            short = argument if size <= SHORT else b""
            raw = short.encode("latin-1") if isinstance(short, str) else bytes(short)
            self.values.append(Range(end - size, size, raw))
        elif code in TEXTS:
            self.values.append(Text(argument))
        elif code in TUPLES:
            self.values.append(tuple(reversed([self.pop() for _ in range(TUPLES[code])])))
        elif code in PUTS:
            self.memo[argument] = self.values[-1]
        elif code in GETS:
            self.values.append(self.memo[argument])
        else:
            STEPS[code](self, argument)

    def pop(self) -> Any:
        value = self.values.pop()
        if value is MARK:
            raise ValueError
        return value

    def above_mark(self) -> list[Any]:
        """Take the values above the topmost mark, and the mark."""
        at = len(self.values) - 1 - self.values[::-1].index(MARK)
        found = self.values[at + 1 :]
        del self.values[at:]
        return found

    def extend(self, found: list[Any]) -> None:
        if not isinstance(self.values[-1], list):
            raise ValueError
        self.values[-1].extend(found)

    def name(self, module: str, name: str) -> None:
        if (module, name) not in KNOWN:
            raise Unknown(f"{module}.{name}")
        self.values.append(Name(module, name))

    def reduce(self) -> None:
        """A call of one of the known names."""
        arguments, called = self.pop(), self.pop()
        if not isinstance(called, Name) or not isinstance(arguments, tuple):
            raise ValueError
        if called.name == "encode":
            self.values.append(arguments[0]._replace(encoded=True))
        elif called.name == "dtype":
            self.values.append(Dtype(_short(arguments[0]).decode("ascii")))
        elif called.name == "scalar":
            code, raw = arguments[0].code, _short(arguments[1])
            if code not in ("b1", "i1", "u1", "i8", "i4") or len(raw) != int(code[1]):
                raise ValueError
            self.values.append(int.from_bytes(raw, "little"))
        elif called.name == "_reconstruct":
            self.values.append(Array())
        elif called.name == "_frombuffer":
            data, dtype, shape, *_ = arguments
            self.values.append(_array(dtype.code, shape, data))
        else:
            raise ValueError

    def build(self) -> None:
        """The state of an array; that of a dtype (byte order) does not matter for single bytes."""
        state, value = self.pop(), self.values[-1]
        if isinstance(value, Array):
            _, shape, dtype, _, data = state
            made = _array(dtype.code, shape, data)
            value.code, value.data = made.code, made.data
        elif not isinstance(value, Dtype):
            raise ValueError


STEPS: dict[str, Callable[[Stack, Any], object]] = {
    "PROTO": lambda stack, version: None,
    "FRAME": lambda stack, size: None,
    "POP": lambda stack, _: stack.pop(),
    "EMPTY_LIST": lambda stack, _: stack.values.append([]),
    "LIST": lambda stack, _: stack.values.append(stack.above_mark()),
    "TUPLE": lambda stack, _: stack.values.append(tuple(stack.above_mark())),
    "APPEND": lambda stack, _: stack.extend([stack.pop()]),
    "APPENDS": lambda stack, _: stack.extend(stack.above_mark()),
    "MEMOIZE": lambda stack, _: stack.memo.update({len(stack.memo): stack.values[-1]}),
    "GLOBAL": lambda stack, names: stack.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda stack, _: stack.name(*reversed([stack.pop().text, stack.pop().text])),
    "REDUCE": lambda stack, _: stack.reduce(),
    "BUILD": lambda stack, _: stack.build(),
}
FOLLOWED = {"STOP", *VALUES, *NUMBERS, *BYTES, *TEXTS, *TUPLES, *PUTS, *GETS, *STEPS}


def _short(value: Range | Text) -> bytes:
    """A short text or short bytes, which are Python 2's texts."""
    raw = value.text.encode("latin-1") if isinstance(value, Text) else value.short
    if not raw or len(raw) > SHORT:
        raise ValueError
    return raw


def _array(code: str, shape: Any, data: Any) -> Array:
    """A flat array of single bytes whose data lie in the file."""
    size = data.size if isinstance(data, Range) else len(data.text)
    if code not in ("b1", "u1", "i1") or len(shape) != 1 or size != shape[0]:
        raise ValueError
    return Array(code, data)


def read_value(where: str, file: mmap.mmap) -> Any:
    """What a pickle holds, images as ranges. DataError, with the place, where it is damaged or asks for more."""
    stack, opcodes = Stack(), pickletools.genops(file)  # type: ignore[arg-type]  # a map reads as a file does
    for _ in range(MOST_STEPS):
        at = file.tell()
        try:
            opcode, argument, _ = next(opcodes)
        except (ValueError, IndexError):
            if file.tell() == len(file):
                raise _cut_short(where, len(file)) from None
            raise _damaged(where, at) from None
        if opcode.name not in FOLLOWED:
            raise _refused(where, f"has the pickle opcode {opcode.name} at byte {at}")
        try:
            if opcode.name == "STOP":
                return stack.pop()
            stack.step(opcode.name, argument, file.tell())
        except Unknown as name:
            raise _refused(where, f"names {name}") from None
        except (LookupError, TypeError, ValueError, AttributeError):
            raise _damaged(where, at) from None
    raise _refused(where, f"has more than {MOST_STEPS:,} instructions")


def _refused(where: str, reason: str) -> DataError:
    return DataError(
        f"{where}: {reason}, which no list of images needs; it is not run, and the file is refused"
    )


def _damaged(where: str, at: int) -> DataError:
    return DataError(f"{where}: damaged at byte {at}; needed a verification set of InsightFace")


def _cut_short(where: str, size: int) -> DataError:
    return DataError(f"{where}: cut short at byte {size}; copy it again")


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


class BinReader(RangeReader):
    """The images are byte ranges of the pickle, named `person/image`."""

    identity_folders = False

    def scan(self, skips: Skips, *, loose: bool) -> Iterator[Row]:
        found = read_bin(self.path)
        for name, image in zip(found.names(), found.images, strict=True):
            yield Row(name.partition("/")[0], name, image.size, image.offset)


def read_bin(path: str | os.PathLike[str]) -> BinPairs:
    """The images and pairs of a `.bin`; images whose bytes are equal are one. DataError for anything else."""
    where = os.fspath(path)
    try:
        with open(where, "rb") as opened:
            if not os.fstat(opened.fileno()).st_size:  # which cannot be mapped
                raise _cut_short(where, 0)
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
                images, same = _checked(where, file, read_value(where, file))
                rows, unique = _unique(file, images)
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror})") from None
    return BinPairs(unique, rows[::2], rows[1::2], np.array(same, dtype=bool))


def _checked(where: str, file: mmap.mmap, found: Any) -> tuple[list[Range], list[bool]]:
    if not (isinstance(found, tuple | list) and len(found) == 2):
        raise DataError(f"{where}: is no pair of (images, same); needed a verification set of InsightFace")
    images, same = (_items(file, part) for part in found)
    if len(images) != 2 * len(same) or not same:
        raise DataError(
            f"{where}: {plural(len(images), 'image')} for {plural(len(same), 'pair')}; needed two for each pair, and "
            "one pair or more"
        )
    return [_image(where, number, image) for number, image in enumerate(images)], [
        _flag(where, value) for value in same
    ]


def _items(file: mmap.mmap, part: Any) -> list[Any]:
    """The entries of a list, a tuple or a flat array of bools."""
    if isinstance(part, Array) and part.code == "b1":
        data = part.data
        if isinstance(data, Text):
            return [ord(letter) for letter in data.text]
        return list(file[data.offset : data.offset + data.size]) if data else []
    return list(part) if isinstance(part, tuple | list) else []


def _image(where: str, number: int, image: Any) -> Range:
    place = image.data if isinstance(image, Array) and image.code in ("u1", "i1") else image
    if isinstance(place, Text):
        raise DataError(
            f"{where}: image {number} is written as text (protocol 2 of Python 3); "
            "write the file again with pickle's protocol 3 or higher"
        )
    if not isinstance(place, Range):
        raise DataError(f"{where}: image {number} is not bytes; needed encoded pictures (JPEG, PNG)")
    return place


def _flag(where: str, value: Any) -> bool:
    if isinstance(value, Range) and value.size == 1:
        value = value.short[0]
    if value not in (0, 1) or not isinstance(value, int):
        raise DataError(f"{where}: a pair is neither same nor different; needed True or False for each")
    return bool(value)


def _unique(file: mmap.mmap, images: list[Range]) -> tuple[np.ndarray, list[Range]]:
    """The row of each image among the different ones: sets repeat an image in every pair it is in."""
    row_of: dict[bytes, int] = {}
    rows: list[int] = []
    unique: list[Range] = []
    for place in images:
        data = file[place.offset : place.offset + place.size]
        row = row_of.setdefault(hashlib.blake2b(data, digest_size=16).digest(), len(unique))
        if row == len(unique):
            unique.append(place)
        rows.append(row)
    return np.array(rows, np.int64), unique
