"""Options of the commands about enrolled people."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated

from facemetric.config.fields import AT_LEAST_1, POSITIVE_SHARE, Range
from facemetric.config.photographs import FacesConfig, NetworkRuntime


@dataclass(frozen=True)
class GalleryAndPeople:
    """What `gallery add` takes by position."""

    gallery: str = ""
    """Folder of the gallery; made where it is not there."""
    people: tuple[str, ...] = ()
    """A folder of identities (ada/1.jpg), a csv (path,identity) or .tar files; with --name, one person's photos."""


@dataclass(frozen=True)
class GalleryAddConfig(FacesConfig, GalleryAndPeople):
    """People to enroll, from photographs."""

    _: KW_ONLY
    name: str = ""
    """The person on all of these photographs: files, or folders of them."""
    file_names: bool = False
    """Loose photographs are named as their person: `Ada Lovelace.jpg`, `Ada Lovelace 2.jpg`."""
    weights: str = ""
    """For a new gallery: a weights folder, a run folder, a shipped name or an .onnx file. Later it knows its own."""
    take_largest: bool = False
    """Of several faces of like size enroll the most prominent; without, such a photograph is skipped."""
    flip: bool = False
    """For a new gallery: average each embedding with its mirror image's, better by a little, at twice the cost."""
    crops: bool = True
    """For a new gallery: keep small pictures of the enrolled faces, for identify --show."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    runtime: NetworkRuntime = "auto"
    """torch, onnx, or auto: onnx where the weights carry a file for it, which needs no torch; onnx makes one."""


@dataclass(frozen=True)
class GalleryListConfig:
    """The people of a gallery."""

    gallery: str = ""
    """Folder of the gallery."""
    names: tuple[str, ...] = ()
    """People whose photographs are listed; where none is named, all people with number and quality of their faces."""
    _: KW_ONLY
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class GalleryRemoveConfig:
    """People, or photographs, to take out of a gallery."""

    gallery: str = ""
    """Folder of the gallery."""
    names: tuple[str, ...] = ()
    """People."""
    _: KW_ONLY
    photos: tuple[str, ...] = ()
    """Only these photographs, as `gallery list` names them."""


@dataclass(frozen=True)
class GalleryCheckConfig:
    """Faults of a gallery: damaged files, one picture under two names, people who look like one."""

    gallery: str = ""
    """Folder of the gallery."""
    _: KW_ONLY
    fpir: Annotated[float, POSITIVE_SHARE] = 0.01
    """FPIR of the threshold above which people are alike."""
    weights: str = ""
    """The gallery's weights, where they are not where they were."""
    json: bool = False
    """Print one JSON object."""


@dataclass(frozen=True)
class SomePhotographs:
    """What `identify` takes by position."""

    photos: tuple[str, ...] = ()
    """Photographs: files, folders, .tar files."""


@dataclass(frozen=True)
class IdentifyConfig(FacesConfig, SomePhotographs):
    """Photographs: who is on them?"""

    _: KW_ONLY
    gallery: str = ""
    """Folder of the gallery; `facemetric gallery add` makes one."""
    fpir: Annotated[float, POSITIVE_SHARE] = 0.01
    """Share of the people who are not enrolled that may be taken for somebody who is."""
    threshold: Annotated[float | None, Range(-1, 1)] = None
    """A cosine from which a face is named, -1..1, in place of --fpir."""
    top: Annotated[int, AT_LEAST_1] = 3
    """People to list for a face, the most similar first, at any score."""
    json: bool = False
    """Print one JSON object."""
    show: Path | None = None
    """An .html or .png file with each face beside its best match."""
    weights: str = ""
    """The gallery's weights, where they are not where they were."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    runtime: NetworkRuntime = "auto"
    """torch, onnx, or auto: onnx where the weights carry a file for it, which needs no torch; onnx makes one."""
