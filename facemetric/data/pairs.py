"""Lists of image pairs: read them, write them. (Their images in an index: `resolve.py`; new ones: `pairing.py`.)

Forms that are read, told apart by what stands in the file:
    csv     `image1_path,image2_path,label` (or `path_a,path_b,same`), label 1 = same person;
            an optional `fold` column; every other column is a group (age, camera, ...); see `table.py`
    LFW     first line `10<TAB>300` (folds, pairs of each kind in a fold) or `500` (one block: DevTrain,
            DevTest), then `name n1 n2` for the same person and `name1 n1 name2 n2` for two
    CPLFW   no header; a pair is two lines `file.jpg label`; label 0 = two persons, 1 and up = one
            (CALFW writes the fold of such a pair, 1-10)
    .bin    InsightFace's sets, which hold the images too (see `insightface.py`); a fold is a tenth of the
            pairs in the order of the file
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from facemetric.data.readers.bin import read_bin
from facemetric.data.readers.csv import Table
from facemetric.errors import DataError, did_you_mean
from facemetric.files import write_whole

Ints = npt.NDArray[np.int64]
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


@dataclass(frozen=True)
class Pairs:
    """P pairs as they stand in a file.

    `same` bool (P,): one person or two. `fold` int64 (P,), numbered from 0, or None where the file has none.
    `groups`: other columns of the csv, str (P,). `bare`: the paths have no extension (LFW).
    `holds_images`: the file is a source of the images too.
    """

    paths_a: tuple[str, ...]
    paths_b: tuple[str, ...]
    same: npt.NDArray[np.bool_]
    fold: Ints | None = None
    groups: dict[str, npt.NDArray[np.str_]] = field(default_factory=dict)
    bare: bool = False
    source: str = "pairs"
    holds_images: bool = False

    def __len__(self) -> int:
        return len(self.paths_a)

    def paths(self) -> list[str]:
        """Every path once, in order of first use."""
        return list(dict.fromkeys(p for pair in zip(self.paths_a, self.paths_b, strict=True) for p in pair))


def read_pairs(file: str | Path) -> Pairs:
    """Pairs of a csv, LFW's `pairs.txt`, a CPLFW/CALFW list or InsightFace's `.bin`. DataError for others."""
    path = Path(file)
    if path.suffix.lower() == ".bin" and path.is_file():
        return _read_bin(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such pairs file") from None
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(
            f"{path}: cannot be read as UTF-8 text ({err}); needed a pairs csv or pairs.txt"
        ) from None
    lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise DataError(
            f"{path}: empty; needed a pairs csv (image1_path,image2_path,label) or an LFW pairs.txt"
        )
    head = lines[0][1].split()
    if any(len(word) > MOST_DIGITS and word.isdecimal() for _, line in lines for word in line.split()):
        raise DataError(
            f"{path}: holds a number of over {MOST_DIGITS} digits; needed labels and image numbers"
        )
    if len(head) <= 2 and all(t.isdecimal() for t in head):
        return _read_lfw(path, lines)
    if path.suffix.lower() != ".csv" and len(head) == 2 and "," not in lines[0][1] and head[1].isdecimal():
        return _read_two_line(path, lines)
    return _read_csv(path, text)


def _read_bin(path: Path) -> Pairs:
    found = read_bin(path)
    names = found.names()
    paths_a, paths_b = (tuple(names[row] for row in rows) for rows in (found.rows_a, found.rows_b))
    # InsightFace's own evaluation takes ten parts one after the other: LFW's file holds its folds so.
    blocks = np.array_split(np.arange(len(found.same)), BIN_FOLDS)
    fold = np.repeat(np.arange(BIN_FOLDS), [len(block) for block in blocks])
    few = len(fold) < 2 * BIN_FOLDS
    return Pairs(paths_a, paths_b, found.same, None if few else fold, source=str(path), holds_images=True)


def _read_csv(path: Path, text: str) -> Pairs:
    table = Table(path, io.StringIO(text, newline=""), "image1_path,image2_path,label")
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
        raise DataError(f"{path}: a column stands twice in {', '.join(header)!r}; rename one")
    rows, same = [], []
    whole = [i for name, i in table.columns.items() if name == "fold" or name in COLUMNS]
    for row in table.rows():
        if empty := [header[i] for i in whole if not row[i]]:
            raise DataError(f"{path} line {table.line}: no {', '.join(empty)}; every pair needs one")
        truth = TRUTH.get(row[at["same"]].lower())
        if truth is None:
            raise DataError(
                f"{path} line {table.line}: label {row[at['same']]!r}; write 1 (same) or 0 (different)"
            )
        rows.append(row)
        same.append(truth)
    if not rows:
        raise DataError(f"{path}: a header but no pairs")
    fold = None
    groups = {}
    for i, column in enumerate(header):
        if column.lower() == "fold":
            fold = _numbered(path, [row[i] for row in rows])
        elif column and i not in at.values():
            groups[column] = np.array([row[i] for row in rows], dtype=np.str_)
    return Pairs(
        tuple(row[at["a"]] for row in rows),
        tuple(row[at["b"]] for row in rows),
        np.array(same),
        fold,
        groups,
        source=str(path),
    )


def _numbered(path: Path, values: list[str]) -> Ints:
    """Fold names as numbers from 0, in numerical order where they are numbers."""
    names = sorted(
        set(values), key=lambda v: (not v.strip().isdecimal(), int(v) if v.strip().isdecimal() else 0, v)
    )
    if len(names) < 2:
        raise DataError(
            f"{path}: one fold only ({names[0]!r}); needed two or more, or leave the fold column out"
        )
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[v] for v in values], dtype=np.int64)


def _read_lfw(path: Path, lines: list[tuple[int, str]]) -> Pairs:
    head = [int(t) for t in lines[0][1].split()]
    folds, each = (head[0], head[1]) if len(head) == 2 else (1, head[0])
    wanted = 2 * folds * each
    if len(lines) - 1 != wanted:
        raise DataError(
            f"{path}: {len(lines) - 1} pairs, the header promises {folds} x 2 x {each} = {wanted}; cut short?"
        )
    a, b, same = [], [], []
    for number, line in lines[1:]:
        part = line.strip().split("\t") if "\t" in line else line.split()
        if len(part) == 3:
            part = [part[0], part[1], part[0], part[2]]
            same.append(True)
        elif len(part) == 4:
            same.append(False)
        else:
            raise DataError(
                f"{path} line {number}: {line[:80]!r}; needed `name n1 n2` or `name1 n1 name2 n2`"
            )
        if not (part[1].isdecimal() and part[3].isdecimal()):
            raise DataError(f"{path} line {number}: {line[:80]!r}; image numbers must be whole numbers")
        a.append(f"{part[0]}/{part[0]}_{int(part[1]):04d}")
        b.append(f"{part[2]}/{part[2]}_{int(part[3]):04d}")
    blocks = np.array(same).reshape(folds, 2, each)
    if not (blocks[:, 0].all() and not blocks[:, 1].any()):
        raise DataError(
            f"{path}: each fold needs {each} pairs of one person, then {each} of two; lines moved?"
        )
    fold = np.repeat(np.arange(folds), 2 * each) if folds > 1 else None
    return Pairs(tuple(a), tuple(b), np.array(same), fold, bare=True, source=str(path))


def _read_two_line(path: Path, lines: list[tuple[int, str]]) -> Pairs:
    if len(lines) % 2:
        raise DataError(
            f"{path}: {len(lines)} lines; a pair is two lines, so needed an even number; cut short?"
        )
    names, labels = [], []
    for number, line in lines:
        part = line.strip().rsplit(None, 1)
        if len(part) != 2 or not part[1].isdecimal():
            raise DataError(
                f"{path} line {number}: {line[:80]!r}; needed `file.jpg label` with label 0, or 1 and up"
            )
        names.append(part[0])
        labels.append(int(part[1]))
    for i in range(0, len(names), 2):
        if labels[i] != labels[i + 1]:
            raise DataError(
                f"{path} line {lines[i + 1][0]}: labels {labels[i]} and {labels[i + 1]} in one pair"
            )
    same = np.array(labels[::2]) > 0
    return Pairs(tuple(names[::2]), tuple(names[1::2]), same, source=str(path))


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
                writer.writerow([pairs.paths_a[i], pairs.paths_b[i], int(pairs.same[i]), *number, *groups])

    write_whole(file, fill)
