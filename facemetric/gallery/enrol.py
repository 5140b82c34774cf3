"""Enrolling people from photographs: what is there already is left out, what is unclear is skipped with its reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from facemetric.errors import DataError
from facemetric.gallery.answers import Added
from facemetric.gallery.folder import GalleryFolder
from facemetric.gallery.look import Photo, SeenFace, SeenPhoto, hash_of, jpeg_of
from facemetric.gallery.parts import Rows
from facemetric.gallery.search import Enrolled, find_people

COMMIT_FACES, COMMIT_SECONDS = 2048, 60.0  # what a process that is killed loses at most
SAME = 0.97  # cosine of two faces that are one picture, saved twice; README.md says what was measured

Look = Callable[[Iterable[Photo]], Iterator[SeenPhoto]]


@dataclass(frozen=True)
class _New:
    """Faces that wait to be written."""

    names: list[str] = field(default_factory=list)
    photos: list[str] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    faces: list[SeenFace] = field(default_factory=list)

    def add(self, name: str, seen: SeenPhoto, face: SeenFace) -> None:
        self.names.append(name)
        self.photos.append(seen.name)
        self.hashes.append(seen.sha256)
        self.faces.append(face)

    def rows(self, keeps_crops: bool) -> Rows:
        return Rows(
            np.stack([face.embedding for face in self.faces]).astype(np.float32),
            self.names,
            self.photos,
            np.stack([np.frombuffer(one, np.uint8) for one in self.hashes]),
            np.array([face.quality for face in self.faces], np.float32),
            [jpeg_of(face.crop) if keeps_crops else b"" for face in self.faces],
        )


def enrol(
    folder: GalleryFolder, look: Look, people: Iterable[tuple[str, Photo]], *, take_largest: bool
) -> Added:
    """Enroll from pairs of a person's name and a photograph; `Gallery.add_all` says what becomes of each.

    Raises DataError for a name that is none, OSError where the disk is full."""
    added = Added(folder.path)
    new, last = _New(), time.monotonic()
    for name, seen in _new_photos(folder, look, people, added):
        if seen.missing:
            added.skipped.append((seen.name, seen.missing))
        elif seen.rivals > 1 and not take_largest:
            added.skipped.append((seen.name, f"{seen.rivals} faces of like size; whose is it?"))
        elif (face := seen.faces[seen.taken]).is_small:
            reason = f"the face is {face.width:.0f} pixels wide, too small to tell people apart by; give a larger one"
            added.skipped.append((seen.name, reason))
        else:
            new.add(name, seen, face)
        if len(new.faces) >= COMMIT_FACES or (new.faces and time.monotonic() - last > COMMIT_SECONDS):
            _write(folder, new, added)
            new, last = _New(), time.monotonic()
    _write(folder, new, added)
    return added


def _new_photos(
    folder: GalleryFolder, look: Look, people: Iterable[tuple[str, Photo]], added: Added
) -> Iterator[tuple[str, SeenPhoto]]:
    """The photographs that are not enrolled under their name yet, looked at."""
    folder.refresh()
    enrolled = Enrolled(tuple(folder.parts))
    waiting: list[str] = []
    met: set[tuple[str, bytes]] = set()

    def fresh() -> Iterator[Photo]:
        for given, photo in people:
            name = checked_name(given)
            added.photographs += 1
            sha256 = hash_of(photo.picture)
            if not photo.reason and ((name, sha256) in met or name in enrolled.people_on(sha256)):
                added.already += 1
                continue
            met.add((name, sha256))
            waiting.append(name)
            yield photo

    for number, seen in enumerate(look(fresh())):
        yield waiting[number], seen


def _write(folder: GalleryFolder, new: _New, added: Added) -> None:
    """Write faces that wait, and note those that are somebody else's picture already."""
    if not new.faces:
        return
    folder.append(new.rows(folder.list.keeps_crops))
    added.faces += len(new.faces)
    added.people.update(new.names)
    enrolled = Enrolled(tuple(folder.parts))
    nearest = find_people(enrolled, np.stack([face.embedding for face in new.faces]), 2)
    for name, photo, sha256, matches in zip(new.names, new.photos, new.hashes, nearest, strict=True):
        for match in matches:
            if match.name != name and match.score >= SAME:
                same_file = match.name in enrolled.people_on(sha256)
                added.twice.append((photo, name, match.name, enrolled.photo(match.row), same_file))


def checked_name(name: str) -> str:
    """A person's name without space around it. DataError where nothing is left, or where it has line breaks."""
    name = name.strip()
    if not name or not name.replace("\N{ZERO WIDTH JOINER}", "").isprintable():
        raise DataError(f"{name!r} cannot be a person's name; give one line of text")
    return name
