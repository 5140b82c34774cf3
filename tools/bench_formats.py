"""What the formats of large sets cost: an index of millions of rows, and images read in any order.

    python tools/bench_formats.py --index 5000000
    python tools/bench_formats.py --reading 20000

The sets are made up. For `--index` their images are 16 bytes, so that the headers of 5 million fit on the disk; a scan
of a set of real ones touches as many places, farther apart. For `--reading` they are drawn faces of 112 pixels; every
format holds the same, and is read in its own order and in a shuffled one, formats in turn, three rounds. Each index is
read in a process of its own. Processor time; the table of data/README.md was made by this.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench_index import write_tars
from large_sets import MAGIC, PAGE, Picture, write_lmdb, write_parquet, write_rec, write_webdataset

from facemetric.data.drawn.draw import draw_faces
from facemetric.data.index import ImageIndex, read_index

IMAGES_EACH = 5  # of an identity
BODY = b"\xff\xd8\xff" + bytes(13)


def many_rec(folder: Path, images: int) -> Path:
    """A .rec of small records, and its .idx."""
    kind = np.dtype(
        [
            ("magic", "<u4"),
            ("size", "<u4"),
            ("flag", "<u4"),
            ("label", "<f4"),
            ("id", "<u8", 2),
            ("body", "V16"),
        ]
    )
    with open(folder / "train.rec", "wb") as file, open(folder / "train.idx", "w") as idx:
        for first in range(0, images, 1 << 17):
            keys = np.arange(first, min(first + (1 << 17), images))
            records = np.zeros(len(keys), kind)
            records["magic"], records["size"] = struct.unpack("<I", MAGIC)[0], 24 + len(BODY)
            records["label"], records["body"] = keys // IMAGES_EACH, np.void(BODY)
            records["id"][:, 0] = keys
            file.write(records.tobytes())
            idx.writelines(f"{key}\t{key * kind.itemsize}\n" for key in keys.tolist())
    return folder / "train.rec"


def many_samples(folder: Path, images: int) -> Path:
    """A shard of WebDataset, by headers that are made once and changed."""
    import tarfile

    def header(name: str, size: int) -> tuple[bytearray, int]:
        info = tarfile.TarInfo(name)
        info.size = size
        block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
        return block, sum(block) - sum(block[: len(name)]) - sum(block[148:156]) + 8 * 32

    label, label_rest = header("000000000.cls", 7)
    image, image_rest = header("000000000.jpg", len(BODY))
    with open(folder / "a.tar", "wb", buffering=1 << 22) as file:
        for n in range(images):
            for block, rest, name, body in (
                (label, label_rest, b"%09d.cls" % n, b"%07d" % (n // IMAGES_EACH)),
                (image, image_rest, b"%09d.jpg" % n, BODY),
            ):
                block[:13] = name
                block[148:156] = b"%06o\0 " % (rest + sum(name))
                file.write(block)
                file.write(body.ljust(512, b"\0"))
        file.write(bytes(10240))
    return folder / "a.tar"


def many_rows(folder: Path, images: int) -> Path:
    """A Parquet table, in row groups of 100."""
    import pyarrow as pa
    from pyarrow import parquet

    step = 100_000
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    schema = pa.schema({"image": kind, "label": pa.int64()})
    with parquet.ParquetWriter(folder / "a.parquet", schema) as writer:
        for first in range(0, images, step):
            keys = range(first, min(first + step, images))
            pictures = pa.array([{"bytes": BODY, "path": f"{key:08d}.jpg"} for key in keys], kind)
            rows = pa.table({"image": pictures, "label": [key // IMAGES_EACH for key in keys]}, schema)
            writer.write_table(rows, row_group_size=100)
    return folder / "a.parquet"


def many_values(folder: Path, images: int) -> Path:
    """An LMDB of values in its leaves, in one tree of three levels."""
    names = [b"%07d/%08d.jpg" % (n // IMAGES_EACH, n) for n in range(images)]  # sorted
    node = 8 + len(names[0]) + len(BODY)
    node += node % 2
    each = (PAGE - 16) // (node + 2)
    number = 2
    with open(folder / "data.mdb", "wb", buffering=1 << 22) as file:
        file.write(bytes(2 * PAGE))

        def page(kind: int, parts: list[bytes]) -> None:
            nonlocal number
            size = len(parts[0])
            upper = PAGE - size * len(parts)
            places = struct.pack(f"<{len(parts)}H", *(upper + size * n for n in range(len(parts))))
            head = struct.pack("<QHHHH", number, 0, kind, 16 + len(places), upper) + places
            file.write(head + bytes(upper - len(head)) + b"".join(parts))
            number += 1

        level: list[tuple[bytes, int]] = []
        head = struct.pack("<HHHH", len(BODY), 0, 0, len(names[0]))
        for first in range(0, images, each):
            level.append((names[first], number))
            page(2, [(head + name + BODY).ljust(node, b"\0") for name in names[first : first + each]])
        depth = 1
        while len(level) > 1:
            above: list[tuple[bytes, int]] = []
            for first in range(0, len(level), 100):
                part = level[first : first + 100]
                above.append((part[0][0], number))
                page(
                    1,
                    [
                        struct.pack("<HHHH", n & 0xFFFF, n >> 16, 0, len(k)) + k + b"\0" * (len(k) % 2)
                        for k, n in part
                    ],
                )
            level, depth = above, depth + 1
        for which in range(2):
            meta = struct.pack("<QHHHH", which, 0, 8, 0, 0) + struct.pack("<IIQQ", 0xBEEFC0DE, 1, 0, 1 << 40)
            meta += struct.pack("<IHHQQQQQ", PAGE, 0, 0, 0, 0, 0, 0, (1 << 64) - 1)
            meta += struct.pack("<IHHQQQQQ", 0, 0, depth, 0, 0, 0, images, level[0][1])
            file.seek(which * PAGE)
            file.write(meta + struct.pack("<QQ", number - 1, which))
    return folder / "data.mdb"


def many_members(folder: Path, images: int) -> Path:
    """Plain tars, as bench_index.py writes them."""
    write_tars(folder, images, images // IMAGES_EACH)
    return folder


MANY: dict[str, Callable[[Path, int], Path]] = {
    "tar": many_members,
    ".rec, .idx": many_rec,
    "WebDataset": many_samples,
    "Parquet": many_rows,
    "LMDB": many_values,
}


def measure(path: str, into: multiprocessing.SimpleQueue[list[float]]) -> None:
    """Processor seconds, MiB at most and bytes an image of an index."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    index = read_index(path)
    took = time.process_time() - began
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    into.put([len(index), len(index.identities), took, peak, index.nbytes / len(index)])


