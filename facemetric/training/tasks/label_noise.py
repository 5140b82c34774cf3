"""The images that a head with several centres an identity found to be somebody else's, as a csv.

Images that are like no others of their identity gather at its lesser centres. Source: Deng et al. 2020, ECCV
(Sub-center ArcFace), section 3.3: what is farther than 75 degrees from the identity's dominant centre is noise.
"""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from facemetric import distributed
from facemetric.data.index import ImageIndex
from facemetric.distributed import say
from facemetric.errors import plural
from facemetric.evaluation.embed import embed_index
from facemetric.files import write_bytes_whole
from facemetric.model.heads import SubcentreArcFaceHead
from facemetric.model.sharded_head import ShardedHead

NOISE = "noisy_images.csv"
FARTHEST = 75.0  # degrees


def dominant_centres(cosine_NK: np.ndarray, label_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N,) (N,): the centre that most images of each image's identity are nearest to, and the image's cosine with it.

    Of two centres with as many images the first."""
    nearest_N = cosine_NK.argmax(1)
    counts_CK = np.zeros((int(label_N.max()) + 1, cosine_NK.shape[1]), np.int64)
    np.add.at(counts_CK, (label_N, nearest_N), 1)
    dominant_N = counts_CK.argmax(1)[label_N]
    return dominant_N, np.take_along_axis(cosine_NK, dominant_N[:, None], 1)[:, 0]


def list_noise(model: nn.Module, index: ImageIndex, folder: Path, workers: int) -> None:
    """Write NOISE into a run's folder where the model's head has several centres an identity, the worst image first.

    Columns: path, identity, cosine with the dominant centre, degrees, and whether another centre is nearer. This
    embeds the training images once: in process 0, or where the head is shared out each process those of its own
    identities."""
    head = getattr(model, "head", None)
    shard = head.shard if isinstance(head, ShardedHead) else None
    columns = head.columns if isinstance(head, ShardedHead) else head
    if not isinstance(columns, SubcentreArcFaceHead) or (shard is None and distributed.rank() > 0):
        return
    rows = np.arange(len(index))
    if shard is not None:
        rows = np.flatnonzero((index.identity >= shard.first) & (index.identity < shard.stop))
    table = embed_index(model.embedder, index.select(rows), workers=workers, progress="label noise").table  # type: ignore[arg-type]
    number = {name: i for i, name in enumerate(index.identities)}
    label_N = np.array([number[name] for name in table.identities.tolist()])
    cosine_NK = own_cosines(columns, table.embeddings, label_N - (shard.first if shard else 0))
    found = Cosines(table.paths, table.identities, label_N, cosine_NK)
    parts = [found] if shard is None else distributed.from_all(found)
    if distributed.rank() == 0:
        write_noise(Cosines(*map(np.concatenate, zip(*parts, strict=True))), folder)


class Cosines(NamedTuple):
    """Of N images: paths, identities by name and by number (N,), cosines with the K centres of their own (N, K)."""

    paths: np.ndarray
    identities: np.ndarray
    label_N: np.ndarray
    cosine_NK: np.ndarray


def own_cosines(head: SubcentreArcFaceHead, emb_ND: np.ndarray, column_N: np.ndarray) -> np.ndarray:
    """(N, K) cosines of embeddings (N, D) with the centres of the identities column_N (N,), in some thousands."""
    device = head.weight.device
    parts = [
        head.own_cosines(
            torch.from_numpy(emb_ND[part]).to(device), torch.from_numpy(column_N[part]).to(device)
        )
        for part in np.array_split(np.arange(len(column_N)), len(column_N) // 4096 + 1)
    ]
    return torch.cat(parts).cpu().numpy()


def write_noise(found: Cosines, folder: Path) -> None:
    """Write NOISE, and say how many images it has."""
    paths, identities, label_N, cosine_NK = found
    dominant_N, own_N = dominant_centres(cosine_NK, label_N)
    elsewhere_N = cosine_NK.argmax(1) != dominant_N
    noisy = np.flatnonzero(own_N < math.cos(math.radians(FARTHEST)))
    noisy = noisy[own_N[noisy].argsort(kind="stable")]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "identity", "cosine", "degrees", "nearer_elsewhere"])
    for i in noisy.tolist():
        degrees = math.degrees(math.acos(max(-1.0, min(1.0, float(own_N[i])))))
        path, identity = paths[i], identities[i]
        writer.writerow([path, identity, f"{own_N[i]:.4f}", f"{degrees:.1f}", int(elsewhere_N[i])])
    write_bytes_whole(folder / NOISE, text.getvalue().encode("utf-8", "backslashreplace"))
    say(
        f"{plural(len(noisy), 'image')} of {len(label_N):,} farther than {FARTHEST:.0f} degrees from their identity's "
        f"dominant centre, mislabelled perhaps: {folder / NOISE}"
    )
