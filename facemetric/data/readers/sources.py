"""From what the user named (`PATH` or `NAME=PATH`) to the rows of an index, by the reader of its kind."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

from facemetric.data.images import other_kind
from facemetric.data.readers import READERS
from facemetric.data.readers.folder import FolderReader, entries, is_folder
from facemetric.data.readers.reader import Reader
from facemetric.data.readers.skips import why_skip_file, why_skip_folder
from facemetric.data.store import Rows
from facemetric.errors import DataError, first_few, nearest_beside, plural

BRACES = re.compile(r"\{([^{}]*)\}")  # {000000..000123} or {train,test} of a pattern of shards
MOST_SHARDS = 1_000_000  # of a pattern
UNFINISHED = "unfinished.json"  # beside shards that `data convert` has not finished
PACKED_ENDINGS = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".rar")


class Source(NamedTuple):
    """One set of images; `name` goes before its identities when it was given, or there are several."""

    name: str
    path: Path
    named: bool


def parse_source(text: str | Path) -> Source:
    """`PATH` or `NAME=PATH`. A path that itself holds an `=` is taken whole where it exists, or if written
    `./a=b`. It may be a pattern of shards, `faces-{000000..000123}.tar`.
    """
    text = os.fspath(text)
    name, equals, path = text.partition("=")
    if equals and re.fullmatch(r"[A-Za-z0-9_.-]+", name) and not os.path.exists(text):
        if not path:
            raise DataError(f"{text!r}: a name without a path; write NAME=PATH")
        return Source(name, _from_home(path), True)
    if not text:
        raise DataError(
            f"an empty path as data; give a folder of identities, or a file ({', '.join(READERS)})"
        )
    given = _from_home(text)
    whole = Path(os.path.abspath(given))
    name = whole.name if given.is_dir() else whole.stem
    if is_pattern(str(given)):
        name = BRACES.sub("", name).strip("-_.") or "shards"
    return Source(name, given, False)


def _from_home(path: str) -> Path:
    """`~/faces` below the home folder, as a shell reads it: nobody does in TOML and Python."""
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


def is_picture(path: Path) -> bool:
    """Whether a path is that of one image file."""
    return path.is_file() and why_skip_file(path.name) is None


def is_loose(identity: str) -> bool:
    """Whether an identity of the index means "no identity": an image read with `loose`, outside a folder."""
    return not identity or identity.endswith("/")


def scan(rows: Rows, source: Source, prefix: str, *, loose: bool = False) -> None:
    """Adds the images of one source. DataError where there is none, or it cannot be read.

    `loose` takes images without an identity too: outside an identity's folder, or of a csv without that column.
    """
    path = str(source.path)
    before = len(rows.identity)
    readers = _readers_of(path, loose)
    for reader in readers:
        rows.add_source(reader, prefix, loose=loose)
        rows.notes += reader.notes
    if len(rows.identity) == before:
        what, needed = ("image", "image.jpg") if loose else ("image of an identity", "identity/image.jpg")
        skipped = ", ".join(rows.skips.phrases())
        raise DataError(
            f"{path}: holds no {what}{f' (skipped {skipped})' if skipped else ''}; needed is {needed}"
        )
    if readers[0].identity_folders:
        _note_folders_alone(rows, path, prefix)


def _readers_of(path: str, loose: bool) -> list[Reader]:
    """One reader, or one for each shard of a folder. DataError for what none reads."""
    if os.path.isdir(path):
        shards = _shards(path, loose)
        return [READERS[_ending(shard)](shard) for shard in shards] or [FolderReader(path)]
    known = ", ".join(READERS)
    if is_pattern(path):
        return _pattern(path)
    if not os.path.isfile(path):
        what = nearest_beside(Path(path)) or f"; give a folder of identities, or a file ({known})"
        raise DataError(f"{path}: no such file or folder{what}")
    ending = _ending(path)
    if ending in READERS:
        return [READERS[ending](path)]
    if ending in PACKED_ENDINGS:
        raise DataError(
            f"{path}: is packed; images are read in place, so unpack it to a folder or a plain .tar"
        )
    needed = "a folder of images" if loose else "a folder of identities (identity/image.jpg)"
    if is_picture(Path(path)):
        raise DataError(
            f"{path}: is one image; give {needed}, such as the one that it lies in, or a file ({known})"
        )
    if kind := _other_kind_of(path):
        raise DataError(f"{path}: is {kind}, and give {needed}")
    raise DataError(f"{path}: unknown kind of data; give {needed}, or a file ({known})")


def _other_kind_of(path: str) -> str:
    """What `other_kind` says of a file; "" where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return other_kind(file.read(12))
    except OSError:
        return ""


