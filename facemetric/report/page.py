"""The report: one HTML file that needs no network and no other file.

Names of files and people come from anywhere, so every value is escaped by the template engine, the data for the
script holds no `<`, and the page's own policy lets nothing run but the one script that was written here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import facemetric
from facemetric.files import write_whole
from facemetric.report.page_records import Page

ASSETS = Path(__file__).parent / "assets"
TEMPLATE, STYLE, SCRIPT = "report.html", "report.css", "report.js"
SECTIONS = (
    ("figures", "Figures", "figures"),
    ("threshold", "Threshold", "thresholds"),
    ("curves", "Curves", "curves"),
    ("mistakes", "Hardest pairs", "mistakes"),
    ("retrieval", "Retrieval", "failures"),
    ("slices", "Slices", "slices"),
    ("clusters", "Clusters", "cluster_figures"),
    ("map", "Map", "map"),
    ("origin", "Origin", "origin"),
)


def write_page(file: str | Path, page: Page) -> Path:
    """Write the report; the file appears whole. What no UTF-8 can hold in a name is written as an escape."""
    text = render(page).encode("utf-8", "backslashreplace")
    return write_whole(file, lambda path: path.write_bytes(text))


def render(page: Page) -> str:
    """The report as HTML."""
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"breakable": breakable, "sign": sign}
    style, script = ((ASSETS / name).read_text(encoding="utf-8") for name in (STYLE, SCRIPT))
    return environment.get_template(TEMPLATE).render(
        page=page,
        sections=[(key, name) for key, name, field in SECTIONS if getattr(page, field)],
        policy=policy(style, script),
        style=Markup(style),
        script=Markup(script),
        data=Markup(script_data(page)),
        version=facemetric.__version__,
    )


def breakable(name: str) -> Markup:
    """A name, escaped, that may break after its separators."""
    return Markup("<wbr>").join(re.split(r"(?<=[_/\\-])|(?<=\.)(?=\D)", name))


def sign(text: str) -> str:
    """Text whose negative numbers and exponents have a minus sign, at which no line breaks, for a hyphen."""
    return re.sub(r"((?<![\w-])|(?<=\de))-(?=\d)", "\N{MINUS SIGN}", text)


def policy(style: str, script: str) -> str:
    """The Content-Security-Policy: this style, this script and pictures inside the page; nothing else."""

    def only(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    rules = ("default-src 'none'", f"script-src {only(script)}", f"style-src {only(style)}", "img-src data:")
    return "; ".join((*rules, "base-uri 'none'", "form-action 'none'"))


def script_data(page: Page) -> str:
    """What the script draws, as JSON that is safe inside a script element: `<`, `>` and `&` are escapes."""
    data: dict[str, Any] = {
        "thresholds": asdict(page.thresholds) if page.thresholds else None,
        "curves": [asdict(curve) for curve in page.curves],
        "map": asdict(page.map) if page.map else None,
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # all but ASCII is escaped
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
