"""The readers on the real sets, where FACEMETRIC_TEST_DATA names them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from facemetric.config import PretrainConfig, make_config
from facemetric.data.images import decode
from facemetric.data.index import read_index
from facemetric.data.pair_images import resolve
from facemetric.data.pairs import read_pairs
from facemetric.training.split import read_split


def test_lfw_pairs_resolve_in_the_tar(real_data: Path) -> None:
    index = read_index(real_data / "lfw112.tar")
    assert (len(index), len(index.identities)) == (13_233, 5_749)
    pairs = read_pairs(real_data / "lfw" / "pairs.txt")
    rows_a, rows_b = resolve(pairs, index)
    assert len(pairs) == 6_000
    assert pairs.fold is not None
    np.testing.assert_array_equal(np.bincount(pairs.fold), [600] * 10)
    np.testing.assert_array_equal(index.identity[rows_a] == index.identity[rows_b], pairs.same)


def test_the_validation_identities_are_never_trained_on(real_data: Path) -> None:
    sets = tuple(f"{name}={real_data / name}112.tar" for name in ("fiw", "pins", "celeba"))
    listed = real_data / "splits" / "val_identities.txt"
    config = make_config(
        PretrainConfig,
        sets,
        val_identities=listed,
        merge=real_data / "splits" / "likely_same_person.csv",
    )
    split = read_split(config)
    assert split.val is not None
    names = set(listed.read_text().split())
    assert not names & set(split.train.identities)
    assert not set(split.val.identities) & set(split.train.identities)
    assert len(split.train) + len(split.val) == 37_245
    # A merged person is validated on whole where any of its names is listed: no image of it is trained on.
    trained = {split.train.name(i).rsplit("/", 1)[0] for i in range(len(split.train))}
    assert not names & trained


def test_real_images_decode(real_data: Path) -> None:
    for name, size in (("lfw112.tar", (112, 112)), ("orl.tar", (92, 112))):
        index = read_index(real_data / name)
        for row in range(0, len(index), len(index) // 20):
            assert decode(index.read(row)).size == size
