"""Weights that learned nothing, for what evaluation and pictures make of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from facemetric import evaluate
from facemetric.data.images import Preprocess
from facemetric.data.pair_images import make_pairs, name_pairs
from facemetric.data.pairs import write_pairs
from facemetric.evaluation.table import EmbeddingTable
from facemetric.model.embedder import build_embedder
from facemetric.model.weights.save_load import save_weights


@pytest.fixture(scope="session")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder."""
    torch.manual_seed(0)
    embedder = build_embedder("test_resnet", preprocess=Preprocess(size=(32, 32)))
    folder = tmp_path_factory.mktemp("untrained") / "weights"
    save_weights(folder, embedder, provenance={}, metrics={})
    return folder


@pytest.fixture
def own_weights(untrained: Path, tmp_path: Path) -> Path:
    """A copy of them, for a test that writes into it."""
    shutil.copytree(untrained, tmp_path / "weights")
    return tmp_path / "weights"


@pytest.fixture(scope="session")
def table(untrained: Path, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of the 96 drawn faces."""
    out = tmp_path_factory.mktemp("eval") / "out"
    evaluate(untrained, data=faces, out=out, workers=0, device="cpu", batch_size=16, report=False)
    return out / "embeddings.npz"


@pytest.fixture(scope="session")
def pairs(table: Path) -> Path:
    """240 pairs with a column `light` of two large groups and a tiny one."""
    embeddings = EmbeddingTable.load(table)
    drawn = make_pairs(embeddings.identities, count=240, folds=4, seed=0)
    named = name_pairs(drawn, embeddings.paths.tolist())
    light = np.array(["day", "night"])[np.arange(240) % 2]
    light[:4] = "dusk"
    named.groups["light"] = light
    write_pairs(table.parent / "pairs.csv", named)
    return table.parent / "pairs.csv"
