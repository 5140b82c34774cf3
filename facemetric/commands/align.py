"""What `facemetric align` does: photographs to aligned faces, each cut to the template, and a csv of what was found.

The out folder gets `identity/image.jpg`, also of what a csv lists elsewhere, or `image.jpg` of a loose photograph, and
`aligned.csv` a line for each face: its score, box, five landmarks, how large and how sharp it was, how many others
were there; or why there is none. The same command again goes on where it stopped. A crop that would replace a
photograph is refused before the first is made.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from facemetric.config import AlignConfig, check_ranges, config_dict, require
from facemetric.config.calls import takes_options
from facemetric.data.index import ImageIndex, parse_source, read_index
from facemetric.data.readers.sources import is_picture
from facemetric.errors import DataError, given, plural
from facemetric.faces.align import AlignOptions, align_images, crop_name
from facemetric.faces.detector import load_detector
from facemetric.machine import say

LATER = re.compile(r"\.face\d+\.jpe?g$", re.IGNORECASE)  # the second face of a photograph and those after it
DECIDES = (
    "size",
    "several",
    "face",
    "min_score",
    "detect_size",
    "turns",
    "crops",
    "keep_missed",
    "detector",
    "quality",
    "min_quality",
)


class Aligned(NamedTuple):
    """What a run has done, with what runs before it did: photographs by what was found, crops, the csv."""

    with_face: int
    with_several: int
    without: int
    unreadable: int
    crops: int
    record: Path

    def text(self) -> str:
        """What the terminal says."""
        return (
            f"{plural(self.with_face + self.without + self.unreadable, 'photograph')}: a face in {self.with_face:,} "
            f"({self.with_several:,} with several), none in {self.without:,}, {self.unreadable:,} cannot be read; "
            f"{plural(self.crops, 'crop')} in {self.record.parent}, what was found in {self.record}"
        )


@takes_options(AlignConfig)
def align(config: AlignConfig) -> Aligned:
    """Photographs to aligned faces; the options are those of AlignConfig.

    `align("photos", out="faces")` is `facemetric align photos --out faces`. Raises ConfigError or DataError."""
    return run_align(config)


def run_align(config: AlignConfig) -> Aligned:
    """align, from a config."""
    check_ranges(config)
    require(bool(config.photos), "align needs photographs: `facemetric align PHOTOS --out FACES`")
    load_detector(config.detector)  # a misspelt one is an error before the first photograph
    index = read_index(list(config.photos), loose=True)
    say(*index.notes)
    check_targets(index, config)
    decides = {name: value for name, value in config_dict(config).items() if name in DECIDES}
    options = AlignOptions(
        **{name: value for name, value in decides.items() if name != "crops"},
        given="auto" if config.crops else "photographs",
    )
    decides["photos"] = places_of(config)  # names alone do not tell photographs of two folders apart
    record = align_images(index, config.out, options, decides=decides, workers=config.workers)
    counts = record.counts
    return Aligned(
        counts["yes"], counts["several"], counts["no"], counts["bad"], counts["crops"], record.path
    )


def places_of(config: AlignConfig) -> list[str]:
    """The folders and archives that the photographs are named from; of photographs named one by one, their folders."""
    paths = [parse_source(text).path for text in config.photos]
    return sorted({os.path.realpath(path.parent if is_picture(path) else path) for path in paths})


def check_targets(index: ImageIndex, config: AlignConfig) -> None:
    """DataError where two crops would have one name, one would lie outside `out` or replace a photograph, or the
    next time crops would be taken for photographs."""
    out = config.out
    first: dict[str, int] = {}
    for row in range(len(index)):
        other = first.setdefault(crop_name(index, row), row)
        if other != row:
            raise DataError(
                f"{index.name(other)} and {index.name(row)} would share the crop's name {crop_name(index, row)!r};"
                " rename one, or align them into two folders"
            )
        if config.several == "every" and LATER.search(crop_name(index, row)):
            raise DataError(
                f"{index.name(row)} has the name of a second face's crop; rename it, or go without --several every"
            )
    root = os.path.realpath(out)
    for source in map(parse_source, config.photos):
        if source.path.is_dir() and Path(root).is_relative_to(os.path.realpath(source.path)):
            raise DataError(
                f"{given('--out', out)} lies in the photographs' own folder {source.path}; name one beside it"
            )
    for folder in {os.path.dirname(name) for name in first}:
        there = os.path.realpath(os.path.join(root, folder))
        if (folder and there == root) or not Path(there).is_relative_to(root):
            raise DataError(
                f"the crops of {folder!r} would lie in {there}, not in a folder below {out}; rename it"
            )
    taken = {_identity_of(path): path for path in (out / name for name in first) if path.exists()}
    for row in range(len(index) if taken else 0):
        file = index.location(row).file
        if os.path.exists(file) and (target := taken.get(_identity_of(file))):
            raise DataError(f"{target} is a photograph, which a crop would replace; name another --out")


def _identity_of(path: str | Path) -> tuple[int, int]:
    state = os.stat(path)
    return state.st_dev, state.st_ino
