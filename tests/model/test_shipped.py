"""The weights that come with facemetric: whole, loadable, and with a card that says what their config says."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch.nn import functional

from facemetric.model.weights.folder import SHIPPED, read_config, shipped_weights
from facemetric.model.weights.save_load import load_embedder

# As a wheel has them without their checkout, an installed package has these too.
FOLDERS = shipped_weights()


def test_some_are_shipped() -> None:
    assert FOLDERS, f"no weights in {SHIPPED}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_shipped_weights_load_and_open_in_timm(folder: Path) -> None:
    embedder = load_embedder(folder.name)
    images = torch.randn(2, 3, *embedder.preprocess.size)
    plain = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    torch.testing.assert_close(functional.normalize(plain(images), dim=1), embedder(images))
    assert embedder.pictures == "faces"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_cards_say_what_was_measured(folder: Path) -> None:
    figures = read_config(folder)["facemetric"]["metrics"]
    card = (folder / "README.md").read_text()
    assert f"{figures['lfw_accuracy']:.2%} ({figures['lfw_accuracy_deviation']:.2%})" in card
    assert f"{figures['images_per_second']:.0f}; {figures['images_per_second_flip']:.0f}" in card
    assert "for research" in card


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_they_are_small(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10e6
