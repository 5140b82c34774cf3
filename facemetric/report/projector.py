"""Embeddings for TensorBoard's projector: tensors.tsv, metadata.tsv, a sprite of pictures and their config.

Not torch's `add_embedding`: its sprite takes 50 bytes a pixel in memory, has no largest size, and a tab in a name
breaks its table.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from google.protobuf import text_format
from tensorboard.plugins.projector import ProjectorConfig

from facemetric.evaluation.table import EmbeddingTable
from facemetric.files import write_whole
from facemetric.report.pictures import Sprite

MOST_SIDE = 8192  # pixels: the largest texture that browsers promise, and so the projector's largest sprite
CELL = 64
TENSORS, METADATA, SPRITE, CONFIG = "tensors.tsv", "metadata.tsv", "sprite.jpg", "projector_config.pbtxt"
NAME = "embeddings"


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
        write_whole(folder / SPRITE, lambda path: path.write_bytes(buffer.getvalue()))
        info.sprite.image_path = SPRITE
        info.sprite.single_image_dim.extend([sprite.cell, sprite.cell])
    return write_text(folder / CONFIG, text_format.MessageToString(config))


def one_field(text: str) -> str:
    """A name without what would end a field or a line."""
    return " ".join(text.split()) or "?"


def write_text(file: Path, text: str) -> Path:
    """A text file that appears whole."""
    return write_whole(file, lambda path: path.write_bytes(text.encode("utf-8", "backslashreplace")))


def joined(tables: Sequence[EmbeddingTable]) -> EmbeddingTable:
    """Several tables as one."""
    return EmbeddingTable(
        np.concatenate([t.embeddings for t in tables]),
        np.concatenate([t.identities for t in tables]),
        np.concatenate([t.paths for t in tables]),
    )
