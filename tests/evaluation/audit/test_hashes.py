"""Perceptual hashes: alike for copies, half the bits apart for others."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from facemetric.data.drawn.draw import drawn_arrays
from facemetric.data.images import decode
from facemetric.data.index import read_index
from facemetric.evaluation.audit.hashes import LUMA, MIRROR, hash_signs, low_frequencies, read_frequencies


def frequencies(pictures: list[Image.Image]) -> np.ndarray:
    small = [np.asarray(p.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)) for p in pictures]
    return low_frequencies(np.stack(small))


@pytest.fixture(scope="module")
def faces_96() -> list[Image.Image]:
    """40 drawn people, a picture of each."""
    pictures, _ = drawn_arrays(40, 1, 96, seed=3)
    return [Image.fromarray(picture) for picture in pictures]


def test_frequencies_are_the_cosine_transform() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    grey = picture.astype(float) @ LUMA
    found = low_frequencies(picture[None])[0]
    at = 0
    for u in range(16):
        for v in range(16):
            if u == v == 0:
                continue
            if (u, v) in ((0, 1), (3, 7), (15, 15), (9, 0)):
                waves = [[math.cos(math.pi * (2 * p + 1) * f / 64) for p in range(32)] for f in (u, v)]
                scale = (math.sqrt(1 / 32) if u == 0 else 0.25) * (math.sqrt(1 / 32) if v == 0 else 0.25)
                wanted = scale * sum(
                    grey[y, x] * waves[0][y] * waves[1][x] for y in range(32) for x in range(32)
                )
                assert found[at] == pytest.approx(wanted, abs=1e-2)
            at += 1
    assert at == found.shape[0] == 255


def test_the_mirror_image_has_the_mirrored_frequencies(faces_96: list[Image.Image]) -> None:
    picture = faces_96[0].resize((32, 32))
    straight, mirrored = frequencies([picture, picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
    np.testing.assert_allclose(straight * MIRROR, mirrored, atol=1e-2)
    assert np.abs(straight - mirrored).max() > 10


def test_copies_are_near_and_others_half_the_bits_away(faces_96: list[Image.Image]) -> None:
    picture = faces_96[7]
    packed = io.BytesIO()
    picture.save(packed, "JPEG", quality=30)
    copies = [
        picture.resize((300, 300), Image.Resampling.BICUBIC),
        picture.resize((40, 40)),
        decode(packed.getvalue()),
        ImageEnhance.Brightness(picture).enhance(0.6),
        picture.convert("L"),
    ]
    values = frequencies([*faces_96, *copies])
    signs = hash_signs(values, np.median(values[:40], 0))
    bits = (255 - signs @ signs.T) / 2
    assert bits[7, 40:].max() <= 40
    others = bits[:40, :40][~np.eye(40, dtype=bool)]
    assert 110 < others.mean() < 135
    assert others.min() > 40


def test_unreadable_images_are_listed(faces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set" / "someone"
    folder.mkdir(parents=True)
    (folder / "0.jpg").write_bytes(b"no picture")
    (folder / "1.jpg").write_bytes(sorted((faces / "drawn_0001").iterdir())[0].read_bytes())
    read = read_frequencies(read_index(tmp_path / "set"))
    assert read.bad == [(0, "no image of a known kind")]
    assert not read.values[0].any()
    assert read.values[1].any()
