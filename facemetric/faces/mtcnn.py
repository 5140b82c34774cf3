"""Where the faces of photographs are: MTCNN, three small networks one after the other, on many photographs at once.

A proposal network runs over a pyramid of the photograph and marks squares of 12 pixels that may be faces; a refinement
network looks at each with 24 pixels, an output network at what is left with 48: it gives the score, the box and five
landmarks. Source: Zhang et al. 2016, arXiv:1604.02878; the weights are those of facenet-pytorch 2.5.3
(weights/mtcnn/README.md), and boxes, scores and landmarks are those that it gives.

Shapes: N photographs, C candidates of all of them, K faces, V views, S side. Points are (x, y) in pixels, the middle
of the first pixel at (0, 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

import facemetric
from facemetric.errors import WeightsError
from facemetric.faces.detector import Detection, Look
from facemetric.faces.networks import OutputNet, ProposalNet, RefinementNet
from facemetric.faces.template import apply_map, chain, cut_out, invert, to_crop

MIN_FACE = 24  # side of the smallest face that is looked for, pixels of the photograph as it is looked at
STEP = 0.709  # of the pyramid: each level has half the area of the one before
CELL, STRIDE = 12, 2  # of the proposal network, pixels of a level
LEAST = (0.6, 0.7, 0.7)  # scores that a candidate needs in the three networks
IN_CACHE = 100_000  # pixels in a network together
PIXELS_AT_ONCE = 4_000_000  # of photographs: 32 of 250 x 250 and more, five of 1,000 x 750
PAD = (0, 0, 1, 0, 1, 0)  # a line of zeros above and to the left
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


class Sums(NamedTuple):
    """Sums of the pixels above and to the left, of N pictures: the mean of any box of pixels is four of them away.

    `at` (corners, 3) int32, row after row; picture n has `sizes[n]` (height, width) pixels, its corners begin at
    `starts[n]`. Sums that overflow wrap around, and so do their differences: boxes below 8 million pixels are exact."""

    at: Tensor
    sizes: Tensor
    starts: Tensor


class Candidates(NamedTuple):
    """C squares that may be faces: `boxes` (C, 4) float32, `scores` (C,), `of` (C,) int64, the picture of each, and
    `moves` (C, 4), what a network would move the corners by, in shares of the sides."""

    boxes: Tensor
    scores: Tensor
    of: Tensor
    moves: Tensor

    def take(self, rows: Tensor) -> Candidates:
        """The candidates of these rows, or of a mask."""
        return Candidates(*(part[rows] for part in self))


class Mtcnn:
    """The default detector, with its weights. WeightsError where they do not read."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.proposal, self.refinement, self.output = ProposalNet(), RefinementNet(), OutputNet()
        weights = read_weights()
        for name in ("proposal", "refinement", "output"):
            net: nn.Module = getattr(self, name)
            own = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}
            net.load_state_dict(own)
            # Pooling over whole lines of channels takes an eighth of the time of one channel after the other.
            net.eval().requires_grad_(False).to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], /) -> list[list[Detection]]:
        """The faces of RGB pictures of any sizes, each picture's largest first."""
        found: list[list[Detection]] = []
        for part in parts_of(images):
            sums = sums_of([torch.from_numpy(np.array(image)).to(self.device) for image in part])
            found += self._output(sums, self._refine(sums, self._propose(sums)))
        return found

    def _propose(self, sums: Sums) -> Candidates:
        """The squares of all levels of the pyramid that the first network marks."""
        levels = [_nothing(self.device)]
        for size in sums.sizes.unique(dim=0):
            height, width = size.tolist()
            of = torch.nonzero((sums.sizes == size).all(1)).flatten()
            scale = CELL / MIN_FACE
            while min(height, width) * scale >= CELL:
                for some in of.split(max(1, int(IN_CACHE / (height * width * scale**2)))):
                    levels.append(self._one_level(sums, some, height, width, scale))
                scale *= STEP
        found = Candidates(*(torch.cat(parts) for parts in zip(*levels, strict=True)))
        found = found.take(non_maximum(found, 0.7))
        sides = found.boxes[:, 2:] - found.boxes[:, :2]
        return found._replace(boxes=squares(found.boxes + found.moves * sides.repeat(1, 2)))

    def _one_level(self, sums: Sums, of: Tensor, height: int, width: int, scale: float) -> Candidates:
        """The marked squares of pictures of one size, at one level, without those that another overlaps by half."""
        level = level_of(sums, of, (height, width), (int(height * scale + 1), int(width * scale + 1)))
        score, move = self.proposal(level)
        n, y, x = torch.nonzero(score[:, 1] >= LEAST[0], as_tuple=True)
        corner = STRIDE * torch.stack([x, y], 1).float() + 1
        boxes = torch.cat([(corner / scale).floor(), ((corner + CELL - 1) / scale).floor()], 1)
        found = Candidates(boxes, score[n, 1, y, x], of[n], move[n, :, y, x])
        return found.take(non_maximum(found, 0.5))

    def _refine(self, sums: Sums, found: Candidates) -> Candidates:
        """What the second network leaves of the squares, moved to where it sees the faces."""
        found, cells = cells_of(sums, found, 24)
        score, moves = in_batches(self.refinement, cells)
        found = found._replace(scores=score, moves=moves).take(score > LEAST[1])
        found = found.take(non_maximum(found, 0.7))
        return found._replace(boxes=squares(moved(found)))

    def _output(self, sums: Sums, found: Candidates) -> list[list[Detection]]:
        """What the third network sees in what is left, by picture."""
        found, cells = cells_of(sums, found, 48)
        score, moves, places = in_batches(self.output, cells)
        sides = found.boxes[:, 2:] - found.boxes[:, :2] + 1
        points = places.view(-1, 2, 5).transpose(1, 2) * sides[:, None] + found.boxes[:, None, :2] - 1
        passed = score > LEAST[2]
        found = found._replace(scores=score, moves=moves).take(passed)
        found = found._replace(boxes=moved(found))
        keep = non_maximum(found, 0.7, of_smaller=True)
        found, points = found.take(keep), points[passed][keep]
        faces: list[list[Detection]] = [[] for _ in range(len(sums.sizes))]
        columns = (found.of, found.boxes, points, found.scores)
        for of, box, landmarks, figure in zip(*(c.cpu().double().numpy() for c in columns), strict=True):
            faces[int(of)].append(Detection(box, landmarks, float(figure)))
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

    @torch.inference_mode()
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
        cells = torch.stack([pixels[:, :, y : y + VIEW, x : x + VIEW] for x, y in views], 1).flatten(0, 1)
        score, _, places = in_batches(self.output, cells.contiguous(memory_format=torch.channels_last))
        places_FV52 = places.cpu().double().view(len(images), len(views), 2, 5).transpose(2, 3).numpy()
        seen = np.median(places_FV52 * VIEW + np.array(views)[:, None], 1)  # shares of the view's side
        back = [apply_map(invert(map_23), points) for map_23, points in zip(maps, seen, strict=True)]
        return back, score.view(len(images), -1).mean(1).tolist()

    @torch.inference_mode()
    def turned_scores(self, images: Sequence[Image.Image], landmarks: Sequence[np.ndarray]) -> list[float]:
        """The best score of each face when its middle view is turned by a quarter, a half and three quarters."""
        if not images:
            return []
        (x, y), (_, pixels) = VIEWS[0], self._upright(images, landmarks)
        view = pixels[:, :, y : y + VIEW, x : x + VIEW]
        cells = torch.cat([view.rot90(quarters, (2, 3)) for quarters in (1, 2, 3)])
        score = in_batches(self.output, cells.contiguous(memory_format=torch.channels_last))[0]
        return score.view(3, len(images)).amax(0).tolist()

    def _upright(
        self, images: Sequence[Image.Image], landmarks: Sequence[np.ndarray]
    ) -> tuple[list[np.ndarray], Tensor]:
        """Each face turned upright, normalised (F, 3, LOOK, LOOK), and the maps (2, 3) that turned it."""
        maps = [chain(to_crop(points), TO_LOOK) for points in landmarks]
        shown = [np.asarray(cut_out(image, map_23, LOOK)) for image, map_23 in zip(images, maps, strict=True)]
        pixels = torch.from_numpy(np.stack(shown)).to(self.device).permute(0, 3, 1, 2)
        return maps, normalised(pixels.float())


