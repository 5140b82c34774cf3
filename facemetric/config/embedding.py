"""Options of `embed`: pictures to a table of embeddings."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from facemetric.config.fields import AT_LEAST_1, WORKERS
from facemetric.config.photographs import FacesConfig

NetworkRuntime = Literal["auto", "torch", "onnx"]


@dataclass(frozen=True)
class PicturesOfPeople:
    """Pictures, by position."""

    data: tuple[str, ...] = ()
    """Pictures: a folder of identities or of loose photographs, a csv (path,identity) or .tar files."""


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
