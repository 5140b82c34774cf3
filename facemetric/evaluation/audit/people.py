"""Identities that look like one person, within a set and between it and a test set.

Some people have many look-alikes: to a network of modest strength all babies are near to one another, and so are old
grey photographs. So a pair's score is its cosine less the mean of what both have with their nearest others.
Source: Conneau et al. 2018, arXiv:1710.04087, section 2.3 (cross-domain similarity local scaling). How high it gets
by chance is read off the set itself.

Shapes: N images, D embedding, C identities, E identities of a test set (M images), P pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import beta, norm

from facemetric.evaluation.audit.labels import Floats, Ints, centres, dimensions
from facemetric.evaluation.nearest import nearest
from facemetric.mining.tiles import product_tiles

MOST_PAIRS = 100_000  # of identities, kept: the highest
HALVED = 4  # images of an identity that is split in halves
NEAR = 10  # others that say how crowded it is around an identity; as in the paper
FEWEST = 8  # identities: among fewer nobody has neighbours
SAMPLE = 4000  # identities whose scores tell how strangers score
FITTED = (0.02, 0.9)  # quantiles of their second best scores: the lowest and highest have other reasons


class Alike(NamedTuple):
    """Pairs of identities `first` < `second` (P,) by falling `score`, those above `threshold`.

    `expected` pairs would be there by chance; `found_halves` is the share 0..1 of identities whose own two halves
    score above the threshold, as a person under two names would (NaN where no identity has four images).
    """

    first: Ints
    second: Ints
    score: Floats
    threshold: float
    expected: float
    found_halves: float


class Strangers(NamedTuple):
    """How different identities of a set score: `crowd` (C,), the mean cosine of each with its NEAR nearest others,
    and the normal distribution (`mean`, `deviation`) that the high scores of their pairs follow."""

    crowd: npt.NDArray[np.float32]
    mean: float
    deviation: float

    def threshold(self, share: float) -> float:
        """The score that a share of the pairs of different identities exceeds."""
        return self.mean + self.deviation * float(norm.isf(share))


def strangers_of(centre_CD: np.ndarray, *, seed: int = 0) -> Strangers:
    """What the set itself says of pairs of two people, doubles among them or not.

    The fit is to each identity's second best score: its best may be the same person. Of n independent scores the
    second highest has a share of the distribution below it that follows Beta(n - 1, 2). A set too small to have
    neighbours is taken for random directions.
    """
    count = len(centre_CD)
    if count < FEWEST:
        return Strangers(np.zeros(count, np.float32), 0.0, dimensions(centre_CD) ** -0.5)
    near = min(NEAR, count // 4)
    crowd_C = nearest(centre_CD, centre_CD, near + 1).score[:, 1:].mean(1)
    rows = np.random.default_rng([seed, 14]).permutation(count)[:SAMPLE]
    x, y = _adjusted(centre_CD, crowd_C, centre_CD, crowd_C)
    second = []
    for tile, _, product in product_tiles(x[rows], y, whole_rows=True):
        product[torch.arange(len(product)), torch.from_numpy(rows[tile])] = -torch.inf  # itself
        second.append(product.topk(2, dim=1).values[:, 1])
    share = np.linspace(*FITTED, 45)
    seen = np.quantile(torch.cat(second).numpy(), share)
    deviation, mean = np.polyfit(norm.ppf(beta.ppf(share, count - 2, 2)), seen, 1)
    return Strangers(crowd_C, float(mean), float(deviation))


def _adjusted(
    one_CD: np.ndarray, crowd_C: np.ndarray, other_ED: np.ndarray, crowd_E: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows whose inner products are cosine - (crowd + crowd) / 2."""
    one, other = np.ones((len(one_CD), 1), np.float32), np.ones((len(other_ED), 1), np.float32)
    x = np.concatenate([one_CD, -crowd_C[:, None] / 2, one], 1)
    y = np.concatenate([other_ED, other, -crowd_E[:, None] / 2], 1)
    return torch.from_numpy(x), torch.from_numpy(y)


