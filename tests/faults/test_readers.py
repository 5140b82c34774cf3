"""Damaged and hostile files: every reader gives something, or an error of our own in one line."""

from __future__ import annotations

import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_readers
import numpy as np
import pytest

from facemetric.config.build import read_toml
from facemetric.config.recipe import read_tables
from facemetric.data.bad_images import BadImageLog
from facemetric.data.images import BadImage, decode
from facemetric.data.lists import read_merges
from facemetric.data.pairs import read_pairs
from facemetric.errors import ConfigError, DataError, WeightsError
from facemetric.evaluation.table import EmbeddingTable
from facemetric.model.weights.folder import read_config
from facemetric.training.run.folder import read_log
from facemetric.training.stage import parse_arguments
from facemetric.training.tasks.feature_cache import read_cache


def read_arguments(path):
    return parse_arguments("--arch-args", path.read_text(), "a = 1")


@pytest.fixture(scope="module")
def readers() -> dict[str, fuzz_readers.Reader]:
    return fuzz_readers.readers()


def test_whole_files_are_read(readers: dict[str, fuzz_readers.Reader], tmp_path: Path) -> None:
    """So that what is damaged below is nearly right."""
    for name, reader in readers.items():
        outcome = fuzz_readers.run_case(reader, reader.whole, tmp_path / "case")
        assert outcome == "read", name


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.filterwarnings("ignore")
def test_damaged_files(readers: dict[str, fuzz_readers.Reader], tmp_path: Path, seed: int) -> None:
    """25 files of each kind a seed; tools/fuzz_readers.py does a hundred thousand."""
    chance = random.Random(seed)
    for name, reader in readers.items():
        for _ in range(2 if name == "config.json" else 25):
            data = fuzz_readers.mutate(reader.whole, chance)
            outcome = fuzz_readers.run_case(reader, data, tmp_path / "case")
            assert not outcome.startswith("WRONG"), (name, data[:2000], outcome)
            assert "several lines" not in outcome, name


LONG, DEEP, MANY = b"A" * 140_000, b"[" * 100_000, b"9" * 5000


def npz_of(header: bytes) -> bytes:
    """A whole .npz whose array's header is this text: its checksum is right."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as parts:
        for name in ("embeddings", "identities", "paths"):
            parts.writestr(f"{name}.npy", b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header)
    return out.getvalue()


@pytest.mark.parametrize(
    ("read", "name", "data", "kind", "message"),
    [
        (read_merges, "m.csv", b'a,b\n"c,d\ne",f\n"g\n', DataError, "line 4: names 1 identity,"),
        (read_merges, "m.csv", b"a," + LONG + b"\n", DataError, "line 1: is no csv"),
        (read_merges, "m.csv", b"a,b\n,,\n", DataError, "line 2: names 0 identities"),
        (read_pairs, "p.csv", b"image1_path,image2_path,label\na,b," + LONG, DataError, "line 2: is no csv"),
        (read_pairs, "p.csv", b",,\n,,\n", DataError, "no column image1_path"),
        (read_pairs, "p.txt", MANY + b"\na 1 2\n", DataError, "number of over 18 digits"),
        (read_pairs, "p.txt", b"a.jpg " + MANY, DataError, "number of over 18 digits"),
        (read_toml, "c.toml", b"a = " + MANY, ConfigError, "is not TOML"),
        (read_toml, "c.toml", b"a = " + DEEP, ConfigError, "is not TOML"),
        (read_tables, "r.toml", b"[pretrain]\na = " + MANY, ConfigError, "is not TOML"),
        (read_tables, "r.toml", b"[pretrain]\na = " + DEEP, ConfigError, "is not TOML"),
        (
            lambda path: parse_arguments("--arch-args", path.read_text(), "a = 1"),
            "a",
            b"a = " + MANY,
            ConfigError,
            "is not TOML",
        ),
        (
            lambda path: parse_arguments("--arch-args", path.read_text(), "a = 1"),
            "a",
            b"a = " + DEEP,
            ConfigError,
            "is not TOML",
        ),
        (
            lambda path: BadImageLog(path, 9, 1.0),
            "b.csv",
            LONG + b"\n",
            DataError,
            "remove it, a new one is made",
        ),
        (EmbeddingTable.load, "e.npz", npz_of(b"{'shape': ("), DataError, "not a readable .npz"),
        (EmbeddingTable.load, "e.npz", b"PK\x03\x04" + bytes(60), DataError, "not a readable .npz"),
    ],
)
def test_what_the_long_campaign_found(
    tmp_path: Path, read: Callable[[Path], Any], name: str, data: bytes, kind: type[Exception], message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(kind, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "bad", ["[[4, 1]]", "[[-1, 1]]", "[[1e400, 1]]", "[[9223372036854775808, 1]]", "[" * 99_999]
)
def test_a_cache_record_that_is_damaged_is_no_cache(tmp_path: Path, bad: str) -> None:
    np.save(tmp_path / "k.npy", np.zeros((1, 4, 8), np.float32))
    (tmp_path / "k.json").write_text(f'{{"bad": {bad}}}')
    assert read_cache(tmp_path, "k", (1, 4, 8)) is None
    (tmp_path / "k.json").write_text('{"bad": [[2, "cut"]]}')
    found = read_cache(tmp_path, "k", (1, 4, 8))
    assert found is not None
    assert found.valid.tolist() == [True, True, False, True]


def test_json_that_is_deep_or_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(DEEP)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_config(tmp_path)
    ours = {"format": 1, "embedding_size": 8, "preprocess": 7}
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "x", "facemetric": ours}))
    with pytest.raises(WeightsError, match="preprocess is 7"):
        read_config(tmp_path)
    (tmp_path / "log.jsonl").write_bytes(DEEP + b'\n7\n{"event": "train"}\n')
    assert read_log(tmp_path / "log.jsonl") == [{"event": "train"}]


def test_pictures_of_no_size_of_one_line_and_of_another_kind() -> None:
    for data in (
        b"P6 0 0 255\n",
        b"P6 0 5 255\n",
        fuzz_readers.picture("BMP").replace(b"\x07\0\0\0\x09", bytes(5)),
    ):
        with pytest.raises(BadImage):
            decode(data)
    for size in ((1, 3000), (3000, 1), (1, 1)):
        data = b"P6 %d %d 255\n" % size + bytes(3 * size[0] * size[1])
        assert decode(data).size == size
    with pytest.raises(BadImage, match=r"bomb|at most 64000000 are decoded"):
        decode(b"P6 100000 100000 255\n" + bytes(100))
    assert decode(fuzz_readers.picture("WEBP")).size == (7, 9)  # its name does not matter
