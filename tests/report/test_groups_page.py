"""groups.html in a real Chromium: names, joins, parts and moves are saved, and the next run keeps them."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_people import table_of

from facemetric import cluster
from facemetric.data.index import read_index
from facemetric.evaluation.table import EmbeddingTable
from facemetric.report.groups_page import GroupsPage, rows_with_pictures, write_groups_page
from facemetric.report.pictures import Pictures

NAME = 'Anna "A", <b>née</b> Б'
OPTIONS: dict[str, Any] = {"threshold": 0.6, "sheets": 0, "workers": 0, "device": "cpu"}
NO_PICKER = "Object.defineProperty(window, 'showSaveFilePicker', {value: undefined})"
PICKER = """
window.written = "";
const write = async (name, blob) => { window.written = name + "|" + await blob.text(); };
window.showSaveFilePicker = async (asked) => ({ createWritable: async () => ({
  write: (blob) => write(asked.suggestedName, blob), close: async () => {} }) });
"""


def grouped(out: Path) -> dict[str, tuple[str, str, str]]:
    with open(out / "clusters.csv", newline="", encoding="utf-8") as file:
        return {row["path"]: (row["cluster"], row["name"], row["confirmed"]) for row in csv.DictReader(file)}


@pytest.fixture
def table(faces: Path, tmp_path: Path) -> Path:
    """Embeddings of 96 images of 16 people."""
    return table_of(faces).save(tmp_path / "table.npz")


@pytest.fixture
def first(table: Path, faces: Path, tmp_path: Path) -> Path:
    """A run over 91 of the 96 drawn faces."""
    whole = EmbeddingTable.load(table)
    old = whole.rows(np.flatnonzero(np.arange(96) % 20 != 3)).save(tmp_path / "old.npz")
    return cluster(str(faces), embeddings=old, out=tmp_path / "out", **OPTIONS).out


@pytest.fixture
def page(browser: Any, first: Path, tmp_path: Path) -> Any:
    """The page, whose downloads go to tmp_path; it may open another one. The console must be empty at the end."""
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": NO_PICKER})
    browser.get((first / "groups.html").as_uri())
    yield browser
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
    assert browser.get_log("browser") == []
    browser.execute_script(
        "document.getElementById('undo').disabled || document.getElementById('save').click()"
    )
    browser.get("about:blank")


class Hand:
    """What a person does on the page."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def bring(self, element: Any) -> None:
        """Scroll to an element, and again after what came into view was laid out."""
        for _ in range(2):
            self.page.execute_async_script(
                "arguments[0].scrollIntoView({behavior: 'instant', block: 'center'});"
                "requestAnimationFrame(() => requestAnimationFrame(arguments[1]))",
                element,
            )

    def click(self, query: str, *, shift: bool = False) -> None:
        from selenium.webdriver import ActionChains
        from selenium.webdriver.common.keys import Keys

        element = self.page.find_element("css selector", query)
        self.bring(element)
        actions = ActionChains(self.page)
        if shift:
            actions = actions.key_down(Keys.SHIFT).click(element).key_up(Keys.SHIFT)
        (actions if shift else actions.click(element)).perform()

    def write(self, query: str, text: str) -> None:
        from selenium.webdriver.common.keys import Keys

        field = self.page.find_element("css selector", query)
        self.bring(field)
        field.clear()
        field.send_keys(text + Keys.ENTER)

    def groups(self) -> dict[int, list[str]]:
        """The photographs of each group as the page shows them, all groups opened."""
        for button in self.page.find_elements("css selector", ".more"):
            self.page.execute_script("arguments[0].click()", button)
        return {
            int(number): paths
            for number, paths in self.page.execute_script(
                "return [...document.querySelectorAll('[data-group]')].map((g) => [g.dataset.group,"
                " [...g.querySelectorAll('[data-photo]')].map((b) => b.title)])"
            )
        }

    def status(self) -> str:
        return self.page.find_element("id", "status").text

    def saved(self, file: Path) -> dict[str, tuple[str, str]]:
        """Save, and read what was saved."""
        file.unlink(missing_ok=True)
        self.click("#save")
        until = time.monotonic() + 300  # a busy machine is no failure
        while not file.exists() and time.monotonic() < until:
            time.sleep(0.05)
        with open(file, newline="", encoding="utf-8") as opened:
            return {row["path"]: (row["cluster"], row["name"]) for row in csv.DictReader(opened)}


def test_the_page_shows_the_groups_of_the_run(page: Any, first: Path) -> None:
    shown = Hand(page).groups()
    wanted: dict[int, list[str]] = {}
    for path, (number, _, _) in grouped(first).items():
        wanted.setdefault(int(number), []).append(path)
    assert shown == wanted
    assert page.execute_script(
        "return [...document.querySelectorAll('[data-photo]')]"
        ".every((b) => b.style.backgroundImage.startsWith('url(\"blob:'))"
    )
    assert f"{len(wanted)} groups, 0 of 91 photographs confirmed" in Hand(page).status()
    assert f"--onto {first}" in page.find_element("css selector", ".command").text


