"""Where the face is in a photograph, and its crop: the detector and the geometry of tools/align_faces.py.

Points are (x, y) in pixels, the middle of the first pixel at (0, 0); maps are affine, (2, 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from align_record import Line
from PIL import Image

from facemetric.errors import ConfigError

TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
SIDE = 112  # of the picture that TEMPLATE is in, pixels
SMALLEST = 96  # shorter side of a photograph to look at: a smaller one is enlarged
MIN_FACE = 24  # side of the smallest face that is looked for, pixels of the photograph as it is looked at
MARGIN = 56  # around the upright face of the second look, template pixels
NEAR = 12.0  # a second look that moves the landmarks by more, in template pixels, saw another face
SEEN = 0.5  # least mean score of its views, 0..1
# The views: squares of 100 template pixels about (56, 64), where MTCNN's own boxes lie, shifted by 5 each way.
VIEWS = np.array([[6 + x, 14 + y, 106 + x, 114 + y] for x, y in ((0, 0), (5, 5), (-5, -5), (-5, 5), (5, -5))])
RIVAL = 0.25  # a face of at least this share of the taken one's area counts as another


class Options(NamedTuple):
    """What decides the crops; a folder holds the crops of one set of them."""

    size: int
    detect_size: int
    min_score: float
    face: str
    several: str
    keep_missed: float
    quality: int


class Face(NamedTuple):
    """Box (left, top, right, bottom) and landmarks (5, 2), as in TEMPLATE, in pixels; score 0..1."""

    box: np.ndarray
    landmarks: np.ndarray
    score: float

    @property
    def area(self) -> float:
        return float(np.prod(np.maximum(self.box[2:] - self.box[:2], 0)))


class Detector:
    """MTCNN on one picture. ConfigError where its package is not installed."""

    def __init__(self) -> None:
        try:
            from facenet_pytorch import MTCNN
        except ImportError as error:
            raise ConfigError(
                f"the face detector does not import ({error}); pip install 'facemetric[align]'"
            ) from None
        self.net = MTCNN(keep_all=True, min_face_size=MIN_FACE)

    def faces(self, image: Image.Image) -> list[Face]:
        """Every face in the picture, of any score."""
        boxes, scores, landmarks = self.net.detect(image, landmarks=True)
        if boxes is None:
            return []
        found = zip(boxes, landmarks, scores, strict=True)
        return [Face(np.float64(box), np.float64(points), float(score)) for box, points, score in found]

    @torch.inference_mode()
    def landmarks(self, image: Image.Image, boxes_V4: np.ndarray) -> tuple[np.ndarray, float]:
        """Median landmarks (5, 2), and the mean score, of the last of the three networks on V square boxes."""
        views = [
            image.resize((48, 48), Image.Resampling.BILINEAR, box=tuple(box)) for box in boxes_V4.tolist()
        ]
        pixels = torch.from_numpy(np.stack([np.asarray(view, np.float32) for view in views]))
        _, points, scores = self.net.onet((pixels.permute(0, 3, 1, 2) - 127.5) / 128)
        share_V52 = points.numpy().astype(float).reshape(-1, 2, 5).transpose(0, 2, 1)
        sides = boxes_V4[:, 2:] - boxes_V4[:, :2]
        seen = share_V52 * sides[:, None] + boxes_V4[:, None, :2]
        return np.median(seen, 0), float(scores[:, 1].mean())


def similarity(source_52: np.ndarray, target_52: np.ndarray) -> np.ndarray:
    """(2, 3): the turn, scale and shift that brings source points nearest to target points, least squares.

    Complex numbers are turned and scaled by one factor: z -> factor * z + shift. Never mirrors.
    """
    source, target = (points @ np.array([1, 1j]) for points in (source_52, target_52))
    centred = source - source.mean()
    factor = np.vdot(centred, target - target.mean()) / np.vdot(centred, centred)
    shift = target.mean() - factor * source.mean()
    return np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def apply(map_23: np.ndarray, points_N2: np.ndarray) -> np.ndarray:
    """Points (N, 2) through an affine map."""
    return points_N2 @ map_23[:, :2].T + map_23[:, 2]


def inverse(map_23: np.ndarray) -> np.ndarray:
    """The affine map backwards."""
    back = np.linalg.inv(map_23[:, :2])
    return np.column_stack([back, -back @ map_23[:, 2]])


def cut_out(image: Image.Image, map_23: np.ndarray, size: int) -> Image.Image:
    """The size x size picture whose pixel p is the photograph's pixel inverse(map)(p); edges are repeated.

    Maps are between pixel centres at whole numbers. A large face is averaged down first, as one sample of
    every third pixel would be noise.
    """
    shrink = max(1, int(1 / np.sqrt(np.linalg.det(map_23[:, :2]))))
    if shrink > 1:
        image = image.reduce(shrink)
        # Pixel p of the reduced picture is the middle of p * shrink ... p * shrink + shrink - 1.
        moved = np.column_stack([map_23[:, :2] * shrink, apply(map_23, np.full((1, 2), (shrink - 1) / 2))[0]])
        map_23 = moved
    back = inverse(map_23)
    corners = apply(back, np.array([[-1, -1], [size, -1], [-1, size], [size, size]]))
    low = np.floor(corners.min(0)).astype(int) - 2
    high = np.ceil(corners.max(0)).astype(int) + 3
    last = np.array(image.size)
    first, end = np.clip(low, 0, last - 1), np.clip(high, 1, last)
    near = np.asarray(image.crop((*first.tolist(), *end.tolist())))
    pads = (*np.stack([first - low, high - end], 1)[::-1], (0, 0))
    image = Image.fromarray(np.pad(near, pads, mode="edge"))
    back[:, 2] -= low
    # PIL counts from the corner of the first pixel, not from its middle.
    back[:, 2] += 0.5 - back[:, :2] @ np.full(2, 0.5)
    data = tuple(back.ravel().tolist())
    return image.transform((size, size), Image.Transform.AFFINE, data, Image.Resampling.BICUBIC)


def find_faces(detector: Detector, image: Image.Image, options: Options) -> list[Face]:
    """Faces of at least `min_score`, in pixels of the photograph.

    It is looked at with a longer side of `detect_size`; where nothing is found, at twice that size.
    """
    longer, shorter = max(image.size), min(image.size)
    first = max(min(1.0, options.detect_size / longer), SMALLEST / shorter)
    for scale in (first, min(1.0, 2 * first)) if first < 1 else (first,):
        width, height = (max(1, round(side * scale)) for side in image.size)
        small = (
            image
            if scale == 1
            else image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
        )
        ratio = np.array(image.size) / small.size
        faces = [face for face in detector.faces(small) if face.score >= options.min_score]
        if faces:
            return [
                Face(f.box * np.tile(ratio, 2), (f.landmarks + 0.5) * ratio - 0.5, f.score) for f in faces
            ]
    return []


def choose(faces: Sequence[Face], size: tuple[int, int], how: str) -> Face:
    """`largest`: by area; `central`: nearest to the photograph's middle; `prominent`: area less twice the
    squared distance of its centre from there, so that a small face in the middle yields to a large one beside."""
    middle = np.array(size) / 2

    def off(face: Face) -> float:
        return float(np.square((face.box[:2] + face.box[2:]) / 2 - middle).sum())

    worth = {
        "largest": lambda face: face.area,
        "central": lambda face: -off(face),
        "prominent": lambda face: face.area - 2 * off(face),
    }
    return max(faces, key=worth[how])


def look_again(detector: Detector, image: Image.Image, face: Face) -> np.ndarray:
    """Landmarks (5, 2) of the face turned upright, the median of five views of it, twice over.

    The first look's landmarks jump by pixels when the photograph is turned, scaled or packed anew, as its box
    does; these move by a fifth as much. They are kept where the views do not show a face at that place.
    """
    landmarks = face.landmarks
    for _ in range(2):
        upright = similarity(landmarks, TEMPLATE) + np.array([[0, 0, MARGIN], [0, 0, MARGIN]])
        shown = cut_out(image, upright, SIDE + 2 * MARGIN)
        seen, score = detector.landmarks(shown, VIEWS + MARGIN)
        move = float(np.linalg.norm(seen - apply(upright, landmarks), axis=1).mean())
        if score < SEEN or move > NEAR:
            return landmarks
        landmarks = apply(inverse(upright), seen)
    return landmarks


def sharpness(crop: Image.Image) -> float:
    """Variance of the Laplacian of the grey picture (values 0..255): below about 50 a 112 px face is blurred."""
    grey = np.asarray(crop.convert("L"), np.float64)
    inner = grey[1:-1, 1:-1]
    return float((grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner).var())


def share_inside(map_23: np.ndarray, image: Image.Image, size: int) -> float:
    """Share of the crop's pixels that lie in the photograph, 0..1."""
    y, x = np.mgrid[:size, :size]
    points = apply(inverse(map_23), np.stack([x.ravel(), y.ravel()], 1).astype(float))
    return float(((points >= -0.5) & (points < np.array(image.size) - 0.5)).all(1).mean())


