"""Files of their own and byte ranges: opened by many threads and processes, few at once, and never after a change."""

from __future__ import annotations

import errno
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from child_processes import fork
from source_files import (
    member,
    pack,
    put,
    tar_of,
)

from facemetric.data.index import read_index
from facemetric.data.readers import reader


def test_many_shards_keep_few_files_open(tmp_path: Path) -> None:
    for n in range(80):
        pack(tmp_path / f"{n:02}.tar", {f"p/{n}.jpg": b"%d" % n})
    index = read_index(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    assert sorted(int(index.read(i)) for i in range(80)) == list(range(80))
    assert 60 <= len(os.listdir("/proc/self/fd")) - before <= 65
    del index
    assert len(os.listdir("/proc/self/fd")) <= before


def test_threads_never_read_a_tar_that_another_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that has found the first tar waits while others read enough of them to have it closed, and its
    number given to another file; all have one size and one time of change, as a download may leave them."""
    for n in range(9):
        os.utime(pack(tmp_path / f"{n}.tar", {f"p/{n}.jpg": b"%d" % n}), (1e9, 1e9))
    index = read_index(tmp_path)
    monkeypatch.setattr(reader, "OPEN_FILES", 4)
    check = reader.check_unchanged
    waiting = iter([True])

    def wait(*args: object) -> None:
        if next(waiting, False):
            with ThreadPoolExecutor(4) as pool:
                assert list(pool.map(index.read, range(1, 9))) == [b"%d" % n for n in range(1, 9)]
        check(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(reader, "check_unchanged", wait)
    assert index.read(0) == b"0"


def test_threads_and_forks_read_many_tars_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(40):
        os.utime(pack(tmp_path / f"{n:02}.tar", {f"p/{n}.jpg": b"%02d" % n}), (1e9, 1e9))
    index = read_index(tmp_path)
    wanted = {i: index.name(i)[2:-4].zfill(2).encode() for i in range(40)}
    monkeypatch.setattr(reader, "OPEN_FILES", 3)
    before = len(os.listdir("/proc/self/fd"))

    def read(seed: int) -> None:
        for i in np.random.default_rng(seed).integers(0, 40, 800).tolist():
            assert index.read(i) == wanted[i]

    def many() -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read, range(8)))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        many()
        child = fork(many)  # has the tars that are open here
        many()
        assert os.waitpid(child, 0)[1] == 0
    finally:
        sys.setswitchinterval(interval)
    assert len(os.listdir("/proc/self/fd")) - before <= 3 + 8


def test_an_image_that_goes_away(tmp_path: Path) -> None:
    path = put(tmp_path / "anna/a.jpg")
    index = read_index(tmp_path)
    path.unlink()
    with pytest.raises(OSError, match="No such file"):
        index.read(0)


def test_a_tar_that_shrinks(tmp_path: Path) -> None:
    tar = tar_of(tmp_path / "a.tar", member("anna/a.jpg", 5000))
    index = read_index(tar)
    os.truncate(tar, 1000)
    with pytest.raises(OSError, match="cut short since"):
        index.read(0)


def test_a_tar_cut_short_between_the_look_and_the_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tar_of(tmp_path / "a.tar", member("anna/1.jpg"))
    index = read_index(path)
    assert index.read(0) == b"d" * 700
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, at: real(fd, size, at)[:-1])
    with pytest.raises(OSError, match="was cut short since it was indexed") as caught:
        index.read(0)
    assert caught.value.errno == errno.EIO
