"""Nearest neighbours by cosine similarity: kNN accuracy, recall@k, R-precision, MAP@R; on tiles.

Shapes: Q query images, N gallery images, D embedding, K neighbours, R x N one tile of whole rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from facemetric.errors import ConfigError, DataError
from facemetric.evaluation.figures import Figure, Heading
from facemetric.evaluation.intervals.records import Interval
from facemetric.evaluation.table import unit_rows
from facemetric.mining.tiles import in_threads, product_tiles

Ints = npt.NDArray[np.int64]
BUDGET_MIB = 8.0  # the tile of each thread
LEAST_A_THREAD = 256  # queries; a product of fewer is shared by the threads itself
MOST_CELLS = 1 << 21  # queries x neighbours that are looked at together
EQUAL = 1e-6  # 1 - cosine of two embeddings of one image
MOST_COPIES = 8  # of one image in a gallery
MOST_IN_A_GROUP = 16  # gallery rows of which only the best is looked at first
NOBODY = np.iinfo(np.int64).max  # a key after all others
LOW = (1 << 32) - 1  # where a key holds the row


class Neighbours(NamedTuple):
    """The K best of the gallery for each query, best first: `rows` int64 (Q, K), `score` float32 (Q, K)."""

    rows: Ints
    score: npt.NDArray[np.float32]


def nearest(queries: npt.ArrayLike, gallery: npt.ArrayLike, k: int) -> Neighbours:
    """The k most similar gallery rows (N, D) of each query (Q, D); equal scores: the lower row first."""
    query_QD, gallery_ND = unit_rows(queries), unit_rows(gallery)
    check_k([k], len(gallery_ND))
    return _nearest(query_QD, gallery_ND, k)


def _nearest(query_QD: npt.NDArray[np.float32], gallery_ND: npt.NDArray[np.float32], k: int) -> Neighbours:
    """`nearest` of unit rows."""
    best_QK = np.full((len(query_QD), k), NOBODY)
    parts = min(torch.get_num_threads(), -(-len(query_QD) // LEAST_A_THREAD))
    ends = [len(query_QD) * part // parts for part in range(parts + 1)]
    walks = [
        partial(_walk, query_QD[start:end], gallery_ND, best_QK[start:end]) for start, end in pairwise(ends)
    ]
    if parts == 1:
        walks[0]()
    else:
        in_threads(walks)
    return Neighbours(best_QK & LOW, _scores(best_QK).clip(-1, 1))  # rounded cosines pass 1


def _walk(query_QD: npt.NDArray[np.float32], gallery_ND: npt.NDArray[np.float32], best_QK: Ints) -> None:
    """Fill the keys of the best (Q, K). Square tiles: a product of few rows with all columns takes a third longer.

    The gallery goes down, so that the best of a group of its rows is found for all queries in the order of memory.
    """
    for rows, cols, values in product_tiles(
        torch.from_numpy(gallery_ND), torch.from_numpy(query_QD), budget_mib=BUDGET_MIB
    ):
        _merge(best_QK[cols], values.numpy(), rows.start)


def _merge(best_QK: Ints, score_CQ: npt.NDArray[np.float32], first: int) -> None:
    """Put the scores of a tile, whose gallery rows are `first` and up, among the best keys so far, in place."""
    C, k = len(score_CQ), best_QK.shape[1]
    group = min(max(C // (8 * k), 1), MOST_IN_A_GROUP)
    best_GQ = _best_of_groups(score_CQ, group)
    if first == 0 and len(best_GQ) >= k:  # at least k rows reach the k-th best of the groups
        kth_Q = np.partition(best_GQ, len(best_GQ) - k, axis=0)[-k]
        bound_Q = np.nextafter(kth_Q, np.float32(-np.inf))
    else:
        bound_Q = _scores(best_QK[:, -1])
    G, Q = best_GQ.shape
    query, start = np.divmod(np.flatnonzero((best_GQ > bound_Q).T), G)
    row, query = np.add.outer(start * group, np.arange(group)).ravel(), query.repeat(group)
    if G * group > C:
        row, query = row[row < C], query[row < C]
    score = score_CQ.ravel().take(row * Q + query)
    keep = score > bound_Q[query]
    row, query, score = row[keep], query[keep], score[keep]
    count_Q = np.bincount(query, minlength=len(best_QK))
    touched = np.flatnonzero(count_Q)
    if not len(touched):
        return
    count = count_Q[touched]
    pool = np.full((len(touched), k + count.max()), NOBODY)
    pool[:, :k] = best_QK[touched]
    place = np.arange(len(query)) - (np.cumsum(count) - count).repeat(count)
    pool[np.arange(len(touched)).repeat(count), k + place] = _keys(score, first + row)
    pool.sort(axis=1)
    best_QK[touched] = pool[:, :k]


def _best_of_groups(score_CQ: npt.NDArray[np.float32], group: int) -> npt.NDArray[np.float32]:
    """The highest of each `group` rows that follow each other; the last group may be smaller."""
    whole = len(score_CQ) // group * group
    best_GQ = score_CQ[:whole].reshape(-1, group, score_CQ.shape[1]).max(1)
    return best_GQ if whole == len(score_CQ) else np.concatenate([best_GQ, score_CQ[whole:].max(0)[None]])


def _keys(score: npt.NDArray[np.float32], row: Ints) -> Ints:
    """Whole numbers that rise as scores fall, and where scores are equal as rows rise: sorted in one go.

    The bits of a positive float32 rise with it; those of a negative one fall, so all but its sign are turned.
    """
    bits = (score + np.float32(0)).view(np.int32).astype(np.int64)  # + 0: minus zero equals zero
    return (~(bits ^ ((bits >> 63) & 0x7FFFFFFF)) << 32) | row


def _scores(key: Ints) -> npt.NDArray[np.float32]:
    """The scores in such numbers; that of nobody is below all others."""
    bits = ~(key >> 32)
    score = (bits ^ ((bits >> 63) & 0x7FFFFFFF)).astype(np.int32).view(np.float32)
    return np.where(key == NOBODY, np.float32(-np.inf), score)


def check_k(ks: Sequence[int], n: int) -> None:
    for k in ks:
        if not 1 <= k <= n:
            raise ConfigError(f"k = {k} neighbours of {n} images; needed 1 to {n}")


class Overlap(NamedTuple):
    """Images that are in both sets: rows of the probes (M,) and of the gallery (M,).

    `unsure`: probes whose embedding is that of MOST_COPIES gallery images or more. Embeddings alone do not tell there
    what is one photograph, so that these are in `probes` only where something else, such as their file, says so."""

    probes: Ints
    rows: Ints
    unsure: Ints = np.empty(0, np.int64)

    def images(self) -> int:
        """How many probes are in the gallery."""
        return len(np.unique(self.probes))


NO_OVERLAP = Overlap(np.empty(0, np.int64), np.empty(0, np.int64))


def same_images(probe: npt.ArrayLike, gallery: npt.ArrayLike) -> Overlap:
    """Probes (Q, D) that are in the gallery (N, D): the embeddings of one file, or of its copy, are equal.

    Equal is a cosine within 1e-6 of 1, which a network's rounding leaves and two photographs do not reach. A probe
    that MOST_COPIES of the gallery are equal to is `unsure`: none of them is taken for the probe itself.
    """
    probe_QD, gallery_ND = unit_rows(probe), unit_rows(gallery)
    found = _nearest(probe_QD, gallery_ND, min(MOST_COPIES, len(gallery_ND)))
    probes, place = np.nonzero(found.score >= 1 - 4 * EQUAL)  # float32 products round by some 1e-6
    rows = found.rows[probes, place]
    difference = probe_QD[probes].astype(np.float64) - gallery_ND[rows]
    equal = np.einsum("md,md->m", difference, difference) / 2 <= EQUAL  # 1 - cosine, without cancellation
    probes, rows = probes[equal], rows[equal]
    unsure = np.flatnonzero(np.bincount(probes, minlength=len(probe_QD)) >= MOST_COPIES)
    kept = ~np.isin(probes, unsure)
    return Overlap(probes[kept], rows[kept], unsure)


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
        return {"queries": self.queries, "queries_left_out": self.left_out, **self.means()}

    def means(self) -> dict[str, float]:
        """Every figure by its name: the mean over the queries."""
        return {name: float(value_Q.mean()) for name, value_Q in self.each.figures.items()}

    def figures(self, title: str, intervals: Mapping[str, Interval]) -> list[Figure]:
        """Every figure as a row, with its interval by name. Recall at 1 is the kNN accuracy at k = 1: it has no row."""
        lead = f"{self.queries:,} images look for their person"
        lead += f"; {self.left_out:,} have nobody to find and ask nothing" if self.left_out else ""
        heading = Heading(title, f"{lead}.")
        means = self.means()
        return [
            Figure(name, label(name), value, intervals.get(name), heading, headline=HEADLINE.get(name, 0))
            for name, value in means.items()
            if not (name == "recall_at_1" and "knn_accuracy_1" in means)
        ]


LABELS = {  # of a figure's name, or of how it starts
    "knn_accuracy_": "kNN accuracy, k = ",
    "recall_at_": "Recall at ",
    "r_precision": "R-precision",
    "map_at_r": "MAP@R",
}


HEADLINE = {"knn_accuracy_1": 2, "map_at_r": 4}


def label(name: str) -> str:
    """A figure's name for people; the name itself where LABELS has no better one."""
    start = next((start for start in LABELS if name.startswith(start)), "")
    return LABELS.get(start, "") + name.removeprefix(start)


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
    images, itself = _Images(emb_ND, who_N), np.arange(len(who_N))
    lacking = "no image has another of its person to find; kNN needs persons with two images or more"
    return _retrieve(images, images, knn, recall, Overlap(itself, itself), lacking)


