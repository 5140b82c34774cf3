"""Which images are shown, and where."""

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
from facemetric.report.map import PER_PERSON, cell_size, choose_images, lay_out, write_projector
from facemetric.report.pictures import make_sprite


def test_whole_people_are_shown() -> None:
    who = np.repeat(np.arange(100), 6)[np.random.default_rng(0).permutation(600)]
    rows = choose_images(who, 120, 0)
    assert len(rows) == 120
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert np.unique(np.bincount(who[rows], minlength=100)).tolist() == [0, 6]
    assert choose_images(who, 120, 0).tolist() == rows.tolist()
    assert choose_images(who, 120, 1).tolist() != rows.tolist()
    assert choose_images(who, 10_000, 0).tolist() == list(range(600))


def test_people_with_two_images_come_first() -> None:
    who = np.array([*range(50), *np.repeat(np.arange(50, 60), 2)])
    assert sorted(who[choose_images(who, 20, 0)]) == sorted(np.repeat(np.arange(50, 60), 2))
    assert len(choose_images(who, 40, 0)) == 40


def test_nobody_fills_the_picture() -> None:
    who = np.repeat(np.arange(101), [500, *[2] * 100])
    shown = np.bincount(who[choose_images(who, 400, 0)])
    assert shown[0] == PER_PERSON
    assert set(shown[1:]) == {2}
    few = np.repeat(np.arange(10), 500)
    assert np.bincount(few[choose_images(few, 1000, 0)]).tolist() == [100] * 10


def test_neighbours_stay_neighbours() -> None:
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(8), 12)
    emb = 4 * rng.normal(size=(8, 64))[who] + rng.normal(size=(96, 64))
    place = lay_out(emb, seed=0, quick=True)
    assert place.shape == (96, 2)
    assert place.min() == 0
    assert place.max() == 1
    gap = np.linalg.norm(place[:, None] - place[None], axis=2) + np.diag(np.full(96, 9.0))
    assert np.mean(who[gap.argmin(1)] == who) > 0.95
    np.testing.assert_array_equal(lay_out(emb, seed=0, quick=True), place)


def test_two_numbers_are_drawn_as_they_are() -> None:
    emb = np.array([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    place = lay_out(emb)
    np.testing.assert_allclose((place - place[0]) * 2, emb - emb[0], atol=1e-6)


def test_one_alone_lies_in_the_middle() -> None:
    for size in (2, 8):
        np.testing.assert_array_equal(lay_out(np.ones((1, size))), [[0.5, 0.5]])
        assert lay_out(np.ones((0, size))).shape == (0, 2)


def test_a_handful_and_doubles() -> None:
    rng = np.random.default_rng(0)
    for emb in (rng.normal(size=(2, 8)), rng.normal(size=(6, 8)), np.ones((40, 8))):
        place = lay_out(emb, quick=True)
        assert np.isfinite(place).all()
        assert 0 <= place.min() <= place.max() <= 1


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
    default = pytest.importorskip("tensorboard.default", reason="this TensorBoard needs pkg_resources")
    from tensorboard import program

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
