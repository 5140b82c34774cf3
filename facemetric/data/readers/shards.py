"""Images of any source to tar shards, their bytes as they are: what `facemetric data convert` writes.

Images come in the order in which they lie in their source, so that each of its parts is read once. A plain shard holds
`identity/image.jpg`, one of WebDataset's also `identity/image.cls` beside it. The same source and options give the same
bytes: members have no times and no owners.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from facemetric.data.index import ImageIndex
from facemetric.data.readers.reader import identity_text
from facemetric.data.readers.skips import NO_IMAGE, Skips, skipped_folder, why_skip_file
from facemetric.data.readers.tar import TarReader
from facemetric.errors import DataError, first_few
from facemetric.files import write_whole

STARTS = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp"}
SHARD = "shard-{:06d}.tar"


class Shard(NamedTuple):
    """A shard that was written: its file, the places [first, end) in the order of the images that it covers, how many
    of them it holds, and their bytes."""

    name: str
    first: int
    end: int
    images: int
    size: int


class Held(NamedTuple):
    """What shards hold, as the tar reader finds it."""

    images: int
    size: int
    identities: frozenset[str]


class ShardWriter:
    """Writes the images of an index, in `order`, into the folder `out`. DataError where plain members cannot name them.

    `bad` is told the row and the reason of each image that cannot be read."""

    def __init__(
        self, index: ImageIndex, out: Path, *, size: int, webdataset: bool, bad: Callable[[int, str], None]
    ) -> None:
        self.index, self.out, self.size, self.webdataset, self.bad = index, out, size, webdataset, bad
        self.order = index.reading_order()
        self._check_names()

    def write(self, number: int, first: int, moved: Callable[[int], object] = lambda images: None) -> Shard:
        """The shard of a number, of images from a place in the order on; it appears whole, or not at all.

        Where none of them can be read there is no file."""
        name = SHARD.format(number)
        found = Shard(name, first, first, 0, 0)

        def fill(path: Path) -> None:
            nonlocal found
            with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
                found = self._fill(tar, found, moved)

        write_whole(self.out / name, fill, durable=True)
        if not found.images:
            (self.out / name).unlink()
        return found

    def _fill(self, tar: tarfile.TarFile, shard: Shard, moved: Callable[[int], object]) -> Shard:
        _, first, end, images, size = shard
        for row in self.order[first:].tolist():
            try:
                data = self.index.read(row)
            except OSError as error:
                self.bad(row, f"cannot be read: {error.strerror or error}")
                end += 1
                continue
            if images and size + len(data) > self.size:
                break
            self._add(tar, row, data)
            images, size, end = images + 1, size + len(data), end + 1
            moved(1)
        return shard._replace(end=end, images=images, size=size)

    def _add(self, tar: tarfile.TarFile, row: int, data: bytes) -> None:
        name = self._member(row)
        if self.webdataset:
            folder, _, leaf = name.rpartition("/")
            stem, ending = os.path.splitext(leaf) if why_skip_file(leaf) is None else (leaf, "")
            name = f"{folder}/{stem.replace('.', '_')}"
            _write(tar, f"{name}.cls", self._identity(row).encode("utf-8", "surrogateescape"))
            name += ending
        if why_skip_file(name.rpartition("/")[2]) is NO_IMAGE:
            name += next((ending for start, ending in STARTS.items() if data.startswith(start)), ".jpg")
        _write(tar, name, data)

    def _identity(self, row: int) -> str:
        return self.index.identities[self.index.identity[row]]

    def _member(self, row: int) -> str:
        """`identity/...`, of the image's name."""
        identity, name = self._identity(row), self.index.name(row)
        own = name if name.startswith(identity + "/") else f"{identity}/{name}"
        return "/".join(part for part in own.split("/") if part not in ("", ".", ".."))

    def _check_names(self) -> None:
        """Raise DataError where the tar reader would not find an image again under its identity, or two are one."""
        hashes = np.empty(len(self.index), np.int64)
        unfit: list[str] = []
        for row in range(len(self.index)):
            member, identity = self._member(row), self._identity(row)
            hashes[row] = hash(member.replace(".", "_") if self.webdataset else member)
            if self.webdataset:
                fits = identity_text(identity) == identity
            else:
                leaf = member.rpartition("/")[2]
                plain = member.startswith(identity + "/") and "/" not in identity
                fits = plain and not skipped_folder(member) and why_skip_file(leaf) in (None, NO_IMAGE)
            if not fits:
                unfit.append(f"{identity!r} ({self.index.name(row)})")
        if unfit:
            remedy = (
                "rename them"
                if self.webdataset
                else "give --webdataset, which writes labels beside the images"
            )
            raise DataError(f"identities that the folders of a tar cannot be: {first_few(unfit)}; {remedy}")
        hashes.sort()
        if (twice := int((hashes[1:] == hashes[:-1]).sum())) > 0:
            raise DataError(f"{twice:,} images would have the name of another in the shards; rename them")


def _write(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def read_back(out: Path, shards: Sequence[Shard]) -> Held:
    """What the tar reader finds in shards. DataError where one is missing, damaged, or holds another number of images
    than were written."""
    images, size, identities = 0, 0, set[str]()
    for shard in shards:
        found, held = 0, 0
        if not (out / shard.name).is_file():
            raise DataError(f"{out / shard.name}: is missing; remove {out} and convert again")
        for row in TarReader(str(out / shard.name)).scan(Skips(), loose=False):
            found, held = found + 1, held + row.size
            identities.add(row.identity)
        if (found, held) != (shard.images, shard.size):
            raise DataError(
                f"{out / shard.name}: holds {found:,} images of {held:,} bytes, and {shard.images:,} of {shard.size:,} "
                f"were written; remove {out} and convert again"
            )
        images, size = images + found, size + held
    return Held(images, size, frozenset(identities))
