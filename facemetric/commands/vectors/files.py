"""The parts as one table, .parquet, .npz or .csv, and the list of pictures that have no row. Memory holds one part.

| column (.npz)           | holds                                                                      |
|-------------------------|----------------------------------------------------------------------------|
| path (paths)            | the picture's name, as the index has it                                    |
| identity (identities)   | its identity; empty where it has none                                      |
| group_...               | the other columns of a csv                                                 |
| face                    | 1 is a photograph's largest face; 0 where none was looked for              |
| face_score, quality     | 0..1; empty (NaN in .npz) where no face was looked for, as box and landmarks |
| box                     | left, top, right, bottom in pixels of the upright photograph               |
| landmarks               | x and y of left eye, right eye, nose, left and right corner of the mouth   |
| embedding (embeddings)  | a unit vector, float32                                                     |
| weights_sha256          | the fingerprint of the weights; not in .csv                                |

The .npz is an `EmbeddingTable`; `EmbeddingTable.load` reads the .parquet as well.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from facemetric.commands.vectors.parts import Part, Parts
from facemetric.data.index import ImageIndex
from facemetric.data.readers.sources import is_loose
from facemetric.errors import ConfigError, DataError, given
from facemetric.evaluation.table import GROUP, WEIGHTS, checked_name
from facemetric.faces.template import POINTS
from facemetric.files import write_whole

SUFFIXES = (".parquet", ".npz", ".csv")
ROW_GROUP = 16  # parts together in a row group of parquet
BOX = ("left", "top", "right", "bottom")
LANDMARKS = tuple(f"{point}_{axis}" for point in POINTS for axis in "xy")


def check_suffix(out: Path) -> None:
    """ConfigError unless a table can have this name."""
    if out.suffix not in SUFFIXES:
        raise ConfigError(
            f"{given('--out', out)}: a table ends in {', '.join(SUFFIXES)}; give the file one of these endings"
        )
    if out.suffix == ".parquet":
        try:
            checked_name(out)
        except DataError as error:
            raise ConfigError(str(error)) from None


@dataclass(frozen=True)
class Table:
    """What the table is made of: the parts, the images they are of, and the weights' fingerprint."""

    parts: Parts
    index: ImageIndex
    fingerprint: str

    def rows(self, names: tuple[str, ...] = Part._fields) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """Columns of the parts, one after the other, those of no row left out."""
        for number in range(self.parts.count):
            found = self.parts.read(number, tuple(dict.fromkeys((*names, "rows"))))
            if len(found["rows"]):
                yield found

    def paths(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """The pictures' names."""
        return [self.index.name(row) for row in rows.tolist()]

    def identities(self, rows: npt.NDArray[np.int64]) -> list[str]:
        """The pictures' identities, "" where there is none."""
        names = [self.index.identities[i] for i in self.index.identity[rows].tolist()]
        return ["" if is_loose(name) else name for name in names]

    def groups(self, rows: npt.NDArray[np.int64]) -> dict[str, list[str]]:
        """The other columns of a csv."""
        return {GROUP + name: column.tolist() for name, column in self.index.select(rows).groups().items()}


def write_missing(table: Table, file: Path) -> None:
    """List the pictures without a row: path, kind (no face, unreadable), reason."""

    def fill(staged: Path) -> None:
        with open(staged, "wb") as out:
            out.write(csv_text([["path", "kind", "reason"]]))
            for each in table.parts.missing():
                out.write(csv_text([[table.index.name(each.row), each.kind, each.reason]]))

    write_whole(file, fill)


def write_table(table: Table, file: Path, before: Callable[[Path], None]) -> None:
    """Write the table; the file appears whole. `before` is called with the whole file before it gets its name."""

    def fill(staged: Path) -> None:
        WRITERS[file.suffix](table, staged)
        before(staged)

    write_whole(file, fill, durable=True)


def write_npz(table: Table, file: Path) -> None:
    """An .npz that numpy and EmbeddingTable read, a column at a time."""
    counts = [len(part["rows"]) for part in table.rows(())]
    total = sum(counts)

    def texts(
        of: Callable[[npt.NDArray[np.int64]], list[str]],
    ) -> tuple[np.dtype, Iterator[npt.NDArray[Any]]]:
        width = max((len(text) for part in table.rows(()) for text in of(part["rows"])), default=1)
        dtype = np.dtype(f"U{max(1, width)}")
        return dtype, (np.array(of(part["rows"]), dtype) for part in table.rows(()))

    def numbers(name: str, column: str, shape: tuple[int, ...] = ()) -> None:
        first = next(part[column] for part in table.rows((column,)))
        shape = shape or first.shape[1:]
        parts = (part[column].reshape(-1, *shape) for part in table.rows((column,)))
        write_member(out, name, (total, *shape), first.dtype, parts)

    with zipfile.ZipFile(file, "w", allowZip64=True) as out:
        numbers("embeddings", "embeddings")
        for name, of in (("identities", table.identities), ("paths", table.paths)):
            dtype, parts = texts(of)
            write_member(out, name, (total,), dtype, parts)
        for name in table.groups(np.arange(1)):
            dtype, parts = texts(lambda rows, name=name: table.groups(rows)[name])  # type: ignore[misc]
            write_member(out, name, (total,), dtype, parts)
        if table.fingerprint:
            dtype, parts = texts(lambda rows: [table.fingerprint] * len(rows))
            write_member(out, WEIGHTS, (total,), dtype, parts)
        numbers("face", "face")
        numbers("face_score", "score")
        numbers("quality", "quality")
        numbers("box", "box")
        numbers("landmarks", "landmarks", (5, 2))


def write_member(
    out: zipfile.ZipFile,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    parts: Iterator[npt.NDArray[Any]],
) -> None:
    """One array of an .npz, from its parts. Texts are packed: they repeat, and are four bytes a letter."""
    info = zipfile.ZipInfo(f"{name}.npy")  # its time is 1980: the same table is the same bytes
    info.compress_type = zipfile.ZIP_DEFLATED if dtype.kind == "U" else zipfile.ZIP_STORED
    with out.open(info, "w", force_zip64=True) as member:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, header)  # type: ignore[arg-type]
        for part in parts:
            member.write(np.ascontiguousarray(part, dtype).tobytes())


