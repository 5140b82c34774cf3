"""Loose photographs to aligned faces: finds the face, turns and scales it to the usual template, cuts it out.

    pip install -e '.[align]'
    python tools/align_faces.py photos/ --out faces/ --workers 2

DATA is what `facemetric pretrain` takes (a folder `identity/image.jpg`, a csv, `.tar` files); `faces/` gets
`identity/image.jpg` of 112 x 112 pixels, also of what a csv lists elsewhere, and `faces/aligned.csv` a line for each
photograph: whether a face was found, its score, box, five landmarks, how large and how sharp it was, and how many
others were there. The same command again goes on where it stopped: what the csv has is not looked at again. A crop
that would replace a photograph is refused before the first is made.

Template (pixels of 112 x 112, of ArcFace, Deng et al. 2019, arXiv:1801.07698): eyes (38.2946, 51.6963) and
(73.5318, 51.5014), nose (56.0252, 71.7366), mouth corners (41.5493, 92.3655) and (70.7299, 92.2041). The five
landmarks are brought nearest to it, in least squares, by a turn, one scale and a shift; what lies beyond the
photograph's edge repeats its last pixel. The detector is MTCNN (Zhang et al. 2016, arXiv:1604.02878) as
facenet-pytorch carries it; it looks twice, the second time at the face turned upright.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from align_crops import SIDE, SMALLEST, Detector, Options, align
from align_record import Line, Record
from PIL import Image
from tqdm import tqdm

from facemetric.data.images import BadImage, decode
from facemetric.data.index import ImageIndex, parse_source, read_index
from facemetric.errors import ConfigError, DataError, FacemetricError
from facemetric.files import write_whole

CHUNK = 8  # photographs that a process is given at once
FACE = "of several: by area, nearest to the middle, or area less twice the squared distance from the middle"
KEEP = "where no face is found, keep the middle square of this share of the shorter side (1 where not said)"


def crop_name(index: ImageIndex, row: int) -> str:
    """The crop's path below the out folder: `identity/image.jpg`, with the folders between where the photograph
    lies in its identity's own; a csv may list it anywhere, and then its last part counts alone."""
    name, identity = index.name(row), index.identities[index.identity[row]]
    parts = name.split("/")
    if not name.startswith(identity + "/") or ".." in parts:
        name = f"{identity}/{parts[-1]}"
    return name if name.lower().endswith((".jpg", ".jpeg")) else name + ".jpg"


def check_targets(index: ImageIndex, data: Sequence[str], out: Path) -> None:
    """DataError where two crops would have one name, one would lie outside `out` or replace a photograph, or the
    next time crops would be taken for photographs."""
    first: dict[str, int] = {}
    for row in range(len(index)):
        other = first.setdefault(crop_name(index, row), row)
        if other != row:
            raise DataError(
                f"{index.name(other)} and {index.name(row)} would share the crop's name {crop_name(index, row)!r};"
                " rename one, or align them into two folders"
            )
    root = os.path.realpath(out)
    for source in map(parse_source, data):
        if source.path.is_dir() and Path(root).is_relative_to(os.path.realpath(source.path)):
            raise DataError(
                f"--out {out} lies in the photographs' own folder {source.path}; name one beside it"
            )
    for folder in {os.path.dirname(name) for name in first}:
        there = os.path.realpath(os.path.join(root, folder))
        if there == root or not Path(there).is_relative_to(root):
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


def save_whole(crop: Image.Image, path: Path, quality: int) -> None:
    """Ctrl-C leaves no half picture."""
    write_whole(path, lambda staged: crop.save(staged, "JPEG", quality=quality, subsampling=0))


class Job:
    """What a process keeps between photographs."""

    def __init__(self, index: ImageIndex, out: Path, options: Options) -> None:
        torch.set_num_threads(1)  # the processes share the cores
        self.index, self.out, self.options, self.detector = index, out, options, Detector()

    def __call__(self, rows: Sequence[int]) -> list[Line]:
        return [self.one(row) for row in rows]

    def one(self, row: int) -> Line:
        name = self.index.name(row)
        try:
            image = decode(self.index.read(row))
        except (BadImage, OSError) as error:
            return Line(path=name, found="bad", note=getattr(error, "reason", None) or str(error))
        line, crop = align(self.detector, image, self.options)
        written = ""
        if crop is not None:
            written = crop_name(self.index, row)
            save_whole(crop, self.out / written, self.options.quality)
        return line._replace(path=name, crop=written)


