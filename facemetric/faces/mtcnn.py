"""Where the faces of photographs are: MTCNN, three small networks one after the other, on many photographs at once.

A proposal network runs over a pyramid of the photograph and marks squares of 12 pixels that may be faces; a refinement
network looks at each with 24 pixels, an output network at what is left with 48: it gives the score, the box and five
landmarks. Source: Zhang et al. 2016, arXiv:1604.02878; the weights are those of facenet-pytorch 2.5.3
(weights/mtcnn/README.md), and boxes, scores and landmarks are those that it gives. The networks run by ONNX Runtime
where it is installed, else by torch; everything around them is numpy.

Shapes: N photographs, C candidates of all of them, K faces, V views, S side. Points are (x, y) in pixels, the middle
of the first pixel at (0, 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

import facemetric
from facemetric.errors import WeightsError
from facemetric.faces.detector import Detection, Look, default_detector
from facemetric.faces.onnx_networks import OnnxNetworks, can_run
from facemetric.faces.template import apply_map, chain, cut_out, invert, to_crop

MIN_FACE = 24  # side of the smallest face that is looked for, pixels of the photograph as it is looked at
STEP = 0.709  # of the pyramid: each level has half the area of the one before
CELL, STRIDE = 12, 2  # of the proposal network, pixels of a level
LEAST = (0.6, 0.7, 0.7)  # scores that a candidate needs in the three networks
LEVELS_AT_ONCE = 100_000  # pixels of a level of the pyramid, of several photographs
PIXELS_AT_ONCE = 4_000_000  # of photographs: 32 of 250 x 250 and more, five of 1,000 x 750
MIDDLE, SPREAD = 127.5, 128.0  # of pixels, before a network
PACKAGE = Path(facemetric.__file__).parent
PLACES = (PACKAGE.parent / "weights" / "mtcnn", PACKAGE / "shipped" / "mtcnn")  # in a checkout, in a wheel

# The second look: a square of 54 pixels about the upright face, and five views of 48 in it.
VIEW, SHIFT = 48, 3
LOOK = VIEW + 2 * SHIFT
VIEWS = ((3, 3), (6, 6), (0, 0), (0, 6), (6, 0))  # left and top
VIEW_SCALE = VIEW / 100  # MTCNN's own boxes are 100 template pixels wide, about (56, 64)
TO_LOOK = np.array([[VIEW_SCALE, 0, 27 - 56 * VIEW_SCALE - 0.5], [0, VIEW_SCALE, 27 - 64 * VIEW_SCALE - 0.5]])
NEAR = 12.0  # a second look that moves the landmarks by more, in template pixels, saw another face
SEEN = 0.5  # least mean score of the views that counts as a face, 0..1
SURE = 0.97  # a face of this score is upright
TURNED = 0.02  # a face that scores higher by this when it is turned is not upright


Array = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Networks(Protocol):
    """The three networks. `together`: how many pixels the proposal network, and the other two, take best at once."""

    together: tuple[int, int]

    def __call__(self, name: str, pixels: Array) -> tuple[Array, ...]:
        """What the network "proposal", "refinement" or "output" gives for normalised pixels (N, 3, H, W)."""
        ...


class Sums(NamedTuple):
    """Sums of the pixels above and to the left, of N pictures: the mean of any box of pixels is four of them away.

    `at` (corners, 3) int32, row after row; picture n has `sizes[n]` (height, width) pixels, its corners begin at
    `starts[n]`. Sums that overflow wrap around, and so do their differences: boxes below 8 million pixels are exact."""

    at: npt.NDArray[np.int32]
    sizes: Ints
    starts: Ints


class Candidates(NamedTuple):
    """C squares that may be faces: `boxes` (C, 4) float32, `scores` (C,), `of` (C,) int64, the picture of each, and
    `moves` (C, 4), what a network would move the corners by, in shares of the sides."""

    boxes: Array
    scores: Array
    of: Ints
    moves: Array

    def take(self, rows: npt.NDArray) -> Candidates:
        """The candidates of these rows, or of a mask."""
        return Candidates(*(part[rows] for part in self))


NOTHING = Candidates(
    np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros((0, 4), np.float32)
)


class Mtcnn:
    """The default detector, with its weights. WeightsError where they do not read.

    `networks`: what computes the three networks; ONNX Runtime where it is installed, else torch."""

    def __init__(self, networks: Networks | None = None) -> None:
        self.networks = networks or default_networks()

    def __reduce__(self) -> tuple[Callable[[], Mtcnn], tuple[()]]:
        return default_detector, ()  # another process makes its own: sessions of ONNX Runtime do not travel

    def __call__(self, images: Sequence[Image.Image], /) -> list[list[Detection]]:
        """The faces of RGB pictures of any sizes, each picture's largest first."""
        found: list[list[Detection]] = []
        for part in parts_of(images):
            sums = sums_of([np.asarray(image) for image in part])
            found += self._output(sums, self._refine(sums, self._propose(sums)))
        return found

    def _in_pieces(self, name: str, pixels: Array) -> tuple[Array, ...]:
        """What a network gives, as many pixels at a time as it takes best."""
        count, _, height, width = pixels.shape
        most = max(1, self.networks.together[name != "proposal"] // (height * width))
        parts = [self.networks(name, pixels[at : at + most]) for at in range(0, max(count, 1), most)]
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))

    def _propose(self, sums: Sums) -> Candidates:
        """The squares of all levels of the pyramid that the first network marks."""
        levels = [NOTHING]
        for size in np.unique(sums.sizes, axis=0):
            height, width = size.tolist()
            of = np.flatnonzero((sums.sizes == size).all(1))
            scale = CELL / MIN_FACE
            while min(height, width) * scale >= CELL:
                together = max(1, int(LEVELS_AT_ONCE / (height * width * scale**2)))
                for at in range(0, len(of), together):
                    levels.append(self._one_level(sums, of[at : at + together], height, width, scale))
                scale *= STEP
        found = Candidates(*(np.concatenate(parts) for parts in zip(*levels, strict=True)))
        found = found.take(non_maximum(found, 0.7))
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        return found._replace(boxes=squares(found.boxes + found.moves * np.tile(sides, (1, 2))))

    def _one_level(self, sums: Sums, of: Ints, height: int, width: int, scale: float) -> Candidates:
        """The marked squares of pictures of one size, at one level, without those that another overlaps by half."""
        level = level_of(sums, of, (height, width), (int(height * scale + 1), int(width * scale + 1)))
        score, move = self._in_pieces("proposal", level)
        n, y, x = np.nonzero(score[:, 1] >= np.float32(LEAST[0]))
        corner = (STRIDE * np.stack([x, y], 1) + 1).astype(np.float32)
        by = np.float32(scale)
        boxes = np.concatenate([np.floor(corner / by), np.floor((corner + (CELL - 1)) / by)], 1)
        found = Candidates(boxes, score[n, 1, y, x], of[n], move[n, :, y, x])
        return found.take(non_maximum(found, 0.5))

    def _refine(self, sums: Sums, found: Candidates) -> Candidates:
        """What the second network leaves of the squares, moved to where it sees the faces."""
        found, cells = cells_of(sums, found, 24)
        score, moves = self._in_pieces("refinement", cells)
        found = found._replace(scores=score, moves=moves).take(score > np.float32(LEAST[1]))
        found = found.take(non_maximum(found, 0.7))
        return found._replace(boxes=squares(moved(found)))

    def _output(self, sums: Sums, found: Candidates) -> list[list[Detection]]:
        """What the third network sees in what is left, by picture."""
        found, cells = cells_of(sums, found, 48)
        score, moves, places = self._in_pieces("output", cells)
        sides = found.boxes[:, 2:] - found.boxes[:, :2] + 1
        points = places.reshape(-1, 2, 5).swapaxes(1, 2) * sides[:, None] + found.boxes[:, None, :2] - 1
        passed = score > np.float32(LEAST[2])
        found = found._replace(scores=score, moves=moves).take(passed)
        found = found._replace(boxes=moved(found))
        keep = non_maximum(found, 0.7, of_smaller=True)
        found, points = found.take(keep), points[passed][keep].astype(float)
        faces: list[list[Detection]] = [[] for _ in range(len(sums.sizes))]
        for of, box, landmarks, figure in zip(
            found.of, found.boxes.astype(float), points, found.scores.tolist(), strict=True
        ):
            faces[int(of)].append(Detection(box, landmarks, figure))
        return [sorted(each, key=lambda face: -face.area) for each in faces]

    def look_again(self, images: Sequence[Image.Image], landmarks: Sequence[np.ndarray], /) -> list[Look]:
        """Landmarks of one face in each picture, turned upright: the median of five views of it.

        The first look's landmarks jump by pixels when the photograph is turned, scaled or packed again, as its box
        does; these move by a fifth as much. They are kept where the views do not show a face at that place."""
        first, _ = self.look_at(images, landmarks, VIEWS[:1])
        seen, scores = self.look_at(images, first, VIEWS)
        doubtful = [i for i, score in enumerate(scores) if score < SURE]
        turned = np.zeros(len(images))
        turned[doubtful] = self.turned_scores([images[i] for i in doubtful], [first[i] for i in doubtful])
        looks = []
        for before, after, score, other in zip(landmarks, seen, scores, turned, strict=True):
            to_template = to_crop(before)
            moves = np.linalg.norm(apply_map(to_template, after) - apply_map(to_template, before), axis=1)
            kept = score < SEEN or moves.mean() > NEAR
            looks.append(Look(before if kept else after, score, bool(other <= score + TURNED)))
        return looks

    def look_at(
        self,
        images: Sequence[Image.Image],
        landmarks: Sequence[np.ndarray],
        views: Sequence[tuple[int, int]] = VIEWS,
    ) -> tuple[list[np.ndarray], list[float]]:
        """Median landmarks (5, 2), and the mean score, of what the third network sees in views of each face."""
        if not images:
            return [], []
        maps, pixels = self._upright(images, landmarks)
        cells = np.stack([pixels[:, :, y : y + VIEW, x : x + VIEW] for x, y in views], 1)
        score, _, places = self._in_pieces("output", cells.reshape(-1, 3, VIEW, VIEW))
        places_FV52 = places.astype(float).reshape(len(images), len(views), 2, 5).swapaxes(2, 3)
        seen = np.median(places_FV52 * VIEW + np.array(views)[:, None], 1)  # shares of the view's side
        back = [apply_map(invert(map_23), points) for map_23, points in zip(maps, seen, strict=True)]
        return back, score.reshape(len(images), -1).mean(1).tolist()

    def turned_scores(self, images: Sequence[Image.Image], landmarks: Sequence[np.ndarray]) -> list[float]:
        """The best score of each face when its middle view is turned by a quarter, a half and three quarters."""
        if not images:
            return []
        (x, y), (_, pixels) = VIEWS[0], self._upright(images, landmarks)
        view = pixels[:, :, y : y + VIEW, x : x + VIEW]
        cells = np.concatenate([np.rot90(view, quarters, (2, 3)) for quarters in (1, 2, 3)])
        score = self._in_pieces("output", cells)[0]
        return score.reshape(3, len(images)).max(0).tolist()

    def _upright(
        self, images: Sequence[Image.Image], landmarks: Sequence[np.ndarray]
    ) -> tuple[list[np.ndarray], Array]:
        """Each face turned upright, normalised (F, 3, LOOK, LOOK), and the maps (2, 3) that turned it."""
        maps = [chain(to_crop(points), TO_LOOK) for points in landmarks]
        shown = [np.asarray(cut_out(image, map_23, LOOK)) for image, map_23 in zip(images, maps, strict=True)]
        return maps, normalised(np.stack(shown).transpose(0, 3, 1, 2).astype(np.float32))


