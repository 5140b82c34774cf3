"""Verification over all pairs of N images, formed on tiles and never listed by index.

Shapes: N images, D embedding, R x C one tile, G genuine scores, I impostor scores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from facemetric.errors import DataError
from facemetric.evaluation.curves import auc, check_counts, eer, roc_thinned, tar_at_far
from facemetric.evaluation.verification import FARS, Verification, unit_rows
from facemetric.mining.tiles import product_tiles


def verify_all_pairs(
    embeddings: npt.ArrayLike, labels: npt.ArrayLike, *, fars: Sequence[float] = FARS
) -> Verification:
    """All N (N - 1) / 2 pairs of embeddings (N, D), same person where labels (N,) are equal.

    The score is the cosine similarity of the rows. Raises DataError where one of the kinds is missing.
    """
    emb_ND, label_N = unit_rows(embeddings), np.asarray(labels)
    if label_N.shape != (len(emb_ND),):
        raise DataError(f"labels of shape {label_N.shape}; {len(emb_ND)} embeddings need ({len(emb_ND)},)")
    who_N, sizes = np.unique(label_N, return_inverse=True, return_counts=True)[1:]
    order = np.argsort(who_N, kind="stable")
    n_genuine = int((sizes * (sizes - 1) // 2).sum())
    n_impostor = len(who_N) * (len(who_N) - 1) // 2 - n_genuine
    check_counts(n_genuine, n_impostor)
    genuine, impostor = _listed(emb_ND[order], who_N[order], n_genuine, n_impostor)
    rate, threshold = eer(genuine, impostor)
    return Verification(
        n_genuine,
        n_impostor,
        auc(genuine, impostor),
        rate,
        threshold,
        tuple(tar_at_far(genuine, impostor, far) for far in fars),
        roc_thinned(genuine, impostor),
    )


def _listed(
    emb_ND: npt.NDArray[np.float32], who_N: npt.NDArray[np.int64], n_genuine: int, n_impostor: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Every score, sorted; rows come sorted by person, so most tiles hold impostors only."""
    genuine, impostor = np.empty(n_genuine, np.float32), np.empty(n_impostor, np.float32)
    g = i = 0
    for rows, cols, values in product_tiles(torch.from_numpy(emb_ND), triangle=True):
        score = values.numpy()
        if who_N[rows.stop - 1] < who_N[cols.start]:
            impostor[i : i + score.size] = score.reshape(-1)
            i += score.size
            continue
        same = who_N[rows, None] == who_N[None, cols]
        other = ~same
        if rows == cols:
            same, other = np.triu(same, 1), np.triu(other, 1)
        for mask, out, at in ((same, genuine, g), (other, impostor, i)):
            found = score[mask]
            out[at : at + len(found)] = found
        g, i = g + int(same.sum()), i + int(other.sum())
    genuine.sort()
    impostor.sort()
    return genuine, impostor
