"""LMDB databases of images: a walk over their pages that maps nothing and needs no package.

Two layouts are read: keys that are paths of images (`identity/image.jpg`), and `image-000000001` with its identity in
`label-000000001`. The values are the encoded images; they are byte ranges of `data.mdb`, read where they lie.
Values of other layouts (pickles, messages of a library of its own) are refused: their images are no ranges of bytes.

A page has 16 bytes of header (number, flags, end of the table, start of the nodes) and a table of u16 places of its
nodes. A leaf's node is size and flags, the key, and the value or the page on which it begins; a branch's node is a
page's number and a key. The two first pages say where the tree's root is; the younger whole one counts. LMDB locks
nothing here: a database that is written to meanwhile is one that was changed since it was indexed.
Source of the layout: mdb.c of OpenLDAP's liblmdb 0.9 (data version 1).
"""

from __future__ import annotations

import os
import re
import struct
from array import array
from collections.abc import Iterator
from typing import NamedTuple

from facemetric.data.readers import skips as kinds
from facemetric.data.readers.reader import Member, RangeReader, Row, identity_text, images_of
from facemetric.data.readers.skips import Skips, why_skip_file
from facemetric.errors import DataError

MAGIC = 0xBEEFC0DE
PAGE_HEADER = 16
BRANCH, LEAF = 0x01, 0x02  # flags of a page
ON_PAGES, NESTED, SEVERAL = (
    0x01,
    0x02,
    0x04,
)  # flags of a node: its value has pages of its own; is a tree; several
NO_PAGE = (1 << 64) - 1
NUMBERED = re.compile(rb"(image|label)-(\d{1,18})")
MOST_LABEL = 1024  # bytes of a label


class Value(NamedTuple):
    """A key and where its value lies; `short` holds a value of few bytes."""

    key: bytes
    size: int
    offset: int
    short: bytes


class LmdbReader(RangeReader):
    """The values of a database are byte ranges of its file."""

    may_be_shard = True
    other_uses = True
    not_images = frozenset(("lock.mdb",))
    identity_folders = False

    def scan(self, skips: Skips, *, loose: bool) -> Iterator[Row]:
        try:
            with open(self.path, "rb") as file:
                found = False
                for row in _rows(walk(self.path, file.fileno()), skips, loose=loose):
                    found = True
                    yield row
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from None
        if not found:
            raise DataError(
                f"{self.path}: no key of it is an image of an identity; needed are keys `identity/image.jpg`, or "
                "`image-000000001` with `label-000000001`"
            )


def _rows(values: Iterator[Value], skips: Skips, *, loose: bool) -> Iterator[Row]:
    numbers, sizes, offsets = array("q"), array("q"), array("q")  # of `image-N`
    labels: dict[int, str] = {}
    for value in values:
        if match := NUMBERED.fullmatch(value.key):
            number = int(match[2])
            if match[1] == b"image":
                numbers.append(number)
                sizes.append(value.size)
                offsets.append(value.offset)
            else:
                labels[number] = _label(value)
            continue
        name = value.key.decode("utf-8", "surrogateescape").lstrip("/")
        if why_skip_file(name.rpartition("/")[2]) is kinds.NO_IMAGE:
            skips.add(kinds.NO_IMAGE, name)
        else:
            yield from images_of([Member(name, value.size, value.offset)], skips, loose=loose)
    for number, size, offset in zip(numbers, sizes, offsets, strict=True):
        if label := labels.get(number, ""):
            yield Row(label, f"{label}/{number:09d}.jpg", size, offset)
        elif loose:
            yield Row("", f"{number:09d}.jpg", size, offset)
        else:
            skips.add(kinds.UNLABELLED, f"image-{number:09d}")


def _label(value: Value) -> str:
    try:
        return identity_text(value.short.decode("utf-8"))
    except UnicodeDecodeError:
        return ""


class Tree(NamedTuple):
    """Where a database begins: the size of a page, the root's number, and how many keys there are."""

    page: int
    root: int
    keys: int


