"""A csv as people, Excel and other programs write it: lists of images, and (in data/pairs.py) of pairs."""

from __future__ import annotations

import csv
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

from facemetric.data.readers import skips as kinds
from facemetric.data.readers.reader import NO_GROUPS, FileReader, Row
from facemetric.data.readers.skips import Skips, skipped_folder
from facemetric.errors import DataError, did_you_mean, first_few, plural

Listed = tuple[str, str | None, Mapping[str, str]]  # path, identity, groups


class Table:
    """The header of a csv, and its rows as they are asked for.

    Cells are parted by `,`, or by `;` or tabs where the first line has more of these; spaces around them do not
    count, nor do rows without a value; cells that a row lacks at its end are empty. `columns` has the place of each
    name in the header, in lower case; a column without a name is skipped. `needed` says in messages what the header
    should be. DataError, with the line, for what is no csv.
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
        self._reader = csv.reader(chain([first], lines), delimiter=max(",;\t", key=first.count))
        self.header = next(self._cells(), [])
        named = [name.lower() for name in self.header if name]
        if len(set(named)) < len(named):
            raise DataError(f"{path}: a column is there twice in {', '.join(self.header)!r}; rename one")
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


class FileList(FileReader):
    """Listed files below the folder `root`, the folder of each its identity, or with `loose` nobody's; nothing is
    skipped."""

    identity_folders = False

    def __init__(self, root: str, names: Iterable[str]) -> None:
        super().__init__(root)
        self.names = names

    def scan(self, skips: Skips, *, loose: bool) -> Iterator[Row]:
        listed = ((name, "" if loose else None, NO_GROUPS) for name in self.names)
        return _listed_rows(self.path, listed, source="the list")


class CsvReader(FileReader):
    """The columns `path` (below the csv's folder, or absolute) and `identity`; every other column is a group."""

    identity_folders = False

    def __init__(self, path: str) -> None:
        super().__init__(os.path.dirname(os.path.abspath(path)))
        self.table = path

    def scan(self, skips: Skips, *, loose: bool) -> Iterator[Row]:
        return _listed_rows(self.path, self._photographs(skips, loose), source=self.table)

    def _photographs(self, skips: Skips, loose: bool) -> Iterator[Listed]:
        """The lines without those that a `find` took from folders of thumbnails. Hidden folders stay: a list may
        lie in one, and names them on purpose."""
        for listed in csv_lines(self.table, loose):
            found = skipped_folder(listed[0].replace("\\", "/"))
            if found and found[1] is kinds.SYSTEM:
                skips.add_folder(found[1], found[0])
            else:
                yield listed


def _listed_rows(root: str, listed: Iterable[Listed], *, source: str) -> Iterator[Row]:
    """The rows of listed files below `root`; a path that is not there is tried with `/` for `\\`, as Windows writes
    it. DataError that names those that do not exist."""
    missing: list[str] = []
    for image, identity, groups in listed:
        for name in dict.fromkeys((image, image.replace("\\", "/"))):
            state = _file_state(os.path.join(root, name))
            if state:
                label = os.path.dirname(name) or "." if identity is None else identity
                yield Row(label, name, state.st_size, 0, state.st_mtime_ns, groups)
                break
        else:
            missing.append(image)
    if missing:
        raise DataError(
            f"{source}: {plural(len(missing), 'path')} without a file below {root}: {first_few(missing, 5)}; "
            "correct or remove those lines"
        )


def _file_state(path: str) -> os.stat_result | None:
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return None
    return state if stat.S_ISREG(state.st_mode) else None


def csv_lines(path: str, loose: bool) -> Iterator[Listed]:
    """(path, identity, groups) of each line: every other column that has a name is a group.

    With `loose` the identity may be empty."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = Table(path, file, "path,identity")
            places = [_column(table, "path")]
            if not loose or "identity" in table.columns:
                places.append(_column(table, "identity"))
            others = [(i, name) for i, name in enumerate(table.header) if name and i not in places]
            for cells in table.rows():
                image, identity = [*(cells[i] for i in places), ""][:2]
                if not image or not (identity or loose):
                    empty = "identity" if image else "path"
                    raise DataError(f"{path} line {table.line}: an empty {empty}; both columns need a value")
                yield image, identity, {name: cells[i] for i, name in others}
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: is no UTF-8 csv ({error}); write it with the columns path,identity (in Excel: CSV UTF-8)"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _column(table: Table, wanted: str) -> int:
    if wanted not in table.columns:
        raise DataError(
            f"{table.path}: no column {wanted!r} in its first line{did_you_mean(wanted, table.header)};"
            f" needed is {table.needed}"
        )
    return table.columns[wanted]
