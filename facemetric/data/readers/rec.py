"""InsightFace's training sets (faces_emore, glint360k, ...): `train.rec`, an MXNet RecordIO, and `train.idx`.

A record is `magic, kind and length (u32 each), content, zeros up to 4 bytes`; its content is a header (flag u32, label
f32, two ids u64), `flag` labels of f32 where that is above 0, and the image. A content that holds the magic number is
written in parts, kinds 1, 2.. and 3, which the magic number joins. A line of the `.idx` is `key<tab>byte`. Record 0 and
those behind the images have no image: they hold ranges of keys, of all images and of each identity's.

An image's identity is its own (first) label, a number, and its name `label/key.jpg`. mxnet is not needed.
Source of the layout: dmlc-core's recordio.h and MXNet's python/mxnet/recordio.py.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from facemetric.data.readers.reader import RangeReader, Row, StoredRow, check_unchanged, cut_since
from facemetric.data.readers.skips import Skips
from facemetric.errors import DataError

MAGIC = 0xCED7230A
JOINT = struct.pack("<I", MAGIC)
FRAME, HEADER = 8, 24  # bytes of magic and length; of flag, label and ids
WHOLE, FIRST, LAST = 0, 1, 3  # kinds of a record or part
MOST_LABELS = 1 << 16  # of a record; real ones have one, or one and a box and landmarks
CHUNK = 1 << 16  # records whose headers are read together
TEXT = 1 << 24  # bytes of an .idx that are read together
DIGITS = b"0123456789\t\n\r "


class RecReader(RangeReader):
    """The images are byte ranges of the file; of one in parts the offset is -1 - its record's place."""

    may_be_shard = True
    identity_folders = False

    def scan(self, skips: Skips, *, loose: bool) -> Iterator[Row]:
        where = self.path
        try:
            with open(where, "rb") as file:
                total = os.fstat(file.fileno()).st_size
                keys, starts = read_idx(where, total) or walk_rec(where, file.fileno(), total)
                yield from _rows(where, file.fileno(), total, keys, starts)
        except OSError as error:
            raise DataError(f"{where}: cannot be read ({error.strerror})") from None

    def open(self, row: StoredRow) -> bytes:
        if row.offset >= 0:
            return super().open(row)
        file = self._opened()
        check_unchanged(file.descriptor, self.path, self.stamp)
        try:
            content = read_record(self.path, file.descriptor, self.stamp.size, -1 - row.offset).content
        except DataError:
            raise cut_since(self.path) from None
        return content[HEADER + 4 * struct.unpack_from("<I", content)[0] :]


class Record(NamedTuple):
    """The content of a record, its parts joined, and where the next one begins."""

    content: bytes
    end: int


def read_record(path: str, fd: int, total: int, at: int, most: int = 1 << 30) -> Record:
    """The record that begins at a byte. DataError where none does, or it is cut short."""
    parts: list[bytes] = []
    while True:
        frame = os.pread(fd, FRAME, at)
        if len(frame) < FRAME:
            raise _cut(path, total, at)
        magic, word = struct.unpack("<II", frame)
        kind, size = word >> 29, word & (1 << 29) - 1
        if magic != MAGIC or (kind in (WHOLE, FIRST)) != (not parts) or kind > LAST:
            raise _no_record(path, at)
        if at + FRAME + size > total:
            raise _cut(path, total, at)
        parts.append(os.pread(fd, size, at + FRAME))
        at += FRAME + (size + 3) // 4 * 4
        if kind in (WHOLE, LAST):
            return Record(JOINT.join(parts), at)
        if sum(map(len, parts)) > most:
            raise DataError(f"{path}: a record near byte {at} has over {most:,} bytes; make the file again")


def walk_rec(path: str, fd: int, total: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys, from 0, and places of the records of a file without an .idx: each leads to the next."""
    starts, at, inside = [], 0, False
    while at < total:
        frame = os.pread(fd, FRAME, at)
        if len(frame) < FRAME:
            raise _cut(path, total, at)
        magic, word = struct.unpack("<II", frame)
        kind, size = word >> 29, word & (1 << 29) - 1
        if magic != MAGIC or (kind in (WHOLE, FIRST)) == inside or kind > LAST:
            raise _no_record(path, at)
        if not inside:
            starts.append(at)
        inside = kind not in (WHOLE, LAST)
        at += FRAME + (size + 3) // 4 * 4
    if at > total or inside or not starts:
        raise _cut(path, total, starts[-1] if starts else at)
    return np.arange(len(starts)), np.array(starts, np.int64)


def read_idx(rec: str, total: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Keys and places of the records by the `.idx` beside a file, in the file's order; None where there is none."""
    path = os.path.splitext(rec)[0] + ".idx"
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed by the with)
    except FileNotFoundError:
        return None
    parts, rest, line = [], b"", 0
    with file:
        while chunk := file.read(TEXT):
            text, newline, rest = (rest + chunk).rpartition(b"\n")
            parts.append(_pairs(path, text + newline, line))
            line += len(parts[-1])
    parts.append(_pairs(path, rest, line))
    keys, starts = np.concatenate(parts).T
    order = np.argsort(starts, kind="stable")
    keys, starts = keys[order], starts[order]
    if not len(keys):
        raise DataError(f"{path}: is empty; copy it again, or remove it: {rec} is then read without it")
    if starts[-1] + FRAME > total:
        raise DataError(
            f"{path}: key {keys[-1]} is at byte {starts[-1]:,}, and {rec} has {total:,}: it is cut short, or the "
            "two belong to different sets; copy both again"
        )
    twice = np.sort(keys)
    twice = twice[1:][twice[1:] == twice[:-1]]
    if len(twice) or (starts[1:] == starts[:-1]).any():
        shown = f"key {twice[0]}" if len(twice) else f"byte {starts[1:][starts[1:] == starts[:-1]][0]}"
        raise DataError(f"{path}: {shown} is there twice; copy it again, or remove it")
    return keys, starts


