"""What `facemetric verify` does: two images, one person or two, by a threshold that the weights hold."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facemetric.config import VerifyConfig, make_config, require
from facemetric.data.images import decode
from facemetric.data.index import ImageIndex, index_files
from facemetric.errors import DataError
from facemetric.evaluation.embed import embed_index
from facemetric.evaluation.thresholds import Stored, stored_threshold
from facemetric.evaluation.verification import pair_scores
from facemetric.machine import pick_device
from facemetric.model.weights import load_weights
from facemetric.model.weights_folder import find_weights

UNLIKE = 1.5  # times larger or smaller, or times as wide for its height as half of that


@dataclass(frozen=True)
class Verdict:
    """`same` is `score >= stored.threshold.threshold.value`, the score a cosine, -1..1; `notes` are sentences."""

    same: bool
    score: float
    stored: Stored
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values under plain names: the verdict, and the threshold's record as config.json has it."""
        return {"same": self.same, "score": self.score, "notes": list(self.notes)} | {
            name: value for name, value in self.stored.to_dict().items() if name != "score"
        }


def verify(image1: str | Path = "", image2: str | Path = "", **options: Any) -> Verdict:
    """Whether two images show one person; the options are those of VerifyConfig.

    `verify("a.jpg", "b.jpg", weights="runs/finetune", far=1e-3)` is
    `facemetric verify a.jpg b.jpg --weights runs/finetune --far 1e-3`.
    Raises ConfigError, DataError or WeightsError, each with what to change."""
    return run_verify(make_config(VerifyConfig, image1=image1, image2=image2, **options))


def run_verify(config: VerifyConfig) -> Verdict:
    """verify, from a config."""
    images = (config.image1, config.image2)
    require(all(images), "verify needs two images: facemetric verify A.jpg B.jpg --weights W")
    folder = find_weights(config.weights)
    stored = stored_threshold(folder, config.far)
    for path in images:
        if not os.path.isfile(path):
            raise DataError(f"{path}: no such file; give an image")
    index = index_files(images)
    embedded = embed_index(load_weights(folder, pick_device(config.device)), index, flip=stored.flip)
    for row, reason in embedded.bad:
        raise DataError(f"{index.name(row)} cannot be read: {reason}; give an image")
    row_a, row_b = (embedded.table.paths.tolist().index(path) for path in images)
    score = float(pair_scores(embedded.table.embeddings, [row_a], [row_b])[0])
    verdict = Verdict(score >= stored.threshold.threshold.value, score, stored, notes_on(index, stored))
    print(json.dumps(verdict.to_dict()) if config.json else text_of(verdict))
    return verdict


def notes_on(index: ImageIndex, stored: Stored) -> tuple[str, ...]:
    """A sentence for each image whose size or shape is unlike that of the faces the threshold was chosen on."""
    width, height = stored.image_size
    notes = []
    for row in range(len(index)) if width and height else ():
        own = decode(index.read(row)).size
        wide, high = own[0] / width, own[1] / height
        if max(wide / high, high / wide) > 1.1 or not 1 / UNLIKE < wide < UNLIKE:
            notes.append(
                f"{index.name(row)} is {own[0]} x {own[1]} pixels, the threshold was chosen on images of "
                f"{width} x {height}: cut and align the face as those are (facemetric align)"
            )
    return tuple(notes)


def text_of(verdict: Verdict) -> str:
    """The answer first, then what it rests on."""
    found, compared = verdict.stored.threshold, ">=" if verdict.same else "<"
    threshold = found.threshold
    lines = [
        f"{'same person' if verdict.same else 'different people'}: cosine {verdict.score:.4f} {compared} "
        f"threshold {threshold.value:.4f} [{threshold.low:.4f}, {threshold.high:.4f}]",
        f"at FAR {found.wanted_far:g} [{found.far.low:.2g}, {found.far.high:.2g}]: this share of pairs of two people "
        f"is taken for one; TAR {found.tar.value:.3f} [{found.tar.low:.3f}, {found.tar.high:.3f}]: this share of "
        "pairs of one person is recognised",
        f"chosen on {found.images:,} images of {found.identities:,} people: {verdict.stored.chosen_on}",
    ]
    return "\n".join(lines + [f"note: {note}" for note in verdict.notes])
