"""The index: which images there are, of whom, and where their bytes lie.

A source is `PATH` or `NAME=PATH`; readers/ has a reader for each kind: a folder (`identity/**/image.jpg`), a csv with
the columns `path,identity` (paths below the csv's folder; every other column is a group), a plain `.tar` whose members
are `identity/image.jpg`, or samples of WebDataset, InsightFace's `.rec` and `.bin`, a Parquet table, an LMDB, or a
folder of such shards. Identities of a named source are prefixed with
`NAME/`; where several sources are given, an unnamed one is prefixed with its folder's name or its file's stem, so that
`001` in two sources stays two people. Sources given the same name on purpose (`a=x.tar a=y.tar`) share their
identities.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facemetric.data.readers import skips as kinds
from facemetric.data.readers.csv import FileList
from facemetric.data.readers.sources import Source, is_picture, parse_source, prefixes, scan
from facemetric.data.store import MOST_VALUES, Location, Rows, Store, composed
from facemetric.errors import DataError, did_you_mean, plural

__all__ = ["ImageIndex", "Location", "Source", "Split", "index_files", "parse_source", "read_index"]


class Split(NamedTuple):
    """An index in two parts by identity, and the listed names it does not hold."""

    rest: ImageIndex
    picked: ImageIndex
    unknown: tuple[str, ...]


class Cuts(NamedTuple):
    """Of N parts of images: the file that each was cut into, "" where it is the image, and the end of its name."""

    files: np.ndarray
    ends: np.ndarray


class ImageIndex:
    """N images of some identities, in the order of (identity, name), not in the file system's.

    `identity` (N,) int32 points into `identities`, sorted names. `aliases` maps a merged name to the one
    kept. `notes` says in sentences what was skipped, `ignored` how many files and folders that were.
    """

    def __init__(
        self, store: Store, rows: np.ndarray, identity: np.ndarray, identities: Sequence[str]
    ) -> None:
        self._store = store
        self._rows = rows  # (N,) int64, rows of the store
        self.identity = identity
        self.identities = tuple(map(str, identities))  # numpy's texts read `np.str_('anna')` in messages
        self.aliases: Mapping[str, str] = {}
        self.notes: tuple[str, ...] = ()
        self.ignored = 0
        self._cuts: Cuts | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<ImageIndex: {plural(len(self), 'image')} of {plural(len(self.identities), 'identity', 'identities')}>"

    def name(self, i: int) -> str:
        """`identity/image.jpg`, or the path as the csv has it; with the source's prefix where there is one.

        A merge does not change it.
        """
        name = self._store.name(self._rows[i])
        return name + str(self._cuts.ends[i]) if self._cuts is not None else name

    def location(self, i: int) -> Location:
        """Where image i's bytes lie."""
        if file := self._own_file(i):
            return Location(file, 0, os.path.getsize(file))
        return self._store.location(self._rows[i])

    def read(self, i: int) -> bytes:
        """The bytes of image i. OSError where they are gone, cut short or changed since they were indexed.

        Any number of threads and of forked workers may call it at once.
        """
        if file := self._own_file(i):
            return Path(file).read_bytes()
        return self._store.read(self._rows[i])

    def _own_file(self, i: int) -> str:
        """The file that image i was cut into; "" where it is read from where it was found."""
        return str(self._cuts.files[i]) if self._cuts is not None else ""

    def find(self, name: str) -> int | None:
        """The row of an image's name, or None. A letter and its accent may be one character or two."""
        hashes, rows = self._names
        wanted, alike = composed(name), None
        key = hash(wanted)
        at = int(np.searchsorted(hashes, key))
        while at < len(hashes) and hashes[at] == key:
            found = self.name(rows[at])
            if found == name:
                return int(rows[at])
            if alike is None and composed(found) == wanted:
                alike = int(rows[at])
            at += 1
        return alike

    @cached_property
    def _names(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted hashes of the names, and their rows: 16 bytes an image where a dict would take 200."""
        hashes = np.fromiter((hash(composed(self.name(i))) for i in range(len(self))), np.int64, len(self))
        rows = np.argsort(hashes, kind="stable")
        return hashes[rows], rows

    def reading_order(self) -> np.ndarray:
        """(N,) int64: the rows in the order in which their bytes lie in their files."""
        store, rows = self._store, self._rows
        offset = store.offset[rows]
        return np.lexsort((np.where(offset < 0, -1 - offset, offset), store.file[rows]))

    def counts(self) -> np.ndarray:
        """(identities,) int64: images of each identity."""
        return np.bincount(self.identity, minlength=len(self.identities))

    def size(self, i: int) -> int:
        """Bytes of image i."""
        return int(self._store.size[self._rows[i]])

    def sizes(self) -> np.ndarray:
        """(N,) int64: bytes of each image."""
        return self._store.size[self._rows]

    def groups(self) -> dict[str, np.ndarray]:
        """Columns of a csv beside path and identity (age, camera, ...): str (N,) by name, "" where unknown."""
        return {name: texts[codes[self._rows]] for name, (texts, codes) in self._store.groups.items()}

    @property
    def nbytes(self) -> int:
        """Bytes held by the columns and names, without the identities' own names."""
        store = self._store
        columns = (store.file, store.folder, store.offset, store.size, store.mtime, self._rows, self.identity)
        packed = sum(len(p.data) + p.bounds.nbytes for p in (store.leaves, store.folders))
        groups = sum(codes.nbytes for _, codes in store.groups.values())
        return packed + groups + sum(column.nbytes for column in columns)

    def cut(self, rows: np.ndarray, files: Sequence[str], ends: Sequence[str]) -> ImageIndex:
        """Parts of images, such as faces: row numbers, which may come twice, and for each the file that it was cut into
        ("" where it is the image itself) and what its name ends in beside the image's."""
        index = self.select(rows)
        index._cuts = Cuts(np.array(files, np.str_), np.array(ends, np.str_))
        return index

    def select(self, rows: np.ndarray) -> ImageIndex:
        """The images of a boolean mask (N,) or of row numbers, in that order.

        Identities are numbered again among those present, names still sorted; the storage is shared.
        """
        present, identity = np.unique(self.identity[rows], return_inverse=True)
        names = [self.identities[i] for i in present]
        return self._like(rows, identity.astype(np.int32), names)

    def relabel(
        self, identity: np.ndarray, identities: Sequence[str], aliases: Mapping[str, str]
    ) -> ImageIndex:
        """The same images under other identities; images are brought into the order of the new identities."""
        order = np.argsort(identity, kind="stable")
        index = self._like(order, identity[order].astype(np.int32), identities)
        index.aliases = {**self.aliases, **aliases}
        return index

    def split_identities(self, names: Sequence[str], *, skip_unknown: bool = False) -> Split:
        """(rest, picked, unknown): the images of the named identities are `picked`, the others `rest`.

        A merged identity goes whole where any of its names is listed. A name the index does not have is a
        DataError, unless `skip_unknown`: then it is handed back in `unknown`, for a list that covers more
        sources than were given.
        """
        numbers, unknown = self.identity_numbers(names)
        if unknown and not skip_unknown:
            raise DataError(
                f"{plural(len(unknown), 'listed identity', 'listed identities')} not in the data, first {unknown[0]!r}"
                f"{did_you_mean(unknown[0], self.identities)}"
            )
        wanted = np.zeros(len(self.identities), bool)
        wanted[numbers] = True
        mask = wanted[self.identity]
        return Split(self.select(~mask), self.select(mask), tuple(unknown))

    def identity_numbers(self, names: Sequence[str]) -> tuple[list[int], list[str]]:
        """Numbers of the identities of these names (through merges), and the names that are unknown.

        A letter and its accent may be one character or two; where the index has both, the name as it is written counts.
        """
        exact = {name: i for i, name in enumerate(self.identities)}
        exact |= {old: exact[name] for old, name in self.aliases.items() if name in exact}
        number = {composed(name): i for name, i in exact.items()} | exact
        found = [number.get(name, number.get(composed(name))) for name in names]
        unknown = [str(name) for name, i in zip(names, found, strict=True) if i is None]
        return [i for i in found if i is not None], unknown

    @cached_property
    def fingerprint(self) -> str:
        """64 hex digits over identities, names and sizes in their order: the same on every machine."""
        store, rows = self._store, self._rows
        digest = hashlib.sha256("\0".join(self.identities).encode("utf-8", "surrogateescape"))
        folders, folder = np.unique(store.folder[rows], return_inverse=True)
        # Numbered by name, as the store's own numbers depend on what else was read.
        names = [store.folders[i] for i in folders]
        by_name = sorted(range(len(names)), key=names.__getitem__)
        rank = np.empty(len(names), np.int64)
        rank[by_name] = np.arange(len(names))
        digest.update("\0".join(names[i] for i in by_name).encode("utf-8", "surrogateescape"))
        lengths = store.leaves.bounds[rows + 1] - store.leaves.bounds[rows]
        for column in (self.identity, rank[folder], lengths, store.size[rows]):
            digest.update(np.ascontiguousarray(column, "<i8").tobytes())
        for row in rows:
            digest.update(store.leaves.data[store.leaves.bounds[row] : store.leaves.bounds[row + 1]])
        return digest.hexdigest()

    @cached_property
    def state_key(self) -> str:
        """The fingerprint with the times of last change: other when a file was touched. For caches."""
        digest = hashlib.sha256(self.fingerprint.encode())
        digest.update(self._store.mtime[self._rows].tobytes())
        for i in np.unique(self._store.file[self._rows]):
            stamp = self._store.files[i].reader.stamp
            digest.update(f"{stamp.size} {stamp.mtime}".encode() if stamp else b"-")
        if self._cuts is not None:
            for file in self._cuts.files.tolist():
                digest.update(f"{file} {os.stat(file).st_mtime_ns if file else 0}\n".encode())
        return digest.hexdigest()

    def _like(self, at: np.ndarray, identity: np.ndarray, identities: Sequence[str]) -> ImageIndex:
        """The images at these places (numbers or a mask) under other identities."""
        index = ImageIndex(self._store, self._rows[at], identity, identities)
        if self._cuts is not None:
            index._cuts = Cuts(self._cuts.files[at], self._cuts.ends[at])
        index.aliases, index.notes, index.ignored = self.aliases, self.notes, self.ignored
        return index


def read_index(data: str | Path | Sequence[str | Path], *, loose: bool = False) -> ImageIndex:
    """Reads one or several sources (see the top of the module) into one index.

    With `loose`, images that belong to no identity are taken too (see `sources.is_loose`), and image files as sources:
    together they are one, named from the folder that holds them all. What is skipped (files that are no images,
    thumbnails, broken links: readers/skips.py) is counted in `ignored` and told in `notes`. DataError where a source is
    missing, empty, damaged, or one image is listed for two identities.
    """
    texts = [data] if isinstance(data, str | Path) else list(data)
    if not texts:
        raise DataError("no data; give a folder of identities, a csv (path,identity) or a .tar")
    found = [parse_source(text) for text in texts]
    alone = [source for source in found if loose and not source.named and is_picture(source.path)]
    sources = [source for source in found if source not in alone]
    rows = Rows()
    root = os.path.commonpath([os.path.abspath(source.path.parent) for source in alone]) if alone else ""
    names = prefixes([*sources, *([Source(os.path.basename(root), Path(root), False)] if alone else [])])
    for source, prefix in zip(sources, names, strict=False):
        scan(rows, source, prefix, loose=loose)
    if alone:
        listed = [os.path.relpath(os.path.abspath(picture.path), root) for picture in alone]
        rows.add_source(FileList(root, listed), names[-1], loose=True)
    return _in_order(rows)


def index_files(paths: Sequence[str | Path], root: str | Path = "") -> ImageIndex:
    """Listed files below `root`, named as listed, the folder of each its identity: for what pairs name.

    DataError that names those that do not exist.
    """
    rows = Rows()
    rows.add_source(FileList(str(root) or ".", [os.fspath(path) for path in paths]), "")
    return _in_order(rows)


def _in_order(rows: Rows) -> ImageIndex:
    """The index over all rows, sorted by identity and name, images listed twice taken out."""
    rows.bar.close()
    store = Store(rows)
    names = sorted(rows.identities)
    rank = np.empty(len(names), np.int32)
    rank[[rows.identities[name] for name in names]] = np.arange(len(names), dtype=np.int32)
    identity = rank[np.array(rows.identity, np.int32)]
    order = np.argsort(identity, kind="stable")
    identity = identity[order]
    bounds = np.searchsorted(identity, np.arange(len(names) + 1))
    hashes = np.empty(len(order), np.int64)
    for first, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        found = sorted((store.name(row), row) for row in order[first:end].tolist())
        order[first:end] = [row for _, row in found]
        hashes[first:end] = [hash(name) for name, _ in found]
    keep = _without_doubles(rows, store, order, identity, hashes)
    index = ImageIndex(store, order.astype(np.int64), identity, names)
    if not keep.all():
        index = index.select(keep)
    index.notes = (*rows.skips.notes(), *rows.notes)
    index.notes += tuple(
        f"column {name!r} has over {MOST_VALUES:,} values: it is not used as a group"
        for name, column in rows.groups.items()
        if column.many
    )
    index.ignored = sum(rows.skips.counts.values())
    return index


def _without_doubles(
    rows: Rows, store: Store, order: np.ndarray, identity: np.ndarray, hashes: np.ndarray
) -> np.ndarray:
    """(N,) bool: of a name met twice in one file the last counts, as in tar; across files: DataError."""
    keep = np.ones(len(order), bool)
    by_hash = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[by_hash][1:] == hashes[by_hash][:-1])
    for i, j in zip(by_hash[same].tolist(), by_hash[same + 1].tolist(), strict=True):
        name = store.name(order[i])
        if name != store.name(order[j]):
            continue
        one, other = (store.files[store.file[order[k]]].reader.path for k in (i, j))
        if one != other:
            raise DataError(
                f"{name!r} is in both {one} and {other}; name the sources apart, as A=PATH B=PATH"
            )
        if identity[i] != identity[j]:
            people = sorted(rows.identities)
            raise DataError(
                f"{name!r} is listed for both {people[identity[i]]!r} and {people[identity[j]]!r}; keep one"
            )
        keep[i] = False
        rows.skips.add(kinds.TWICE, name)
    return keep
