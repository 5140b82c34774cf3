"""Training images of weights are found again, and others are not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from facemetric.data.drawn.draw import draw_faces
from facemetric.data.index import read_index
from facemetric.evaluation.audit.seen import (
    BITS,
    FILE,
    Seen,
    keep_training_images,
    nearest_bits,
    read_training_images,
    training_images_seen,
)


def test_copies_are_found_and_others_are_not(faces: Path, tmp_path: Path) -> None:
    index = read_index([str(faces)])
    keep_training_images(tmp_path, index.select(np.arange(48)))
    size = (tmp_path / FILE).stat().st_size
    assert size < 48 * 8 + 1500
    seen = training_images_seen(tmp_path, index)
    assert seen is not None
    assert (seen.found, seen.looked_at) == (48, 96)
    assert seen.share == 0.5
    assert "warning: 48 of 96 images looked at (50% of the data)" in seen.text("w")
    copies = tmp_path / "copies" / "p"
    copies.mkdir(parents=True)
    for row in range(20):
        with Image.open(faces / index.name(row)) as image:
            image.resize((40, 40)).save(copies / f"{row:03d}.jpg", quality=80)
    packed = training_images_seen(tmp_path, read_index([str(copies.parent)]))
    assert packed is not None
    assert packed.found >= 18
    others = draw_faces(
        tmp_path / "others", identities=16, images=6, size=32, seed=77, workers=1, progress=False
    )
    unseen = training_images_seen(tmp_path, read_index([str(others)]))
    assert unseen is not None
    assert unseen.found == 0
    assert unseen.text("w") == ""


def test_a_second_training_adds_to_the_first(faces: Path, tmp_path: Path) -> None:
    index = read_index([str(faces)])
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    keep_training_images(tmp_path / "one", index.select(np.arange(30)))
    before = read_training_images(tmp_path / "one")
    keep_training_images(tmp_path / "two", index.select(np.arange(30, 60)), before=before)
    seen = training_images_seen(tmp_path / "two", index)
    assert seen is not None
    assert seen.found == 60


def test_without_hashes_nothing_is_known(faces: Path, tmp_path: Path) -> None:
    index = read_index([str(faces)])
    assert training_images_seen(tmp_path, index) is None
    (tmp_path / FILE).write_bytes(b"no hashes")
    assert training_images_seen(tmp_path, index) is None


def test_bits_are_counted() -> None:
    rng = np.random.default_rng(0)
    one, other = (rng.integers(0, 256, (n, 8), np.uint8) for n in (5, 7))
    by_hand = [
        min(sum(bin(int(a) ^ int(b)).count("1") for a, b in zip(x, y, strict=True)) for y in other)
        for x in one
    ]
    assert nearest_bits(one, other).tolist() == by_hand
    assert nearest_bits(one, other[:0]).tolist() == [BITS] * 5
    assert nearest_bits(one, one).tolist() == [0] * 5
    assert by_hand != pytest.approx([0] * 5)


def test_what_chance_could_bring_is_not_told() -> None:
    assert Seen(4, 500, 4 / 500).text("w") == ""
    assert Seen(5, 500, 5 / 500).text("w") == (
        "warning: 5 of 500 images looked at (1% of the data) are training images of w, or copies; "
        "figures of such images are too good"
    )


def test_real_faces_are_told_apart_and_their_copies_found(real_data: Path, tmp_path: Path) -> None:
    """As the module says, on fewer: LFW against faces of other sets, and JPEG copies of those, resized."""
    index = read_index([str(real_data / "pins112.tar")])
    training = index.select(np.arange(0, len(index), 8))
    keep_training_images(tmp_path, training)
    unseen = training_images_seen(tmp_path, read_index([str(real_data / "lfw112.tar")]))
    assert unseen is not None
    assert unseen.looked_at == 500
    assert unseen.found <= 1
    copies = tmp_path / "copies" / "p"
    copies.mkdir(parents=True)
    for row in range(100):
        with Image.open(io.BytesIO(training.read(row))) as image:
            image.resize((100, 100)).resize((112, 112)).save(copies / f"{row:03d}.jpg", quality=75)
    packed = training_images_seen(tmp_path, read_index([str(copies.parent)]))
    assert packed is not None
    assert packed.found >= 98
