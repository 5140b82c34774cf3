"""Weights that learned nothing, for what evaluation and pictures make of them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from facemetric.data.images import Preprocess
from facemetric.model.embedder import build_embedder
from facemetric.model.weights import save_weights


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
