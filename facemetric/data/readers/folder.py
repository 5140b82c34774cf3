"""A folder of identities: `identity/**/image.jpg`, each image a file of its own."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from facemetric.data.readers import skips as kinds
from facemetric.data.readers.reader import FileReader, Row
from facemetric.data.readers.skips import Skips, why_skip_file, why_skip_folder
from facemetric.errors import DataError


class FolderReader(FileReader):
    """Its folders are the identities; images beside them belong to none."""

    def scan(self, skips: Skips, *, loose: bool) -> Iterator[Row]:
        root = os.path.realpath(self.path)
        above = {_place_of(self.path)} | {_place_of(str(parent)) for parent in Path(root).parents}
        for entry in entries(self.path):
            if is_folder(entry):
                if kind := why_skip_folder(entry.name):
                    skips.add(kind, entry.name)
                    continue
                found = False
                for row in _scan_identity(entry.name, entry.path, above, skips):
                    found = True
                    yield row
                if not found:
                    skips.add(kinds.EMPTY, entry.name)
            elif why_skip_file(entry.name) is None and not loose:
                skips.add(kinds.OUTSIDE, entry.name)
            elif (image := _image("", entry.name, entry, skips)) is not None:
                yield image


def _scan_identity(identity: str, root: str, above: set[tuple[int, int]], skips: Skips) -> Iterator[Row]:
    """All images below an identity's folder.

    A folder met twice through links is walked once, so loops end. A link up to the data itself (`above`) is not
    walked, as it would give everybody's images to one identity.
    """
    seen = set(above)
    todo = [(identity, root)]
    while todo:
        below, path = todo.pop()
        here = _place_of(path)
        if here in seen:
            skips.add(kinds.WALKED, below)
            continue
        seen.add(here)
        for entry in entries(path):
            name = f"{below}/{entry.name}"
            if is_folder(entry):
                if kind := why_skip_folder(entry.name):
                    skips.add(kind, name)
                else:
                    todo.append((name, entry.path))
            elif row := _image(identity, name, entry, skips):
                yield row


def _image(identity: str, name: str, entry: os.DirEntry[str], skips: Skips) -> Row | None:
    """The row of an image, or None for a file that is skipped."""
    if kind := why_skip_file(entry.name):
        skips.add(kind, name)
        return None
    try:
        state = entry.stat()
    except OSError:
        skips.add(kinds.BROKEN, name)
        return None
    if not stat.S_ISREG(state.st_mode):  # to read a pipe would wait for ever
        skips.add(kinds.DEVICE, name)
        return None
    return Row(identity, name, state.st_size, 0, state.st_mtime_ns)


def _place_of(path: str) -> tuple[int, int]:
    """Device and number of a folder, the same for all links to it."""
    try:
        state = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be entered ({error.strerror}); give a readable folder") from None
    return state.st_dev, state.st_ino


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def entries(path: str) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted by name. DataError where it cannot be listed."""
    try:
        with os.scandir(path) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be listed ({error.strerror}); give a readable folder without link loops"
        ) from None
