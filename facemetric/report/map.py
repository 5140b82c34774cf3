"""Embeddings in the plane: which images to show, and where. Shapes: N images, M shown, D embedding."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from google.protobuf import text_format
from tensorboard.plugins.projector import ProjectorConfig

from facemetric.evaluation.curves import Ints
from facemetric.evaluation.table import EmbeddingTable, unit_rows
from facemetric.files import write_bytes_whole
from facemetric.report.pictures import Sprite

MOST_SIDE = 8192  # pixels: the largest texture that browsers promise, and so the projector's largest sprite
CELL = 64
TENSORS, METADATA, SPRITE, CONFIG = "tensors.tsv", "metadata.tsv", "sprite.jpg", "projector_config.pbtxt"
NAME = "embeddings"
PER_PERSON = 30  # images of one person that are shown: nobody fills the picture
COMPONENTS = 50  # t-SNE sees so many principal components, as van der Maaten and Hinton 2008 did
PERPLEXITY = 30.0


def cell_size(images: int) -> int:
    """Pixels of a picture such that a square of all of them fits the largest sprite: 64, less beyond 16,384."""
    return min(CELL, MOST_SIDE // math.ceil(math.sqrt(max(images, 1))))


def write_projector(folder: Path, table: EmbeddingTable, parts: Sequence[str], sprite: Sprite | None) -> Path:
    """Everything that `tensorboard --logdir FOLDER` shows of a table, whose rows belong to `parts` (N,).

    `sprite`: their pictures, in the same order. The config, which names the other files, appears last."""
    lines = "\n".join("\t".join(f"{v:.7g}" for v in row) for row in table.embeddings.tolist())
    write_text(folder / TENSORS, lines + "\n")
    columns = zip(table.identities.tolist(), table.paths.tolist(), parts, strict=True)
    rows = ["identity\timage\tpart", *("\t".join(map(one_field, row)) for row in columns)]
    write_text(folder / METADATA, "\n".join(rows) + "\n")
    config = ProjectorConfig()
    info = config.embeddings.add()
    info.tensor_name, info.tensor_path, info.metadata_path = NAME, TENSORS, METADATA
    info.tensor_shape.extend(table.embeddings.shape)
    if sprite is not None:
        buffer = io.BytesIO()
        sprite.image.save(buffer, "JPEG", quality=85)
        write_bytes_whole(folder / SPRITE, buffer.getvalue())
        info.sprite.image_path = SPRITE
        info.sprite.single_image_dim.extend([sprite.cell, sprite.cell])
    return write_text(folder / CONFIG, text_format.MessageToString(config))


def one_field(text: str) -> str:
    """A name without what would end a field or a line."""
    return " ".join(text.split()) or "?"


def write_text(file: Path, text: str) -> Path:
    """A text file that appears whole."""
    return write_bytes_whole(file, text.encode("utf-8", "backslashreplace"))


def joined(tables: Sequence[EmbeddingTable]) -> EmbeddingTable:
    """Several tables as one."""
    return EmbeddingTable(
        np.concatenate([t.embeddings for t in tables]),
        np.concatenate([t.identities for t in tables]),
        np.concatenate([t.paths for t in tables]),
    )


def choose_images(identities: npt.ArrayLike, most: int, seed: int) -> Ints:
    """Rows (M,) of whole people in a random order until `most` images are reached, rising.

    People with two images or more come first, as one image has nobody to lie near; of a person with more than
    `most_of_one` images so many are drawn.
    """
    identity_N = np.unique(np.asarray(identities), return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    # One person after the other in random order, and random within the person.
    shuffled = rng.permutation(len(identity_N))
    rank = rng.permutation(identity_N.max(initial=-1) + 1)
    single = np.bincount(identity_N)[identity_N] < 2
    order = shuffled[np.lexsort((rank[identity_N[shuffled]], single[shuffled]))]
    starts = np.flatnonzero(np.diff(identity_N[order], prepend=-1))
    place = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return np.sort(order[place < most_of_one(identities, most)][:most])


def most_of_one(identities: npt.ArrayLike, most: int) -> int:
    """Images of one person among `most` that are shown: PER_PERSON, or an equal share where people are few."""
    return max(PER_PERSON, most // len(np.unique(np.asarray(identities))))


def lay_out(embeddings: npt.ArrayLike, *, seed: int = 0, quick: bool = False) -> npt.NDArray[np.float64]:
    """Places (M, 2) in 0..1 of embeddings (M, D): by t-SNE on unit rows, or as they are where D is 2. One alone lies
    in the middle.

    `quick` takes a third of the time for a divergence that is a few percent higher.

    Source: van der Maaten and Hinton 2008, JMLR 9; scikit-learn's Barnes-Hut version, started from PCA.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    emb_MD = np.asarray(embeddings, dtype=np.float32)
    if len(emb_MD) < 2:
        return np.full((len(emb_MD), 2), 0.5)
    if emb_MD.shape[1] == 2:
        return _into_square(emb_MD.astype(np.float64), keep_ratio=True)
    emb_MD = unit_rows(emb_MD)
    if len(emb_MD) < 5:
        return _into_square(PCA(2, random_state=seed).fit_transform(emb_MD), keep_ratio=False)
    if min(emb_MD.shape) > COMPONENTS:
        emb_MD = PCA(COMPONENTS, random_state=seed).fit_transform(emb_MD)
    tsne = TSNE(
        perplexity=min(PERPLEXITY, (len(emb_MD) - 1) / 3),
        init="pca",
        random_state=seed,
        max_iter=400 if quick else 1000,
        angle=0.8 if quick else 0.5,
    )
    with warnings.catch_warnings():
        # Twice the same image: PCA of rows that are alike divides by their variance.
        warnings.simplefilter("ignore", RuntimeWarning)
        return _into_square(tsne.fit_transform(emb_MD).astype(np.float64), keep_ratio=False)


def _into_square(place_M2: npt.NDArray[np.float64], *, keep_ratio: bool) -> npt.NDArray[np.float64]:
    low, high = place_M2.min(0), place_M2.max(0)
    size = np.maximum(high - low, 1e-12)
    if keep_ratio:
        middle, half = (low + high) / 2, size.max() / 2
        return (place_M2 - middle) / (2 * half) + 0.5
    return (place_M2 - low) / size