def test_a_sprite_shows_each_photograph_its_own_picture(page: Any, first: Path, faces: Path) -> None:
    """The middle of each picture has the colours of its file."""
    from PIL import Image

    found = page.execute_async_script(
        "const done = arguments[0];"
        'const one = async (b) => { const m = /url\\("(.*)"\\)/.exec(b.style.backgroundImage); const i = new Image();'
        " i.src = m[1]; await i.decode();"
        " const size = b.style.backgroundSize.split(' ').map((v) => parseFloat(v) / 100);"
        " const cell = [i.width / size[0], i.height / size[1]];"
        " const at = b.style.backgroundPosition.split(' ')"
        ".map((v, k) => Math.round(parseFloat(v) / 100 * (size[k] - 1)));"
        " const c = document.createElement('canvas'); c.width = c.height = 1; const x = c.getContext('2d');"
        " x.drawImage(i, at[0] * cell[0], at[1] * cell[1], cell[0], cell[1], 0, 0, 1, 1);"
        " return [b.title, ...x.getImageData(0, 0, 1, 1).data.slice(0, 3)]; };"
        "Promise.all([...document.querySelectorAll('[data-photo]')].slice(0, 60).map(one))"
        ".then(done, (e) => done(String(e)))"
    )
    assert len(found) == 60
    for path, *colour in found:
        mean = np.asarray(Image.open(faces / path).convert("RGB").resize((1, 1), Image.Resampling.BOX))[0, 0]
        np.testing.assert_allclose(colour, mean, atol=40)


def test_a_round_trip(page: Any, browser: Any, first: Path, table: Path, faces: Path, tmp_path: Path) -> None:
    hand, before = Hand(page), Hand(page).groups()
    big = sorted(before, key=lambda n: (-len(before[n]), n))
    named, joined, parted, target = big[:4]
    alone = next(n for n in big if len(before[n]) == 1)
    highest = max(before)

    hand.write(f"#group-{named} .name", NAME)
    assert f"{len(before[named])} of 91 photographs confirmed, not saved yet" in hand.status()
    hand.click(f"#group-{joined} .tick")
    hand.click(f"#group-{alone} .tick")
    hand.click("#join")
    assert sorted(hand.groups()[joined]) == sorted([*before[joined], *before[alone]])
    # Two neighbours of one group by shift, into a group of their own.
    hand.click(f"#group-{parted} [data-photo]:nth-child(1)")
    hand.click(f"#group-{parted} [data-photo]:nth-child(2)", shift=True)
    hand.click("#part")
    assert hand.groups()[highest + 1] == before[parted][:2]
    # One more goes to the named group by its name, one to a group by a click there.
    hand.click(f"#group-{parted} [data-photo]:nth-child(1)")
    hand.write("#target", NAME.upper())
    hand.click("#move")
    hand.click(f"#group-{parted} [data-photo]:nth-child(1)")
    hand.click(f"#group-{target} .here")
    # A change of mind.
    hand.write(f"#group-{target} .name", "Nobody")
    hand.click("#undo")
    shown = hand.groups()
    assert before[parted][2] in shown[named]
    assert before[parted][3] in shown[target]

    saved = hand.saved(tmp_path / "corrections.csv")
    assert "not saved" not in hand.status()
    wanted = {p: (str(n), NAME if n == named else "") for n in (named, joined, parted, target, highest + 1)
              for p in shown.get(n, [])}  # fmt: skip
    assert saved == wanted

    options = OPTIONS | {"embeddings": table, "onto": first, "corrections": tmp_path / "corrections.csv"}
    found = cluster(str(faces), out=tmp_path / "next", **options)
    after = grouped(tmp_path / "next")
    assert len(after) == 96
    for path, (number, name) in wanted.items():
        assert after[path] == (number, name, "1")
    for number, paths in before.items():
        for path in paths:
            if path not in wanted:
                assert after[path] == (str(number), "", "0")
    new = [path for path in after if all(path not in paths for paths in before.values())]
    assert len(new) == 5
    assert found.groups.to_dict(found.clusters)["images_new"] == 5

    # The next page begins where this one ended.
    browser.get((tmp_path / "next" / "groups.html").as_uri())
    again = Hand(browser)
    assert browser.find_element("css selector", f"#group-{named} .name").get_attribute("value") == NAME
    assert f"{len(wanted)} of 96 photographs confirmed" in again.status()
    assert again.saved(tmp_path / "corrections.csv") == wanted


