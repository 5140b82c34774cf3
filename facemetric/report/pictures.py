"""Small pictures of the images of a table: data URIs for a page, and sprites, which hold many in one."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from PIL import Image, ImageOps
from tqdm import tqdm

from facemetric.data.images import BadImage, decode
from facemetric.data.index import ImageIndex
from facemetric.evaluation.table import EmbeddingTable

SIDE = 112  # pixels of a picture in the page
QUALITY = 80  # JPEG: 3 kB a picture
SPRITE_QUALITY = 72
PAD = (128, 128, 128)


class Pictures:
    """Pictures of the rows of a table, read from `index` by their names; no index, no pictures."""

    def __init__(self, table: EmbeddingTable, index: ImageIndex | None) -> None:
        self.table, self.index = table, index
        self._made: dict[int, str] = {}

    def image(self, row: int, side: int) -> Image.Image | None:
        """The image of a row, about `side` pixels or more; None where it is not there or cannot be read."""
        at = self.index.find(self.table.name(row)) if self.index is not None else None
        if self.index is None or at is None:
            return None
        try:
            return decode(self.index.read(at), enough=side)
        except (BadImage, OSError):
            return None

    def uri(self, row: int) -> str:
        """The picture of a row as a JPEG data URI, SIDE pixels at most; "" where there is none."""
        if row not in self._made:
            image = self.image(row, SIDE)
            if image is not None:
                image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
            self._made[row] = "" if image is None else jpeg_uri(image, QUALITY)
        return self._made[row]

    def squares(self, rows: Sequence[int], cell: int) -> Iterator[Image.Image | None]:
        """The pictures of rows, each in a square of `cell` pixels; None for one that is not there."""
        bar = tqdm(rows, desc="pictures", unit="image", delay=2, leave=False, disable=None)
        for row in bar:
            image = self.image(int(row), cell)
            yield None if image is None else ImageOps.pad(image, (cell, cell), Image.Resampling.BILINEAR, PAD)


class Sprite(NamedTuple):
    """Many pictures in one, line by line in `columns` columns of `cell` pixels: a square, or a line short of it."""

    image: Image.Image
    cell: int
    columns: int


def make_sprite(squares: Iterable[Image.Image | None], count: int, cell: int) -> Sprite | None:
    """`count` squares in one picture; one that is not there stays grey. None where not one is."""
    columns = math.ceil(math.sqrt(count))
    sheet = Image.new("RGB", (columns * cell, math.ceil(count / columns) * cell), PAD)
    seen = False
    for i, square in enumerate(squares):
        if square is not None:
            seen = True
            sheet.paste(square, (i % columns * cell, i // columns * cell))
    return Sprite(sheet, cell, columns) if seen else None


def jpeg_uri(image: Image.Image, quality: int) -> str:
    """A picture as a JPEG data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
