"""One person or two on two images, by a threshold that the weights hold: `facemetric verify` and `Verifier`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from facemetric.config import VerifyConfig, check_ranges, require
from facemetric.config.calls import takes_options
from facemetric.errors import plural
from facemetric.evaluation.thresholds import Stored, stored_threshold
from facemetric.machine import pick_device
from facemetric.model.embedder import similarity
from facemetric.model.pictures import Picture, picture_size, read_picture
from facemetric.model.weights import load_weights
from facemetric.model.weights_folder import find_weights

UNLIKE = 1.5  # times larger or smaller than the images that the threshold was chosen on
NOISE = 0.5  # correlation of neighbouring grey values, below which a crop is noise; that of photographs is above 0.8
FLAT = 4.0  # standard deviation of grey values of 0..255, below which a crop shows nothing

NO_FACE_CHECK = (
    "whether the pictures show a face was not checked: two skies, or two walls, can pass as one person too"
)


@dataclass(frozen=True)
class Verdict:
    """`same` is `score >= threshold`, both cosines, -1..1; `far` is the FAR that the threshold was chosen for.

    `faceless`: neither picture can show a face, so that the answer means nothing.
    `stored`: the threshold's record, with intervals and what it was chosen on; `notes`: sentences for the user."""

    same: bool
    score: float
    threshold: float
    far: float
    notes: tuple[str, ...] = field(repr=False)
    stored: Stored = field(repr=False)
    faceless: bool = field(default=False, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The verdict, and the threshold's record as config.json has it, in plain values for JSON."""
        return {"same": self.same, "score": self.score, "notes": list(self.notes)} | {
            name: value for name, value in self.stored.to_dict().items() if name != "score"
        }

    def text(self) -> str:
        """The answer, then what it rests on. Notes on the pictures come first: they say when not to trust it."""
        found, compared = self.stored.threshold, ">=" if self.same else "<"
        threshold = found.threshold
        lines = [
            f"{'same person' if self.same else 'different people'}: cosine {self.score:.4f} {compared} "
            f"threshold {threshold.value:.4f} [{threshold.low:.4f}, {threshold.high:.4f}]",
            f"at FAR {found.wanted_far:g} [{found.far.low:.2g}, {found.far.high:.2g}]: this share of pairs of two "
            f"people is taken for one; TAR {found.tar.value:.3f} [{found.tar.low:.3f}, {found.tar.high:.3f}]: this "
            "share of pairs of one person is recognised",
            f"chosen on {plural(found.images, 'image')} of {plural(found.identities, 'person', 'people')}: "
            f"{self.stored.chosen_on}",
        ]
        above = [note for note in self.notes if self.faceless or note != NO_FACE_CHECK]
        below = [note for note in self.notes if note not in above]
        return "\n".join([*(f"note: {note}" for note in above), *lines, *(f"note: {note}" for note in below)])


class Verifier:
    """Says whether two pictures show one person; weights and threshold are loaded once.

    `Verifier("faces-112", far=1e-3)("a.jpg", "b.jpg")` is a `Verdict`. Raises WeightsError where there are no such
    weights, or where they hold no threshold for `far`, ConfigError for an unknown device."""

    def __init__(self, weights: str | Path, *, far: float = 1e-3, device: str = "auto") -> None:
        self.weights = find_weights(weights)
        self.stored = stored_threshold(self.weights, far, name=weights)
        self.embedder = load_weights(self.weights, pick_device(device))

    @property
    def threshold(self) -> float:
        """The cosine from which two pictures count as one person."""
        return self.stored.threshold.cosine

    @property
    def far(self) -> float:
        """The FAR that the threshold was chosen for."""
        return self.stored.threshold.wanted_far

    def __repr__(self) -> str:
        return f"Verifier({str(self.weights)!r}, far={self.far:g}, threshold={self.threshold:.4f})"

    def __call__(self, a: Picture, b: Picture) -> Verdict:
        """Compare two pictures: paths, PIL images, uint8 arrays (H, W, 3) or uint8 tensors (3, H, W).

        Raises DataError for a picture that is missing, broken or of another type."""
        crops = [self.crop_of(picture, name) for picture, name in ((a, "the first"), (b, "the second"))]
        emb_2D = self.embedder.embed([crop for crop, _ in crops], flip=self.stored.flip)
        score = float(similarity(emb_2D[0], emb_2D[1])[0, 0])
        notes = (NO_FACE_CHECK, *(note for _, found in crops for note in found))
        faceless = all(why_no_face(crop) for crop, _ in crops)
        return Verdict(score >= self.threshold, score, self.threshold, self.far, notes, self.stored, faceless)

    def crop_of(self, picture: Picture, name: str) -> tuple[Image.Image, list[str]]:
        """The face crop of a picture, and notes on it. The one place where a photograph becomes a crop: it is taken
        as one already, and no face is looked for."""
        name = str(picture) if isinstance(picture, (str, Path)) else f"{name} picture"
        image = read_picture(picture, name, enough=self.embedder.transform.enough)
        notes = [size_note(picture_size(picture), name, self.stored.image_size)]
        if why := why_no_face(image):
            notes.append(f"{name} is {why}: it shows no face, and the answer means nothing")
        return image, [note for note in notes if note]


@takes_options(VerifyConfig)
def verify(config: VerifyConfig) -> Verdict:
    """Whether two images show one person; the options are those of VerifyConfig.

    `verify("a.jpg", "b.jpg", weights="runs/finetune", far=1e-3)` is
    `facemetric verify a.jpg b.jpg --weights runs/finetune --far 1e-3`. For many pairs use `Verifier`.
    Raises ConfigError, DataError or WeightsError, each with what to change."""
    return run_verify(config)


def run_verify(config: VerifyConfig) -> Verdict:
    """verify, from a config."""
    require(
        bool(config.image1 and config.image2),
        "verify needs two images: facemetric verify A.jpg B.jpg --weights W",
    )
    check_ranges(config)
    return Verifier(config.weights, far=config.far, device=config.device)(config.image1, config.image2)


def why_no_face(crop: Image.Image) -> str:
    """What a crop is by its grey values that cannot show a face, "" where it may show one."""
    grey = np.asarray(crop.convert("L"), np.float64)
    if grey.std() < FLAT:
        return "nearly of one colour"
    if min(grey.shape) < 3:
        return ""
    centred = grey - grey.mean()
    beside = (centred[:, 1:] * centred[:, :-1]).mean(), (centred[1:] * centred[:-1]).mean()
    return "noise" if max(beside) < NOISE * grey.var() else ""


def size_note(size: tuple[int, int], name: str, chosen_on: tuple[int, int]) -> str:
    """A sentence where size or shape is unlike that of the images that the threshold was chosen on, else ""."""
    width, height = chosen_on
    if not (width and height):
        return ""
    wide, high = size[0] / width, size[1] / height
    if max(wide / high, high / wide) <= 1.1 and 1 / UNLIKE < wide < UNLIKE:
        return ""
    return (
        f"{name} is {size[0]} x {size[1]} pixels, the threshold was chosen on images of {width} x {height}: "
        "cut and align the face as those are (facemetric align)"
    )