def test_questions_are_answered(page: Any, tmp_path: Path) -> None:
    hand = Hand(page)
    cards = page.find_elements("css selector", "#alike li")
    assert len(cards) >= 2
    one, other = (int(cards[0].get_attribute(f"data-{name}")) for name in ("one", "other"))
    groups = hand.groups()
    hand.click("#alike li .yes")
    left = hand.groups()
    assert sorted([*left.get(one, []), *left.get(other, [])]) == sorted([*groups[one], *groups[other]])
    assert (one in left) != (other in left)
    card = page.find_element("css selector", "#alike li")
    pair = [int(card.get_attribute(f"data-{name}")) for name in ("one", "other")]
    count = len(page.find_elements("css selector", "#alike li"))
    hand.click("#alike li .no")
    assert [pair[0], pair[1]] not in page.execute_script(
        "return [...document.querySelectorAll('#alike li')]"
        ".map((c) => [Number(c.dataset.one), Number(c.dataset.other)])"
    )
    assert len(page.find_elements("css selector", "#alike li")) <= count
    saved = hand.saved(tmp_path / "corrections.csv")
    assert {saved[left[number][0]][0] for number in pair} == {str(number) for number in pair}


def test_two_groups_of_one_name_are_joined_or_stay_apart(page: Any) -> None:
    hand = Hand(page)
    one, other = sorted(hand.groups())[:2]
    hand.write(f"#group-{one} .name", "Eve")
    hand.write(f"#group-{other} .name", " Eve ")
    notice = page.find_element("id", "notice")
    assert notice.is_displayed()
    assert f"Eve is group {one} already." in notice.text
    assert page.find_element("css selector", f"#group-{other} .name").get_attribute("value") == ""
    hand.click("#notice button")
    assert other not in hand.groups()
    assert not notice.is_displayed()


def test_search_filter_and_a_move_to_nowhere(page: Any) -> None:
    hand = Hand(page)
    before = hand.groups()
    number = sorted(before)[1]
    hand.write(f"#group-{number} .name", "Carla")
    for text, wanted in (("carl", {number}), (before[number][0], {number}), ("nobody at all", set())):
        hand.write("#search", text)
        assert set(hand.groups()) == wanted
    assert page.find_element("id", "empty").is_displayed()
    hand.write("#search", " ")
    page.execute_script(
        "const f = document.getElementById('filter'); f.value = 'unnamed'; f.dispatchEvent(new Event('change'))"
    )
    assert set(hand.groups()) == set(before) - {number}
    hand.click("[data-photo]")
    hand.write("#target", "Nobody")
    hand.click("#move")
    assert "There is no group Nobody" in page.find_element("id", "notice").text
    hand.click("#clear")
    assert not page.find_element("id", "selection").is_displayed()


def test_the_browsers_own_dialog_is_used_where_there_is_one(browser: Any, first: Path) -> None:
    browser.get((first / "groups.html").as_uri())
    browser.execute_script(PICKER)
    hand = Hand(browser)
    path = hand.groups()[0][0]
    hand.write("#group-0 .name", "Dora")
    hand.click("#save")
    browser.execute_async_script("setTimeout(arguments[0], 200)")
    text = browser.execute_script("return window.written")
    assert text.startswith("corrections.csv|path,cluster,name\r\n")
    assert f"{path},0,Dora\r\n" in text
    assert "not saved" not in hand.status()


def test_hostile_names_stay_text_and_nothing_is_fetched(browser: Any, table: Path, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=window.hacked=1></script><script>window.hacked=1</script>"
    some = EmbeddingTable.load(table).rows(np.arange(4))
    paths = np.array([f"{hostile}{i}" for i in range(4)])
    named = EmbeddingTable(some.embeddings, some.identities, paths)
    page = GroupsPage("t", hostile, np.arange(4), np.array([0, 0, 1, 2]), np.zeros(4, bool), {1: hostile}, 2)
    file = write_groups_page(tmp_path / "groups.html", page, Pictures(named, None))
    browser.get(file.as_uri())
    assert browser.execute_script("return window.hacked") is None
    assert Hand(browser).groups() == {0: paths[:2].tolist(), 1: [paths[2]], 2: [paths[3]]}
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", [360, 1400])
def test_it_fits_every_width(page: Any, width: int) -> None:
    size = {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": width < 500}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") == width
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_pictures_are_bounded_and_every_group_gets_one_first() -> None:
    number = np.repeat([5, 3, 9, 4], [6, 3, 1, 1])
    assert rows_with_pictures(number, 99).tolist() == list(range(11))
    assert rows_with_pictures(number, 4).tolist() == [0, 6, 9, 10]
    assert rows_with_pictures(number, 7).tolist() == [0, 1, 2, 6, 7, 9, 10]


def test_what_cannot_be_shown_has_its_name(browser: Any, table: Path, faces: Path, tmp_path: Path) -> None:
    some = EmbeddingTable.load(table).rows(np.arange(6))
    pictures = Pictures(some, read_index(str(faces)))
    page = GroupsPage("t", "", np.arange(6), np.zeros(6, np.int64), np.zeros(6, bool), {}, 0)
    from facemetric.report import groups_page

    before, groups_page.MOST_PICTURES = groups_page.MOST_PICTURES, 2
    try:
        write_groups_page(tmp_path / "groups.html", page, pictures)
    finally:
        groups_page.MOST_PICTURES = before
    browser.get((tmp_path / "groups.html").as_uri())
    texts = browser.execute_script(
        "return [...document.querySelectorAll('[data-photo]')].map((b) => b.textContent)"
    )
    assert texts == ["", "", *some.paths[2:].tolist()]
