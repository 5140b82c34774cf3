"""One person or two on two pictures, by thresholds that the weights hold: `facemetric verify` and `Verifier`.

A score at or above the threshold of --far is of one person, one below the threshold of --frr of two; between them
`verify` cannot tell. In photographs the most prominent face of each is compared; a picture without a face is an error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from facemetric.config import VerifyConfig, check_ranges
from facemetric.config.calls import takes_options, words_of
from facemetric.config.checks import check_verify
from facemetric.errors import DataError, plural
from facemetric.evaluation.answers import Answers, LowerThreshold, answers_in
from facemetric.evaluation.thresholds import Stored, threshold_in
from facemetric.faces.crops import Face, FacesFound, rivals
from facemetric.faces.finder import FaceFinder, Faces
from facemetric.model.pictures import Picture, faces_of, picture_size, read_picture
from facemetric.model.similarity import similarity
from facemetric.model.weights.folder import CONFIG
from facemetric.model.weights.opened import Runtime, open_model

Answer = Literal["same person", "different people", "cannot tell"]

UNLIKE = 1.5  # times larger or smaller than the images that the threshold was chosen on
NOISE = 0.5  # correlation of neighbouring grey values, below which a crop is noise; that of photographs is above 0.8
FLAT = 4.0  # standard deviation of grey values of 0..255, below which a crop shows nothing
CERTAIN = 0.999  # a probability is said to be above this, and below 1 - CERTAIN, not nearer to 1 or 0

NO_FACE_CHECK = (
    "whether the pictures show a face was not checked: two skies, or two walls, can pass as one person too"
)


class Compared(NamedTuple):
    """The face of a picture that was compared: its box in the picture (left, top, right, bottom), its quality 0..1,
    how many faces there are; and whether the picture is a crop already."""

    picture: str
    box: tuple[float, float, float, float]
    quality: float
    faces: int
    was_crop: bool


@dataclass(frozen=True)
class Verdict:
    """`same` is `score >= threshold`, both cosines, -1..1; `far` is the FAR that the threshold was chosen for.

    `answer` is "same person", "different people" or "cannot tell"; `lower` the threshold below which people differ,
    None where the weights hold none, and `answer` then knows no third. `probability` of one person, 0..1, where one
    and two are as likely beforehand; None where the weights do not know.
    `faceless`: neither picture can show a face, so that the answer means nothing (where faces are not looked for).
    `stored`: the threshold's record, with intervals and what it was chosen on; `notes`: sentences for the user;
    `faces`: what was compared, () where faces are not looked for."""

    same: bool
    score: float
    threshold: float
    far: float
    notes: tuple[str, ...] = field(repr=False)
    stored: Stored = field(repr=False)
    faceless: bool = field(default=False, repr=False)
    lower: LowerThreshold | None = field(default=None, repr=False)
    probability: float | None = field(default=None, repr=False)
    error: float | None = field(default=None, repr=False)  # of the probability, as it was measured
    faces: tuple[Compared, ...] = field(default=(), repr=False)

    @property
    def answer(self) -> Answer:
        """The answer in words."""
        if self.same:
            return "same person"
        sure = self.lower is None or self.score < self.lower.threshold
        return "different people" if sure else "cannot tell"

    def to_dict(self) -> dict[str, Any]:
        """The verdict, and the threshold's record as config.json has it, in plain values for JSON."""
        found: dict[str, Any] = {"same": self.same, "answer": self.answer, "score": self.score}
        found |= {"probability": self.probability, "probability_error": self.error}
        found |= {"notes": list(self.notes), "faces": [face._asdict() for face in self.faces]}
        found["different_below"] = None if self.lower is None else self.lower.to_dict()
        return found | {name: value for name, value in self.stored.to_dict().items() if name != "score"}

    def text(self) -> str:
        """The answer, then what it rests on. Notes on the pictures come first: they say when not to trust it."""
        found = self.stored.threshold
        lines = [
            self._answer_line(),
            *self._probability_line(),
            f"at FAR {found.wanted_far:g} [{found.far.low:.2g}, {found.far.high:.2g}]: this share of pairs of two "
            f"people is taken for one; at this strictness {1 - found.tar.value:.0%} [{1 - found.tar.high:.0%}, "
            f"{1 - found.tar.low:.0%}] of true pairs are missed",
            *self._lower_line(),
            f"chosen on {plural(found.images, 'image')} of {plural(found.identities, 'person', 'people')}: "
            f"{self.stored.chosen_on}",
        ]
        above = [note for note in self.notes if self.faceless or note != NO_FACE_CHECK]
        below = [note for note in self.notes if note not in above]
        return "\n".join([*(f"note: {note}" for note in above), *lines, *(f"note: {note}" for note in below)])

    def _answer_line(self) -> str:
        threshold = self.stored.threshold.threshold
        upper = f"threshold {threshold.value:.4f} [{threshold.low:.4f}, {threshold.high:.4f}]"
        if self.answer == "cannot tell":
            assert self.lower is not None
            between = f"between {self.lower.threshold:.4f}, below which people differ, and {upper}"
            return f"cannot tell: cosine {self.score:.4f} lies {between}"
        if self.same or self.lower is None:
            return f"{self.answer}: cosine {self.score:.4f} {'>=' if self.same else '<'} {upper}"
        return f"{self.answer}: cosine {self.score:.4f} < {self.lower.threshold:.4f}, and same from {upper}"

    def _probability_line(self) -> list[str]:
        if self.probability is None:
            return []
        p = min(max(self.probability, 1 - CERTAIN), CERTAIN)
        value = f"{'above ' if p == CERTAIN else 'below ' if p == 1 - CERTAIN else ''}{p:.3f}"
        return [
            f"probability {value} that it is one person, if that was as likely as two beforehand (wrong by "
            f"{self.error:.3f} on average on other people of the same set, by more on people unlike them)"
        ]

    def _lower_line(self) -> list[str]:
        if self.lower is None:
            return []
        frr, far = self.lower.frr, self.lower.far
        return [
            f"at FRR {self.lower.wanted_frr:g} [{frr.low:.2g}, {frr.high:.2g}]: this share of true pairs is below "
            f"{self.lower.threshold:.4f}; of pairs of two people {1 - far.value:.0%} are"
        ]


