"""People made of random directions."""

from __future__ import annotations

import numpy as np

IMAGES = 6


def people(identities: int, seed: int = 0, dims: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, 64) of which `dims` numbers are used, all leaning to one side, and labels."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(identities, dims))
    emb = np.repeat(centre, IMAGES, 0) + 0.5 * rng.normal(size=(identities * IMAGES, dims))
    basis = np.random.default_rng(9).normal(size=(dims, 64))
    return (emb @ basis + 20).astype(np.float32), np.repeat(np.arange(identities), IMAGES)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
