"""Labels that embeddings speak against: two identities that look like one person, images that look like another's.

Embeddings are centred on the set's mean first. Cosines between centres of different identities then lie as those of
random directions in a space of `dimensions` do, however few of its numbers an embedding really uses, and that says
how often a score comes by chance.

Shapes: N images, D embedding, C identities.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import beta
from tqdm import tqdm

from facemetric.evaluation.verification import unit_rows
from facemetric.mining.tiles import product_tiles

MOST_PAIRS = 100_000  # of identities, kept: the highest
LEAST_IMAGES = 3  # of an identity whose images are judged: of two that differ nobody knows which is wrong
HALVED = 4  # images of an identity that is split in halves

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


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


class Judged(NamedTuple):
    """For each image (N,): `above`, the share of other identities that it is nearer to than to the rest of its own
    (NaN where its identity has fewer than three images); `own` and `best` cosine; `nearest`, the other identity."""

    above: Floats
    own: Floats
    best: Floats
    nearest: Ints


def centred(embeddings: npt.ArrayLike, mean_D: np.ndarray | None = None) -> npt.NDArray[np.float32]:
    """Unit rows (N, D) less their mean (or the mean of other unit rows), at unit length again."""
    emb_ND = unit_rows(embeddings)
    return unit_rows(emb_ND - (emb_ND.mean(0) if mean_D is None else mean_D) + 1e-12)


def centres(emb_ND: np.ndarray, who_N: np.ndarray, identities: int) -> npt.NDArray[np.float32]:
    """Unit mean (C, D) of each identity's rows."""
    sums_CD = np.zeros((identities, emb_ND.shape[1]))
    np.add.at(sums_CD, who_N, emb_ND)
    return unit_rows(sums_CD + 1e-12)


def dimensions(centre_CD: np.ndarray) -> float:
    """1 / mean squared cosine between different identities: of random directions, the dimension of their space."""
    count = len(centre_CD)
    gram_DD = centre_CD.astype(np.float64).T @ centre_CD  # the sum over all pairs without forming them
    square = (float(np.square(gram_DD).sum()) - count) / max(count * (count - 1), 1)
    return 1 / max(square, 1e-6)


def chance_score(share: float, dims: float) -> float:
    """The cosine that a share (0..1/2) of the pairs of random directions exceeds."""
    dims = max(dims, 1.5)
    return float(np.sqrt(1 - beta.ppf(2 * min(share, 0.5), (dims - 1) / 2, 0.5)))


def alike_identities(emb_ND: np.ndarray, who_N: np.ndarray, *, chance: float = 0.01, seed: int = 0) -> Alike:
    """Identities whose centres are nearer than chance brings them: `chance` false pairs an identity are expected.

    emb (N, D) is centred; who (N,) counts identities from 0.
    """
    count = int(who_N.max()) + 1
    centre_CD = centres(emb_ND, who_N, count)
    pairs, expected = count * (count - 1) / 2, chance * count
    threshold = chance_score(expected / max(pairs, 1), dimensions(centre_CD))
    return _alike(centre_CD, None, threshold, expected, half_scores(emb_ND, who_N, seed=seed))


def _alike(
    one_CD: np.ndarray, other_CD: np.ndarray | None, threshold: float, expected: float, halves: Floats
) -> Alike:
    """Pairs of centres above the threshold: of one set, or of one and another."""
    kept = [np.zeros((3, 0))]
    y = None if other_CD is None else torch.from_numpy(other_CD)
    for rows, cols, product in product_tiles(torch.from_numpy(one_CD), y, triangle=y is None):
        i, j = (where.numpy() for where in torch.nonzero(product > threshold, as_tuple=True))
        found = np.stack([i + rows.start, j + cols.start, product.numpy()[i, j]])
        kept.append(found[:, found[0] < found[1]] if y is None else found)
        if sum(part.shape[1] for part in kept) > 2 * MOST_PAIRS:
            kept = [_highest(np.concatenate(kept, 1))]
    first, second, score = _highest(np.concatenate(kept, 1))
    share = float((halves > threshold).mean()) if len(halves) else float("nan")
    return Alike(first.astype(int), second.astype(int), score, threshold, expected, share)


def alike_across(
    emb_ND: np.ndarray, who_N: np.ndarray, test_MD: np.ndarray, who_M: np.ndarray, *, chance: float = 0.01
) -> Alike:
    """Pairs (identity of one set, identity of the other) that look like one person; `chance` false pairs for each
    identity of the larger set are expected. Both sets are centred on the first one's mean."""
    counts = int(who_N.max()) + 1, int(who_M.max()) + 1
    one_CD, other_CD = (
        centres(e, w, c) for e, w, c in ((emb_ND, who_N, counts[0]), (test_MD, who_M, counts[1]))
    )
    expected = chance * max(counts)
    threshold = chance_score(expected / (counts[0] * counts[1]), dimensions(one_CD))
    return _alike(one_CD, other_CD, threshold, expected, half_scores(emb_ND, who_N))


def _highest(found_3P: np.ndarray) -> np.ndarray:
    return found_3P[:, np.lexsort((found_3P[1], found_3P[0], -found_3P[2]))[:MOST_PAIRS]]


def half_scores(emb_ND: np.ndarray, who_N: np.ndarray, *, seed: int = 0) -> Floats:
    """Cosine between the centres of two random halves of each identity with four images or more."""
    order = np.random.default_rng([seed, 12]).permutation(len(who_N))
    order = order[np.argsort(who_N[order], kind="stable")]
    start = np.searchsorted(who_N[order], np.arange(who_N.max() + 2))
    place = np.arange(len(order)) - start[who_N[order]]
    size = np.diff(start)
    second = np.empty(len(order), bool)
    second[order] = place >= size[who_N[order]] // 2
    enough = size >= HALVED
    sides = [centres(emb_ND[second == half], who_N[second == half], len(size)) for half in (False, True)]
    return np.einsum("cd,cd->c", *sides, dtype=np.float64)[enough]


def judge_images(emb_ND: np.ndarray, who_N: np.ndarray) -> Judged:
    """How each image stands to its own identity without it, and to all others. emb (N, D) is centred."""
    count = int(who_N.max()) + 1
    sums_CD = np.zeros((count, emb_ND.shape[1]))
    np.add.at(sums_CD, who_N, emb_ND)
    centre_CD = unit_rows(sums_CD + 1e-12)
    own_N = np.empty(len(emb_ND))
    above_N, best_N, nearest_N = own_N.copy(), own_N.copy(), np.empty(len(emb_ND), np.int64)
    walk = product_tiles(torch.from_numpy(emb_ND), torch.from_numpy(centre_CD), budget_mib=8, whole_rows=True)
    with tqdm(total=len(emb_ND), desc="judging labels", unit="image", delay=2, leave=False) as bar:
        for rows, _, product in walk:
            score_RC, emb_RD, who_R = product.numpy(), emb_ND[rows], who_N[rows]
            rest_RD = unit_rows(sums_CD[who_R] - emb_RD + 1e-12)
            own_N[rows] = np.einsum("rd,rd->r", rest_RD, emb_RD)
            score_RC[np.arange(len(who_R)), who_R] = -np.inf
            nearest_N[rows] = score_RC.argmax(1)
            best_N[rows] = score_RC.max(1)
            above_N[rows] = (score_RC > own_N[rows, None]).sum(1) / max(count - 1, 1)
            bar.update(len(who_R))
    above_N[np.bincount(who_N)[who_N] < LEAST_IMAGES] = np.nan
    return Judged(above_N, own_N, best_N, nearest_N)
