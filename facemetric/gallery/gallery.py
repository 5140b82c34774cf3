"""People who are enrolled, and who it is on a photograph: `Gallery`."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from facemetric.errors import ConfigError, DataError, WeightsError, did_you_mean, plural
from facemetric.evaluation.table import UNREADABLE, unit_rows
from facemetric.faces.finder import FaceFinder, Faces
from facemetric.faces.photographs import Picture
from facemetric.files import file_hash, write_whole
from facemetric.gallery.answers import Added, Checked, FaceAnswer, PhotoAnswer
from facemetric.gallery.enrol import SAME, checked_name, enrol
from facemetric.gallery.folder import LIST, GalleryFolder, GalleryList
from facemetric.gallery.look import Photo, SeenPhoto, hash_of, read_photo, see
from facemetric.gallery.parts import Part, Rows
from facemetric.gallery.search import (
    Enrolled,
    Match,
    drawn_rows,
    find_people,
    nearest_other,
    nearest_own,
)
from facemetric.gallery.threshold import (
    BestOfOthers,
    FpirThreshold,
    StoredCurve,
    best_of_others,
    choose_threshold,
)
from facemetric.model.weights.folder import MODEL, is_shipped
from facemetric.model.weights.opened import Runtime, Weights, open_model

if TYPE_CHECKING:
    from facemetric.model.weights.opened import Network

CHECKED = 20_000  # rows that `check` compares with all
OTHERS = "best_of_others.npz"  # kept between two questions: it takes seconds with a million faces


class Gallery:
    """People enrolled in a folder on disk.

        gallery = Gallery("staff", weights="faces-112")      # made where it is not there yet
        gallery.add("Ada Lovelace", ["ada1.jpg", "ada2.jpg"])
        gallery.identify("party.jpg", fpir=0.01).faces[0].name       # "Ada Lovelace", or "" for nobody known

    `weights` (a folder, a run, a shipped name or an .onnx file) are needed for a new gallery only. `runtime`: torch,
    onnx, or auto, which is onnx where the weights carry a file for it. `faces`: crops, photographs, auto or off, as for
    the commands; `detector` and `min_quality` belong to it. `flip` averages embeddings with the mirror image's, and
    `keep_crops` keeps pictures of the enrolled faces: both are chosen once, for a new gallery.
    Any number of processes may read a gallery and write to it; each sees what others wrote at its next call.

    Raises DataError where there is no gallery and no weights are named, or where it is damaged, WeightsError where the
    weights are not those that it was enrolled with, ConfigError for an unknown device or detector."""

    def __init__(
        self,
        path: str | Path,
        *,
        weights: str | Path = "",
        device: str = "auto",
        faces: Faces = "auto",
        detector: str = "",
        min_quality: float = 0.0,
        flip: bool = False,
        keep_crops: bool = True,
        runtime: Runtime = "auto",
    ) -> None:
        self._device, self._runtime, self._faces = device, runtime, (faces, detector, min_quality)
        name = str(weights)
        if name and not (Path(path) / LIST).exists():
            found = open_model(name)
            kept_name = found.folder.name if is_shipped(found.folder) else str(found.folder.resolve())
            first = GalleryList(_sha256_of(found), kept_name, found.embedding_size, flip, keep_crops)
            self.folder = GalleryFolder.create(path, first)
        else:
            self.folder = GalleryFolder(path)
        self._name, self._is_kept_name = name or self.folder.list.weights_name, not name
        if name:
            _ = self.weights  # others are refused at once
        self._enrolled = Enrolled(tuple(self.folder.parts))
        self._others: BestOfOthers | None = None

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.folder.path

    def __repr__(self) -> str:
        enrolled = self.enrolled
        people = plural(len(enrolled.names), "person", "people")
        return f"Gallery({str(self.path)!r}, {people}, {plural(len(enrolled), 'face')})"

    def __len__(self) -> int:
        """Enrolled faces."""
        return len(self.enrolled)

    @property
    def enrolled(self) -> Enrolled:
        """What is enrolled now."""
        if self.folder.refresh() or len(self._enrolled) != len(self.folder):
            self._enrolled, self._others = Enrolled(tuple(self.folder.parts)), None
        return self._enrolled

    @property
    def people(self) -> dict[str, int]:
        """The enrolled people, sorted, and how many faces of each."""
        return self.enrolled.counts()

    def photos(self, name: str) -> list[str]:
        """The photographs that a person was enrolled from. Raises DataError for an unknown name."""
        enrolled = self.enrolled
        self._check_names([name], enrolled)
        rows = np.flatnonzero(enrolled.person == enrolled.names.index(name))
        return [enrolled.photo(row) for row in rows.tolist()]

    @cached_property
    def weights(self) -> Weights:
        """The weights. Raises WeightsError where they are not there any more, or are others."""
        try:
            found = open_model(self._name)
        except WeightsError as error:
            if not self._is_kept_name:
                raise
            raise WeightsError(
                f"{self.path} was enrolled with {self._name}, which is not there; name the weights "
                f"(sha256 {self.folder.list.weights[:12]}...)"
            ) from error
        self.folder.check_weights(_sha256_of(found), self._name)
        return found

    @property
    def weights_folder(self) -> Path:
        """The weights' folder, or their .onnx file."""
        return self.weights.folder

    @cached_property
    def embedder(self) -> Network:
        """The network; loaded when it is first needed."""
        runtime = self.weights.runtime(self._runtime, self._device, 1)
        return self.weights.network(self._device, runtime)

    @cached_property
    def _finder(self) -> FaceFinder | None:
        faces, detector, min_quality = self._faces
        return self.embedder.finder(faces, detector=detector, min_quality=min_quality)

    def add(self, name: str, photos: Picture | Iterable[Picture], *, take_largest: bool = False) -> Added:
        """Enroll a person from photographs: paths, bytes, PIL images or arrays (H, W, 3), one or several.

        A photograph with several faces of like size is skipped, unless `take_largest` (the most prominent counts).
        What is skipped has its reason in the result; a photograph that the person is enrolled from already is counted
        there. Raises DataError for an empty name, OSError where the disk is full (what was written before stays)."""
        one = isinstance(photos, (str, Path, bytes, Image.Image, np.ndarray))
        several: Iterable[Picture] = [photos] if one else photos  # type: ignore[list-item,assignment]
        return self.add_all(
            ((name, _named(photo, number)) for number, photo in enumerate(several)), take_largest=take_largest
        )

    def add_all(self, people: Iterable[tuple[str, Photo]], *, take_largest: bool = False) -> Added:
        """Enroll from pairs of a person's name and a photograph, in any number; as `add`.

        Faces are written as they come, at least once a minute, so that a process that is killed goes on where it
        stopped: the same call again counts what is there already."""

        def looked(photos: Iterable[Photo]) -> Iterator[SeenPhoto]:
            return see(self.embedder, self._finder, photos, flip=self.folder.list.flip)

        return enrol(self.folder, looked, people, take_largest=take_largest)

    def add_embeddings(
        self, embeddings: npt.ArrayLike, names: Sequence[str], photos: Sequence[str] = ()
    ) -> int:
        """Enroll embeddings (N, D) that these weights made, with N names and, where known, what each was made of.
        Returns N. Lengths do not matter. Raises DataError for shapes that do not fit."""
        emb_ND = unit_rows(embeddings)
        names = [checked_name(name) for name in names]
        size = self.folder.list.embedding_size
        photos = list(photos) or [""] * len(names)
        if emb_ND.shape != (len(names), size) or len(photos) != len(names):
            raise DataError(
                f"embeddings of shape {emb_ND.shape}, {len(names)} names and {len(photos)} photographs; this gallery "
                f"needs (N, {size}), and N of each"
            )
        hashes = np.stack([np.frombuffer(hash_of(row.tobytes()), np.uint8) for row in emb_ND])
        unknown = np.full(len(names), np.nan, np.float32)
        self.folder.append(Rows(emb_ND, names, photos, hashes, unknown, [b""] * len(names)))
        return len(names)

    def remove(self, names: str | Sequence[str] = (), *, photos: Sequence[str] = ()) -> int:
        """Remove people, or photographs (as `photos(name)` lists them, of these people where names are given). Returns
        how many faces went; they are gone from the disk. Raises DataError for what is not there, with the nearest."""
        names = [names] if isinstance(names, str) else list(names)
        enrolled = self.enrolled
        if not names and not photos:
            raise ConfigError("nothing to remove; name people, or photographs")
        self._check_names(names, enrolled)
        there = {part.photo(i) for part in enrolled.parts for i in range(len(part))} if photos else set()
        for photo in photos:
            if photo not in there:
                raise DataError(f"no photograph {photo!r} in {self.path}{did_you_mean(photo, sorted(there))}")

        def wanted(part: Part) -> npt.NDArray[np.bool_]:
            of_people = np.isin(part.person, [i for i, name in enumerate(part.names) if name in set(names)])
            if not photos:
                return of_people
            of_photos = np.array([part.photo(i) in set(photos) for i in range(len(part))], bool)
            return of_photos & of_people if names else of_photos

        gone = self.folder.remove(wanted)
        if gone is None and photos:
            raise DataError(f"none of these photographs is of {', '.join(names)}: nothing was removed")
        (self.path / OTHERS).unlink(missing_ok=True)
        return len(gone) if gone is not None else 0

    def _check_names(self, names: Sequence[str], enrolled: Enrolled) -> None:
        for name in names:
            if name not in enrolled.counts():
                hint = did_you_mean(name, enrolled.names) if enrolled.names else ": nobody is"
                raise DataError(f"nobody called {name!r} is enrolled in {self.path}{hint}")

    def threshold(self, fpir: float = 0.01) -> FpirThreshold:
        """The threshold of a wanted FPIR, 0..1, for the people who are enrolled now. Raises WeightsError where there
        are too few of them and the weights hold no thresholds."""
        if not 0 < fpir < 1:
            raise ConfigError(f"an FPIR of {fpir} is wanted; it is a share above 0 and below 1, such as 0.01")
        curve = StoredCurve.of(self.weights.config, flip=self.folder.list.flip)
        return choose_threshold(self._best_of_others(), curve, fpir)

    def _best_of_others(self) -> BestOfOthers:
        """Kept in the folder while few faces come or go; a folder that cannot be written to is no fault."""
        enrolled = self.enrolled
        if self._others is None:
            kept = _load_others(self.path / OTHERS)
            if kept is None or not kept.is_of(len(enrolled)):
                kept = best_of_others(enrolled)
                _save_others(self.path / OTHERS, kept)
            self._others = kept
        return self._others.now(len(enrolled), len(enrolled.names))

    def search(self, embeddings: npt.ArrayLike, top: int = 3) -> list[list[Match]]:
        """For each embedding (Q, D) of these weights the most similar people, best first; exact, at any score."""
        return find_people(self.enrolled, embeddings, top)

    def identify(
        self, photo: Picture, *, fpir: float = 0.01, threshold: float | None = None, top: int = 3
    ) -> PhotoAnswer:
        """Who is on a photograph: an answer for each face, the largest first; none, with the reason, where there is no
        face. As `identify_all`."""
        return next(iter(self.identify_all([photo], fpir=fpir, threshold=threshold, top=top)))

    def identify_all(
        self, photos: Iterable[Picture], *, fpir: float = 0.01, threshold: float | None = None, top: int = 3
    ) -> Iterator[PhotoAnswer]:
        """Who is on each photograph (paths, bytes, PIL images, arrays), in their order.

        A face is named where the best score reaches the threshold: that of `fpir` (see `threshold`), or `threshold`, a
        cosine. The `top` most similar people are listed at any score. Raises DataError for an empty gallery."""
        named = (_named(photo, number) for number, photo in enumerate(photos))
        return self.answer(named, fpir=fpir, threshold=threshold, top=top)

    def answer(
        self, photos: Iterable[Photo], *, fpir: float = 0.01, threshold: float | None = None, top: int = 3
    ) -> Iterator[PhotoAnswer]:
        """`identify_all` for photographs that were read and have names."""
        if not len(self.enrolled):
            raise DataError(f"nobody is enrolled in {self.path}; `facemetric gallery add {self.path} PEOPLE`")
        if threshold is not None:
            chosen = choose_threshold(self._best_of_others(), None, fpir, given=threshold)
        else:
            chosen = self.threshold(fpir)
        for seen in see(self.embedder, self._finder, photos, flip=self.folder.list.flip):
            enrolled = self.enrolled
            emb_FD = [face.embedding for face in seen.faces]
            found = find_people(enrolled, np.stack(emb_FD), max(top, 1)) if emb_FD else []
            faces = tuple(
                FaceAnswer(
                    matches[0].name if matches[0].score >= chosen.cosine else "",
                    tuple(matches[:top]),
                    face,
                    tuple(enrolled.photo(match.row) for match in matches[:top]),
                    enrolled.crop(matches[0].row),
                )
                for face, matches in zip(seen.faces, found, strict=True)
            )
            yield PhotoAnswer(seen.name, faces, seen.missing, chosen)

    def check(self, *, fpir: float = 0.01) -> Checked:
        """Read every file again, then look for faces enrolled under two names, people who look like one, and faces that
        look more like somebody else's. Raises DataError for the first damaged file, WeightsError for the weights."""
        self.folder.check()
        enrolled = self.enrolled
        if not len(enrolled):
            return Checked(self.path, 0, 0, 0, [], [], [], None)
        chosen = self.threshold(fpir) if len(enrolled.names) > 1 else None
        rows = drawn_rows(len(enrolled), CHECKED)
        others, own = nearest_other(enrolled, rows), nearest_own(enrolled, rows)
        twice, unlike = [], []
        alike: dict[tuple[str, str], float] = {}
        for i, row in enumerate(rows.tolist()):
            other, score = int(others.row[i]), float(others.score[i])
            if chosen is None or other < 0:
                continue
            names = enrolled.names[enrolled.person[row]], enrolled.names[enrolled.person[other]]
            pair = (min(names), max(names))
            if score >= SAME and (row < other or other not in rows):
                twice.append((names[0], enrolled.photo(row), names[1], enrolled.photo(other)))
            elif score >= chosen.cosine and score > alike.get(pair, -1):
                alike[pair] = score
            if own.row[i] >= 0 and own.score[i] < score < SAME:
                unlike.append((names[0], enrolled.photo(row), names[1], score))
        pairs = sorted(((*pair, score) for pair, score in alike.items()), key=lambda pair: -pair[2])
        return Checked(self.path, len(enrolled), len(enrolled.names), len(rows), twice, pairs, unlike, chosen)


def _named(photo: Any, number: int) -> Photo:
    """A picture as it came; a path is read, anything else is called by its number."""
    return read_photo(photo) if isinstance(photo, (str, Path)) else Photo(f"picture {number}", photo)


def _sha256_of(weights: Weights) -> str:
    """The fingerprint of weights: that of their config, or of the file itself."""
    return weights.fingerprint or file_hash(weights.folder / MODEL)


def _save_others(file: Path, others: BestOfOthers) -> None:
    buffer = io.BytesIO()
    counts = np.array([others.rows, others.people])
    np.savez(buffer, score=others.score, person=others.person, counts=counts)
    try:
        write_whole(file, lambda staged: staged.write_bytes(buffer.getvalue()))
    except OSError:  # it is made again when it is next needed
        return


def _load_others(file: Path) -> BestOfOthers | None:
    try:
        with np.load(file, allow_pickle=False) as kept:
            rows, people = kept["counts"].tolist()
            return BestOfOthers(kept["score"], kept["person"], rows, people)
    except (*UNREADABLE, ValueError):
        return None
