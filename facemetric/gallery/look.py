"""From photographs to the faces in them, each with its crop and its embedding: the one way into a gallery."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from facemetric.faces.crops import Face, choose, open_or_reason, rivals
from facemetric.faces.finder import FaceFinder
from facemetric.faces.photographs import Picture
from facemetric.faces.quality import Quality

if TYPE_CHECKING:
    from facemetric.model.weights.opened import Network

TOGETHER = 64  # photographs that are in memory at once
CROP_QUALITY = 90  # of the JPEGs that are kept: 4 kB a face
WHOLE = Quality(math.nan, 1.0, 0.0, 0.0, 0.0)  # of a picture that is taken as it is: nothing is known of it
SMALL = 10.0  # pixels between the eyes, of a face 20 pixels wide: README.md says what a smaller one costs


class Photo(NamedTuple):
    """A photograph and what it is called; `reason` says why its bytes could not be read."""

    name: str
    picture: Picture
    reason: str = ""


@dataclass(frozen=True, eq=False)
class SeenFace:
    """A face in a photograph. `box` (left, top, right, bottom) in pixels of the upright photograph, `quality` 0..1 (NaN
    where no face was looked for), `eye_distance` in pixels (0 there), `embedding` float32 (D,), unit length."""

    crop: Image.Image
    box: tuple[float, float, float, float]
    quality: float
    eye_distance: float
    embedding: npt.NDArray[np.float32]

    @property
    def is_small(self) -> bool:
        """Whether so little of the face is there that an answer is to be trusted less."""
        return 0 < self.eye_distance < SMALL

    @property
    def width(self) -> float:
        """Pixels."""
        return self.box[2] - self.box[0]


@dataclass(frozen=True, eq=False)
class SeenPhoto:
    """The faces of a photograph, the largest first, or why there is none (`missing`). `taken`: which of the faces is
    the prominent one, `rivals`: how many are of like size, itself counted; `sha256` of the photograph's bytes."""

    name: str
    sha256: bytes
    faces: tuple[SeenFace, ...] = ()
    taken: int = 0
    rivals: int = 1
    missing: str = ""


def read_photo(file: str | Path) -> Photo:
    """A file as a photograph; one that cannot be read has a reason."""
    try:
        return Photo(str(file), Path(file).read_bytes())
    except IsADirectoryError:
        return Photo(str(file), b"", "a folder, not a photograph")
    except FileNotFoundError:
        return Photo(str(file), b"", "no such file")
    except (OSError, ValueError) as error:
        return Photo(str(file), b"", getattr(error, "strerror", None) or str(error))


def see(
    embedder: Network, finder: FaceFinder | None, photos: Iterable[Photo], *, flip: bool = False
) -> Iterator[SeenPhoto]:
    """Each photograph with its faces and their embeddings, in their order; memory holds TOGETHER photographs.

    `finder` None: a photograph counts as one face as it is. A photograph without a face, or none at all, has a reason
    and is no error."""
    photos = iter(photos)
    while some := list(islice(photos, TOGETHER)):
        found = _faces_of(finder, some)
        crops = [face.crop for _, faces, _ in found for face in faces]
        emb_FD = embedder.embed(crops, flip=flip, faces="off") if crops else np.zeros((0, 0), np.float32)
        embeddings = iter(emb_FD)
        for photo, (missing, faces, picked) in zip(some, found, strict=True):
            seen = tuple(_seen(face, next(embeddings)) for face in faces)
            several = rivals(faces[picked], faces) if faces else 0
            yield SeenPhoto(photo.name, hash_of(photo.picture), seen, picked, several, missing)


def _faces_of(finder: FaceFinder | None, photos: list[Photo]) -> list[tuple[str, tuple[Face, ...], int]]:
    """Of each photograph: why it has no face, its faces, and which is the prominent one."""
    readable = [photo for photo in photos if not photo.reason]
    if finder is None:
        given = iter([_whole(photo.picture) for photo in readable])
    else:
        looked = finder(photo.picture for photo in readable)
        given = iter(
            [
                (found.missing.reason, (), 0)
                if found.missing
                else ("", found.faces, _place(found.faces, choose(found.faces, found.size, "prominent")))
                for found in looked
            ]
        )
    return [(photo.reason, (), 0) if photo.reason else next(given) for photo in photos]


def _place(faces: tuple[Face, ...], wanted: Face) -> int:
    return next(i for i, face in enumerate(faces) if face is wanted)


def _whole(picture: Picture) -> tuple[str, tuple[Face, ...], int]:
    """A picture as the one face that it is."""
    opened = open_or_reason(picture)
    if not isinstance(opened, Image.Image):
        return opened.reason, (), 0
    box = np.array([0, 0, *opened.size], float)
    return "", (Face(opened, box, np.zeros((5, 2)), 1.0, WHOLE, was_crop=True),), 0


def _seen(face: Face, embedding: npt.NDArray[np.float32]) -> SeenFace:
    left, top, right, bottom = (float(edge) for edge in face.box)
    quality = face.quality
    box = (left, top, right, bottom)
    return SeenFace(face.crop, box, quality.figure, quality.eye_distance, embedding)


def hash_of(picture: Picture) -> bytes:
    """SHA-256 of a file's bytes, or of the pixels of a picture in memory."""
    if isinstance(picture, bytes):
        return hashlib.sha256(picture).digest()
    if isinstance(picture, (str, Path)):
        return hashlib.sha256(Path(picture).read_bytes()).digest()
    pixels = np.ascontiguousarray(picture)
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()


def jpeg_of(crop: Image.Image) -> bytes:
    """A crop as JPEG."""
    buffer = io.BytesIO()
    crop.convert("RGB").save(buffer, "JPEG", quality=CROP_QUALITY, subsampling=0)
    return buffer.getvalue()
