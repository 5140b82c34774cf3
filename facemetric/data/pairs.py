"""Lists of image pairs: read them, write them. (Their images in an index, and new pairs: `pair_images.py`.)

Forms that are read, told apart by their first line:
    csv     `image1_path,image2_path,label` (or `path_a,path_b,same`), label 1 = same person;
            an optional `fold` column; every other column is a group (age, camera, ...); parted by commas,
            semicolons or tabs (see `readers/csv.py`)
    LFW     first line `10<TAB>300` (folds, pairs of each kind in a fold) or `500` (one block: DevTrain,
            DevTest), then `name n1 n2` for the same person and `name1 n1 name2 n2` for two
    CPLFW   no header; a pair is two lines `file.jpg label`; label 0 = two people, 1 and up = one
            (CALFW writes the fold of such a pair, 1-10)
    .bin    InsightFace's sets, which hold the images too (see `readers/bin.py`); a fold is a tenth of the
            pairs in the order of the file
A list may have millions of pairs: a file is read line by line, and each path is kept once.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TextIO

import numpy as np
import numpy.typing as npt

from facemetric.data.pair_list import Ints, Listing, Pairs
from facemetric.data.readers.bin import read_bin
from facemetric.data.readers.csv import Table
from facemetric.errors import DataError, did_you_mean
from facemetric.files import write_whole
from facemetric.machine import progress_bar

COLUMNS = {
    "image1_path": "a",
    "path_a": "a",
    "image2_path": "b",
    "path_b": "b",
    "label": "same",
    "same": "same",
}
TRUTH = {
    "1": True,
    "true": True,
    "same": True,
    "yes": True,
    "0": False,
    "false": False,
    "different": False,
    "no": False,
}
BIN_FOLDS = 10
MOST_DIGITS = 18
BAR_LINES = 1 << 16  # lines between two steps of the progress bar


def read_pairs(file: str | Path) -> Pairs:
    """Pairs of a csv, LFW's `pairs.txt`, a CPLFW/CALFW list or InsightFace's `.bin`. DataError for others."""
    path = Path(file)
    if path.suffix.lower() == ".bin" and path.is_file():
        return _read_bin(path)
    with opened_text(path, "a pairs csv or pairs.txt") as text:
        return _read_text(path, text)


@contextmanager
def opened_text(path: Path, needed: str, *, newline: str | None = None) -> Iterator[TextIO]:
    """A list of pairs or templates, open to be read; DataError where it is not there or no UTF-8."""
    try:
        with open(path, encoding="utf-8-sig", newline=newline) as text:
            yield text
    except FileNotFoundError:
        raise DataError(f"{path}: no such pairs file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder; needed is {needed}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error}); needed {needed}") from None


def _read_text(path: Path, text: TextIO) -> Pairs:
    lines = _watched(path, text)
    above = []
    for first in lines:
        above.append(first)
        if first.strip():
            break
    else:
        raise DataError(
            f"{path}: empty; needed a pairs csv (image1_path,image2_path,label) or an LFW pairs.txt"
        )
    lines = chain(above, lines)
    head = first.split()
    if len(head) <= 2 and all(t.isdecimal() for t in head):
        return _read_lfw(path, _numbered_lines(path, lines))
    if path.suffix.lower() != ".csv" and len(head) == 2 and "," not in first and head[1].isdecimal():
        return _read_two_line(path, _numbered_lines(path, lines))
    return _read_csv(path, lines)


def _watched(path: Path, text: TextIO) -> Iterator[str]:
    """The lines, with a progress bar where there are many."""
    size = path.stat().st_size
    with progress_bar(total=size, desc="pairs", unit="B", unit_scale=True) as bar:
        read = 0
        for number, line in enumerate(text, 1):
            yield line
            read += len(line)
            if number % BAR_LINES == 0:
                bar.update(min(read, size - bar.n))
                read = 0


def _numbered_lines(path: Path, lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Line numbers from 1, and the lines that hold something."""
    for number, line in enumerate(lines, 1):
        if any(len(word) > MOST_DIGITS and word.isdecimal() for word in line.split()):
            raise DataError(
                f"{path}: holds a number of over {MOST_DIGITS} digits; needed labels and image numbers"
            )
        if line.strip():
            yield number, line.rstrip("\n")


def _read_bin(path: Path) -> Pairs:
    found = read_bin(path)
    # InsightFace's own evaluation takes ten parts one after the other: LFW's file holds its folds so.
    blocks = np.array_split(np.arange(len(found.same)), BIN_FOLDS)
    fold = np.repeat(np.arange(BIN_FOLDS), [len(block) for block in blocks])
    a, b = (np.asarray(rows, dtype=np.int32) for rows in (found.rows_a, found.rows_b))
    too_small = len(fold) < 2 * BIN_FOLDS
    return Pairs(
        tuple(found.names()),
        a,
        b,
        found.same,
        None if too_small else fold,
        source=str(path),
        holds_images=True,
    )


