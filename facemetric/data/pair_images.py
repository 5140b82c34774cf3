"""Which images of an index the paths of a pairs file mean."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from facemetric.data.pairs import Ints, Pairs
from facemetric.data.store import composed
from facemetric.errors import DataError

SHOWN = 10  # missing images named in the message; the rest go to a file


class Names(Protocol):
    """What `resolve` asks of an index (`ImageIndex` fits)."""

    def __len__(self) -> int: ...
    def name(self, i: int, /) -> str: ...
    def find(self, name: str, /) -> int | None: ...


def resolve(pairs: Pairs, index: Names, *, missing_list: str | Path | None = None) -> tuple[Ints, Ints]:
    """Rows of both images of each pair: two int64 (P,).

    A path fits a name of the index when they are equal, or one ends with the whole of the other, folder by
    folder (`/data/lfw/A/1.jpg` fits `A/1.jpg`, a bare `1.jpg` fits `A/1.jpg`). LFW names fit any extension.
    Raises DataError that counts every missing or ambiguous path, names the first ten and, with
    `missing_list`, writes them all there.
    """
    wanted = pairs.paths()
    row = {p: found for p in wanted if (found := index.find(p)) is not None}
    if len(row) < len(wanted):
        hits = _by_ending([p for p in wanted if p not in row], index, bare=pairs.bare)
        row.update({p: rows[0] for p, rows in hits.items() if len(rows) == 1})
        bad = [(p, len(hits.get(p, ()))) for p in wanted if p not in row]
        if bad:
            raise DataError(_missing_message(pairs.source, bad, len(wanted), missing_list))
    return _rows(pairs.paths_a, row), _rows(pairs.paths_b, row)


def _rows(paths: Sequence[str], row: dict[str, int]) -> Ints:
    return np.fromiter((row[p] for p in paths), dtype=np.int64, count=len(paths))


def _parts(path: str, bare: bool) -> tuple[str, ...]:
    parts = [p for p in composed(path).replace("\\", "/").split("/") if p not in ("", ".")]
    if bare and parts:
        parts[-1] = PurePosixPath(parts[-1]).stem if "." in parts[-1] else parts[-1]
    return tuple(parts)


def _by_ending(paths: list[str], index: Names, *, bare: bool) -> dict[str, list[int]]:
    """Rows whose name ends with the path or is its end; longest common endings only. One walk over all."""
    by_last: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for path in paths:
        # An LFW path has no extension to strip: `Name_0001`, and a dot in a name must stay.
        parts = _parts(path, bare=False)
        if parts:
            by_last.setdefault(parts[-1], []).append((path, parts))
    best: dict[str, tuple[int, list[int]]] = {}
    for i in range(len(index)):
        name = _parts(index.name(i), bare)
        for path, parts in by_last.get(name[-1], ()) if name else ():
            common = min(len(name), len(parts))
            if name[-common:] != parts[-common:]:
                continue
            length, rows = best.get(path, (0, []))
            if common > length:
                best[path] = (common, [i])
            elif common == length:
                rows.append(i)
    return {path: rows for path, (_, rows) in best.items()}


def _missing_message(
    source: str, bad: list[tuple[str, int]], total: int, missing_list: str | Path | None
) -> str:
    def why(hits: int) -> str:
        return f" (fits {hits} images)" if hits else ""

    where = ""
    if missing_list is not None:
        file = Path(missing_list)
        file.write_text(
            "".join(f"{p}\t{'ambiguous' if hits else 'missing'}\n" for p, hits in bad), encoding="utf-8"
        )
        where = f"; all of them are in {file}"
    shown = ", ".join(f"{p}{why(hits)}" for p, hits in bad[:SHOWN]) + (", ..." if len(bad) > SHOWN else "")
    ambiguous = sum(hits > 0 for _, hits in bad)
    counts = f"{len(bad) - ambiguous} missing" + (f" and {ambiguous} ambiguous" if ambiguous else "")
    return (
        f"{source}: {counts} of the {total} images it names: {shown}{where}; "
        "add the images or take the pairs out"
    )
