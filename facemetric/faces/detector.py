"""What a face detector is: pictures to boxes, landmarks and scores. The default one, and anybody's by name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from facemetric.errors import ConfigError, given

if TYPE_CHECKING:
    from facemetric.faces.mtcnn import Mtcnn


class Detection(NamedTuple):
    """A face: box (left, top, right, bottom), landmarks (5, 2) in the order of the template, score 0..1."""

    box: np.ndarray
    landmarks: np.ndarray
    score: float

    @property
    def area(self) -> float:
        """Square pixels of the box."""
        return float(np.prod(np.maximum(self.box[2:] - self.box[:2], 0)))


class Detector(Protocol):
    """Anybody's detector: RGB pictures to the faces of each, in any order, of any score."""

    def __call__(self, images: Sequence[Image.Image], /) -> Sequence[Sequence[Detection]]: ...


class Look(NamedTuple):
    """Landmarks (5, 2) of the second look, its score: how much of a face the views show, 0..1; and whether no turned
    view shows more of one."""

    landmarks: np.ndarray
    score: float
    upright: bool


@runtime_checkable
class SecondLook(Protocol):
    """A detector that can look again at faces it found, turned upright."""

    def look_again(self, images: Sequence[Image.Image], landmarks: Sequence[np.ndarray], /) -> list[Look]: ...


@cache
def default_detector() -> Mtcnn:
    """The default detector on the CPU, made once."""
    from facemetric.faces.mtcnn import Mtcnn  # which makes the records of this module

    return Mtcnn()


def load_detector(name: str) -> Detector:
    """The detector of a name: empty for the default one, "package.module:function" for anybody's.

    ConfigError where there is no such function. What it gives is checked when it is used (`_Checked`)."""
    if not name:
        return default_detector()
    module_name, _, function = name.partition(":")
    if not module_name or not function:
        raise ConfigError(f"--detector is {name!r}; name it as package.module:function")
    try:
        found = getattr(importlib.import_module(module_name), function)
    except ImportError as error:
        raise ConfigError(f"{given('--detector', name)} does not import: {error}") from error
    except AttributeError:
        raise ConfigError(f"{given('--detector', name)}: {module_name} has no {function!r}") from None
    if not callable(found):
        raise ConfigError(f"{given('--detector', name)} is no function of a list of pictures")
    return _Checked(found, name)


class _Checked:
    """Anybody's detector, its faces as Detection. ConfigError where they are something else."""

    def __init__(self, function: Detector, name: str) -> None:
        self.function, self.name = function, name

    def __call__(self, images: Sequence[Image.Image], /) -> list[list[Detection]]:
        found = list(self.function(images))
        if len(found) != len(images):
            raise ConfigError(
                f"{given('--detector', self.name)} gave {len(found)} lists of faces for {len(images)} pictures"
            )
        return [[self._checked(face) for face in faces] for faces in found]

    def _checked(self, face: object) -> Detection:
        try:
            parts: tuple[Any, Any, Any] = face  # type: ignore[assignment]
            box, landmarks, score = parts
            made = Detection(np.asarray(box, float), np.asarray(landmarks, float), float(score))
        except (TypeError, ValueError):
            made = Detection(np.zeros(0), np.zeros(0), 0.0)  # of no shape that is allowed
        finite = bool(np.isfinite(np.concatenate([made.box, made.landmarks.ravel(), [made.score]])).all())
        if made.box.shape != (4,) or made.landmarks.shape != (5, 2) or not finite:
            raise ConfigError(
                f"{given('--detector', self.name)} gave {str(face)[:80]!r}; "
                "a face is (box of 4 numbers, landmarks (5, 2), score)"
            )
        return made
