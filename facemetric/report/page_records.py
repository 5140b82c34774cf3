"""What the report shows, as plain records: a section whose record is empty or None is left out of the page.

Nothing here knows a model, an index or a file: `page.py` makes HTML of it, `page_facts.py` fills it.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cell:
    """A cell of a table. With `low` and `high` it also gets a line on a scale from 0 to 1."""

    text: str
    note: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Grid:
    """A table: the first column names the row. `lead` says in a sentence what it shows."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    lead: str = ""


@dataclass(frozen=True)
class Picture:
    """An image: its file's `name`, the `label` and caption under it, and its `source`, a data URI, empty where
    the picture cannot be shown."""

    name: str
    source: str = ""
    label: str = ""
    caption: str = ""


@dataclass(frozen=True)
class Case:
    """Pictures that belong together: a pair, or a probe with whom it found and whom it should have."""

    pictures: tuple[Picture, ...]
    score: float | None = None
    text: str = ""


@dataclass(frozen=True)
class Gallery:
    """Cases to look at. `kind`: genuine and impostor pairs are marked as mistakes at the chosen threshold; strips
    are rows of many small pictures; plain ones are neither."""

    title: str
    lead: str
    cases: tuple[Case, ...]
    kind: str = "plain"


@dataclass(frozen=True)
class Curve:
    """ROC points of one model from the lowest FAR up, and the interval of the TAR at some FARs."""

    name: str
    far: tuple[float, ...]
    tar: tuple[float, ...]
    band_far: tuple[float, ...] = ()
    band_low: tuple[float, ...] = ()
    band_high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Mark:
    """A threshold worth a button: its row in the table of counts."""

    label: str
    row: int


@dataclass(frozen=True)
class Thresholds:
    """Accepted pairs of both kinds at rising thresholds, of `n_genuine` and `n_impostor`; and the histogram.

    Bin i holds the scores from `edge[i]` up to `edge[i + 1]`, the last one its upper edge too. `start`: the row
    that the page opens with.
    """

    threshold: tuple[float, ...]
    genuine: tuple[int, ...]
    impostor: tuple[int, ...]
    n_genuine: int
    n_impostor: int
    marks: tuple[Mark, ...]
    start: int
    edge: tuple[float, ...]
    bin_genuine: tuple[int, ...]
    bin_impostor: tuple[int, ...]


@dataclass(frozen=True)
class Map:
    """Embeddings laid out in the plane, 0..1; `person` numbers into `people`, `wrong` marks bad neighbours.

    `sprite` is one picture, a data URI, with the points' pictures row by row in `columns` columns of `cell`
    pixels; empty where there are none.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    person: tuple[int, ...]
    people: tuple[str, ...]
    names: tuple[str, ...]
    wrong: tuple[bool, ...]
    lead: str
    sprite: str = ""
    cell: int = 0
    columns: int = 0


@dataclass(frozen=True)
class Origin:
    """How the report came to be: the command, facts by name, and every option as TOML."""

    command: str
    facts: tuple[tuple[str, str], ...]
    options: str = ""


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    subtitle: str
    origin: Origin
    figures: tuple[Grid, ...] = ()
    thresholds: Thresholds | None = None
    curves: tuple[Curve, ...] = ()
    mistakes: tuple[Gallery, ...] = ()
    failures: Gallery | None = None
    slices: tuple[Grid, ...] = ()
    cluster_figures: Grid | None = None
    clusters: Gallery | None = None
    map: Map | None = None
    notes: tuple[str, ...] = field(default=())
