"""What an index of millions of images costs: memory and time of the scan, the start of an epoch, steps.

    python tools/bench_index.py --images 1000000 --images 5000000 --identities 1000000

The images are few real bytes named often: tars are written whose members `identity/image.jpg` are one small drawn
picture each, so that 5 million of them take 8 GiB of disk; each size is measured in a process of its own. `scan` is
read_index of the tars; memory is the largest that the process held, less what it held before. `start` is the first
batch of P x K (128 images) after the sampler was made, and `shuffled` the same of shuffled batches; then a later
batch of P x K: its rows + the bytes of its images read without decoding (tars larger than the memory that is
free come from the disk, which is what makes the bytes of 5 million dearer).

Processor seconds on one core shared with other work, by the clock several times as long:

| images | identities | scan s | peak MiB | kept bytes an image | PK start s | shuffled start s | step, ms |
|---|---|---|---|---|---|---|---|
| 500,000 | 500,000 | 7.2 | 241 | 80 | 0.12 | 0.01 | 0.02 + 0.18 |
| 5,000,000 | 1,000,000 | 67 | 1,032 | 67 | 1.62 | 0.22 | 0.12 + 3.1 |
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import resource
import statistics
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from facemetric.data.batches import IdentityBatches, ShuffledBatches
from facemetric.data.index import read_index

TARS, P, K, STEPS = 5, 32, 4, 200
MIB = 1 << 20


def picture() -> bytes:
    """A small JPEG: 8 x 8 pixels."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(out, "JPEG")
    return out.getvalue()


def write_tars(folder: Path, images: int, identities: int) -> None:
    """Tars of `images` members of `identities` people; headers are made by hand, as tarfile takes an hour."""
    data = picture()
    body = data + b"\0" * (-len(data) % 512)
    info = tarfile.TarInfo("p0000000/00000000.jpg")
    info.size = len(data)
    header = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    rest = sum(header) - sum(header[:21]) - sum(header[148:156]) + 8 * 32
    for n in range(TARS):
        with open(folder / f"part{n}.tar", "wb", buffering=1 << 22) as file:
            for i in range(images * n // TARS, images * (n + 1) // TARS):
                name = b"p%07d/%08d.jpg" % (i % identities, i)
                header[:21] = name
                header[148:156] = b"%06o\0 " % (rest + sum(name))
                file.write(header)
                file.write(body)
            file.write(b"\0" * 10240)


def seconds() -> float:
    """Processor time of this process."""
    return time.process_time()


def memory() -> float:
    """The most that this process has held, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(folder: str, into: multiprocessing.SimpleQueue[dict[str, float]]) -> None:
    """The figures of one set of tars, in a process of its own."""
    before, found = memory(), {}
    clock, began = time.monotonic(), seconds()
    index = read_index(folder)
    found["scan s"], found["scan s by the clock"] = seconds() - began, time.monotonic() - clock
    found["peak MiB"], found["kept bytes an image"] = memory() - before, index.nbytes / len(index)
    began = seconds()
    batches = IdentityBatches(index.identity, P, K, seed=0).epoch(0)
    first = batches[0]
    found["PK start s"] = seconds() - began
    assert len(set(index.identity[first].tolist())) == P
    began = seconds()
    assert len(ShuffledBatches(index.identity, P * K, seed=0).epoch(0)[0]) == P * K
    found["shuffled start s"] = seconds() - began
    drawn, read = [], []
    for step in np.random.default_rng(0).integers(1, len(batches), STEPS).tolist():
        began = seconds()
        rows = batches[step].tolist()
        drawn.append(seconds() - began)
        began = seconds()
        for row in rows:
            index.read(row)
        read.append(seconds() - began)
    found["rows of a step ms"], found["its bytes ms"] = (1000 * statistics.median(t) for t in (drawn, read))
    found["peak MiB with samplers"] = memory() - before
    into.put(found)


def main() -> None:
    """A line of the table for each size."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, action="append")
    parser.add_argument("--identities", type=int, default=1_000_000)
    parser.add_argument(
        "--folder", type=Path, help="where the tars are written; a temporary folder without it"
    )
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for number, images in enumerate(given.images or [200_000]):
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            people = min(given.identities, images)
            write_tars(Path(folder), images, people)
            queue: multiprocessing.SimpleQueue[dict[str, float]] = context.SimpleQueue()
            process = context.Process(target=measure, args=(folder, queue))
            process.start()
            found = queue.get()
            process.join()
        if number == 0:
            print("| images | identities | " + " | ".join(found) + " |")
            print("|---" * (len(found) + 2) + "|")
        shown = " | ".join(f"{value:,.2f}" if value < 10 else f"{value:,.0f}" for value in found.values())
        print(f"| {images:,} | {people:,} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