def read_weights() -> dict[str, Tensor]:
    """The tensors of the shipped detector. WeightsError where they are not there or damaged."""
    for place in PLACES:
        file = place / "model.safetensors"
        if file.is_file():
            try:
                return load_file(file)
            except (OSError, SafetensorError) as error:
                raise WeightsError(f"{file} cannot be read ({error}); install facemetric again") from error
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


def sums_of(pixels: Sequence[Tensor]) -> Sums:
    """The sums of uint8 pictures (height, width, 3)."""
    corners = [
        functional.pad(one.to(torch.int32).cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32), PAD)
        for one in pixels
    ]
    sizes = torch.tensor([one.shape[:2] for one in pixels], device=pixels[0].device)
    counts = (sizes + 1).prod(1)
    return Sums(torch.cat([one.view(-1, 3) for one in corners]), sizes, counts.cumsum(0) - counts)


def edges(length: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """First and end (..., cells) of the cells that `length` pixels are divided into; neighbours may share a pixel."""
    steps = torch.arange(cells, device=length.device) * length[..., None]
    return steps // cells, -(-(steps + length[..., None]) // cells)


def level_of(sums: Sums, of: Tensor, size: tuple[int, int], level: tuple[int, int]) -> Tensor:
    """Pictures of one size, scaled to the pyramid's level by means of boxes: float32 (N, 3, *level)."""
    (height, width), device = size, sums.at.device
    starts, lines = sums.starts[of].tolist(), (height + 1) * (width + 1)
    if starts[-1] - starts[0] == (len(of) - 1) * lines:  # side by side: no copy
        at = sums.at[starts[0] : starts[-1] + lines]
    else:
        at = torch.cat([sums.at[start : start + lines] for start in starts])
    at = at.view(len(of), height + 1, width + 1, 3)
    (top, bottom), (left, right) = (
        edges(torch.tensor(whole, device=device), cells) for whole, cells in zip(size, level, strict=True)
    )
    rows = at.index_select(1, bottom) - at.index_select(1, top)
    means = (rows.index_select(2, right) - rows.index_select(2, left)) / (
        (bottom - top)[:, None] * (right - left)
    )[..., None]
    return normalised(means).permute(0, 3, 1, 2)


def cells_of(sums: Sums, found: Candidates, cells: int) -> tuple[Candidates, Tensor]:
    """The candidates that lie in their pictures at all, and what they show: float32 (C, 3, cells, cells)."""
    size = sums.sizes[found.of]
    boxes = found.boxes.trunc().long()
    low = boxes[:, :2].clamp(min=1) - 1
    high = torch.minimum(boxes[:, 2:], size.flip(1))
    inside = (high > low).all(1)
    low, high, size, found = low[inside], high[inside], size[inside], found.take(inside)
    (left, right), (top, bottom) = (edges(high[:, axis] - low[:, axis], cells) for axis in (0, 1))
    line = (size[:, 1] + 1)[:, None]
    start = sums.starts[found.of][:, None]
    above, below = (start + (low[:, 1:] + edge) * line for edge in (top, bottom))
    left, right = low[:, :1] + left, low[:, :1] + right

    def corner(rows: Tensor, columns: Tensor) -> Tensor:
        return sums.at.index_select(0, (rows[:, :, None] + columns[:, None]).flatten())

    total = corner(below, right) - corner(below, left) - corner(above, right) + corner(above, left)
    area = (bottom - top)[:, :, None] * (right - left)[:, None]
    means = total.view(-1, cells, cells, 3) / area[..., None]
    return found, normalised(means).permute(0, 3, 1, 2)


def normalised(pixels: Tensor) -> Tensor:
    """Pixels 0..255 as the networks want them."""
    return (pixels - MIDDLE) / SPREAD


def in_batches(net: Callable[[Tensor], tuple[Tensor, ...]], cells: Tensor) -> tuple[Tensor, ...]:
    """net(cells), IN_CACHE pixels at a time."""
    parts = [net(some) for some in cells.split(IN_CACHE // (cells.shape[2] * cells.shape[3]))]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def moved(found: Candidates) -> Tensor:
    """The boxes (C, 4) with their moves made. A box includes its last pixel."""
    return found.boxes + found.moves * (found.boxes[:, 2:] - found.boxes[:, :2] + 1).repeat(1, 2)


def squares(boxes: Tensor) -> Tensor:
    """Squares (C, 4) about the same middles, as wide as the longer side."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = sides.amax(1, keepdim=True)
    corner = boxes[:, :2] + (sides - longer) / 2
    return torch.cat([corner, corner + longer], 1)


def non_maximum(found: Candidates, most: float, *, of_smaller: bool = False) -> Tensor:
    """Rows (K,) of the candidates that overlap no better one of their picture by more than `most`, best first.

    Overlap is the share of the union, or with `of_smaller` of the smaller box, whose last pixels then count."""
    boxes, scores, of = (part.cpu().numpy() for part in (found.boxes, found.scores, found.of))
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
    return torch.from_numpy(np.concatenate(keep)).to(found.boxes.device)


def _nothing(device: torch.device) -> Candidates:
    empty = torch.zeros(0, device=device)
    return Candidates(torch.zeros(0, 4, device=device), empty, empty.long(), torch.zeros(0, 4, device=device))
