"""The report in a real Chromium: no error, the threshold moves, pictures load, hostile names stay text.

It skips where there is no chromium (see browsers.py).
"""

from __future__ import annotations

import csv
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facemetric import evaluate
from facemetric.data.index import read_index
from facemetric.data.pair_images import make_pairs, name_pairs
from facemetric.data.pairs import write_pairs
from facemetric.evaluation.table import EmbeddingTable

HOSTILE = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>'


@pytest.fixture(scope="module")
def out(faces: Path, untrained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation of the drawn faces in which one person, and one file, has a hostile name."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = []
    for i, person in enumerate(sorted(faces.iterdir())):
        for k, image in enumerate(sorted(person.iterdir())):
            name = f"{i}_{k}{image.suffix}"
            if (i, k) == (0, 0):
                name = f"<img src=x onerror=window.hacked=1>{image.suffix}"
            shutil.copy(image, folder / name)
            rows.append((name, HOSTILE if i == 0 else f"person_{i}"))
    with open(folder / "images.csv", "w", newline="") as file:
        csv.writer(file).writerows([("path", "identity"), *rows])
    index = read_index(folder / "images.csv")
    drawn = make_pairs(index.identity, count=400, folds=4, seed=0)
    write_pairs(folder / "pairs.csv", name_pairs(drawn, [index.name(i) for i in range(len(index))]))
    options: dict[str, Any] = {"workers": 0, "device": "cpu"}
    data, pairs = folder / "images.csv", folder / "pairs.csv"
    return evaluate(untrained, pairs=pairs, data=str(data), out=folder / "out", **options).out


@pytest.fixture
def page(browser: Any, out: Path) -> Iterator[Any]:
    """The report, opened from disk; afterwards the console must be empty."""
    browser.get((out / "report.html").as_uri())
    yield browser
    assert browser.get_log("browser") == []


def text_of(page: Any, name: str) -> str:
    return page.find_element("id", name).get_attribute("textContent").replace("\N{MINUS SIGN}", "-")


@functools.cache
def scored(out: Path) -> tuple[np.ndarray, np.ndarray]:
    """(scores, labels) of the pairs by hand."""
    table = EmbeddingTable.load(out / "embeddings.npz")
    row = {str(path): i for i, path in enumerate(table.paths)}
    with open(out.parent / "pairs.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    a, b = ([row[line[name]] for line in lines] for name in ("image1_path", "image2_path"))
    score = np.einsum("pd,pd->p", table.embeddings[a], table.embeddings[b], dtype=np.float64)
    return score, np.array([line["label"] == "1" for line in lines])


def test_hostile_names_stay_text(page: Any) -> None:
    assert page.execute_script("return window.hacked") is None
    assert page.execute_script("return document.querySelectorAll('script').length") == 2
    shown = page.find_element("tag name", "main").get_attribute("textContent")
    assert HOSTILE in shown
    alts = page.execute_script("return [...document.images].map((image) => image.alt)")
    assert any(alt.startswith("<img src=x") for alt in alts)


def test_every_picture_loads(page: Any) -> None:
    sizes = page.execute_async_script(
        "const done = arguments[0];"
        "Promise.all([...document.images].map((i) => i.decode().then(() => [i.naturalWidth, i.naturalHeight])))"
        ".then(done, (error) => done(String(error)));"
    )
    assert len(sizes) >= 2 * 2 * 24
    assert {tuple(size) for size in sizes} == {(32, 32)}


def test_the_slider_moves_every_count(page: Any, out: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    score, same = scored(out)
    slider = page.find_element("id", "slider")
    seen = set()
    for keys in ("", Keys.ARROW_RIGHT * 9, Keys.ARROW_LEFT * 30, Keys.HOME, Keys.END):
        slider.send_keys(keys)
        threshold = float(text_of(page, "slider-value"))
        counts = {name: int(text_of(page, name)) for name in ("true-accepts", "false-accepts")}
        for name, kind in (("true-accepts", same), ("false-accepts", ~same)):
            low, high = (int((score[kind] >= threshold + e).sum()) for e in (6e-5, -6e-5))  # four digits
            assert low <= counts[name] <= high
        assert counts["true-accepts"] + int(text_of(page, "false-rejects")) == 200
        assert counts["false-accepts"] + int(text_of(page, "true-rejects")) == 200
        assert text_of(page, "far") == f"{counts['false-accepts'] / 200:.4f}"
        assert text_of(page, "tar") == f"{counts['true-accepts'] / 200:.4f}"
        assert text_of(page, "far") in slider.get_attribute("aria-valuetext")
        seen.add(threshold)
        place = page.execute_script("return Number(document.querySelector('#roc .point').getAttribute('cy'))")
        seen.add(place)
    assert len(seen) >= 9


def test_the_buttons_set_thresholds_and_the_mistakes_follow(page: Any, out: Path) -> None:
    score, same = scored(out)
    for button in page.find_elements("css selector", ".marks button"):
        button.click()
        assert button.get_attribute("aria-pressed") == "true"
        row = int(button.get_attribute("data-row"))
        assert page.execute_script("return Number(document.getElementById('slider').value)") == row
        if button.text == "FAR 0.1":
            assert int(text_of(page, "false-accepts")) == 20
        wrong = page.execute_script("return document.querySelectorAll('.genuine .case:not(.fine)').length")
        threshold = float(text_of(page, "slider-value"))
        hardest = np.sort(score[same])[:24]
        assert abs(wrong - (hardest < threshold).sum()) <= (np.abs(hardest - threshold) < 1e-4).sum()
        assert f"{wrong} of these 24" in page.find_element("css selector", '[data-tally="genuine"]').text


def test_a_click_in_the_curve_sets_the_threshold(page: Any) -> None:
    from selenium.webdriver import ActionChains

    hit = page.find_element("css selector", "#roc .hit")
    far = []
    for right in (-0.2, 0.3):
        offset = int(hit.rect["width"] * right)
        ActionChains(page).move_to_element_with_offset(hit, offset, 0).click().perform()
        far.append(float(text_of(page, "far")))
    assert 0 < far[0] < far[1] < 1


def test_the_map_shows_pictures_to_mouse_and_keys(page: Any) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    holder = page.find_element("id", "map-plot")
    card = page.find_element("id", "map-card")
    assert not card.is_displayed()
    page.execute_script("arguments[0].scrollIntoView({behavior: 'instant', block: 'center'})", holder)
    start = page.execute_script("return document.querySelector('.dots, .crosses').getAttribute('d')")
    place = page.execute_script(
        "const m = document.querySelector('.crosses').getAttribute('d').match(/^M([\\d.]+) ([\\d.]+)/)"
        "|| document.querySelector('.dots').getAttribute('d').match(/^M([\\d.]+) ([\\d.]+)/);"
        "const b = arguments[0].getBoundingClientRect();"
        "return [Number(m[1]) - b.width / 2, Number(m[2]) - b.height / 2]",
        holder,
    )
    assert start
    ActionChains(page).move_to_element_with_offset(holder, *map(round, place)).perform()
    assert card.is_displayed()
    assert text_of(page, "map-person") == HOSTILE or text_of(page, "map-person").startswith("person_")
    picture = page.find_element("id", "map-picture")
    assert picture.value_of_css_property("background-image").startswith('url("data:image/jpeg')
    people = set()
    for _ in range(4):
        holder.send_keys(Keys.ARROW_RIGHT)
        people.add((text_of(page, "map-name"), picture.value_of_css_property("background-position")))
    assert len(people) >= 2
    assert text_of(page, "map-said")
    holder.send_keys(Keys.ESCAPE)
    assert not card.is_displayed()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_every_scheme(page: Any, scheme: str) -> None:
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        page.refresh()
        assert page.execute_script("return document.documentElement.scrollWidth") == 360
        assert page.execute_script("return document.querySelector('#roc svg').clientWidth") <= 328
        shades = page.execute_script(
            "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
            ".map((c) => c.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + Number(b), 0))"
        )
        assert (shades[0] > shades[1]) == (scheme == "light")
        assert abs(shades[0] - shades[1]) > 500
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
