"""`facemetric identify`: who is on photographs, among the people of a gallery."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from facemetric.commands.gallery import check_identify, loose_photos
from facemetric.config import IdentifyConfig
from facemetric.config.calls import takes_options
from facemetric.errors import DataError, first_few, plural
from facemetric.gallery.answers import PhotoAnswer
from facemetric.gallery.gallery import Gallery
from facemetric.gallery.look import Photo
from facemetric.gallery.threshold import FpirThreshold
from facemetric.machine import processes, progress_bar


@dataclass(frozen=True, eq=False)
class Identified:
    """Who is on each photograph, in their order, and the threshold; `shown`: the file of pictures."""

    photos: tuple[PhotoAnswer, ...]
    threshold: FpirThreshold
    shown: Path | None = None

    @property
    def names(self) -> list[str]:
        """The people who were recognised, each once, sorted."""
        return sorted({name for photo in self.photos for name in photo.names})

    def text(self) -> str:
        """A line for each face, then what the threshold means."""
        lines = [photo.text() for photo in self.photos]
        if len(self.photos) > 1:
            faces = [face for photo in self.photos for face in photo.faces]
            known = sum(bool(face.name) for face in faces)
            lines.append(
                f"{plural(len(faces), 'face')} in {plural(len(self.photos), 'photograph')}: {known:,} of "
                f"{plural(len(self.names), 'person', 'people')} known, {len(faces) - known:,} of nobody known"
            )
        lines.append(self.threshold.text())
        if self.shown is not None:
            lines.append(f"pictures in {self.shown}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "photos": [photo.to_dict() for photo in self.photos],
            "threshold": self.threshold.to_dict(),
        }

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict())


@takes_options(IdentifyConfig)
def identify(config: IdentifyConfig) -> Identified:
    """Who is on photographs; the options are those of IdentifyConfig.

    `identify("party.jpg", gallery="staff")` is `facemetric identify party.jpg --gallery staff`; to ask many times use
    `Gallery`. Raises DataError where no photograph shows a face, and as `Gallery`."""
    return run_identify(config)


def shared_answers(
    gallery: Gallery, config: IdentifyConfig, photos: Sequence[Callable[[], Photo]]
) -> tuple[PhotoAnswer, ...]:
    """An answer for each photograph; under torchrun every process looks at some, and all get the answers."""

    def answers(some: Sequence[Callable[[], Photo]]) -> list[PhotoAnswer]:
        bar = progress_bar(some, desc="identifying", unit="photograph", delay=2)
        reads = (read() for read in bar)
        return list(gallery.answer(reads, fpir=config.fpir, threshold=config.threshold, top=config.top))

    if processes() == 1:
        return tuple(answers(photos))
    from facemetric import distributed

    distributed.check_alike(
        {
            "the gallery": sha256(gallery.folder.list.to_text().encode()).hexdigest(),
            "the number of photographs": str(len(photos)),
        }
    )
    with distributed.work_shared():
        parts = distributed.from_all(answers(distributed.own_share(photos)))
    return tuple(parts[i % len(parts)][i // len(parts)] for i in range(len(photos)))


def run_identify(config: IdentifyConfig) -> Identified:
    """identify, from a config."""
    check_identify(config)
    if processes() == 1:  # torch is not imported, where ONNX Runtime computes
        return identify_on(config.device, config)
    from facemetric.training import peers

    with peers.joined(config.device) as device:
        peers.same_program(config)
        return identify_on(device, config)


def identify_on(device: str, config: IdentifyConfig) -> Identified:
    """run_identify, on a device."""
    gallery = Gallery(
        config.gallery,
        weights=config.weights,
        device=device,
        runtime=config.runtime,
        faces=config.faces,
        detector=config.detector,
        min_quality=config.min_quality,
    )
    photos = [read for source in config.photos for _, read in loose_photos(source)]
    answers = shared_answers(gallery, config, photos)
    if not any(answer.faces for answer in answers):
        reasons = first_few(f"{answer.photo}: {answer.missing}" for answer in answers)
        raise DataError(f"no face to identify: {reasons}")
    if config.show is not None and os.environ.get("RANK", "0") == "0":
        from facemetric.commands.identifying.show import draw_answers  # imports matplotlib, for its fonts

        draw_answers(config.show, answers)
    return Identified(answers, answers[0].threshold, config.show)
