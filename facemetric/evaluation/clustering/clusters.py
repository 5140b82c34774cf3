"""Groups of one person without labels: embeddings and a threshold on the cosine, never an N x N matrix.

Two images whose cosine reaches the threshold are linked; the links come from tiles and take 5 bytes each, twice.
Shapes: N images, D embedding, C clusters, R x N one tile of whole rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.sparse import csr_array

from facemetric.errors import ConfigError, DataError, did_you_mean, plural
from facemetric.evaluation.clustering.known import NOBODY, Start, rows_by_number
from facemetric.evaluation.nearest import nearest
from facemetric.evaluation.table import unit_rows
from facemetric.machine import progress_bar
from facemetric.mining.tiles import product_tiles

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
AVERAGE = "agglomerative"
MAX_LINKS = 1 << 26  # both directions counted: 320 MiB of links, at 100,000 images 671 an image
BUDGET_MIB = 8.0
# Two ways of adding up one average differ by some 1e-7 in float32; without slack a tie could go round for ever.
SLACK = 1e-6


@dataclass(frozen=True, repr=False)
class Clusters:
    """Cluster of each image, and how far the image lies from its centre.

    `number` (N,) counts from 0, the largest cluster, ties by the first image. `distance` (N,) is the cosine
    distance (0..2) to the mean of the cluster's unit vectors. `noise`: images that DBSCAN gives to no cluster;
    each is a cluster of its own here. `links`: pairs of images at or above the threshold.
    """

    number: Ints
    distance: Floats
    method: str
    threshold: float
    links: int
    noise: int = 0

    def __repr__(self) -> str:
        images, clusters = plural(len(self.number), "image"), plural(len(self.sizes()), "cluster")
        return f"Clusters({images} in {clusters}, {self.method} at cosine {self.threshold:.4f})"

    def sizes(self) -> Ints:
        """Images (C,) of each cluster, falling."""
        return np.bincount(self.number)

    def rows(self, number: int) -> Ints:
        """The images of a cluster, those nearest to its centre first."""
        rows = np.flatnonzero(self.number == number)
        return rows[np.argsort(self.distance[rows], kind="stable")]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under plain names."""
        sizes = self.sizes()
        return {
            "method": self.method,
            "threshold": self.threshold,
            "images": len(self.number),
            "links": self.links,
            "clusters": len(sizes),
            "clusters_of_one_image": int((sizes == 1).sum()),
            "largest_cluster": int(sizes[0]),
            "noise_images": self.noise,
        }


def find_clusters(
    embeddings: npt.ArrayLike,
    threshold: float,
    *,
    method: str = AVERAGE,
    min_images: int = 3,
    start: Start | None = None,
) -> Clusters:
    """Group embeddings (N, D) of any length by the cosine `threshold`, -1..1.

    `components` joins all that a chain of links connects. `dbscan` lets only images with `min_images` at the
    threshold (themselves counted) carry the chain on. `agglomerative` joins the two clusters of the highest
    average cosine until none reaches the threshold; alone it takes a `start`, what is known before, and keeps to it
    exactly. Sources: Ester et al. 1996, KDD; Sokal and Michener 1958.
    Raises ConfigError for an unknown method or a threshold out of range, DataError for too many links.
    """
    if method not in METHODS:
        raise ConfigError(f"unknown method {method!r}{did_you_mean(method, METHODS)}")
    if not -1 <= threshold <= 1:
        raise ConfigError(f"a threshold of {threshold}; it is a cosine, choose -1..1")
    if start is not None and method != AVERAGE:
        raise ConfigError(f"{method} cannot keep to what is known before; choose {AVERAGE}")
    if min_images < 1:
        raise ConfigError(f"{min_images} images at the threshold; dbscan needs at least 1")
    unit_ND = unit_rows(embeddings)
    graph = link_graph(unit_ND, threshold)
    if start is not None:
        label_N = _agglomerative(unit_ND, graph, threshold, min_images, start)
    else:
        label_N = METHODS[method](unit_ND, graph, threshold, min_images)
    loose = label_N < 0
    label_N[loose] = label_N.max(initial=-1) + 1 + np.arange(loose.sum())
    number_N = _largest_first(label_N)
    links = (graph.nnz - len(unit_ND)) // 2
    return Clusters(number_N, _to_centre(unit_ND, number_N), method, threshold, links, int(loose.sum()))


class Alike(NamedTuple):
    """Pairs (P, 2) of clusters that are alike, the most alike first, and the mean cosine (P,) of their images."""

    pair: Ints
    score: Floats


