"""Folders, lists and tars of images for the tests of data/, and what is told about them."""

from __future__ import annotations

import errno
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from facemetric.data.index import ImageIndex, read_index
from facemetric.errors import DataError

DENIED = PermissionError(errno.EACCES, "Permission denied")
PEOPLE = {"anna": ["a.jpg", "b.png"], "bob": ["c.jpeg"], "carl": ["deep/er/d.webp", "e.bmp"]}


def put(path: Path, data: bytes = b"x") -> Path:
    """A file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def fill(root: Path, people: dict[str, list[str]]) -> Path:
    """A folder of files whose bytes are their names."""
    for identity, images in people.items():
        for image in images:
            put(root / identity / image, f"{identity}/{image}".encode())
    return root


def pack(path: Path, members: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> Path:
    """A tar of these members."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members.items():
            tar.addfile(member(name, len(data)), io.BytesIO(data))
    return path


def pack_people(path: Path, people: dict[str, list[str]] = PEOPLE) -> Path:
    """A tar of members whose bytes are their names."""
    return pack(path, {f"{i}/{m}": f"{i}/{m}".encode() for i, images in people.items() for m in images})


def tar_of(path: Path, *members: tarfile.TarInfo, form: int = tarfile.GNU_FORMAT) -> Path:
    """A tar of these members, whose bytes are all `d`."""
    with tarfile.open(path, "w", format=form) as tar:
        for info in members:
            tar.addfile(info, io.BytesIO(b"d" * info.size))
    return path


def member(name: str, size: int = 700, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    """A member's header."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


def folder_or_tar(root: Path, files: list[str], packed: bool) -> Path:
    """The same files in a folder, or in a tar."""
    if packed:
        return tar_of(root / "a.tar", *map(member, files))
    for name in files:
        put(root / "a" / name)
    return root / "a"


def names(index: ImageIndex) -> list[str]:
    """The names of all images."""
    return [index.name(i) for i in range(len(index))]


def holds_its_name(index: ImageIndex, prefix: str = "") -> bool:
    """Whether each image's bytes are its name."""
    return all(prefix + index.read(i).decode() == index.name(i) for i in range(len(index)))


def contents(data: object, **options: bool) -> dict[str, tuple[str, bytes]]:
    """Identity and bytes of each image of a source, by name."""
    index = read_index(data, **options)  # type: ignore[arg-type]
    return {index.name(i): (index.identities[index.identity[i]], index.read(i)) for i in range(len(index))}


def message(data: object) -> str:
    """The one line that a source which cannot be read is refused with."""
    with pytest.raises(DataError) as caught:
        read_index(data)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def deny(monkeypatch: pytest.MonkeyPatch, call: str, where: object) -> None:
    """`os.call(where)` is refused; root may do everything, so modes of files do not tell."""
    real: Callable[..., object] = getattr(os, call)

    def refuse(path: object, *rest: object, **options: object) -> object:
        if str(path) == str(where):
            raise DENIED
        return real(path, *rest, **options)

    monkeypatch.setattr(os, call, refuse)
