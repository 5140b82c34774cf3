"""The page as text: sections, escaping, its policy."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from facemetric.report.axes import Axis, Tick, Whisker
from facemetric.report.page import (
    ASSETS,
    REPORT,
    SECTIONS,
    Case,
    Cell,
    Curve,
    Gallery,
    Grid,
    Map,
    Mark,
    Origin,
    Page,
    Picture,
    Thresholds,
    render,
    write_page,
)

HOSTILE = '<img src=x onerror="window.hacked=1">\'&amp;</script><script>window.hacked=1</script>-->'


def page_with(name: str) -> Page:
    """A page with every section, in which everything that has a name has this one."""
    picture = Picture(name, "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=", name, name)
    axis = Axis(name, (Tick(0, name), Tick(100, name)))
    cell = Cell(name, name, name, Whisker(50, 40, 60))
    grid = Grid(name, (name, name), ((Cell(name, name), cell),), name, (None, axis))
    gallery = Gallery(name, name, (Case((picture, Picture(name)), 0.5, name),), "impostor")
    thresholds = Thresholds(
        (0.1, 0.5), (4, 2), (5, 1), 4, 5, (Mark(name, 1),), 0, (0.0, 0.5, 1.0), (2, 2), (4, 1)
    )
    return Page(
        name,
        name,
        Origin(name, ((name, name),), name),
        figures=(grid,),
        thresholds=thresholds,
        curves=(Curve(name, (0.2, 1.0), (0.5, 1.0)), Curve(name, (0.2, 1.0), (0.5, 1.0))),
        mistakes=(gallery,),
        failures=gallery,
        slices=(grid,),
        cluster_figures=grid,
        clusters=gallery,
        map=Map((0.0, 1.0), (0.0, 1.0), (0, 0), (name,), (name, name), (True, False), name),
        notes=(name,),
    )


class Elements(HTMLParser):
    """What a browser would build: (tag, attributes) of each element, and the text inside each."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open:
            self.inside.setdefault(self.open[-1], []).append(data)


def test_names_stay_text() -> None:
    harmless, hostile = (Elements(render(page_with(name))) for name in ("name", HOSTILE))
    assert [tag for tag, _ in hostile.found if tag != "wbr"] == [tag for tag, _ in harmless.found]
    assert not any(key.startswith("on") for _, attributes in hostile.found for key in attributes)
    data = json.loads(hostile.inside["script"][0])
    assert data["map"]["people"] == [HOSTILE]
    assert data["curves"][1]["name"] == HOSTILE
    images = [attributes for tag, attributes in hostile.found if tag == "img"]
    assert {image["alt"] for image in images} == {HOSTILE}
    assert {(image["src"] or "")[:10] for image in images} == {"data:image"}


def test_the_policy_lets_only_this_script_and_style_run() -> None:
    text = render(page_with(HOSTILE))
    elements = Elements(text)
    policy = next(a["content"] for t, a in elements.found if a.get("http-equiv") == "Content-Security-Policy")
    rules = dict(rule.split(" ", 1) for rule in (policy or "").split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag in ("script", "style"):
        bodies = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(bodies) == 1
        digest = base64.b64encode(hashlib.sha256(bodies[0].encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert [a for t, a in elements.found if t == "script"] == [{"type": "application/json", "id": "data"}, {}]
    assert not any("style" in attributes for _, attributes in elements.found)


def test_nothing_is_fetched() -> None:
    for tag, attributes in Elements(render(page_with("name"))).found:
        for key in ("src", "href", "srcset", "action"):
            value = attributes.get(key) or "#"
            assert value.startswith(("data:", "#")), (tag, key, value)


def test_what_was_not_measured_is_absent() -> None:
    whole = page_with("name")
    bare = Page("title", "subtitle", Origin("command", ()))
    sections = {
        "figures": {"figures": whole.figures},
        "threshold": {"thresholds": whole.thresholds},
        "curves": {"curves": whole.curves},
        "mistakes": {"mistakes": whole.mistakes},
        "retrieval": {"failures": whole.failures},
        "slices": {"slices": whole.slices},
        "clusters": {"cluster_figures": whole.cluster_figures, "clusters": whole.clusters},
        "map": {"map": whole.map},
    }

    def ids(page: Page) -> set[str]:
        return set(re.findall(r'<section id="(\w+)"', render(page)))

    assert ids(bare) == {"origin"}
    assert ids(whole) == {"origin", *sections}
    for name, fields in sections.items():
        page = replace(bare, **fields)  # type: ignore[arg-type]
        assert ids(page) == {"origin", name}
        assert f'href="#{name}"' in render(page)


def test_numbers_and_names_read_well() -> None:
    text = render(page_with("a_b/c.jpg"))
    assert "a_<wbr>b/<wbr>c.<wbr>jpg" in text
    grid = Grid("", ("", ""), ((Cell("FAR = 0.01"), Cell("-0.5", "2024-01-02, -3, run-4, 1e-06")),))
    text = render(Page("t", "s", Origin("c", ()), figures=(grid,)))
    assert "FAR = 0.01" in text
    assert "\N{MINUS SIGN}0.5" in text
    assert "2024-01-02, \N{MINUS SIGN}3, run-4, 1e\N{MINUS SIGN}06" in text


def test_a_name_that_utf8_cannot_hold(tmp_path: Any) -> None:
    file = write_page(tmp_path / "report.html", page_with("broken\udcff"))
    assert "broken\\udcff" in file.read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_no_number_that_json_does_not_have() -> None:
    curve = Curve("name", (0.1, float("nan")), (0.5, 1.0))
    with pytest.raises(ValueError, match="JSON"):
        render(replace(page_with("name"), curves=(curve,)))


def test_the_navigation_is_in_the_order_of_the_sections() -> None:
    template = (ASSETS / REPORT.template).read_text(encoding="utf-8")
    assert re.findall('<section id="([a-z]+)"', template) == [key for key, _, _ in SECTIONS]
