"""The cache of frozen features: the backbone runs once over the images, stage two reads the matrix.

Shapes: V views, N images, F features.
"""

from __future__ import annotations

import hashlib
import json
import os
import tokenize
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from facemetric import distributed
from facemetric.data.batches import chunks
from facemetric.data.device_transforms import pixels_on
from facemetric.data.images import normalise
from facemetric.data.index import ImageIndex
from facemetric.data.loader import load_batches
from facemetric.data.transforms import Augment, Transform, eval_transform, train_transform
from facemetric.errors import DataError, writing
from facemetric.files import Lock, is_locked, sync, write_text_whole
from facemetric.machine import progress_bar
from facemetric.model.embedder import Embedder, in_pieces

# A record that is no JSON of ours, or a .npy whose header is none.
UNREADABLE = (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError, tokenize.TokenError)


class Features(NamedTuple):
    """float32 (V, N, F) mapped from disk; `valid` (N,) bool: images that could be read; `bad`: the others."""

    values: np.ndarray
    valid: np.ndarray
    bad: list[tuple[int, str]]
    reused: bool


def cached_features(
    embedder: Embedder,
    index: ImageIndex,
    cache: Path,
    *,
    views: int = 1,
    augment: Augment | None = None,
    seed: int = 0,
    workers: int = 0,
) -> Features:
    """The backbone's features of every image, from the cache where they are there.

    View 0 is the plain picture, each further one is augmented. The key of the cache names the backbone's
    weights, the images (names, sizes, times of change), the transforms and the seed; a file that is cut short
    is made again. Inside distributed.work_shared every process runs the backbone over some of the images, process 0
    writes, and all read."""
    key = cache_key(embedder, index, views=views, augment=augment, seed=seed)
    shape = (views, len(index), embedder.num_features)
    found = read_cache(cache, key, shape)
    if all(distributed.of_workers(found is not None)):
        assert found is not None
        return found
    if distributed.workers() > 1 and distributed.rank() > 0:
        fill(None, embedder, index, views=views, augment=augment, seed=seed, workers=workers)
        return after_the_writer(cache, key, shape)
    cache.mkdir(parents=True, exist_ok=True)
    remove_abandoned(cache)
    part = cache / f"{key}.{os.getpid()}.part"
    lock = Lock(part.with_suffix(".lock"))
    try:
        with writing(part):
            values = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
            claim_space(part)
        bad = fill(values, embedder, index, views=views, augment=augment, seed=seed, workers=workers)
        values.flush()
        del values
        record = json.dumps({"shape": shape, "bad": sorted(bad.items())})
        sync(part)
        os.replace(part, cache / f"{key}.npy")
        write_text_whole(cache / f"{key}.json", record, durable=True)
    finally:
        for path in (part, part.with_suffix(".lock")):
            path.unlink(missing_ok=True)
        lock.release()
    return after_the_writer(cache, key, shape)


def after_the_writer(cache: Path, key: str, shape: tuple[int, ...]) -> Features:
    """The features that process 0 has written. Raises DataError where this process does not see its folder."""
    if distributed.workers() > 1:
        distributed.barrier()
    found = read_cache(cache, key, shape)
    if found is None:
        raise DataError(
            f"process 0 cached features in {cache}, and they are not there for process {distributed.rank()}; name a "
            "--cache that all machines share"
        )
    return found._replace(reused=False)


def remove_abandoned(cache: Path) -> None:
    """Take away what processes that were killed left half made: it can be large."""
    for part in cache.glob("*.part"):
        lock = part.with_suffix(".lock")
        if not is_locked(lock):
            part.unlink(missing_ok=True)
            lock.unlink(missing_ok=True)


def claim_space(file: Path) -> None:
    """Give a sparse file its place on the disk. Raises OSError where the disk is full: writing to the mapped
    file would then kill the process instead."""
    if hasattr(os, "posix_fallocate"):
        with open(file, "r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, os.fstat(opened.fileno()).st_size)


def fill(
    values: np.ndarray | None,
    embedder: Embedder,
    index: ImageIndex,
    *,
    views: int,
    augment: Augment | None,
    seed: int,
    workers: int,
) -> dict[int, str]:
    """Run the backbone over every view of every image into `values`; returns the bad rows with their reasons.

    Of several processes each takes every so many batches, and the one that has `values` is sent the others'."""
    pre = embedder.preprocess
    bad: dict[int, str] = {}
    steps = chunks(len(index), 256)
    count, rank = distributed.workers(), distributed.rank()
    # The others' batches are empty here, as an augmentation depends on the number of its batch.
    own = [rows if count == 1 or step % count == rank else rows[:0] for step, rows in enumerate(steps)]
    embedder.eval()
    with progress_bar(total=views * len(index), desc="features", unit="image", delay=1) as bar:
        for view in range(views):
            plain = view == 0 or augment is None
            transform: Transform = eval_transform(pre) if plain else train_transform(pre, augment)  # type: ignore[arg-type]
            found: list[tuple[np.ndarray, np.ndarray]] = []
            batches = load_batches(index, own, transform, seed=seed, epoch=view, workers=workers)
            for step, batch in enumerate(batches):
                bad |= dict(batch.bad)
                if len(batch.rows):
                    images = normalise(pixels_on(batch, pre, embedder.device), pre, embedder.device)
                    features = in_pieces(embedder.features, images).float().cpu().numpy()
                    found.append((batch.rows.numpy(), features))
                if (step + 1) % count == 0 or step + 1 == len(own):
                    for part in distributed.of_workers(found):
                        for rows, features in part:
                            if values is not None:
                                values[view, rows] = features
                    found = []
                bar.update(len(steps[step]))
    return {row: reason for part in distributed.of_workers(bad) for row, reason in part.items()}


def read_cache(cache: Path, key: str, shape: tuple[int, ...]) -> Features | None:
    """The cached features of a key, or None where they are not there whole."""
    try:
        record = json.loads((cache / f"{key}.json").read_text())
        bad = [(int(row), str(reason)) for row, reason in record["bad"]]
        values = np.lib.format.open_memmap(cache / f"{key}.npy", mode="c")  # never a pickle
    except UNREADABLE:
        return None
    if values.shape != shape or values.dtype != np.float32 or any(not 0 <= row < shape[1] for row, _ in bad):
        return None
    valid = np.ones(shape[1], bool)
    valid[[row for row, _ in bad]] = False
    return Features(values, valid, bad, reused=True)


def cache_key(
    embedder: Embedder, index: ImageIndex, *, views: int, augment: Augment | None, seed: int
) -> str:
    """32 hex digits that change with whatever changes the features."""
    digest = hashlib.sha256()
    what = {
        "weights": state_hash(embedder.backbone),
        "arch": embedder.arch,
        "preprocess": embedder.preprocess.to_dict(),
        "images": index.state_key,
        "views": views,
        # A single, plain view depends neither on the augmentation nor on the seed.
        "augment": asdict(augment) if augment is not None and views > 1 else None,
        "seed": seed if views > 1 else 0,
        "torch": torch.__version__,
    }
    digest.update(json.dumps(what, sort_keys=True).encode())
    return digest.hexdigest()[:32]


def state_hash(module: nn.Module) -> str:
    """SHA-256 over the names and bytes of a module's parameters and buffers, hex."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
