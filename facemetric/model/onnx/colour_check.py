"""Whether a model gets the colours of its pictures the wrong way round: a suspicion from real crops, without labels.

A crop and its mirror image show one person, two crops most often show two. How far apart a model puts these two kinds
of pairs, in standard deviations of the second, falls when red and blue are exchanged. Measured with 120 crops each:

    faces-112, faces-96       right       wrong way round
    LFW                       5.20, 4.88  4.94, 4.62
    PINS                      5.09, 4.84  4.87, 4.60
    CelebA                    5.12, 4.86  4.91, 4.62
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

CROPS = 128  # that are looked at
LEAST = 32  # below which nothing is suspected
BETTER = 1.02  # times as far apart the other way round

Pixels = npt.NDArray[np.uint8]
Embed = Callable[[Pixels], npt.NDArray[np.float32]]


def apart(embed: Embed, pixels_BHWC: Pixels) -> float:
    """How far crops and their mirror images are from pairs of two crops, in standard deviations of the latter."""
    own_BD, mirror_BD = embed(pixels_BHWC), embed(np.ascontiguousarray(pixels_BHWC[:, :, ::-1]))
    score_BB = own_BD @ mirror_BD.T
    others = score_BB[~np.eye(len(score_BB), dtype=bool)]
    return float((np.diag(score_BB).mean() - others.mean()) / max(float(others.std()), 1e-12))


def colours_suspected(embed: Embed, pixels_BHWC: Pixels) -> str:
    """A sentence where the model tells LEAST crops or more apart better with red and blue exchanged, else ""."""
    pixels = pixels_BHWC[:CROPS]
    if len(pixels) < LEAST:
        return ""
    given, other = apart(embed, pixels), apart(embed, np.ascontiguousarray(pixels[..., ::-1]))
    if not other > BETTER * given:
        return ""
    return (
        f"its colours may be the wrong way round: on {len(pixels)} of these pictures it puts a picture nearer to its "
        f"mirror image than to others by {given:.2f} deviations as it is, by {other:.2f} with red and blue exchanged"
    )
