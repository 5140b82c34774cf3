"""Nearest neighbours by cosine similarity: kNN accuracy, recall@k, R-precision, MAP@R; on tiles.

Shapes: Q query images, N gallery images, D embedding, K neighbours, R x N one tile of whole rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from facemetric.errors import DataError
from facemetric.evaluation.nearest import Ints, check_k
from facemetric.evaluation.verification import unit_rows
from facemetric.mining.tiles import product_tiles

BUDGET_MIB = 8.0  # rows x all N columns of float32: at N = 100,000 still 20 rows a product


class Queries(NamedTuple):
    """Each query by itself: `rows` (Q,) among the images or probes, its `nearest` row (Q,) of the gallery,
    the `score` (Q,) of that one; figures by their name in `Retrieval.to_dict`, float64 (Q,), whose mean is
    the figure.
    """

    rows: Ints
    nearest: Ints
    score: npt.NDArray[np.float32]
    figures: dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Retrieval:
    """Shares 0..1 over the queries that have someone to find; `left_out` queries have nobody.

    `knn`: share of queries whose person wins the vote of the k nearest (equal votes: higher sum of scores).
    `recall`: share with one of their own among the k nearest. `r_precision`: share of a query's own among its
    R nearest, R being their number. `map_at_r`: mean of precision(i) over the i <= R that hit, divided by R.
    """

    knn: dict[int, float]
    recall: dict[int, float]
    r_precision: float
    map_at_r: float
    queries: int
    left_out: int
    each: Queries = field(compare=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under plain names."""
        return {
            "queries": self.queries,
            "queries_left_out": self.left_out,
            **{f"knn_accuracy_{k}": v for k, v in self.knn.items()},
            **{f"recall_at_{k}": v for k, v in self.recall.items()},
            "r_precision": self.r_precision,
            "map_at_r": self.map_at_r,
        }


def _first_of_rows(row: Ints, score: npt.NDArray[np.float32], col: Ints, k: int) -> Ints:
    """Places of the k best entries of each row, row by row: higher scores first, then lower columns."""
    order = np.lexsort((col, -score, row))
    place = np.arange(len(row)) - np.searchsorted(row[order], row[order])
    return order[place < k]


def leave_one_out(
    embeddings: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    knn: Sequence[int] = (1, 5),
    recall: Sequence[int] = (1, 5, 10),
) -> Retrieval:
    """Every image of embeddings (N, D) looks for its person, labels (N,), among all others.

    Images of persons with a single image are no queries (they are counted) but stay in the gallery.
    Sources: Musgrave et al. 2020, arXiv:2003.08505, for R-precision and MAP@R.
    """
    emb_ND, who_N = unit_rows(embeddings), _numbered(labels, len(np.asarray(embeddings)))
    query = np.flatnonzero(np.bincount(who_N)[who_N] > 1)
    images = _Images(emb_ND, who_N)
    return _retrieve(images, images, query, knn, recall, alone=True)


def gallery_probe(
    gallery: npt.ArrayLike,
    gallery_labels: npt.ArrayLike,
    probe: npt.ArrayLike,
    probe_labels: npt.ArrayLike,
    *,
    knn: Sequence[int] = (1, 5),
    recall: Sequence[int] = (1, 5, 10),
) -> Retrieval:
    """Every probe (Q, D) looks for its person in the gallery (N, D); where it is not there it is left out."""
    gallery_ND, probe_QD = unit_rows(gallery), unit_rows(probe)
    both = np.concatenate([np.asarray(gallery_labels), np.asarray(probe_labels)])
    who = _numbered(both, len(gallery_ND) + len(probe_QD))
    who_N, who_Q = who[: len(gallery_ND)], who[len(gallery_ND) :]
    gallery_images, probe_images = _Images(gallery_ND, who_N), _Images(probe_QD, who_Q)
    known = np.flatnonzero(np.isin(who_Q, who_N))
    return _retrieve(probe_images, gallery_images, known, knn, recall, alone=False)


def _numbered(labels: npt.ArrayLike, n: int) -> Ints:
    label_N = np.asarray(labels)
    if label_N.shape != (n,):
        raise DataError(f"labels of shape {label_N.shape}; {n} embeddings need ({n},)")
    return np.unique(label_N, return_inverse=True)[1].astype(np.int64)


def _score_rows(
    query_QD: npt.NDArray, gallery_ND: npt.NDArray
) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
    walk = product_tiles(
        torch.from_numpy(query_QD), torch.from_numpy(gallery_ND), budget_mib=BUDGET_MIB, whole_rows=True
    )
    for rows, _, values in walk:
        yield rows, values.numpy()


