"""An evaluation's figures as text for the terminal, and as tables for the page: both show the one list of rows."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable

from facemetric.evaluation.audit.seen import WARNING
from facemetric.evaluation.figures import DIFFERENCE, VALUE, Figure, Heading, in_tables
from facemetric.report.axes import Axis, Whisker, drawn
from facemetric.report.page import Cell, Grid, Large
from facemetric.report.record import Evaluation

WIDTH = 120  # columns of the terminal


def evaluation_text(found: Evaluation) -> str:
    """What eval prints: warnings, three figures, what was scored, all other figures, what was not measured, notes."""
    figures = found.figures()
    leading = found.headline()
    rest = [f for f in figures if f.brief and f not in leading]
    warnings = [note for note in found.notes if note.startswith(WARNING)]
    lines = [*map(wrapped, warnings), *figure_lines(leading, indent="")]
    lines.append(wrapped(f"{found.subtitle()}; 95 % intervals in brackets"))
    for heading, rows in in_tables(rest).items():
        measured = [row for row in rows if row.value is not None or not row.series]
        if measured or heading.lead:
            lines += ["", wrapped(": ".join(filter(None, (heading.title, heading.lead))))]
            lines += figure_lines(measured)
    if lacking := not_measured(rest):
        lines += ["", wrapped(f"not measured: {lacking}")]
    lines += [wrapped(f"note: {note}") for note in found.notes if note not in warnings]
    lines.append(f"written to {found.out}")
    if found.report is not None:
        lines.append(f"report at {found.report}")
    return "\n".join(lines)


def not_measured(figures: Iterable[Figure]) -> str:
    """The rates at which figures are not measured, and how much there is for them, in a line."""
    rows = [row for rows in in_tables(figures).values() for row in rows if row.series and row.value is None]
    return "; ".join(f"{row.label} ({row.note})" for row in rows)


def figure_lines(figures: list[Figure], indent: str = "  ") -> list[str]:
    """Lines `label  value [low, high]  note`; a label's several numbers are in one line, each by its name."""
    by_label: dict[str, list[Figure]] = {}
    for figure in figures:
        by_label.setdefault(figure.label, []).append(figure)
    width = max(map(len, by_label), default=0)
    lines = []
    for label, row in by_label.items():
        cells = []
        for f in row:
            name = "" if f.column in (VALUE, DIFFERENCE) or f.value is None else f"{f.column} "
            cells.append(" ".join(filter(None, (name + f.text(), f.bounds(), f.note and f" {f.note}"))))
        start = f"{indent}{label:<{width}}  "
        lines.append(wrapped(start + "   ".join(cells), len(start)))
    return lines


def wrapped(text: str, indent: int = 4) -> str:
    """A line in the terminal's columns; what does not fit goes on in the next, indented."""
    return textwrap.fill(
        text,
        WIDTH,
        subsequent_indent=" " * min(indent, WIDTH // 2),
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
        drop_whitespace=True,
    )


def grids(figures: Iterable[Figure]) -> tuple[Grid, ...]:
    """A table of the page for each heading."""
    return tuple(grid(heading, rows) for heading, rows in in_tables(figures).items())


def grid(heading: Heading, rows: list[Figure]) -> Grid:
    """One table of the page: a row for each label, a column for each of its numbers, and what a row means where it is
    the first to mean that."""
    if not rows:
        return Grid(heading.title, (), (), heading.lead)
    columns = list(dict.fromkeys(row.column for row in rows))
    by_label: dict[str, dict[str, Figure]] = {}
    for row in rows:
        by_label.setdefault(row.label, {})[row.column] = row
    axes: list[Axis | None] = [None]
    cells: dict[str, list[Cell]] = {label: [] for label in by_label}
    for column in columns:
        of_column = {label: row[column] for label, row in by_label.items() if column in row}
        axis, whiskers = drawn(list(of_column.values()))
        axes.append(axis)
        shown = dict(zip(of_column, map(cell, of_column.values(), whiskers), strict=True))
        for label, line in cells.items():
            line.append(shown.get(label, Cell("")))
    meant: set[tuple[str, str]] = set()
    lines = []
    for label, line in cells.items():
        first = next(iter(by_label[label].values()))
        meaning = "" if first.series and (first.series, first.about) in meant else first.about
        meant.add((first.series, first.about))
        lines.append((Cell(label, meaning), *line))
    measured = any(row.value is not None for row in rows)
    names = tuple(columns) if measured else ("",) * len(columns)
    return Grid(heading.title, (heading.names, *names), tuple(lines), heading.lead, tuple(axes))


def cell(figure: Figure, whisker: Whisker | None) -> Cell:
    """A figure's value, its interval and its note."""
    return Cell(figure.text(), figure.note, figure.bounds().strip("[]").replace(", ", " to "), whisker)


def large(figure: Figure) -> Large:
    """One of the figures that a page shows first."""
    return Large(figure.label, figure.text(), figure.bounds().strip("[]").replace(", ", " to "), figure.about)


def percent(share: float) -> str:
    """A share in words: whole percents, with digits behind the point where it is nearly 0 or 1."""
    rest = max(min(share, 1 - share), 1e-6)
    digits = 0 if rest >= 0.095 else min(-math.floor(math.log10(rest)) - 1, 4)
    text = f"{100 * share:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text) + "\N{NO-BREAK SPACE}%"
