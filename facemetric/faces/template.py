"""The place of a face in a crop: five points, the map that brings landmarks there, and the cut itself.

The template is ArcFace's (Deng et al. 2019, arXiv:1801.07698), in pixels of 112 x 112: eyes, tip of the nose, corners
of the mouth, left as seen in the picture. Points are (x, y), the middle of the first pixel at (0, 0); maps are affine,
(2, 3), from photograph to crop.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
SIDE = 112  # of the crop that TEMPLATE is in, pixels
POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")  # the rows of TEMPLATE


def similarity(source_52: np.ndarray, target_52: np.ndarray) -> np.ndarray:
    """(2, 3): the turn, scale and shift that brings source points nearest to target points, least squares.

    Complex numbers are turned and scaled by one factor: z -> factor * z + shift. Never mirrors.
    """
    source, target = (points @ np.array([1, 1j]) for points in (source_52, target_52))
    centred = source - source.mean()
    factor = np.vdot(centred, target - target.mean()) / np.vdot(centred, centred)
    shift = target.mean() - factor * source.mean()
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def apply_map(map_23: np.ndarray, points_N2: np.ndarray) -> np.ndarray:
    """Points (N, 2) through an affine map."""
    return points_N2 @ map_23[:, :2].T + map_23[:, 2]


def invert(map_23: np.ndarray) -> np.ndarray:
    """The affine map backwards."""
    back = np.linalg.inv(map_23[:, :2])
    return np.column_stack([back, -back @ map_23[:, 2]])


def chain(first_23: np.ndarray, second_23: np.ndarray) -> np.ndarray:
    """The affine map that is `first`, then `second`."""
    return np.column_stack(
        [second_23[:, :2] @ first_23[:, :2], apply_map(second_23, first_23[None, :, 2])[0]]
    )


def to_crop(landmarks_52: np.ndarray, size: int = SIDE) -> np.ndarray:
    """(2, 3): from the photograph to a crop of size x size pixels, whose template grows with it."""
    return similarity(landmarks_52, TEMPLATE * (size / SIDE))


def cut_out(image: Image.Image, map_23: np.ndarray, size: int) -> Image.Image:
    """The size x size picture whose pixel p is the photograph's pixel invert(map)(p); edges are repeated.

    Maps are between pixel centres at whole numbers. A large face is averaged down first, as one sample of
    every third pixel would be noise.
    """
    shrink = max(1, int(1 / np.sqrt(np.linalg.det(map_23[:, :2]))))
    back = invert(map_23)
    corners = apply_map(back, np.array([[-1, -1], [size, -1], [-1, size], [size, size]]))
    last = np.array(image.size)
    # What the crop shows, on the grid of the reduced picture, and a margin for the bicubic kernel.
    low = (np.floor(corners.min(0)).astype(int) // shrink - 2) * shrink
    high = (-(-np.ceil(corners.max(0)).astype(int) // shrink) + 3) * shrink
    first, end = np.clip(low, 0, last - 1), np.clip(high, 1, last)
    near = image.crop((*first.tolist(), *end.tolist()))
    near.info = {}  # a photograph's comment is none of the crop's
    pads = np.stack([first - low, high - end], 1)
    if pads.any():
        near = Image.fromarray(np.pad(np.asarray(near), (*pads[::-1], (0, 0)), mode="edge"))
    if shrink > 1:
        near = near.reduce(shrink)
    # Pixel p of the reduced picture is the middle of pixels p * shrink ... p * shrink + shrink - 1.
    back[:, 2] = (back[:, 2] - low - (shrink - 1) / 2) / shrink
    back[:, :2] /= shrink
    # PIL counts from the corner of the first pixel, not from its middle.
    back[:, 2] += 0.5 - back[:, :2] @ np.full(2, 0.5)
    data = tuple(back.ravel().tolist())
    return near.transform((size, size), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)


def share_inside(map_23: np.ndarray, image_size: tuple[int, int], size: int) -> float:
    """Share of the crop's pixels that lie in the photograph of this width and height, 0..1."""
    back, last = invert(map_23), np.array(image_size)
    corners = apply_map(back, np.array([[0, 0], [size - 1, 0], [0, size - 1], [size - 1, size - 1]], float))
    if ((corners >= -0.5) & (corners < last - 0.5)).all():
        return 1.0
    y, x = np.mgrid[:size, :size]
    points = apply_map(back, np.stack([x.ravel(), y.ravel()], 1).astype(float))
    return float(((points >= -0.5) & (points < last - 0.5)).all(1).mean())
