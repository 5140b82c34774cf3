"""`facemetric gallery add|list|remove|check`: people enrolled in a folder on disk.

From Python they are methods of `facemetric.Gallery`."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from facemetric.config import (
    GalleryAddConfig,
    GalleryCheckConfig,
    GalleryListConfig,
    GalleryRemoveConfig,
    IdentifyConfig,
    check_ranges,
    require,
)
from facemetric.errors import DataError, WeightsError, did_you_mean, given, nearest_beside, plural
from facemetric.files import write_text_whole
from facemetric.gallery.folder import LIST, SKIPPED, GalleryFolder
from facemetric.gallery.parts import known_quality
from facemetric.machine import progress_bar, say

if TYPE_CHECKING:
    from facemetric.gallery.answers import Added, Checked
    from facemetric.gallery.look import Photo

SHOWN = (".html", ".htm", ".png")  # what identify --show writes
NUMBER = re.compile(r"[\s_.-]*(?:\(\d+\)|\d+)$")  # at the end of a file's name: `Ada 2`, `Ada_02`, `Ada (3)`


def run_add(config: GalleryAddConfig) -> Added:
    """gallery add, from a config. Raises DataError where not one photograph could be enrolled."""
    check_add(config)
    from facemetric.gallery.gallery import Gallery
    from facemetric.gallery.threshold import USUAL_FPIR

    gallery = Gallery(
        config.gallery,
        weights=config.weights,
        device=config.device,
        runtime=config.runtime,
        faces=config.faces,
        detector=config.detector,
        min_quality=config.min_quality,
        flip=config.flip,
        keep_crops=config.crops,
    )
    people = photos_of(config)
    bar = progress_bar(people, desc="enrolling", unit="photograph", delay=1)
    added = gallery.add_all(((name, photo()) for name, photo in bar), take_largest=config.take_largest)
    file = write_skipped(gallery.path, added)
    if not added.faces and not added.already:
        reasons = "; ".join(f"{photo}: {reason}" for photo, reason in added.skipped[:3])
        more = f" and {len(added.skipped) - 3:,} more, listed in {file}" if len(added.skipped) > 3 else ""
        raise DataError(f"nobody was enrolled: {reasons}{more}")
    with contextlib.suppress(WeightsError):  # too few people yet: identify says so
        gallery.threshold(USUAL_FPIR)  # so that the first question need not wait for it
    return added


def check_add(config: GalleryAddConfig) -> None:
    """Raise what needs no torch: options that do not fit, and files that are not there."""
    check_ranges(config)
    require(bool(config.gallery), "no gallery was named: `facemetric gallery add GALLERY PEOPLE --weights W`")
    require(
        bool(config.people),
        f"nobody to enroll: `facemetric gallery add {config.gallery} PEOPLE`, a folder of identities, or "
        f"`facemetric gallery add {config.gallery} --name NAME PHOTO...`",
    )
    require(not (config.name and config.file_names), "--name and --file-names are two ways; give one")
    there = Path(config.gallery, LIST).exists()
    require(
        there or bool(config.weights),
        f"{config.gallery} is a new gallery: name the weights that it is for, such as --weights=faces-112",
    )
    for option in ("flip", "crops") if there else ():
        require(
            getattr(config, option) is (option == "crops"),
            f"--{option} is chosen for a new gallery, and {config.gallery} is there already; leave it out",
        )


def check_identify(config: IdentifyConfig) -> None:
    """Raise what needs no torch: options that do not fit, and files that are not there."""
    check_ranges(config)
    require(bool(config.photos), "no photographs: `facemetric identify PHOTO... --gallery GALLERY`")
    require(
        bool(config.gallery),
        "no gallery: `facemetric identify PHOTO... --gallery GALLERY`; `facemetric gallery add` makes one",
    )
    if config.show is not None:
        require(
            config.show.suffix.lower() in SHOWN,
            f"{given('--show', config.show)}: pictures are drawn as .html or .png; give the file one of these endings",
        )
        require(
            not config.show.exists(),
            f"{given('--show', config.show)} is there already, and nothing is overwritten; name another file",
        )
    for photo in config.photos:
        if not Path(photo).exists():
            raise no_photographs(photo)


def no_photographs(path: str) -> DataError:
    """The error for a path that is not there."""
    return DataError(f"{path}: no such file or folder{nearest_beside(Path(path)) or '; give photographs'}")


def photos_of(config: GalleryAddConfig) -> list[tuple[str, Any]]:
    """Each photograph's person, and what reads it."""
    found: list[tuple[str, Any]] = []
    for source in config.people:
        if config.name or config.file_names:
            for label, read in loose_photos(source):
                name = config.name or NUMBER.sub("", Path(label).stem)
                found.append((name, read))
        else:
            found += people_in(source, config)
    return found


