"""Lists of templates: which images together stand for one person, of whom, and from which medium each is.

Forms that are read, told apart by their ending and their first line:
    csv       `image,template,subject` and, where they are known, `media` and `quality`; the lists of IJB-A, IJB-B and
              IJB-C are such (`TEMPLATE_ID,SUBJECT_ID,FILENAME,...`; MEDIA_ID where they have it, else the frames of
              one video, `frames/123_45.png`, are one medium)
    text      `image template media`, as insightface gives IJB-B and IJB-C (`ijbc_face_tid_mid.txt`)
    text      `template image word`, NIST's lists for FRTE: the word (MUGSHOT, UNKNOWN) says nothing of the subject
    .mat      TinyFace's and SurvFace's: `gallery_set`, `gallery_ids` (and of probes), a template of each image
    glob      `Gallery_Distractor/*`: images of people who are nobody else, a template of each

Pairs of templates (`read_template_pairs`): a csv as for images, IJB's matches `template,template`, insightface's
`template template label`, FRTE's `1.template 2.template`; without a label the subjects say it.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from facemetric.data.pair_images import Names
from facemetric.data.pair_list import Pairs
from facemetric.data.pairs import TRUTH, opened_text, read_pairs
from facemetric.data.readers.csv import Table
from facemetric.errors import DataError, did_you_mean, first_few

Texts = npt.NDArray[np.str_]
COLUMNS = {
    "image": ("image", "path", "filename", "image_path"),
    "template": ("template", "template_id"),
    "subject": ("subject", "subject_id", "identity"),
    "media": ("media", "media_id", "medium"),
    "quality": ("quality",),
}
BOX = ("face_x", "face_y", "face_width", "face_height")
FRAME = re.compile(r"(?:^|/)frames/([^/]+)_\d+\.\w+$", re.IGNORECASE)  # IJB: frames/VIDEO_FRAME.png
FOLDERS = {"gallery_set": "Gallery_Match", "probe_set": "Probe"}  # TinyFace's, where bare names are ambiguous
TEMPLATE = ".template"  # the ending of a template's file in FRTE's lists


@dataclass(frozen=True)
class TemplateList:
    """R images of templates, str (R,) each: `image`, `template`, its `subject` and the `media` of the image, "" where
    they are not known; `quality` float64 (R,), NaN where it is not known. An image may be in several templates."""

    image: Texts
    template: Texts
    subject: Texts
    media: Texts
    quality: npt.NDArray[np.float64]
    source: str = "templates"

    def __len__(self) -> int:
        return len(self.image)

    @property
    def templates(self) -> Texts:
        """Each template once (T,), in the order of the list."""
        return self.template[np.sort(np.unique(self.template, return_index=True)[1])]


def list_of(rows: Sequence[Mapping[str, str]], source: str) -> TemplateList:
    """A list from rows of texts by the names of COLUMNS. Raises DataError where a quality is no number of 0 or more,
    or a template is of two subjects."""
    columns = {name: np.array([row.get(name, "") for row in rows], dtype=np.str_) for name in COLUMNS}
    try:
        quality = np.array([float(text or "nan") for text in columns["quality"].tolist()])
    except ValueError as error:
        raise DataError(f"{source}: a quality that is no number ({error}); give shares of 0..1") from None
    if (quality < 0).any() or np.isinf(quality).any():
        raise DataError(
            f"{source}: a quality of {quality[(quality < 0) | np.isinf(quality)][0]}; give 0 or more"
        )
    found = TemplateList(
        columns["image"], columns["template"], columns["subject"], columns["media"], quality, source
    )
    check_subjects(found)
    return found


def check_subjects(found: TemplateList) -> None:
    """Raise DataError where a template is of two subjects."""
    subject: dict[str, str] = {}
    for template, name in zip(found.template.tolist(), found.subject.tolist(), strict=True):
        if subject.setdefault(template, name) != name:
            raise DataError(
                f"{found.source}: template {template} is of {subject[template]!r} and of {name!r}; a template is "
                "of one person"
            )


def joined(lists: Sequence[TemplateList]) -> TemplateList:
    """Several lists as one; the templates of each are kept apart by their names."""
    if len(lists) == 1:
        return lists[0]

    def column(name: str) -> npt.NDArray[Any]:
        return np.concatenate([getattr(one, name) for one in lists])

    found = TemplateList(
        column("image"),
        column("template"),
        column("subject"),
        column("media"),
        column("quality"),
        " and ".join(one.source for one in lists),
    )
    owner: dict[str, int] = {}
    for number, one in enumerate(lists):
        for template in one.templates.tolist():
            if owner.setdefault(template, number) != number:
                raise DataError(
                    f"template {template} is in {lists[owner[template]].source} and in {one.source}; name it once"
                )
    return found


def read_templates(source: str, images: Names) -> TemplateList:
    """The templates that a file lists, or a glob of the names of `images`."""
    path = Path(source)
    if not path.is_file():
        if any(mark in source for mark in "*?["):
            return nobody_else(source, images)
        raise DataError(f"{source}: no such list of templates; needed a csv, a text or a .mat")
    if path.suffix.lower() == ".mat":
        return _read_mat(path, images)
    with opened_text(path, "a list of templates", newline="") as text:
        first = text.readline()
        text.seek(0)
        if any(mark in first for mark in ",;") or _named(first.split("\t")):
            return _read_csv(path, text)
        return _read_text(path, text)


def nobody_else(pattern: str, images: Names) -> TemplateList:
    """A template of each image whose name fits a glob, each of a person of its own."""
    names = [images.name(i) for i in range(len(images))]
    fits = [name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"*/{pattern}")]
    if not fits:
        raise DataError(
            f"{pattern}: no image of DATA has such a name; the first is {names[0] if names else 'none'!r}"
        )
    return list_of([{"image": name, "template": name, "subject": f"only {name}"} for name in fits], pattern)


def _named(header: Iterable[str]) -> dict[str, int]:
    """The places of the columns that we know in a header."""
    places = {name.strip().lower(): i for i, name in enumerate(header)}
    return {
        ours: places[name] for ours, names in COLUMNS.items() for name in reversed(names) if name in places
    }


def _read_csv(path: Path, lines: Iterable[str]) -> TemplateList:
    table = Table(path, lines, "image,template,subject")
    at = _named(table.header)
    if lacking := [name for name in ("image", "template") if name not in at]:
        raise DataError(
            f"{path}: no column {', '.join(lacking)} among {', '.join(table.header[:8])!r}; needed "
            f"image,template,subject (or FILENAME,TEMPLATE_ID,SUBJECT_ID){did_you_mean(lacking[0], table.header)}"
        )
    box_at = [table.columns[name] for name in BOX if name in table.columns]
    box_of: dict[str, list[str]] = {}
    rows = []
    for cells in table.rows():
        row = {name: cells[i] for name, i in at.items()}
        if not (row["image"] and row["template"]):
            raise DataError(f"{path} line {table.line}: no image or no template; every row needs both")
        box = [cells[i] for i in box_at]
        if box_of.setdefault(row["image"], box) != box:
            raise DataError(
                f"{path} line {table.line}: {row['image']} with a second box {box}; name a crop of its own for each "
                "face, as image,template,subject,media"
            )
        if "media" not in at and (frame := FRAME.search(row["image"].replace("\\", "/"))):
            row["media"] = f"video {frame[1]}"
        rows.append(row)
    if not rows:
        raise DataError(f"{path}: a header but no images")
    return list_of(rows, str(path))


def _read_text(path: Path, lines: Iterable[str]) -> TemplateList:
    """`image template media`, or FRTE's `template image word`: the image is the one with an ending."""
    rows = []
    for number, line in enumerate(lines, 1):
        cells = line.split()
        if not cells:
            continue
        if len(cells) != 3:
            raise DataError(
                f"{path} line {number}: {line.strip()[:80]!r}; needed `image template media` or `template image word`"
            )
        first, second, third = cells
        if Path(second).suffix and not Path(first).suffix:
            rows.append({"image": second, "template": first})
        else:
            rows.append({"image": first, "template": second, "media": third})
    if not rows:
        raise DataError(f"{path}: empty; needed a list of templates")
    return list_of(rows, str(path))


