"""Whether a picture is a crop of a face already: the detector's last network, looking at the template's place.

Four things make a crop: a face score of five views at the place where the template has the face; landmarks that lie
near the template; no more of a face in the picture when it is turned; and detail in both halves of the face, left and
right, eyes and mouth. The shares recognised and refused are in the README of the room.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from facemetric.faces.detector import default_detector
from facemetric.faces.mtcnn import NEAR, SEEN, SURE, TURNED
from facemetric.faces.template import SIDE, TEMPLATE

LEAST_SIDE = 16  # of a picture that may show a face at all, pixels
SQUARE = 0.75  # least ratio of the sides of a crop
HALF = 0.1  # detail of one half of a face, as a share of that of the other, below which it is not there
LOOKS_AT_ONCE = 64
# The middle of the face, left and right, eyes and mouth: left, top, right, bottom in template pixels.
HALVES = (((30, 45, 54, 100), (58, 45, 82, 100)), ((30, 45, 82, 66), (30, 78, 82, 100)))


class CropLook(NamedTuple):
    """A picture looked at as if it were a crop: whether there is a face at the template's place.

    `score` 0..1; `away` the landmarks' mean distance from the template, template pixels; `upright` and `whole` whether
    no turned picture shows more of a face, and no half of the face is blank."""

    score: float
    away: float
    upright: bool
    whole: bool
    landmarks: np.ndarray

    @property
    def aligned(self) -> bool:
        """Whether the picture is a crop of a face at the template's place."""
        return self.score >= SEEN and self.away <= NEAR and self.upright

    @property
    def fault(self) -> str:
        """Why the picture is no crop of a face; empty where it is one."""
        if self.score < SEEN:
            return f"no face found in the crop (face score {self.score:.2f}, needed {SEEN})"
        if not self.upright:
            return "the face in the crop is not upright; turn the picture"
        return "" if self.whole else "half of the face is not in the picture"


def crop_looks(images: Sequence[Image.Image]) -> list[CropLook]:
    """RGB pictures looked at as crops, the template in the middle of their width. Always by the default detector."""
    looks: list[CropLook] = []
    for first in range(0, len(images), LOOKS_AT_ONCE):
        some = images[first : first + LOOKS_AT_ONCE]
        squares = [_middle_square(image) for image in some]
        points = [TEMPLATE * (square.width / SIDE) for square in squares]
        seen, scores = default_detector().look_at(squares, points)
        # As in the second look: a face of a score near 1 is upright.
        doubtful = [i for i, score in enumerate(scores) if score < SURE]
        turned = np.zeros(len(some))
        turned[doubtful] = default_detector().turned_scores(
            [squares[i] for i in doubtful], [points[i] for i in doubtful]
        )
        for image, square, landmarks, score, other in zip(some, squares, seen, scores, turned, strict=True):
            scale, down = SIDE / square.width, (image.height - square.height) // 2
            away = float(np.linalg.norm(landmarks * scale - TEMPLATE, axis=1).mean())
            across = (image.width - square.width) // 2
            upright, whole = bool(other <= score + TURNED), is_whole(square)
            looks.append(CropLook(score, away, upright, whole, landmarks + np.array([across, down])))
    return looks


def _middle_square(image: Image.Image) -> Image.Image:
    """As wide as the picture and about its middle; above and below a wide one black is added."""
    top = (image.height - image.width) // 2
    return image if top == 0 else image.crop((0, top, image.width, top + image.width))


def is_whole(crop: Image.Image) -> bool:
    """Whether both halves of the face, left and right, eyes and mouth, have detail: none is blank or smeared."""
    grey = np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR).convert("L"), float)
    across, down = np.abs(np.diff(grey, axis=1))[:-1], np.abs(np.diff(grey, axis=0))[:, :-1]
    for pair in HALVES:
        # A smeared edge has detail along one axis alone.
        one, other = (
            min(_detail(steps[box[1] : box[3], box[0] : box[2]]) for steps in (across, down)) for box in pair
        )
        if min(one, other) < HALF * max(one, other):
            return False
    return True


def _detail(steps: np.ndarray) -> float:
    """The median over lines of their mean step, rows or columns, whichever is less: the edge of what covers a part is
    one line of large steps among blank ones."""
    return float(min(np.median(steps.mean(0)), np.median(steps.mean(1))))
