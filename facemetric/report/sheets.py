"""Picture sheets: one picture of the images of a cluster, those nearest to its centre first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont

from facemetric.files import write_whole
from facemetric.report.pictures import PAD, Pictures

CELL, GAP, COLUMNS, LINE = 96, 4, 10, 28  # pixels; LINE is a line of text
MOST = 100  # pictures on a sheet
QUALITY = 85
MARK = (213, 94, 0)  # around another identity's picture: Okabe and Ito's vermilion, seen by all


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
) -> Path:
    """Write a jpg of the pictures of rows of a table, `title` above; `marked` ones (one a row) get a frame.

    An image that cannot be read leaves a grey square."""
    columns = min(COLUMNS, len(rows))
    step = CELL + GAP
    width = max(columns * step + GAP, 6 * CELL)  # room for the title
    sheet = Image.new("RGB", (width, LINE + -(-len(rows) // columns) * step + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.truetype(findfont("DejaVu Sans"), 14)
    draw.text((GAP, LINE // 2), fitting(title, font, width - 2 * GAP), fill="black", font=font, anchor="lm")
    grey = Image.new("RGB", (CELL, CELL), PAD)
    for i, square in enumerate(pictures.squares(rows, CELL)):
        left, top = GAP + i % columns * step, LINE + i // columns * step
        sheet.paste(square or grey, (left, top))
        if len(marked) and marked[i]:
            draw.rectangle((left - 2, top - 2, left + CELL + 1, top + CELL + 1), outline=MARK, width=4)
    return write_whole(file, lambda path: sheet.save(path, "JPEG", quality=QUALITY))


def fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text in one line, cut to a width in pixels."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"
