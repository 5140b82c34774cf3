"""The list of bad images."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from facemetric.data.bad_images import BadImageLog
from facemetric.errors import DataError


def test_log(tmp_path: Path) -> None:
    path = tmp_path / "bad_images.csv"
    log = BadImageLog(path, total=100, max_bad=0.03)
    assert not path.exists()
    log.add("anna/a, b.jpg", 'is "odd"')
    log.add("ünï/\udcff.jpg", "zero bytes")
    log.add("anna/a, b.jpg", "again")
    assert len(log) == 2
    text = 'name,reason\n"anna/a, b.jpg","is ""odd"""\nünï/\\udcff.jpg,zero bytes\n'
    assert path.read_text(encoding="utf-8") == text
    again = BadImageLog(path, total=100, max_bad=0.03)
    again.add("anna/a, b.jpg", "again")
    again.add("third.jpg", "x")
    assert len(again) == 3
    with pytest.raises(
        DataError, match=r"4 of 100 images are bad, above the share of 0.03 .*fourth.jpg \(y\).*--max-bad"
    ):
        again.add("fourth.jpg", "y")
    assert path.read_text(encoding="utf-8") == text + "third.jpg,x\nfourth.jpg,y\n"


def test_log_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "bad_images.csv"
    path.write_text("name,reason\na.jpg,x\nb.jpg,cut sho")
    log = BadImageLog(path, total=10, max_bad=1)
    assert path.read_text() == "name,reason\na.jpg,x\n"
    log.add("a.jpg", "x")
    log.add("b.jpg", "cut short")
    assert path.read_text() == "name,reason\na.jpg,x\nb.jpg,cut short\n"
    path.write_text("name,rea")
    log = BadImageLog(path, total=10, max_bad=1)
    log.add("a.jpg", "x")
    assert path.read_text() == "name,reason\na.jpg,x\n"
    assert os.listdir(tmp_path) == ["bad_images.csv"]


def test_log_allows_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 10 images"):
        BadImageLog(tmp_path / "b.csv", total=10, max_bad=0).add("a", "b")


def test_a_damaged_log_is_an_error_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("name,reason\na.jpg," + "x" * 200_000 + "\n")
    before = path.read_bytes()
    with pytest.raises(
        DataError, match=r"bad\.csv: is damaged \(field larger .*; remove it, a new one is made"
    ):
        BadImageLog(path, total=10, max_bad=0.5)
    assert path.read_bytes() == before
