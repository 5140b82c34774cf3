"""What a reader is: it finds the images of one source, and opens them.

`scan` yields a `Row` for each image, once, when the index is made. `open` gives the bytes of one row, at any
time, in any order, from any number of threads and forked processes at once. Two ways to open are shared by most
readers: an image that is a file of its own (`FileReader`) and one that is a byte range of a larger file
(`RangeReader`). A reader whose images are neither has an `open` of its own.
"""

from __future__ import annotations

import errno
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol

from facemetric.data.readers.skips import OUTSIDE, Skips, skipped_folder, why_skip_file

OPEN_FILES = 64  # larger files kept open at once by a process, beside those being read
MOST_LETTERS = 1000  # of an identity that a label names
NO_GROUPS: Mapping[str, str] = MappingProxyType({})


UNKNOWN_SIZE = -1  # bytes of an image that only its reading tells


class Row(NamedTuple):
    """An image as a scan finds it.

    `identity` is "" where it has none (`loose`); `name` its path in the source; `size` in bytes, or UNKNOWN_SIZE;
    `offset` a number of the reader's own, as a rule where the bytes begin; `mtime` the time of last change in
    ns of an image that is a file of its own, else 0; `groups` its text in each further column.
    """

    identity: str
    name: str
    size: int
    offset: int = 0
    mtime: int = 0
    groups: Mapping[str, str] = NO_GROUPS


class Member(NamedTuple):
    """A file of an archive; `offset` as in `Row`."""

    name: str
    size: int
    offset: int = 0


def images_of(members: Iterable[Member], skips: Skips, *, loose: bool) -> Iterator[Row]:
    """The images of an archive, the first folder of the name being the identity.

    With `loose`, images outside a folder too, of identity "". Everything else is counted in `skips`.
    """
    last, found = "", None  # the folder of the last member, as those of one folder lie together
    for name, size, offset in members:
        folder, _, leaf = name.rpartition("/")
        if folder != last:
            last, found = folder, skipped_folder(name)
        if found:
            skips.add_folder(found[1], found[0])
        elif kind := why_skip_file(leaf):
            skips.add(kind, name)
        elif folder or loose:
            yield Row(folder.partition("/")[0], name, size, offset)
        else:
            skips.add(OUTSIDE, name)


def identity_text(value: object) -> str:
    """The identity that a label means: a text without spaces around it, or a number; "" where it means none, as numbers
    below 0 do."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return str(value) if value < 1 << 63 else ""
    text = value.strip() if isinstance(value, str) else ""
    fits = (
        len(text) <= MOST_LETTERS
        and not text.startswith("/")
        and not text.endswith("/")
        and text.isprintable()
    )
    below_0 = text.startswith("-") and text[1:].isdigit()
    return text if fits and not below_0 else ""


class StoredRow(Protocol):
    """What the index keeps of a row, and gives to `open`."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def mtime(self) -> int: ...


class Stamp(NamedTuple):
    """Size and time of last change (ns) of a file that holds images."""

    size: int
    mtime: int


class Reader(ABC):
    """One source. `path` is the file or folder that holds its images, `stamp` what tells whether that was changed
    (None for a folder, whose files have times of their own), `notes` what a scan found that the user should know.

    Readers travel to other processes with the index, so what is open is not to be pickled.
    """

    identity_folders: bool = True  # an identity is a folder with images in it
    may_be_shard: ClassVar[bool] = False  # a folder of such files is one source
    not_images: ClassVar[frozenset[str]] = frozenset()  # names of files with the ending that are no source
    other_uses: ClassVar[bool] = False  # beside images or folders a file of the ending is something else

    def __init__(self, path: str) -> None:
        self.path = path
        self.notes: list[str] = []
        self.stamp: Stamp | None = None
        if os.path.isfile(path):
            state = os.stat(path)
            self.stamp = Stamp(state.st_size, state.st_mtime_ns)

    @abstractmethod
    def scan(self, skips: Skips, *, loose: bool) -> Iterator[Row]:
        """All images, and in `skips` what was skipped; with `loose` also images of no identity. DataError where the
        source is damaged."""

    @abstractmethod
    def open(self, row: StoredRow) -> bytes:
        """The bytes of an image. OSError where they are gone, or were changed since the scan."""

    def file_of(self, row: StoredRow) -> str:
        """The file that holds an image."""
        return self.path


class FileReader(Reader):
    """Images that are files of their own, below the folder `path`."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.stamp = None

    def file_of(self, row: StoredRow) -> str:
        return os.path.join(self.path, row.name)

    def open(self, row: StoredRow) -> bytes:
        with open(self.file_of(row), "rb") as file:
            check_unchanged(file.fileno(), "it", Stamp(row.size, row.mtime))
            return file.read()


class RangeReader(Reader):
    """Images that are the bytes [offset, offset + size) of the file `path`."""

    stamp: Stamp

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._file: OpenFile | None = None

    def open(self, row: StoredRow) -> bytes:
        file = self._opened()
        check_unchanged(file.descriptor, self.path, self.stamp)
        size = row.size
        data = os.pread(file.descriptor, size, row.offset)
        if len(data) < size:
            raise cut_since(self.path)
        return data

    def _opened(self) -> OpenFile:
        """The file, open while the caller holds it. Without a lock, which a fork could find taken."""
        file = self._file
        if file is None:
            for oldest in list(OPENED)[: max(0, len(OPENED) + 1 - OPEN_FILES)]:
                reader = OPENED.pop(oldest, lambda: None)()
                if reader is not None:
                    reader._file = None
            file = self._file = OpenFile(self.path)
            OPENED[id(self)] = weakref.ref(self)
        return file

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": None}  # a descriptor means nothing in another process


OPENED: dict[int, weakref.ref[RangeReader]] = {}  # the readers that keep a file open, the oldest first


class OpenFile:
    """A file open for reading, closed when the last thread that reads it has let go: a number that is closed
    earlier may be another file's by the time it is read."""

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


def check_unchanged(descriptor: int, what: str, stamp: Stamp) -> None:
    """OSError unless an open file has the size and time of last change that it was indexed with."""
    state = os.fstat(descriptor)
    if state.st_size < stamp.size:
        raise cut_since(what)
    if state.st_size != stamp.size or state.st_mtime_ns != stamp.mtime:
        raise OSError(errno.EIO, f"{what} was changed since it was indexed")


def cut_since(what: str) -> OSError:
    """What `open` raises for a file that was cut short."""
    return OSError(errno.EIO, f"{what} was cut short since it was indexed")
