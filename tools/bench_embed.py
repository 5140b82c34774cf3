"""embed of photographs: which part takes what, the network by torch, torch.compile and ONNX Runtime, memory, start.

    python tools/bench_embed.py CROPS.tar [--weights faces-112] [--photographs 10000] [--images 256] [--rounds 5]

`share`: photographs of 250 pixels are made of the crops (up to 300 different ones, repeated to the number asked for)
and taken through the command's own steps in one process: reading and decoding, finding faces, the network. `network`:
the network alone, the ways taken in turn, medians over rounds of CPU and wall time, and the largest difference from
torch; `--compile` adds torch.compile, whose first call takes minutes. `memory`: the peak with 2,000 and 20,000 small
pictures. `start`: CPU time of a process from its beginning to its first embedding. CPU time is what a busy machine
leaves comparable. Good: the network by ONNX Runtime takes at most half the time of torch; memory grows by the index
alone.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch
from measure_faces import crops_of, photograph, turned
from PIL import Image

from facemetric.config import EmbedConfig
from facemetric.faces.crops import faces_in, open_or_reason
from facemetric.faces.finder import face_finder
from facemetric.model.weights.opened import open_model

DIFFERENT = 300
START = """
import sys, time
from facemetric.model.weights.opened import open_model
network = open_model(sys.argv[1]).network("cpu", sys.argv[2])
network.embed([sys.argv[3]], faces="off")
print(time.process_time())
"""
LIGHT = """
import sys, time
from facemetric.model.onnx.fast_path import open_network
from facemetric.model.weights.folder import find_weights, read_config
folder = find_weights(sys.argv[1])
open_network(folder, read_config(folder)).embed([sys.argv[3]], faces="off")
print(time.process_time())
"""


def photographs_of(crops: Path, count: int) -> list[bytes]:
    """Photographs of 250 pixels with a face each, as JPEG files."""
    rng = np.random.default_rng(0)
    made = []
    for face in crops_of(crops.parent, crops.stem, count):
        place = turned(rng.uniform(-20, 20), rng.uniform(0.6, 1.4), rng.uniform(0.35, 0.65, 2) * 250)
        packed = io.BytesIO()
        photograph(face, place, rng, 250).save(packed, "JPEG", quality=92)
        made.append(packed.getvalue())
    return made


def bench_share(crops: Path, weights: str, count: int) -> None:
    """CPU time of each step, of `count` photographs in batches of 64."""
    different = min(count, DIFFERENT)
    files = photographs_of(crops, different)
    model = open_model(weights)
    networks = {name: model.network("cpu", name) for name in ("torch", "onnx")}
    finder = face_finder("photographs", pictures=model.pictures)
    assert finder is not None
    transform = networks["torch"].transform
    took = dict.fromkeys(("read and decode", "find faces", "network by torch", "network by onnx"), 0.0)
    rows = 0
    for first in range(0, count, 64):
        some = [files[i % different] for i in range(first, min(count, first + 64))]
        start = time.process_time()
        opened = [open_or_reason(file) for file in some]
        took["read and decode"] += time.process_time() - start
        start = time.process_time()
        found = faces_in(opened, finder.detector, finder.options)
        pixels = np.stack([transform.pixels(one.take().crop) for one in found if one.faces])
        took["find faces"] += time.process_time() - start
        for name, network in networks.items():
            start = time.process_time()
            network.embed_pixels(pixels)
            took[f"network by {name}"] += time.process_time() - start
        rows += len(pixels)
    whole = sum(took.values()) - took["network by torch"]
    print(
        f"share | {count} photographs of 250 px, {rows} faces, one core, {1e3 * whole / count:.1f} ms each by onnx"
    )
    for name, seconds in took.items():
        print(f"  {name:18} {1e3 * seconds / count:6.2f} ms, {100 * seconds / whole:5.1f} %")


def bench_network(weights: str, images: int, rounds: int, batch: int, compile_too: bool) -> None:
    """The network alone, its ways in turn."""
    model = open_model(weights)
    embedder = model.load("cpu")
    pixels = (
        np.random.default_rng(0).integers(0, 256, (images, *embedder.preprocess.size, 3)).astype(np.uint8)
    )
    fast = model.network("cpu", "onnx")
    ways: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "torch eager": embedder.embed_pixels,
        "ONNX Runtime": fast.embed_pixels,
    }
    if compile_too:
        compiled = model.load("cpu")
        compiled.backbone = torch.compile(compiled.backbone)  # type: ignore[assignment]
        ways["torch.compile"] = compiled.embed_pixels
    cpu: dict[str, list[float]] = {name: [] for name in ways}
    wall: dict[str, list[float]] = {name: [] for name in ways}
    wanted = embedder.embed_pixels(pixels)
    for name in list(ways):
        try:
            apart = np.abs(ways[name](pixels[:batch]) - wanted[:batch]).max()
            print(f"  {name}: differs from torch by {apart:.2g} at most")
        except Exception as error:
            print(f"  {name}: does not run here ({str(error).strip().splitlines()[0][:80]})")
            del ways[name]
    for _ in range(rounds):
        for name, embed in ways.items():
            start, began = time.process_time(), time.perf_counter()
            for at in range(0, images, batch):
                embed(pixels[at : at + batch])
            cpu[name].append(time.process_time() - start)
            wall[name].append(time.perf_counter() - began)
    base = statistics.median(cpu["torch eager"])
    threads = torch.get_num_threads()
    print(
        f"network | {model.name}, {images} images in batches of {batch}, {threads} thread(s), {rounds} rounds in turn"
    )
    for name in ways:
        middle = statistics.median(cpu[name])
        ratios = [a / b for a, b in zip(cpu["torch eager"], cpu[name], strict=True)]
        print(
            f"  {name:14} {1e3 * middle / images:5.2f} ms CPU an image, {images / middle:5.0f} images a CPU second, "
            f"{images / statistics.median(wall[name]):5.0f} a second; {base / middle:.2f} times torch eager "
            f"({min(ratios):.2f}..{max(ratios):.2f})"
        )


def peak_of(line: list[str]) -> tuple[float, float]:
    """(MiB at its peak, seconds of CPU) of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = (
        "import sys\nfrom facemetric.cli import main\nfrom facemetric.machine import MIB, resident_peak\n"
        "try: main(sys.argv[1:])\n"
        "finally: print('PEAK', resident_peak() / MIB)"
    )
    done = subprocess.run([sys.executable, "-c", code, *line], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return float(done.stdout.rpartition("PEAK")[2]), cpu


def bench_memory(weights: str, counts: tuple[int, ...]) -> None:
    """The command's peak with so many small pictures."""
    with tempfile.TemporaryDirectory() as root:
        for count in counts:
            folder = Path(root) / str(count)
            rng = np.random.default_rng(0)
            for i in range(count):
                place = folder / f"{i // 100:05}" / f"{i:07}.png"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(place)
            line = [
                "embed",
                str(folder),
                "--weights",
                weights,
                "--faces",
                "off",
                "--workers",
                "0",
                "--runtime",
                "onnx",
            ]
            mib, cpu = peak_of([*line, "--out", f"{root}/{count}.parquet", "--device", "cpu"])
            size = os.path.getsize(f"{root}/{count}.parquet") / 1e6
            print(
                f"memory | {count} pictures of 16 px: peak {mib:.0f} MiB, {cpu:.1f} s CPU, table of {size:.1f} MB"
            )


def bench_start(crops: Path, weights: str, rounds: int) -> None:
    """CPU time from the start of Python to the first embedding of a crop."""
    with tempfile.TemporaryDirectory() as root:
        picture = Path(root) / "crop.png"
        crops_of(crops.parent, crops.stem, 1)[0].save(picture)
        open_model(weights).network("cpu", "onnx")  # its file is there
        ways = {"torch": (START, "torch"), "ONNX Runtime, without torch": (LIGHT, "onnx")}
        took: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, (code, runtime) in ways.items():
                line = [sys.executable, "-c", code, weights, runtime, str(picture)]
                took[name].append(
                    float(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
                )
        for name, seconds in took.items():
            print(f"start | {name}: {statistics.median(seconds):.2f} s CPU to the first embedding")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("crops", type=Path)
    parser.add_argument("--weights", default="faces-112")
    parser.add_argument("--photographs", type=int, default=10_000)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch", type=int, default=EmbedConfig().batch_size)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--only", nargs="*", default=["network", "start", "memory", "share"])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    for name in args.only:
        if name == "network":
            bench_network(args.weights, args.images, args.rounds, args.batch, args.compile)
        elif name == "start":
            bench_start(args.crops, args.weights, args.rounds)
        elif name == "memory":
            bench_memory(args.weights, (2_000, 20_000))
        else:
            bench_share(args.crops, args.weights, args.photographs)


if __name__ == "__main__":
    main()
