"""What a gallery answers, as records with their texts: who it is, what was enrolled, what was found amiss."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from facemetric.errors import plural
from facemetric.gallery.look import SeenFace
from facemetric.gallery.parts import known_quality
from facemetric.gallery.search import Match
from facemetric.gallery.threshold import FpirThreshold

LISTED = 10  # findings of a kind that are printed


@dataclass(frozen=True, eq=False)
class FaceAnswer:
    """Who a face is. `name`: the person, "" for nobody known; `matches`: the most similar people, best first, at any
    score; `photos`: the enrolled photograph of each match; `crop`: the best match's face as JPEG, or b""."""

    name: str
    matches: tuple[Match, ...]
    face: SeenFace
    photos: tuple[str, ...] = ()
    crop: bytes = field(default=b"", repr=False)

    @property
    def score(self) -> float:
        """The best score, a cosine."""
        return self.matches[0].score

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name or None,
            "box": [round(edge, 1) for edge in self.face.box],
            "quality": known_quality(self.face.quality),
            "small": self.face.is_small,
            "matches": [
                {"name": match.name, "score": match.score, "photo": photo}
                for match, photo in zip(self.matches, self.photos, strict=True)
            ],
        }


@dataclass(frozen=True, eq=False)
class PhotoAnswer:
    """Who is on a photograph: an answer for each face, the largest first, or why there is none (`missing`)."""

    photo: str
    faces: tuple[FaceAnswer, ...]
    missing: str
    threshold: FpirThreshold

    @property
    def names(self) -> list[str]:
        """The people who were recognised."""
        return [face.name for face in self.faces if face.name]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "photo": self.photo,
            "faces": [face.to_dict() for face in self.faces],
            "missing": self.missing or None,
        }

    def text(self) -> str:
        """A line for each face: the name and its score, or nobody known and who is nearest."""
        if not self.faces:
            return f"{self.photo}: {self.missing}"
        lines = []
        for number, face in enumerate(self.faces, 1):
            left, top, right, bottom = face.face.box
            where = f"{self.photo}" if len(self.faces) == 1 else f"{self.photo}, face {number}"
            where += f" ({right - left:.0f} x {bottom - top:.0f} pixels at {left:.0f},{top:.0f})"
            others = face.matches[1:] if face.name else face.matches
            nearest = ", ".join(f"{match.name} {match.score:.4f}" for match in others)
            answer = f"{face.name}, score {face.score:.4f}" if face.name else "nobody known"
            answer += " (a very small face: trust this less)" if face.face.is_small else ""
            lines.append(
                f"{where}: {answer}" + (f"; {'then' if face.name else 'nearest'} {nearest}" if others else "")
            )
        return "\n".join(lines)


@dataclass
class Added:
    """What an enrolment did. `already`: photographs that their person was enrolled from before; `skipped`: others with
    the reason; `twice`: (photograph, name, the other name, the other photograph, whether the files are equal) of a
    picture that another person is enrolled from as well."""

    path: Path
    photographs: int = 0
    faces: int = 0
    already: int = 0
    people: set[str] = field(default_factory=set)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    twice: list[tuple[str, str, str, str, bool]] = field(default_factory=list)

    def text(self) -> str:
        """What the terminal says."""
        lines = []
        if self.faces or not self.already:
            lines.append(
                f"{plural(self.faces, 'face')} of {plural(len(self.people), 'person', 'people')} enrolled in "
                f"{self.path}, from {plural(self.photographs, 'photograph')}"
            )
        if self.already:
            lines.append(f"{plural(self.already, 'photograph')} enrolled before")
        if self.skipped:
            lines.append(f"{plural(len(self.skipped), 'photograph')} skipped:")
            lines += listed(f"  {photo}: {reason}" for photo, reason in self.skipped)
        if self.twice:
            lines.append(
                "one picture under two names; take one out by `facemetric gallery remove "
                f"{self.path} NAME --photos PHOTO`:"
            )
            lines += listed(
                f"  {photo} as {name!r}, {other_photo} as {other!r}{' (the same file)' if same else ''}"
                for photo, name, other, other_photo, same in self.twice
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class Checked:
    """What `check` found. `twice`: (name, photograph, other name, its photograph) of one picture; `alike`: (name, name,
    score) of people who would be taken for one another; `unlike`: (name, photograph, other name, score) of faces that
    are more like another person's; `tried` of the `faces` were compared with all."""

    path: Path
    faces: int
    people: int
    tried: int
    twice: list[tuple[str, str, str, str]]
    alike: list[tuple[str, str, float]]
    unlike: list[tuple[str, str, str, float]]
    threshold: FpirThreshold | None

    def text(self) -> str:
        """What the terminal says."""
        lines = [
            f"{self.path}: {plural(self.people, 'person', 'people')}, {plural(self.faces, 'face')}; "
            "every file is as it was written"
        ]
        if self.tried < self.faces:
            lines.append(f"{self.tried:,} faces, drawn, were compared with all")
        if self.twice:
            lines.append("one picture under two names:")
            lines += listed(f"  {a!r} ({p}) and {b!r} ({q})" for a, p, b, q in self.twice)
        if self.alike:
            lines.append(
                "people who are alike above the threshold: one person under two names, or a false match:"
            )
            lines += listed(f"  {a!r} and {b!r}, score {score:.4f}" for a, b, score in self.alike)
        if self.unlike:
            lines.append("faces that are more like another person's than like any other of their own:")
            lines += listed(f"  {p} of {a!r}, like {b!r}, score {s:.4f}" for a, p, b, s in self.unlike)
        if self.threshold is not None:
            lines.append(self.threshold.text())
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "people": self.people,
            "faces": self.faces,
            "tried": self.tried,
            "one_picture_under_two_names": [list(found) for found in self.twice],
            "people_alike": [list(found) for found in self.alike],
            "faces_like_another": [list(found) for found in self.unlike],
            "threshold": self.threshold.to_dict() if self.threshold else None,
        }


def listed(lines: Any) -> list[str]:
    """The first LISTED lines, and how many more there are."""
    several = list(lines)
    more = len(several) - LISTED
    return several[:LISTED] + ([f"  and {more:,} more"] if more > 0 else [])
