"""Options of the commands that look for faces in photographs."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from facemetric.config.build import require


@dataclass(frozen=True)
class AlignConfig:
    """Photographs to aligned faces, and a csv of what was found."""

    photos: tuple[str, ...] = ()
    """Photographs: a folder of identities or of loose photographs, a csv (path,identity) or .tar files."""
    _: KW_ONLY
    out: Path = Path("faces")
    """Folder for the crops, named as their photographs, and aligned.csv; the same command again goes on there."""
    size: int = 112
    """Side of a crop in pixels, 16..4096; the template grows with it."""
    several: Literal["take", "leave", "every"] = "take"
    """Photographs with several faces of like size: take one of them, leave the photograph out, or cut every face."""
    face: Literal["prominent", "largest", "central"] = "prominent"
    """Of several faces, by area less twice the squared distance from the middle, by area, or nearest to the middle."""
    min_score: float = 0.9
    """Lowest score of a face, 0..1."""
    detect_size: int = 640
    """Longer side of a photograph as it is looked at, 96..16384 pixels: a larger one shows smaller faces."""
    turns: bool = True
    """Where no face is found, look at the photograph turned by a quarter, a half and three quarters."""
    crops: bool = False
    """Take pictures that are aligned crops already as they are; without, each is a photograph."""
    keep_missed: float = 0.0
    """Where no face is found, keep the middle square of this share of the shorter side, 0..1; 0 keeps nothing."""
    detector: str = ""
    """Another detector, as package.module:function; facemetric/faces/README.md says what it takes and gives."""
    quality: int = 95
    """Of the JPEGs, 1..100."""
    workers: int = -1
    """Processes; the crops do not depend on it. -1 takes every core."""

    def __post_init__(self) -> None:
        for name, low, high in (
            ("size", 16, 4096),
            ("detect_size", 96, 1 << 14),
            ("min_score", 0, 1),
            ("keep_missed", 0, 1),
            ("quality", 1, 100),
            ("workers", -1, 1024),
        ):
            value = getattr(self, name)
            flag = f"--{name.replace('_', '-')}"
            require(low <= value <= high, f"{flag} is {value}; choose {low}..{high}")
        require(self.workers != 0, "--workers is 0; choose 1..1024, or -1 for every core")
