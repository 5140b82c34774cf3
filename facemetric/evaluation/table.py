"""Embeddings of an image set on disk: what every metric reads, whoever's model made them."""

from __future__ import annotations

import importlib.util
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from facemetric.errors import DataError
from facemetric.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("embeddings", "identities", "paths")
ONE_ROW = {
    "embedding": "embeddings",
    "identity": "identities",
    "path": "paths",
}  # in a parquet that embed wrote
WEIGHTS = "weights_sha256"  # the fingerprint of the weights, on every row
GROUP = "group_"  # columns of this beginning are groups, such as group_age
TWICE = -1  # marks a path that several rows have
# What zipfile and numpy raise on damaged files; RuntimeError covers compressions and versions that zipfile lacks.
UNREADABLE = (
    OSError,
    EOFError,
    KeyError,
    RuntimeError,
    TypeError,
    OverflowError,
    MemoryError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,  # numpy reads a header of its old versions as Python's source
    zlib.error,
    zipfile.BadZipFile,
)


def unit_rows(embeddings: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Rows (N, D) on the unit sphere, float32. Raises DataError where a row is zero or not finite."""
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused below
        emb_ND = np.asarray(embeddings, dtype=np.float32)
    if emb_ND.ndim != 2 or 0 in emb_ND.shape:
        raise DataError(f"embeddings of shape {emb_ND.shape}; needed (images, size)")
    length_N = np.sqrt(np.einsum("nd,nd->n", emb_ND, emb_ND, dtype=np.float64))
    bad = ~np.isfinite(length_N) | (length_N == 0)
    if bad.any():
        raise DataError(
            f"{bad.sum()} of {len(bad)} embeddings are zero or not finite, first row {bad.argmax()}"
        )
    return (emb_ND / length_N[:, None]).astype(np.float32)


@dataclass(frozen=True)
class EmbeddingTable:
    """N embeddings with the person and the image of each.

    `embeddings` float32 (N, D), finite, of any length (cosine is taken of them); `identities` and
    `paths` str (N,); `groups` (age, camera, ...): str (N,) by the column's name, "" where
    unknown. Raises DataError where shapes differ, a number is not finite, a row is all zero or
    there are no rows.
    """

    embeddings: npt.NDArray[np.float32]
    identities: npt.NDArray[np.str_]
    paths: npt.NDArray[np.str_]
    groups: dict[str, npt.NDArray[np.str_]] = field(default_factory=dict)
    weights: str = ""
    """SHA-256 of the weights that made the embeddings; empty where that is not known."""

    def __post_init__(self) -> None:
        emb = np.asarray(self.embeddings)
        if emb.ndim != 2 or 0 in emb.shape or emb.dtype.kind not in "fiu":
            raise DataError(
                f"embeddings of shape {emb.shape}, {emb.dtype}; needed numbers of shape (images, size)"
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and refused below
            emb = np.ascontiguousarray(emb, dtype=np.float32)
        object.__setattr__(self, "embeddings", emb)
        for name in ("identities", "paths"):
            object.__setattr__(self, name, _texts(name, getattr(self, name), len(emb)))
        groups = {name: _texts(GROUP + name, column, len(emb)) for name, column in self.groups.items()}
        object.__setattr__(self, "groups", groups)
        object.__setattr__(self, "weights", str(self.weights))
        # One sum a row: not finite when any of its numbers is not, zero when all are; no (N, D) temporary.
        size = np.einsum("nd,nd->n", emb, emb, dtype=np.float64)
        for bad, what in ((~np.isfinite(size), "NaN or infinity in"), (size == 0, "only zeros in")):
            if bad.any():
                raise DataError(
                    f"{what} {bad.sum()} of {len(emb)} embeddings, first {self.name(int(bad.argmax()))!r}"
                )

    def __len__(self) -> int:
        return len(self.embeddings)

    def find(self, name: str) -> int | None:
        """Row of a path; None where no row has it, or several do. With `name`, enough for `pair_images.resolve`."""
        row = self._rows.get(name)
        return None if row == TWICE else row

    def standing_twice(self) -> list[str]:
        """The paths of more than one row."""
        return [path for path, row in self._rows.items() if row == TWICE]

    @cached_property
    def _rows(self) -> dict[str, int]:
        rows: dict[str, int] = {}
        for i, path in enumerate(self.paths.tolist()):
            rows[path] = TWICE if path in rows else i
        return rows

    def __repr__(self) -> str:
        images, size = self.embeddings.shape
        people = len(np.unique(self.identities))
        return f"EmbeddingTable({images:,} x {size}, {people:,} identities)"

    def to_frame(self) -> pd.DataFrame:
        """A row for each image: its path, its identity, its groups, and the numbers `e0`, `e1`, ..."""
        import pandas as pd  # slow to import, and few ask

        columns = {"path": self.paths, "identity": self.identities, **self.groups}
        numbers = {f"e{i}": column for i, column in enumerate(self.embeddings.T)}
        return pd.DataFrame(columns | numbers)

    def name(self, i: int) -> str:
        return str(self.paths[i])

    def rows(self, rows: npt.NDArray[np.integer]) -> EmbeddingTable:
        """The table of these rows, in that order."""
        groups = {name: column[rows] for name, column in self.groups.items()}
        return EmbeddingTable(
            self.embeddings[rows], self.identities[rows], self.paths[rows], groups, self.weights
        )

    def save(self, file: str | Path) -> Path:
        """Write `.npz` or, with pyarrow, `.parquet` (`embeddings` as lists). The file appears whole."""
        path = checked_name(file)
        texts = {"identities": self.identities, "paths": self.paths}
        texts |= {GROUP + name: column for name, column in self.groups.items()}
        texts |= {WEIGHTS: np.full(len(self), self.weights)} if self.weights else {}

        def fill(staged: Path) -> None:
            with open(staged, "wb") as out:
                if path.suffix == ".npz":
                    np.savez(out, embeddings=self.embeddings, **texts)  # type: ignore[arg-type]
                else:
                    import pyarrow as pa
                    import pyarrow.parquet as pq

                    values = pa.array(self.embeddings.reshape(-1))
                    lists = pa.FixedSizeListArray.from_arrays(values, self.embeddings.shape[1])
                    columns = {name: pa.array(column.tolist()) for name, column in texts.items()}
                    pq.write_table(pa.table({"embeddings": lists, **columns}), out)

        return write_whole(path, fill)

    @classmethod
    def load(cls, file: str | Path) -> EmbeddingTable:
        """Read a table that `save`, or anybody's `numpy.savez`, wrote. Raises DataError; never unpickles."""
        path = checked_name(file)
        if not path.is_file():
            raise DataError(f"{path}: no such file; needed embeddings as .npz or .parquet")
        columns = _load_npz(path) if path.suffix == ".npz" else _load_parquet(path)
        try:
            groups = {k.removeprefix(GROUP): v for k, v in columns.items() if k.startswith(GROUP)}
            weights = columns[WEIGHTS].tolist() if WEIGHTS in columns else []
            if len(set(weights)) > 1:
                raise DataError(
                    f"embeddings of {len(set(weights))} different weights; give those of one model"
                )
            made_by = str(weights[0]) if weights else ""
            return cls(columns["embeddings"], columns["identities"], columns["paths"], groups, made_by)
        except DataError as err:
            raise DataError(f"{path}: {err}") from None


def _texts(name: str, values: npt.ArrayLike, count: int) -> npt.NDArray[np.str_]:
    column = np.asarray(values)
    if column.shape != (count,):
        raise DataError(f"{name} of shape {column.shape}; {count} embeddings need shape ({count},)")
    if column.dtype.kind == "O" and not all(isinstance(v, str) for v in column):
        raise DataError(f"{name} holds things that are no text; needed str")
    if column.dtype.kind not in "UOiu":
        raise DataError(f"{name} of type {column.dtype}; needed str")
    return column.astype(np.str_)


def _wanted(names: Sequence[str]) -> list[str]:
    return [k for k in names if k in KEYS or k == WEIGHTS or k.startswith(GROUP)]


def checked_name(file: str | Path) -> Path:
    """A path that a table can have. DataError for another ending, or where pyarrow is missing."""
    path = Path(file)
    if path.suffix not in (".npz", ".parquet"):
        raise DataError(
            f"{path}: embeddings are kept as .npz or .parquet; give the file one of these endings"
        )
    if path.suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise DataError(
            f"{path}: parquet needs pyarrow, which is not installed; `pip install 'facemetric[parquet]'`, or use .npz"
        )
    return path


def _need_keys(path: Path, present: Sequence[str]) -> None:
    lacking = [k for k in KEYS if k not in present]
    if lacking:
        raise DataError(
            f"{path}: no {', '.join(lacking)} among {', '.join(present)!r}; needed {', '.join(KEYS)}"
        )


def _load_npz(path: Path) -> dict[str, npt.NDArray]:
    try:
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: a bare array; needed an .npz with {', '.join(KEYS)}")
        with found as stored:
            _need_keys(path, stored.files)
            return {k: stored[k] for k in _wanted(stored.files)}
    except DataError:
        raise
    except ValueError as err:
        if "allow_pickle" not in str(err) and "Object arrays" not in str(err):
            raise DataError(f"{path}: not a readable .npz ({err})") from None
        raise DataError(
            f"{path}: holds pickled objects, which are not read; save names with `.astype(str)`"
        ) from None
    except UNREADABLE as err:
        raise DataError(f"{path}: not a readable .npz ({err}); cut short?") from None


def _load_parquet(path: Path) -> dict[str, npt.NDArray]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as err:
        raise DataError(f"{path}: not a readable parquet file ({err}); cut short?") from None
    table = table.rename_columns([ONE_ROW.get(name, name) for name in table.column_names])
    _need_keys(path, table.column_names)
    lists = table["embeddings"].combine_chunks()
    kinds = pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list
    if not any(is_kind(lists.type) for is_kind in kinds):
        raise DataError(f"{path}: column embeddings is {lists.type}; needed a list of numbers in each row")
    # Flattened, a row that is longer makes up for a shorter one, and a row that is not there leaves no gap.
    if lists.null_count or len(pc.unique(pc.list_value_length(lists))) != 1:
        raise DataError(
            f"{path}: embeddings of differing length, or none; needed the same number in each row"
        )
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    texts = [name for name in _wanted(table.column_names) if name != "embeddings"]
    names = {
        k: np.array([v if v is not None else "" for v in table[k].to_pylist()], dtype=object) for k in texts
    }
    return {"embeddings": flat.reshape(len(lists), -1), **names}
