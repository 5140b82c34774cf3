"""Steps a second of training from images that are loaded, against the same steps on random tensors of the device.

    python tools/bench_steps.py DATA --device cuda --workers 8          # resnet50 at 112 px, batch 256

The share is what the loader leaves of the network's own speed: 90 % or more is the aim. Turns interleave. With
`--augment-on device` the pictures are varied there; on a CPU that others use as well, `--cpu` takes the time of this
process alone (with --workers 0).
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator

import timm
import torch
from torch import Tensor

from facemetric.data.batches import ShuffledBatches
from facemetric.data.device_transforms import pixels_on
from facemetric.data.images import Preprocess, normalise
from facemetric.data.index import read_index
from facemetric.data.loader import load_batches
from facemetric.data.transforms import Augment, train_transform

WARM = 3  # steps before the clock starts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="+")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--augment-on", choices=("cpu", "device"), default="cpu")
    parser.add_argument("--cpu", action="store_true", help="CPU time of this process")
    options = parser.parse_args()
    clock = time.process_time if options.cpu else time.perf_counter
    device = torch.device(options.device)
    index, pre = read_index(options.data), Preprocess(size=(options.size, options.size))
    sampler = ShuffledBatches(index.identity, options.batch, 0)
    augment = Augment(color_jitter=0.2, grayscale=0.1, on_device=options.augment_on == "device")
    transform = train_transform(pre, augment)
    layout = torch.channels_last
    model = timm.create_model(options.arch, num_classes=1000).to(options.device).to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, nesterov=True)
    random = torch.randn(options.batch, 3, options.size, options.size, device=options.device)
    random_labels = torch.randint(1000, (options.batch,), device=options.device)

    def step(images: Tensor, labels: Tensor) -> None:
        with torch.autocast(options.device.split(":")[0], torch.bfloat16, enabled=options.device != "cpu"):
            loss = torch.nn.functional.cross_entropy(model(images.to(memory_format=layout)), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        needed = options.rounds * (options.steps + WARM)
        # Of a small set many epochs, as one: a large set does not start its reading processes every few steps.
        epochs = [sampler.epoch(epoch) for epoch in range(-(-needed // sampler.steps))]
        steps = list(itertools.chain.from_iterable(epochs))[:needed]
        pin = device.type == "cuda"
        for batch in load_batches(index, steps, transform, workers=options.workers, pin=pin):
            labels = (batch.labels % 1000).to(options.device, non_blocking=True)
            yield normalise(pixels_on(batch, pre, device), pre, device), labels

    def seconds(source: Iterator[tuple[Tensor, Tensor]] | None) -> float:
        for i in range(-WARM, options.steps):
            if i == 0:
                wait(options.device)
                began = clock()
            step(*(next(source) if source is not None else (random, random_labels)))
        wait(options.device)
        return (clock() - began) / options.steps

    source = batches()
    taken: dict[str, list[float]] = {"loaded": [], "random": []}
    for _ in range(options.rounds):
        taken["random"].append(seconds(None))
        taken["loaded"].append(seconds(source))
    loaded, floor = (statistics.median(taken[name]) for name in ("loaded", "random"))
    print(
        f"{options.arch} at {options.size} px, batch {options.batch}, varied on the {options.augment_on}: "
        f"{1 / loaded:.2f} steps/s loaded, {1 / floor:.2f} on random tensors, {floor / loaded:.1%}"
    )


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
