"""Small pictures of the images of a table: data URIs for a page, and sprites of many."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

from PIL import Image, ImageOps
from tqdm import tqdm

from facemetric.data.images import BadImage, decode
from facemetric.data.index import ImageIndex
from facemetric.evaluation.embed import EmbeddingTable

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

    def sprite(self, rows: Sequence[int], cell: int) -> tuple[Image.Image, int] | None:
        """One picture of all rows, line by line in squares of `cell` pixels, and its number of columns.

        Square with room to spare at the end; an image that cannot be read leaves a grey square. None where
        not one can be read."""
        columns = math.ceil(math.sqrt(len(rows)))
        sheet = Image.new("RGB", (columns * cell, math.ceil(len(rows) / columns) * cell), PAD)
        seen = False
        for i, row in enumerate(
            tqdm(rows, desc="pictures", unit="image", delay=2, leave=False, disable=None)
        ):
            image = self.image(int(row), cell)
            if image is None:
                continue
            seen = True
            small = ImageOps.pad(image, (cell, cell), Image.Resampling.BILINEAR, color=PAD)
            sheet.paste(small, (i % columns * cell, i // columns * cell))
        return (sheet, columns) if seen else None


def jpeg_uri(image: Image.Image, quality: int) -> str:
    """A picture as a JPEG data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
