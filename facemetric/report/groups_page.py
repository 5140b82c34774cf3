"""groups.html: the groups of a clustering in one file, in which a person names, joins and parts them.

It needs no network and no other file. What was done is saved by the page as a csv of corrections, which
`facemetric cluster --corrections` reads. Shapes: N images in the order of the page, C groups, S pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facemetric.evaluation.curves import Ints
from facemetric.files import write_bytes_whole
from facemetric.report.page import BASE, Files, fill_page
from facemetric.report.pictures import SPRITE_QUALITY, Pictures, jpeg_uri, make_sprite

PAGE = "groups.html"
FILES = Files("groups.html", (BASE, "groups.css"), "groups.js", "data: blob:")
MOST_PICTURES = 10_000  # about 14 MB at 64 pixels; the images beyond are there by their names
LARGE, SMALL, FEW = 96, 64, 4_000  # pixels of a picture: LARGE up to FEW images, SMALL beyond
SHEET = 256  # pictures in one sprite: a browser decodes those in view alone


@dataclass(frozen=True)
class GroupsPage:
    """What the page shows.

    `rows` (N,) of the table in the page's order; `number` (N,) of each one's group and whether it is `confirmed` (N,);
    `names` by number; `last`: the highest number that a group ever had. `alike`: two groups (numbers) that may be one
    person, and the mean cosine of their images. `next_command`: how to run again with what the page saves.
    """

    title: str
    lead: str
    rows: Ints
    number: Ints
    confirmed: npt.NDArray[np.bool_]
    names: dict[int, str]
    last: int
    alike: tuple[tuple[int, int, float], ...] = ()
    next_command: str = ""


def write_groups_page(file: str | Path, page: GroupsPage, pictures: Pictures) -> Path:
    """Write the page; the file appears whole."""
    shown = rows_with_pictures(page.number, MOST_PICTURES)
    cell = LARGE if len(page.rows) <= FEW else SMALL
    slot = np.full(len(page.rows), -1, np.int64)
    slot[shown] = np.arange(len(shown))
    data: dict[str, Any] = {
        "paths": [as_written(pictures.table.name(row)) for row in page.rows.tolist()],
        "group": page.number.tolist(),
        "confirmed": page.confirmed.astype(int).tolist(),
        "names": {str(number): name for number, name in page.names.items() if name},
        "last": page.last,
        "alike": [[one, other, round(score, 4)] for one, other, score in page.alike],
        "slot": slot.tolist(),
        "sheet": SHEET,
        "cell": cell,
        "sprites": sprites(pictures, page.rows[shown].tolist(), cell),
    }
    return write_bytes_whole(file, fill_page(FILES, data, page=page).encode("utf-8", "backslashreplace"))


def as_written(name: str) -> str:
    """A name as clusters.csv has it: bytes that are no UTF-8 as escapes, which a browser leaves as they are."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def rows_with_pictures(number_N: Ints, most: int) -> Ints:
    """The places (S,), rising, of at most so many images: every group gets its first picture before any gets a
    second."""
    _, first, group_N = np.unique(number_N, return_index=True, return_inverse=True)
    place_N = np.arange(len(number_N)) - first[group_N]
    return np.sort(np.argsort(place_N, kind="stable")[:most])


def sprites(pictures: Pictures, rows: Sequence[int], cell: int) -> list[list[Any]]:
    """[data URI, columns] of each sprite of SHEET pictures; the URI is "" where it has no picture at all."""
    squares = pictures.squares(rows, cell)
    found: list[list[Any]] = []
    for at in range(0, len(rows), SHEET):
        count = min(SHEET, len(rows) - at)
        sprite = make_sprite((next(squares) for _ in range(count)), count, cell)
        found.append(["", 1] if sprite is None else [jpeg_uri(sprite.image, SPRITE_QUALITY), sprite.columns])
    return found