def indices(images: int, folder: Path | None, only: str) -> None:
    """A line for each format."""
    print("| format | images | identities | index s | peak MiB | kept bytes an image |")
    print("|---|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for name, write in MANY.items():
        if only not in name:
            continue
        with tempfile.TemporaryDirectory(dir=folder) as place:
            path = write(Path(place), images)
            queue: multiprocessing.SimpleQueue[list[float]] = context.SimpleQueue()
            process = context.Process(target=measure, args=(str(path), queue))
            process.start()
            found = queue.get()
            process.join()
        print(f"| {name} | " + " | ".join(f"{value:,.0f}" for value in found) + " |", flush=True)


def drawn(folder: Path, images: int) -> list[Picture]:
    """Drawn faces of 112 px, each named often: formats differ in where bytes lie, not in what they are."""
    root = draw_faces(folder / "faces", identities=50, images=10, size=112, seed=0, workers=1, progress=False)
    data = [path.read_bytes() for path in sorted(root.rglob("*.jpg"))]
    return [Picture(str(n // IMAGES_EACH), f"{n + 1:08d}.jpg", data[n % len(data)]) for n in range(images)]


def rate(index: ImageIndex, rows: np.ndarray) -> float:
    """Microseconds of processor time an image."""
    began = time.process_time()
    for row in rows.tolist():
        index.read(row)
    return 1e6 * (time.process_time() - began) / len(rows)


def reading(images: int, folder: Path | None) -> None:
    """A line for each format: its own order and a shuffled one."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        root = Path(place)
        pictures = drawn(root, images)
        values = {f"{one.identity}/{one.name}".encode(): one.data for one in pictures[: min(images, 8000)]}
        shards = root / "tar"
        shards.mkdir()
        from facemetric import convert_data

        sets = {
            ".rec, .idx": write_rec(root / "train.rec", pictures),
            "WebDataset": write_webdataset(root / "a.tar", pictures),
            "Parquet, groups of 100": write_parquet(root / "a.parquet", pictures, group=100),
            "Parquet, groups of 1,000": write_parquet(root / "b.parquet", pictures, group=1000),
            "LMDB": write_lmdb(root / "data.mdb", values),
        }
        convert_data(sets[".rec, .idx"], out=shards)
        found = {name: read_index(path) for name, path in {"tar": shards, **sets}.items()}
        size = os.path.getsize(sets[".rec, .idx"]) / images
        print(f"{images:,} images of {size:,.0f} bytes; microseconds of processor time an image")
        times: dict[str, list[list[float]]] = {name: [] for name in found}
        for turn in range(3):
            for name, index in found.items():
                shuffled = np.random.default_rng(turn).permutation(len(index))[:2000]
                times[name].append([rate(index, index.reading_order()[:2000]), rate(index, shuffled)])
        print("| format | in its order | shuffled |\n|---|---|---|")
        for name, each in times.items():
            own, mixed = (statistics.median(column) for column in zip(*each, strict=True))
            print(f"| {name} | {own:,.0f} | {mixed:,.0f} |")


def main() -> None:
    """One of the two tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", type=int, default=0, help="images of each made-up set to index")
    parser.add_argument("--reading", type=int, default=0, help="images of each set to read")
    parser.add_argument("--only", default="", help="formats whose names hold this text")
    parser.add_argument(
        "--folder", type=Path, help="where the sets are written; a temporary folder without it"
    )
    given = parser.parse_args()
    if given.index:
        indices(given.index, given.folder, given.only)
    if given.reading:
        reading(given.reading, given.folder)


if __name__ == "__main__":
    main()
