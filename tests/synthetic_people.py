"""People made of random directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from facemetric.data.index import read_index
from facemetric.evaluation.table import EmbeddingTable

IMAGES = 6


def people(identities: int, seed: int = 0, dims: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, 64) of which `dims` numbers are used, all leaning to one side, and labels."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=(identities, dims))
    emb = np.repeat(centre, IMAGES, 0) + 0.5 * rng.normal(size=(identities * IMAGES, dims))
    basis = np.random.default_rng(9).normal(size=(dims, 64))
    return (emb @ basis + 20).astype(np.float32), np.repeat(np.arange(identities), IMAGES)


def exact_people(images: int, people: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit embeddings (images, 64) of sixteen quarters each, many of them alike, and labels: their products are
    multiples of 1 / 16, exact in float32 on any device and in any order."""
    rng = np.random.default_rng(seed)
    centre = np.zeros((people, 64), np.float32)
    at = rng.random(centre.shape).argsort(1)[:, :16]
    np.put_along_axis(centre, at, rng.choice([0.25, -0.25], size=at.shape).astype(np.float32), 1)
    labels = rng.integers(people, size=images)
    emb = centre[labels] * np.where(rng.random((images, 64)) < 0.2, np.float32(-1), np.float32(1))
    emb[3::9] = emb[2::9][: len(emb[3::9])]  # copies, some of another person
    return emb, labels


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def table_of(folder: Path, noise: float = 0.8) -> EmbeddingTable:
    """Embeddings of the images of a folder of people, who are told apart but for some images."""
    index = read_index(str(folder))
    rng = np.random.default_rng(4)
    centre = rng.normal(size=(len(index.identities), 16))
    emb = centre[index.identity] + noise * rng.normal(size=(len(index), 16))
    names = np.array(index.identities)[index.identity]
    return EmbeddingTable(emb.astype(np.float32), names, np.array([index.name(i) for i in range(len(index))]))
