"""Heads side by side: who is trained on, which labels are made wrong, and what the lists of wrong ones are worth."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import compare_heads
import numpy as np
import pytest
from compare_heads import Planted, agreement, draw_people, plant

from facemetric.data.index import read_index


def test_wrong_labels_are_planted_in_the_share_asked_for(faces: Path, tmp_path: Path) -> None:
    index = read_index(faces)
    options = argparse.Namespace(seed=0, people=8, least=6, images=5)
    rows, others = draw_people(index, options)
    people = np.unique(index.identity[rows])
    assert np.bincount(index.identity[rows])[people].tolist() == [5] * 8
    assert not np.isin(index.identity[others], people).any()
    assert len(others) == 8 * 6
    planted = plant(index, rows, 0.25, tmp_path, 0)
    paths = sorted(tmp_path.glob("*/*.jpg"))
    assert len(paths) == 40
    wrong = set()
    for path in paths:
        row, given = int(path.stem), people[int(path.parent.name[1:])]
        assert path.read_bytes() == index.read(row)
        if given != index.identity[row]:
            wrong.add(f"{path.parent.name}/{path.name}")
    assert wrong == planted.wrong
    assert len(wrong) == 10


def test_precision_and_recall_of_a_list() -> None:
    planted = Planted(Path(), frozenset("abcd"))
    assert agreement("x", {"a", "b", "z"}, planted).endswith("2 of 4 planted; precision 0.667, recall 0.500")
    assert agreement("x", set(), planted).endswith("0 of 4 planted; precision -, recall 0.000")


def test_the_table(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    call = (
        f"compare_heads {faces} --out {tmp_path} --heads subcentre-arcface --noise 0.2 --people 8 --least 4"
    )
    small = " --arch test_resnet --image-size 32 --embedding-size 8 --epochs 1 --batch-size 16 --arch-args="
    monkeypatch.setattr("sys.argv", (call + small).split(" "))
    compare_heads.main()
    said = capsys.readouterr().out
    assert "training on 48 images of 8 people; 48 images of 8 others" in said
    with open(tmp_path / "subcentre-arcface_0.2" / "noisy_images.csv", encoding="utf-8") as file:
        listed = len(list(csv.DictReader(file)))
    lines = said.splitlines()
    assert any(line.startswith("softmax ") and "above softmax [+0.0000, +0.0000]" in line for line in lines)
    assert any(line.startswith(f"subcentre-arcface: {listed} listed, ") for line in lines)
    assert any(line.startswith("data check by the weights of softmax: ") for line in lines)
