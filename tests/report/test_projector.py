"""TensorBoard's projector plugin, the installed one, opens what was written."""

from __future__ import annotations

import io
import json
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facemetric.evaluation.table import EmbeddingTable
from facemetric.report.map import cell_size, write_projector
from facemetric.report.pictures import make_sprite

N, D = 30, 5
NAMES = [f"person_{i % 7}" for i in range(N)]
PARTS = ["train"] * 20 + ["validation"] * 10


def written(folder: Path) -> EmbeddingTable:
    """A projector of N embeddings; one identity has a tab and a line break in its name, one is no UTF-8."""
    identities = np.array(NAMES, dtype=object)
    identities[3], identities[4] = "a\tb\nc", "broken\udcff"
    paths = np.array([f"{name}/{i}.jpg" for i, name in enumerate(NAMES)])
    table = EmbeddingTable(np.random.default_rng(0).normal(size=(N, D)), identities, paths)
    squares = (Image.new("RGB", (64, 64), (8 * i, 0, 255 - 8 * i)) for i in range(N))
    write_projector(folder, table, PARTS, make_sprite(squares, N, 64))
    return table


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(what was written, a function that fetches from a TensorBoard on the loopback)."""
    from tensorboard import default, program

    folder = tmp_path_factory.mktemp("projector")
    table = written(folder)
    board = program.TensorBoard(plugins=default.get_plugins())
    board.configure(logdir=str(folder), host="127.0.0.1", port=0, load_fast="false")
    address = board.launch()

    def fetch(what: str, **query: str) -> bytes:
        url = f"{address}data/plugin/projector/{what}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return answer.read()

    return table, fetch


def test_the_projector_finds_the_embeddings(served: Any) -> None:
    _, fetch = served
    runs = json.loads(fetch("runs"))
    assert runs == ["."]
    info = json.loads(fetch("info", run="."))["embeddings"]
    assert len(info) == 1
    assert info[0]["tensorShape"] == [N, D]
    assert info[0]["sprite"]["singleImageDim"] == [64, 64]


def test_the_projector_reads_tensors_names_and_pictures(served: Any) -> None:
    table, fetch = served
    query = {"run": ".", "name": "embeddings"}
    numbers = np.frombuffer(fetch("tensor", **query), dtype=np.float32).reshape(N, D)
    np.testing.assert_allclose(numbers, table.embeddings, rtol=1e-6)
    lines = fetch("metadata", **query).decode().splitlines()
    assert lines[0] == "identity\timage\tpart"
    assert len(lines) == N + 1
    assert {len(line.split("\t")) for line in lines} == {3}
    assert [line.split("\t")[2] for line in lines[1:]] == PARTS
    assert lines[4].startswith("a b c\t")
    assert lines[5].startswith("broken\\udcff\t")
    sprite = Image.open(io.BytesIO(fetch("sprite_image", **query)))
    assert sprite.size == (6 * 64, 5 * 64)  # the square of 6 that 30 pictures need, without an empty line
    for i in (0, 7, 29):
        red, _, blue = sprite.getpixel((i % 6 * 64 + 32, i // 6 * 64 + 32))  # type: ignore[misc]
        assert (red, blue) == (pytest.approx(8 * i, abs=4), pytest.approx(255 - 8 * i, abs=4))


def test_without_pictures(tmp_path: Path) -> None:
    table = EmbeddingTable(np.ones((2, 3)), np.array(["a", "b"]), np.array(["1", "2"]))
    config = write_projector(tmp_path, table, ["all", "all"], None)
    assert "sprite" not in config.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metadata.tsv", config.name, "tensors.tsv"]


@pytest.mark.parametrize("images", [1, 100, 16_384, 16_385, 100_000])
def test_a_sprite_stays_below_the_largest_texture(images: int) -> None:
    cell = cell_size(images)
    columns = int(np.ceil(np.sqrt(images)))
    assert 1 <= cell <= 64
    assert columns * cell <= 8192 < columns * (cell + 1) or cell == 64