def _read_csv(path: Path, lines: Iterable[str]) -> Pairs:
    table = Table(path, lines, "image1_path,image2_path,label")
    header = table.header
    at = {COLUMNS[name]: i for name, i in table.columns.items() if name in COLUMNS}
    lacking = [
        name for key, name in (("a", "image1_path"), ("b", "image2_path"), ("same", "label")) if key not in at
    ]
    if lacking:
        hint = did_you_mean(lacking[0], header)
        hint = hint if hint.endswith("?") else ""
        raise DataError(
            f"{path}: no column {', '.join(lacking)} among {', '.join(header[:8])!r}; "
            f"needed image1_path,image2_path,label (or path_a,path_b,same){hint}"
        )
    if sum(name in COLUMNS for name in table.columns) > 3:
        raise DataError(f"{path}: a column occurs twice in {', '.join(header)!r}; rename one")
    at_a, at_b, at_same = at["a"], at["b"], at["same"]
    needed = [i for name, i in table.columns.items() if name == "fold" or name in COLUMNS]
    others = {i: _Column() for i, name in enumerate(header) if name and i not in at.values()}
    listing = Listing()
    for row in table.rows():
        if empty := [header[i] for i in needed if not row[i]]:
            raise DataError(f"{path} line {table.line}: no {', '.join(empty)}; every pair needs one")
        truth = TRUTH.get(row[at_same].lower())
        if truth is None:
            raise DataError(
                f"{path} line {table.line}: label {row[at_same]!r}; write 1 (same) or 0 (different)"
            )
        listing.add(row[at_a], row[at_b], truth)
        for i, column in others.items():
            column.add(row[i])
    if not listing.a:
        raise DataError(f"{path}: a header but no pairs")
    fold = next(
        (_fold_numbers(path, column) for i, column in others.items() if header[i].lower() == "fold"), None
    )
    groups = {header[i]: column.values() for i, column in others.items() if header[i].lower() != "fold"}
    return replace(listing.pairs(path, fold), groups=groups)


class _Column:
    """A column of few different values, 4 bytes a row."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}
        self.rows = array("i")

    def add(self, value: str) -> None:
        self.rows.append(self.number.setdefault(value, len(self.number)))

    def values(self) -> npt.NDArray[np.str_]:
        return np.array(list(self.number), dtype=np.str_)[np.array(self.rows)]


def _fold_numbers(path: Path, column: _Column) -> Ints:
    """Fold names as numbers from 0, in numerical order where they are numbers."""
    if long := next((v for v in column.number if v.isdecimal() and len(v) > MOST_DIGITS), ""):
        raise DataError(
            f"{path}: fold {long[:MOST_DIGITS]}... has over {MOST_DIGITS} digits; number folds from 1"
        )
    names = sorted(column.number, key=lambda v: (not v.isdecimal(), int(v) if v.isdecimal() else 0, v))
    if len(names) < 2:
        raise DataError(
            f"{path}: one fold only ({names[0]!r}); needed two or more, or leave the fold column out"
        )
    place = np.empty(len(names), np.int64)
    place[[column.number[name] for name in names]] = np.arange(len(names))
    return place[np.array(column.rows)]


def _read_lfw(path: Path, lines: Iterator[tuple[int, str]]) -> Pairs:
    head = [int(t) for t in next(lines)[1].split()]
    folds, each = (head[0], head[1]) if len(head) == 2 else (1, head[0])
    wanted, found = 2 * folds * each, 0
    listing = Listing()
    for number, line in lines:
        found += 1
        if found > wanted:
            continue  # counted, for the message
        part = line.strip().split("\t") if "\t" in line else line.split()
        if len(part) == 3:
            part = [part[0], part[1], part[0], part[2]]
            same = True
        elif len(part) == 4:
            same = False
        else:
            raise DataError(
                f"{path} line {number}: {line[:80]!r}; needed `name n1 n2` or `name1 n1 name2 n2`"
            )
        if not (part[1].isdecimal() and part[3].isdecimal()):
            raise DataError(f"{path} line {number}: {line[:80]!r}; image numbers must be whole numbers")
        paths = [f"{name}/{name}_{int(image):04d}" for name, image in (part[:2], part[2:])]
        listing.add(paths[0], paths[1], same)
    if found != wanted:
        raise DataError(
            f"{path}: {found} pairs, the header promises {folds} x 2 x {each} = {wanted}; cut short?"
        )
    pairs = listing.pairs(path)
    blocks = pairs.same.reshape(folds, 2, each)
    if not (blocks[:, 0].all() and not blocks[:, 1].any()):
        raise DataError(
            f"{path}: each fold needs {each} pairs of one person, then {each} of two; lines moved?"
        )
    fold = np.repeat(np.arange(folds), 2 * each) if folds > 1 else None
    return replace(pairs, fold=fold, bare=True)


def _read_two_line(path: Path, lines: Iterator[tuple[int, str]]) -> Pairs:
    listing, read = Listing(), 0
    first, label = "", 0  # of the pair's first line
    for number, line in lines:
        read += 1
        part = line.strip().rsplit(None, 1)
        if len(part) != 2 or not part[1].isdecimal():
            raise DataError(
                f"{path} line {number}: {line[:80]!r}; needed `file.jpg label` with label 0, or 1 and up"
            )
        if read % 2:
            first, label = part[0], int(part[1])
        elif label != int(part[1]):
            raise DataError(f"{path} line {number}: labels {label} and {int(part[1])} in one pair")
        else:
            listing.add(first, part[0], label > 0)
    if read % 2:
        raise DataError(f"{path}: {read} lines; a pair is two lines, so needed an even number; cut short?")
    return listing.pairs(path)


def write_pairs(file: str | Path, pairs: Pairs) -> None:
    """A csv that `read_pairs` reads back; the file appears whole."""
    fold = [] if pairs.fold is None else ["fold"]

    def fill(path: Path) -> None:
        with open(path, "w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out)
            writer.writerow(["image1_path", "image2_path", "label", *fold, *pairs.groups])
            for i in range(len(pairs)):
                number = [] if pairs.fold is None else [int(pairs.fold[i])]
                groups = [str(column[i]) for column in pairs.groups.values()]
                paths = pairs.names[pairs.a[i]], pairs.names[pairs.b[i]]
                writer.writerow([*paths, int(pairs.same[i]), *number, *groups])

    write_whole(file, fill)
