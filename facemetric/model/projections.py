"""Where the projection of stage two starts: the weights' own, PCA or LDA of the features, or random.

Shapes: N images, F features, D embedding, C identities.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from torch import nn

from facemetric.errors import ConfigError, did_you_mean
from facemetric.model.embedder import Embedder

INITS = ("identity", "pca", "lda", "random")
MOST_IMAGES = 50_000  # images that PCA and LDA look at


def sample_for(kind: str, count: int, seed: int) -> np.ndarray:
    """Which of `count` images a start looks at: up to MOST_IMAGES of them for PCA and LDA, none for the others."""
    if kind not in ("pca", "lda"):
        return np.empty(0, np.int64)
    return np.sort(np.random.default_rng([seed, 13]).permutation(count)[:MOST_IMAGES])


def start_projection(
    kind: str, embedder: Embedder, features_NF: np.ndarray, labels_N: np.ndarray, *, size: int, seed: int
) -> nn.Linear:
    """A linear layer F -> D to start stage two from.

    `identity` is the embedder's own projection (its size, not `size`), so that stage two starts exactly at
    stage one; `pca` the directions of most variance of the features; `lda` those that part identities best,
    scaled so that the variance within identities is the same along each; `random` orthogonal.
    Raises ConfigError where the data cannot give so many directions."""
    if kind not in INITS:
        raise ConfigError(f"unknown projection start {kind!r}{did_you_mean(kind, INITS)}")
    if kind == "identity":
        own = embedder.folded_projection()
        if isinstance(own, nn.Linear):
            return own
        return linear_of(np.eye(embedder.num_features), np.zeros(embedder.num_features))
    if not len(features_NF):  # random looks at none
        features_NF = np.empty((0, embedder.num_features))
    return start_directions(kind, features_NF, labels_N, size=size, seed=seed)


def start_directions(
    kind: str,
    features_NF: np.ndarray,
    labels_N: np.ndarray,
    *,
    size: int,
    seed: int,
    option: str = "--embedding-size",
) -> nn.Linear:
    """A linear layer F -> D from features alone: `pca`, `lda` or `random`, as in `start_projection`.

    Raises ConfigError where the data cannot give so many directions, and names the `option` that asks for them."""
    features: int = features_NF.shape[1]
    most = {"pca": min(features, len(labels_N)), "lda": min(features, len(np.unique(labels_N)) - 1)}
    limit: int = most.get(kind) or features
    if size > limit:
        raise ConfigError(
            f"{kind} gives at most {limit} directions from {len(labels_N)} images of "
            f"{len(np.unique(labels_N))} identities and {features} features, {option} is {size}; lower it"
        )
    generator = np.random.default_rng([seed, 13])
    if kind == "random":
        weight = scipy.linalg.qr(generator.normal(size=(features, features)))[0][:size]
        return linear_of(weight, np.zeros(size))
    some_NF = np.asarray(features_NF, np.float64)
    return linear_of(*(pca(some_NF, size) if kind == "pca" else lda(some_NF, np.asarray(labels_N), size)))


def linear_of(weight_DF: np.ndarray, bias_D: np.ndarray) -> nn.Linear:
    """The layer F -> D of these numbers, in float32."""
    linear = nn.Linear(weight_DF.shape[1], len(weight_DF))
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(np.ascontiguousarray(weight_DF)))
        linear.bias.copy_(torch.from_numpy(np.asarray(bias_D)))
    return linear


def pca(features_NF: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(weight (D, F), bias (D,)) of the `size` directions of most variance, centred."""
    found = PCA(size, svd_solver="full" if min(features_NF.shape) < 500 else "covariance_eigh").fit(
        features_NF
    )
    return found.components_, -found.components_ @ found.mean_


def lda(features_NF: np.ndarray, labels_N: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(weight (D, F), bias (D,)) of the `size` most discriminant directions.

    The covariance within identities is shrunk after Ledoit and Wolf 2004 and becomes the unit matrix; each
    identity counts the same between them; each direction is scaled by sqrt(b / (b + 1)), b its variance
    between identities, as in PLDA (Ioffe 2006), so that directions that are mostly noise count less."""
    _, label_N = np.unique(labels_N, return_inverse=True)
    counts_C = np.bincount(label_N)
    mean_CF = np.zeros((len(counts_C), features_NF.shape[1]))
    np.add.at(mean_CF, label_N, features_NF)
    mean_CF /= counts_C[:, None]
    within_NF = features_NF - mean_CF[label_N]
    # N - C degrees of freedom are left after the means are taken out.
    freedom = max(1, len(label_N) - len(counts_C))
    within_FF, _ = ledoit_wolf(within_NF, assume_centered=True)
    within_FF = within_FF * len(label_N) / freedom
    centre_F = mean_CF.mean(0)
    between_FF = np.cov(mean_CF.T)
    value_F, vector_FF = scipy.linalg.eigh(between_FF, within_FF)
    order = np.argsort(value_F)[::-1][:size]
    value_D = np.maximum(value_F[order], 0)
    weight = (vector_FF[:, order] * np.sqrt(value_D / (value_D + 1))).T
    return weight, -weight @ centre_F
