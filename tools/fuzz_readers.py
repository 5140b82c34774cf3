"""Damaged and hostile files for every reader: only errors of facemetric's own may come out.

    python tools/fuzz_readers.py --cases 100000 --seed 0

Whole files of each kind are changed (bits and bytes flipped, parts cut out, doubled, moved or put in from another
file, numbers made huge, brackets nested a thousand deep) and read again. Right is: the reader gives something, or
raises one of `facemetric.errors` (BadImage for a picture); nothing is written outside the folder of the case;
the process stays within 2 GiB above what it had at the start (RLIMIT_AS), so a stated size cannot fill the memory.

The first 6,000 cases found nine faults, in the readers of merges, pairs, TOML, embeddings and the list of bad images
(tests/faults/test_readers.py names them); after these were mended 100,000 cases of seed 0 found none, in
11 minutes beside other work.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import resource
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from large_sets import Picture, write_lmdb, write_parquet, write_rec, write_webdataset
from PIL import Image

from facemetric.commands.listings import find_runs, runs_text
from facemetric.config.build import read_toml
from facemetric.config.recipe import read_tables
from facemetric.data.bad_images import BadImageLog
from facemetric.data.images import BadImage, Preprocess, decode
from facemetric.data.index import read_index
from facemetric.data.lists import read_identity_list, read_merges
from facemetric.data.pairs import read_pairs
from facemetric.errors import FacemetricError
from facemetric.evaluation.table import EmbeddingTable
from facemetric.evaluation.thresholds import stored_threshold
from facemetric.model.embedder import build_embedder
from facemetric.model.weights.folder import CONFIG, MODEL, read_config
from facemetric.model.weights.save_load import load_embedder, read_tensors, save_weights
from facemetric.training.run.checkpoint import load_checkpoint, save_checkpoint
from facemetric.training.run.folder import LOG, read_log
from facemetric.training.tasks.feature_cache import read_cache

GIB = 1 << 30
WORDS = [
    *(
        b"\0",
        b"\n",
        b",",
        b'"',
        b"\t",
        b" ",
        b"=",
        b"../",
        b"/",
        b"\xff\xfe",
        b"nan",
        b"-1",
        b"true",
        b"null",
        b"{}",
    ),
    *(
        b"99999999999999999999",
        b"1e999",
        b"[" * 2000,
        b'{"a":' * 2000,
        b"9" * 5000,
        b"\xef\xbb\xbf",
        b"A" * 140_000,
    ),
    *((1 << 63).to_bytes(8, "little"), (1 << 31).to_bytes(4, "big"), b"[]", b"{", b"}", b"''", b"0", b"\r"),
]


class Reader(NamedTuple):
    """A reader, the ending of its files, and a whole file of the kind."""

    read: Callable[[Path], object]
    ending: str
    whole: bytes


def mutate(data: bytes, chance: random.Random) -> bytes:
    """A damaged copy: one to four changes."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(data))
        end = min(len(data), at + chance.choice([1, 1, 2, 4, 16, 64, 512]))
        change = chance.randrange(8)
        if change == 0 and data:
            at = min(at, len(data) - 1)
            data = data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]
        elif change == 1:
            data = data[:at] + chance.randbytes(end - at) + data[end:]
        elif change == 2:
            data = data[:at] + data[end:]
        elif change == 3:
            data = data[:at] + data[at:end] * chance.choice([2, 2, 50]) + data[end:]
        elif change == 4:
            data = data[:at]
        elif change == 5:
            data = data[:at] + chance.choice(WORDS) + data[at:]
        elif change == 6:
            data = data[:at] + chance.choice(WORDS) + data[end:]
        else:
            place = chance.randint(0, len(data))
            data = data[:at] + data[place : place + end - at] + data[end:]
    return data


