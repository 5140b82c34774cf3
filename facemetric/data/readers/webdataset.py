"""WebDataset shards: a tar of samples, `key.jpg` beside `key.cls` or `key.json`, which hold the identity.

The files of a sample lie together and share their name up to its first dot. A `.cls` holds the identity as text (a
number as a rule), a `.json` under one of LABELS. A tar is one where an image near its start has a `.cls` beside it, or,
outside a folder, a `.json`; others are plain, so that notes beside the images of `identity/image.jpg` change nothing.
An image is named `identity/key.jpg`. Source of the layout: github.com/webdataset/webdataset, "The WebDataset Format".
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence

from facemetric.data.readers import skips as kinds
from facemetric.data.readers.reader import Member, Row, identity_text
from facemetric.data.readers.skips import Skips, why_skip_file
from facemetric.errors import DataError

LABELS = ("identity", "label", "cls", "class", "target")  # keys of a .json, the first that is there counts
LOOKED_AT = 200  # members at the start of a tar, by which its kind is known
MOST_BYTES = 1 << 20  # of a label's file


def key_of(name: str) -> tuple[str, str]:
    """(key, ending) of a member: its name up to the first dot behind its folders, and what follows."""
    folder, slash, leaf = name.rpartition("/")
    key, _, ending = leaf.partition(".")
    return folder + slash + key, ending.lower()


def is_webdataset(members: Sequence[Member]) -> bool:
    """Whether the first members of a tar are samples."""
    endings: dict[str, set[str]] = {}
    for member in members:
        key, ending = key_of(member.name)
        endings.setdefault(key, set()).add(
            "image" if why_skip_file(os.path.basename(member.name)) is None else ending
        )
    return any(
        "image" in found and ("cls" in found or ("json" in found and "/" not in key))
        for key, found in endings.items()
    )


def images_of_samples(path: str, members: Iterable[Member], skips: Skips, *, loose: bool) -> Iterator[Row]:
    """The images of a tar of samples. One without an identity is counted in `skips`, or taken where `loose` is set."""
    with open(path, "rb") as file:
        key, images, label = "", list[Member](), ""
        for member in _ended(members):
            here, ending = key_of(member.name)
            if here != key:
                yield from _rows(images, label, skips, loose=loose)
                key, images, label = here, [], ""
            leaf = member.name.rpartition("/")[2]
            if ending in ("cls", "json"):
                if ending == "cls" or not label:
                    label = _label(path, file.fileno(), member, ending) or label
            elif kind := why_skip_file(leaf):
                if leaf and kind is not kinds.NO_IMAGE:
                    skips.add(kind, member.name)
            else:
                images.append(member)


def _ended(members: Iterable[Member]) -> Iterator[Member]:
    """The members, and one of another key behind them."""
    yield from members
    yield Member("/", 0)


def _rows(images: list[Member], label: str, skips: Skips, *, loose: bool) -> Iterator[Row]:
    for name, size, offset in images:
        if label:
            yield Row(label, name if name.startswith(label + "/") else f"{label}/{name}", size, offset)
        elif loose:
            yield Row("", name, size, offset)
        else:
            skips.add(kinds.UNLABELLED, name)


def _label(path: str, fd: int, member: Member, ending: str) -> str:
    """The identity in a .cls or .json; "" where it holds none."""
    if member.size > MOST_BYTES:
        raise DataError(
            f"{path}: {member.name} has {member.size:,} bytes, which no label needs; make the shard again"
        )
    data = os.pread(fd, member.size, member.offset)
    try:
        if ending == "cls":
            return identity_text(data.decode("utf-8"))
        found = json.loads(data)
    except (ValueError, RecursionError):
        what = "UTF-8 text" if ending == "cls" else "JSON"
        raise DataError(f"{path}: {member.name} is no {what}; make the shard again") from None
    names = [name for name in LABELS if name in found] if isinstance(found, dict) else []
    return identity_text(found[names[0]]) if names else ""
