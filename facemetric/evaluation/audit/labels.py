"""Labels that embeddings speak against: images that look like another identity's. (Identities that look like one
person: `people.py`.)

Embeddings are centred on the set's mean first. Cosines between different images then lie about as those of random
directions in a space of `dimensions` do, however few of its numbers an embedding really uses.

Shapes: N images, D embedding, C identities.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import beta

from facemetric.evaluation.table import unit_rows
from facemetric.machine import progress_bar
from facemetric.mining.tiles import product_tiles

LEAST_IMAGES = 3  # of an identity whose images are judged: of two that differ nobody knows which is wrong

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Judged(NamedTuple):
    """For each image (N,): `above`, the share of other identities that it is nearer to than to the rest of its own
    (NaN where its identity has fewer than three images); `own` and `best` cosine; `nearest`, the other identity."""

    above: Floats
    own: Floats
    best: Floats
    nearest: Ints


def centred(embeddings: npt.ArrayLike, mean_D: np.ndarray | None = None) -> npt.NDArray[np.float32]:
    """Unit rows (N, D) less their mean (or the mean of other unit rows), at unit length again."""
    emb_ND = unit_rows(embeddings)
    return unit_rows(emb_ND - (emb_ND.mean(0) if mean_D is None else mean_D) + 1e-12)


def centres(emb_ND: np.ndarray, identity_N: np.ndarray, identities: int) -> npt.NDArray[np.float32]:
    """Unit mean (C, D) of each identity's rows."""
    sums_CD = np.zeros((identities, emb_ND.shape[1]))
    np.add.at(sums_CD, identity_N, emb_ND)
    return unit_rows(sums_CD + 1e-12)


def dimensions(centre_CD: np.ndarray) -> float:
    """1 / mean squared cosine between different identities: of random directions, the dimension of their space."""
    count = len(centre_CD)
    gram_DD = centre_CD.astype(np.float64).T @ centre_CD  # the sum over all pairs without forming them
    square = (float(np.square(gram_DD).sum()) - count) / max(count * (count - 1), 1)
    return 1 / max(square, 1e-6)


def chance_score(share: float, dims: float) -> float:
    """The cosine that a share (0..1/2) of the pairs of random directions exceeds."""
    dims = max(dims, 1.5)
    return float(np.sqrt(1 - beta.ppf(2 * min(share, 0.5), (dims - 1) / 2, 0.5)))


def judge_images(emb_ND: np.ndarray, identity_N: np.ndarray) -> Judged:
    """How near each image is to its own identity without it, and to all others. emb (N, D) is centred."""
    count = int(identity_N.max()) + 1
    sums_CD = np.zeros((count, emb_ND.shape[1]))
    np.add.at(sums_CD, identity_N, emb_ND)
    centre_CD = unit_rows(sums_CD + 1e-12)
    own_N = np.empty(len(emb_ND))
    above_N, best_N, nearest_N = own_N.copy(), own_N.copy(), np.empty(len(emb_ND), np.int64)
    walk = product_tiles(torch.from_numpy(emb_ND), torch.from_numpy(centre_CD), budget_mib=8, whole_rows=True)
    with progress_bar(total=len(emb_ND), desc="judging labels", unit="image") as bar:
        for rows, _, product in walk:
            score_RC, emb_RD, identity_R = product.numpy(), emb_ND[rows], identity_N[rows]
            rest_RD = unit_rows(sums_CD[identity_R] - emb_RD + 1e-12)
            own_N[rows] = np.einsum("rd,rd->r", rest_RD, emb_RD)
            score_RC[np.arange(len(identity_R)), identity_R] = -np.inf
            nearest_N[rows] = score_RC.argmax(1)
            best_N[rows] = score_RC.max(1)
            above_N[rows] = (score_RC > own_N[rows, None]).sum(1) / max(count - 1, 1)
            bar.update(len(identity_R))
    above_N[np.bincount(identity_N)[identity_N] < LEAST_IMAGES] = np.nan
    return Judged(above_N, own_N, best_N, nearest_N)
