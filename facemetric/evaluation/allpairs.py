"""Verification over all pairs of N images, formed on tiles and never listed by index.

Shapes: N images, D embedding, R x C one tile.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from facemetric.errors import DataError
from facemetric.evaluation.curves import Scores, auc, check_counts, eer, roc, tar_at_far
from facemetric.evaluation.tally import ROOT, Tally
from facemetric.evaluation.verification import FARS, Verification, unit_rows
from facemetric.mining.tiles import product_tiles

KEEP = 1 << 23  # highest scores of each kind kept one by one: 32 to 64 MiB
CURVE_POINTS = 1000


def verify_all_pairs(
    embeddings: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    fars: Sequence[float] = FARS,
    keep: int = KEEP,
    budget_mib: float | None = None,
) -> Verification:
    """All N (N - 1) / 2 pairs of embeddings (N, D), same person where labels (N,) are equal.

    The score is the cosine similarity. The highest scores of each kind, `keep` to 2 x `keep`, are
    exact; below, thresholds lie on a grid of 2^-14, where counts are exact too: `Verification.exact_from`
    says where. `budget_mib` is the memory of a tile. Raises DataError where genuine or impostor pairs lack.
    """
    emb_ND, label_N = unit_rows(embeddings), np.asarray(labels)
    if label_N.shape != (len(emb_ND),):
        raise DataError(f"labels of shape {label_N.shape}; {len(emb_ND)} embeddings need ({len(emb_ND)},)")
    who_N, sizes = np.unique(label_N, return_inverse=True, return_counts=True)[1:]
    n_genuine = int((sizes * (sizes - 1) // 2).sum())
    n_impostor = len(who_N) * (len(who_N) - 1) // 2 - n_genuine
    check_counts(n_genuine, n_impostor)
    tallies = Tally(n_genuine, keep), Tally(n_impostor, keep)
    # Sorted by person, all but the tiles near the diagonal hold impostors only.
    order = np.argsort(who_N, kind="stable")
    emb_ND = emb_ND[order]
    emb_ND *= ROOT
    _tally_pairs(emb_ND, who_N[order], *tallies, budget_mib)
    genuine, impostor = (t.scores() for t in tallies)
    return summary(genuine, impostor, fars)


def summary(genuine: Scores, impostor: Scores, fars: Sequence[float]) -> Verification:
    """The record of two kinds of counted scores."""
    rate, threshold = eer(genuine, impostor)
    return Verification(
        genuine.total,
        impostor.total,
        auc(genuine, impostor),
        rate,
        threshold,
        tuple(tar_at_far(genuine, impostor, far) for far in fars),
        roc(genuine, impostor, CURVE_POINTS),
        exact_from=max(genuine.exact_from, impostor.exact_from),
    )


def _tally_pairs(
    emb_ND: npt.NDArray[np.float32],
    who_N: npt.NDArray,
    genuine: Tally,
    impostor: Tally,
    budget_mib: float | None,
) -> None:
    with tqdm(
        total=len(emb_ND) ** 2 // 2, unit="pair", unit_scale=True, delay=2, leave=False, disable=None
    ) as bar:
        for rows, cols, values in product_tiles(
            torch.from_numpy(emb_ND), budget_mib=budget_mib, triangle=True
        ):
            score = values.numpy()
            bar.update(score.size // 2 if rows == cols else score.size)
            if who_N[rows.stop - 1] < who_N[cols.start]:
                impostor.add(score)
                continue
            same = who_N[rows, None] == who_N[None, cols]
            other = ~same
            if rows == cols:
                same, other = np.triu(same, 1), np.triu(other, 1)
            genuine.add(score[same])
            impostor.add(score[other])