def _read_mat(path: Path, images: Names) -> TemplateList:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        stored: Mapping[str, Any] = loadmat(path)
    except (OSError, ValueError, TypeError, IndexError, NotImplementedError, MatReadError) as error:
        raise DataError(f"{path}: no readable .mat ({str(error).splitlines()[0]})") from None
    sets = [name for name in stored if name.endswith("_set")]
    ids = [name.removesuffix("_set") + "_ids" for name in sets]
    if len(sets) != 1 or ids[0] not in stored:
        there = ", ".join(name for name in stored if not name.startswith("__"))
        raise DataError(f"{path}: holds {there or 'nothing'}; needed one ..._set of names and its ..._ids")
    names = [_text_in(value) for value in np.ravel(stored[sets[0]])]
    people = [_text_in(value) for value in np.ravel(stored[ids[0]])]
    if len(names) != len(people):
        raise DataError(f"{path}: {len(names)} names and {len(people)} ids; needed one for one")
    folder = FOLDERS.get(sets[0], "")
    known = {images.name(i) for i in range(len(images))} if folder else set()
    in_folder = any(name.endswith(f"{folder}/{names[0]}") for name in known)
    paths = [f"{folder}/{name}" if in_folder else name for name in names]
    return list_of(
        [
            {"image": image, "template": image, "subject": person}
            for image, person in zip(paths, people, strict=True)
        ],
        str(path),
    )


