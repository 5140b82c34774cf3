"""An embedder over an index of images: embeddings in the index's order, in bounded memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from facemetric import distributed
from facemetric.data.batches import chunks
from facemetric.data.eval_transform import eval_transform
from facemetric.data.images import BadImage, decode, normalise
from facemetric.data.index import ImageIndex
from facemetric.data.loader import Batch, load_batches
from facemetric.errors import DataError, plural
from facemetric.evaluation.table import EmbeddingTable
from facemetric.machine import progress_bar
from facemetric.model.embedder import Embedder, in_pieces
from facemetric.model.onnx.embedder import OnnxEmbedder


class Embedded(NamedTuple):
    """The table of the images that could be read, and (row, reason) of those that could not."""

    table: EmbeddingTable
    bad: list[tuple[int, str]]


@torch.inference_mode()
def embed_index(
    embedder: Embedder | OnnxEmbedder,
    index: ImageIndex,
    *,
    batch_size: int = 256,
    workers: int = 0,
    flip: bool = False,
    progress: str = "",
) -> Embedded:
    """Unit embeddings of every readable image, float32, on the CPU.

    `flip` embeds the mirror image too and normalises the mean. `progress` names a progress bar ("" shows none).
    The embedder is in evaluation mode meanwhile, and as it was afterwards. Raises DataError where not one image can
    be read. Inside distributed.work_shared each process embeds some of the batches, and all get the table."""
    emb_ND = np.zeros((len(index), embedder.embedding_size), np.float32)
    read = np.zeros(len(index), bool)
    bad: list[tuple[int, str]] = []
    with evaluating(embedder):
        for batch in pixels_of(embedder, index, batch_size, workers, progress):
            bad += batch.bad
            if len(batch.rows):
                rows = batch.rows.numpy()
                emb_ND[rows] = embedder.embed_pixels(batch.images.numpy(), flip=flip)
                read[rows] = True
    kept = distributed.merged_rows(emb_ND, np.flatnonzero(read))
    if distributed.workers() > 1:
        bad = sorted(each for part in distributed.from_all(bad) for each in part)
    if not len(kept):
        raise DataError(none_readable(index, bad))
    identities = np.array([index.identities[i] for i in index.identity[kept]], dtype=np.str_)
    paths = np.array([index.name(int(i)) for i in kept], dtype=np.str_)
    groups = {name: column[kept] for name, column in index.groups().items()}
    return Embedded(EmbeddingTable(emb_ND[kept], identities, paths, groups, embedder.fingerprint), bad)


@contextlib.contextmanager
def evaluating(embedder: Embedder | OnnxEmbedder) -> Iterator[None]:
    """The embedder in evaluation mode meanwhile, and as it was afterwards."""
    if isinstance(embedder, OnnxEmbedder):
        yield
        return
    was_training = embedder.training
    embedder.eval()
    try:
        yield
    finally:
        embedder.train(was_training)


def none_readable(index: ImageIndex, bad: list[tuple[int, str]]) -> str:
    """What to say where not one image of the index can be read."""
    if not bad:
        return "no images came; needed one or more that can be read: name others"
    row, reason = bad[0]
    return (
        f"none of {plural(len(index), 'image')} can be read, the first is {index.name(row)} ({reason}); needed one or "
        "more: mend the files, or name others"
    )


@torch.inference_mode()
def mirror_scores(
    embedder: Embedder,
    index: ImageIndex,
    mean_D: np.ndarray,
    *,
    sample: int = 1000,
    batch_size: int = 256,
    workers: int = 0,
    seed: int = 0,
) -> np.ndarray:
    """Cosines of a sample of images and their mirror images, both less `mean_D`: what one photograph scores with
    itself as the network sees it. NaN where one cannot be read."""
    rows = np.sort(np.random.default_rng([seed, 13]).permutation(len(index))[:sample])
    mean = torch.from_numpy(mean_D)
    scores = np.full(len(rows), np.nan, np.float32)
    was_training = embedder.training
    embedder.eval()
    try:
        for at, images, _ in images_of(embedder, index.select(rows), batch_size, workers, ""):
            straight, turned = (in_pieces(embedder, seen).float().cpu() for seen in (images, images.flip(3)))
            scores[at] = functional.cosine_similarity(straight - mean, turned - mean).numpy()
    finally:
        embedder.train(was_training)
    return scores


def images_of(
    embedder: Embedder, index: ImageIndex, batch_size: int, workers: int, progress: str
) -> Iterator[tuple[np.ndarray, Tensor, list[tuple[int, str]]]]:
    """(rows, normalised images on the embedder's device, bad) in the order of the index."""
    for batch in pixels_of(embedder, index, batch_size, workers, progress):
        yield batch.rows.numpy(), normalise(batch.images, embedder.preprocess, embedder.device), batch.bad


def pixels_of(
    embedder: Embedder | OnnxEmbedder, index: ImageIndex, batch_size: int, workers: int, progress: str
) -> Iterator[Batch]:
    """Batches of the pixels that the network takes, in the order of the index; inside distributed.work_shared those
    of this process."""
    batches = distributed.own_share(chunks(len(index), batch_size))
    transform = eval_transform(embedder.preprocess)
    with progress_bar(total=len(index), desc=progress, unit="image", delay=1) as bar:
        for batch in load_batches(index, batches, transform, seed=0, epoch=0, workers=workers):
            yield batch
            bar.update(len(batch.rows) + len(batch.bad))


def usual_size(index: ImageIndex, images: int = 32) -> tuple[int, int]:
    """Median (width, height) in pixels of some images spread over the index; (0, 0) where none can be read."""
    sizes = []
    for row in np.linspace(0, len(index) - 1, min(images, len(index))).astype(int).tolist():
        try:
            sizes.append(decode(index.read(row)).size)
        except (BadImage, OSError):  # whoever embeds the images says so
            continue
    width, height = np.median(sizes, axis=0).astype(int).tolist() if sizes else (0, 0)
    return width, height