class Verifier:
    """Says whether two pictures show one person; weights, thresholds and detector are loaded once.

    `Verifier("faces-112", far=1e-3)("a.jpg", "b.jpg")` is a `Verdict`. `weights`: a folder, a run, a shipped name, or
    an .onnx file that `facemetric export` wrote. `runtime`: torch, onnx, or auto, which is onnx where the weights carry
    a file for it; then torch is not imported. `faces`, `detector` and `min_quality` are those
    of VerifyConfig: which faces of the pictures count. Raises WeightsError where there are no such weights, or where
    they hold no threshold for `far`, ConfigError for an unknown device or detector."""

    @words_of(VerifyConfig)
    def __init__(
        self,
        weights: str | Path,
        *,
        far: float = 1e-3,
        frr: float = 0.01,
        faces: Faces = "auto",
        detector: str = "",
        min_quality: float = 0.0,
        device: str = "auto",
        runtime: Runtime = "auto",
    ) -> None:
        found = open_model(weights)
        self.weights = found.folder
        where = found.folder if found.onnx is not None else found.folder / CONFIG
        self.stored = threshold_in(found.config, far, name=weights, where=where)
        self.answers = answers_beside(self.stored, answers_in(found.config, where))
        lower = self.answers.at_frr(frr) if self.answers is not None else None
        self.lower = lower if lower is not None and lower.threshold < self.threshold else None
        self.embedder = found.network(device, found.runtime(runtime, device, 2))
        self.finder = self.embedder.finder(faces, detector=detector, min_quality=min_quality)

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

        Raises DataError for a picture that is missing, broken, of another type, or without a face."""
        names = [
            str(picture) if isinstance(picture, (str, Path)) else f"{name} picture"
            for picture, name in ((a, "the first"), (b, "the second"))
        ]
        notes: list[str] = []
        faces: list[Compared] = []
        if self.finder is None:
            crops = [self._as_it_is(*pair, notes) for pair in zip((a, b), names, strict=True)]
            notes.insert(0, NO_FACE_CHECK)
        else:
            crops = self._faces_of((a, b), names, self.finder, notes, faces)
        emb_2D = self.embedder.embed(crops, flip=self.stored.flip, faces="off")
        score = float(similarity(emb_2D[0], emb_2D[1]))
        found = self.answers.probability if self.answers is not None else None
        return Verdict(
            score >= self.threshold,
            score,
            self.threshold,
            self.far,
            tuple(notes),
            self.stored,
            faceless=self.finder is None and all(why_no_face(crop) for crop in crops),
            lower=self.lower,
            probability=None if found is None else float(found.at(score)),
            error=None if found is None else found.error,
            faces=tuple(faces),
        )

    def _as_it_is(self, picture: Picture, name: str, notes: list[str]) -> Image.Image:
        """A picture that is taken for a crop unseen."""
        image = read_picture(picture, name, enough=self.embedder.transform.enough)
        if note := size_note(picture_size(picture), name, self.stored.image_size):
            notes.append(note)
        if why := why_no_face(image):
            notes.append(f"{name} is {why}: it shows no face, and the answer means nothing")
        return image

    def _faces_of(
        self,
        pictures: tuple[Picture, Picture],
        names: list[str],
        finder: FaceFinder,
        notes: list[str],
        compared: list[Compared],
    ) -> list[Image.Image]:
        """The crop of each picture's most prominent face. Raises DataError where one shows none."""
        crops = []
        for name, (picture, found) in zip(names, faces_of(pictures, finder, names), strict=True):
            if found.missing is not None:
                raise DataError(
                    f"{name}: {found.missing.reason}; verify compares faces, give a photograph that shows one"
                )
            face = found.take()
            if note := note_of_several(name, face, found):
                notes.append(note)
            left, top, right, bottom = (round(float(edge), 1) for edge in face.box)
            quality = round(face.quality.figure, 3)
            compared.append(
                Compared(name, (left, top, right, bottom), quality, len(found.faces), face.was_crop)
            )
            enough = self.embedder.transform.enough
            crops.append(read_picture(picture, name, enough=enough) if face.was_crop else face.crop)
        return crops


