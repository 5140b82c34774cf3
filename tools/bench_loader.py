"""What loading costs: this package's loader against torchvision's ImageFolder with a DataLoader, interleaved.

Both make batches of the same images with a random crop and flip (and colour jitter in the second row); the
peer reads a folder of the same files, as that is what it can read. Times are CPU time of all processes for an
image, medians over rounds, so a shared machine blurs them little; ratios are what counts.

    python tools/bench_loader.py DATA [--step]

With --step also the share of a training step of lcnet_050 at 112 px, batch 64, on the same cores.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import timm
import torch
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from facemetric.data.batches import ShuffledBatches
from facemetric.data.images import Preprocess, normalise
from facemetric.data.index import ImageIndex, read_index
from facemetric.data.loader import load_batches
from facemetric.data.transforms import Augment, train_transform

SIZE, BATCH = 112, 64


def cpu_seconds() -> float:
    """CPU time of this process and of its ended children."""
    parts = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in parts)


def cost(batches: Callable[[], Iterable[object]], images: int) -> float:
    """Milliseconds of CPU an image."""
    before = cpu_seconds()
    for _ in batches():
        pass
    return 1e3 * (cpu_seconds() - before) / images


def ours(index: ImageIndex, jitter: float, workers: int) -> Callable[[], Iterable[object]]:
    pre = Preprocess(size=(SIZE, SIZE))
    transform = train_transform(pre, Augment(color_jitter=jitter))
    steps = ShuffledBatches(index.identity, BATCH, 0).epoch(0)

    def batches() -> Iterable[object]:
        for batch in load_batches(index, steps, transform, workers=workers):
            yield normalise(batch.images, pre, "cpu")

    return batches


def peer(root: Path, jitter: float, workers: int) -> Callable[[], Iterable[object]]:
    steps = [transforms.RandomResizedCrop(SIZE, (0.8, 1.0), (0.9, 1.1)), transforms.RandomHorizontalFlip()]
    if jitter:
        steps.append(transforms.ColorJitter(jitter, jitter, jitter))
    steps += [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    data = datasets.ImageFolder(str(root), transforms.Compose(steps))
    return lambda: DataLoader(data, BATCH, shuffle=True, drop_last=True, num_workers=workers)


def unpack(index: ImageIndex, root: Path) -> None:
    for i in range(len(index)):
        path = root / index.identities[index.identity[i]].replace("/", "_") / index.name(i).rsplit("/", 1)[1]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(index.read(i))


def step_cost(rounds: int = 12) -> float:
    """Milliseconds of CPU an image of a training step, without loading."""
    model = timm.create_model("lcnet_050", num_classes=1000).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    images = torch.randn(BATCH, 3, SIZE, SIZE).to(memory_format=torch.channels_last)
    labels = torch.randint(0, 1000, (BATCH,))
    times = []
    for _ in range(rounds):
        before = time.process_time()
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(1e3 * (time.process_time() - before) / BATCH)
    return statistics.median(times)


def wall(index: ImageIndex, rounds: int, steps: int = 40) -> None:
    """Prints the wall time that the loader adds to a training step, the default augmentation on; turns interleave."""
    pre = Preprocess(size=(SIZE, SIZE))
    model = timm.create_model("lcnet_050", num_classes=1000).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
    sampler = ShuffledBatches(index.identity, BATCH, 0)
    transform = train_transform(pre, Augment(color_jitter=0.2, grayscale=0.1))

    def step(pixels: torch.Tensor, labels: torch.Tensor) -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(normalise(pixels, pre, "cpu")), labels).backward()
        optimizer.step()

    def seconds(workers: int | None, epoch: int) -> float:
        batches = load_batches(index, sampler.epoch(epoch), transform, epoch=epoch, workers=workers or 0)
        batch = next(batches)
        for i in range(-5, steps):
            if i == 0:
                began = time.perf_counter()
            if workers is not None:
                batch = next(batches)
            step(batch.images, batch.labels % 1000)
        took = (time.perf_counter() - began) / steps
        batches.close()  # type: ignore[attr-defined]
        return took

    ways: dict[str, int | None] = {"without loading": None, "in place": 0, "one worker": 1}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for epoch in range(rounds):
        for name, workers in ways.items():
            times[name].append(seconds(workers, epoch))
    floor = statistics.median(times["without loading"])
    for name, taken in times.items():
        each = statistics.median(taken)
        print(f"{name:<16} {BATCH / each:5.0f} images/s, {(each - floor) / floor:6.1%} of the step added")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", nargs="+")
    parser.add_argument("--images", type=int, default=3200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--step", action="store_true", help="also as a share of the CPU time of a step")
    parser.add_argument("--wall", action="store_true", help="only the wall time added to a training step")
    options = parser.parse_args()
    before = time.perf_counter()
    index = read_index(options.data)
    seconds = time.perf_counter() - before
    print(f"{index} read in {seconds:.2f} s, {index.nbytes / len(index):.0f} bytes an image")
    rows = np.random.default_rng(0).permutation(len(index))[: options.images]
    index = index.select(np.sort(rows))
    if options.wall:
        wall(index, options.rounds)
        return
    images = len(index) // BATCH * BATCH
    floor = step_cost() if options.step else 0.0
    with tempfile.TemporaryDirectory() as folder:
        unpack(index, Path(folder))
        print("workers jitter   ours   peer  CPU ms an image; ratio" + ("; of a step" if floor else ""))
        for workers in options.workers:
            for jitter in (0.0, 0.2):
                both = (ours(index, jitter, workers), peer(Path(folder), jitter, workers))
                times = [[cost(batches, images) for batches in both] for _ in range(options.rounds)]
                own, other = (statistics.median(column) for column in zip(*times, strict=True))
                share = f"  {own / floor:6.1%}" if floor else ""
                print(
                    f"{workers:7} {jitter:6} {own:6.3f} {other:6.3f}  {own / other:5.2f}{share}", flush=True
                )
    if floor:
        print(f"a step of lcnet_050 costs {floor:.2f} ms of CPU an image")


if __name__ == "__main__":
    main()
