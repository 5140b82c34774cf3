"""The axis on which a table's intervals are drawn: errors on a log axis, so that 0.95 and 0.99 lie apart, and
differences around 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from facemetric.evaluation.figures import DIFFERENCE, Figure

LEAST = 1e-6  # share of errors at which an axis begins at the latest
NICE = (1, 2, 5, 10)


@dataclass(frozen=True)
class Tick:
    """A mark of the axis: its place, 0..100, and its text."""

    at: float
    text: str


@dataclass(frozen=True)
class Axis:
    """`name` says what is drawn; `zero`: the place of no difference, None on an axis of errors."""

    name: str
    ticks: tuple[Tick, ...]
    zero: float | None = None


@dataclass(frozen=True)
class Whisker:
    """A value and its interval on an axis, each a place of 0..100, and whether the interval leaves out 0."""

    value: float
    low: float
    high: float
    apart: bool = False


def drawn(figures: Sequence[Figure]) -> tuple[Axis | None, list[Whisker | None]]:
    """The axis of a column of figures, and each one's whisker; None for those without an interval."""
    if all(f.interval is None or f.value is None for f in figures):
        return None, [None] * len(figures)
    if any(f.column == DIFFERENCE for f in figures):
        return difference_axis(figures)
    return error_axis(figures)


def errors_of(figure: Figure) -> tuple[float, float, float]:
    """(value, low, high) as shares of errors."""
    assert figure.interval is not None
    assert figure.value is not None
    _, low, high = figure.interval[:3]
    return (figure.value, low, high) if figure.error else (1 - figure.value, 1 - high, 1 - low)


def error_axis(figures: Sequence[Figure]) -> tuple[Axis, list[Whisker | None]]:
    """Whole decades from the lowest error that is there to 1. Where one has no errors at all, the axis goes on to the
    left by a decade, whose end is called 0: there it lies."""
    shares = [None if f.interval is None or f.value is None else errors_of(f) for f in figures]
    positive = [share for shown in shares if shown for share in shown if share > LEAST]
    first = min(math.floor(math.log10(min(positive, default=0.1)) + 1e-9), -1)
    without = any(share <= LEAST for shown in shares if shown for share in shown)
    first -= without
    step = -(-(1 - first) // 5)  # five texts fit beside each other
    first = first // step * step  # so that both ends have theirs

    def place(share: float) -> float:
        return 100 * (1 - math.log10(max(min(share, 1), 10.0**first)) / first)

    decades = range(first, 1)
    texts = [f"{100 * 10.0**d:.6g} %" if (d - first) % step == 0 else "" for d in decades]
    if without:
        texts[0] = "0"
    ticks = tuple(Tick(place(10.0**d), text) for d, text in zip(decades, texts, strict=True))
    whiskers = [
        None if share is None else Whisker(place(share[0]), place(share[1]), place(share[2]))
        for share in shares
    ]
    return Axis("errors", ticks), whiskers


def difference_axis(figures: Sequence[Figure]) -> tuple[Axis, list[Whisker | None]]:
    """From a round number below 0 to the same above it."""
    intervals = [f.interval for f in figures]
    widest = max((max(abs(i.low), abs(i.high)) for i in intervals if i is not None), default=0) or 1e-3
    unit = 10 ** math.floor(math.log10(widest))
    most = unit * next(n for n in NICE if n * unit >= widest * (1 - 1e-9))

    def place(value: float) -> float:
        return 50 + 50 * value / most

    ticks = (Tick(0, f"{-most:g}"), Tick(50, "0"), Tick(100, f"+{most:g}"))
    whiskers: list[Whisker | None] = [
        None if i is None else Whisker(place(i.value), place(i.low), place(i.high), i.low > 0 or i.high < 0)
        for i in intervals
    ]
    return Axis("difference", ticks, 50), whiskers