def default_networks() -> Networks:
    """The networks with the shipped weights, by ONNX Runtime where it is installed, else by torch."""
    weights = weights_file()
    if can_run():
        return OnnxNetworks(weights)
    from facemetric.faces.networks import TorchNetworks  # which imports torch

    return TorchNetworks(weights)


def weights_file() -> Path:
    """The file of the shipped detector. WeightsError where it is not there."""
    for place in PLACES:
        if (file := place / "model.safetensors").is_file():
            return file
    raise WeightsError(f"the detector's weights are not in {PLACES[1]}; install facemetric again")


def parts_of(images: Sequence[Image.Image]) -> list[list[Image.Image]]:
    """The pictures in their order, in parts of at most PIXELS_AT_ONCE, each of one picture at least."""
    parts: list[list[Image.Image]] = []
    room = 0
    for image in images:
        room -= image.width * image.height
        if room < 0:
            parts.append([])
            room = PIXELS_AT_ONCE - image.width * image.height
        parts[-1].append(image)
    return parts


def sums_of(pixels: Sequence[npt.NDArray[np.uint8]]) -> Sums:
    """The sums of uint8 pictures (height, width, 3)."""
    sizes = np.array([one.shape[:2] for one in pixels], np.int64)
    counts = (sizes + 1).prod(1)
    starts = counts.cumsum() - counts
    at = np.zeros((int(counts.sum()), 3), np.int32)  # a line of zeros above and to the left
    for one, start, count in zip(pixels, starts.tolist(), counts.tolist(), strict=True):
        own = at[start : start + count].reshape(one.shape[0] + 1, one.shape[1] + 1, 3)[1:, 1:]
        one.cumsum(0, dtype=np.int32).cumsum(1, out=own)
    return Sums(at, sizes, starts)


