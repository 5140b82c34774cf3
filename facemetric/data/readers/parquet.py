"""Parquet tables of images, as Hugging Face's datasets writes them: a column of encoded images, and one of identities.

The column of images is a struct of `bytes` and `path`, or plain bytes; that of identities holds texts or numbers, whose
names are in the schema where it is a ClassLabel; every further column of texts or numbers is a group. The index reads
the columns of identities and paths alone, so it does not know the images' sizes. An image is read with its row group,
and some groups are kept (CACHE bytes a process): groups of about a hundred rows, as datasets writes them, read well in
any order, groups of thousands only in their own. An image is named `identity/path` where that tells the rows of the
file apart, or by its row.
"""

from __future__ import annotations

import json
import os
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from facemetric.data.readers import skips as kinds
from facemetric.data.readers.reader import (
    UNKNOWN_SIZE,
    RangeReader,
    Row,
    StoredRow,
    check_unchanged,
    cut_since,
    identity_text,
)
from facemetric.data.readers.skips import Skips, skipped_folder, why_skip_file
from facemetric.errors import DataError, first_few

IMAGES = (
    "image",
    "img",
    "jpg",
    "jpeg",
    "png",
    "webp",
    "bytes",
    "image_bytes",
)  # plain bytes have one of these names
IDENTITIES = ("identity", "label", "labels", "cls", "class", "target", "person", "name")
CACHE = 64 << 20  # bytes of images that a process keeps
MOST_GROUP = 1 << 30  # bytes of images of a row group
LARGE_GROUP = 1000  # rows of a group, above which reading in any order is slow
BATCH = 1 << 16  # rows that are indexed together


class Columns(NamedTuple):
    """The columns that are read: of images (the path to their bytes, that to their names or ""), and of identities
    ("" where there is none), whose names by number may be known; and those of groups."""

    image: str
    path: str
    identity: str
    names: Sequence[str]
    groups: Sequence[str]


class Opened(NamedTuple):
    """A file open in one process, and the row groups that it keeps: first row -> its images."""

    process: int
    lock: threading.Lock
    file: Any
    descriptor: Any
    firsts: np.ndarray
    kept: OrderedDict[int, Any]