def people_in(source: str, config: GalleryAddConfig) -> list[tuple[str, Any]]:
    """The photographs of a source with identities. DataError for one without, with what to write."""
    from facemetric.data.index import parse_source, read_index
    from facemetric.data.readers.skips import why_skip_file

    path = parse_source(source).path
    ways = (
        f"a person's photographs: `facemetric gallery add {config.gallery} --name NAME {source}`; "
        "photographs named as their person: --file-names"
    )
    if path.is_file() and why_skip_file(path.name) is None:
        raise DataError(f"whose is {source}? {ways}")
    try:
        index = read_index([source])
    except DataError as error:
        if path.is_dir() and "image of an identity" in str(error):
            raise DataError(f"{error}; or {ways}") from error
        raise
    say(*index.notes)
    prefix = f"{parse_source(source).name}/" if parse_source(source).name else ""
    names = [name.removeprefix(prefix) for name in index.identities]
    base = f"{path}/" if path.is_dir() else f"{path}:"
    return [
        (names[index.identity[row]], reader(index, row, base + index.name(row).removeprefix(prefix)))
        for row in range(len(index))
    ]


def loose_photos(source: str) -> Iterator[tuple[str, Any]]:
    """The photographs of a file, a folder or an archive, whoever is on them: what each is called, and what reads it."""
    from facemetric.data.index import read_index
    from facemetric.gallery.look import read_photo

    archive = source.lower().endswith((".tar", ".csv"))
    if os.path.isdir(source) or (archive and os.path.isfile(source)):
        index = read_index([source], loose=True)
        say(*index.notes)
        for row in range(len(index)):
            label = f"{source.rstrip('/')}{':' if archive else '/'}{index.name(row)}"
            yield label, reader(index, row, label)
    elif not os.path.exists(source):
        raise no_photographs(source)
    else:
        yield source, lambda: read_photo(source)


def reader(index: Any, row: int, label: str) -> Any:
    """What reads a photograph of an index when it is its turn."""

    def read() -> Photo:
        from facemetric.gallery.look import Photo

        try:
            return Photo(label, index.read(row))
        except OSError as error:
            return Photo(label, b"", error.strerror or str(error))

    return read


def write_skipped(path: Path, added: Added) -> Path:
    """The list of what was skipped, in the gallery's folder; that of an earlier time goes."""
    file = path / SKIPPED
    if not added.skipped:
        file.unlink(missing_ok=True)
        return file
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([("photo", "reason"), *added.skipped])
    return write_text_whole(file, text.getvalue())


def run_list(config: GalleryListConfig) -> tuple[str, dict[str, Any]]:
    """gallery list, from a config: its text, and the same for JSON. Raises DataError for a name that is not there."""
    require(bool(config.gallery), "no gallery was named: `facemetric gallery list GALLERY`")
    folder = GalleryFolder(config.gallery)
    photos = folder.photos_by_name() if config.names else {}
    for name in config.names:
        if name not in photos:
            hint = did_you_mean(name, photos) if photos else ": nobody is"
            raise DataError(f"nobody called {name!r} is enrolled in {config.gallery}{hint}")
    if config.names:
        chosen = {name: photos[name] for name in config.names}
        lines = ["quality  photograph"]
        for name, faces_of in chosen.items():
            lines += [name, *(f"{quality_text(quality):>7}  {photo}" for photo, quality in faces_of)]
        return "\n".join(lines), {
            "people": {name: [photo for photo, _ in faces_of] for name, faces_of in chosen.items()},
            "quality": {
                name: [known_quality(quality) for _, quality in faces_of] for name, faces_of in chosen.items()
            },
        }
    counts, qualities = folder.counts(), folder.qualities()
    faces = plural(sum(counts.values()), "face")
    lines = [f"{'faces':>6}  {'quality':9}  person"] if counts else []
    lines += [f"{count:6,}  {quality_text(*qualities[name]):9}  {name}" for name, count in counts.items()]
    lines.append(
        f"{plural(len(counts), 'person', 'people')}, {faces} in {config.gallery}; weights {folder.list.weights_name} "
        f"(sha256 {folder.list.weights[:12]}...)"
    )
    record = {
        "people": counts,
        "quality": {
            name: [known_quality(low), known_quality(high)] for name, (low, high) in qualities.items()
        },
        "weights": folder.list.weights_name,
        "weights_sha256": folder.list.weights,
        "embedding_size": folder.list.embedding_size,
    }
    return "\n".join(lines), record


def quality_text(low: float, high: float | None = None) -> str:
    """The quality of a face, or the range of several's; `-` where it is not known."""
    if math.isnan(low):
        return "-"
    return f"{low:.2f}" if high is None or low == high else f"{low:.2f}-{high:.2f}"


def run_remove(config: GalleryRemoveConfig) -> str:
    """gallery remove, from a config: what to say. Raises DataError for a name that is not there, with the nearest."""
    require(bool(config.gallery), "no gallery was named: `facemetric gallery remove GALLERY NAME...`")
    require(bool(config.names or config.photos), "nobody to remove; name people, or --photos")
    from facemetric.gallery.gallery import Gallery

    gallery = Gallery(config.gallery)
    gone = gallery.remove(config.names, photos=config.photos)
    left = gallery.people
    return (
        f"{plural(gone, 'face')} removed from {config.gallery}; {plural(len(left), 'person', 'people')}, "
        f"{plural(sum(left.values()), 'face')} left"
    )


def run_check(config: GalleryCheckConfig) -> Checked:
    """gallery check, from a config. Raises DataError for the first damaged file."""
    check_ranges(config)
    require(bool(config.gallery), "no gallery was named: `facemetric gallery check GALLERY`")
    from facemetric.gallery.gallery import Gallery

    return Gallery(config.gallery, weights=config.weights).check(fpir=config.fpir)
