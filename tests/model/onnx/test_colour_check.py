"""A model that gets red and blue exchanged, or pixels of another range, is suspected; one that does not, is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from facemetric import load_embedder
from facemetric.data.images import decode
from facemetric.data.index import read_index
from facemetric.model.onnx.colour_check import ALIKE, BETTER, LEAST, apart, colours_suspected, range_suspected


def toy(order: slice) -> object:
    """A model that tells pictures by the blue of their left half."""

    def embed(pixels_BHWC: np.ndarray) -> np.ndarray:
        angle = pixels_BHWC[:, :, :4, order][..., 2].mean((1, 2)) * (3 / 255)
        return np.column_stack([np.cos(angle), np.sin(angle)]).astype(np.float32)

    return embed


def pictures(count: int) -> np.ndarray:
    """Pictures whose blue says which one it is, as their mirror image's does; red is in the left half alone."""
    rng = np.random.default_rng(0)
    found = np.zeros((count, 8, 8, 3), np.uint8)
    found[..., 2] = rng.integers(0, 256, count)[:, None, None]
    found[:, :, :4, 0] = rng.integers(0, 256, count)[:, None, None]
    return found


def test_the_wrong_order_is_suspected() -> None:
    right, wrong = toy(slice(None)), toy(slice(None, None, -1))
    crops = pictures(LEAST)
    assert apart(right, crops) > BETTER * apart(wrong, crops)  # type: ignore[arg-type]
    assert colours_suspected(right, crops) == ""  # type: ignore[arg-type]
    assert "may be the wrong way round: on 32 of these pictures" in colours_suspected(wrong, crops)  # type: ignore[arg-type]
    assert colours_suspected(wrong, crops[: LEAST - 1]) == ""  # type: ignore[arg-type]


def test_vectors_that_are_nearly_the_same_are_suspected() -> None:
    """Cosines by numpy on both sides of the bound; few pictures say nothing."""
    own = np.random.default_rng(0).normal(size=(LEAST, 40))

    def embed(common: float) -> object:
        rows = np.column_stack([own, np.full(LEAST, common)])
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return lambda pixels: rows[: len(pixels)].astype(np.float32)

    crops = pictures(LEAST)
    for common in (0.0, 38.0, 50.0, 500.0):
        rows = embed(common)(crops)  # type: ignore[operator]
        mean = (rows @ rows.T)[~np.eye(LEAST, dtype=bool)].mean()
        text = range_suspected(embed(common), crops)  # type: ignore[arg-type]
        assert bool(text) == (mean > ALIKE), (common, mean)
        if text:
            assert f"the cosine of two of {LEAST} is {mean:.4f} on average" in text
    assert range_suspected(embed(500.0), crops[1:]) == ""  # type: ignore[arg-type]


@pytest.mark.real_data
@pytest.mark.parametrize("data", ["lfw112.tar", "pins112.tar", "celeba112.tar"])
def test_real_weights_are_told_from_exchanged_ones(real_data: Path, data: str) -> None:
    index = read_index(real_data / data)
    rows = np.random.default_rng(0).choice(len(index), 64, replace=False)
    crops = np.stack([np.asarray(decode(index.read(int(row))).resize((112, 112))) for row in rows])
    embedder = load_embedder("faces-96")

    def exchanged(pixels: np.ndarray) -> np.ndarray:
        return embedder.embed(np.ascontiguousarray(pixels[..., ::-1]), faces="off")

    assert colours_suspected(lambda pixels: embedder.embed(pixels, faces="off"), crops) == ""
    assert colours_suspected(exchanged, crops) != ""