class ParquetReader(RangeReader):
    """`offset` is an image's row in the file."""

    may_be_shard = True
    other_uses = True
    identity_folders = False

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._image = ""
        self._parquet: Opened | None = None

    def scan(self, skips: Skips, *, loose: bool) -> Iterator[Row]:
        arrow = import_arrow(self.path)
        try:
            with arrow.parquet.ParquetFile(self.path, pre_buffer=False) as file:
                columns = find_columns(self.path, file.schema_arrow, loose)
                self._image = columns.image
                self._check_groups(file)
                own_names = columns.path and _tells_apart(file, columns)
                yield from _rows(self.path, file, columns, skips, loose=loose, own_names=bool(own_names))
        except (arrow.ArrowException, ValueError, KeyError, OSError, MemoryError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{self.path}: cannot be read as Parquet ({_reason(error)}); copy it again"
            ) from None

    def _check_groups(self, file: Any) -> None:
        """Refuse row groups that would fill the memory; note those that read slowly."""
        rows, largest = 0, 0
        for number in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(number)
            rows = max(rows, group.num_rows)
            # not of the column of images: where its record is damaged, asking pyarrow 26 for it ends the process
            largest = max(largest, group.total_byte_size)
        if largest > MOST_GROUP:
            raise DataError(
                f"{self.path}: a row group has {largest / 2**30:.1f} GiB, which would be read for each of its images; "
                f"write it again with smaller ones (`row_group_size=100`), at most {MOST_GROUP >> 30} GiB"
            )
        if rows > LARGE_GROUP:
            self.notes.append(
                f"{self.path}: its row groups have up to {rows:,} images ({largest / 2**20:.0f} MiB), all of which are "
                "read for one: for training, `facemetric data convert` it to shards first"
            )

    def open(self, row: StoredRow) -> bytes:
        arrow = import_arrow(self.path)
        try:
            opened = self._of_this_process()
            check_unchanged(opened.descriptor.fileno(), self.path, self.stamp)
            with opened.lock:
                images, first = _group(opened, self._image, row.offset)
            data = images[row.offset - first].as_py()
        except (arrow.ArrowException, ValueError, KeyError, IndexError, OSError, MemoryError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the file system's, not pyarrow's
                raise
            raise OSError(5, f"row {row.offset} of {self.path} is damaged ({_reason(error)})") from None
        if data is None:
            raise OSError(5, f"row {row.offset} of {self.path} holds no bytes of an image")
        return data if isinstance(data, bytes) else str(data).encode()

    def _of_this_process(self) -> Opened:
        """The file, opened by this process: what a fork takes over may be locked, or moved by its parent."""
        opened = self._parquet
        if opened is None or opened.process != os.getpid():
            descriptor = open(self.path, "rb")  # noqa: SIM115 (closed with the record)
            if os.fstat(descriptor.fileno()).st_size < self.stamp.size:
                raise cut_since(self.path)
            file = import_arrow(self.path).parquet.ParquetFile(descriptor, pre_buffer=False)
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            firsts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
            opened = Opened(os.getpid(), threading.Lock(), file, descriptor, firsts, OrderedDict())
            self._parquet = opened
        return opened

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_parquet": None}


def import_arrow(path: str) -> Any:
    """pyarrow with its parquet. DataError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: Parquet is read by pyarrow; pip install 'facemetric[parquet]'") from None
    return pyarrow


def _group(opened: Opened, image: str, row: int) -> tuple[Any, int]:
    """The images of the row group that holds a row, and its first row."""
    number = int(np.searchsorted(opened.firsts, row, side="right")) - 1
    kept = opened.kept
    if number not in kept:
        read = (
            opened.file.read_row_group(number, columns=[image], use_threads=False).column(0).combine_chunks()
        )
        for leaf in image.split(".")[1:]:
            read = read.field(leaf)
        kept[number] = read
        while len(kept) > 1 and sum(group.nbytes for group in kept.values()) > CACHE:
            kept.popitem(last=False)
    kept.move_to_end(number)
    return kept[number], int(opened.firsts[number])


def find_columns(path: str, schema: Any, loose: bool) -> Columns:
    """Which columns of a table are read. DataError where none holds images, or, but for `loose`, identities."""
    from pyarrow import types

    def is_bytes(kind: Any) -> bool:
        return types.is_binary(kind) or types.is_large_binary(kind)

    known = _features(schema)
    image, paths, images = "", "", []
    for field in schema:
        inside = {part.name: part.type for part in field.type} if types.is_struct(field.type) else {}
        if "bytes" in inside and is_bytes(inside["bytes"]):
            images.append((f"{field.name}.bytes", f"{field.name}.path" if "path" in inside else ""))
        elif is_bytes(field.type) and field.name.lower() in IMAGES:
            images.append((field.name, ""))
    if len(images) != 1:
        found = (
            f"{len(images)} columns of images ({first_few(name for name, _ in images)})"
            if images
            else (f"no column of images among {first_few(schema.names, 10)}")
        )
        raise DataError(
            f"{path}: has {found}; needed is one, a struct of `bytes` and `path` as Hugging Face's datasets writes "
            f"them, or bytes named {IMAGES[0]}"
        )
    image, paths = images[0]
    plain = [field.name for field in schema if _is_plain(field.type)]
    labelled = [
        name for name, feature in known.items() if feature.get("_type") == "ClassLabel" and name in plain
    ]
    named = [name for name in IDENTITIES if name in plain]
    identity = next(iter(named or (labelled if len(labelled) == 1 else [])), "")
    if not identity and not loose:
        raise DataError(
            f"{path}: has no column of identities among {first_few(schema.names, 10)}; needed is one of "
            f"{', '.join(IDENTITIES)}"
        )
    names = known.get(identity, {}).get("names") or ()
    groups = [name for name in plain if name != identity]
    return Columns(
        image, paths, identity, [str(name) for name in names] if isinstance(names, list) else (), groups
    )


def _is_plain(kind: Any) -> bool:
    """Whether a column holds texts, whole numbers or truth values."""
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return (
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_integer(kind)
        or types.is_boolean(kind)
    )


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What datasets says of the columns in the schema's metadata; {} where it says nothing."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return {n: f for n, f in found.items() if isinstance(f, dict)} if isinstance(found, dict) else {}


def _batches(
    file: Any, columns: Columns, groups: bool
) -> Iterator[tuple[int, list[Any], list[Any], list[Any]]]:
    """First row, identities, paths and group columns of some rows at a time."""
    wanted = [name for name in (columns.path, columns.identity, *(columns.groups if groups else ())) if name]
    first = 0
    if not wanted:
        yield 0, [None] * file.metadata.num_rows, [None] * file.metadata.num_rows, []
        return
    for batch in file.iter_batches(BATCH, columns=wanted, use_threads=False):
        none = [None] * len(batch)
        identity = batch.column(columns.identity).to_pylist() if columns.identity else none
        paths = none
        if columns.path:
            outer, _, inner = columns.path.rpartition(".")
            paths = batch.column(outer).field(inner).to_pylist()
        texts = [batch.column(name).to_pylist() for name in (columns.groups if groups else ())]
        yield first, identity, paths, texts
        first += len(batch)


def _identity(value: Any, columns: Columns) -> str:
    if columns.names and isinstance(value, int) and 0 <= value < len(columns.names):
        return identity_text(columns.names[value])
    return identity_text(value)


def _name(identity: str, path: Any) -> str:
    """An image's name by its path in the table; "" where that is no image's."""
    if not isinstance(path, str) or not path.isprintable():
        return ""
    path = "/".join(part for part in path.replace("\\", "/").split("/") if part not in ("", ".", ".."))
    if why_skip_file(path.rpartition("/")[2]) is not None or skipped_folder(path):
        return ""
    return path if path.startswith(identity + "/") or not identity else f"{identity}/{path}"


def _tells_apart(file: Any, columns: Columns) -> bool:
    """Whether the paths name every row, each another."""
    hashes = array("q")
    for _, identities, paths, _ in _batches(file, columns, False):
        for value, path in zip(identities, paths, strict=True):
            name = _name(_identity(value, columns), path)
            if not name:
                return False
            hashes.append(hash(name))
    found = np.sort(np.frombuffer(hashes, np.int64)) if hashes else np.zeros(0, np.int64)
    return not (found[1:] == found[:-1]).any()


def _rows(
    path: str, file: Any, columns: Columns, skips: Skips, *, loose: bool, own_names: bool
) -> Iterator[Row]:
    stem = os.path.splitext(os.path.basename(path))[0]
    for first, identities, paths, groups in _batches(file, columns, True):
        for n, (value, own) in enumerate(zip(identities, paths, strict=True)):
            row = first + n
            identity = _identity(value, columns)
            if not identity and not loose:
                skips.add(kinds.UNLABELLED, f"row {row} of {os.path.basename(path)}")
                continue
            name = _name(identity, own) if own_names else f"{stem}-{row:08d}.jpg"
            if identity and not own_names:
                name = f"{identity}/{name}"
            texts = {
                column: "" if values[n] is None else str(values[n])
                for column, values in zip(columns.groups, groups, strict=True)
            }
            yield Row(identity, name, UNKNOWN_SIZE, row, 0, texts)


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
