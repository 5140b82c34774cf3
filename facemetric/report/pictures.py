"""Small pictures of the images of a table: data URIs for a page, and sprites, which hold many in one."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont, ImageOps

from facemetric.data.images import BadImage, decode
from facemetric.data.index import ImageIndex
from facemetric.evaluation.table import EmbeddingTable
from facemetric.faces.finder import FaceFinder
from facemetric.files import write_whole
from facemetric.machine import progress_bar

SIDE = 112  # pixels of a picture in the page
QUALITY = 80  # JPEG: 3 kB a picture
SPRITE_QUALITY = 72
PAD = (128, 128, 128)
CELL, GAP, COLUMNS, LINE = 96, 4, 10, 28  # pixels; LINE is a line of text
CAPTION = 14  # pixels at the foot of a picture
MOST = 100  # pictures on a sheet
SHEET_QUALITY = 85
MARK = (213, 94, 0)  # around another identity's picture: Okabe and Ito's vermilion, seen by all


class Pictures:
    """Pictures of the rows of a table, read from `index` by their names; no index, no pictures.

    `shown`: of rows that are no images, such as templates, the image to show for each name. `finder` looks at the
    images as crops where they are of faces, for their quality."""

    def __init__(
        self,
        table: EmbeddingTable,
        index: ImageIndex | None,
        shown: Mapping[str, str] | None = None,
        finder: FaceFinder | None = None,
    ) -> None:
        self.table, self.index, self.shown, self.finder = table, index, shown or {}, finder
        self._made: dict[int, str] = {}

    def image(self, row: int, side: int) -> Image.Image | None:
        """The image of a row, about `side` pixels or more; None where it is not there or cannot be read."""
        name = self.table.name(row)
        at = self.index.find(self.shown.get(name, name)) if self.index is not None else None
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

    def qualities(self, rows: Sequence[int]) -> dict[int, str]:
        """For rows whose images were looked at, what their captions say: `quality 0.87`, or that there is no face."""
        if self.finder is None:
            return {}
        images = {row: image for row in dict.fromkeys(rows) if (image := self.image(row, 0)) is not None}
        found = self.finder(images.values())
        return {
            row: "no face seen" if one.missing else f"quality {one.faces[0].quality.figure:.2f}"
            for row, one in zip(images, found, strict=True)
        }

    def squares(self, rows: Sequence[int], cell: int) -> Iterator[Image.Image | None]:
        """The pictures of rows, each in a square of `cell` pixels; None for one that is not there."""
        bar = progress_bar(rows, desc="pictures", unit="image")
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


def rows_shown(rows: Sequence[int], most: int = MOST) -> list[int]:
    """The rows of a sheet: all, or the half of `most` nearest to the centre and the half farthest from it."""
    if len(rows) <= most:
        return list(rows)
    half = most // 2
    return [*rows[:half], *rows[len(rows) - (most - half) :]]


def draw_sheet(
    file: str | Path,
    pictures: Pictures,
    rows: Sequence[int],
    *,
    title: str,
    marked: Sequence[bool] = (),
    captions: Sequence[str] = (),
) -> Path:
    """Write a jpg of the pictures of rows of a table, `title` above; `marked` ones (one a row) get a frame, and
    `captions` (one a row) are under them.

    An image that cannot be read leaves a grey square."""
    columns = min(COLUMNS, len(rows))
    step = CELL + GAP
    width = max(columns * step + GAP, 6 * CELL)  # room for the title
    sheet = Image.new("RGB", (width, LINE + -(-len(rows) // columns) * step + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font, small = (ImageFont.truetype(findfont("DejaVu Sans"), size) for size in (14, 10))
    draw.text((GAP, LINE // 2), fitting(title, font, width - 2 * GAP), fill="black", font=font, anchor="lm")
    grey = Image.new("RGB", (CELL, CELL), PAD)
    for i, square in enumerate(pictures.squares(rows, CELL)):
        left, top = GAP + i % columns * step, LINE + i // columns * step
        sheet.paste(square or grey, (left, top))
        if len(captions) and captions[i]:
            draw.rectangle((left, top + CELL - CAPTION, left + CELL - 1, top + CELL - 1), fill="white")
            text = fitting(captions[i], small, CELL - 4)
            draw.text((left + 2, top + CELL - CAPTION // 2), text, fill="black", font=small, anchor="lm")
        if len(marked) and marked[i]:
            draw.rectangle((left - 2, top - 2, left + CELL + 1, top + CELL + 1), outline=MARK, width=4)
    return write_whole(file, lambda path: sheet.save(path, "JPEG", quality=SHEET_QUALITY))


def fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text in one line, cut to a width in pixels."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
