"""A gallery's folder on disk: a list of parts that is replaced as a whole, and a lock for those who write.

    GALLERY/gallery.json    which weights made the embeddings, which parts there are, with their hashes
    GALLERY/parts/          the parts (parts.py)
    GALLERY/lock            held while one process writes

A reader needs no lock: it sees the list before a change or the one after it. A process that is killed leaves at most
files that no list names; the next that writes removes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facemetric.errors import ConfigError, DataError, WeightsError, nearest_beside
from facemetric.files import Lock, write_text_whole
from facemetric.gallery.parts import MOST_ROWS, Part, PartRecord, Rows, damaged, geometric, joined, write_part

FORMAT = 1
LIST, PARTS, LOCK, SKIPPED = "gallery.json", "parts", "lock", "skipped.csv"
PATIENCE = (
    60.0  # seconds to wait for another that writes: it holds the lock while files are written, not longer
)
TRIES = 5  # to read a list and its parts while others replace them


@dataclass(frozen=True)
class GalleryList:
    """What gallery.json says. `change` counts the changes; `flip`: embeddings are averaged with the mirror image's;
    `keeps_crops`: pictures of the faces are kept."""

    weights: str
    weights_name: str
    embedding_size: int
    flip: bool = False
    keeps_crops: bool = True
    change: int = 0
    parts: tuple[PartRecord, ...] = ()

    def to_text(self) -> str:
        """JSON, with a hash of what is in it."""
        record: dict[str, Any] = {
            "format": FORMAT,
            "weights_sha256": self.weights,
            "weights_name": self.weights_name,
            "embedding_size": self.embedding_size,
            "flip": self.flip,
            "keeps_crops": self.keeps_crops,
            "change": self.change,
            "parts": [part.to_dict() for part in self.parts],
        }
        return json.dumps(record | {"sha256": _hash_of(record)}, indent=2) + "\n"

    @classmethod
    def from_file(cls, file: Path) -> GalleryList:
        """Read the list. Raises DataError where it is damaged or of another format, OSError where it cannot be read."""
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            if record["format"] != FORMAT:
                raise DataError(
                    f"{file} has format {record['format']}, this version reads {FORMAT}; update facemetric"
                )
            if record.pop("sha256") != _hash_of(record):
                raise DataError(damaged_list(file))
            return cls(
                str(record["weights_sha256"]),
                str(record["weights_name"]),
                int(record["embedding_size"]),
                bool(record["flip"]),
                bool(record["keeps_crops"]),
                int(record["change"]),
                tuple(PartRecord.from_dict(part) for part in record["parts"]),
            )
        except DataError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(damaged_list(file)) from error


def _hash_of(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def damaged_list(file: Path) -> str:
    """What to say of a list that cannot be right."""
    return f"{file} is damaged (cut short or changed by hand): bring it back from a copy, or enroll into a new gallery"


class GalleryFolder:
    """The rows of a gallery on disk, as the newest list has them. Opening one that is not there raises DataError."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.list = GalleryList("", "", 0)
        self.parts: list[Part] = []
        self._seen: tuple[int, int, int] | None = None
        self.refresh()

    @classmethod
    def create(cls, path: str | Path, first: GalleryList) -> GalleryFolder:
        """A new, empty gallery; where one is there already, that one. DataError where a folder holds other files."""
        folder = Path(path)
        if not (folder / LIST).exists():
            if folder.exists() and not folder.is_dir():
                raise DataError(f"{folder} is a file; a gallery is a folder, name another")
            others = (
                {file.name for file in folder.iterdir() if not file.name.startswith(f".{LIST}")}
                - {
                    PARTS,
                    LOCK,
                }
                if folder.exists()
                else set()
            )
            if others:
                raise DataError(
                    f"{folder} holds other files ({min(others)}) and no gallery; name a new folder for it"
                )
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                if not (folder / LIST).exists():
                    write_text_whole(folder / LIST, first.to_text(), durable=True)
        return cls(folder)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def counts(self) -> dict[str, int]:
        """The enrolled people, sorted, and how many faces of each."""
        count: Counter[str] = Counter()
        for part in self.parts:
            faces = np.bincount(part.person, minlength=len(part.names)).tolist()
            count.update(dict(zip(part.names, faces, strict=True)))
        return dict(sorted(count.items()))

    def qualities(self) -> dict[str, tuple[float, float]]:
        """The enrolled people, sorted, and the lowest and highest quality of their faces, 0..1; NaN where it is not
        known."""
        found: dict[str, tuple[float, float]] = {}
        for part in self.parts:
            low, high = (np.full(len(part.names), np.nan, np.float32) for _ in range(2))
            np.fmin.at(low, part.person, part.quality)
            np.fmax.at(high, part.person, part.quality)
            for name, *both in zip(part.names, low.tolist(), high.tolist(), strict=True):
                before = found.get(name, (np.nan, np.nan))
                found[name] = float(np.fmin(before[0], both[0])), float(np.fmax(before[1], both[1]))
        return dict(sorted(found.items()))

    def photos_by_name(self) -> dict[str, list[tuple[str, float]]]:
        """The enrolled people, sorted, and their photographs, each with the quality of the face (NaN: not known)."""
        found: dict[str, list[tuple[str, float]]] = {name: [] for name in self.counts()}
        for part in self.parts:
            for row, quality in enumerate(part.quality.tolist()):
                found[part.name(row)].append((part.photo(row), quality))
        return found

    def refresh(self) -> bool:
        """Take over what others changed on disk; whether that was anything. DataError for what is damaged."""
        file = self.path / LIST
        for tries_left in reversed(range(TRIES)):
            try:
                state = file.stat()
                seen = (state.st_mtime_ns, state.st_size, state.st_ino)
                if seen == self._seen:
                    return False
                newest = GalleryList.from_file(file)
                opened = {part.record: part for part in self.parts}
                self.parts = [
                    opened.get(record) or Part(self.path / PARTS, record, newest.embedding_size)
                    for record in newest.parts
                ]
            except FileNotFoundError as error:
                if not file.exists():
                    nearest = nearest_beside(self.path, lambda path: (path / LIST).is_file())
                    makes = f": it has no {LIST}; `facemetric gallery add {self.path} PEOPLE --weights W` makes one"
                    raise DataError(f"{self.path} is no gallery{nearest or makes}") from error
                if not tries_left or GalleryList.from_file(file) == newest:  # no one wrote meanwhile
                    raise DataError(damaged(Path(error.filename or file))) from error
                continue
            except NotADirectoryError as error:
                raise DataError(f"{self.path} is a file; a gallery is a folder, name another") from error
            self.list, self._seen = newest, seen
            return True
        raise AssertionError("unreachable")

    def append(self, rows: Rows) -> None:
        """Add rows; on disk all at once for up to MOST_ROWS of them. Raises OSError where the disk is full, and then
        the gallery is as it was."""
        for start in range(0, len(rows), MOST_ROWS):
            with self._writing():
                some = rows.take(np.arange(start, min(start + MOST_ROWS, len(rows))))
                absorbed = {record.name for record in geometric(self.list.parts, len(some))}
                old = [part for part in self.parts if part.record.name in absorbed]
                kept = [part.record for part in self.parts if part.record.name not in absorbed]
                some = joined([*(part.rows for part in old), some])
                self._replace(kept, [some])

    def remove(self, wanted: Callable[[Part], npt.NDArray[np.bool_]]) -> Rows | None:
        """Take out the rows that `wanted` marks in a part, (N,); returns them. Their numbers and pictures are gone from
        the disk, as the parts that held them are written again without them."""
        with self._writing():
            kept: list[PartRecord] = []
            changed: list[Rows] = []
            gone: list[Rows] = []
            for part in self.parts:
                marked = wanted(part)
                if not marked.any():
                    kept.append(part.record)
                    continue
                gone.append(part.rows.take(np.flatnonzero(marked)))
                if not marked.all():
                    changed.append(part.rows.take(np.flatnonzero(~marked)))
            if gone:
                self._replace(kept, changed)
            return joined(gone) if gone else None

    def check(self) -> None:
        """Read every file again and compare its hash. Raises DataError for the first that is damaged."""
        self._seen, self.parts = None, []
        self.refresh()
        for part in self.parts:
            part.check_crops()

    def _replace(self, kept: list[PartRecord], new: list[Rows]) -> None:
        """Write parts, then the list that names them and those that are kept, then remove the others."""
        folder = self.path / PARTS
        change = self.list.change + 1
        try:
            written = [write_part(folder, f"{change:08d}-{number}", rows) for number, rows in enumerate(new)]
            newest = replace(self.list, change=change, parts=(*kept, *written))
            write_text_whole(self.path / LIST, newest.to_text(), durable=True)
        finally:
            self._remove_unlisted()
        self.refresh()

    def _remove_unlisted(self) -> None:
        """Remove files of parts that no list names: of before a change, or of a process that was killed."""
        listed = GalleryList.from_file(self.path / LIST)
        folder = self.path / PARTS
        named = {file for record in listed.parts for file in record.files(folder)}
        for file in folder.iterdir() if folder.is_dir() else ():
            if file not in named:
                file.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold the lock, with the newest list read."""
        with _locked(self.path):
            self.refresh()
            self._remove_unlisted()
            yield

    def check_weights(self, sha256: str, name: str) -> None:
        """Raise WeightsError unless the weights of this hash made the embeddings."""
        if sha256 != self.list.weights:
            raise WeightsError(
                f"{self.path} was enrolled with other weights ({self.list.weights_name}, sha256 "
                f"{self.list.weights[:12]}...) than {name} ({sha256[:12]}...): their embeddings cannot be compared; "
                "give the gallery's own, or enroll the photographs into a new gallery"
            )


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a gallery; wait for another that writes. ConfigError after PATIENCE seconds."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            lock = Lock(folder / LOCK)
            break
        except ConfigError as error:
            if time.monotonic() > until:
                raise ConfigError(
                    f"{folder} has been written by another process for {PATIENCE:.0f} seconds; wait for it, or end it"
                ) from error
    try:
        yield
    finally:
        lock.release()
