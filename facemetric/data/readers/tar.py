"""A plain tar of `identity/image.jpg`: a walk over its headers that unpacks nothing.

Reads ustar, GNU long names and pax. Python's tarfile keeps an object for each member and takes about three times as
long; this keeps nothing. Source of the layout: POSIX.1-2001 pax, and "Basic Tar Format" of the GNU tar manual.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain, islice

from facemetric.data.readers.reader import Member, RangeReader, Row, images_of
from facemetric.data.readers.skips import Skips
from facemetric.data.readers.webdataset import LOOKED_AT, images_of_samples, is_webdataset
from facemetric.errors import DataError, first_few, plural

BLOCK = 512
META_LIMIT = 1 << 20  # bytes of a long name or pax header: real ones are a few hundred
PLAIN, FOLDER, META = b"0\0" + b"7", b"5", b"xgLK"
REFUSED = {
    b"1": "hard link",
    b"2": "symbolic link",
    b"3": "device",
    b"4": "device",
    b"6": "pipe",
    b"S": "sparse",
}
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}


class TarReader(RangeReader):
    """The members of a tar are byte ranges of it; several tars in a folder are one source. In a tar of samples the
    identity is a member of its own (webdataset.py), in a plain one the first folder."""

    may_be_shard = True

    def scan(self, skips: Skips, *, loose: bool) -> Iterator[Row]:
        members = walk_tar(self.path)
        first = list(islice(members, LOOKED_AT))
        members = chain(first, members)
        if not is_webdataset(first):
            return images_of(members, skips, loose=loose)
        self.identity_folders = False
        return images_of_samples(self.path, members, skips, loose=loose)


def walk_tar(path: str) -> Iterator[Member]:
    """The plain files of a tar, in its order: the bytes of each are [offset, offset + size) of the tar.

    `./` and doubled slashes are taken out of the names.

    DataError where the tar is compressed, cut short (which byte, how many members were whole), damaged, goes
    on behind its end marker, or has members that are links, devices, sparse, absolute or climb with `..`.
    """
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror})") from None
    try:
        total = os.fstat(fd).st_size
        _refuse_compressed(path, os.pread(fd, 8, 0))
        yield from _walk(path, fd, total)
    finally:
        os.close(fd)


def _walk(path: str, fd: int, total: int) -> Iterator[Member]:
    at, whole = 0, 0
    long_name, long_size = "", -1  # what a meta member says of the next one
    refused: list[str] = []
    while True:
        header = os.pread(fd, BLOCK, at)
        if len(header) < BLOCK:
            raise _cut(path, total, whole)
        if header.count(0) == BLOCK:
            _nothing_behind(path, fd, at, total)
            break
        name, size, kind = _parse(path, header, at, whole)
        data = at + BLOCK
        if kind in META:
            if size > META_LIMIT:
                raise DataError(
                    f"{path}: a {size}-byte name at byte {at}, at most {META_LIMIT} are read; make the tar again"
                )
            payload = os.pread(fd, size, data)
            if len(payload) < size:
                raise _cut(path, total, whole)
            if kind == b"L":
                long_name = _text(payload.split(b"\0", 1)[0])
            elif kind == b"x":
                pax = _pax(path, payload, at)
                long_name = pax.get("path", long_name)
                long_size = _decimal(path, pax["size"], at) if "size" in pax else long_size
                if any(key.startswith("GNU.sparse") for key in pax):
                    refused.append(f"{pax.get('GNU.sparse.name', long_name or name)} (sparse)")
        else:
            name, size = long_name or name, long_size if long_size >= 0 else size
            long_name, long_size = "", -1
            if data + size > total:
                raise _cut(path, total, whole)
            whole += 1
            if fault := _fault(name, kind):
                refused.append(f"{name} ({fault})")
            elif kind not in FOLDER and not name.endswith("/"):
                yield Member(_tidy(name), size, data)
        at = data + (size + BLOCK - 1) // BLOCK * BLOCK
    if refused:
        raise DataError(
            f"{path}: {plural(len(refused), 'member')} refused: {first_few(refused, 5)}; "
            "make it again of plain files by relative paths"
        )


def _parse(path: str, header: bytes, at: int, whole: int) -> tuple[str, int, bytes]:
    """(name, size, kind) of a header block whose checksum holds."""
    try:
        stated = int(header[148:156].strip(b" \0") or b"0", 8)
        # The checksum counts its own eight bytes as spaces.
        if sum(header) - sum(header[148:156]) + 8 * 32 != stated:
            raise ValueError
        size = _number(header[124:136])
    except ValueError:
        what = "is no tar" if at == 0 else f"is damaged at byte {at}, after {plural(whole, 'whole member')}"
        raise DataError(f"{path}: {what}: make it again with `tar -cf`, uncompressed") from None
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0" and header[345]:
        name = header[345:500].split(b"\0", 1)[0] + b"/" + name
    return _text(name), size, header[156:157]


def _number(field: bytes) -> int:
    """A size in octal digits, or base 256 where the top bit is set. ValueError where neither, or negative."""
    size = int.from_bytes(field[1:], "big") if field[0] == 0x80 else int(field.strip(b" \0") or b"0", 8)
    if size < 0:
        raise ValueError
    return size


def _pax(path: str, payload: bytes, at: int) -> dict[str, str]:
    """The `length key=value` records of a pax header."""
    records: dict[str, str] = {}
    while payload.strip(b"\0"):
        digits, _, _ = payload.partition(b" ")
        length = _decimal(path, _text(digits), at)
        record = payload[len(digits) + 1 : length]
        key, equals, value = record.partition(b"=")
        if length <= len(digits) + 1 or not equals or not value.endswith(b"\n"):
            raise DataError(f"{path}: the pax header at byte {at} is damaged: make it again with `tar -cf`")
        records[_text(key)] = _text(value[:-1])
        payload = payload[length:]
    return records


def _decimal(path: str, text: str, at: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise DataError(f"{path}: the pax header at byte {at} is damaged: make it again with `tar -cf`")
    return int(text)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _fault(name: str, kind: bytes) -> str:
    """Why a member is refused; empty where it is not."""
    if name.startswith("/"):
        return "absolute"
    if ".." in name and ".." in name.split("/"):
        return "climbs with .."
    if kind in REFUSED:
        return REFUSED[kind]
    return "" if kind in PLAIN or kind in FOLDER else f"kind {kind!r}"


def _tidy(name: str) -> str:
    if "//" in name or "./" in name:
        return "/".join(part for part in name.split("/") if part not in ("", "."))
    return name


def _cut(path: str, total: int, whole: int) -> DataError:
    return DataError(
        f"{path}: cut short at byte {total}, after {plural(whole, 'whole member')}: copy or make it again"
    )


def _nothing_behind(path: str, fd: int, at: int, total: int) -> None:
    """Two tars put one behind the other would lose the second silently, so zeros must follow the end."""
    while at < total:
        chunk = os.pread(fd, 1 << 20, at)
        if not chunk:
            return
        if chunk.count(0) != len(chunk):
            raise DataError(
                f"{path}: goes on behind its end marker near byte {at}: join tars with `tar -A`, not `cat`"
            )
        at += len(chunk)


def _refuse_compressed(path: str, start: bytes) -> None:
    for magic, kind in COMPRESSED.items():
        if start.startswith(magic):
            raise DataError(
                f"{path}: is packed with {kind}; images are read in place, so unpack it to a plain .tar"
            )