def is_pattern(path: str) -> bool:
    """Whether a path names shards by braces."""
    return BRACES.search(path) is not None and not os.path.lexists(path)


def _pattern(path: str) -> list[Reader]:
    """A reader for each shard of a pattern. DataError where one is missing."""
    shards = list(islice(_expanded(path), MOST_SHARDS + 1))
    if len(shards) > MOST_SHARDS:
        raise DataError(
            f"{path}: names over {MOST_SHARDS:,} files; name fewer, or the folder that they lie in"
        )
    endings = {_ending(shard) for shard in shards}
    kind = READERS.get(min(endings))
    if len(endings) > 1 or kind is None or not kind.may_be_shard:
        possible = ", ".join(ending for ending, reader in READERS.items() if reader.may_be_shard)
        raise DataError(
            f"{path}: names files of the kind {', '.join(sorted(endings))}; shards are {possible}"
        )
    missing = [shard for shard in shards if not os.path.isfile(shard)]
    if missing:
        raise DataError(
            f"{path}: {len(missing):,} of {plural(len(shards), 'shard')} missing: {first_few(missing)}; copy them, or "
            "correct the numbers in the braces"
        )
    return [kind(shard) for shard in dict.fromkeys(shards)]


def _expanded(path: str) -> Iterator[str]:
    """The files that a pattern names, as a shell would write them out."""
    parts = BRACES.split(path)  # text and what is in braces, in turn
    choices = [[part] if number % 2 == 0 else _choices(path, part) for number, part in enumerate(parts)]
    return map("".join, product(*choices))


def _choices(path: str, inside: str) -> Sequence[str]:
    if numbers := re.fullmatch(r"(\d{1,9})\.\.(\d{1,9})", inside):
        first, last = int(numbers[1]), int(numbers[2])
        width = (
            max(map(len, numbers.groups()))
            if any(n[0] == "0" and len(n) > 1 for n in numbers.groups())
            else 0
        )
        if first <= last <= first + MOST_SHARDS:
            return [f"{number:0{width}d}" for number in range(first, last + 1)]
    if ".." in inside or "," not in inside:
        raise DataError(
            f"{path}: what is in braces is no range; needed is such as {{000000..000123}} or {{a,b}}"
        )
    return inside.split(",")


def _ending(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _shards(path: str, loose: bool) -> list[str]:
    """The files of a folder that are a source together; [] for a folder of identities."""
    found = [entry for entry in entries(path) if why_skip_folder(entry.name) is None]
    if any(entry.name == UNFINISHED for entry in found):
        raise DataError(
            f"{path}: is a conversion that has not finished; the same `facemetric data convert` goes on with it"
        )
    alone = not any(why_skip_file(entry.name) is None or is_folder(entry) for entry in found)
    shards = [entry.path for entry in found if _is_shard(entry.name, alone) and os.path.isfile(entry.path)]
    if not shards:
        return []
    if len(endings := {_ending(shard) for shard in shards}) > 1:
        raise DataError(
            f"{path}: holds files of several kinds ({', '.join(sorted(endings))}); put them apart"
        )
    images = loose and any(why_skip_file(entry.name) is None for entry in found)
    if images or any(is_folder(entry) for entry in found):
        what = "images" if images else "folders"
        raise DataError(f"{path}: holds both {endings.pop()} shards and {what}; put them apart and name both")
    return shards


def _is_shard(name: str, alone: bool) -> bool:
    """Whether a file of a folder is a source; `alone`: no images and no folders are beside it."""
    kind = READERS.get(_ending(name))
    return (
        kind is not None
        and kind.may_be_shard
        and name not in kind.not_images
        and (alone or not kind.other_uses)
    )


def _note_folders_alone(rows: Rows, path: str, prefix: str) -> None:
    """Notes where no identity has an image of its own: the folder above `train/` and `test/` looks like two people."""
    people = [name for name in rows.identities if name.startswith(prefix) and not is_loose(name)]
    if people and not any(name in rows.folders for name in people):
        below = min(name for name in rows.folders if name.startswith(people[0] + "/"))
        shown = first_few(name[len(prefix) :] for name in people)
        rows.notes.append(
            f"{path}: all images of its {plural(len(people), 'identity', 'identities')} ({shown}) lie in folders "
            f"further down, such as {below[len(prefix) :]!r}; if these are the identities, name the folders above "
            "them, or each as a source"
        )