def _pairs(path: str, text: bytes, line: int) -> np.ndarray:
    """(lines, 2) int64 of some whole lines `key<tab>byte`; `line` of them come before."""
    numbers = np.zeros(0, np.int64)
    lines = text.count(b"\n") + bool(text and not text.endswith(b"\n"))
    fits = not text.translate(None, DIGITS)
    if fits and text.strip():
        numbers = np.fromstring(text.decode("ascii"), np.int64, sep=" ")
        fits = bool(
            ((numbers >= 0) & (numbers < np.iinfo(np.int64).max)).all()
        )  # too long ones are the largest
    if not fits or len(numbers) != 2 * lines:
        raise DataError(
            f"{path}: lines {line + 1}..{line + lines} are not all `key<tab>byte`; copy it again, or remove it"
        )
    return numbers.reshape(-1, 2)


def _rows(path: str, fd: int, total: int, keys: np.ndarray, starts: np.ndarray) -> Iterator[Row]:
    """The images: all records that have more than a header."""
    space = np.memmap(path, np.uint8, "r") if total >= FRAME + HEADER else np.zeros(0, np.uint8)
    columns = np.arange(FRAME + HEADER + 4)
    for first in range(0, len(keys), CHUNK):
        here = starts[first : first + CHUNK]
        places = np.minimum(here[:, None] + columns, max(len(space) - 1, 0))
        words = (space[places] if len(space) else np.zeros(places.shape, np.uint8)).view("<u4")
        size, kind = words[:, 1] & (1 << 29) - 1, words[:, 1] >> 29
        for n in np.flatnonzero((words[:, 0] != MAGIC) | (kind > FIRST))[:1].tolist():
            raise _no_record(path, int(here[n]))
        for n in np.flatnonzero(here + FRAME + size > total)[:1].tolist():
            raise _cut(path, total, int(here[n]))
        flag = words[:, 2].astype(np.int64)
        label = np.where(flag > 0, words[:, 8], words[:, 3]).astype(np.uint32).view("<f4")
        image = size.astype(np.int64) - HEADER - 4 * flag
        found = zip(
            *(a.tolist() for a in (keys[first : first + CHUNK], here, kind, image, flag, label)), strict=True
        )
        for key, start, part, bytes_, flags, identity in found:
            if part == FIRST:
                yield from _joined(path, fd, total, key, start)
            elif bytes_ < 0 or flags > MOST_LABELS:
                raise _no_record(path, start)
            elif bytes_:  # without: the ranges of identities
                yield _row(path, key, identity, bytes_, start + FRAME + HEADER + 4 * flags)


def _joined(path: str, fd: int, total: int, key: int, start: int) -> Iterator[Row]:
    """The image of a record in parts."""
    content = read_record(path, fd, total, start).content
    flag, label = struct.unpack_from("<If", content) if len(content) >= HEADER + 4 else (MOST_LABELS + 1, 0.0)
    size = len(content) - HEADER - 4 * flag
    if flag > MOST_LABELS or size < 0:
        raise _no_record(path, start)
    if flag:
        (label,) = struct.unpack_from("<f", content, HEADER)
    if size:
        yield _row(path, key, label, size, -1 - start)


def _row(path: str, key: int, label: float, size: int, offset: int) -> Row:
    if not (label >= 0 and label == label // 1 and label < 1e9):
        raise DataError(
            f"{path}: the label of record {key} is {label:g}; needed is a number of an identity, 0, 1, ..."
        )
    identity = str(int(label))
    return Row(identity, f"{identity}/{key:08d}.jpg", size, offset)


def _no_record(path: str, at: int) -> DataError:
    return DataError(
        f"{path}: no record of an InsightFace set begins at byte {at:,}: it is damaged, or the .idx beside it is of "
        "another file; copy both again"
    )


def _cut(path: str, total: int, at: int) -> DataError:
    return DataError(f"{path}: cut short at byte {total:,}, in the record at byte {at:,}; copy it again")
