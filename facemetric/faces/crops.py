"""From a photograph to its faces, each turned upright and cut to the template; or the reason why there is none.

A picture that is a crop of a face already (`crop_look`) stays as it is. In any other the detector looks for faces: at
the photograph with a longer side of 640 pixels; where it finds none at twice that; where it still finds none, at the
three other turns, as phones lose the note which side was up. A picture of a crop's shape is without a face where
neither of the two looks sees one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from facemetric.data.images import BadImage
from facemetric.faces.crop_look import LEAST_SIDE, SQUARE, CropLook, crop_looks, is_whole
from facemetric.faces.detector import Detection, Detector, Look, SecondLook, default_detector
from facemetric.faces.mtcnn import SEEN
from facemetric.faces.photographs import Picture, open_photograph
from facemetric.faces.quality import Quality, quality_of
from facemetric.faces.template import SIDE, TEMPLATE, cut_out, share_inside, to_crop

Given = Literal["auto", "crops", "photographs"]
Choice = Literal["prominent", "largest", "central"]

SMALLEST = 96  # shorter side of a photograph to look at: a smaller one is enlarged
SMALL = 256  # longer side up to which it is enlarged to twice its size where nothing is found
ABOUT = 30.0  # template pixels that the face of a crop, as the detector finds it, may be off the template's
GLIMPSED = 0.2  # least face score of a face that the detector found upright
RIVAL = 0.25  # a face of at least this share of the taken one's area counts as another
TURNS = (1, 3, 2)  # quarters, counterclockwise: the phone held to either side, then upside down
ROTATIONS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


class Options(NamedTuple):
    """What decides the crops. `given` says what the pictures are: crops, photographs, or either."""

    size: int = SIDE  # of the crops, pixels; the template grows with it
    detect_size: int = 640  # longer side of the photograph as it is looked at, pixels
    min_score: float = 0.9  # of the detector, 0..1
    turns: bool = True  # look at the other three turns where nothing is found
    given: Given = "auto"


DEFAULTS = Options()


class Face(NamedTuple):
    """A face: its crop, and where it is in the upright photograph, in pixels.

    `box` (left, top, right, bottom) and `landmarks` (5, 2) as in the template; `score` of the detector, 0..1;
    `inside` the share of the crop that lies in the photograph; `turn` the quarters, counterclockwise, by which the
    photograph was turned to find it; `was_crop` where the picture was a crop already and `crop` is the picture itself.
    """

    crop: Image.Image
    box: np.ndarray
    landmarks: np.ndarray
    score: float
    quality: Quality
    inside: float = 1.0
    turn: int = 0
    was_crop: bool = False

    @property
    def area(self) -> float:
        """Square pixels of the box."""
        return float(np.prod(np.maximum(self.box[2:] - self.box[:2], 0)))


class NoFace(NamedTuple):
    """Why a picture gives no face. `unreadable`: it is no picture at all, or a damaged one."""

    reason: str
    unreadable: bool = False


class FacesFound(NamedTuple):
    """The faces of one picture, the largest first, or why there are none. `size` is width, height."""

    faces: tuple[Face, ...]
    size: tuple[int, int]
    missing: NoFace | None = None

    def take(self, choice: Choice = "prominent") -> Face:
        """The chosen one of the faces, of which there is one at least."""
        return choose(self.faces, self.size, choice)


def find_faces(
    images: Sequence[Picture], detector: Detector | None = None, options: Options = DEFAULTS
) -> list[FacesFound]:
    """The faces of pictures, read from paths, bytes or memory; a picture that does not read is a reason, not an error.

    Pictures in one call are looked at together, so many small ones go faster than one after the other."""
    return faces_in([open_or_reason(image) for image in images], detector or default_detector(), options)


def open_or_reason(image: Picture) -> Image.Image | NoFace:
    """An upright RGB picture, or why it cannot be read."""
    try:
        return open_photograph(image)
    except (BadImage, OSError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        return NoFace(reason, unreadable=True)


def faces_in(
    images: Sequence[Image.Image | NoFace], detector: Detector, options: Options
) -> list[FacesFound]:
    """The faces of pictures that were opened, looked at together; what is none keeps its reason."""
    found: list[FacesFound | None] = [None] * len(images)
    opened: dict[int, Image.Image] = {}
    for i, image in enumerate(images):
        if isinstance(image, NoFace):
            found[i] = FacesFound((), (0, 0), image)
        elif min(image.size) < LEAST_SIDE:
            reason = f"{image.width} x {image.height} pixels; a face needs at least {LEAST_SIDE}"
            found[i] = FacesFound((), image.size, NoFace(reason))
        else:
            opened[i] = image
    crops = options.given == "crops"
    looks: dict[int, CropLook] = {}
    if options.given != "photographs":
        may_be = [i for i, one in opened.items() if min(one.size) >= SQUARE * max(one.size)]
        looks = dict(zip(may_be, crop_looks([opened[i] for i in may_be]), strict=True))
    for i, look in looks.items():
        if look.aligned or (crops and not look.fault):
            found[i] = _as_crop(opened.pop(i), look)
    if crops:
        for i in [i for i in opened if i not in looks]:
            shape = f"{opened[i].width} x {opened[i].height} pixels are no crop of a face; give it as a photograph"
            found[i] = FacesFound((), opened.pop(i).size, NoFace(shape))
        options = options._replace(turns=False)
    photographs = list(opened.values())
    for (i, image), faces in zip(
        opened.items(), _in_photographs(photographs, detector, options), strict=True
    ):
        found[i] = _second_thought(image, looks[i], faces, crops) if i in looks else faces
    return [one for one in found if one is not None]


def _second_thought(image: Image.Image, look: CropLook, faces: FacesFound, crops: bool) -> FacesFound:
    """What becomes of a picture of a crop's shape that was looked at as a photograph as well: of two looks that each
    miss a face now and then, one that sees it is enough."""
    if not crops:
        # A large picture without a face is a photograph: few crops are, and there the first look may err.
        saved = faces.missing is not None and not look.fault and max(image.size) <= SMALL
        return _as_crop(image, look) if saved else faces
    ratio, down = SIDE / image.width, (image.height - image.width) // 2
    for face in faces.faces:
        at = (face.landmarks - [0, down]) * ratio
        if np.linalg.norm(at - TEMPLATE, axis=1).mean() <= ABOUT:
            return _as_crop(image, look._replace(score=face.quality.face, landmarks=face.landmarks))
    return _as_crop(image, look)


def good_faces(found: FacesFound, min_quality: float) -> FacesFound:
    """Without the faces whose quality is below `min_quality`, 0..1; a reason where none is left."""
    good = tuple(face for face in found.faces if face.quality.figure >= min_quality)
    if good or not found.faces:
        return found._replace(faces=good)
    best = max(face.quality.figure for face in found.faces)
    reason = f"the face is of quality {best:.2f}, below the {min_quality:g} asked for (--min-quality)"
    return found._replace(faces=(), missing=NoFace(reason))


def face_or_reason(
    image: Picture,
    detector: Detector | None = None,
    options: Options = DEFAULTS,
    *,
    choice: Choice = "prominent",
) -> Face | NoFace:
    """The face of one picture, the chosen one of several, or the reason why there is none."""
    found = find_faces([image], detector, options)[0]
    return found.missing or choose(found.faces, found.size, choice)


def _as_crop(image: Image.Image, look: CropLook) -> FacesFound:
    if look.fault:
        return FacesFound((), image.size, NoFace(look.fault))
    box = np.array([0, 0, *image.size], float)
    quality = quality_of(image, look.landmarks, look.score)
    face = Face(image, box, look.landmarks, look.score, quality, was_crop=True)
    return FacesFound((face,), image.size)


class _Seen(NamedTuple):
    """A detection in pixels of the upright photograph, the turn that it was found with, and the second look."""

    detection: Detection
    turn: int
    look: Look


def _in_photographs(images: Sequence[Image.Image], detector: Detector, options: Options) -> list[FacesFound]:
    """The faces of upright RGB photographs."""
    found = []
    for image, several in zip(images, _search(images, detector, options), strict=True):
        faces = [_cut(image, one, options.size) for one in several]
        whole = sorted((face for face in faces if is_whole(face.crop)), key=lambda face: -face.area)
        reason = "half of the face is not in the picture" if faces else "no face found"
        found.append(FacesFound(tuple(whole), image.size, None if whole else NoFace(reason)))
    return found


def _cut(image: Image.Image, one: _Seen, size: int) -> Face:
    landmarks = one.look.landmarks.round(
        2
    )  # as a csv holds them; and photographs beside it change the last bits
    map_23 = to_crop(landmarks, size)
    crop = cut_out(image, map_23, size)
    quality = quality_of(crop, landmarks, one.look.score)
    inside = share_inside(map_23, image.size, size)
    return Face(crop, one.detection.box, landmarks, one.detection.score, quality, inside, one.turn)


def _search(images: Sequence[Image.Image], detector: Detector, options: Options) -> list[list[_Seen]]:
    """The faces of each photograph, at the first scale and turn that shows one."""
    found: dict[int, list[_Seen]] = {i: [] for i in range(len(images))}
    scales = [_scale(image.size, options.detect_size) for image in images]

    def missed() -> list[int]:
        return [i for i, several in found.items() if not several]

    found |= _look(images, missed(), detector, options, scales=scales)
    larger = [
        2 * scale if max(image.size) <= SMALL else min(1.0, 2 * scale)
        for image, scale in zip(images, scales, strict=True)
    ]
    again = [i for i in missed() if larger[i] > scales[i]]
    found |= _look(images, again, detector, options, scales=larger)
    if options.turns and (rows := missed()):
        turned = [_look(images, rows, detector, options, scales=scales, turn=turn) for turn in TURNS]
        for i in rows:  # an upside-down face may pass for one: the turn that shows most of a face
            found[i] = max(
                (one[i] for one in turned),
                key=lambda several: max((s.look.score for s in several), default=0),
            )
    return [found[i] for i in range(len(images))]


def _look(
    images: Sequence[Image.Image],
    rows: Sequence[int],
    detector: Detector,
    options: Options,
    *,
    scales: Sequence[float],
    turn: int = 0,
) -> dict[int, list[_Seen]]:
    """Faces of at least `min_score` that a second look confirms, by the photograph's row."""
    small = [_scaled(images[i], scales[i]) for i in rows]
    rotation = ROTATIONS[turn]
    shown = [one.transpose(rotation) for one in small] if rotation is not None else small
    pairs = [
        (i, _in_photograph(each, turn, one.size, images[i].size))
        for i, one, detections in zip(rows, small, detector(shown) if shown else [], strict=True)
        for each in detections
        if each.score >= options.min_score
    ]
    if isinstance(detector, SecondLook):
        looks = detector.look_again([images[i] for i, _ in pairs], [one.landmarks for _, one in pairs])
    else:
        looks = [Look(one.landmarks, one.score, True) for _, one in pairs]
    least = SEEN if turn else GLIMPSED
    found: dict[int, list[_Seen]] = {i: [] for i in rows}
    for (i, one), look in zip(pairs, looks, strict=True):
        if look.upright and look.score >= least:
            found[i].append(_Seen(one, turn, look))
    return found


