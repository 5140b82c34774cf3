"""Photographs of an index to aligned faces on disk, in several processes, and a line for each in a csv; resumable.

`align_images` is what `facemetric align` does. `cut_faces` is for commands that go on to work with the faces: it gives
the index of them, in which a photograph is read from its crop and a picture that was a crop already from where it is.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from facemetric.data.images import BadImage
from facemetric.data.index import ImageIndex
from facemetric.data.readers.sources import is_loose
from facemetric.errors import DataError, plural
from facemetric.faces.align_record import OPTIONS, Line, Record, read_lines
from facemetric.faces.crops import (
    Choice,
    Face,
    FacesFound,
    Given,
    Options,
    choose,
    find_faces,
    good_faces,
    rivals,
)
from facemetric.faces.detector import load_detector
from facemetric.faces.photographs import open_photograph
from facemetric.faces.quality import sharpness
from facemetric.files import write_whole
from facemetric.machine import progress_bar, say

WAS_CROP = "an aligned crop already"
CHUNK = 64  # photographs that a process is given at once
PIXELS_AT_ONCE = 16_000_000  # of photographs that are looked at together


@dataclass(frozen=True)
class AlignOptions:
    """What decides the crops: the options of AlignConfig by their names, and what the pictures are (`given`).

    With `in_place` aligned crops are not written again, and crops have names of their own, without a loss (png)."""

    size: int = 112
    several: Literal["take", "leave", "every"] = "take"
    face: Choice = "prominent"
    min_score: float = 0.9
    detect_size: int = 640
    turns: bool = True
    given: Given = "photographs"
    keep_missed: float = 0.0
    detector: str = ""
    quality: int = 95
    min_quality: float = 0.0
    in_place: bool = False


def align_images(
    index: ImageIndex, out: Path, options: AlignOptions, *, decides: dict[str, Any], workers: int = -1
) -> Record:
    """Cut the faces of an index into the folder `out`, but those that its record has; the record, complete.

    `decides` are the options that the crops depend on, as the record keeps them. Raises ConfigError where the folder
    holds crops of others, DataError where a process dies."""
    load_detector(options.detector)  # a misspelt one is an error before the first photograph
    record = Record(out, decides)
    rows = [row for row in range(len(index)) if index.name(row) not in record.done]
    if len(rows) < len(index):
        done = f"{len(index) - len(rows):,} of {len(index):,} photographs are in {record.path}"
        say(f"{done}; going on with the rest" if rows else done)
    workers = os.cpu_count() or 1 if workers < 0 else workers
    with progress_bar(total=len(rows), desc="aligning", unit="image") as bar:
        for photographs, lines in lines_of(index, rows, out, options, min(workers, -(-len(rows) // CHUNK))):
            record.add(lines)
            bar.update(photographs)
    return record


@dataclass(frozen=True)
class CutFaces:
    """The faces of an index: their own index, named `photograph.jpg`, `photograph.jpg#face2` and so on, and their
    quality 0..1 by name. Pictures without a face are left out; the record says why."""

    index: ImageIndex
    quality: dict[str, float]
    cut: int  # faces that were cut from photographs
    without: int  # pictures without a face
    record: Path

    def text(self) -> str:
        """What was done, in a sentence; "" where every picture was a crop already."""
        parts = []
        if self.cut:
            parts.append(f"{plural(self.cut, 'face')} cut from photographs")
        if self.without:
            parts.append(f"{plural(self.without, 'picture')} without a face left out")
        return f"{', '.join(parts)}: {self.record}" if parts else ""


def cut_faces(
    index: ImageIndex, out: Path, options: AlignOptions, *, every: bool = False, workers: int = -1
) -> CutFaces:
    """The faces of an index, cut into the folder `out` where they are not there yet; it is emptied before where it
    holds faces of other pictures or options. `every`: of images without an identity every face, not the first alone.

    Images that cannot be read stay in the index, for whoever reads them to say so. Raises DataError where no picture
    shows a face."""
    loose = every and any(is_loose(name) for name in index.identities)
    options = AlignOptions(**{**asdict(options), "in_place": True, "several": "every" if loose else "take"})
    decides = asdict(options) | {"pictures": index.state_key}
    forget_others(out, decides)
    record = align_images(index, out, options, decides=decides, workers=workers)
    found_by_name = read_lines(record.path)
    rows, files, ends, quality = [], [], [], {}
    for row in range(len(index)):
        name, alone = index.name(row), not (every and is_loose(index.identities[index.identity[row]]))
        for number, line in enumerate(found_by_name[name][: 1 if alone else None], 1):
            if line.found == "no":
                continue
            rows.append(row)
            files.append(str(out / line.crop) if line.crop else "")
            ends.append(f"#face{number}" if number > 1 else "")
            if line.found == "yes":
                quality[name + ends[-1]] = line.quality
    if not quality:
        reasons = (lines[0].note for lines in found_by_name.values() if lines[0].found == "no")
        raise DataError(
            f"none of {plural(len(index), 'picture')} shows a face ({next(reasons, 'none can be read')}); name others, "
            f"or embed pictures as they are by --faces off; {record.path}"
        )
    found = index.cut(np.array(rows), files, ends)
    return CutFaces(found, quality, sum(map(bool, files)), record.counts["no"], record.path)


class Job:
    """What a process keeps between photographs."""

    def __init__(self, index: ImageIndex, out: Path, options: AlignOptions) -> None:
        self.index, self.out, self.options = index, out, options
        self.detector = load_detector(options.detector)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)  # the processes share the cores
        self.looks = Options(
            options.size, options.detect_size, options.min_score, options.turns, options.given
        )

    def __call__(self, rows: Sequence[int]) -> list[Line]:
        """The lines of some photographs, whose crops are written."""
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
        found = find_faces([image for _, image in some], self.detector, self.looks)
        return [
            line
            for (row, image), faces in zip(some, found, strict=True)
            for line in self._lines(row, image, good_faces(faces, self.options.min_quality))
        ]

    def _lines(self, row: int, image: Image.Image, found: FacesFound) -> list[Line]:
        """The lines of one photograph, its crops written."""
        if found.missing is not None:
            return [self._missed(row, image, found.missing.reason)]
        face, name = choose(found.faces, found.size, self.options.face), self._crop_name(row)
        several = rivals(face, found.faces)
        if several == 1:
            return [self._line(row, face, 1, name)]
        if self.options.several == "leave":
            return [self._line(row, face, several, "", "several faces; left out")]
        lines = [self._line(row, face, several, name, "several faces")]
        if self.options.several == "every":
            stem, end = os.path.splitext(name)
            others = [other for other in found.faces if other is not face]
            for number, other in enumerate(others, 2):
                note = f"face {number} of {len(found.faces)}"
                lines.append(self._line(row, other, several, f"{stem}.face{number}{end}", note))
        return lines

    def _line(self, row: int, face: Face, several: int, crop: str, note: str = "") -> Line:
        if face.was_crop and self.options.in_place:
            crop = ""
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
            note=note or (WAS_CROP if face.was_crop else ""),
        )

    def _missed(self, row: int, image: Image.Image, reason: str) -> Line:
        name, share = self.index.name(row), self.options.keep_missed
        if not share:
            return Line("no", name, note=reason)
        crop = central_crop(image, share, self.options.size)
        self._save(crop, self._crop_name(row))
        figure = round(sharpness(crop), 1)
        note = f"{reason}; central crop"
        return Line("no", name, self._crop_name(row), sharpness=figure, note=note)

    def _crop_name(self, row: int) -> str:
        return own_name(self.index.name(row)) if self.options.in_place else crop_name(self.index, row)

    def _save(self, crop: Image.Image, name: str) -> None:
        """Ctrl-C leaves no half picture."""
        kind, options = "JPEG", {"quality": self.options.quality, "subsampling": 0, "comment": b""}
        if self.options.in_place:
            kind, options = "PNG", {"compress_level": 1}
        write_whole(self.out / name, lambda staged: crop.save(staged, kind, **options))


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


def forget_others(out: Path, decides: dict[str, Any]) -> None:
    """Remove the folder where it holds faces that `cut_faces` cut of other pictures, or by other options."""
    kept = out / OPTIONS
    if kept.is_file():
        before = json.loads(kept.read_text())
        if before.get("in_place") and before != json.loads(json.dumps(decides)):
            shutil.rmtree(out)


def lines_of(
    index: ImageIndex, rows: Sequence[int], out: Path, options: AlignOptions, workers: int
) -> Iterator[tuple[int, list[Line]]]:
    """How many photographs are done, and their lines, in any order. DataError where a process dies."""
    chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    if workers <= 1:
        job = Job(index, out, options)
        yield from ((len(chunk), job(chunk)) for chunk in chunks)
        return
    # Forked from a process that has imported torch and holds no threads: it is imported once, not by each.
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, mp_context=forked, initializer=_start, initargs=(index, out, options))
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


def crop_name(index: ImageIndex, row: int) -> str:
    """The crop's path below the out folder: `identity/image.jpg`, with the folders between where the photograph
    lies in its identity's own; a csv may list it anywhere, and then its last part counts alone."""
    name, identity = index.name(row), index.identities[index.identity[row]].rstrip("/")
    parts = name.split("/")
    if (identity and not name.startswith(identity + "/")) or ".." in parts or os.path.isabs(name):
        name = f"{identity}/{parts[-1]}" if identity else parts[-1]
    return name if name.lower().endswith((".jpg", ".jpeg")) else name + ".jpg"


def own_name(name: str) -> str:
    """A crop's name where it stays beside others of any data: of the hash of the photograph's name."""
    return hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest() + ".png"