def edges(length: npt.ArrayLike, cells: int) -> tuple[Ints, Ints]:
    """First and end (..., cells) of the cells that `length` pixels are divided into; neighbours may share a pixel."""
    whole = np.asarray(length, np.int64)[..., None]
    steps = np.arange(cells) * whole
    return steps // cells, -(-(steps + whole) // cells)


def level_of(sums: Sums, of: Ints, size: tuple[int, int], level: tuple[int, int]) -> Array:
    """Pictures of one size, scaled to the pyramid's level by means of boxes: float32 (N, 3, *level)."""
    height, width = size
    (top, bottom), (left, right) = (edges(whole, cells) for whole, cells in zip(size, level, strict=True))
    area = ((bottom - top)[:, None] * (right - left)).astype(np.float32)[..., None]
    means = np.empty((len(of), *level, 3), np.float32)
    for mean, start in zip(means, sums.starts[of].tolist(), strict=True):
        at = sums.at[start : start + (height + 1) * (width + 1)].reshape(height + 1, width + 1, 3)
        rows = at.take(bottom, 0) - at.take(top, 0)
        np.divide(
            rows.take(right, 1) - rows.take(left, 1), area, out=mean, dtype=np.float32, casting="same_kind"
        )
    return normalised(means).transpose(0, 3, 1, 2)


