"""Small pictures and sprites of an index's images."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from facemetric.data.index import ImageIndex, read_index
from facemetric.evaluation.table import EmbeddingTable
from facemetric.faces.crops import Face, FacesFound, NoFace
from facemetric.faces.finder import FaceFinder
from facemetric.faces.photographs import Picture
from facemetric.faces.quality import Quality
from facemetric.report.pictures import Pictures, make_sprite


def table_of(index: ImageIndex, *more: str) -> EmbeddingTable:
    names = [*(index.name(i) for i in range(len(index))), *more]
    return EmbeddingTable(np.ones((len(names), 4)), np.array(["x"] * len(names)), np.array(names))


def one_colour(folder: Path, name: str, colour: tuple[int, int, int], size: tuple[int, int]) -> None:
    (folder / "a").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(folder / "a" / name)


def colours(tmp_path: Path) -> Pictures:
    """Red 300 x 200, green 20 x 40, a broken one, and a row whose image is nowhere."""
    one_colour(tmp_path, "0.png", (255, 0, 0), (300, 200))
    one_colour(tmp_path, "1.png", (0, 255, 0), (20, 40))
    (tmp_path / "a" / "2.png").write_bytes(b"no picture")
    index = read_index(tmp_path)
    return Pictures(table_of(index, "a/gone.png"), index)


def test_a_picture_is_a_small_jpeg(tmp_path: Path) -> None:
    pictures = colours(tmp_path)
    uri = pictures.uri(0)
    assert uri.startswith("data:image/jpeg;base64,")
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert image.size == (112, 75)
    assert np.abs(np.asarray(image).mean((0, 1)) - [255, 0, 0]).max() < 4
    small = Image.open(io.BytesIO(base64.b64decode(pictures.uri(1).split(",")[1])))
    assert small.size == (20, 40)  # never larger than it is


def test_what_cannot_be_shown_is_empty(tmp_path: Path) -> None:
    pictures = colours(tmp_path)
    assert pictures.uri(2) == pictures.uri(3) == ""
    assert Pictures(pictures.table, None).uri(0) == ""


def test_qualities_are_of_what_the_finder_saw(tmp_path: Path) -> None:
    class Finder(FaceFinder):
        def __init__(self) -> None: ...

        def __call__(self, pictures: Iterable[Picture]) -> Iterator[FacesFound]:
            for picture in pictures:
                assert isinstance(picture, Image.Image)
                face = Face(picture, np.zeros(4), np.zeros((5, 2)), 1.0, Quality(0.874, 1, 1, 1, 0))
                wide = picture.width > picture.height
                yield (
                    FacesFound((face,), picture.size)
                    if wide
                    else FacesFound((), picture.size, NoFace("none"))
                )

    pictures = colours(tmp_path)
    assert pictures.qualities([0, 1]) == {}  # nobody looks
    pictures.finder = Finder()
    assert pictures.qualities([1, 0, 1, 2, 3]) == {0: "quality 0.87", 1: "no face seen"}


def test_a_sprite_has_every_picture_in_its_place(tmp_path: Path) -> None:
    pictures = colours(tmp_path)
    rows = [0, 1, 2, 3, 1]
    sprite = make_sprite(pictures.squares(rows, 16), len(rows), 16)
    assert sprite is not None
    assert sprite.columns == 3
    assert sprite.image.size == (48, 32)
    middle = [sprite.image.getpixel((i % 3 * 16 + 8, i // 3 * 16 + 8)) for i in range(5)]
    assert middle == [(255, 0, 0), (0, 255, 0), (128, 128, 128), (128, 128, 128), (0, 255, 0)]
    assert sprite.image.getpixel((1, 1)) == (128, 128, 128)  # 300 x 200 is not stretched
    assert make_sprite(pictures.squares([2, 3], 16), 2, 16) is None