def answers_beside(stored: Stored, answers: Answers | None) -> Answers | None:
    """The answers that go with a threshold: of the same people, embedded in the same way."""
    if answers is None or answers.flip != stored.flip:
        return None
    return answers if answers.data_fingerprint == stored.data_fingerprint else None


def note_of_several(name: str, face: Face, found: FacesFound) -> str:
    """Which of several faces was taken; "" where no other is of like size."""
    several = rivals(face, found.faces)
    if several < 2:
        return ""
    left, top, right, bottom = (round(float(edge)) for edge in face.box)
    return (
        f"{name} shows {several} faces: compared is the most prominent, {right - left} x {bottom - top} pixels at "
        f"{left} from the left and {top} from the top"
    )


@takes_options(VerifyConfig)
def verify(config: VerifyConfig) -> Verdict:
    """Whether two images show one person; the options are those of VerifyConfig.

    `verify("a.jpg", "b.jpg", weights="runs/finetune", far=1e-3)` is
    `facemetric verify a.jpg b.jpg --weights runs/finetune --far 1e-3`. For many pairs use `Verifier`.
    Raises ConfigError, DataError or WeightsError, each with what to change."""
    return run_verify(config)


def run_verify(config: VerifyConfig) -> Verdict:
    """verify, from a config."""
    check_ranges(config)
    check_verify(config)
    verifier = Verifier(
        config.weights,
        far=config.far,
        frr=config.frr,
        faces=config.faces,
        detector=config.detector,
        min_quality=config.min_quality,
        device=config.device,
        runtime=config.runtime,
    )
    return verifier(config.image1, config.image2)


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