def _scale(size: tuple[int, int], detect_size: int) -> float:
    return max(min(1.0, detect_size / max(size)), SMALLEST / min(size))


def _scaled(image: Image.Image, scale: float) -> Image.Image:
    if scale == 1:
        return image
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)


def _in_photograph(found: Detection, turn: int, small: tuple[int, int], size: tuple[int, int]) -> Detection:
    """A detection in a turned, scaled picture, in pixels of the photograph."""
    ratio = np.array(size) / small
    corners = _turn_back(found.box.reshape(2, 2) - 0.5, turn, small) + 0.5  # edges, not middles, of pixels
    box = np.concatenate([corners.min(0), corners.max(0)]) * np.tile(ratio, 2)
    landmarks = (_turn_back(found.landmarks, turn, small) + 0.5) * ratio - 0.5
    return Detection(box, landmarks, found.score)


def _turn_back(points: np.ndarray, turn: int, size: tuple[int, int]) -> np.ndarray:
    """Points (N, 2) of a picture turned by quarters, counterclockwise, in the picture of width and height before."""
    (width, height), (x, y) = size, points.T
    if turn == 1:
        return np.stack([width - 1 - y, x], 1)
    if turn == 2:
        return np.stack([width - 1 - x, height - 1 - y], 1)
    return np.stack([y, height - 1 - x], 1) if turn == 3 else points


def choose(faces: Sequence[Face], size: tuple[int, int], choice: Choice) -> Face:
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
    return max(faces, key=worth[choice])


def rivals(face: Face, faces: Sequence[Face]) -> int:
    """Faces of at least a quarter of the chosen one's area, itself counted."""
    return sum(other.area >= RIVAL * face.area for other in faces)
