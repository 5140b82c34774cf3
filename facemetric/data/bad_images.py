"""The list of images that cannot be used: every job leaves one beside its results, and goes on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from facemetric.data.index import ImageIndex
from facemetric.errors import DataError
from facemetric.files import write_whole


def note_bad(log: BadImageLog, index: ImageIndex, bad: Iterable[tuple[int, str]]) -> None:
    """List the bad rows of an index; raises DataError above the share that the log allows."""
    for row, reason in bad:
        log.add(index.name(row), reason)


class BadImageLog:
    """Keeps `path`, a csv with the columns name and reason.

    `total` images are in the job; more than `max_bad` (a share, 0..1) of them bad is a DataError. A line is
    written in one piece, so of a killed job only the last line may be cut: it is removed when the job resumes, and
    the others count.
    """

    def __init__(self, path: str | Path, total: int, max_bad: float) -> None:
        self.path, self.total, self.max_bad = Path(path), total, max_bad
        self.reasons: dict[str, str] = {}
        self._read()

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, name: str, reason: str) -> None:
        """List an image, once. DataError above the share that is allowed."""
        if name in self.reasons:
            return
        if not self.reasons:
            _write(self.path, "w", [("name", "reason")])
        _write(self.path, "a", [(name, reason)])
        self.reasons[name] = reason
        if len(self) > self.max_bad * self.total:
            raise DataError(
                f"{len(self)} of {self.total} images are bad, above the share of {self.max_bad:g} allowed;"
                f" the last is {name} ({reason}), all are in {self.path}: repair them or raise --max-bad"
            )

    def _read(self) -> None:
        if not self.path.exists():
            return
        text = self.path.read_bytes().decode("utf-8", "backslashreplace")
        whole = text[: text.rfind("\n") + 1]
        try:
            lines = list(csv.reader(io.StringIO(whole, newline="")))
        except csv.Error as error:
            raise DataError(f"{self.path}: is damaged ({error}); remove it, a new one is made") from None
        self.reasons = {line[0]: line[1] for line in lines[1:] if len(line) == 2}
        if whole != text:
            lines = [["name", "reason"], *map(list, self.reasons.items())]
            write_whole(self.path, lambda staged: _write(staged, "w", lines))


def _write(path: Path, mode: str, lines: Iterable[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    # Names that are not UTF-8 are written with escapes.
    with open(path, mode + "b", buffering=0) as file:
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))
