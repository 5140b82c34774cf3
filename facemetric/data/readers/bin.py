"""InsightFace's verification sets (`lfw.bin`, `agedb_30.bin`, ...): where their images lie and who is one person.

Such a file is a Python pickle of (images, same), images 2i and 2i + 1 being pair i. It is not run: `pickle_layout.py`
says where its images lie.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from facemetric.data.pickle_layout import Array, Machine, Range
from facemetric.errors import DataError


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
