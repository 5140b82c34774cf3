"""What an index holds of its images: numpy columns and packed names, about 70 bytes an image."""

from __future__ import annotations

import unicodedata
from array import array
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from facemetric.data.readers.reader import Reader, Row
from facemetric.data.readers.skips import Skips
from facemetric.machine import progress_bar

TICK = 4096  # images between two steps of the progress bar
MOST_VALUES = 1000  # of a group's column


def composed(text: str) -> str:
    """Text with its letters and their accents in one (Unicode's NFC): macOS may write names with them apart."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


class SourceFile(NamedTuple):
    """A file or folder that holds images, and what their names have in front of the path in it."""

    reader: Reader
    prefix: str


class Location(NamedTuple):
    """The file that holds an image; its bytes are [offset, offset + size) where it is a byte range of it."""

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
    skips: Skips = field(default_factory=Skips)
    notes: list[str] = field(default_factory=list)  # what else the user should know of the sources
    bar: Any = field(default_factory=lambda: progress_bar(desc="reading the index", unit=" images"))

    def add_source(self, reader: Reader, prefix: str, *, loose: bool = False) -> None:
        """All images that a reader finds."""
        self.files.append(SourceFile(reader, prefix))
        for row in reader.scan(self.skips, loose=loose):
            self.add(row)

    def add(self, row: Row) -> None:
        """An image of the last file of `files`."""
        identity, path, size, offset, mtime, groups = row
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
        for name, text in groups.items():
            self.groups.setdefault(name, Column()).set(len(self.identity) - 1, text)
        if len(self.leaf_end) % TICK == 0:
            self.bar.update(TICK)


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

    def _column(self, column: Column) -> tuple[np.ndarray, np.ndarray]:
        """Different texts, and which of them each row has (N,)."""
        codes = np.zeros(len(self.file), np.int32)
        codes[: len(column.codes)] = column.codes
        return np.array(list(column.values), dtype=np.str_), codes

    def name(self, row: int) -> str:
        folder = self.folders[self.folder[row]]
        return f"{folder}/{self.leaves[row]}" if folder else self.leaves[row]

    def location(self, row: int) -> Location:
        stored = StoreRow(self, row)
        return Location(self.files[self.file[row]].reader.file_of(stored), stored.offset, stored.size)

    def read(self, row: int) -> bytes:
        """The bytes of a row. OSError where they are gone, or the file was changed since it was indexed."""
        return self.files[self.file[row]].reader.open(StoreRow(self, row))


class StoreRow:
    """A row of a store, whose values are looked up when a reader asks for them."""

    __slots__ = ("_row", "_store")

    def __init__(self, store: Store, row: int) -> None:
        self._store, self._row = store, row

    @property
    def name(self) -> str:
        """The path in the source, without its prefix."""
        store = self._store
        return store.name(self._row)[len(store.files[store.file[self._row]].prefix) :]

    @property
    def size(self) -> int:
        return int(self._store.size[self._row])

    @property
    def offset(self) -> int:
        return int(self._store.offset[self._row])

    @property
    def mtime(self) -> int:
        return int(self._store.mtime[self._row])