def central_crop(image: Image.Image, share: float, size: int) -> Image.Image:
    """The middle square of `share` of the shorter side."""
    half = min(image.size) * share / 2
    x, y = image.width / 2, image.height / 2
    box = (x - half, y - half, x + half, y + half)
    return image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)


def align(detector: Detector, image: Image.Image, options: Options) -> tuple[Line, Image.Image | None]:
    """What the csv says of a photograph, and its crop where there is one."""
    faces = find_faces(detector, image, options)
    if not faces:
        crop = central_crop(image, options.keep_missed, options.size) if options.keep_missed else None
        note = "no face found; central crop" if crop else "no face found"
        return Line(found="no", sharpness=round(sharpness(crop), 1) if crop else "", note=note), crop
    face = choose(faces, image.size, options.face)
    rivals = sum(other.area >= RIVAL * face.area for other in faces)
    landmarks = look_again(detector, image, face)
    map_23 = similarity(landmarks, TEMPLATE * (options.size / SIDE))
    left_out = rivals > 1 and options.several == "leave"
    crop = cut_out(image, map_23, options.size)
    line = Line(
        found="yes",
        score=round(face.score, 4),
        faces=rivals,
        box=face.box.round(1).tolist(),
        landmarks=landmarks.round(2).ravel().tolist(),
        eye_distance=round(float(np.linalg.norm(landmarks[1] - landmarks[0])), 1),
        sharpness=round(sharpness(crop), 1),
        inside=round(share_inside(map_23, image, options.size), 3),
        note="several faces; left out" if left_out else "several faces" if rivals > 1 else "",
    )
    return line, None if left_out else crop
