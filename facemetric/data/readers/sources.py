"""From what the user named (a folder, a csv, a tar) to rows of a store: who, where, how long."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from facemetric.data.readers.bin import read_bin
from facemetric.data.readers.csv import csv_lines, scan_files
from facemetric.data.readers.folder import (
    _entries,
    _is_dir,
    _is_image,
    _no_image,
    _scan_folder,
    hidden_folder,
)
from facemetric.data.readers.tar import walk_tar
from facemetric.data.store import Rows, SourceFile
from facemetric.errors import DataError

PACKED_ENDINGS = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar")


class Source(NamedTuple):
    """One set of images; `name` goes before its identities when it was given, or there are several."""

    name: str
    path: Path
    named: bool


def parse_source(text: str | Path) -> Source:
    """`PATH` or `NAME=PATH`. A path that itself holds an `=` is taken whole where it exists, or if written
    `./a=b`.
    """
    text = os.fspath(text)
    name, equals, path = text.partition("=")
    if equals and re.fullmatch(r"[A-Za-z0-9_.-]+", name) and not os.path.exists(text):
        if not path:
            raise DataError(f"{text!r}: a name without a path; write NAME=PATH")
        return Source(name, _from_home(path), True)
    if not text:
        raise DataError("an empty path as data; give a folder, a csv or a .tar")
    given = _from_home(text)
    whole = Path(os.path.abspath(given))
    return Source(whole.name if given.is_dir() else whole.stem, given, False)


def _from_home(path: str) -> Path:
    """`~/faces` below the home folder, as a shell has it; in TOML and Python there is none."""
    return Path(path if os.path.lexists(path) else os.path.expanduser(path))


def prefixes(sources: Sequence[Source]) -> list[str]:
    """What identities of each source are prefixed with: nothing for one unnamed source, else `name/`."""
    if len(sources) == 1 and not sources[0].named:
        return [""]
    unnamed = [source.name for source in sources if not source.named]
    taken = {source.name for source in sources if source.named} | {n for n in unnamed if unnamed.count(n) > 1}
    twice = [source for source in sources if not source.named and source.name in taken]
    if twice:
        shown = ", ".join(str(source.path) for source in twice)
        raise DataError(
            f"{shown}: sources of the same name {twice[0].name!r}; name them apart, as A=PATH B=PATH"
        )
    return [source.name + "/" for source in sources]


def is_loose(identity: str) -> bool:
    """Whether an index's identity is none: that of images read with `loose` outside an identity's folder."""
    return not identity or identity.endswith("/")


def scan(rows: Rows, source: Source, prefix: str, *, loose: bool = False) -> None:
    """Adds the images of one source. DataError where there is none, or it cannot be read.

    `loose` takes images without an identity too: outside an identity's folder, or of a csv without that column.
    """
    path = str(source.path)
    before = len(rows.identity)
    if os.path.isdir(path):
        shards = _shards(path, loose)
        if shards:
            for shard in shards:
                _scan_tar(rows, shard, prefix, loose)
        else:
            _scan_folder(rows, path, prefix, loose)
    elif not os.path.isfile(path):
        raise DataError(
            f"{path}: no such file or folder; give a folder of identities, a csv (path,identity) or a .tar"
        )
    elif path.lower().endswith(PACKED_ENDINGS):
        raise DataError(
            f"{path}: is packed; images are read in place, so unpack it to a folder or a plain .tar"
        )
    elif path.lower().endswith(".csv"):
        scan_files(
            rows, os.path.dirname(os.path.abspath(path)), csv_lines(path, loose), prefix=prefix, said=path
        )
    elif path.lower().endswith(".tar"):
        _scan_tar(rows, path, prefix, loose)
    elif path.lower().endswith(".bin"):
        _scan_bin(rows, path, prefix)
    else:
        raise DataError(
            f"{path}: unknown kind of data; give a folder of identities, a .csv (path,identity) or a .tar"
        )
    if len(rows.identity) == before:
        what, needed = ("image", "image.jpg") if loose else ("image of an identity", "identity/image.jpg")
        raise DataError(f"{path}: holds no {what}{_instead(rows)}; needed is {needed}")
    if not path.lower().endswith((".csv", ".bin")):
        _note_folders_alone(rows, path, prefix)


def _note_folders_alone(rows: Rows, path: str, prefix: str) -> None:
    """Says where no identity has an image of its own: the folder above `train/` and `test/` looks like two people."""
    people = [name for name in rows.identities if name.startswith(prefix) and not is_loose(name)]
    if people and not any(name in rows.folders for name in people):
        below = min(name for name in rows.folders if name.startswith(people[0] + "/"))
        shown = ", ".join(name[len(prefix) :] for name in people[:3]) + (", ..." if len(people) > 3 else "")
        rows.notes.append(
            f"{path}: none of its {len(people)} identities ({shown}) has an image of its own, only folders as "
            f"{below[len(prefix) :]!r}; if these are the identities, name the folders above them, or each as a source"
        )


def _instead(rows: Rows) -> str:
    found = [f"{n} {why.rstrip(',')}" for why, n in rows.ignored_counts.items()]
    return f" ({', '.join(found)})" if found else ""


def _shards(path: str, loose: bool) -> list[str]:
    found = [entry for entry in _entries(path) if not entry.name.startswith(".")]
    shards = [
        entry.path for entry in found if entry.name.lower().endswith(".tar") and os.path.isfile(entry.path)
    ]
    for what, there in (("folders", _is_dir), ("images", lambda entry: loose and _is_image(entry.name))):
        if shards and any(there(entry) for entry in found):
            raise DataError(f"{path}: holds both .tar shards and {what}; put them apart and name both")
    return shards


def _scan_tar(rows: Rows, path: str, prefix: str, loose: bool) -> None:
    state = os.stat(path)
    rows.files.append(SourceFile(path, True, prefix, state.st_size, state.st_mtime_ns))
    hidden: set[str] = set()
    for name, offset, size in walk_tar(path):
        identity, slash, _ = name.partition("/")
        if folder := hidden_folder(name):
            if folder not in hidden:
                rows.ignore("hidden folders", folder)
            hidden.add(folder)
        elif why := _no_image(name.rpartition("/")[2]):
            rows.ignore(why, name)
        elif slash or loose:
            rows.add(identity if slash else "", name, offset, size, 0)
        else:
            rows.ignore("images outside an identity's folder", name)


def _scan_bin(rows: Rows, path: str, prefix: str) -> None:
    state = os.stat(path)
    rows.files.append(SourceFile(path, True, prefix, state.st_size, state.st_mtime_ns))
    found = read_bin(path)
    for name, image in zip(found.names(), found.images, strict=True):
        rows.add(name.partition("/")[0], name, image.offset, image.size, 0)
