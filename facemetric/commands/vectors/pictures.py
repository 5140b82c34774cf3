"""Pictures to the pixels of faces that a network embeds: what was found in a batch, and what has no row and why.

A batch is looked at by one process, by one thread, and depends on its own pictures alone, so that the result does not
depend on how many processes share the work.

Shapes: F faces of a batch, H and W the network's size.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from facemetric.config import EmbedConfig
from facemetric.data.eval_transform import eval_transform
from facemetric.data.images import BadImage, Preprocess, decode
from facemetric.data.index import ImageIndex
from facemetric.data.loader import MAX_BYTES, load_batches
from facemetric.errors import DataError
from facemetric.faces.crops import Face, FacesFound
from facemetric.faces.finder import FaceFinder, face_finder
from facemetric.machine import own_cores, pick_workers
from facemetric.model.pictures import crop_side

NO_FACE, UNREADABLE = "no face", "unreadable"
NONE_LOOKED_FOR = 0  # the number of a face where none was looked for


class Missing(NamedTuple):
    """A picture without a row: its row in the index, NO_FACE or UNREADABLE, and the reason."""

    row: int
    kind: str
    reason: str


class Batch(NamedTuple):
    """The faces of some pictures.

    `rows` (F,) int64 of the index; `face` (F,) int16: 1 is a photograph's largest; `score`, `quality` (F,) float32,
    `box` (F, 4), `landmarks` (F, 10) float32 in pixels of the upright photograph, NaN where no face was looked for;
    `pixels` uint8 (F, H, W, 3)."""

    rows: npt.NDArray[np.int64]
    face: npt.NDArray[np.int16]
    score: npt.NDArray[np.float32]
    quality: npt.NDArray[np.float32]
    box: npt.NDArray[np.float32]
    landmarks: npt.NDArray[np.float32]
    pixels: npt.NDArray[np.uint8]
    missing: list[Missing]


class Looker:
    """What a process keeps between batches: the images, the finder, and the network's preprocessing."""

    def __init__(self, index: ImageIndex, finder: FaceFinder, pre: Preprocess, every_face: bool) -> None:
        self.index, self.finder, self.every_face = index, finder, every_face
        self.cut = eval_transform(pre)

    def __call__(self, rows: Sequence[int]) -> Batch:
        """The faces of these rows of the index."""
        unread: dict[int, str] = {}
        with one_thread():
            found = list(zip(rows, map(self._kept, self.finder(self._read(rows, unread))), strict=True))
        faces = [
            (row, number, face)
            for row, several in found
            if not isinstance(several, Missing)
            for number, face in several
        ]
        missing = [several._replace(row=row) for row, several in found if isinstance(several, Missing)]
        missing = [each._replace(reason=unread.get(each.row, each.reason)) for each in missing]
        pixels = [self.cut(self._crop(row, face)) for row, _, face in faces]
        size = (self.cut.height, self.cut.width, 3)
        return Batch(
            np.array([row for row, _, _ in faces], np.int64),
            np.array([number for _, number, _ in faces], np.int16),
            np.array([face.score for _, _, face in faces], np.float32),
            np.array([face.quality.figure for _, _, face in faces], np.float32),
            np.array([face.box for _, _, face in faces], np.float32).reshape(-1, 4),
            np.array([face.landmarks.ravel() for _, _, face in faces], np.float32).reshape(-1, 10),
            np.stack(pixels) if pixels else np.zeros((0, *size), np.uint8),
            missing,
        )

    def _crop(self, row: int, face: Face) -> Image.Image:
        """The face's crop; a picture that is one already as evaluation reads it, to the same bits."""
        if face.was_crop and min(face.crop.size) >= 2 * self.cut.enough:
            return decode(self.index.read(row), enough=self.cut.enough)
        return face.crop

    def _read(self, rows: Sequence[int], unread: dict[int, str]) -> Iterator[bytes]:
        """The files' bytes, one after the other; b"" for one that does not read, whose reason goes to `unread`."""
        for row in rows:
            try:
                if (size := self.index.size(row)) > MAX_BYTES:
                    raise BadImage(f"{size} bytes, at most {MAX_BYTES} are read")
                yield self.index.read(row)
            except (OSError, BadImage) as error:
                unread[row] = getattr(error, "reason", "") or f"cannot be read: {error.strerror or error}"  # type: ignore[union-attr]
                yield b""

    def _kept(self, found: FacesFound) -> list[tuple[int, Face]] | Missing:
        """The faces that count, with their numbers, or why there is none."""
        if found.missing is not None:
            return Missing(-1, UNREADABLE if found.missing.unreadable else NO_FACE, found.missing.reason)
        numbered = list(enumerate(found.faces, 1))
        if self.every_face:
            return numbered
        chosen = found.take()
        return [(number, face) for number, face in numbered if face is chosen]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """torch computes with one thread meanwhile: the last bits of a detector's numbers depend on how many share them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def finder_of(config: EmbedConfig, pre: Preprocess, pictures: str) -> FaceFinder | None:
    """The finder that the options ask for, None where no face is looked for. `pictures` is what the weights expect."""
    return face_finder(
        config.faces,
        pictures=pictures,
        detector=config.detector,
        min_quality=config.min_quality,
        size=crop_side(pre),
    )


def batches_in(
    index: ImageIndex,
    batches: Sequence[npt.NDArray[np.int64]],
    config: EmbedConfig,
    pre: Preprocess,
    pictures: str,
) -> Iterator[Batch]:
    """The faces of each batch of rows, in the order of the batches, by as many processes as the options say.

    Raises DataError where a process dies."""
    finder = finder_of(config, pre, pictures)
    if finder is None:
        return as_they_are(index, batches, pre, pick_workers(config.workers))
    job = (index, finder, pre, config.every_face)
    workers = min(workers_for(config.workers), len(batches))
    return (
        map(Looker(*job), (rows.tolist() for rows in batches))
        if workers <= 1
        else in_processes(job, batches, workers)
    )


def workers_for(workers: int) -> int:
    """Processes: as asked for, or every core, of which each process of torchrun takes its share."""
    return workers if workers >= 0 else own_cores()


def as_they_are(
    index: ImageIndex, batches: Sequence[npt.NDArray[np.int64]], pre: Preprocess, workers: int
) -> Iterator[Batch]:
    """Pictures embedded whole: no face is looked for."""
    for found in load_batches(index, batches, eval_transform(pre), workers=workers):
        count = len(found.rows)
        empty = np.full((count, 14), np.nan, np.float32)
        yield Batch(
            found.rows.numpy(),
            np.full(count, NONE_LOOKED_FOR, np.int16),
            empty[:, 0],
            empty[:, 1],
            empty[:, :4],
            empty[:, 4:],
            found.images.numpy(),
            [Missing(row, UNREADABLE, reason) for row, reason in found.bad],
        )


_looker: Looker | None = None


def _start(*job: Any) -> None:
    global _looker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers, and ends these
    torch.set_num_threads(1)
    _looker = Looker(*job)


def _look(rows: Sequence[int]) -> Batch:
    assert _looker is not None
    return _looker(rows)


def in_processes(
    job: tuple[Any, ...], batches: Iterable[npt.NDArray[np.int64]], workers: int
) -> Iterator[Batch]:
    """The batches in their order, from a pool of processes that work ahead by two batches each."""
    # Forked from a process that has imported torch and holds no threads: it is imported once, not by each.
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, mp_context=forked, initializer=_start, initargs=job)
    todo = iter(batches)
    under_way: deque[Future[Batch]] = deque()
    try:
        while True:
            while len(under_way) < 2 * workers and (rows := next(todo, None)) is not None:
                under_way.append(pool.submit(_look, rows.tolist()))
            if not under_way:
                return
            yield under_way.popleft().result()
    except BrokenProcessPool:
        raise DataError(
            "a process that looks for faces died, most often for want of memory; lower --workers and start again: "
            "what is done is kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
