"""What `facemetric align` does: photographs to aligned faces, each cut to the template, and a csv of what was found.

The out folder gets `identity/image.jpg`, also of what a csv lists elsewhere, or `image.jpg` of a loose photograph, and
`aligned.csv` a line for each face: its score, box, five landmarks, how large and how sharp it was, how many others
were there; or why there is none. The same command again goes on where it stopped. A crop that would replace a
photograph is refused before the first is made.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from facemetric.commands.aligning.record import Line, Record
from facemetric.config import AlignConfig, check_ranges, config_dict, require
from facemetric.config.calls import takes_options
from facemetric.data.images import BadImage
from facemetric.data.index import ImageIndex, parse_source, read_index
from facemetric.errors import DataError
from facemetric.faces.crops import Face, FacesFound, Given, Options, choose, find_faces, rivals
from facemetric.faces.detector import load_detector
from facemetric.faces.photographs import open_photograph
from facemetric.faces.quality import sharpness
from facemetric.files import write_whole
from facemetric.machine import progress_bar, say

CHUNK = 64  # photographs that a process is given at once
PIXELS_AT_ONCE = 16_000_000  # of photographs that are looked at together
LATER = re.compile(r"\.face\d+\.jpe?g$", re.IGNORECASE)  # the second face of a photograph and those after it
DECIDES = (
    "size",
    "several",
    "face",
    "min_score",
    "detect_size",
    "turns",
    "crops",
    "keep_missed",
    "detector",
    "quality",
)


class Aligned(NamedTuple):
    """What a run has done, with what runs before it did: photographs by what was found, crops, the csv."""

    with_face: int
    with_several: int
    without: int
    unreadable: int
    crops: int
    record: Path

    def text(self) -> str:
        """What the terminal says."""
        return (
            f"{self.with_face + self.without + self.unreadable:,} photographs: a face in {self.with_face:,} "
            f"({self.with_several:,} with several), none in {self.without:,}, {self.unreadable:,} cannot be read; "
            f"{self.crops:,} crops in {self.record.parent}, what was found in {self.record}"
        )


@takes_options(AlignConfig)
def align(config: AlignConfig) -> Aligned:
    """Photographs to aligned faces; the options are those of AlignConfig.

    `align("photos", out="faces")` is `facemetric align photos --out faces`. Raises ConfigError or DataError."""
    return run_align(config)


def run_align(config: AlignConfig) -> Aligned:
    """align, from a config."""
    check_ranges(config)
    require(bool(config.photos), "align needs photographs: facemetric align PHOTOS --out FACES")
    load_detector(config.detector)  # a misspelt one is an error before the first photograph
    index = read_index(list(config.photos), loose=True)
    say(*index.notes)
    check_targets(index, config)
    decides = {name: value for name, value in config_dict(config).items() if name in DECIDES}
    record = Record(config.out, decides)
    rows = [row for row in range(len(index)) if index.name(row) not in record.done]
    if len(rows) < len(index):
        done = f"{len(index) - len(rows):,} of {len(index):,} photographs are in {record.path}"
        say(f"{done}; going on with the rest")
    workers = os.cpu_count() or 1 if config.workers < 0 else config.workers
    with progress_bar(total=len(rows), desc="aligning", unit="image") as bar:
        for photographs, lines in lines_of(index, rows, config, min(workers, -(-len(rows) // CHUNK))):
            record.add(lines)
            bar.update(photographs)
    counts = record.counts
    return Aligned(
        counts["yes"], counts["several"], counts["no"], counts["bad"], counts["crops"], record.path
    )


def crop_name(index: ImageIndex, row: int) -> str:
    """The crop's path below the out folder: `identity/image.jpg`, with the folders between where the photograph
    lies in its identity's own; a csv may list it anywhere, and then its last part counts alone."""
    name, identity = index.name(row), index.identities[index.identity[row]].rstrip("/")
    parts = name.split("/")
    if (identity and not name.startswith(identity + "/")) or ".." in parts or os.path.isabs(name):
        name = f"{identity}/{parts[-1]}" if identity else parts[-1]
    return name if name.lower().endswith((".jpg", ".jpeg")) else name + ".jpg"


def check_targets(index: ImageIndex, config: AlignConfig) -> None:
    """DataError where two crops would have one name, one would lie outside `out` or replace a photograph, or the
    next time crops would be taken for photographs."""
    out = config.out
    first: dict[str, int] = {}
    for row in range(len(index)):
        other = first.setdefault(crop_name(index, row), row)
        if other != row:
            raise DataError(
                f"{index.name(other)} and {index.name(row)} would share the crop's name {crop_name(index, row)!r};"
                " rename one, or align them into two folders"
            )
        if config.several == "every" and LATER.search(crop_name(index, row)):
            raise DataError(
                f"{index.name(row)} has the name of a second face's crop; rename it, or go without --several every"
            )
    root = os.path.realpath(out)
    for source in map(parse_source, config.photos):
        if source.path.is_dir() and Path(root).is_relative_to(os.path.realpath(source.path)):
            raise DataError(
                f"--out {out} lies in the photographs' own folder {source.path}; name one beside it"
            )
    for folder in {os.path.dirname(name) for name in first}:
        there = os.path.realpath(os.path.join(root, folder))
        if (folder and there == root) or not Path(there).is_relative_to(root):
            raise DataError(
                f"the crops of {folder!r} would lie in {there}, not in a folder below {out}; rename it"
            )
    taken = {_identity_of(path): path for path in (out / name for name in first) if path.exists()}
    for row in range(len(index) if taken else 0):
        file = index.location(row).file
        if os.path.exists(file) and (target := taken.get(_identity_of(file))):
            raise DataError(f"{target} is a photograph, which a crop would replace; name another --out")


