"""Batches of pixels from row numbers, made by worker processes or in place.

An image's augmentation depends on (seed, epoch, step, row) alone, so the pixels are the same for any number
of workers and ranks, and after a restart in the middle of an epoch. Shapes: B batch, H height, W width.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import re
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from facemetric.data.images import BadImage, decode
from facemetric.data.index import ImageIndex
from facemetric.data.transforms import Transform
from facemetric.errors import DataError

MAX_BYTES = 256 << 20  # of one image file
DRAWING = threading.Lock()  # held by the one thread that draws from the global generators
GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64
MASK = (1 << 64) - 1


class Batch(NamedTuple):
    """images uint8 (B, H, W, 3), labels and rows int64 (B,); `bad` are the rows left out, with the reason.

    B is smaller than asked for where images are bad, at worst 0. `later` float32 (B, n) is what the transform
    leaves for the device: see device_transforms.py.
    """

    images: torch.Tensor
    labels: torch.Tensor
    rows: torch.Tensor
    bad: list[tuple[int, str]]
    later: torch.Tensor | None = None


Found = tuple[np.ndarray, tuple[float, ...]] | BadImage


def load_batches(
    index: ImageIndex,
    row_batches: Sequence[np.ndarray],
    transform: Transform,
    *,
    labels: np.ndarray | None = None,
    seed: int = 0,
    epoch: int = 0,
    workers: int = 0,
    start: int = 0,
    pin: bool = False,
) -> Iterator[Batch]:
    """The batches of an epoch in order, from step `start` on. `labels` (N,) default to the index's
    identities. With `pin` they come in pinned memory, from which a CUDA device copies while it computes.

    DataError where a worker process dies.
    """
    made = _Batches(
        index, row_batches, transform, index.identity if labels is None else labels, (seed, epoch)
    )
    steps = range(start, len(row_batches))
    if workers == 0:
        return _in_place(made, steps)
    return _in_workers(made, steps, min(workers, max(1, len(steps))), pin)


class _Batches(Dataset[Batch]):
    def __init__(
        self,
        index: ImageIndex,
        row_batches: Sequence[np.ndarray],
        transform: Transform,
        labels: np.ndarray,
        stream: tuple[int, int],
    ) -> None:
        self.index, self.row_batches, self.transform = index, row_batches, transform
        self.labels, self.stream = np.asarray(labels), stream

    def __getitem__(self, step: int) -> Batch:
        return self.make(step, map)

    def make(self, step: int, mapped: Callable[..., Iterable[Found]]) -> Batch:
        """The batch of a step; `mapped` is `map`, or that of threads."""
        rows = self.row_batches[step]
        pixels = torch.empty((len(rows), self.transform.height, self.transform.width, 3), dtype=torch.uint8)
        filled = pixels.numpy()
        good: list[int] = []
        left: list[tuple[float, ...]] = []
        bad: list[tuple[int, str]] = []
        for row, found in zip(rows.tolist(), mapped(partial(self.image, step), rows.tolist()), strict=True):
            if isinstance(found, BadImage):
                bad.append((row, found.reason))
                continue
            filled[len(good)], numbers = found
            good.append(row)
            left.append(numbers)
        kept = np.array(good, np.int64)
        labels = torch.from_numpy(self.labels[kept].astype(np.int64))
        count = self.transform.later
        later = torch.tensor(left).reshape(len(good), count) if count else None
        return Batch(pixels[: len(good)], labels, torch.from_numpy(kept), bad, later)

    def image(self, step: int, row: int) -> Found:
        """The pixels of a row and what is left for the device, or why there are none."""
        try:
            image = self._decode(row)
        except BadImage as error:
            return error
        if not self.transform.draws:
            return self.transform(image), ()
        with DRAWING:
            seed_everything(sample_seed(*self.stream, step, row))
            plan = self.transform.draw(image)
            if self.transform.draws_late:
                return plan.make(image), plan.later
        return plan.make(image), plan.later

    def _decode(self, row: int) -> Any:
        try:
            size = self.index.size(row)
            if size > MAX_BYTES:
                raise BadImage(f"{size} bytes, at most {MAX_BYTES} are read")
            return decode(self.index.read(row), enough=self.transform.enough)
        except OSError as error:
            raise BadImage(f"cannot be read: {error.strerror or error}") from None


def sample_seed(seed: int, epoch: int, step: int, row: int) -> int:
    """64 well-mixed bits of the four numbers. Source of the mixing: Steele et al. 2014, SplitMix64."""
    state = 0
    for part in (seed, epoch, step, row):
        state = (state ^ part) + GOLDEN & MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & MASK
        state ^= state >> 31
    return state


def seed_everything(seed: int) -> None:
    """Seeds Python's, numpy's and torch's CPU generator.

    Not torch.manual_seed: that also walks the accelerators and takes 0.1 ms.
    """
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    torch.default_generator.manual_seed(seed)


def _in_place(made: _Batches, steps: range) -> Iterator[Batch]:
    with Threads(torch.get_num_threads()) as threads:
        for step in steps:
            # The training's own random numbers (dropout) must not notice that images were made here.
            state = random.getstate(), np.random.get_state(), torch.get_rng_state()
            try:
                batch = made.make(step, threads.map)
            finally:
                random.setstate(state[0])
                np.random.set_state(state[1])
                torch.set_rng_state(state[2])
            yield batch


class Threads:
    """`map` on some threads, each with a share of the items in one piece: PIL works outside the interpreter's lock."""

    def __init__(self, count: int) -> None:
        self.count, self.pool = count, ThreadPoolExecutor(count)

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *raised: object) -> None:
        self.pool.shutdown()

    def map(self, function: Callable[[int], Found], items: Sequence[int]) -> Iterable[Found]:
        """The function's values in the order of the items."""
        shares = [items[first :: self.count] for first in range(self.count)]
        made = list(self.pool.map(lambda share: [function(item) for item in share], shares))
        return [made[i % self.count][i // self.count] for i in range(len(items))]


def _in_workers(made: _Batches, steps: range, workers: int, pin: bool) -> Iterator[Batch]:
    loader: DataLoader[Batch] = DataLoader(
        made,
        batch_size=None,
        sampler=steps,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_quiet,
        prefetch_factor=4,
        pin_memory=pin,  # in a thread of its own; made in place, `upload` pins them
        # The loader draws a seed for its workers from here, and not from the training's random numbers.
        generator=torch.Generator(),
    )
    batches = None
    try:
        with _interrupts_held():
            batches = iter(loader)
        yield from batches
    except RuntimeError as error:
        if not re.search("worker.*(exited|killed)", str(error)):
            raise
        raise DataError(
            f"a process that loads images died ({str(error).splitlines()[0]}); most often memory or"
            " /dev/shm ran out: lower --workers or --batch-size"
        ) from None
    finally:
        # A traceback may keep the iterator alive, and with it the processes.
        if batches is not None:
            batches._shutdown_workers()  # type: ignore[attr-defined]


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back from this thread: a worker that is forked meanwhile is never interrupted, not even before
    `_quiet`. Workers of another start method are no children of this thread, and would not know."""
    if multiprocessing.get_start_method() != "fork":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_it_is(batch: Any) -> Any:
    return batch


def _quiet(worker: int) -> None:
    """Ctrl-C reaches the whole group of processes: the main one answers, and ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    warnings.filterwarnings("ignore", module="PIL")  # what matters about an image comes as BadImage