def write_parquet(table: Table, file: Path) -> None:
    """A parquet file, ROW_GROUP parts in a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def lists(values: npt.NDArray[np.float32]) -> Any:
        """Of the same length in every row."""
        return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])

    def lists_or_none(values: npt.NDArray[np.float32]) -> Any:
        """None where a row is nan. Many versions of pyarrow cannot read None among lists of one length."""
        there = ~np.isnan(values[:, 0])
        ends = np.append(0, np.cumsum(there * values.shape[1])).astype(np.int32)
        offsets = pa.array(ends, mask=np.append(~there, False))
        return pa.ListArray.from_arrays(offsets, pa.array(values[there].ravel()))

    def of_part(part: dict[str, npt.NDArray[Any]]) -> Any:
        rows = part["rows"]
        columns = {
            "path": pa.array(map(shown, table.paths(rows)), pa.string()),
            "identity": pa.array([shown(name) or None for name in table.identities(rows)], pa.string()),
            **{
                name: pa.array(map(shown, column), pa.string()) for name, column in table.groups(rows).items()
            },
            "face": pa.array(part["face"]),
            "face_score": pa.array(part["score"], from_pandas=True),
            "quality": pa.array(part["quality"], from_pandas=True),
            "box": lists_or_none(part["box"]),
            "landmarks": lists_or_none(part["landmarks"]),
            "embedding": lists(part["embeddings"]),
        }
        columns |= (
            {WEIGHTS: pa.array([table.fingerprint] * len(rows), pa.string())} if table.fingerprint else {}
        )
        return pa.table(columns)

    writer = None
    waiting: list[Any] = []
    for part in table.rows():
        waiting.append(of_part(part))
        writer = writer or pq.ParquetWriter(file, waiting[0].schema)
        if len(waiting) == ROW_GROUP:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())
            waiting = []
    assert writer is not None
    if waiting:
        writer.write_table(pa.concat_tables(waiting).combine_chunks())
    writer.close()


def shown(text: str) -> str:
    """A file's name as text; bytes that are no UTF-8 are escaped, as parquet has none."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def write_csv(table: Table, file: Path) -> None:
    """A csv with a column for each number."""
    with open(file, "wb") as out:
        groups: list[str] | None = None
        for part in table.rows():
            rows = part["rows"]
            columns = table.groups(rows)
            if groups is None:
                groups = list(columns)
                first = ["path", "identity", *groups, "face", "face_score", "quality", *BOX, *LANDMARKS]
                out.write(csv_text([[*first, *(f"e{i}" for i in range(part["embeddings"].shape[1]))]]))
            figures = np.column_stack(
                [part["score"], part["quality"], part["box"], part["landmarks"], part["embeddings"]]
            )
            texts = zip(
                table.paths(rows),
                table.identities(rows),
                *columns.values(),
                part["face"].tolist(),
                strict=True,
            )
            out.write(
                csv_text(
                    [[*text, *map(number, line)] for text, line in zip(texts, figures.tolist(), strict=True)]
                )
            )


def number(value: float) -> str:
    """A float32 to the last bit; empty where it is not a number."""
    return "" if value != value else f"{value:.9g}"


def csv_text(lines: list[list[Any]]) -> bytes:
    """Lines of a csv; bytes of a name that are no UTF-8 are written as they were read."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode("utf-8", "surrogateescape")


WRITERS: dict[str, Callable[[Table, Path], None]] = {
    ".npz": write_npz,
    ".parquet": write_parquet,
    ".csv": write_csv,
}