def walk(path: str, fd: int) -> Iterator[Value]:
    """Every key of a database, in order. DataError where it is none, damaged, cut short, or holds databases."""
    total = os.fstat(fd).st_size
    tree = _tree(path, fd, total)
    seen = bytearray(total // tree.page + 1)
    waiting, found = [tree.root] if tree.root != NO_PAGE else [], 0
    while waiting:
        number = waiting.pop()
        if (number + 1) * tree.page > total:
            raise _cut(path, total)
        if seen[number]:
            raise _damaged(path, number * tree.page)
        seen[number] = 1
        at = number * tree.page
        page = os.pread(fd, tree.page, at)
        flags, lower = struct.unpack_from("<HH", page, 10)
        places = _places(path, page, at, lower)
        if flags & BRANCH:
            children = [struct.unpack_from("<HHH", page, place) for place in places]
            waiting += [low | middle << 16 | high << 32 for low, middle, high in reversed(children)]
        elif flags & LEAF:
            found += len(places)
            for place in places:
                yield _value(path, tree, total, page, at, place)
        else:
            raise _damaged(path, at)
    if found != tree.keys:
        raise DataError(f"{path}: damaged: {found:,} keys of {tree.keys:,} are there; copy it again")


def _tree(path: str, fd: int, total: int) -> Tree:
    """By the younger of the first two pages."""
    found: list[tuple[int, Tree]] = []
    page = 0
    for number in range(2):
        meta = os.pread(fd, PAGE_HEADER + 136, number * page)
        if len(meta) < PAGE_HEADER + 136:
            raise _cut(path, total) if total < 2 * 512 or found else _no_lmdb(path)
        magic, version = struct.unpack_from("<II", meta, PAGE_HEADER)
        if magic != MAGIC or version != 1:
            raise _no_lmdb(path) if not number else _damaged(path, number * page)
        (page,) = struct.unpack_from("<I", meta, PAGE_HEADER + 24)
        if not 512 <= page <= 65536 or page & (page - 1):
            raise _damaged(path, PAGE_HEADER)
        _, flags, _, _, _, _, keys, root = struct.unpack_from("<IHHQQQQQ", meta, PAGE_HEADER + 24 + 48)
        if flags & ~0x08:  # sorted otherwise, or several values a key
            raise DataError(f"{path}: keys have several values, or numbers for keys, which is not read")
        (transaction,) = struct.unpack_from("<Q", meta, PAGE_HEADER + 24 + 96 + 8)
        found.append((transaction, Tree(page, root, keys)))
    return max(found)[1]


def _places(path: str, page: bytes, at: int, lower: int) -> tuple[int, ...]:
    """Where the nodes of a page begin."""
    count = (lower - PAGE_HEADER) // 2
    if lower < PAGE_HEADER or lower > len(page):
        raise _damaged(path, at)
    places = struct.unpack_from(f"<{count}H", page, PAGE_HEADER)
    if places and (min(places) < lower or max(places) + 8 > len(page)):
        raise _damaged(path, at)
    return places


def _value(path: str, tree: Tree, total: int, page: bytes, at: int, place: int) -> Value:
    """The node of a leaf."""
    low, high, flags, length = struct.unpack_from("<HHHH", page, place)
    size, behind = low | high << 16, place + 8 + length
    key = page[place + 8 : behind]
    if flags & (NESTED | SEVERAL):
        raise DataError(
            f"{path}: holds databases of their own, which are not read; copy the one with images out"
        )
    if not flags & ON_PAGES:
        if behind + size > len(page):
            raise _damaged(path, at + place)
        return Value(key, size, at + behind, page[behind : behind + size][:MOST_LABEL])
    if behind + 8 > len(page):
        raise _damaged(path, at + place)
    (first,) = struct.unpack_from("<Q", page, behind)
    offset = first * tree.page + PAGE_HEADER
    if offset + size > total:
        raise _cut(path, total)
    return Value(key, size, offset, b"")


def _no_lmdb(path: str) -> DataError:
    return DataError(f"{path}: is no LMDB database; needed is its data.mdb")


def _damaged(path: str, at: int) -> DataError:
    return DataError(f"{path}: damaged at byte {at:,}; copy it again")


def _cut(path: str, total: int) -> DataError:
    return DataError(f"{path}: cut short at byte {total:,}; copy it again")
