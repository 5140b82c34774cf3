"""Losses and heads side by side on a table of features: who learns, who chooses, who is reported, and the lines."""

from __future__ import annotations

import argparse
from pathlib import Path

import compare_heads_on_features
import compare_losses
import numpy as np
import pytest
from compare_heads import wrong_labels
from compare_losses import parts_of


def options(**given: object) -> argparse.Namespace:
    return argparse.Namespace(**{"seed": 0, "learn": None, "choose": None, "families": None} | given)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """60 people with 6 images of 140 features."""
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(60), 6)
    features = 0.5 * rng.normal(size=(60, 140))[person] + rng.normal(size=(360, 140))
    np.savez(tmp_path / "t.npz", embeddings=features, identities=np.array([f"p{i:02d}" for i in person]))
    return tmp_path / "t.npz"


def test_a_family_is_in_one_part(tmp_path: Path) -> None:
    names = np.repeat([f"p{i:02d}" for i in range(60)], 3)
    (tmp_path / "f.csv").write_text("".join(f"p{i:02d},p{i + 20:02d},p{i + 40:02d}\n" for i in range(20)))
    rows, family_N = parts_of(names, options(families=tmp_path / "f.csv"))
    assert family_N is not None
    assert sum(map(len, rows)) == 180
    seen = [set(family_N[part].tolist()) for part in rows]
    assert [len(part) for part in seen] == [10, 4, 6]
    assert len(set.union(*seen)) == 20
    (tmp_path / "learn.txt").write_text("p00\np01\n")
    (tmp_path / "choose.txt").write_text("p02\n")
    rows, _ = parts_of(names, options(learn=tmp_path / "learn.txt", choose=tmp_path / "choose.txt"))
    assert [len(part) for part in rows] == [6, 3, 171]
    assert set(names[rows[1]]) == {"p02"}


def test_planted_labels() -> None:
    label_N = np.repeat(np.arange(10), 8)
    wrong = wrong_labels(label_N, 0.25, 0) != label_N
    assert wrong.sum() == 20
    assert np.array_equal(wrong_labels(label_N, 0.0, 0), label_N)


def test_the_tables(table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    call = f"compare_losses {table} --losses supcon --steps 3 --far 0.1 --alike 3 --identities 8"
    monkeypatch.setattr("sys.argv", call.split())
    compare_losses.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "learn 180 images of 30, choose 72 images of 12, report 108 images of 18"
    assert "[+0.0000, +0.0000]" in lines[2]
    assert lines[3].startswith("supcon            alike  3: TAR ")
    call = f"compare_heads_on_features {table} --heads subcentre-arcface --steps 30 --far 0.1 --noise 0.2 --margins 0.1"
    monkeypatch.setattr("sys.argv", call.split())
    compare_heads_on_features.main()
    said = capsys.readouterr().out
    assert "farther than 75 degrees: " in said
    precision = float(said.split("data check by its embeddings")[1].split("precision ")[1].split(",")[0])
    assert precision > 0.5  # one in five would be by chance
