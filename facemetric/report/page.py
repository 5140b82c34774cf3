"""The report: one HTML file that needs no network and no other file.

Names of files and people come from anywhere, so every value is escaped by the template engine, the data for the
script holds no `<`, and the page's own policy lets nothing run but the one script that was written here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from facemetric.files import write_bytes_whole
from facemetric.report.axes import Axis, Whisker

ASSETS = Path(__file__).parent / "assets"
BASE = "base.css"
HASH = re.compile(r"[0-9a-f]{32,}")


class Files(NamedTuple):
    """The files of `assets/` that make a page: template, styles and script; and where its pictures may come from."""

    template: str
    styles: tuple[str, ...]
    script: str
    pictures: str = "data:"


REPORT = Files("report.html", (BASE, "report.css"), "report.js")
SECTIONS = (
    ("figures", "Figures", "figures"),
    ("models", "Models", "models"),
    ("threshold", "Threshold", "thresholds"),
    ("curves", "Curves", "curves"),
    ("search", "Search", "search"),
    ("reliability", "Probability", "reliability"),
    ("mistakes", "Hardest pairs", "mistakes"),
    ("retrieval", "Retrieval", "failures"),
    ("slices", "Slices", "slices"),
    ("clusters", "Clusters", "cluster_figures"),
    ("map", "Map", "map"),
    ("origin", "Origin", "origin"),
)


@dataclass(frozen=True)
class Cell:
    """A cell of a table: a value, its interval as text and as drawn on its column's axis, and what belongs to it."""

    text: str
    note: str = ""
    bounds: str = ""
    whisker: Whisker | None = None


@dataclass(frozen=True)
class Grid:
    """A table: the first column names the row. `lead` says in a sentence what it shows."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    lead: str = ""
    axes: tuple[Axis | None, ...] = ()
    """Of each column, as in `head`; None where it draws nothing."""


@dataclass(frozen=True)
class Large:
    """One of the figures to read first: its name, its value, its interval as text, and what it means."""

    label: str
    value: str
    bounds: str = ""
    about: str = ""


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
class ReliabilityCurve:
    """Predicted and observed share of pairs of one person, 0..100, rising."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Reliability:
    """How true the probability of `verify` is: curves, and the first of them as a table."""

    lead: str
    curves: tuple[ReliabilityCurve, ...]
    table: Grid


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


def short(found: re.Match[str]) -> str:
    """The first digits of a hash."""
    return found[0][:12]


@dataclass(frozen=True)
class Origin:
    """How the report came to be: the command, facts by name, and every option as TOML."""

    command: str
    facts: tuple[tuple[str, str], ...]
    options: str = ""

    def plain(self) -> list[tuple[str, str]]:
        """The facts that are no hashes; hashes inside them are cut short."""
        return [(name, HASH.sub(short, value)) for name, value in self.facts if not HASH.fullmatch(value)]

    def hashes(self) -> list[tuple[str, str]]:
        """Those that are: nobody reads them before two are to be compared."""
        return [fact for fact in self.facts if HASH.fullmatch(fact[1])]


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    subtitle: str
    origin: Origin
    sentence: str = ""
    headline: tuple[Large, ...] = ()
    figures: tuple[Grid, ...] = ()
    models: tuple[Grid, ...] = ()
    """A table for each figure, a row for each model."""
    models_lead: str = ""
    thresholds: Thresholds | None = None
    curves: tuple[Curve, ...] = ()
    reliability: Reliability | None = None
    search: Curve | None = None
    """Of identification: FPIR as the curve's `far`, 1 - FNIR as its `tar`."""
    mistakes: tuple[Gallery, ...] = ()
    failures: Gallery | None = None
    slices: tuple[Grid, ...] = ()
    cluster_figures: Grid | None = None
    clusters: Gallery | None = None
    map: Map | None = None
    notes: tuple[str, ...] = field(default=())


def write_page(file: str | Path, page: Page) -> Path:
    """Write the report; the file appears whole. What no UTF-8 can hold in a name is written as an escape."""
    text = render(page).encode("utf-8", "backslashreplace")
    return write_bytes_whole(file, text)


def render(page: Page) -> str:
    """The report as HTML."""
    sections = [(key, name) for key, name, field in SECTIONS if getattr(page, field)]
    return fill_page(REPORT, script_data(page), page=page, sections=sections)


def fill_page(files: Files, data: Any, **values: Any) -> str:
    """A page of one file: the template with its values, the styles, the script and the data that the script draws."""
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"breakable": breakable, "sign": sign}
    style = "".join((ASSETS / name).read_text(encoding="utf-8") for name in files.styles)
    script = (ASSETS / files.script).read_text(encoding="utf-8")
    return environment.get_template(files.template).render(
        **values,
        policy=policy(style, script, files.pictures),
        style=Markup(style),
        script=Markup(script),
        data=Markup(json_text(data)),
        version=metadata.version("facemetric"),
    )


def breakable(name: str) -> Markup:
    """A name, escaped, that may break after its separators."""
    return Markup("<wbr>").join(re.split(r"(?<=[_/\\-])|(?<=\.)(?=\D)", name))


def sign(text: str) -> str:
    """Text whose negative numbers and exponents have a minus sign, at which no line breaks, for a hyphen."""
    return re.sub(r"((?<![\w-])|(?<=\de))-(?=\d)", "\N{MINUS SIGN}", text)


def policy(style: str, script: str, pictures: str) -> str:
    """The Content-Security-Policy: this style, this script and pictures inside the page; nothing else."""

    def only(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    rules = (
        "default-src 'none'",
        f"script-src {only(script)}",
        f"style-src {only(style)}",
        f"img-src {pictures}",
    )
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))


def script_data(page: Page) -> dict[str, Any]:
    """What the script of the report draws."""
    return {
        "thresholds": asdict(page.thresholds) if page.thresholds else None,
        "curves": [asdict(curve) for curve in page.curves],
        "search": asdict(page.search) if page.search else None,
        "map": asdict(page.map) if page.map else None,
    }


def json_text(data: Any) -> str:
    """JSON that is safe inside a script element: `<`, `>` and `&` are escapes, as is all but ASCII."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
