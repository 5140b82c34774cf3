"""Images that a list names, a csv or a file of pairs, to rows of a store."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping

from facemetric.data.readers.csv import Table
from facemetric.data.store import Rows, SourceFile
from facemetric.errors import DataError, did_you_mean


def scan_files(
    rows: Rows,
    root: str,
    listed: Iterable[tuple[str, str | None, Mapping[str, str]]],
    *,
    prefix: str = "",
    said: str = "the list",
) -> None:
    """Adds files by (path below root, identity or None for the file's folder, groups); a path that is not there
    is tried with `/` for `\\`, as Windows writes it. DataError that names those that do not exist."""
    rows.files.append(SourceFile(root, False, prefix, 0, 0))
    missing: list[str] = []
    for image, identity, groups in listed:
        for name in dict.fromkeys((image, image.replace("\\", "/"))):
            state = _file_state(os.path.join(root, name))
            if state:
                who = os.path.dirname(name) or "." if identity is None else identity
                rows.add(who, name, 0, state.st_size, state.st_mtime_ns, groups)
                break
        else:
            missing.append(image)
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{said}: {len(missing)} paths are no files below {root}: {shown}; mend or take out those lines"
        )


def _file_state(path: str) -> os.stat_result | None:
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return None
    return state if stat.S_ISREG(state.st_mode) else None


def csv_lines(path: str, loose: bool) -> Iterator[tuple[str, str, dict[str, str]]]:
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
