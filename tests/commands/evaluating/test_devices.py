"""`eval --device cuda` hands every walk over tiles its device. The GPU is the CPU here, by the path of a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_people import exact_people

from facemetric import evaluate
from facemetric.commands.evaluating import inputs
from facemetric.data.pair_images import make_pairs, name_pairs
from facemetric.data.pairs import write_pairs
from facemetric.evaluation import all_pairs, nearest, ranks
from facemetric.evaluation.intervals import all_pairs as intervals
from facemetric.evaluation.table import EmbeddingTable


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models' embeddings, a gallery that shares some images with them, a cohort, and pairs."""
    made = tmp_path_factory.mktemp("exact")
    _, label = exact_people(400, 60, 1)
    names, paths = np.array([f"p{i}" for i in label]), np.array([f"{i}.png" for i in range(400)])
    groups = {"camera": np.array(["one", "other"])[np.arange(400) % 2]}
    for name, seed in (("first", 1), ("second", 2)):
        emb = exact_people(400, 60, seed)[0]
        EmbeddingTable(emb, names, paths, groups).save(made / f"{name}.npz")
    first = EmbeddingTable.load(made / "first.npz")
    first.rows(np.arange(0, 400, 5)[label[::5] < 45]).save(made / "gallery.npz")
    cohort, of = exact_people(120, 50, 3)
    EmbeddingTable(cohort, of, np.arange(120)).save(made / "cohort.npz")
    write_pairs(made / "pairs.csv", name_pairs(make_pairs(names, count=320, folds=4), paths.tolist()))
    return made


def refuse(*arguments: Any, **options: Any) -> None:
    raise AssertionError("a tile of the CPU")


@pytest.mark.parametrize("kind", ["all", "listed"])
def test_no_walk_is_left_to_the_cpu(
    kind: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"embeddings": folder / "first.npz", "compare": (str(folder / "second.npz"),)}
    options |= {"report": False, "device": "cpu", "gallery": folder / "gallery.npz"}
    if kind == "all":
        options |= {"all_pairs": True}
    else:
        options |= {"pairs": folder / "pairs.csv", "cohort": folder / "cohort.npz", "calibration": "people"}
        del options["gallery"]  # who is enrolled is drawn
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    monkeypatch.chdir(tmp_path / "1")
    usual = evaluate(**options, out="out")
    monkeypatch.chdir(tmp_path / "2")
    with monkeypatch.context() as patch:
        patch.setattr(inputs, "device_of_tiles", lambda wanted: torch.device("cpu"))
        for room, name in (
            (all_pairs, "_count_mixed"),
            (intervals, "_walk"),
            (nearest, "_search"),
            (ranks, "_Walk"),
        ):
            patch.setattr(room, name, refuse)
        evaluate(**options, out="out")
    assert usual.identification is not None
    both = [(tmp_path / run / "out" / "metrics.json").read_bytes() for run in "12"]
    assert both[0] == both[1]
