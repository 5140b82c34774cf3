"""Who looks like whom: the nearest identities of each by mean embedding, for batches of people who look alike."""

from __future__ import annotations

import numpy as np

from facemetric.evaluation.nearest import nearest

# Candidates for each place of a group: the nearest ones may be in another group already.
CANDIDATES = 2


def most_alike(means_CD: np.ndarray, group: int) -> np.ndarray:
    """(C, k) int64: the other identities nearest to each by the cosine of their means (C, D), nearest first, k twice
    what a group of `group` identities has beside the first, and at most C - 1."""
    k = min(CANDIDATES * (group - 1), len(means_CD) - 1)
    rows_CK = nearest(means_CD, means_CD, k + 1).rows
    own = rows_CK == np.arange(len(means_CD))[:, None]
    own[~own.any(1), -1] = True  # a copy of it may have come first: drop the last
    return rows_CK[~own].reshape(len(means_CD), k)
