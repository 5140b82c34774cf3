"""Picture sheets of a data check: what the csv says, in its order, to be judged by eye."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from facemetric.commands.checking.findings import (
    KINDS,
    MISLABELLED,
    ONE_PERSON,
    TEST_NAME,
    TEST_PERSON,
    Finding,
)
from facemetric.data.images import BadImage, decode
from facemetric.data.index import ImageIndex
from facemetric.report.pictures import COLUMNS, MOST, Pictures, draw_sheet

HALF = COLUMNS // 2
BLANK = -1
PEOPLE = (ONE_PERSON, TEST_NAME, TEST_PERSON)


class Shown(NamedTuple):
    """What a finding puts on a sheet: rows, BLANK for a free place, which of them are framed, and their captions:
    the identity, before the first picture of each side its score."""

    rows: list[int]
    framed: list[bool]
    captions: list[str]


class TwoSets(Pictures):
    """Pictures of two indexes: rows of the second follow those of the first; BLANK has no picture."""

    def __init__(self, index: ImageIndex, test: ImageIndex | None) -> None:
        self.first, self.second = index, test

    def image(self, row: int, side: int) -> Image.Image | None:
        """The image of a row, about `side` pixels or more; None for BLANK and where it cannot be read."""
        index, at = (self.first, row) if row < len(self.first) else (self.second, row - len(self.first))
        if row == BLANK or index is None:
            return None
        try:
            return decode(index.read(at), enough=side)
        except (BadImage, OSError):
            return None


def draw_check_sheets(
    out: Path, findings: Sequence[Finding], index: ImageIndex, test: ImageIndex | None, *, pages: int
) -> list[Path]:
    """Write `sheet_KIND_1.jpg` and so on, at most `pages` of each kind; those of a check before are taken away."""
    for old in out.glob("sheet_*.jpg"):
        old.unlink()
    pictures, written = TwoSets(index, test), []
    for kind in KINDS:
        of_kind = [finding for finding in findings if finding.kind == kind]
        shown = [shown_of(finding, index, test) for finding in of_kind[: pages * MOST // 2]]
        for page, (start, some) in enumerate(paged(shown), 1):
            if page > pages:
                break
            rows = [row for one in some for row in one.rows]
            framed = [frame for one in some for frame in one.framed]
            captions = [caption for one in some for caption in one.captions]
            last = start + len(some)
            title = f"{kind} {start + 1:,} to {last:,} of {len(of_kind):,}; framed: {framed_in(kind)}"
            name = out / f"sheet_{kind.replace(' ', '_')}_{page}.jpg"
            written.append(draw_sheet(name, pictures, rows, title=title, marked=framed, captions=captions))
    return written


def framed_in(kind: str) -> str:
    """What the frames of a sheet mean."""
    if kind == MISLABELLED:
        return "the image, then its identity's others, then identity_b's"
    return "identity_b" if kind in PEOPLE else "image_b"


def paged(shown: Sequence[Shown]) -> Iterator[tuple[int, list[Shown]]]:
    """(number of its first finding, findings) of each sheet of MOST places."""
    start = held = 0
    for i, one in enumerate(shown):
        if held + len(one.rows) > MOST:
            yield start, list(shown[start:i])
            start, held = i, 0
        held += len(one.rows)
    if held:
        yield start, list(shown[start:])


def shown_of(finding: Finding, index: ImageIndex, test: ImageIndex | None) -> Shown:
    """Two pictures of a pair; a line of both identities of a pair, or of an image, its own and the other's."""
    ahead = 0 if test is None or "test" not in finding.kind else len(index)
    other = index if ahead == 0 or test is None else test
    if finding.kind in PEOPLE:
        a = places(images_of(index, finding.identity_a), HALF)
        b = places([row + ahead for row in images_of(other, finding.identity_b)], HALF)
        return Shown(a + b, [False] * HALF + [row != BLANK for row in b], captions_of(finding, a, b))
    if finding.kind == MISLABELLED:
        own = [row for row in images_of(index, finding.identity_a) if row != finding.row_a]
        a, b = places(own, HALF - 1), places(images_of(index, finding.identity_b), HALF)
        captions = captions_of(finding, [finding.row_a, *a], b)
        return Shown([finding.row_a, *a, *b], [True] + [False] * (COLUMNS - 1), captions)
    rows = [finding.row_a, finding.row_b + ahead]
    return Shown(rows, [False, True], captions_of(finding, rows[:1], rows[1:]))


def captions_of(finding: Finding, a: Sequence[int], b: Sequence[int]) -> list[str]:
    """The identity of each picture of both sides, nothing for BLANK; the score comes before the first of each."""
    captions = []
    for rows, name in ((a, finding.identity_a), (b, finding.identity_b)):
        names = ["" if row == BLANK else name for row in rows]
        names[0] = f"{finding.score:g} {name}" if names[0] else ""
        captions += names
    return captions


def images_of(index: ImageIndex, identity: str) -> list[int]:
    """Rows of an identity's images: they stand together, in the order of the identities."""
    numbers, _ = index.identity_numbers([identity])
    low, high = np.searchsorted(index.identity, [numbers[0], numbers[0] + 1])
    return list(range(int(low), int(high)))


def places(rows: Sequence[int], count: int) -> list[int]:
    """`count` of the rows, evenly chosen, or all of them and BLANKs."""
    if len(rows) <= count:
        return [*rows, *[BLANK] * (count - len(rows))]
    return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]
