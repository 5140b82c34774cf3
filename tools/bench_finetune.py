"""Speed of stage two: samples a second on cached features, and what the cache saves.

    python tools/bench_finetune.py                 # both tables; a few minutes on two cores
    python tools/bench_finetune.py --images 600    # a quick look

1. `--freeze backbone` on cached features (20,000 x 512, batches of 1,024): the real task of stage two, steps as
   the loop takes them, for each miner. Medians over rounds; the miners take turns.
2. The whole of `finetune --freeze backbone`, caching and validation included, against a loop that runs the frozen
   backbone in every step, over the same epochs of the same drawn faces.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import io
import statistics
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from facemetric.config import FinetuneConfig
from facemetric.data.batches import IdentityBatches
from facemetric.data.drawn.draw import draw_faces
from facemetric.data.images import Preprocess, normalise
from facemetric.data.index import ImageIndex, read_index
from facemetric.data.loader import load_batches
from facemetric.data.transforms import eval_transform
from facemetric.mining.miners import semihard
from facemetric.model.embedder import build_embedder
from facemetric.model.weights.save_load import load_embedder, save_weights
from facemetric.training.finetune import finetune
from facemetric.training.run.run import Run
from facemetric.training.split import Origin, Split
from facemetric.training.stage import check_training
from facemetric.training.step.optim import Amp, make_optimizer
from facemetric.training.tasks.feature_cache import Features
from facemetric.training.tasks.on_features import OnFeatures


class OnRandomFeatures(OnFeatures):
    """Stage two as it is, with random numbers for features."""

    def cached(self, index: ImageIndex, views: int) -> Features:
        """Random features in place of the backbone's."""
        rng = np.random.default_rng(0)
        centres = rng.normal(size=(len(index.identities), self.embedder.num_features))
        values = centres[index.identity] + 2 * rng.normal(size=(len(index), self.embedder.num_features))
        return Features(values[None].astype(np.float32), np.ones(len(index), bool), [], False)


def make_index(folder: Path, images: int, per_identity: int) -> ImageIndex:
    """An index of so many one-byte images: only its identities are used."""
    with tarfile.open(folder / "names.tar", "w") as tar:
        for i in range(images):
            member = tarfile.TarInfo(f"p{i // per_identity:05d}/{i:06d}.jpg")
            member.size = 1
            tar.addfile(member, io.BytesIO(b"x"))
    return read_index(folder / "names.tar")


def bench_features(folder: Path, images: int, batch_size: int, rounds: int) -> None:
    """Table 1."""
    index = make_index(folder, images, 20)
    embedder = build_embedder("resnet10t", preprocess=Preprocess(size=(32, 32)))
    tasks: dict[str, tuple[Any, Any, list[float]]] = {}
    for miner in ("all", "semihard", "hard"):
        config = FinetuneConfig(
            data=("x",), batch_size=batch_size, miner=miner, out=folder / miner, embedding_size=128,
            projection_init="pca", val_fraction=0.0,
        )  # fmt: skip
        run = Run(config.out, config_toml="", resume=False)
        split = Split(index, None, Origin("", ""))
        task = OnRandomFeatures(check_training(config), embedder, split, run, torch.device("cpu"))
        task.prepare()
        tasks[miner] = (task, make_optimizer(config, task.parts()), [])
    amp = Amp(torch.device("cpu"), "off")
    for epoch in range(rounds + 1):
        for task, optimizer, seconds in tasks.values():
            began, seen = time.perf_counter(), 0
            for batch in task.batches(epoch, 0):
                optimizer.zero_grad(set_to_none=True)
                task.step(batch, 0.0, amp.backward)
                optimizer.step()
                seen += len(batch[0])
            if epoch:  # the first is warm-up
                seconds.append((time.perf_counter() - began) / seen)
    print(f"cached features, {images:,} x {embedder.num_features} -> 128, batches of {batch_size}")
    print("miner      samples/s")
    for miner, (_, _, seconds) in tasks.items():
        print(f"{miner:<10} {1 / statistics.median(seconds):9,.0f}")


def run_backbone_each_step(data: Path, weights: Path, epochs: int, batch_size: int) -> float:
    """Seconds of the peer: the frozen backbone embeds every batch, the projection learns on it."""
    began = time.perf_counter()
    embedder, index = load_embedder(weights), read_index(data)
    projection = torch.nn.Linear(embedder.num_features, 128)
    optimizer = torch.optim.AdamW(projection.parameters(), 1e-3)
    sampler = IdentityBatches(index.identity, min(len(index.identities), batch_size // 4), 4, 0)
    for epoch in range(epochs):
        steps = sampler.epoch(epoch)
        for batch in load_batches(index, steps, eval_transform(embedder.preprocess), epoch=epoch, workers=1):
            with torch.inference_mode():
                features = embedder.features(normalise(batch.images, embedder.preprocess, "cpu"))
            emb = functional.normalize(projection(features.clone()), dim=1)
            optimizer.zero_grad()
            semihard(emb, batch.labels).loss.backward()
            optimizer.step()
    return time.perf_counter() - began


def bench_cache(folder: Path, images: int, epochs: int) -> None:
    """Table 2."""
    data = draw_faces(folder / "faces", identities=images // 10, images=10, size=112, workers=1)
    embedder = build_embedder("lcnet_050", preprocess=Preprocess(size=(112, 112)))
    save_weights(folder / "weights", embedder, provenance={}, metrics={})
    ours, peer = [], []
    for turn in range(3):
        began = time.perf_counter()
        finetune(
            data, weights=folder / "weights", epochs=epochs, batch_size=256, out=folder / f"run{turn}",
            cache=folder / f"cache{turn}", workers=1, device="cpu", projection_init="pca", embedding_size=128,
        )  # fmt: skip
        ours.append(time.perf_counter() - began)
        peer.append(run_backbone_each_step(data, folder / "weights", epochs, 256))
    print(f"the whole of stage two, {epochs} epochs of {images:,} images, lcnet_050 at 112 px")
    print(
        f"finetune --freeze backbone      {statistics.median(ours):7.1f} s (caching, validation and saving included)"
    )
    print(f"frozen backbone in every step   {statistics.median(peer):7.1f} s")
    print(f"ratio                           {statistics.median(peer) / statistics.median(ours):7.1f}")


def main() -> None:
    """Parse the options and print both tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--features", type=int, default=20_000)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--images", type=int, default=4_000)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bench_features(Path(name), options.features, options.batch_size, options.rounds)
        bench_cache(Path(name), options.images, options.epochs)


if __name__ == "__main__":
    main()