def picture(kind: str, **options: object) -> bytes:
    """A small picture of a kind of PIL's."""
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def tar_of(form: int) -> bytes:
    """A tar of three images, one of a long name."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name in ("anna/1.jpg", "bert/" + "long" * 30 + "/2.jpg", "bert/3.png"):
            info = tarfile.TarInfo(name)
            info.size = 5
            tar.addfile(info, io.BytesIO(b"image"))
    return out.getvalue()


def whole_of(write: Callable[[Path], object], name: str) -> bytes:
    """The bytes that `write` leaves in a file."""
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / name)
        return (Path(folder) / name).read_bytes()


def readers() -> dict[str, Reader]:
    """Every reader of a file that comes from outside."""
    torch.manual_seed(0)
    start = Path(tempfile.mkdtemp(prefix="fuzz-"))
    embedder = build_embedder("test_resnet", preprocess=Preprocess(size=(32, 32)), embedding_size=8)
    save_weights(start / "w", embedder, provenance={}, metrics={"val_eer": 0.1})
    config = json.loads((start / "w" / CONFIG).read_text())
    point: dict[str, Any] = {"wanted_far": 0.1} | dict.fromkeys(("threshold", "far", "tar"), 0.3)
    point |= {f"{name}_interval_95": [0.2, 0.4] for name in ("threshold", "far", "tar")}
    point |= dict.fromkeys(("genuine_pairs", "impostor_pairs", "images", "identities"), 100)
    point |= {"flip": False, "chosen_on": "x", "data_fingerprint": "y", "image_size": [32, 32]}
    config["facemetric"]["thresholds"] = {"0.1": point}
    text = json.dumps(config).encode()
    model = (start / "w" / MODEL).read_bytes()

    def config_beside(path: Path) -> object:
        folder = beside(path, CONFIG, MODEL, model)
        read_config(folder)
        stored_threshold(folder, 0.1)
        return load_embedder(folder)

    def tensors(path: Path) -> object:
        unhashed = {name: value for name, value in config.items() if name != "sha256"}
        folder = beside(path, MODEL, CONFIG, json.dumps(unhashed).encode())
        return read_tensors(folder, unhashed)

    def beside(path: Path, name: str, other: str, content: bytes) -> Path:
        (path.parent / other).write_bytes(content)
        os.replace(path, path.parent / name)
        return path.parent

    table = EmbeddingTable(np.eye(4, dtype=np.float32), np.array(list("aabb")), np.array(list("wxyz")))
    lfw = b"2\t1\nanna\t1\t2\nanna\t1\tbert\t2\nbert\t1\t2\nbert\t1\tcarl\t2\n"
    pairs = b"image1_path,image2_path,label,fold,age\na/1.jpg,a/2.jpg,1,0,old\na/1.jpg,b/1.jpg,0,1,young\n"
    images = [picture("JPEG") for _ in range(8)]
    log = b"".join(json.dumps({"event": "train", "step": n, "loss": 0.5}).encode() + b"\n" for n in range(5))
    line = {"event": "validation", "step": 5, "epoch": 1, "val_eer": 0.1, "val_tar_at_far_0.01": 0.3}
    seen = log + json.dumps(line).encode() + b"\n" + json.dumps(line).encode() + b"\n"
    state = {"weight": torch.arange(64.0), "step": 3}
    npy = whole_of(lambda path: np.save(path, np.zeros((1, 4, 8), np.float32)), "k.npy")
    found = {
        "csv": Reader(read_index, ".csv", b"path,identity,age\ncase.csv,anna,old\n./case.csv,bert,\n"),
        "identities": Reader(read_identity_list, ".txt", b"anna\n# no\nbert\n"),
        "merges": Reader(read_merges, ".csv", b'identity_a,identity_b,distance\nanna,bert,0.1\n"c,d",e,1\n'),
        "pairs csv": Reader(read_pairs, ".csv", pairs),
        "pairs lfw": Reader(read_pairs, ".txt", lfw),
        "pairs two lines": Reader(read_pairs, ".txt", b"a.jpg 1\nb.jpg 1\nc.jpg 0\nd.jpg 0\n"),
        "toml": Reader(read_toml, ".toml", b'epochs = 3\narch = "x"\ncrop = [0.1, 0.2]\n[a.b]\nc = 1\n'),
        "recipe": Reader(
            read_tables, ".toml", b'data = ["a/"]\n[pretrain]\nepochs = 3\n[finetune]\nfreeze = "none"\n'
        ),
        "cache record": Reader(
            lambda path: read_cache(beside(path, "k.json", "k.npy", npy), "k", (1, 4, 8)),
            ".json",
            b'{"shape": [1, 4, 8], "bad": [[2, "cut short"]]}',
        ),
        "cache values": Reader(
            lambda path: read_cache(beside(path, "k.npy", "k.json", b'{"bad": []}'), "k", (1, 4, 8)),
            ".npy",
            npy,
        ),
        "config.json": Reader(config_beside, ".json", text),
        "safetensors": Reader(tensors, ".safetensors", model),
        "embeddings": Reader(EmbeddingTable.load, ".npz", whole_of(table.save, "e.npz")),
        "checkpoint": Reader(
            lambda path: load_checkpoint(path, torch.device("cpu")),
            ".pt",
            whole_of(lambda path: save_checkpoint(path, state), "c.pt"),
        ),
        "log": Reader(read_log, ".jsonl", log),
        "run": Reader(
            lambda path: runs_text(find_runs(beside(path, LOG, "config.toml", b"epochs = 3\n")), path.parent),
            ".jsonl",
            seen,
        ),
        "bad images": Reader(
            lambda path: BadImageLog(path, 10, 1.0), ".csv", b'name,reason\na,cut\n"b,c",zero\n'
        ),
    }
    for protocol in (3, 4, 5):
        data = pickle.dumps((images, [True, False, True, False]), protocol=protocol)
        found[f"bin {protocol}"] = Reader(read_pairs, ".bin", data)
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        found[f"tar {form}"] = Reader(read_index, ".tar", tar_of(form))
    found |= large_sets(beside)
    for kind in ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF"):
        found[kind] = Reader(lambda path: decode(path.read_bytes()), ".jpg", picture(kind))
    return found


def large_sets(beside: Callable[[Path, str, str, bytes], Path]) -> dict[str, Reader]:
    """The formats of large sets; every image that an index finds is read."""
    pictures = [Picture(str(n % 3), f"{n:08d}.jpg", bytes([n]) * (500 * n)) for n in range(1, 8)]
    rec = whole_of(lambda path: write_rec(path, pictures), "a.rec")
    with tempfile.TemporaryDirectory() as folder:
        write_rec(Path(folder) / "a.rec", pictures)
        idx = (Path(folder) / "a.idx").read_bytes()
    values = {f"{picture.identity}/{picture.name}".encode(): picture.data for picture in pictures}
    table = [whole_of(lambda path: write_parquet(path, pictures, group=3), "a.parquet")]
    shards = [
        whole_of(partial(write_webdataset, images=pictures, label=label), "a.tar")
        for label in ("cls", "label")
    ]
    return {
        "rec": Reader(read_all, ".rec", rec),
        "rec with idx": Reader(
            lambda path: read_all(beside(path, "a.rec", "a.idx", idx) / "a.rec"), ".rec", rec
        ),
        "idx": Reader(lambda path: read_all(beside(path, "a.idx", "a.rec", rec) / "a.rec"), ".idx", idx),
        "webdataset cls": Reader(read_all, ".tar", shards[0]),
        "webdataset json": Reader(read_all, ".tar", shards[1]),
        "parquet": Reader(read_all, ".parquet", table[0]),
        "lmdb": Reader(read_all, ".mdb", whole_of(lambda path: write_lmdb(path, values), "data.mdb")),
    }


def read_all(path: Path) -> object:
    """The index of a set, and the bytes of every image, or the system's error of one that cannot be read."""
    index = read_index(path)
    for i in range(len(index)):
        with contextlib.suppress(OSError):
            index.read(i)
    return index


