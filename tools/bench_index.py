"""What an index of millions of images costs: memory and time of the scan, the start of an epoch, steps.

    python tools/bench_index.py --images 1000000 --images 5000000 --identities 1000000

The images are few real bytes named often: tars are written whose members `identity/image.jpg` are one small drawn
picture each, so that 5 million of them take 8 GiB of disk; each size is measured in a process of its own. `scan` is
read_index of the tars; memory is the largest that the process held, less what it held before. `start` is the first
batch of P x K (128 images) after the sampler was made, and `shuffled` the same of shuffled batches; then a later
batch of P x K: its rows + the bytes of its images read without decoding. Tars larger than the memory that is
free come from the disk, which is what makes the bytes of 5 million dearer.

    python tools/bench_index.py --warm --images 5000 --images 500000 --images 5000000

takes the disk out of it: the index names the same 1,000 byte ranges of small tars again and again, so that their
bytes are in the page cache and what is left of a step is the program's own work.

Processor seconds on one core shared with other work, by the clock several times as long:

| images | identities | scan s | peak MiB | kept bytes an image | PK start s | shuffled start s | step, ms |
|---|---|---|---|---|---|---|---|
| 500,000 | 500,000 | 7.2 | 241 | 80 | 0.12 | 0.01 | 0.02 + 0.18 |
| 5,000,000 | 1,000,000 | 67 | 1,032 | 67 | 1.62 | 0.22 | 0.12 + 3.1 |

Where each identity has one image, as in the first line, a step of 32 identities is 32 images and not 128.

With `--warm`, in two runs (a step of 128 images, not decoded):

| images | identities | rows of a step ms | its bytes ms |
|---|---|---|---|
| 5,000 | 1,000 | 0.02, 0.02 | 0.40, 0.42 |
| 500,000 | 100,000 | 0.02, 0.03 | 0.46, 0.50 |
| 5,000,000 | 1,000,000 | 0.04, 0.03 | 0.56, 0.51 |
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
from facemetric.data.index import ImageIndex, read_index
from facemetric.data.readers.reader import Row
from facemetric.data.readers.tar import TarReader
from facemetric.data.store import Rows, SourceFile, Store

TARS, P, K, STEPS = 5, 32, 4, 200
FEW = 1000  # byte ranges of a warm index


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


def named_often(folder: str, images: int, identities: int) -> ImageIndex:
    """An index of `images` images which are the byte ranges of a few, in the order that a scan finds them."""
    rows, source = Rows(), read_index(folder)
    places = [source.location(i) for i in range(len(source))]
    for n, path in enumerate(sorted({place.file for place in places})):
        rows.files.append(SourceFile(TarReader(path), ""))
        here = [place for place in places if place.file == path]
        for i in range(images * n // TARS, images * (n + 1) // TARS):
            _, offset, size = here[i % len(here)]
            person = f"p{i % identities:07d}"
            rows.add(Row(person, f"{person}/{i:08d}.jpg", size, offset))
    rows.bar.close()
    identity = np.array(rows.identity, np.int32)
    order = np.argsort(identity, kind="stable")
    return ImageIndex(Store(rows), order, identity[order], sorted(rows.identities))


def steps_of(index: ImageIndex) -> dict[str, float]:
    """What a step asks of an index, ms: its rows, and the bytes of its images; the medians of STEPS."""
    batches = IdentityBatches(index.identity, P, K, seed=0).epoch(0)
    drawn, read = [], []
    for step in np.random.default_rng(0).integers(1, len(batches), STEPS).tolist():
        began = seconds()
        rows = batches[step].tolist()
        drawn.append(seconds() - began)
        began = seconds()
        for row in rows:
            index.read(row)
        read.append(seconds() - began)
    medians = [1000 * statistics.median(times) for times in (drawn, read)]
    return dict(zip(("rows of a step ms", "its bytes ms"), medians, strict=True))


def measure_warm(
    folder: str, images: int, identities: int, into: multiprocessing.SimpleQueue[dict[str, float]]
) -> None:
    """The figures of a step alone, in a process of its own."""
    into.put(steps_of(named_often(folder, images, identities)))


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
    found |= steps_of(index)
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
    parser.add_argument("--warm", action="store_true", help="steps alone, of an index of few byte ranges")
    given = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    for number, images in enumerate(given.images or [200_000]):
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            people = min(given.identities, images // 5 if given.warm else images)
            write_tars(Path(folder), FEW if given.warm else images, P if given.warm else people)
            queue: multiprocessing.SimpleQueue[dict[str, float]] = context.SimpleQueue()
            target, more = (measure_warm, (images, people)) if given.warm else (measure, ())
            process = context.Process(target=target, args=(folder, *more, queue))
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
