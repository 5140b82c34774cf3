"""Figures: what was measured, as rows. The terminal, the report, the table of `run` and a frame all show these rows.

Each family of figures (verification, retrieval, ...) makes its own, in its own file, by a method `figures`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

    from facemetric.evaluation.intervals.records import Interval  # imports what has figures

VALUE, DIFFERENCE = "value", "difference"
COLUMNS = ("key", "label", "value", "low", "high", "note")


class Heading(NamedTuple):
    """What the figures of one table have in common: its title, a sentence about it, and what the labels name."""

    title: str
    lead: str = ""
    names: str = ""


class Figure(NamedTuple):
    """One measured number, or the reason why it was not measured (`value` None, and the reason in `note`)."""

    key: str
    """Its name: `verification.auc`, `neighbours.knn_accuracy_1`; a family's own rows lack the family."""
    label: str
    """Its name for people."""
    value: float | None
    interval: Interval | None = None
    """95 %, people resampled."""
    heading: Heading = Heading("")
    note: str = ""
    """What belongs to the value: a threshold, a count."""
    about: str = ""
    """What belongs to the label: a definition in a few words."""
    column: str = VALUE
    """Which of a label's numbers it is, where a label has several; `DIFFERENCE` is shown with its sign."""
    headline: int = 0
    """1 for the first that a reader should see of this family, 2 for the next; 0 for most."""
    series: str = ""
    """The label without the rate, of figures that are measured at several rates: `TAR at FAR`."""
    brief: bool = True
    """Whether the terminal shows it; the report shows all."""
    error: bool = False
    """Whether the value itself is a share of errors, so that lower is better; of the others, 1 less the value is."""
    in_heading: bool = False
    """Whether the heading says it in words: it has no row of its own."""

    def text(self) -> str:
        """The value as it is shown."""
        return "not measured" if self.value is None else number(self.value, self.column)

    def bounds(self) -> str:
        """The interval in brackets, or nothing."""
        if self.interval is None:
            return ""
        low, high = (number(bound, self.column) for bound in self.interval[1:3])
        return f"[{low}, {high}]"


def number(value: float, column: str = VALUE) -> str:
    """Four digits after the point, or two that count where these would be 0; differences have a sign."""
    tiny = 0 < abs(value) < 5e-5
    return f"{value:{'+' if column == DIFFERENCE else ''}{'.2g' if tiny else '.4f'}}"


def tar_name(far: float) -> str:
    """The name of a TAR in metrics.json."""
    return f"tar_at_far_{far:g}"


def tpir_name(fpir: float) -> str:
    """The name of a TPIR in metrics.json."""
    return f"tpir_at_fpir_{fpir:g}"


def fnir_name(fpir: float) -> str:
    """The name of a FNIR in metrics.json."""
    return f"fnir_at_fpir_{fpir:g}"


def headline(figures: Iterable[Figure], most: int = 3) -> list[Figure]:
    """The figures to read first, the most important first, no two of one label."""
    leading: dict[str, Figure] = {}
    for figure in figures:
        if figure.headline and figure.value is not None:
            leading.setdefault(figure.label, figure)
    return sorted(leading.values(), key=lambda f: f.headline)[:most]


def in_tables(figures: Iterable[Figure]) -> Mapping[Heading, list[Figure]]:
    """The figures by their headings, both in the order in which they came.

    What is not measured for one reason at several rates becomes one row: `TAR at FAR <= 0.001`."""
    tables: dict[Heading, list[Figure]] = {}
    for figure in figures:
        rows = tables.setdefault(figure.heading, [])
        if figure.in_heading:
            continue
        if figure.series and figure.value is None:
            if rows and rows[-1].value is None and rows[-1].series == figure.series:
                continue
            figure = figure._replace(label=figure.label.replace(" = ", " <= "))
        rows.append(figure)
    return tables


def to_frame(figures: Iterable[Figure]) -> pd.DataFrame:
    """A row for each figure: key, label, value, low and high of its interval (NaN where there is none), note."""
    import pandas as pd

    rows = []
    for f in figures:
        low, high = (None, None) if f.interval is None else f.interval[1:3]
        rows.append((f.key, f.label, f.value, low, high, f.note))
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype(dict.fromkeys(("value", "low", "high"), "float64"))
