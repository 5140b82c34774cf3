"""A part of a gallery on disk: rows of embeddings and what belongs to them, in a file that is mapped, not read.

`NNNNNN.safetensors` holds the numbers of up to MOST_ROWS rows, `NNNNNN.crops` the JPEGs of their faces one behind the
other, for whoever wants to see them. A part is never changed: rows that come or go make new parts.

Shapes: N rows, D embedding, P identities of a part.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from facemetric.data.store import Packed
from facemetric.errors import DataError
from facemetric.files import file_hash, write_bytes_whole, write_whole

MOST_ROWS = 65_536  # of a part: 32 MiB of 128 numbers a row, which a removed person costs to write again
ROWS, CROPS = ".safetensors", ".crops"  # ends of the two files
DTYPES = {"F32": np.float32, "I32": np.int32, "I64": np.int64, "U8": np.uint8}
TEXTS = ("names", "photos")


@dataclass(frozen=True)
class Rows:
    """N enrolled faces.

    `embeddings` float32 (N, D), unit length; `names` of the people and `photos` (the photographs' paths or names):
    N texts each; `photo_hash` uint8 (N, 32), SHA-256 of the photographs' bytes; `quality` float32 (N,), 0..1, of the
    faces, NaN where it is not known; `crops` N JPEGs, b"" where the picture is not kept."""

    embeddings: npt.NDArray[np.float32]
    names: Sequence[str]
    photos: Sequence[str]
    photo_hash: npt.NDArray[np.uint8]
    quality: npt.NDArray[np.float32]
    crops: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.embeddings)

    def take(self, rows: npt.NDArray[np.integer]) -> Rows:
        """These rows, in that order."""
        chosen = rows.tolist()
        return Rows(
            self.embeddings[rows],
            [self.names[i] for i in chosen],
            [self.photos[i] for i in chosen],
            self.photo_hash[rows],
            self.quality[rows],
            [self.crops[i] for i in chosen],
        )


def known_quality(quality: float) -> float | None:
    """The quality of a face in three digits; None where it is not known."""
    return None if math.isnan(quality) else round(quality, 3)


def joined(some: Sequence[Rows]) -> Rows:
    """All rows of several, in their order."""
    return Rows(
        np.concatenate([rows.embeddings for rows in some]),
        [name for rows in some for name in rows.names],
        [photo for rows in some for photo in rows.photos],
        np.concatenate([rows.photo_hash for rows in some]),
        np.concatenate([rows.quality for rows in some]),
        [crop for rows in some for crop in rows.crops],
    )


@dataclass(frozen=True)
class PartRecord:
    """What the gallery's list says of a part: its name, how many rows it has, the SHA-256 of its two files."""

    name: str
    rows: int
    rows_sha256: str
    crops_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """As the list has it."""
        return {
            "name": self.name,
            "rows": self.rows,
            "rows_sha256": self.rows_sha256,
            "crops_sha256": self.crops_sha256,
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> PartRecord:
        """The reverse. Raises KeyError or TypeError."""
        return cls(
            str(record["name"]),
            int(record["rows"]),
            str(record["rows_sha256"]),
            str(record["crops_sha256"]),
        )

    def files(self, folder: Path) -> tuple[Path, Path]:
        """Where its two files are."""
        return folder / (self.name + ROWS), folder / (self.name + CROPS)


def write_part(folder: Path, name: str, rows: Rows) -> PartRecord:
    """Write rows as a part; each of its files appears whole. Raises OSError (a full disk)."""
    people, person = np.unique(np.array(rows.names, dtype=object), return_inverse=True)
    tensors: dict[str, npt.NDArray[Any]] = {
        "embeddings": np.ascontiguousarray(rows.embeddings, np.float32),
        "person": person.astype(np.int32),
        "photo_hash": np.ascontiguousarray(rows.photo_hash, np.uint8),
        "quality": np.ascontiguousarray(rows.quality, np.float32),
        "crop_ends": np.cumsum([len(crop) for crop in rows.crops], dtype=np.int64),
    }
    for what, texts in zip(TEXTS, (people, rows.photos), strict=True):
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        tensors[what] = np.frombuffer(b"".join(encoded) or b"\0", np.uint8)
        tensors[f"{what}_ends"] = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    rows_file, crops_file = PartRecord(name, 0, "", "").files(folder)
    write_bytes_whole(rows_file, save(tensors), durable=True)

    def fill(staged: Path) -> None:
        with open(staged, "wb") as file:
            file.writelines(rows.crops)

    write_whole(crops_file, fill, durable=True)
    return PartRecord(name, len(rows), file_hash(rows_file), file_hash(crops_file))


class Part:
    """An open part: its arrays are mapped from the file.

    Raises DataError where a file is not the one that was written: gone, cut short, or changed."""

    def __init__(self, folder: Path, record: PartRecord, embedding_size: int) -> None:
        self.record = record
        self.file, self.crops_file = record.files(folder)
        if file_hash(self.file) != record.rows_sha256:
            raise DataError(damaged(self.file))
        arrays = mapped(self.file)
        self.embeddings, self.person = arrays["embeddings"], arrays["person"]
        self.photo_hash, self.quality = arrays["photo_hash"], arrays["quality"]
        if self.embeddings.shape != (record.rows, embedding_size):
            raise DataError(damaged(self.file))
        self._crop_ends = arrays["crop_ends"]
        self._texts = {what: Packed(arrays[what].tobytes(), arrays[f"{what}_ends"]) for what in TEXTS}
        names = self._texts["names"]
        self.names = [names[i] for i in range(len(arrays["names_ends"]))]

    def __len__(self) -> int:
        return self.record.rows

    def name(self, row: int) -> str:
        """Whose face a row is."""
        return self.names[self.person[row]]

    def photo(self, row: int) -> str:
        """The photograph of a row, as it was named when it was enrolled."""
        return self._texts["photos"][row]

    def crop(self, row: int) -> bytes:
        """The JPEG of the face; b"" where it is not kept, or its file is gone."""
        start = int(self._crop_ends[row - 1]) if row else 0
        try:
            with open(self.crops_file, "rb") as file:
                file.seek(start)
                return file.read(int(self._crop_ends[row]) - start)
        except OSError:
            return b""

    @cached_property
    def rows(self) -> Rows:
        """All of it in memory, to be written again without some rows, or with more."""
        every = range(len(self))
        return Rows(
            np.array(self.embeddings),
            [self.name(i) for i in every],
            [self.photo(i) for i in every],
            np.array(self.photo_hash),
            np.array(self.quality),
            [self.crop(i) for i in every],
        )

    def check_crops(self) -> None:
        """Raise DataError where the pictures are not those that were written; opening a part does not look."""
        if not self.crops_file.is_file() or file_hash(self.crops_file) != self.record.crops_sha256:
            raise DataError(damaged(self.crops_file))


def damaged(file: Path) -> str:
    """What to say of a file that is not the one that was written."""
    return (
        f"{file} is not the file that the gallery's list describes (cut short or changed): bring it back from a copy, "
        "or enroll into a new gallery"
    )


def mapped(file: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a safetensors file, mapped: pages are read when they are used, and may be dropped again."""
    with open(file, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
    whole = np.memmap(
        file, np.uint8, mode="c"
    )  # private: nothing that is changed by mistake reaches the file
    arrays = {}
    for name, record in header.items():
        if name != "__metadata__":
            start, end = record["data_offsets"]
            array = np.asarray(whole)[8 + size + start : 8 + size + end]
            arrays[name] = array.view(DTYPES[record["dtype"]]).reshape(record["shape"])
    return arrays


def geometric(records: Iterable[PartRecord], rows: int) -> list[PartRecord]:
    """The last parts that new rows are written together with, so that there are few parts and little is rewritten.

    Each row is written again only when its part at least doubles, up to MOST_ROWS."""
    taken: list[PartRecord] = []
    for record in reversed(list(records)):
        if record.rows > rows or record.rows + rows > MOST_ROWS:
            break
        taken.insert(0, record)
        rows += record.rows
    return taken