def alike_clusters(embeddings: npt.ArrayLike, number: npt.ArrayLike, least: float, *, near: int = 5) -> Alike:
    """Clusters (N,), numbered 0..C-1, whose images have a mean cosine of `least` or more: of each the `near` nearest
    are looked at."""
    unit_ND, number_N = unit_rows(embeddings), np.asarray(number)
    n, sizes = len(number_N), np.bincount(number_N)
    mean_CD = csr_array((np.ones(n, np.float32), (number_N, np.arange(n)))) @ unit_ND / sizes[:, None]
    if len(sizes) < 2:
        return Alike(np.empty((0, 2), np.int64), np.empty(0, np.float32))
    found = nearest(mean_CD + 1e-12, mean_CD + 1e-12, min(near + 1, len(sizes)))
    one = np.repeat(np.arange(len(sizes)), found.rows.shape[1])
    pair = np.stack([one, found.rows.reshape(-1)], axis=1)
    pair = np.unique(np.sort(pair[pair[:, 0] != pair[:, 1]], axis=1), axis=0)
    score = np.einsum("pd,pd->p", mean_CD[pair[:, 0]], mean_CD[pair[:, 1]])
    order = np.argsort(-score, kind="stable")
    order = order[score[order] >= least]
    return Alike(pair[order], score[order])