def alike_identities(
    emb_ND: np.ndarray, identity_N: np.ndarray, *, chance: float = 0.01, seed: int = 0
) -> Alike:
    """Identities whose centres are nearer than chance brings them: `chance` false pairs an identity are expected.

    emb (N, D) is centred; identity (N,) counts identities from 0.
    """
    count = int(identity_N.max()) + 1
    centre_CD = centres(emb_ND, identity_N, count)
    strangers = strangers_of(centre_CD, seed=seed)
    expected = chance * count
    threshold = strangers.threshold(min(2 * chance / max(count - 1, 1), 0.5))
    x, y = _adjusted(centre_CD, strangers.crowd, centre_CD, strangers.crowd)
    halves = _adjusted_halves(emb_ND, identity_N, strangers, seed)
    return _above(x, y, threshold, expected, halves, triangle=True)


def alike_across(
    emb_ND: np.ndarray,
    identity_N: np.ndarray,
    test_MD: np.ndarray,
    identity_M: np.ndarray,
    *,
    chance: float = 0.01,
    seed: int = 0,
) -> Alike:
    """Pairs (identity of one set, identity of the other) that look like one person; `chance` false pairs for each
    identity of the larger set are expected. Both sets are centred on the first one's mean, whose identities are
    the neighbours of both."""
    counts = int(identity_N.max()) + 1, int(identity_M.max()) + 1
    one_CD, other_ED = (
        centres(e, w, c) for e, w, c in ((emb_ND, identity_N, counts[0]), (test_MD, identity_M, counts[1]))
    )
    strangers = strangers_of(one_CD, seed=seed)
    near = min(NEAR, counts[0] // 4)
    crowd_E = (
        nearest(other_ED, one_CD, near).score.mean(1)
        if counts[0] >= FEWEST
        else np.zeros(counts[1], np.float32)
    )
    threshold = strangers.threshold(min(chance / min(counts), 0.5))
    x, y = _adjusted(one_CD, strangers.crowd, other_ED, crowd_E)
    halves = _adjusted_halves(emb_ND, identity_N, strangers, seed)
    return _above(x, y, threshold, chance * max(counts), halves, triangle=False)


def _adjusted_halves(emb_ND: np.ndarray, identity_N: np.ndarray, strangers: Strangers, seed: int) -> Floats:
    """What the two halves of an identity would score as two identities: both have its neighbours."""
    return half_scores(emb_ND, identity_N, seed=seed) - strangers.crowd[np.bincount(identity_N) >= HALVED]


def _above(
    x: torch.Tensor, y: torch.Tensor, threshold: float, expected: float, halves: Floats, *, triangle: bool
) -> Alike:
    """Pairs whose inner products are above the threshold: i < j of one set, or of one and another."""
    kept = [np.zeros((3, 0))]
    for rows, cols, product in product_tiles(x, y, triangle=triangle):
        i, j = (where.numpy() for where in torch.nonzero(product > threshold, as_tuple=True))
        found = np.stack([i + rows.start, j + cols.start, product.numpy()[i, j]])
        kept.append(found[:, found[0] < found[1]] if triangle else found)
        if sum(part.shape[1] for part in kept) > 2 * MOST_PAIRS:
            kept = [_highest(np.concatenate(kept, 1))]
    first, second, score = _highest(np.concatenate(kept, 1))
    share = float((halves > threshold).mean()) if len(halves) else float("nan")
    return Alike(first.astype(int), second.astype(int), score, threshold, expected, share)


def _highest(found_3P: np.ndarray) -> np.ndarray:
    return found_3P[:, np.lexsort((found_3P[1], found_3P[0], -found_3P[2]))[:MOST_PAIRS]]


def half_scores(emb_ND: np.ndarray, identity_N: np.ndarray, *, seed: int = 0) -> Floats:
    """Cosine between the centres of two random halves of each identity with four images or more."""
    order = np.random.default_rng([seed, 12]).permutation(len(identity_N))
    order = order[np.argsort(identity_N[order], kind="stable")]
    start = np.searchsorted(identity_N[order], np.arange(identity_N.max() + 2))
    place = np.arange(len(order)) - start[identity_N[order]]
    size = np.diff(start)
    second = np.empty(len(order), bool)
    second[order] = place >= size[identity_N[order]] // 2
    enough = size >= HALVED
    sides = [centres(emb_ND[second == half], identity_N[second == half], len(size)) for half in (False, True)]
    return np.einsum("cd,cd->c", *sides, dtype=np.float64)[enough]
