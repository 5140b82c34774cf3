"""A csv as people, Excel and other programs write it: the one reader of the lists of images and of pairs."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from facemetric.errors import DataError


class Table:
    """The header of a csv, and its rows as they are asked for.

    Cells are parted by `,`, or by `;` where the first line has more of these; spaces around them do not count, nor do
    rows without a value; cells that a row lacks at its end are empty. `columns` has the place of each name in the
    header, in lower case; a column without a name is passed over. `needed` says in messages what the header should
    be. DataError, with the line, for what is no csv.
    """

    def __init__(self, path: str | Path, lines: Iterable[str], needed: str) -> None:
        self.path, self.needed = path, needed
        lines = iter(lines)
        first, self._above = "", 0
        for line in lines:
            if line.strip(" \t\r\n,;"):
                first = line
                break
            self._above += 1
        self._reader = csv.reader(
            chain([first], lines), delimiter=";" if first.count(";") > first.count(",") else ","
        )
        self.header = next(self._cells(), [])
        named = [name.lower() for name in self.header if name]
        if len(set(named)) < len(named):
            raise DataError(f"{path}: a column stands twice in {', '.join(self.header)!r}; rename one")
        self.columns = {name.lower(): i for i, name in enumerate(self.header) if name}

    @property
    def line(self) -> int:
        """The number of the line that was read last, from 1."""
        return self._above + self._reader.line_num

    def rows(self) -> Iterator[list[str]]:
        """The cells of each row, as many as the header has."""
        wanted = len(self.header)
        for cells in self._cells():
            if not any(cells):
                continue
            if any(cells[wanted:]):
                raise DataError(
                    f"{self.path} line {self.line}: {len(cells)} fields, the header has {wanted}; "
                    "quote a field that holds the separator"
                )
            yield (cells + [""] * wanted)[:wanted]

    def _cells(self) -> Iterator[list[str]]:
        try:
            for cells in self._reader:
                yield [cell.strip() for cell in cells]
        except csv.Error as error:
            raise DataError(
                f"{self.path} line {self.line}: is no csv ({error}); needed {self.needed}"
            ) from None
