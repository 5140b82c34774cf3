"""How good a crop of a face is: sharpness, size, pose and face score, and one figure of them.

The figure is the geometric mean of four shares, each 1 where more of it would no longer help and 0 where nothing is
left to recognise:

    face    the score of the detector on the upright face
    sharp   log(sharpness / 2) / log(100 / 2): a Laplacian variance of 100 and above is sharp, of 2 a smear
    size    eye distance / 35 pixels: 35 is the template's own, so a larger face is only made smaller
    pose    1 - turn: how far the nose is off the middle of the face

It is no probability, and its bounds are a choice. `tools/measure_faces.py --weights NAME` shows what dropping the
worst crops buys on LFW.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from facemetric.faces.template import SIDE, TEMPLATE, apply_map, to_crop

BLURRED, SHARP = 2.0, 100.0  # variance of the Laplacian of a 112-pixel crop, grey values 0..255
OWN_EYES = float(np.linalg.norm(TEMPLATE[1] - TEMPLATE[0]))  # 35.2 pixels


class Quality(NamedTuple):
    """What is known of a crop; `figure` 0..1 is the geometric mean of the shares that the module names."""

    figure: float
    face: float  # score of the detector on the upright face, 0..1
    sharpness: float  # variance of the Laplacian of the crop at 112 pixels
    eye_distance: float  # pixels of the photograph
    turn: float  # nose off the middle of the face: 0 frontal, 1 a profile


def quality_of(crop: Image.Image, landmarks_52: np.ndarray, face: float) -> Quality:
    """The quality of a crop that was cut at these landmarks of its photograph."""
    sharp, eyes = sharpness(crop), float(np.linalg.norm(landmarks_52[1] - landmarks_52[0]))
    turn = turn_of(landmarks_52)
    sharp_share = math.log(max(sharp, BLURRED) / BLURRED) / math.log(SHARP / BLURRED)
    shares = (face, min(1.0, sharp_share), min(1.0, eyes / OWN_EYES), 1 - turn)
    return Quality(float(np.prod(np.clip(shares, 0, 1)) ** 0.25), face, sharp, eyes, turn)


def sharpness(crop: Image.Image) -> float:
    """Variance of the Laplacian of the grey picture at 112 pixels (values 0..255): below about 50 it is blurred."""
    if crop.size != (SIDE, SIDE):
        crop = crop.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    grey = np.asarray(crop.convert("L"), np.float64)
    inner = grey[1:-1, 1:-1]
    return float((grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner).var())


def turn_of(landmarks_52: np.ndarray) -> float:
    """How far the head is turned to a side, 0..1: the nose's way off the middle of eyes and mouth, where it is, as
    a share of half their mean width. 1 where the nose is above an eye or beyond."""
    points = apply_map(to_crop(landmarks_52), landmarks_52)
    middle = (points[:2].mean(0) + points[3:].mean(0)) / 2
    half = (points[1, 0] - points[0, 0] + points[4, 0] - points[3, 0]) / 4
    return float(np.clip(abs(points[2, 0] - middle[0]) / max(half, 1e-6), 0, 1))
