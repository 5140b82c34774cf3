"""Nearest neighbours by cosine similarity: kNN accuracy, recall@k, R-precision, MAP@R; on tiles.

Shapes: Q query images, N gallery images, D embedding, K neighbours, R x N one tile of whole rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.errors import DataError, plural
from facemetric.evaluation.figures import Figure, Heading
from facemetric.evaluation.intervals.records import Interval
from facemetric.evaluation.nearest import LEAST_A_THREAD, Neighbours, SearchedRows, check_k
from facemetric.evaluation.table import unit_rows

if TYPE_CHECKING:
    import torch

Ints = npt.NDArray[np.int64]


MOST_CELLS = 1 << 21  # queries x neighbours that are looked at together
EQUAL = 1e-6  # 1 - cosine of two embeddings of one image
MOST_COPIES = 8  # of one image in a gallery


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


def same_images(
    probe: npt.ArrayLike, gallery: npt.ArrayLike, *, device: torch.device | None = None
) -> Overlap:
    """Probes (Q, D) that are in the gallery (N, D): the embeddings of one file, or of its copy, are equal.

    Equal is a cosine within 1e-6 of 1, which a network's rounding leaves and two photographs do not reach. A probe
    that MOST_COPIES of the gallery are equal to is `unsure`: none of them is taken for the probe itself.
    `device` as for `nearest`.
    """
    probe_QD, gallery_ND = unit_rows(probe), unit_rows(gallery)
    found = SearchedRows(gallery_ND, device).nearest(probe_QD, min(MOST_COPIES, len(gallery_ND)))
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
        lead = f"{plural(self.queries, 'image looks for its', 'images look for their')} person"
        lead += (
            f"; {plural(self.left_out, 'has', 'have')} nobody to find and ask nothing"
            if self.left_out
            else ""
        )
        heading = Heading(title, f"{lead}.")
        means = self.means()
        return [
            Figure(
                name,
                label(name),
                value,
                intervals.get(name),
                heading,
                about=of_name(ABOUT, name),
                headline=HEADLINE.get(name, 0),
                series=of_name(SERIES, name),
            )
            for name, value in means.items()
            if not (name == "recall_at_1" and "knn_accuracy_1" in means)
        ]


LABELS = {  # of a figure's name, or of how it starts
    "knn_accuracy_": "kNN accuracy, k = ",
    "recall_at_": "Recall at ",
    "r_precision": "R-precision",
    "map_at_r": "MAP@R",
}


ABOUT = {  # what a figure means, in a line
    "knn_accuracy_": "images whose k nearest vote for their person",
    "recall_at_": "images with one of their own person among so many nearest",
    "r_precision": "of the R other images of an image's person, the share among its R nearest",
    "map_at_r": "as R-precision, but the nearer its own are, the more they count",
}
SERIES = {"knn_accuracy_": "kNN accuracy", "recall_at_": "Recall"}


HEADLINE = {"knn_accuracy_1": 2, "map_at_r": 4}


def label(name: str) -> str:
    """A figure's name for people; the name itself where LABELS has no better one."""
    start = next((start for start in LABELS if name.startswith(start)), "")
    return LABELS.get(start, "") + name.removeprefix(start)


def of_name(texts: Mapping[str, str], name: str) -> str:
    """The text of a figure's name, or of how it starts; "" where there is none."""
    return next((text for start, text in texts.items() if name.startswith(start)), "")


def leave_one_out(
    embeddings: npt.ArrayLike,
    labels: npt.ArrayLike,
    *,
    knn: Sequence[int] = (1, 5),
    recall: Sequence[int] = (1, 5, 10),
    device: torch.device | None = None,
) -> Retrieval:
    """Every image of embeddings (N, D) looks for its person, labels (N,), among all others.

    Images of people with a single image are no queries (they are counted) but stay in the gallery.
    `device` as for `nearest`. Sources: Musgrave et al. 2020, arXiv:2003.08505, for R-precision and MAP@R.
    """
    emb_ND, identity_N = unit_rows(embeddings), _numbered(labels, len(np.asarray(embeddings)))
    images, gallery = _Images(emb_ND, identity_N), _Gallery(SearchedRows(emb_ND, device), identity_N)
    itself = np.arange(len(identity_N))
    lacking = "no image has another of its person to find; kNN needs people with two images or more"
    return _retrieve(images, gallery, knn, recall, Overlap(itself, itself), lacking)