_job: Job | None = None


def _start(*args: Any) -> None:
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers, and ends these
    _job = Job(*args)


def _work(rows: Sequence[int]) -> list[Line]:
    assert _job is not None
    return _job(rows)


def lines_of(
    index: ImageIndex, rows: Sequence[int], out: Path, options: Options, workers: int
) -> Iterator[list[Line]]:
    """The lines of the photographs as they are done, in any order. DataError where a process dies."""
    chunks = [rows[i : i + CHUNK] for i in range(0, len(rows), CHUNK)]
    if workers <= 1:
        yield from map(Job(index, out, options), chunks)
        return
    Detector()  # its absence is said once, here
    # Forked from a process that holds the detector and no threads: torch is imported once, not by each.
    forked = multiprocessing.get_context("forkserver")
    forked.set_forkserver_preload(["align_crops", "facenet_pytorch"])
    pool = ProcessPoolExecutor(workers, mp_context=forked, initializer=_start, initargs=(index, out, options))
    todo = iter(chunks)
    under_way: set[Future[list[Line]]] = set()
    try:
        while True:
            while len(under_way) < 2 * workers and (chunk := next(todo, None)) is not None:
                under_way.add(pool.submit(_work, chunk))
            if not under_way:
                return
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise DataError(
            "a process that aligns died, most often for want of memory; lower --workers and start again:"
            " what is done is kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Loose photographs to aligned faces, and a csv of what was found."
    )
    add = parser.add_argument
    add("data", nargs="+", help="photographs, as for pretrain: a folder of identities, a csv or .tar files")
    add("--out", type=Path, required=True, help="folder for identity/image.jpg and aligned.csv")
    add("--workers", type=int, default=os.cpu_count() or 1, help="processes; the crops do not depend on it")
    add("--size", type=int, default=SIDE, help="side of a crop in pixels; the template grows with it")
    add("--face", choices=["prominent", "largest", "central"], default="prominent", help=FACE)
    add(
        "--several",
        choices=["take", "leave"],
        default="take",
        help="photographs with several faces of like size",
    )
    add("--min-score", type=float, default=0.9, help="lowest score of a face, 0..1")
    add(
        "--detect-size",
        type=int,
        default=640,
        help="longer side of the photograph as it is looked at, pixels",
    )
    add("--keep-missed", type=float, nargs="?", const=1.0, default=0.0, metavar="SHARE", help=KEEP)
    add("--quality", type=int, default=95, help="of the JPEGs, 1..100")
    args = parser.parse_args(arguments)
    for name, low, high in (
        ("size", 16, 4096),
        ("detect_size", SMALLEST, 1 << 14),
        ("min_score", 0, 1),
        ("keep_missed", 0, 1),
        ("quality", 1, 100),
        ("workers", 1, 1024),
    ):
        value = getattr(args, name)
        if not low <= value <= high:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; choose {low}..{high}")
    return args


def run(args: argparse.Namespace) -> None:
    """Align what the csv does not have yet; says what was found."""
    options = Options(**{name: getattr(args, name) for name in Options._fields})
    index = read_index(args.data)
    for note in index.notes:
        print(note)
    check_targets(index, args.data, args.out)
    record = Record(args.out, options._asdict())
    rows = [row for row in range(len(index)) if index.name(row) not in record.done]
    if len(rows) < len(index):
        print(
            f"{len(index) - len(rows):,} of {len(index):,} photographs are in {record.path}; going on with the rest"
        )
    with tqdm(total=len(rows), desc="aligning", unit="image", delay=2) as bar:
        for lines in lines_of(index, rows, args.out, options, min(args.workers, max(1, len(rows) // CHUNK))):
            record.add(lines)
            bar.update(len(lines))
    counts = record.counts
    print(
        f"{sum(counts[k] for k in ('yes', 'no', 'bad')):,} photographs: a face in {counts['yes']:,}"
        f" ({counts['several']:,} with several), none in {counts['no']:,}, {counts['bad']:,} cannot be read;"
        f" {counts['kept']:,} crops in {args.out}, what was found in {record.path}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        run(parse(arguments))
    except (FacemetricError, OSError) as error:
        print(f"align_faces: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("align_faces: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
