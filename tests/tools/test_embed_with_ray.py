"""The table of shards embedded one by one is that of all of them together; Ray only says where each is embedded."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import embed_with_ray
import numpy as np
import pandas as pd
import pytest

import facemetric as fm


@pytest.fixture
def shards(faces: Path, tmp_path: Path) -> Path:
    """Twelve people in three tars, those of each from all over the alphabet."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for n in range(3):
        with tarfile.open(folder / f"{n}.tar", "w") as tar:
            for person in sorted(faces.iterdir())[n:12:3]:
                tar.add(person, arcname=person.name)
    return folder


class OneByOne:
    """Ray's data set, without Ray."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def map(self, work: Any, *, compute: int) -> OneByOne:
        assert compute == 2
        return OneByOne([work(row) for row in reversed(self.rows)])

    def take_all(self) -> list[dict[str, Any]]:
        return self.rows


def same(one: Path, other: Path) -> bool:
    left, right = pd.read_parquet(one), pd.read_parquet(other)
    np.testing.assert_allclose(np.stack(left.pop("embedding")), np.stack(right.pop("embedding")), atol=1e-6)
    return left.astype(str).equals(right.astype(str))


def test_shards_one_by_one_are_the_table_of_all(
    shards: Path,
    untrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ray: Any = ModuleType("ray")
    ray.init, ray.data = (
        lambda **options: None,
        SimpleNamespace(from_items=OneByOne, TaskPoolStrategy=lambda size: size),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    fm.embed(shards, weights=str(untrained), out=tmp_path / "one.parquet", workers=0)
    out = tmp_path / "E.parquet"
    words = ["embed_with_ray.py", str(shards), "--weights", str(untrained), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    parts = tmp_path / "E.parquet.shards"
    parts.mkdir()
    fm.embed(shards / "1.tar", weights=str(untrained), out=parts / "1.parquet", workers=0)
    there = (parts / "1.parquet").stat().st_mtime_ns
    embed_with_ray.main()
    assert same(tmp_path / "one.parquet", out)
    assert (parts / "1.parquet").stat().st_mtime_ns == there  # not embedded again
    assert "72 rows of 3 shards" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        embed_with_ray.main()
    assert "name another --out" in capsys.readouterr().err