def cells_of(sums: Sums, found: Candidates, cells: int) -> tuple[Candidates, Array]:
    """The candidates that lie in their pictures at all, and what they show: float32 (C, 3, cells, cells)."""
    size = sums.sizes[found.of]
    boxes = np.trunc(found.boxes).astype(np.int64)
    low = boxes[:, :2].clip(min=1) - 1
    high = np.minimum(boxes[:, 2:], size[:, ::-1])
    inside: npt.NDArray[np.bool_] = np.all(high > low, axis=1)
    low, high, size, found = low[inside], high[inside], size[inside], found.take(inside)
    (left, right), (top, bottom) = (edges(high[:, axis] - low[:, axis], cells) for axis in (0, 1))
    line = (size[:, 1] + 1)[:, None]
    start = sums.starts[found.of][:, None]
    above, below = (start + (low[:, 1:] + edge) * line for edge in (top, bottom))
    left, right = low[:, :1] + left, low[:, :1] + right

    def corner(rows: Ints, columns: Ints) -> npt.NDArray[np.int32]:
        return sums.at.take(rows[:, :, None] + columns[:, None], 0)

    total = corner(below, right) - corner(below, left) - corner(above, right) + corner(above, left)
    area = (bottom - top)[:, :, None] * (right - left)[:, None]
    means = total.astype(np.float32) / area.astype(np.float32)[..., None]
    return found, normalised(means).transpose(0, 3, 1, 2)


def normalised(pixels: Array) -> Array:
    """Pixels 0..255 as the networks want them."""
    return (pixels - np.float32(MIDDLE)) / np.float32(SPREAD)


def moved(found: Candidates) -> Array:
    """The boxes (C, 4) with their moves made. A box includes its last pixel."""
    return found.boxes + found.moves * np.tile(found.boxes[:, 2:] - found.boxes[:, :2] + 1, (1, 2))


def squares(boxes: Array) -> Array:
    """Squares (C, 4) about the same middles, as wide as the longer side."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = sides.max(1, keepdims=True)
    corner = boxes[:, :2] + (sides - longer) / 2
    return np.concatenate([corner, corner + longer], 1)


def non_maximum(found: Candidates, most: float, *, of_smaller: bool = False) -> Ints:
    """Rows (K,) of the candidates that overlap no better one of their picture by more than `most`, best first.

    Overlap is the share of the union, or with `of_smaller` of the smaller box, whose last pixels then count."""
    boxes, scores, of, _ = found
    extra = 1 if of_smaller else 0
    low, high = boxes[:, :2], boxes[:, 2:] + extra
    area = (high - low).prod(1)
    keep = []
    order = np.lexsort((-scores, of))
    for rows in np.split(order, np.flatnonzero(np.diff(of[order])) + 1):
        shared = np.minimum(high[rows, None], high[rows]) - np.maximum(low[rows, None], low[rows])
        both = shared.clip(0).prod(2)
        one, other = area[rows, None], area[rows]
        over = both > most * (np.minimum(one, other) if of_smaller else one + other - both)
        alive = np.ones(len(rows), bool)
        for i in range(len(rows)):
            if alive[i]:
                alive[i + 1 :] &= ~over[i, i + 1 :]
        keep.append(rows[alive])
    return np.concatenate(keep)
