"""The csv that `facemetric align` keeps: a line for each face or photograph, whole lines only, read again to go on."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from facemetric.errors import ConfigError, first_few, writing
from facemetric.faces.template import POINTS
from facemetric.files import write_text_whole

COLUMNS = (
    "path",
    "found",  # yes, no or bad (cannot be read)
    "crop",  # the crop's path, empty where there is none
    "score",  # of the detector, 0..1
    "faces",  # the taken one, and others of at least a quarter of its area
    *("left", "top", "right", "bottom"),  # pixels of the upright photograph, as the landmarks
    *(f"{point}_{axis}" for point in POINTS for axis in "xy"),
    "eye_distance",  # pixels: the resolution that the crop was made from; 35 is the template's own
    "sharpness",  # variance of the crop's Laplacian
    "quality",  # 0..1, of faces/quality.py
    "turn",  # quarters, counterclockwise, by which the photograph was turned to find the face
    "inside",  # share of the crop that lies in the photograph
    "note",
)


OPTIONS = "aligned.json"


class Line(NamedTuple):
    """What is known of one face, or of a photograph without one; empty texts where a figure does not exist."""

    found: str
    path: str = ""
    crop: str = ""
    score: float | str = ""
    faces: int | str = ""
    box: list[float] | None = None
    landmarks: list[float] | None = None
    eye_distance: float | str = ""
    sharpness: float | str = ""
    quality: float | str = ""
    turn: int | str = ""
    inside: float | str = ""
    note: str = ""

    def cells(self) -> list[Any]:
        """The values of COLUMNS."""
        box: list[Any] = self.box or [""] * 4
        landmarks: list[Any] = self.landmarks or [""] * 10
        figures: list[Any] = [self.eye_distance, self.sharpness, self.quality, self.turn, self.inside]
        first: list[Any] = [self.path, self.found, self.crop, self.score, self.faces]
        return [*first, *box, *landmarks, *figures, self.note]


class Record:
    """`OUT/aligned.csv`, and beside it the options that its crops were made with.

    The lines of a photograph are written in one piece after its crops, so a job that is killed loses at most lines
    whose crops are made again. ConfigError where the folder holds crops of other options.
    """

    def __init__(self, out: Path, options: dict[str, Any]) -> None:
        self.path = out / "aligned.csv"
        self.done: set[str] = set()
        self.counts: Counter[str] = Counter()
        out.mkdir(parents=True, exist_ok=True)
        self._check_options(out / OPTIONS, options)
        self._read()

    def _check_options(self, path: Path, options: dict[str, Any]) -> None:
        if path.exists() and self.path.exists():
            before = json.loads(path.read_text())
            before.setdefault("photos", options.get("photos"))  # a folder of before they were noted
            # An option that is younger than the folder and not used is no other.
            changed = [
                name for name, value in options.items() if (before.get(name) or None) != (value or None)
            ]
            if "photos" in changed:
                raise ConfigError(
                    f"{path.parent} holds crops of photographs in {first_few(before['photos'])}; name another --out"
                )
            other = [f"--{name.replace('_', '-')} {before.get(name)}" for name in changed]
            if other:
                raise ConfigError(
                    f"{path.parent} holds crops made with {', '.join(other)}; give these again, or name another --out"
                )
            return
        write_text_whole(path, json.dumps(options, indent=2) + "\n")

    def _read(self) -> None:
        if not self.path.exists():
            write_text_whole(self.path, _text([list(COLUMNS)]))
            return
        text = self.path.read_bytes().decode("utf-8", "surrogateescape")
        whole = text[: text.rfind("\n") + 1]
        reader = csv.DictReader(io.StringIO(whole, newline=""))
        if list(reader.fieldnames or ()) != list(COLUMNS):
            raise ConfigError(f"{self.path} has other columns than this version writes; name another --out")
        for row in reader:
            self._count(row["path"], row["found"], row["faces"], row["crop"])
        if whole != text:  # killed in the middle of a line
            write_text_whole(self.path, whole)

    def add(self, lines: list[Line]) -> None:
        """Append whole lines."""
        with writing(self.path), open(self.path, "ab", buffering=0) as file:
            file.write(_text([line.cells() for line in lines]).encode("utf-8", "surrogateescape"))
        for line in lines:
            self._count(line.path, line.found, line.faces, line.crop)

    def _count(self, path: str, found: str, faces: object, crop: str) -> None:
        self.counts["crops"] += bool(crop)
        if path not in self.done:  # a photograph may have several lines
            self.done.add(path)
            self.counts[found] += 1
            self.counts["several"] += found == "yes" and int(str(faces)) > 1


class Found(NamedTuple):
    """What a line of the csv says of a face, or of a photograph without one."""

    found: str
    crop: str
    quality: float
    note: str


def read_lines(path: Path) -> dict[str, list[Found]]:
    """The lines of each photograph by its name, the face that was taken first."""
    found: dict[str, list[Found]] = {}
    text = path.read_bytes().decode("utf-8", "surrogateescape")
    for row in csv.DictReader(io.StringIO(text, newline="")):
        line = Found(row["found"], row["crop"], float(row["quality"] or 0), row["note"])
        found.setdefault(row["path"], []).append(line)
    return found


def _text(rows: list[list[Any]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
