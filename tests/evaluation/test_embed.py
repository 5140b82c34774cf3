"""An embedder over an index: rows in order, bad images named, and what is said where none can be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facemetric.data.images import Preprocess
from facemetric.data.index import read_index
from facemetric.errors import DataError
from facemetric.evaluation.embed import embed_index, mirror_scores, usual_size
from facemetric.model.embedder import PIECE, Embedder, build_embedder


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    torch.manual_seed(0)
    return build_embedder("test_resnet", preprocess=Preprocess(size=(32, 32)), embedding_size=8)


def write_images(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / f"p{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(256, size=(32, 32, 3), dtype=np.uint8)).save(path)


def test_rows_and_bad_images_keep_their_names(embedder: Embedder, tmp_path: Path) -> None:
    write_images(tmp_path, PIECE + 8)
    broken = tmp_path / "p1" / "1.png"
    broken.write_bytes(b"no image")
    index = read_index([str(tmp_path)])
    found = embed_index(embedder, index, batch_size=PIECE + 5)
    assert [(index.name(row).split("/")[-1], len(found.bad)) for row, _ in found.bad] == [("1.png", 1)]
    assert len(found.table) == PIECE + 7
    alone = embed_index(embedder, index.select(np.array([index.find(found.table.name(20))])))
    assert np.allclose(found.table.embeddings[20], alone.table.embeddings[0], atol=1e-5)
    assert embedder.training


def test_no_image_that_can_be_read_is_one_clear_line(embedder: Embedder, tmp_path: Path) -> None:
    write_images(tmp_path, 4)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"none of 4 images .* first is \S+png \(zero bytes\); needed one"
    ) as caught:
        embed_index(embedder, read_index([str(tmp_path)]))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="no images came; needed one or more"):
        embed_index(embedder, read_index([str(tmp_path)]).select(np.array([], np.int64)))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_the_mirror_image_by_hand(embedder: Embedder, tmp_path: Path) -> None:
    write_images(tmp_path / "plain", 9)
    for path in sorted((tmp_path / "plain").rglob("*.png")):
        turned = tmp_path / "turned" / path.relative_to(tmp_path / "plain")
        turned.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(turned)
    index = read_index([str(tmp_path / "plain")])
    plain = embed_index(embedder, index).table.embeddings
    turned = embed_index(embedder, read_index([str(tmp_path / "turned")])).table.embeddings
    assert min(cosine(a, b) for a, b in zip(plain, turned, strict=True)) < 0.9999

    both = embed_index(embedder, index, flip=True).table.embeddings
    mean = plain + turned
    np.testing.assert_allclose(both, mean / np.linalg.norm(mean, axis=1, keepdims=True), atol=1e-5)

    middle = plain.mean(0)
    expected = [cosine(a - middle, b - middle) for a, b in zip(plain, turned, strict=True)]
    for batch_size in (2, 256):
        scores = mirror_scores(embedder, index, middle, batch_size=batch_size)
        np.testing.assert_allclose(scores, expected, atol=1e-4)
    some = mirror_scores(embedder, index, middle, sample=4, seed=3)
    assert len(some) == 4
    assert all(min(abs(score - e) for e in expected) < 1e-4 for score in some)
    assert embedder.training
    (tmp_path / "plain" / "p1" / "1.png").write_bytes(b"no image")
    broken = next(row for row in range(9) if index.name(row).endswith("p1/1.png"))
    scores = mirror_scores(embedder, index, middle)
    assert np.flatnonzero(np.isnan(scores)).tolist() == [broken]
    np.testing.assert_allclose(np.delete(scores, broken), np.delete(expected, broken), atol=1e-4)


def test_the_usual_size_is_the_median_of_those_that_can_be_read(tmp_path: Path) -> None:
    for i, size in enumerate([(10, 20), (30, 40), (50, 90), (70, 80)]):
        path = tmp_path / "p" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", size).save(path)
    index = read_index([str(tmp_path)])
    assert usual_size(index) == (40, 60)
    assert usual_size(index, images=2) == (40, 50)  # the first and the last
    (tmp_path / "p" / "3.png").write_bytes(b"no image")
    (tmp_path / "p" / "0.png").unlink()
    assert usual_size(index) == (40, 65)
    for path in tmp_path.rglob("*.png"):
        path.unlink()
    assert usual_size(index) == (0, 0)
