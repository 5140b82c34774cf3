"""Images of a data check that show the same: within a set, and between it and a test set."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from facemetric.commands.check_findings import Close, Finding, image_findings
from facemetric.data.index import ImageIndex
from facemetric.data.perceptual import MIRROR, hash_signs
from facemetric.evaluation.duplicates import (
    EXPECTED,
    WIDEST,
    Chance,
    Pairs,
    chance_of,
    close_across,
    close_pairs,
)
from facemetric.evaluation.labels import chance_score, dimensions


class Side(NamedTuple):
    """The readable images of one set: hashes' frequencies (N, K), and centred embeddings (N, D) with weights."""

    images: ImageIndex
    frequencies: np.ndarray
    embeddings: np.ndarray | None = None


def find_images(
    train: Side, test: Side | None, mirror_cosine: float, seed: int
) -> tuple[list[Finding], dict[str, Any]]:
    """Images that show the same, within the set and between it and the test set."""
    both = train.frequencies if test is None else np.concatenate([train.frequencies, test.frequencies])
    median_K = np.median(both, axis=0)
    signs = hash_signs(train.frequencies, median_K)
    chance = chance_of(signs, train.images.identity, seed=seed)
    count, sizes = len(signs), train.images.counts()
    within = int((sizes * (sizes - 1) // 2).sum())
    pairs = count * (count - 1) / 2
    limits = chance.limit(within), chance.limit(pairs - within)
    agree = agreeing_cosine(train, chance, pairs, mirror_cosine)
    widest = WIDEST if np.isfinite(agree) else max(limits)
    close = close_of(
        close_pairs(signs, widest),
        close_pairs(signs, widest, mirrored_NK=hash_signs(train.frequencies * MIRROR, median_K)),
        train,
        train,
    )
    findings = image_findings(close, train.images, None, limits, agree)
    figures: dict[str, Any] = {
        "bits_within": limits[0],
        "bits_across": limits[1],
        "pairs_cut": close.pairs.cut,
    }
    figures["cosine_of_duplicates"] = agree if np.isfinite(agree) else None
    if test is None:
        return findings, figures
    pairs = count * len(test.frequencies)
    limit, agree = chance.limit(pairs), agreeing_cosine(train, chance, pairs, mirror_cosine)
    widest = WIDEST if np.isfinite(agree) else limit
    straight, turned = (
        close_across(signs, hash_signs(test.frequencies * mirror, median_K), widest) for mirror in (1, MIRROR)
    )
    close = close_of(straight, turned, train, test)
    findings += image_findings(close, train.images, test.images, (limit, limit), agree)
    figures["pairs_cut"] += close.pairs.cut
    return findings, figures | {"bits_test": limit}


def agreeing_cosine(train: Side, chance: Chance, pairs: float, mirror_cosine: float) -> float:
    """The cosine that makes a pair within WIDEST bits a duplicate: what a mirror image reaches, and so high that
    of the pairs which chance brings so near less than EXPECTED do. Infinite without weights."""
    if train.embeddings is None:
        return np.inf
    share = EXPECTED / max(chance.within(WIDEST, 2 * pairs), EXPECTED)  # 2: straight and mirrored
    return max(mirror_cosine, chance_score(share, dimensions(train.embeddings)))


def close_of(straight: Pairs, turned: Pairs, a: Side, b: Side) -> Close:
    """Both kinds of pairs, nearest first; a pair found in both ways stands once, as the nearer of them."""
    first, second, bits = (np.concatenate(columns) for columns in zip(straight[:3], turned[:3], strict=True))
    mirrored = np.arange(len(first)) >= len(straight.first)
    order = np.lexsort((mirrored, second, first, bits))
    _, once = np.unique(np.stack([first, second])[:, order], axis=1, return_index=True)
    kept = order[np.sort(once)]
    pairs = Pairs(first[kept], second[kept], bits[kept], straight.cut + turned.cut)
    cosine = np.full(len(kept), np.nan)
    if a.embeddings is not None and b.embeddings is not None:
        cosine = np.einsum("pd,pd->p", a.embeddings[pairs.first], b.embeddings[pairs.second])
    return Close(pairs, mirrored[kept], cosine)