def gallery_probe(
    gallery: npt.ArrayLike,
    gallery_labels: npt.ArrayLike,
    probe: npt.ArrayLike,
    probe_labels: npt.ArrayLike,
    *,
    knn: Sequence[int] = (1, 5),
    recall: Sequence[int] = (1, 5, 10),
    itself: Overlap = NO_OVERLAP,
) -> Retrieval:
    """Every probe (Q, D) looks for its person in the gallery (N, D); where nobody is there to find it is left out.

    `itself` (see `same_images`): probes that are in the gallery, which then do not find themselves.
    """
    gallery_ND, probe_QD = unit_rows(gallery), unit_rows(probe)
    both = np.concatenate([np.asarray(gallery_labels), np.asarray(probe_labels)])
    who = _numbered(both, len(gallery_ND) + len(probe_QD))
    who_N, who_Q = who[: len(gallery_ND)], who[len(gallery_ND) :]
    gallery_images, probe_images = _Images(gallery_ND, who_N), _Images(probe_QD, who_Q)
    beside = " beside itself" if len(itself.probes) else ""
    lacking = f"none of {len(who_Q)} probes is of a person in the gallery{beside}; do their identities have one name?"
    return _retrieve(probe_images, gallery_images, knn, recall, itself, lacking)


def _numbered(labels: npt.ArrayLike, n: int) -> Ints:
    label_N = np.asarray(labels)
    if label_N.shape != (n,):
        raise DataError(f"labels of shape {label_N.shape}; {n} embeddings need ({n},)")
    return np.unique(label_N, return_inverse=True)[1].astype(np.int64)


