"""Files that appear whole, and folders that one process writes into."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: a second run into a folder is not noticed there
    fcntl = None  # type: ignore[assignment]

from facemetric.errors import ConfigError, writing

PATIENCE = 0.5  # seconds: `facemetric runs` holds a lock for a moment to see whether it is free


def write_whole(file: str | Path, fill: Callable[[Path], object], *, durable: bool = False) -> Path:
    """Fill a temporary neighbour and put it in place, so that the file appears whole.

    `durable`: after a power cut as well, the file is either the old one or the new one."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            fill(temporary)
            if durable:
                sync(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync(path.parent)
    return path


def write_text_whole(file: str | Path, text: str, *, durable: bool = False) -> Path:
    """Write a text as UTF-8 so that its file appears whole; `durable` as for `write_whole`.

    Bytes of a file name that are not UTF-8 are written back as they were read."""
    return write_bytes_whole(file, text.encode("utf-8", "surrogateescape"), durable=durable)


def write_bytes_whole(file: str | Path, content: bytes, *, durable: bool = False) -> Path:
    """Write bytes so that their file appears whole; `durable` as for `write_whole`."""
    return write_whole(file, lambda path: path.write_bytes(content), durable=durable)


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, from memory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with writing(path):
            os.fsync(descriptor)
    except OSError:
        if path.is_file():  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)


def file_hash(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class Lock:
    """A claim on a folder. Released by the OS when the process exits; the lock file itself may remain.

    Raises ConfigError where another process holds it."""

    def __init__(self, file: Path) -> None:
        self.descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        if not _claim(self.descriptor, PATIENCE):
            holder = os.pread(self.descriptor, 200, 0).decode("utf-8", "replace").strip()
            os.close(self.descriptor)
            raise ConfigError(
                f"{file.parent} is being written by another run ({holder or 'its name is not known'}); "
                "wait for it, stop it, or name another --out"
            )
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        HELD.add(self)

    def release(self) -> None:
        """Let go."""
        if self in HELD:
            HELD.discard(self)
            os.close(self.descriptor)


HELD: set[Lock] = set()


def _claim(descriptor: int, patience: float) -> bool:
    """Lock an open file; whether it worked. A file system without locks lets everybody in."""
    until = time.monotonic() + patience
    while fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        except OSError:
            break
        else:
            break
    return True


def is_locked(file: Path) -> bool:
    """Whether a living process holds the lock of this file."""
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _claim(descriptor, 0.0)
    finally:
        os.close(descriptor)


def _leave_to_the_parent() -> None:
    """A reader of images is a fork, and lives some seconds longer than a parent that was killed."""
    for lock in HELD:
        with contextlib.suppress(OSError):
            os.close(lock.descriptor)
    HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
