"""Who looks like whom."""

from __future__ import annotations

import numpy as np

from facemetric.training.tasks.alike import most_alike


def test_the_nearest_others_by_cosine() -> None:
    means = np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32)
    found = most_alike(means, 4)
    assert found.shape == (30, 6)
    unit = means / np.linalg.norm(means, axis=1, keepdims=True)
    score = unit @ unit.T
    np.fill_diagonal(score, -2)
    assert np.array_equal(found, (-score).argsort(1)[:, :6])


def test_copies_and_few_identities() -> None:
    """Equal means come in the order of their numbers, and nobody is like himself."""
    means = np.ones((7, 3), np.float32)
    found = most_alike(means, 2)
    assert found.shape == (7, 2)
    assert not (found == np.arange(7)[:, None]).any()
    assert most_alike(means[:3], 8).tolist() == [[1, 2], [0, 2], [0, 1]]
