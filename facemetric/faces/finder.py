"""The faces of pictures as every command that shows or compares them asks for: one call, in bounded memory.

finder = face_finder("auto", pictures=embedder.pictures)    # None: the pictures are embedded as they are
for found in finder(["a.jpg", "party.jpg", crop]):          # a FacesFound for each, in their order
    found.missing or found.take()                           # NoFace(reason), or the most prominent Face
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

from PIL import Image

from facemetric.errors import ConfigError
from facemetric.faces.crops import (
    DEFAULTS,
    Face,
    FacesFound,
    Given,
    NoFace,
    faces_in,
    good_faces,
    open_or_reason,
)
from facemetric.faces.detector import load_detector
from facemetric.faces.photographs import Picture
from facemetric.faces.template import SIDE

Faces = Literal["auto", "crops", "photographs", "off"]

TOGETHER = 64  # pictures that are looked at at once, at most
PIXELS_TOGETHER = 16_000_000  # and of how many pixels


class FaceFinder:
    """Pictures to their faces or the reason why there is none, many at once.

    `given` says what the pictures are: crops, photographs, or auto; `detector` is a name as `load_detector` takes it;
    faces whose quality is below `min_quality`, 0..1, do not count; `size` is the side of the crops in pixels.
    Raises ConfigError for a detector that is not there."""

    def __init__(
        self, detector: str = "", given: Given = "auto", min_quality: float = 0.0, *, size: int = SIDE
    ) -> None:
        self.detector = load_detector(detector)
        self.options = DEFAULTS._replace(given=given, size=size)
        self.min_quality = min_quality

    def __call__(self, pictures: Iterable[Picture]) -> Iterator[FacesFound]:
        """The faces of each picture (paths, bytes, PIL images or arrays), in their order.

        A picture that cannot be read has a reason, as one without a face has. Memory holds TOGETHER pictures, or
        PIXELS_TOGETHER of them and one more."""
        some: list[Image.Image | NoFace] = []
        pixels = 0
        for picture in pictures:
            some.append(opened := open_or_reason(picture))
            pixels += 0 if isinstance(opened, NoFace) else opened.width * opened.height
            if len(some) == TOGETHER or pixels >= PIXELS_TOGETHER:
                yield from self._look(some)
                some, pixels = [], 0
        yield from self._look(some)

    def _look(self, some: Sequence[Image.Image | NoFace]) -> Iterator[FacesFound]:
        for found in faces_in(some, self.detector, self.options):
            yield good_faces(found, self.min_quality)

    def one(self, picture: Picture) -> Face | NoFace:
        """The most prominent face of one picture, or why there is none."""
        found = next(iter(self([picture])))
        return found.missing or found.take()


def face_finder(
    faces: Faces | FaceFinder,
    *,
    pictures: str,
    detector: str = "",
    min_quality: float = 0.0,
    size: int = SIDE,
) -> FaceFinder | None:
    """The finder that `--faces` asks for, None where no face is looked for; a finder stays as it is.

    `pictures` is what the weights expect (`Embedder.pictures`): auto is off where that is not faces.
    Raises ConfigError where a detector or a quality is named and no face is looked for."""
    if isinstance(faces, FaceFinder):
        return faces
    given = "off" if faces == "auto" and not pictures else faces
    if given == "off":
        option = "--detector" if detector else "--min-quality" if min_quality else ""
        if option:
            why = "--faces is off" if faces == "off" else "these weights are not known to be of faces"
            raise ConfigError(f"{option} is given, but {why}; leave it out, or look by --faces photographs")
        return None
    return FaceFinder(detector, given, min_quality, size=size)
