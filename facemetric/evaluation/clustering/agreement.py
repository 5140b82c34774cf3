"""How well clusters agree with identities: purity, NMI, ARI and B-cubed.

Shapes: N images, C clusters, S cells of a cluster and an identity with images, B draws.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.errors import DataError, plural
from facemetric.evaluation.intervals.draws import mean_draws
from facemetric.evaluation.intervals.records import Interval, percentiles


class Agreement(NamedTuple):
    """Clusters against identities, each figure 0..1 (`ari` may be below 0), up is better.

    `purity`: share of images whose identity is the most frequent of their cluster: clusters of one image make
    it 1. `nmi`: mutual information over the mean of both entropies. `ari`: Rand index, 0 by chance.
    B-cubed, mean over images: `precision` is the share of the image's cluster that is its identity,
    `recall` the share of its identity that is in the cluster, `f` their harmonic mean. The intervals draw
    people again and leave the clusters as they are.
    """

    purity: float
    nmi: float
    ari: float
    precision: Interval
    recall: Interval
    f: Interval
    images: int
    identities: int
    clusters: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers under plain names."""
        names = {"bcubed_precision": self.precision, "bcubed_recall": self.recall, "bcubed_f": self.f}
        return {
            "images": self.images,
            "identities": self.identities,
            "clusters": self.clusters,
            "purity": self.purity,
            "nmi": self.nmi,
            "ari": self.ari,
            **{name: interval.value for name, interval in names.items()},
            "intervals_95": {name: {"low": i.low, "high": i.high} for name, i in names.items()},
        }


def agreement(number: npt.ArrayLike, identity: npt.ArrayLike, *, seed: int = 0) -> Agreement:
    """Figures of clusters (N,) against identities (N,), named by any values.

    Sources: Bagga and Baldwin 1998 for B-cubed; Hubert and Arabie 1985 for ARI.
    Raises DataError where shapes differ, or fewer than two identities are there.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    if np.shape(number) != np.shape(identity) or np.ndim(number) != 1:
        raise DataError(f"clusters of shape {np.shape(number)}, identities of shape {np.shape(identity)}")
    cluster_N = np.unique(np.asarray(number), return_inverse=True)[1]
    identity_N = np.unique(np.asarray(identity), return_inverse=True)[1]
    people, clusters = int(identity_N.max(initial=-1)) + 1, int(cluster_N.max(initial=-1)) + 1
    if people < 2:
        raise DataError(f"{plural(people, 'identity')}; clusters are measured against two or more")
    cell_S, cell_N, shared_S = np.unique(
        cluster_N * people + identity_N, return_inverse=True, return_counts=True
    )  # identities as a pair of numbers: C x people may be far more than N
    shared_N = shared_S[cell_N]
    most_C = np.zeros(clusters, np.int64)
    np.maximum.at(most_C, cell_S // people, shared_S)
    value_N2 = np.stack(
        [shared_N / np.bincount(cluster_N)[cluster_N], shared_N / np.bincount(identity_N)[identity_N]], axis=1
    )
    drawn_B2 = mean_draws(value_N2, identity_N, seed=seed)
    precision, recall = value_N2.mean(0).tolist()
    return Agreement(
        float(most_C.sum() / len(identity_N)),
        float(normalized_mutual_info_score(identity_N, cluster_N)),
        float(adjusted_rand_score(identity_N, cluster_N)),
        percentiles(precision, drawn_B2[:, 0]),
        percentiles(recall, drawn_B2[:, 1]),
        percentiles(_harmonic(precision, recall), _harmonic(*drawn_B2.T)),
        len(identity_N),
        people,
        clusters,
    )


def _harmonic(one: Any, other: Any) -> Any:
    return 2 * one * other / (one + other)
