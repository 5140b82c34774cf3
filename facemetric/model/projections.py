"""Where the projection of stage two starts: the weights' own, its refit, PCA or LDA of the features, or random.

Shapes: N images, F features, D embedding, C identities, T teacher's embedding, K numbers that a refit aims at.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA
from torch import nn
from torch.nn import functional

from facemetric.errors import ConfigError, did_you_mean
from facemetric.model.embedder import Embedder

INITS = ("identity", "refit", "pca", "lda", "random")
LOOKING = ("refit", "pca", "lda")  # those that look at images
MOST_IMAGES = 50_000  # images that these look at
CHUNK = 4096  # rows at once


class Refit(NamedTuple):
    """How a refit is fitted: see `refit`."""

    penalty: float = 0.1  # on the squared weights, in units of the features' mean variance
    teacher: float = 0.0  # weight of the teacher's embedding, 1: as much as the own
    constant: float = 0.0  # length of a part of all embeddings, whose own length is near 1


def sample_for(kind: str, count: int, seed: int) -> np.ndarray:
    """Which of `count` images a start looks at: up to MOST_IMAGES of them for those of LOOKING, none for the others."""
    if kind not in LOOKING:
        return np.empty(0, np.int64)
    return np.sort(np.random.default_rng([seed, 13]).permutation(count)[:MOST_IMAGES])


def start_projection(
    kind: str,
    embedder: Embedder,
    features_NF: np.ndarray,
    labels_N: np.ndarray,
    *,
    size: int,
    seed: int,
    how: Refit = Refit(),  # noqa: B008 (it cannot change)
    teacher_NT: np.ndarray | None = None,
) -> nn.Linear:
    """A linear layer F -> D to start stage two from.

    `identity` is the embedder's own projection (its size, not `size`), so that stage two starts exactly at stage one;
    `refit` the layer of least squares to its unit embeddings (of the same size), as `how` says, and to the teacher's
    unit vectors of the same images where they have a share in it; `pca` the directions of most variance of the
    features; `lda` those that part identities best, scaled so that the variance within identities is the same along
    each; `random` orthogonal.
    Raises ConfigError where the data cannot give so many directions."""
    if kind not in INITS:
        raise ConfigError(f"unknown projection start {kind!r}{did_you_mean(kind, INITS)}")
    if kind == "identity":
        own = embedder.folded_projection()
        if isinstance(own, nn.Linear):
            return own
        return linear_of(np.eye(embedder.num_features), np.zeros(embedder.num_features))
    if kind == "refit":
        return refit(embedder, features_NF, how, teacher_NT)
    if not len(features_NF):  # random looks at none
        features_NF = np.empty((0, embedder.num_features))
    return start_directions(kind, features_NF, labels_N, size=size, seed=seed)


@torch.no_grad()
def refit(
    embedder: Embedder, features_NF: np.ndarray, how: Refit, teacher_NT: np.ndarray | None = None
) -> nn.Linear:
    """The linear layer F -> D nearest to the embedder's own unit embeddings: ridge regression on N images' features.

    The length of an embedding before it is put on the sphere says little of who is seen. The layer of least squares
    has lengths near 1 where the picture is like those that it was fitted to, and shorter ones, hence embeddings nearer
    to their mean, where it is not: strangers of other origins then pass less often (see the card of faces-112). The
    penalty on the squared weights is `how.penalty` times the features' mean variance. The layer is multiplied by the
    mean length of the embedder's own, so that learning rates mean the same.

    With `how.teacher`, it aims at the teacher's unit vectors too: centred, with so many times the deviation of the own
    ones. With `how.constant`, embeddings have a part of this length in a direction that all share, so that a pair of
    short ones scores low, where cosines alone would not see how long they are. Of these K directions the D with the
    largest share of all embeddings are kept, turned onto the embedding's axes. Raises ConfigError where the penalty is
    too small for the images, or the teacher says the same of all."""
    own = embedder.folded_projection().cpu()
    size = own.out_features if isinstance(own, nn.Linear) else embedder.num_features
    taught_NT = teacher_NT if how.teacher else None
    moments = moments_of(own, features_NF, taught_NT)
    penalised_FF = moments.moment_FF.copy()
    penalised_FF[np.diag_indices_from(penalised_FF)] += (
        how.penalty * moments.moment_FF.trace() / len(moments.mean_F)
    )
    try:
        weight_KF = scipy.linalg.solve(penalised_FF, moments.cross_FK, assume_a="pos").T
    except scipy.linalg.LinAlgError as error:
        raise ConfigError(
            f"--refit-penalty is {how.penalty}, too small for {len(features_NF)} images; raise it"
        ) from error
    mean_K, scale = moments.mean_K, moments.length
    if taught_NT is not None:
        own_variance, taught = moments.variance_K[:size].sum(), moments.variance_K[size:].sum()
        if taught < 1e-9:
            raise ConfigError(
                "--teacher says the same of all images; look at its table, or leave out --refit-teacher"
            )
        weight_KF[size:] *= how.teacher * np.sqrt(own_variance / taught)
        mean_K[size:] = 0
    if how.constant:
        weight_KF = np.concatenate([weight_KF, np.zeros((1, weight_KF.shape[1]))])
        mean_K = np.append(mean_K, how.constant)
    if len(weight_KF) > size:
        moment_KK = weight_KF @ moments.moment_FF @ weight_KF.T + np.outer(mean_K, mean_K)
        turn_KD = scipy.linalg.eigh(moment_KK)[1][:, : -size - 1 : -1]
        weight_KF, mean_K = turn_KD.T @ weight_KF, turn_KD.T @ mean_K
    bias_D = mean_K - weight_KF @ moments.mean_F
    return linear_of(weight_KF * scale, bias_D * scale)


class Moments(NamedTuple):
    """What least squares need of N images, all as means over them: features and targets, products of the centred
    features with one another and with the targets, the targets' variances, the length of the embedder's embeddings."""

    mean_F: np.ndarray
    moment_FF: np.ndarray
    cross_FK: np.ndarray
    mean_K: np.ndarray
    variance_K: np.ndarray
    length: float


def moments_of(own: nn.Module, features_NF: np.ndarray, teacher_NT: np.ndarray | None) -> Moments:
    """With the own unit embeddings as targets, and behind them the teacher's unit vectors."""
    mean_F = np.asarray(features_NF.mean(0, dtype=np.float64))
    features = len(mean_F)
    targets = own.out_features if isinstance(own, nn.Linear) else features
    targets += 0 if teacher_NT is None else teacher_NT.shape[1]
    moment_FF, cross_FK = np.zeros((features, features)), np.zeros((features, targets))
    sum_K, squares_K, length = np.zeros(targets), np.zeros(targets), 0.0
    for start in range(0, len(features_NF), CHUNK):
        some_nF = np.array(features_NF[start : start + CHUNK], np.float32)
        emb_nD = own(torch.from_numpy(some_nF))
        targets_nK = functional.normalize(emb_nD, dim=1).numpy()
        if teacher_NT is not None:
            targets_nK = np.concatenate([targets_nK, teacher_NT[start : start + CHUNK]], axis=1)
        centred_nF = some_nF - mean_F.astype(np.float32)
        moment_FF += centred_nF.T @ centred_nF
        cross_FK += centred_nF.T @ targets_nK
        sum_K += targets_nK.sum(0, dtype=np.float64)
        squares_K += np.square(targets_nK, dtype=np.float64).sum(0)
        length += float(emb_nD.norm(dim=1).sum(dtype=torch.float64))
    count = len(features_NF)
    mean_K = sum_K / count
    variance_K = squares_K / count - mean_K**2
    return Moments(mean_F, moment_FF / count, cross_FK / count, mean_K, variance_K, length / count)


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
