"""An evaluation's figures as text for the terminal, and as tables for the page: both show the one list of rows."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from facemetric.evaluation.audit.seen import WARNING
from facemetric.evaluation.figures import DIFFERENCE, VALUE, Figure, Heading, in_tables
from facemetric.report.page import Cell, Grid
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
    """One table of the page: a row for each label, a column for each of its numbers."""
    if not rows:
        return Grid(heading.title, (), (), heading.lead)
    columns = list(dict.fromkeys(row.column for row in rows))
    if any(row.value is not None for row in rows):
        names = tuple(f"{column}, 95 % interval" for column in columns)
    else:
        names = ("",) * len(columns)
    by_label: dict[str, dict[str, Figure]] = {}
    for row in rows:
        by_label.setdefault(row.label, {})[row.column] = row
    cells = []
    for label, of_label in by_label.items():
        about = next(iter(of_label.values())).about
        cells.append(
            (Cell(label, about), *(cell(of_label[c]) if c in of_label else Cell("") for c in columns))
        )
    return Grid(heading.title, (heading.names, *names), tuple(cells), heading.lead)


def cell(figure: Figure) -> Cell:
    """A figure's value, its interval and its note; only a share from 0 to 1 has a line on that scale."""
    if figure.column == DIFFERENCE:
        return Cell(f"{figure.text()}  {figure.bounds()}", figure.note)
    if figure.interval is None:
        return Cell(figure.text(), figure.note)
    return Cell(figure.text(), figure.note, figure.value, figure.interval.low, figure.interval.high)