def run_case(reader: Reader, data: bytes, folder: Path) -> str:
    """Read damaged bytes in an empty folder: `read`, the name of our error, or `WRONG` with the traceback."""
    folder.mkdir()
    path = folder / f"case{reader.ending}"
    path.write_bytes(data)
    before = set(folder.parent.iterdir())
    try:
        reader.read(path)
        outcome = "read"
    except (FacemetricError, BadImage) as error:
        outcome = type(error).__name__
        if "\n" in str(error).strip() and not isinstance(error, BadImage):
            outcome = f"{outcome} of several lines"
    except Exception:
        outcome = f"WRONG {traceback.format_exc()}"
    if set(folder.parent.iterdir()) != before:
        outcome = f"WRONG wrote outside its folder: {set(folder.parent.iterdir()) - before}"
    for left in folder.iterdir():
        left.unlink()
    folder.rmdir()
    return outcome


def main() -> None:
    """Run the campaign; status 1 where anything came out that should not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="readers whose names hold this text")
    given = parser.parse_args()
    found = {name: reader for name, reader in readers().items() if given.only in name}
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 2 * GIB, resource.RLIM_INFINITY))
    work = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    counts: dict[str, Counter[str]] = {name: Counter() for name in found}
    wrong: dict[str, str] = {}
    began = time.monotonic()
    # Weights are built again in each case, and take a hundred times as long: they get a tenth.
    names = [name for name in found for _ in range(2 if name == "config.json" else 20)]
    chance = random.Random(given.seed)
    for case in range(given.cases):
        name = names[case % len(names)]
        data = mutate(found[name].whole, chance)
        outcome = run_case(found[name], data, work / "case")
        counts[name][outcome.split()[0]] += 1
        if outcome.startswith("WRONG"):
            key = outcome.strip().splitlines()[-1][:60] + name
            if key not in wrong:
                (work / f"wrong{len(wrong)}{found[name].ending}").write_bytes(data[:10_000_000])
                wrong[key] = outcome
                print(f"{name}, case {case}: {outcome}", flush=True)
    for name, count in counts.items():
        print(f"{name:16} {dict(count)}")
    print(f"{given.cases:,} cases, {time.monotonic() - began:.0f} s; {len(wrong)} kinds of wrong; {work}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
