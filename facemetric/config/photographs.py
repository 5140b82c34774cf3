"""Options of the commands that look for faces in photographs; those of `align` and `embed`.

Annotations are evaluated here: cyclopts looks names up in the module of the config that inherits them."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from facemetric.config.fields import AT_LEAST_1, FACES, FOLDER, SHARE, WORKERS, Range

NetworkRuntime = Literal["auto", "torch", "onnx"]
Faces = Literal["auto", "crops", "photographs", "off"]


@dataclass(frozen=True)
class FacesConfig:
    """What the commands share that show or compare pictures: which faces of them count.

    Named before a config whose options go by position, which then come first: `ClusterConfig(FacesConfig, DataConfig)`.
    """

    _: KW_ONLY
    faces: Annotated[Faces, FACES] = "auto"
    """crops, photographs, or auto: which each is; off embeds pictures as they are, as auto does with other weights."""
    detector: Annotated[str, FACES] = ""
    """Another detector, as package.module:function; facemetric/faces/README.md says what it takes and gives."""
    min_quality: Annotated[float, FACES, SHARE] = 0.0
    """Faces below this quality do not count, 0..1: of sharpness, size, pose and face score."""


@dataclass(frozen=True)
class AlignConfig:
    """Photographs to aligned faces, and a csv of what was found."""

    photos: tuple[str, ...] = ()
    """Photographs: files, a folder of identities or of loose ones, a csv (path,identity) or .tar files."""
    _: KW_ONLY
    out: Annotated[Path, FOLDER] = Path("faces")
    """Folder for the crops, named as their photographs, and aligned.csv; the same command again goes on there."""
    size: Annotated[int, Range(16, 4096)] = 112
    """Side of a crop in pixels, 16..4096; the template grows with it."""
    several: Literal["take", "leave", "every"] = "take"
    """Photographs with several faces of like size: take one of them, leave the photograph out, or cut every face."""
    face: Literal["prominent", "largest", "central"] = "prominent"
    """Of several faces, by area less twice the squared distance from the middle, by area, or nearest to the middle."""
    min_score: Annotated[float, SHARE] = 0.9
    """Lowest score of a face, 0..1."""
    detect_size: Annotated[int, Range(96, 1 << 14)] = 640
    """Longer side of a photograph as it is looked at, 96..16384 pixels: a larger one shows smaller faces."""
    turns: bool = True
    """Where no face is found, look at the photograph turned by a quarter, a half and three quarters."""
    crops: bool = False
    """Take pictures that are aligned crops already as they are; without, each is a photograph."""
    keep_missed: Annotated[float, SHARE] = 0.0
    """Where no face is found, keep the middle square of this share of the shorter side, 0..1; 0 keeps nothing."""
    detector: str = ""
    """Another detector, as package.module:function; facemetric/faces/README.md says what it takes and gives."""
    min_quality: Annotated[float, SHARE] = 0.0
    """Faces below this quality do not count, 0..1: of sharpness, size, pose and face score."""
    quality: Annotated[int, Range(1, 100)] = 95
    """Of the JPEGs, 1..100."""
    workers: Annotated[int, WORKERS] = -1
    """Processes; the crops do not depend on it. 0 aligns in the main process, -1 takes every core."""


@dataclass(frozen=True)
class PicturesOfPeople:
    """Pictures, by position."""

    data: tuple[str, ...] = ()
    """Pictures: files, a folder of identities or of loose ones, a csv (path,identity) or .tar files."""


@dataclass(frozen=True)
class EmbedConfig(FacesConfig, PicturesOfPeople):
    """Pictures to one table of embeddings: .parquet, .npz or .csv."""

    _: KW_ONLY
    weights: str = ""
    """A weights folder, a run folder, a shipped name, or anybody's model as an .onnx file."""
    out: Path = Path("embeddings.npz")
    """The table, .parquet, .npz or .csv; a csv beside it lists what has no row. The same command again goes on."""
    every_face: bool = False
    """A row for each face of a photograph, the largest first; without, one for the most prominent."""
    flip: bool = False
    """Average each embedding with the mirror image's: better by a little, at twice the cost."""
    runtime: NetworkRuntime = "auto"
    """What computes: torch, or ONNX Runtime, twice as fast on a CPU; auto takes it where it is installed and pays."""
    batch_size: Annotated[int, AT_LEAST_1] = 64
    """Pictures read, looked at and embedded together."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: Annotated[int, WORKERS] = -1
    """Processes that read and look for faces; 0 does it in the main process, -1 takes every core."""
