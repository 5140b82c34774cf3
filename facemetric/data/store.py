"""What an index holds of its images: numpy columns and packed names, about 70 bytes an image."""

from __future__ import annotations

import errno
import os
import unicodedata
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

OPEN_FILES = 64  # tars kept open at once, beside those being read
TICK = 4096  # images between two steps of the progress bar
MOST_VALUES = 1000  # of a group's column
EXAMPLES = 5  # of what is passed over, named


def composed(text: str) -> str:
    """Text with its letters and their accents in one (Unicode's NFC): macOS may write names with them apart."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class SourceFile(NamedTuple):
    """A tar, or the root below which images lie as files of their own."""

    path: str
    is_tar: bool
    prefix: str  # what names have in front of the path below the root
    size: int
    mtime: int  # ns


class Location(NamedTuple):
    """The bytes [offset, offset + size) of a file."""

    file: str
    offset: int
    size: int


class Packed:
    """Many short strings in one buffer: (count + 1) offsets and their UTF-8 bytes."""

    def __init__(self, data: bytes, ends: np.ndarray) -> None:
        self.data = data
        self.bounds = np.concatenate([np.zeros(1, np.int64), ends])

    def __getitem__(self, i: int) -> str:
        return self.data[self.bounds[i] : self.bounds[i + 1]].decode("utf-8", "surrogateescape")


@dataclass
class Column:
    """Texts of rows, few different ones; a row that has none has ""."""

    values: dict[str, int] = field(default_factory=lambda: {"": 0})
    codes: array = field(default_factory=lambda: array("i"))

    @property
    def many(self) -> bool:
        """Whether it has too many values to be a group: file names, boxes."""
        return len(self.values) > MOST_VALUES

    def set(self, row: int, text: str) -> None:
        if self.many:
            return
        self.codes.extend([0] * (row + 1 - len(self.codes)))
        self.codes[row] = self.values.setdefault(text, len(self.values))


@dataclass
class Rows:
    """Rows as they are found, in growing machine arrays."""

    files: list[SourceFile] = field(default_factory=list)
    identities: dict[str, int] = field(default_factory=dict)
    folders: dict[str, int] = field(default_factory=dict)
    identity: array = field(default_factory=lambda: array("i"))
    folder: array = field(default_factory=lambda: array("i"))
    file: array = field(default_factory=lambda: array("i"))
    offset: array = field(default_factory=lambda: array("q"))
    size: array = field(default_factory=lambda: array("q"))
    mtime: array = field(default_factory=lambda: array("q"))
    groups: dict[str, Column] = field(default_factory=dict)  # columns of a csv beside path and identity
    leaf: bytearray = field(default_factory=bytearray)
    leaf_end: array = field(default_factory=lambda: array("q"))
    ignored: dict[str, list[str]] = field(default_factory=dict)  # why -> EXAMPLES of them
    ignored_counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what else is to be said of the sources
    bar: tqdm = field(
        default_factory=lambda: tqdm(desc="reading the index", unit=" images", delay=2, leave=False)
    )

    def add(
        self,
        identity: str,
        path: str,
        offset: int,
        size: int,
        mtime: int,
        groups: Mapping[str, str] | None = None,
    ) -> None:
        """An image of the last file of `files`; `path` is below its root, `groups` its group in each column."""
        prefix = self.files[-1].prefix
        head, _, tail = path.rpartition("/")
        folder = (prefix + head) if head else prefix[:-1]
        leaf = tail if head or not path.startswith("/") else path
        self.identity.append(self.identities.setdefault(prefix + identity, len(self.identities)))
        self.folder.append(self.folders.setdefault(folder, len(self.folders)))
        self.file.append(len(self.files) - 1)
        self.offset.append(offset)
        self.size.append(size)
        self.mtime.append(mtime)
        self.leaf += leaf.encode("utf-8", "surrogateescape")
        self.leaf_end.append(len(self.leaf))
        for name, text in (groups or {}).items():
            self.groups.setdefault(name, Column()).set(len(self.identity) - 1, text)
        if len(self.leaf_end) % TICK == 0:
            self.bar.update(TICK)

    def ignore(self, why: str, what: str) -> None:
        self.ignored_counts[why] = self.ignored_counts.get(why, 0) + 1
        examples = self.ignored.setdefault(why, [])
        if len(examples) < EXAMPLES:
            examples.append(what)


class Store:
    """What was found, in columns; every index made from one read shares it."""

    def __init__(self, rows: Rows) -> None:
        self.files: tuple[SourceFile, ...] = tuple(rows.files)
        self.file = np.array(rows.file, np.int32)
        self.folder = np.array(rows.folder, np.int32)
        self.offset = np.array(rows.offset, np.int64)
        self.size = np.array(rows.size, np.int64)
        self.mtime = np.array(rows.mtime, np.int64)
        self.leaves = Packed(bytes(rows.leaf), np.array(rows.leaf_end, np.int64))
        folders = [name.encode("utf-8", "surrogateescape") for name in rows.folders]
        self.folders = Packed(b"".join(folders), np.cumsum([len(name) for name in folders], dtype=np.int64))
        self.groups = {name: self._column(column) for name, column in rows.groups.items() if not column.many}
        self._open: dict[int, OpenTar] = {}

    def _column(self, column: Column) -> tuple[np.ndarray, np.ndarray]:
        """Different texts, and which of them each row has (N,)."""
        codes = np.zeros(len(self.file), np.int32)
        codes[: len(column.codes)] = column.codes
        return np.array(list(column.values), dtype=np.str_), codes

    def name(self, row: int) -> str:
        folder = self.folders[self.folder[row]]
        return f"{folder}/{self.leaves[row]}" if folder else self.leaves[row]

    def location(self, row: int) -> Location:
        file = self.files[self.file[row]]
        if file.is_tar:
            return Location(file.path, int(self.offset[row]), int(self.size[row]))
        return Location(os.path.join(file.path, self.name(row)[len(file.prefix) :]), 0, int(self.size[row]))

    def read(self, row: int) -> bytes:
        """The bytes of a row. OSError where they are gone, or the file was written to since it was indexed."""
        which = int(self.file[row])
        size = int(self.size[row])
        source = self.files[which]
        if not source.is_tar:
            with open(self.location(row).file, "rb") as file:
                _same_file(file.fileno(), "it", size, int(self.mtime[row]))
                return file.read()
        tar = self._tar(which)
        _same_file(tar.descriptor, source.path, source.size, source.mtime)
        data = os.pread(tar.descriptor, size, int(self.offset[row]))
        if len(data) < size:
            raise OSError(errno.EIO, f"{source.path} was cut short since it was indexed")
        return data

    def _tar(self, which: int) -> OpenTar:
        """A file of `files`, open while the caller holds it. Without a lock, which a fork could find taken."""
        tar = self._open.get(which)
        if tar is None:
            for oldest in list(self._open)[: max(0, len(self._open) + 1 - OPEN_FILES)]:
                self._open.pop(oldest, None)
            tar = self._open[which] = OpenTar(self.files[which].path)
        return tar

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}  # descriptors mean nothing in another process


class OpenTar:
    """A file open for reading, closed when the last thread that reads it has let go: a number that is closed
    earlier may be another file's by the time it is read."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def _same_file(descriptor: int, what: str, size: int, mtime: int) -> None:
    """OSError unless an open file has the size and time of change that it was indexed with."""
    state = os.fstat(descriptor)
    if state.st_size < size:
        raise OSError(errno.EIO, f"{what} was cut short since it was indexed")
    if state.st_size != size or state.st_mtime_ns != mtime:
        raise OSError(errno.EIO, f"{what} was changed since it was indexed")
