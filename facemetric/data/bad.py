"""The list of bad images: each once, with the reason, and an end to the job where there are too many."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable
from pathlib import Path

from facemetric.data.index import ImageIndex
from facemetric.errors import DataError


class BadImageLog:
    """Keeps `path`, a csv with the columns name and reason.

    `total` images are in the job; more than `max_bad` (a share, 0..1) of them bad is a DataError. A line is
    written in one piece, so a killed job leaves whole lines but for the last, which is then taken out; a job
    that goes on counts those that stand there.
    """

    def __init__(self, path: str | Path, total: int, max_bad: float) -> None:
        self.path, self.total, self.max_bad = Path(path), total, max_bad
        self.reasons: dict[str, str] = {}
        self._read()

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, index: ImageIndex, bad: Iterable[tuple[int, str]]) -> None:
        """Notes (row, reason) pairs; those noted before are not written again."""
        fresh = {index.name(row): reason for row, reason in bad}
        fresh = {name: reason for name, reason in fresh.items() if name not in self.reasons}
        if not fresh:
            return
        if not self.reasons:
            _write(self.path, "w", [("name", "reason")])
        _write(self.path, "a", fresh.items())
        self.reasons |= fresh
        if len(self) > self.max_bad * self.total:
            name, reason = next(iter(fresh.items()))
            raise DataError(
                f"{len(self)} of {self.total} images are bad, more than the share of {self.max_bad:g} allowed;"
                f" the last is {name} ({reason}), all are in {self.path}: mend them or raise --max-bad"
            )

    def _read(self) -> None:
        if not self.path.exists():
            return
        text = self.path.read_bytes().decode("utf-8", "backslashreplace")
        whole = text[: text.rfind("\n") + 1]
        lines = list(csv.reader(io.StringIO(whole, newline="")))
        self.reasons = {line[0]: line[1] for line in lines[1:] if len(line) == 2}
        if whole != text:
            staged = self.path.with_name(self.path.name + ".part")
            _write(staged, "w", [("name", "reason"), *self.reasons.items()])
            os.replace(staged, self.path)


def _write(path: Path, mode: str, lines: Iterable[tuple[str, str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    # Names that are no UTF-8 are written with escapes.
    with open(path, mode + "b", buffering=0) as file:
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))