class _Images(NamedTuple):
    emb_ND: npt.NDArray[np.float32]
    who_N: Ints


def _retrieve(
    probes: _Images,
    gallery: _Images,
    knn: Sequence[int],
    recall: Sequence[int],
    itself: Overlap,
    lacking: str,
) -> Retrieval:
    """The probes look in the gallery, and none finds itself. DataError `lacking` where nobody is there to find."""
    who_N, n_probes = gallery.who_N, len(probes.who_N)
    total_P = np.bincount(who_N, minlength=int(probes.who_N.max()) + 1)[probes.who_N]
    own = who_N[itself.rows] == probes.who_N[itself.probes]
    total_P = total_P - np.bincount(itself.probes[own], minlength=n_probes)
    rows_Q = np.flatnonzero(total_P > 0)
    if not len(rows_Q):
        raise DataError(lacking)
    query_QD, who_Q, total_Q = probes.emb_ND[rows_Q], probes.who_N[rows_Q], total_P[rows_Q]
    most_copies = int(np.bincount(itself.probes, minlength=n_probes)[rows_Q].max())
    n_others = len(who_N) - most_copies
    ks = [k for k in (*knn, *recall) if k <= n_others]
    check_k([*knn[:1], *(k for k in (*knn, *recall) if k < 1)], n_others)
    n = len(who_Q)
    votes = {k: np.empty(n) for k in knn if k <= n_others}
    hits = {k: np.empty(n) for k in recall if k <= n_others}
    precision_Q, mean_precision_Q = np.empty(n), np.empty(n)
    nearest_Q, score_Q = np.empty(n, np.int64), np.empty(n, np.float32)
    for part in _parts_of(total_Q):
        total_R, who_R = total_Q[part], who_Q[part]
        most = min(max(*ks, int(total_R.max())) + most_copies, len(who_N))
        found = _nearest(query_QD[part], gallery.emb_ND, most)
        found, who_RK = _without_own(found, who_N, rows_Q[part], itself)
        nearest_Q[part], score_Q[part] = found.rows[:, 0], found.score[:, 0]
        right = who_RK == who_R[:, None]
        for k in votes:
            votes[k][part] = _vote(who_RK[:, :k], found.score[:, :k]) == who_R
        for k in hits:
            hits[k][part] = right[:, :k].any(1)
        ranks = np.arange(1, right.shape[1] + 1)
        counted = right & (ranks <= total_R[:, None])
        precision_Q[part] = counted.sum(1) / total_R
        mean_precision_Q[part] = (counted * counted.cumsum(1) / ranks).sum(1) / total_R
    figures = {f"knn_accuracy_{k}": v for k, v in votes.items()}
    figures |= {f"recall_at_{k}": v for k, v in hits.items()}
    figures |= {"r_precision": precision_Q, "map_at_r": mean_precision_Q}
    return Retrieval(
        {k: float(v.mean()) for k, v in votes.items()},
        {k: float(v.mean()) for k, v in hits.items()},
        float(precision_Q.mean()),
        float(mean_precision_Q.mean()),
        n,
        n_probes - n,
        Queries(rows_Q, nearest_Q, score_Q, figures),
    )


