"""What is kept beside an option's type: the numbers that it may be, that it is a folder, its group in `--help`.

val_fraction: Annotated[float, DATA, SHARE] = 0.1
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from cyclopts import Group, Parameter

from facemetric.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """Smallest and largest value of a number, or of each number of a tuple; `above` leaves the smallest out."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        if self.low == 0 and self.high == 1:
            return "it is a share above 0, such as 1e-3" if self.above else "it is a share, choose 0..1"
        if self.above:
            return f"it must be above {self.low:g}" + (", and finite" if self.high < math.inf else "")
        return (
            f"it must be at least {self.low:g}"
            if self.high == math.inf
            else f"choose {self.low:g}..{self.high:g}"
        )


SHARE = Range(0, 1)
POSITIVE_SHARE = Range(0, 1, above=True)
AT_LEAST_0, AT_LEAST_1, AT_LEAST_2 = Range(0), Range(1), Range(2)
RATE = POSITIVE = Range(0, 1.7e308, above=True)  # a learning rate, a scale
SEED = Range(0, 2**32 - 1)  # it is multiplied by steps
WORKERS = Range(-1)

# How files end that a command reads or writes: a folder of such a name is a slip, as `--out model.onnx` is.
FILE_ENDINGS = frozenset(
    (
        *(
            ".bin",
            ".csv",
            ".html",
            ".json",
            ".jsonl",
            ".npy",
            ".npz",
            ".onnx",
            ".parquet",
            ".pdf",
            ".pt",
            ".pth",
        ),
        *(".safetensors", ".tar", ".toml", ".txt", ".xml", ".zip"),
        *(".bmp", ".gif", ".heic", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"),
    )
)


@dataclass(frozen=True)
class Folder:
    """Of a path: it is a folder to write into, which may not be there yet."""

    def check(self, option: str, path: Path) -> None:
        """Raise ConfigError for the name of a file."""
        if path.suffix.lower() in FILE_ENDINGS and not path.is_dir():
            raise ConfigError(
                f"{option} names a file ({path}); needed is a folder to write into, such as {path.with_suffix('')}"
            )
        blocking = next((each for each in (path, *path.parents) if each.is_file()), None)
        if blocking is not None:
            raise ConfigError(f"{option} cannot be a folder ({path}): {blocking} is a file; name another")


FOLDER = Folder()

COMMON, DATA, FIGURES, TEMPLATES, MODEL, OPTIMISATION, AUGMENTATION, VALIDATION, RUN, FACES = (
    Parameter(group=Group(name, sort_key=number))
    for number, name in enumerate(
        (
            *("Common", "Data", "Figures", "Templates", "Model", "Optimisation"),
            *("Augmentation", "Validation", "Run", "Faces"),
        )
    )
)


def _extras(kind: type) -> list[tuple[str, Any]]:
    """What is kept beside the types of the options, each with its option's name."""
    hints = get_type_hints(kind, include_extras=True).items()
    return [(name, extra) for name, hint in hints for extra in getattr(hint, "__metadata__", ())]


def check_ranges(config: Any) -> None:
    """Raise ConfigError for the first option whose value is out of its range, or no folder; None passes."""
    for name, extra in _extras(type(config)):
        value, option = getattr(config, name), f"--{name.replace('_', '-')}"
        if isinstance(extra, Folder) and value is not None:
            extra.check(option, value)
        elif isinstance(extra, Range):
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and number not in extra:
                    raise ConfigError(f"{option} is {number}; {extra}")