def _identity_of(path: str | Path) -> tuple[int, int]:
    state = os.stat(path)
    return state.st_dev, state.st_ino


class Job:
    """What a process keeps between photographs."""

    def __init__(self, index: ImageIndex, config: AlignConfig) -> None:
        torch.set_num_threads(1)  # the processes share the cores
        self.index, self.config, self.detector = index, config, load_detector(config.detector)
        given: Given = "auto" if config.crops else "photographs"
        self.options = Options(config.size, config.detect_size, config.min_score, config.turns, given)

    def __call__(self, rows: Sequence[int]) -> list[Line]:
        lines: list[Line] = []
        some: list[tuple[int, Image.Image]] = []
        for row in rows:
            try:
                some.append((row, open_photograph(self.index.read(row))))
            except (BadImage, OSError) as error:
                note = getattr(error, "reason", None) or str(error)
                lines.append(Line("bad", self.index.name(row), note=note))
            if sum(image.width * image.height for _, image in some) > PIXELS_AT_ONCE:
                lines += self._look(some)
                some = []
        return lines + self._look(some)

    def _look(self, some: Sequence[tuple[int, Image.Image]]) -> list[Line]:
        found = find_faces([image for _, image in some], self.detector, self.options)
        return [
            line
            for (row, image), faces in zip(some, found, strict=True)
            for line in self._lines(row, image, faces)
        ]

    def _lines(self, row: int, image: Image.Image, found: FacesFound) -> list[Line]:
        """The lines of one photograph, its crops written."""
        if found.missing is not None:
            return [self._missed(row, image, found.missing.reason)]
        face = choose(found.faces, found.size, self.config.face)
        several = rivals(face, found.faces)
        if several == 1:
            return [self._line(row, face, 1, crop_name(self.index, row))]
        if self.config.several == "leave":
            return [self._line(row, face, several, "", "several faces; left out")]
        lines = [self._line(row, face, several, crop_name(self.index, row), "several faces")]
        if self.config.several == "every":
            stem, end = os.path.splitext(crop_name(self.index, row))
            others = [other for other in found.faces if other is not face]
            for number, other in enumerate(others, 2):
                note = f"face {number} of {len(found.faces)}"
                lines.append(self._line(row, other, several, f"{stem}.face{number}{end}", note))
        return lines

    def _line(self, row: int, face: Face, several: int, crop: str, note: str = "") -> Line:
        if crop:
            self._save(face.crop, crop)
        return Line(
            found="yes",
            path=self.index.name(row),
            crop=crop,
            score=round(face.score, 4),
            faces=several,
            box=face.box.round(1).tolist(),
            landmarks=face.landmarks.round(2).ravel().tolist(),
            eye_distance=round(face.quality.eye_distance, 1),
            sharpness=round(face.quality.sharpness, 1),
            quality=round(face.quality.figure, 3),
            turn=face.turn,
            inside=round(face.inside, 3),
            note=note or ("an aligned crop already" if face.was_crop else ""),
        )

    def _missed(self, row: int, image: Image.Image, reason: str) -> Line:
        name, share = self.index.name(row), self.config.keep_missed
        if not share:
            return Line("no", name, note=reason)
        crop = central_crop(image, share, self.config.size)
        self._save(crop, crop_name(self.index, row))
        figure = round(sharpness(crop), 1)
        note = f"{reason}; central crop"
        return Line("no", name, crop_name(self.index, row), sharpness=figure, note=note)

    def _save(self, crop: Image.Image, name: str) -> None:
        """Ctrl-C leaves no half picture."""
        options = {"quality": self.config.quality, "subsampling": 0, "comment": b""}
        write_whole(self.config.out / name, lambda staged: crop.save(staged, "JPEG", **options))


def central_crop(image: Image.Image, share: float, size: int) -> Image.Image:
    """The middle square of `share` of the shorter side."""
    half = min(image.size) * share / 2
    x, y = image.width / 2, image.height / 2
    box = (x - half, y - half, x + half, y + half)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


_job: Job | None = None


def _start(*args: Any) -> None:
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers, and ends these
    _job = Job(*args)


def _work(rows: Sequence[int]) -> list[Line]:
    assert _job is not None
    return _job(rows)


def lines_of(
    index: ImageIndex, rows: Sequence[int], config: AlignConfig, workers: int
) -> Iterator[tuple[int, list[Line]]]:
    """How many photographs are done, and their lines, in any order. DataError where a process dies."""
    chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    if workers <= 1:
        job = Job(index, config)
        yield from ((len(chunk), job(chunk)) for chunk in chunks)
        return
    # Forked from a process that has imported torch and holds no threads: it is imported once, not by each.
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, mp_context=forked, initializer=_start, initargs=(index, config))
    todo = iter(chunks)
    under_way: dict[Future[list[Line]], int] = {}
    try:
        while True:
            while len(under_way) < 2 * workers and (chunk := next(todo, None)) is not None:
                under_way[pool.submit(_work, chunk)] = len(chunk)
            if not under_way:
                return
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                yield under_way.pop(future), future.result()
    except BrokenProcessPool:
        raise DataError(
            "a process that aligns died, most often for want of memory; lower --workers and start again:"
            " what is done is kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
