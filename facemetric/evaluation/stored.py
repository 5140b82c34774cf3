"""Thresholds kept with the weights: in config.json, `facemetric.thresholds`, one for each FAR."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from facemetric.errors import WeightsError
from facemetric.evaluation.thresholds import Threshold
from facemetric.evaluation.verification import SCORE
from facemetric.model.folder import CONFIG, amend_config, read_config

KEY = "thresholds"


@dataclass(frozen=True)
class Stored:
    """A threshold, and what it was chosen on.

    `flip`: embeddings were averaged with those of the mirror image, and must be where it is used.
    `chosen_on` says in words which people; `image_size` (width, height) is their images' median, 0 unknown.
    """

    threshold: Threshold
    flip: bool
    chosen_on: str
    data_fingerprint: str
    image_size: tuple[int, int]

    def to_dict(self) -> dict[str, Any]:
        """As config.json has it."""
        return self.threshold.to_dict() | {
            "score": SCORE,
            "flip": self.flip,
            "chosen_on": self.chosen_on,
            "data_fingerprint": self.data_fingerprint,
            "image_size": list(self.image_size),
        }


def store_thresholds(folder: Path, found: Iterable[Stored]) -> Path:
    """Write thresholds into the weights' config.json, in place of those of the same FAR; returns its path."""
    kept = dict(read_config(folder)["facemetric"].get(KEY) or {})
    kept |= {f"{stored.threshold.wanted_far:g}": stored.to_dict() for stored in found}
    return amend_config(folder, **{KEY: dict(sorted(kept.items(), key=lambda item: -float(item[0])))})


def stored_threshold(folder: Path, far: float) -> Stored:
    """The threshold of a FAR. Raises WeightsError that says which there are and how to make one."""
    kept = read_config(folder)["facemetric"].get(KEY) or {}
    make = f"make one with `facemetric calibrate DATA --weights {folder} --far {far:g}` on people never trained on"
    try:
        for key, record in kept.items():
            if math.isclose(float(key), far):
                width, height = record["image_size"]
                return Stored(
                    Threshold.from_dict(record),
                    bool(record["flip"]),
                    str(record["chosen_on"]),
                    str(record["data_fingerprint"]),
                    (int(width), int(height)),
                )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{folder / CONFIG}: the thresholds cannot be read ({error}); {make}") from error
    there = f"it has those for FAR {', '.join(kept)}: choose one by --far, or {make}" if kept else make
    raise WeightsError(f"{folder} holds no threshold for FAR {far:g}; {there}")