def link_graph(unit_ND: Floats, threshold: float) -> Any:
    """Which images reach the threshold: a boolean csr (N, N), an image linked with itself as well.

    Raises DataError beyond MAX_LINKS: a threshold that links so many tells nobody apart.
    """
    n = len(unit_ND)
    found: list[npt.NDArray[np.int32]] = []
    count_N, total = np.zeros(n, np.int64), 0
    emb = torch.from_numpy(unit_ND)
    with progress_bar(total=n, desc="linking", unit="image") as bar:
        for rows, _, values in product_tiles(emb, budget_mib=BUDGET_MIB, whole_rows=True):
            score_RN = values.numpy()
            score_RN[np.arange(len(score_RN)), np.arange(rows.start, rows.stop)] = np.inf
            place = np.flatnonzero(score_RN >= threshold)
            count_N[rows] = np.bincount(place // n, minlength=len(score_RN))
            found.append((place % n).astype(np.int32))
            total += len(place)
            if total - rows.stop > MAX_LINKS:
                share = total / rows.stop / n
                raise DataError(
                    f"the threshold {threshold:.4g} links {share:.1%} of all pairs of {n:,} images, more than "
                    f"{MAX_LINKS // 2:,}; choose a higher threshold (a lower FAR)"
                )
            bar.update(len(score_RN))
    end_N = np.concatenate([[0], np.cumsum(count_N)])
    column = np.concatenate(found)
    return csr_array((np.ones(len(column), bool), column, end_N), shape=(n, n))


def _components(unit_ND: Floats, graph: Any, threshold: float, min_images: int) -> Ints:
    from scipy.sparse.csgraph import connected_components

    return connected_components(graph, directed=False)[1].astype(np.int64)


def _dbscan(unit_ND: Floats, graph: Any, threshold: float, min_images: int) -> Ints:
    from sklearn.cluster import DBSCAN

    # Only who is linked counts: every link gets the distance 1, and the radius is 1.
    return DBSCAN(eps=1, min_samples=min_images, metric="precomputed").fit(graph).labels_.astype(np.int64)


def _agglomerative(
    unit_ND: Floats, graph: Any, threshold: float, min_images: int, start: Start | None = None
) -> Ints:
    """Average linkage, cut at the threshold: exact on the links alone, where scikit-learn's structured
    version leaves missing links out of the average.

    The average cosine of two clusters is the product of their sums over their sizes, so no pair is looked up;
    and where it reaches the threshold some pair does, so only linked clusters are candidates. Chains of nearest
    neighbours find the joins in any order (Müllner 2011, arXiv:1109.2378, section 3.2), and still do so where two
    clusters may not become one: what is joined with either may not either.
    """
    n = len(unit_ND)
    state = _Merging(unit_ND.copy(), graph, threshold)
    if start is not None:
        state.begin(start)
    with progress_bar(total=n, desc="joining", unit="cluster") as bar:
        for first in range(n):
            chain = [first] if state.parent[first] == first and not state.done[first] else []
            while chain:
                last = chain[-1]
                others, score = state.candidates(last)
                if not len(others):
                    state.done[last] = True
                    chain.pop()
                    bar.update()
                    continue
                back = score[others == chain[-2]] if len(chain) > 1 else score[:0]
                if len(back) and back[0] >= score.max() - SLACK:
                    merged = state.join(chain.pop(), chain.pop())
                    bar.update()
                    chain = chain or [merged]
                else:
                    chain.append(int(others[score.argmax()]))
    return state.roots(np.arange(n))


class _Merging:
    """Clusters that grow: of each root the sum (D,) and the number of its members, and its linked clusters.

    Two roots of different `key`s never become one, nor do those of rows that are `apart`."""

    def __init__(self, sum_ND: Floats, graph: Any, threshold: float) -> None:
        self.sum, self.threshold = sum_ND, threshold
        self.size = np.ones(len(sum_ND), np.float32)
        self.parent = np.arange(len(sum_ND), dtype=np.int32)
        self.near = np.split(graph.indices, graph.indptr[1:-1])
        self.done = np.diff(graph.indptr) == 1  # linked with itself alone
        self.key = np.full(len(sum_ND), NOBODY, np.int64)
        self.apart: dict[int, Ints] = {}

    def begin(self, start: Start) -> None:
        """Make one cluster of the images that are known to be together, and note which may never be."""
        self.key = start.key.copy()
        for a, b in start.apart.tolist():
            for row, other in ((a, b), (b, a)):
                self.apart[row] = np.append(self.apart.get(row, np.empty(0, np.int64)), other)
        for rows in rows_by_number(start.together).values():
            if len(rows) == 1:
                continue
            root = int(rows[0])
            self.parent[rows] = root
            self.sum[root], self.size[root] = self.sum[rows].sum(0), len(rows)
            self.near[root] = np.unique(np.concatenate([self.near[row] for row in rows]))
            self.done[root], self.key[root] = False, self.key[rows].max()
            if apart := [self.apart.pop(row) for row in rows.tolist() if row in self.apart]:
                self.apart[root] = np.concatenate(apart)
            for row in rows[1:]:
                self.near[row] = self.near[row][:0]

    def roots(self, of: npt.NDArray) -> npt.NDArray:
        """The clusters that images or former clusters belong to now; the smaller joins the larger, so a few
        steps do."""
        found = self.parent[of]
        while True:
            above = self.parent[found]
            if np.array_equal(above, found):
                return found
            found = above

    def candidates(self, root: int) -> tuple[npt.NDArray, Floats]:
        """Clusters whose average cosine with this one reaches the threshold, and that cosine.

        Others are struck off: an average with a joined cluster is no higher than the higher of both parts."""
        others = np.unique(self.roots(self.near[root]))
        others = others[(others != root) & ~self.done[others]]
        if self.key[root] != NOBODY:
            others = others[(self.key[others] == NOBODY) | (self.key[others] == self.key[root])]
        if root in self.apart:
            others = np.setdiff1d(others, self.roots(self.apart[root]))
        score = self.sum[others] @ self.sum[root] / (self.size[others] * self.size[root])
        keep = score >= self.threshold
        self.near[root] = others[keep]
        return others[keep], score[keep]

    def join(self, one: int, other: int) -> int:
        """Make one cluster of two; returns its root."""
        if self.size[one] < self.size[other]:
            one, other = other, one
        self.parent[other] = one
        self.sum[one] += self.sum[other]
        self.size[one] += self.size[other]
        self.near[one] = np.concatenate([self.near[one], self.near[other]])
        self.near[other] = self.near[other][:0]
        self.key[one] = max(self.key[one], self.key[other])
        if other in self.apart:
            apart = self.apart.pop(other)
            self.apart[one] = np.concatenate([self.apart[one], apart]) if one in self.apart else apart
        return one


METHODS = {"components": _components, "dbscan": _dbscan, AVERAGE: _agglomerative}


def _largest_first(label_N: Ints) -> Ints:
    """Labels renumbered: the largest cluster is 0, ties by the first image."""
    _, first, number, size = np.unique(label_N, return_index=True, return_inverse=True, return_counts=True)
    order = np.lexsort((first, -size))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return rank[number]


def _to_centre(unit_ND: Floats, number_N: Ints) -> Floats:
    """Cosine distance (N,) to the mean of the own cluster."""
    n = len(number_N)
    members = csr_array((np.ones(n, np.float32), (number_N, np.arange(n))))
    centre_CD = members @ unit_ND
    centre_CD /= np.maximum(np.linalg.norm(centre_CD, axis=1, keepdims=True), 1e-12)
    distance_N = np.empty(n, np.float32)
    for at in range(0, n, 8192):  # no second (N, D) copy
        part = slice(at, at + 8192)
        distance_N[part] = 1 - np.einsum("nd,nd->n", unit_ND[part], centre_CD[number_N[part]])
    return np.maximum(distance_N, 0)
