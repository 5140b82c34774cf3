"""From what the user named (a folder, a csv, a tar) to rows of a store: who, where, how long."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from facemetric.data.store import Rows, SourceFile
from facemetric.errors import DataError

PHOTOGRAPHS = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")


IMAGE_ENDINGS = (*PHOTOGRAPHS, ".pgm", ".ppm", ".pbm", ".pnm")


UNREAD_ENDINGS = (".heic", ".heif", ".avif")  # photographs of phones


def _is_image(leaf: str) -> bool:
    # macOS leaves `._photo.jpg` beside `photo.jpg`: no image.
    return leaf.lower().endswith(IMAGE_ENDINGS) and not leaf.startswith(".")


def _no_image(leaf: str) -> str:
    """Why a file is none of the images; empty where it is one."""
    if _is_image(leaf):
        return ""
    unread = leaf.lower().endswith(UNREAD_ENDINGS) and not leaf.startswith(".")
    return (
        "HEIC or AVIF files, which are not read (convert them to JPEG),"
        if unread
        else "files that are no images"
    )


def hidden_folder(path: str) -> str:
    """The path of a file up to its first hidden folder (`.thumbnails`, `.trash`); empty where there is none."""
    if "/." in path or path.startswith("."):
        folders = path.split("/")[:-1]
        for depth, folder in enumerate(folders, 1):
            if folder.startswith("."):
                return "/".join(folders[:depth])
    return ""


def _scan_folder(rows: Rows, root: str, prefix: str, loose: bool) -> None:
    rows.files.append(SourceFile(root, False, prefix, 0, 0))
    above = {_identity_of(root)} | {
        _identity_of(str(parent)) for parent in Path(os.path.realpath(root)).parents
    }
    for entry in _entries(root):
        if _is_dir(entry):
            if hidden_folder(entry.name + "/"):
                rows.ignore("hidden folders", entry.name)
            else:
                before = len(rows.identity)
                _scan_identity(rows, entry.name, entry.path, above)
                if len(rows.identity) == before:
                    rows.ignore("folders without an image", entry.name)
        elif _is_image(entry.name) and not loose:
            rows.ignore("images outside an identity's folder", entry.name)
        else:
            _add_file(rows, "", entry.name, entry)


def _scan_identity(rows: Rows, identity: str, root: str, above: set[tuple[int, int]]) -> None:
    """All images below an identity's folder. A folder met twice through links is walked once, so loops end;
    a link up to the data itself (`above`) is not walked, as it would give everybody's images to one
    identity."""
    seen = set(above)
    todo = [(identity, root)]
    while todo:
        below, path = todo.pop()
        here = _identity_of(path)
        if here in seen:
            rows.ignore("links to a folder already walked", below)
            continue
        seen.add(here)
        for entry in _entries(path):
            name = f"{below}/{entry.name}"
            if _is_dir(entry):
                if hidden_folder(name + "/"):
                    rows.ignore("hidden folders", name)
                else:
                    todo.append((name, entry.path))
            else:
                _add_file(rows, identity, name, entry)


def _add_file(rows: Rows, identity: str, name: str, entry: os.DirEntry[str]) -> None:
    """An image, or what is passed over in place of one."""
    if why := _no_image(entry.name):
        rows.ignore(why, name)
        return
    try:
        state = entry.stat()
    except OSError:
        rows.ignore("broken links", name)
        return
    if stat.S_ISREG(state.st_mode):
        rows.add(identity, name, 0, state.st_size, state.st_mtime_ns)
    else:  # to read a pipe would wait for ever
        rows.ignore("pipes and devices", name)


def _identity_of(path: str) -> tuple[int, int]:
    try:
        state = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be entered ({error.strerror}); give a readable folder") from None
    return state.st_dev, state.st_ino


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be listed ({error.strerror}); give a readable folder without link loops"
        ) from None