def _text_in(value: Any) -> str:
    """A text or a number as MATLAB nests them."""
    while isinstance(value, np.ndarray):
        if not value.size:
            return ""
        value = value.reshape(-1)[0]
    return str(value)


class TemplateNames:
    """The templates as `resolve` and `list_pairs` ask for them."""

    def __init__(self, templates: Texts) -> None:
        self.templates = templates.tolist()
        self.row = {name: i for i, name in enumerate(self.templates)}

    def __len__(self) -> int:
        return len(self.templates)

    def name(self, i: int, /) -> str:
        """The name of a template."""
        return str(self.templates[i])

    def find(self, name: str, /) -> int | None:
        """The row of a template's name."""
        return self.row.get(name)


class _Columns(NamedTuple):
    """Two templates a line, and the label where there is one."""

    a: list[str]
    b: list[str]
    label: list[str] | None


def read_template_pairs(file: Path, templates: TemplateList) -> Pairs:
    """Pairs of templates. Raises DataError for a label that cannot be told, or what is no such list."""
    first = _first_line(file)
    if "label" in first.lower() or "same" in first.lower().split(","):
        return read_pairs(file)
    columns = _read_columns(file, "," if "," in first else r"\s+")
    names, codes = np.unique(np.array([*columns.a, *columns.b], dtype=np.str_), return_inverse=True)
    known = set(templates.template.tolist())
    short = [name.removesuffix(TEMPLATE) if name not in known else name for name in names.tolist()]
    a, b = codes[: len(columns.a)].astype(np.int32), codes[len(columns.a) :].astype(np.int32)
    if columns.label is None:
        same = _same_subjects(file, short, a, b, templates)
    else:
        truth = {text: TRUTH.get(text.lower()) for text in set(columns.label)}
        if wrong := [text for text, value in truth.items() if value is None]:
            raise DataError(f"{file}: label {wrong[0]!r}; write 1 (same) or 0 (different)")
        same = np.array([truth[text] for text in columns.label], dtype=bool)
    if len(set(short)) < len(short):  # a template with and without its file's ending
        one, other = ([short[i] for i in column] for column in (a, b))
        return Pairs.of(one, other, same, source=str(file))
    return Pairs(tuple(short), a, b, same, source=str(file))


def _first_line(file: Path) -> str:
    with opened_text(file, "pairs of templates") as text:
        return next((line for line in text if line.strip()), "")


def _read_columns(file: Path, separator: str) -> _Columns:
    """Two or three columns without a header; IJB-C lists 15 million lines, so pandas reads them."""
    import pandas as pd

    try:
        frame = pd.read_csv(file, sep=separator, header=None, dtype=str, quoting=csv.QUOTE_NONE)
    except (ValueError, pd.errors.ParserError) as error:
        raise DataError(f"{file}: no list of pairs of templates ({str(error).splitlines()[0]})") from None
    if frame.shape[1] not in (2, 3) or frame.isna().to_numpy().any():
        raise DataError(
            f"{file}: {frame.shape[1]} columns, or a line of fewer; needed `template template` and a label where the "
            "templates' subjects are not known"
        )
    a, b, *label = (frame[i].str.strip().tolist() for i in frame.columns)
    return _Columns(a, b, label[0] if label else None)


def _same_subjects(
    file: Path,
    names: Sequence[str],
    a: npt.NDArray[np.int32],
    b: npt.NDArray[np.int32],
    templates: TemplateList,
) -> npt.NDArray[np.bool_]:
    """Whether both templates of each pair are of one subject."""
    subject = dict(zip(templates.template.tolist(), templates.subject.tolist(), strict=True))
    unknown = [name for name in names if not subject.get(name)]
    if unknown:
        raise DataError(
            f"{file}: the pairs have no label, and the subject of {len(unknown):,} of their templates is not known: "
            f"{first_few(unknown, 5)}; give a third column, 1 (same) or 0 (different), or lists with subjects"
        )
    number = {name: i for i, name in enumerate(dict.fromkeys(subject.values()))}
    person = np.array([number[subject[name]] for name in names])
    return person[a] == person[b]
