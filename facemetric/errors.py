"""What a user can get wrong. Each message says what came, what was needed, what to change."""

from __future__ import annotations

import contextlib
import difflib
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
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


def given(option: str, value: object) -> str:
    """An option and its text in a message, `--out=runs/a`: the terminal shows `--out runs/a`, Python `out='runs/a'`.

    Needed for text that can be anything; a number and one of an option's choices are told from the words around."""
    return f"{option}={shlex.quote(str(value))}"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file in the system's error where a write fails (a full disk): without this it has no name."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def plural(n: int, one: str, several: str = "") -> str:
    """A number and its noun: `plural(1, "identity")` is "1 identity", `plural(2000, "pair")` is "2,000 pairs".

    `several` is the noun's plural where it is not an s, or "ies" for a y."""
    if not several:
        several = one[:-1] + "ies" if one.endswith("y") and one[-2] not in "aeiou" else one + "s"
    return f"{n:,} {one if n == 1 else several}"


def first_few(names: Iterable[object], n: int = 3) -> str:
    """The first `n` of some names for a message: "a, b, c and 4 more"; "none" where there are none."""
    texts = [str(name) for name in names]
    if not texts:
        return "none"
    more = len(texts) - n
    return ", ".join(texts[:n]) + (f" and {more:,} more" if more > 0 else "")


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """The end of an error message for a misspelt name: `": did you mean 'semihard'?"`, or the choices."""
    choices = list(choices)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if close:
        return f": did you mean {close[0]!r}?"
    shown = ", ".join(choices[:12]) + (", ..." if len(choices) > 12 else "")
    return f": choose from {shown}"


def nearest_beside(path: Path, fits: Callable[[Path], object] = Path.exists) -> str:
    """The end of a message for a path that is not there: `": did you mean 'runs/finetune'?"` where a path of like name
    beside it `fits`, else ""."""
    try:
        beside = [path.with_name(name) for name in os.listdir(path.parent) if name != path.name]
        stems = {each.stem: each for each in beside if fits(each)}
    except (OSError, ValueError):
        return ""
    close = difflib.get_close_matches(path.stem, stems, n=1, cutoff=0.6)
    return f": did you mean {str(stems[close[0]])!r}?" if close else ""
