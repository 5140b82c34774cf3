"""Pictures of drawn people in memory, as `draw_faces` writes them."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from facemetric.data.drawn.draw import face_jpeg


def drawn_arrays(identities: int, images: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Decoded from their JPEGs, uint8 (identities * images, size, size, 3), by identity; and the identities."""
    jpegs = [face_jpeg(seed, i, j, size) for i in range(identities) for j in range(images)]
    pictures = np.stack([np.asarray(Image.open(io.BytesIO(jpeg))) for jpeg in jpegs])
    return pictures, np.repeat(np.arange(identities), images)
