"""What a user can get wrong. Each message says what came, what was needed, what to change."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path


class FacemetricError(Exception):
    """A fault the user can mend: the command line prints it as one line and exits with status 2."""


class ConfigError(FacemetricError, ValueError):
    """An option, or a combination of options, that cannot work."""


class DataError(FacemetricError, ValueError):
    """Images, index files or pairs that are missing, broken or too few."""


class WeightsError(FacemetricError, ValueError):
    """A weights folder or checkpoint that is missing, cut short or of another shape."""


class TrainingError(FacemetricError):
    """A run that cannot go on: a loss that is not finite, a worker that died, a run that is stopped."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in the system's error where a write fails (a full disk): without this it has no name."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The end of an error message for a misspelt name: `": did you mean 'semihard'?"`, or the choices."""
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if close:
        return f": did you mean {close[0]!r}?"
    shown = ", ".join(choices[:12]) + (", ..." if len(choices) > 12 else "")
    return f": choose from {shown}"


def plural(count: int, one: str, many: str = "") -> str:
    """A count with its noun: `1 identity`, `2 identities`, `0 images`; `many` where the plural is another."""
    if count == 1:
        return f"{count} {one}"
    if not many:
        many = one[:-1] + "ies" if one.endswith("y") and one[-2] not in "aeiou" else one + "s"
    return f"{count} {many}"
