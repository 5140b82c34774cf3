"""The parts of a table that is being made: files of PART pictures each, so that a job that is killed goes on.

    E.parquet.parts/  job.json      what decides the result: weights, pictures, options
                      00000000.npz  the faces of pictures 0..PART, and the pictures without one
                      lock          held while a process works here

A part depends on its own pictures alone: it does not matter which process makes it, and when. The folder is removed
when the table is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.commands.vectors.pictures import Batch, Missing
from facemetric.errors import ConfigError, DataError
from facemetric.evaluation.table import UNREADABLE
from facemetric.files import Lock, write_text_whole, write_whole

PART = 1024  # pictures; the embeddings of as many, and what is done again at most after a kill
JOB, LOCK, ENDING = "job.json", "lock", ".parts"
FINISHED = "finished.json"  # the table that was made of the parts, before it gets its name
FORMAT = 1


class Part(NamedTuple):
    """The rows of some pictures, columns as of `Batch`; `embeddings` float32 (F, D)."""

    rows: npt.NDArray[np.int64]
    face: npt.NDArray[np.int16]
    score: npt.NDArray[np.float32]
    quality: npt.NDArray[np.float32]
    box: npt.NDArray[np.float32]
    landmarks: npt.NDArray[np.float32]
    embeddings: npt.NDArray[np.float32]


class PartBuilder:
    """Batches of one part, until it is whole."""

    def __init__(self) -> None:
        self.batches: list[Part] = []
        self.missing: list[Missing] = []

    def add(self, batch: Batch, embeddings: npt.NDArray[np.float32]) -> None:
        """A batch with the embeddings of its faces."""
        self.batches.append(Part(*batch[:6], embeddings))
        self.missing += batch.missing

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """What the part's file holds."""
        whole = {
            name: np.concatenate(parts)
            for name, parts in zip(Part._fields, zip(*self.batches, strict=True), strict=True)
        }
        return whole | {
            "missing_rows": np.array([each.row for each in self.missing], np.int64),
            "missing_kinds": np.array([each.kind for each in self.missing], np.str_),
            "missing_reasons": np.array([each.reason for each in self.missing], np.str_),
        }


def list_of_missing(out: Path) -> Path:
    """The csv beside a table that lists the pictures without a row."""
    return out.with_name(f"{out.stem}.left_out.csv")


class Parts:
    """The folder of parts of one table. Pictures 0..`pictures` are in `count` parts.

    `begin` must come before the others. `read` raises DataError for a damaged part."""

    def __init__(self, out: Path, pictures: int) -> None:
        self.out, self.pictures = out, pictures
        self.folder = out.with_name(out.name + ENDING)
        self.count = -(-pictures // PART)
        self.lock: Lock | None = None

    def known_job(self) -> dict[str, Any]:
        """What the parts that are there were made with; {} where there are none."""
        try:
            found = json.loads((self.folder / JOB).read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{self.folder / JOB} cannot be read ({error}); remove {self.folder}"
            ) from error
        return found if isinstance(found, dict) else {}

    def begin(self, job: Mapping[str, Any]) -> None:
        """Claim the folder; `job` is what decides the result. ConfigError where parts of another job are there, or
        another process works on them."""
        job = {"format": FORMAT, **job}
        before = self.known_job()
        there = [path.name for path in self.folder.iterdir()] if self.folder.exists() else []
        if not before and any(name != LOCK and not is_staged(name, JOB) for name in there):
            raise ConfigError(
                f"{self.folder} is not a folder of facemetric embed; name another --out, or remove it"
            )
        other = [name for name in {**before, **job} if before.get(name) != job.get(name)]
        if before and other:
            raise ConfigError(
                f"{self.folder} holds parts made with other {', '.join(other)}: go on with the same pictures, weights "
                "and options, name another --out, or remove that folder"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = Lock(self.folder / LOCK)
        self._remove_staged()
        if not before:
            write_text_whole(self.folder / JOB, json.dumps(job, indent=2) + "\n", durable=True)

    def _remove_staged(self) -> None:
        """Remove what a killed process had begun to write beside the table; nobody else does while the lock is held."""
        for path in self.out.parent.iterdir():
            if any(is_staged(path.name, name) for name in (self.out.name, list_of_missing(self.out).name)):
                path.unlink()

    def file(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"{number:08}.npz"

    def pending(self) -> list[int]:
        """The parts that are not there."""
        return [number for number in range(self.count) if not self.file(number).is_file()]

    def rows(self, number: int) -> npt.NDArray[np.int64]:
        """The pictures of a part, rows of the index."""
        return np.arange(number * PART, min((number + 1) * PART, self.pictures))

    def save(self, number: int, part: PartBuilder) -> None:
        """Write a part, which appears whole."""
        columns = part.columns()

        def fill(staged: Path) -> None:
            with open(staged, "wb") as file:
                np.savez(file, **columns)  # type: ignore[arg-type]

        write_whole(self.file(number), fill, durable=True)

    def read(self, number: int, names: Sequence[str] = Part._fields) -> dict[str, npt.NDArray[Any]]:
        """Columns of a part."""
        try:
            with np.load(self.file(number), allow_pickle=False) as stored:
                return {name: stored[name] for name in names}
        except (ValueError, *UNREADABLE) as error:
            raise DataError(
                f"{self.file(number)} is damaged ({error}); remove it and start again: it is made once more"
            ) from error

    def missing(self) -> Iterator[Missing]:
        """The pictures without a row, in the order of the index."""
        for number in range(self.count):
            found = self.read(number, ("missing_rows", "missing_kinds", "missing_reasons"))
            order = np.argsort(found["missing_rows"], kind="stable")
            for row, kind, reason in zip(*(column[order].tolist() for column in found.values()), strict=True):
                yield Missing(row, kind, reason)

    def release(self) -> None:
        """Let go of the folder."""
        if self.lock is not None:
            self.lock.release()

    def remove(self) -> None:
        """Remove the folder, FINISHED last: a kill on the way leaves a folder that is known as ours."""
        for path in sorted(self.folder.iterdir(), key=lambda path: (path.name == FINISHED, path.name)):
            path.unlink()
        self.folder.rmdir()


def is_staged(name: str, file: str) -> bool:
    """Whether a name is that under which `write_whole` prepares a file of this name."""
    return name.startswith(f".{file}.") and name.removeprefix(f".{file}.").isdigit()
