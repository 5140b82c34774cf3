"""Writes small and large sets in the formats that other programs write, for tests, the fuzzer and the benchmarks.

Each writer takes images as (identity, name, bytes) in their order. The files are those of mxnet's recordio, of
webdataset's ShardWriter, of Hugging Face's datasets and of py-lmdb: tests/data/readers/ compares
with webdataset and lmdb where they are installed.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

MAGIC = struct.pack("<I", 0xCED7230A)
PAGE = 4096


class Picture(NamedTuple):
    """An image of a set: whose, its file's name, its bytes."""

    identity: str
    name: str
    data: bytes


def framed(content: bytes) -> bytes:
    """A record of RecordIO: in parts where the content holds the magic number at a multiple of four bytes."""
    cuts = [at for at in range(0, len(content) - 3, 4) if content[at : at + 4] == MAGIC]
    parts = [content[a:b] for a, b in zip([0, *(at + 4 for at in cuts)], [*cuts, len(content)], strict=True)]
    kinds = [0] if len(parts) == 1 else [1, *([2] * (len(parts) - 2)), 3]
    return b"".join(
        MAGIC + struct.pack("<I", kind << 29 | len(part)) + part + bytes(-len(part) % 4)
        for kind, part in zip(kinds, parts, strict=True)
    )


def header(key: int, *labels: float) -> bytes:
    """MXNet's IRHeader: of one label, or of several behind it."""
    if len(labels) == 1:
        return struct.pack("<IfQQ", 0, labels[0], key, 0)
    return struct.pack(f"<IfQQ{len(labels)}f", len(labels), 0.0, key, 0, *labels)


def write_rec(
    path: Path, images: Sequence[Picture], *, ranges: bool = True, idx: bool = True, boxes: bool = False
) -> Path:
    """InsightFace's train.rec and train.idx. With `ranges` record 0 and those behind the images hold keys; with `boxes`
    each image has further labels."""
    records: list[bytes] = []
    if ranges:
        people = sorted({int(image.identity) for image in images})
        keys = {
            who: [n + 1 for n, image in enumerate(images) if int(image.identity) == who] for who in people
        }
        records.append(header(0, len(images) + 1, len(images) + 1 + len(people)))
        end = [header(len(images) + 1 + n, keys[who][0], keys[who][-1] + 1) for n, who in enumerate(people)]
    for image in images:
        label = (float(image.identity), 1.0, 2.0) if boxes else (float(image.identity),)
        records.append(header(len(records), *label) + image.data)
    records += end if ranges else []
    at, lines = 0, []
    with open(path, "wb") as file:
        for key, record in enumerate(records):
            lines.append(f"{key}\t{at}\n")
            at += file.write(framed(record))
    if idx:
        path.with_suffix(".idx").write_text("".join(lines))
    return path


def write_webdataset(path: Path, images: Iterable[Picture], *, label: str = "cls") -> Path:
    """A shard: the images as `name`, and beside each a .cls, or a .json with `label`."""
    with tarfile.open(path, "w") as tar:
        for image in images:
            key = image.name.rpartition("/")[0] + "/" * ("/" in image.name)
            key += image.name.rpartition("/")[2].partition(".")[0]
            text = image.identity if label == "cls" else json.dumps({label: image.identity, "width": 3})
            ending = "cls" if label == "cls" else "json"
            for name, data in ((f"{key}.{ending}", text.encode()), (image.name, image.data)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def write_parquet(
    path: Path, images: Sequence[Picture], *, group: int = 100, groups: dict[str, list[Any]] | None = None
) -> Path:
    """A table as datasets writes it: images with their paths, and a ClassLabel whose names are in the metadata."""
    import pyarrow as pa
    from pyarrow import parquet

    people = sorted({image.identity for image in images})
    features = {
        "image": {"_type": "Image"},
        "label": {"names": people, "_type": "ClassLabel"},
    }
    pictures = [{"bytes": image.data, "path": image.name.rpartition("/")[2]} for image in images]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    labels = pa.array([people.index(image.identity) for image in images], pa.int64())
    table = pa.table({"image": pa.array(pictures, kind), "label": labels, **(groups or {})})
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    parquet.write_table(table.replace_schema_metadata(metadata), path, row_group_size=group)
    return path


def write_lmdb(path: Path, values: dict[bytes, bytes]) -> Path:
    """A database, `data.mdb`, of leaves below one branch; values of over 1,000 bytes have pages of their own."""
    pages: list[bytes] = [b"", b""]  # the two that say where the root is
    leaves: list[tuple[bytes, int]] = []
    nodes: list[bytes] = []
    first = b""

    def page_of(kind: int, parts: list[bytes]) -> bytes:
        places, upper, body = [], PAGE, b""
        for part in parts:
            upper -= len(part)
            places.append(upper)
            body = part + body
        lower = 16 + 2 * len(parts)
        head = struct.pack(f"<QHHHH{len(parts)}H", len(pages), 0, kind, lower, upper, *places)
        return head + bytes(upper - lower) + body

    def flush() -> None:
        leaves.append((first, len(pages)))
        pages.append(page_of(2, nodes))
        nodes.clear()

    for key, value in sorted(values.items()):
        stored, flags = value, 0
        if len(value) > 1000:
            stored, flags = struct.pack("<Q", len(pages)), 1
            count = -(-(16 + len(value)) // PAGE)
            data = struct.pack("<QHHI", len(pages), 0, 4, count) + value
            data += bytes(count * PAGE - len(data))
            pages.extend(data[n : n + PAGE] for n in range(0, len(data), PAGE))
        size = len(value)
        node = struct.pack("<HHHH", size & 0xFFFF, size >> 16, flags, len(key)) + key + stored
        node += bytes(len(node) % 2)
        if nodes and 16 + sum(len(part) + 2 for part in [*nodes, node]) > PAGE:
            flush()
        if not nodes:
            first = key
        nodes.append(node)
    if nodes:
        flush()
    root = leaves[0][1] if leaves else (1 << 64) - 1
    if len(leaves) > 1:
        branch = [
            struct.pack("<HHHH", page & 0xFFFF, page >> 16 & 0xFFFF, page >> 32, len(key))
            + key
            + bytes(len(key) % 2)
            for key, page in leaves
        ]
        root = len(pages)
        pages.append(page_of(1, branch))
        assert len(pages[-1]) == PAGE, "one branch holds about a hundred leaves"
    free = struct.pack("<IHHQQQQQ", PAGE, 0, 0, 0, 0, 0, 0, (1 << 64) - 1)
    main = struct.pack("<IHHQQQQQ", 0, 0, 1 + (len(leaves) > 1), 0, len(leaves), 0, len(values), root)
    for number in range(2):
        meta = struct.pack("<QHHHH", number, 0, 8, 0, 0) + struct.pack("<IIQQ", 0xBEEFC0DE, 1, 0, 1 << 30)
        meta += free + main + struct.pack("<QQ", len(pages) - 1, number)
        pages[number] = meta + bytes(PAGE - len(meta))
    path.write_bytes(b"".join(pages))
    return path