def _best(score_RN: npt.NDArray[np.float32], k: int) -> tuple[Ints, npt.NDArray[np.float32]]:
    """Columns (R, k) and scores (R, k) of the k highest in each row, ties by the lower column."""
    height = len(score_RN)
    if k == 1:
        best = score_RN.argmax(1)[:, None]
        return best, np.take_along_axis(score_RN, best, 1)
    row, col = np.divmod(np.flatnonzero(score_RN >= _bound(score_RN, k)), score_RN.shape[1])
    score = score_RN[row, col]
    keep = _first_of_rows(row, score, col, k)
    return col[keep].reshape(height, k), score[keep].reshape(height, k)


def _bound(score_RN: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.float32]:
    """A value (R, 1) that at least k scores of the row reach, and few more: the k-th best of group maxima.

    The last columns, which fill no group, are left out of it: the bound holds all the same.
    """
    n = score_RN.shape[1]
    groups = max(256, 8 * k)
    if 2 * groups > n:
        return np.partition(score_RN, n - k, axis=1)[:, n - k : n - k + 1]
    depth = n // groups
    best_RG = score_RN[:, : depth * groups].reshape(-1, depth, groups).max(1)
    return np.partition(best_RG, groups - k, axis=1)[:, groups - k : groups - k + 1]


class _Images(NamedTuple):
    emb_ND: npt.NDArray[np.float32]
    who_N: Ints


def _retrieve(
    probes: _Images,
    gallery: _Images,
    rows_Q: Ints,
    knn: Sequence[int],
    recall: Sequence[int],
    *,
    alone: bool,
) -> Retrieval:
    """The probes of `rows_Q` look in the gallery. `alone`: both are the same images, and none finds itself."""
    query_QD, who_Q = probes.emb_ND[rows_Q], probes.who_N[rows_Q]
    who_N = gallery.who_N
    n_others = len(who_N) - alone
    if not len(who_Q):
        raise DataError(
            "no image has another of its person to find; kNN needs persons with two images or more"
            if alone
            else f"none of {len(probes.who_N)} probes is of a person in the gallery; do their identities have one name?"
        )
    ks = [k for k in (*knn, *recall) if k <= n_others]
    check_k([*knn[:1], *(k for k in (*knn, *recall) if k < 1)], n_others)
    total_Q = np.bincount(who_N, minlength=who_Q.max() + 1)[who_Q] - alone
    n = len(who_Q)
    votes = {k: np.empty(n) for k in knn if k <= n_others}
    hits = {k: np.empty(n) for k in recall if k <= n_others}
    precision_Q, mean_precision_Q = np.empty(n), np.empty(n)
    nearest_Q, score_Q = np.empty(n, np.int64), np.empty(n, np.float32)
    for rows, score_RN in _score_rows(query_QD, gallery.emb_ND):
        if alone:
            score_RN[np.arange(len(score_RN)), rows_Q[rows]] = -np.inf
        total_R = total_Q[rows]
        cols, score = _best(score_RN, max(*ks, int(total_R.max())))
        nearest_Q[rows], score_Q[rows] = cols[:, 0], score[:, 0]
        who_RK = who_N[cols]
        right = who_RK == who_Q[rows, None]
        for k in votes:
            votes[k][rows] = _vote(who_RK[:, :k], score[:, :k]) == who_Q[rows]
        for k in hits:
            hits[k][rows] = right[:, :k].any(1)
        ranks = np.arange(1, right.shape[1] + 1)
        counted = right & (ranks <= total_R[:, None])
        precision_Q[rows] = counted.sum(1) / total_R
        mean_precision_Q[rows] = (counted * counted.cumsum(1) / ranks).sum(1) / total_R
    figures = {f"knn_accuracy_{k}": v for k, v in votes.items()}
    figures |= {f"recall_at_{k}": v for k, v in hits.items()}
    figures |= {"r_precision": precision_Q, "map_at_r": mean_precision_Q}
    return Retrieval(
        {k: float(v.mean()) for k, v in votes.items()},
        {k: float(v.mean()) for k, v in hits.items()},
        float(precision_Q.mean()),
        float(mean_precision_Q.mean()),
        n,
        len(probes.who_N) - n,
        Queries(rows_Q, nearest_Q, score_Q, figures),
    )


def _vote(who_RK: Ints, score_RK: npt.NDArray[np.float32]) -> Ints:
    """Winner (R,) of each row: most votes, then the higher sum of scores, then the nearer first vote."""
    k = who_RK.shape[1]
    if k == 1:
        return who_RK[:, 0]
    agree_RKK = who_RK[:, :, None] == who_RK[:, None, :]
    votes_RK = agree_RKK.sum(2)
    sums_RK = (agree_RKK * score_RK[:, None, :].astype(np.float64)).sum(2)
    sums_RK[votes_RK < votes_RK.max(1, keepdims=True)] = -np.inf
    return who_RK[np.arange(len(who_RK)), sums_RK.argmax(1)]