def _parts_of(total_Q: Ints) -> Iterator[Ints]:
    """Queries in parts whose people have about as many images: R-precision looks at as many neighbours."""
    order = np.argsort(total_Q, kind="stable")
    at = 0
    while at < len(order):
        size = max(LEAST_A_THREAD, MOST_CELLS // int(total_Q[order[at]]))
        part = order[at : at + size]
        # Where the numbers rise steeply, fewer: nobody pays for the largest person.
        part = part[
            : max(LEAST_A_THREAD, int(np.searchsorted(total_Q[part], 2 * total_Q[part[0]], side="right")))
        ]
        yield part
        at += len(part)


def _without_own(found: Neighbours, who_N: Ints, queries: Ints, itself: Overlap) -> tuple[Neighbours, Ints]:
    """The neighbours of these queries and whose they are: the query's own image comes last, and is nobody's (-1)."""
    if not len(itself.probes):
        return found, who_N[found.rows]
    n = len(who_N)
    own = np.isin(queries[:, None] * n + found.rows, itself.probes * n + itself.rows)
    order = np.argsort(own, axis=1, kind="stable")
    rows = np.take_along_axis(found.rows, order, 1)
    score = np.take_along_axis(found.score, order, 1)
    return Neighbours(rows, score), np.where(np.take_along_axis(own, order, 1), -1, who_N[rows])


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