def gallery_probe(
    gallery: npt.ArrayLike,
    gallery_labels: npt.ArrayLike,
    probe: npt.ArrayLike,
    probe_labels: npt.ArrayLike,
    *,
    knn: Sequence[int] = (1, 5),
    recall: Sequence[int] = (1, 5, 10),
    itself: Overlap = NO_OVERLAP,
    device: torch.device | None = None,
) -> Retrieval:
    """Every probe (Q, D) looks for its person in the gallery (N, D); where nobody is there to find it is left out.

    `itself` (see `same_images`): probes that are in the gallery, which then do not find themselves. `device` as for
    `nearest`.
    """
    gallery_ND, probe_QD = unit_rows(gallery), unit_rows(probe)
    both = np.concatenate([np.asarray(gallery_labels), np.asarray(probe_labels)])
    identities = _numbered(both, len(gallery_ND) + len(probe_QD))
    identity_N, identity_Q = identities[: len(gallery_ND)], identities[len(gallery_ND) :]
    enrolled, probes = (
        _Gallery(SearchedRows(gallery_ND, device), identity_N),
        _Images(probe_QD, identity_Q),
    )
    beside = " beside itself" if len(itself.probes) else ""
    lacking = (
        f"none of {len(identity_Q)} probes is of a person in the gallery{beside}; do their identities have one "
        "name?"
    )
    return _retrieve(probes, enrolled, knn, recall, itself, lacking)


def _numbered(labels: npt.ArrayLike, n: int) -> Ints:
    label_N = np.asarray(labels)
    if label_N.shape != (n,):
        raise DataError(f"labels of shape {label_N.shape}; {n} embeddings need ({n},)")
    return np.unique(label_N, return_inverse=True)[1].astype(np.int64)


class _Images(NamedTuple):
    emb_ND: npt.NDArray[np.float32]
    identity_N: Ints


class _Gallery(NamedTuple):
    searched: SearchedRows
    identity_N: Ints


def _retrieve(
    probes: _Images,
    gallery: _Gallery,
    knn: Sequence[int],
    recall: Sequence[int],
    itself: Overlap,
    lacking: str,
) -> Retrieval:
    """The probes look in the gallery, and none finds itself. DataError `lacking` where nobody is there to find."""
    identity_N, n_probes = gallery.identity_N, len(probes.identity_N)
    total_P = np.bincount(identity_N, minlength=int(probes.identity_N.max()) + 1)[probes.identity_N]
    own = identity_N[itself.rows] == probes.identity_N[itself.probes]
    total_P = total_P - np.bincount(itself.probes[own], minlength=n_probes)
    rows_Q = np.flatnonzero(total_P > 0)
    if not len(rows_Q):
        raise DataError(lacking)
    query_QD, identity_Q, total_Q = probes.emb_ND[rows_Q], probes.identity_N[rows_Q], total_P[rows_Q]
    most_copies = int(np.bincount(itself.probes, minlength=n_probes)[rows_Q].max())
    n_others = len(identity_N) - most_copies
    ks = [k for k in (*knn, *recall) if k <= n_others]
    check_k([*knn[:1], *(k for k in (*knn, *recall) if k < 1)], n_others)
    n = len(identity_Q)
    votes = {k: np.empty(n) for k in knn if k <= n_others}
    hits = {k: np.empty(n) for k in recall if k <= n_others}
    precision_Q, mean_precision_Q = np.empty(n), np.empty(n)
    nearest_Q, score_Q = np.empty(n, np.int64), np.empty(n, np.float32)
    for part in _parts_of(total_Q):
        total_R, identity_R = total_Q[part], identity_Q[part]
        most = min(max(*ks, int(total_R.max())) + most_copies, len(identity_N))
        found = gallery.searched.nearest(query_QD[part], most)
        found, identity_RK = _without_own(found, identity_N, rows_Q[part], itself)
        nearest_Q[part], score_Q[part] = found.rows[:, 0], found.score[:, 0]
        right = identity_RK == identity_R[:, None]
        for k in votes:
            votes[k][part] = _vote(identity_RK[:, :k], found.score[:, :k]) == identity_R
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


def _without_own(
    found: Neighbours, identity_N: Ints, queries: Ints, itself: Overlap
) -> tuple[Neighbours, Ints]:
    """The neighbours of these queries and whose they are: the query's own image comes last, and is nobody's (-1)."""
    if not len(itself.probes):
        return found, identity_N[found.rows]
    n = len(identity_N)
    own = np.isin(queries[:, None] * n + found.rows, itself.probes * n + itself.rows)
    order = np.argsort(own, axis=1, kind="stable")
    rows = np.take_along_axis(found.rows, order, 1)
    score = np.take_along_axis(found.score, order, 1)
    return Neighbours(rows, score), np.where(np.take_along_axis(own, order, 1), -1, identity_N[rows])


def _vote(identity_RK: Ints, score_RK: npt.NDArray[np.float32]) -> Ints:
    """Winner (R,) of each row: most votes, then the higher sum of scores, then the nearer first vote."""
    k = identity_RK.shape[1]
    if k == 1:
        return identity_RK[:, 0]
    agree_RKK = identity_RK[:, :, None] == identity_RK[:, None, :]
    votes_RK = agree_RKK.sum(2)
    sums_RK = (agree_RKK * score_RK[:, None, :].astype(np.float64)).sum(2)
    sums_RK[votes_RK < votes_RK.max(1, keepdims=True)] = -np.inf
    return identity_RK[np.arange(len(identity_RK)), sums_RK.argmax(1)]
