"""What the page of an evaluation holds: the right pairs, pictures and numbers, and nothing that was not measured."""

from __future__ import annotations

import html
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facemetric import evaluate
from facemetric.data.index import read_index
from facemetric.data.pair_images import make_pairs, name_pairs
from facemetric.data.pairs import write_pairs
from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.identification import Identification
from facemetric.evaluation.intervals.records import Interval
from facemetric.evaluation.retrieval import leave_one_out
from facemetric.evaluation.slices.records import Gap, Group, Rates, Slicing
from facemetric.evaluation.svm import SvmAccuracy
from facemetric.evaluation.table import EmbeddingTable
from facemetric.report.figures import evaluation_text
from facemetric.report.models import Comparison, Comparisons, side_by_side
from facemetric.report.page import Origin, render
from facemetric.report.page_sections import page_of
from facemetric.report.record import GALLERY, Evaluation, Identified, Retrieved, Sliced, Verified

ORIGIN = Origin("facemetric eval", ())


WHO = np.repeat(np.arange(20), 8)


RNG = np.random.default_rng(0)


def table() -> EmbeddingTable:
    """20 people with 8 images each, some of them confused."""
    emb = RNG.normal(size=(20, 16))[WHO] + 0.9 * RNG.normal(size=(160, 16))
    return EmbeddingTable(
        emb, np.array([f"p{i}" for i in WHO]), np.array([f"p{w}/{i}" for i, w in enumerate(WHO)])
    )


TABLE = table()


VERIFICATION = verify_all_pairs(TABLE.embeddings, TABLE.identities, fars=(1e-1, 1e-2, 1e-3, 1e-5, 1e-6))


RETRIEVAL = leave_one_out(TABLE.embeddings, TABLE.identities)


def found(notes: tuple[str, ...] = (), **more: Any) -> Evaluation:
    """All pairs and neighbours of the table, and more families; None leaves one out."""
    measured = {"verification": Verified("all", VERIFICATION), "neighbours": Retrieved(RETRIEVAL)} | more
    families = {name: family for name, family in measured.items() if family is not None}
    return Evaluation(Path(), TABLE, families=families, notes=notes)


def cosines() -> np.ndarray:
    unit = TABLE.embeddings / np.linalg.norm(TABLE.embeddings, axis=1, keepdims=True)
    return unit @ unit.T


def test_the_hardest_pairs() -> None:
    page = page_of(found(), "model", ORIGIN)
    i, j = np.triu_indices(160, 1)
    score, same = cosines()[i, j], WHO[i] == WHO[j]
    rejects, accepts = page.mistakes
    np.testing.assert_allclose([c.score for c in rejects.cases], np.sort(score[same])[:24], atol=1e-5)
    np.testing.assert_allclose([c.score for c in accepts.cases], np.sort(score[~same])[:-25:-1], atol=1e-5)
    for case in (*rejects.cases, *accepts.cases):
        rows = [TABLE.find(picture.name) for picture in case.pictures]
        assert cosines()[rows[0], rows[1]] == pytest.approx(case.score, abs=1e-5)
    assert all(len({p.name.split("/")[0] for p in case.pictures}) == 1 for case in rejects.cases)
    assert all(len({p.name.split("/")[0] for p in case.pictures}) == 2 for case in accepts.cases)
    assert [p.label for p in rejects.cases[0].pictures] == ["", ""]  # one name, under both
    assert rejects.cases[0].text == rejects.cases[0].pictures[0].name.split("/")[0]


def test_retrieval_failures() -> None:
    cosine = cosines()
    np.fill_diagonal(cosine, -2)
    wrong = np.flatnonzero(WHO[cosine.argmax(1)] != WHO)
    gallery = page_of(found(), "model", ORIGIN).failures
    assert gallery is not None
    assert f"{len(wrong)} of 160 images" in gallery.lead
    scores, people = [], []
    for case in gallery.cases:
        probe, other, own = (TABLE.find(picture.name) for picture in case.pictures)
        assert probe in wrong
        assert other == cosine[probe].argmax()
        assert own == np.where(WHO[probe] == WHO, cosine[probe], -2).argmax()
        assert case.pictures[1].caption == f"found {cosine[probe, other]:.4f}"
        assert case.pictures[2].caption == f"right {cosine[probe, own]:.4f}"
        scores.append(cosine[probe, other])
        people.append(frozenset((int(WHO[probe]), int(WHO[other]))))
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == pytest.approx(cosine.max(1)[wrong].max())
    assert len(set(people)) == len(people) <= 24


def test_the_map_shows_who_has_a_bad_neighbour() -> None:
    cosine = cosines()
    np.fill_diagonal(cosine, -2)
    wrong = WHO[cosine.argmax(1)] != WHO
    for neighbours in (Retrieved(RETRIEVAL), None):
        page = page_of(found(neighbours=neighbours), "model", ORIGIN)
        assert page.map is not None
        rows = [TABLE.find(name) for name in page.map.names]
        assert sorted(rows) == list(range(160))
        assert list(page.map.wrong) == wrong[rows].tolist()
        assert [page.map.people[k] for k in page.map.person] == TABLE.identities[rows].tolist()
        assert page.map.sprite == ""


def test_clusters_are_those_of_the_lowest_far() -> None:
    evaluation = found()
    page = page_of(evaluation, "model", ORIGIN)
    assert evaluation.verification is not None
    threshold = min(p.threshold for p in evaluation.verification.points if p.wanted == 1e-3)
    assert page.cluster_figures is not None
    assert f"{threshold:.4f} of FAR = 0.001" in page.cluster_figures.lead
    names = [row[0].text for row in page.cluster_figures.rows]
    assert names == ["B-cubed precision", "B-cubed recall", "B-cubed F", "Purity", "NMI", "ARI"]
    assert page.clusters is not None
    sizes = [int(re.match(r"\d+", case.text).group()) for case in page.clusters.cases]  # type: ignore[union-attr]
    assert sizes == sorted(sizes, reverse=True)
    assert [len(case.pictures) for case in page.clusters.cases] == [min(12, size) for size in sizes]


def test_what_was_not_measured_is_not_on_the_page() -> None:
    page = page_of(Evaluation(Path(), TABLE), "model", ORIGIN)
    assert (page.figures, page.curves, page.mistakes, page.slices) == ((), (), (), ())
    assert (page.thresholds, page.failures, page.cluster_figures, page.clusters) == (None,) * 4
    assert "no pictures here" in page.notes[0]
    assert page_of(Evaluation(Path(), EmbeddingTable(np.ones((1, 3)), ["a"], ["b"])), "m", ORIGIN).map is None


def test_a_column_that_is_not_sliced_says_why() -> None:
    many = Slicing("camera", note="62 values; at most 50 are taken as groups")
    small = Slicing("age", (Group("old", 50, 60, 20, ()), Group("young", 1, 2, 2, (), "too few")))
    page = page_of(found(slices=Sliced((many, small))), "model", ORIGIN)
    assert [(grid.title, len(grid.rows)) for grid in page.slices] == [("By camera", 0), ("By age", 2)]
    assert [row[1].note for row in page.slices[1].rows] == ["no FAR is supported", "too few"]
    text = render(page)
    section = text[text.index('id="slices"') :]
    section = section[: section.index("</section>")]
    assert "Not sliced: 62 values; at most 50 are taken as groups." in section
    assert section.count("<table") == 1


def test_every_figure_is_in_a_table() -> None:
    interval = Interval(0.25, 0.125, 0.375, 0.95)
    names = ("x<b>", "y")
    groups = (
        Group(names[0], 50, 60, 7, (Rates(0.01, interval, Interval(0.75, 0.625, 0.875, 0.95)),)),
        Group(names[1], 1, 2, 2, (), "2 people; needs 10"),
    )
    gap = Gap(0.01, "tar", names[1], names[0], interval)
    base = found()
    assert base.verification is not None
    points = base.verification.points[:2]
    own = Verified("all", VERIFICATION, {"auc": interval, "tar_at_far_0.1": interval})
    changes = {
        "auc": Interval(-0.25, -0.5, -0.125, 0.95),
        "tar_at_far_0.1": Interval(0.1, -0.1, 0.2, 0.95),
    }
    other = Comparison("second", Verified("all", base.verification), None, changes)
    page = page_of(
        found(
            notes=("a <note>",),
            verification=own,
            slices=Sliced((Slicing("age", groups, (gap,)),)),
            gallery=Retrieved(RETRIEVAL, title=GALLERY),
            identification=Identified(
                Identification(
                    0.5,
                    points,
                    5,
                    6,
                    *(np.zeros(11) for _ in range(4)),
                    {5: 0.75},
                    (),
                    *(np.zeros(11) for _ in "ab"),
                )
            ),
            svm=SvmAccuracy(0.5, 0.1, 5, 6, 7, 0, 40, 0, Interval(0.5, 0.25, 0.75, 0.95)),
            comparison=Comparisons((other,)),
            models=side_by_side("model", own.figures(), [other]),
        ),
        "model",
        ORIGIN,
    )
    titles = [grid.title for grid in page.figures]
    assert len(titles) == 5
    rows = {row[0].text: row[1] for row in page.figures[0].rows}
    assert rows["AUC"].bounds == rows["TAR at FAR = 0.1"].bounds == "0.1250 to 0.3750"
    assert rows["AUC"].whisker is not None
    assert (rows["EER"].bounds, rows["EER"].whisker) == ("", None)
    assert rows["TAR at FAR <= 1e-05"].note == "has 12,160 of 100,000 impostor pairs"
    assert [grid.title for grid in page.slices] == ["By age, at overall FAR = 0.01"]
    assert [cell.text for cell in page.slices[0].rows[0]] == ["x<b>", "0.7500", "0.2500"]
    meanings = [row[0].note for row in page.figures[0].rows if row[0].text.startswith("TAR")]
    assert meanings[0].startswith("of pairs of one person")
    assert set(meanings[1:]) == {""}  # a meaning is given once
    tables = {grid.title.removesuffix(", by model"): grid for grid in page.models}
    assert list(tables) == [
        name for name, cell in rows.items() if cell.text != "not measured"
    ]  # in the order above
    assert [row[0].text for row in tables["AUC"].rows] == ["model", "second"]
    differences = {name: grid.rows[1][2] for name, grid in tables.items() if len(grid.rows[1]) > 2}
    assert set(differences) == {"TAR at FAR = 0.1", "AUC"}
    assert tables["AUC"].rows[0][2].text == ""  # the first is not compared with itself
    assert "leaves out 0" in differences["AUC"].note
    assert "holds 0" in differences["TAR at FAR = 0.1"].note
    assert [curve.name for curve in page.curves] == ["model", "second"]
    text = render(page)
    assert "\N{MINUS SIGN}0.5000 to \N{MINUS SIGN}0.1250" in text
    assert "2 people; needs 10" in text
    assert "a &lt;note&gt;" in text
    assert "Largest gap in TAR: 0.2500 [0.1250, 0.3750], y to x&lt;b&gt;." in text
    assert "x&lt;b&gt;" in text
    assert "<b>" not in "".join(re.findall(r"x.b.", text.replace("x&lt;b&gt;", "")))


@pytest.fixture(scope="module")
def scored(untrained: Path, faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    folder = tmp_path_factory.mktemp("facts")
    index = read_index(faces)
    drawn = make_pairs(index.identity, count=240, folds=4, seed=0)
    write_pairs(folder / "pairs.csv", name_pairs(drawn, [index.name(i) for i in range(len(index))]))
    options: dict[str, Any] = {"workers": 0, "device": "cpu", "seed": 3}
    return evaluate(untrained, pairs=folder / "pairs.csv", data=str(faces), out=folder / "my out", **options)


def test_the_report_says_where_it_comes_from(scored: Evaluation, untrained: Path, faces: Path) -> None:
    text = (scored.out / "report.html").read_text()
    config = json.loads((untrained / "config.json").read_text())
    assert scored.images is not None
    for fact in (config["sha256"], scored.images.fingerprint, "test_resnet", "96 images of 16 identities"):
        assert fact in text, fact
    command = re.search(r'aria-label="Command"><code>(.*?)</code>', text, re.DOTALL)
    assert command is not None
    tokens = shlex.split(html.unescape(command[1]).replace("\\\n", ""))
    assert tokens[:4] == ["facemetric", "eval", "--weights", str(untrained)]
    assert tokens[tokens.index("--data") + 1] == str(faces)
    assert tokens[tokens.index("--out") + 1] == str(scored.out)
    assert tokens[tokens.index("--seed") + 1] == "3"
    assert "--flip" not in tokens  # as it is by default


def test_the_report_is_small_and_whole(scored: Evaluation) -> None:
    file = scored.out / "report.html"
    text = file.read_text()
    assert text.startswith("<!doctype html>")
    assert text.rstrip().endswith("</html>")
    assert text.count("<img ") >= 2 * 2 * 24
    assert text.count('src="data:image/jpeg') == text.count("<img ")
    assert len(text) < 1e6
    assert not list(scored.out.glob(".*"))


def test_pictures_that_are_gone_are_said(scored: Evaluation) -> None:
    page = page_of(replace(scored, images=None), "model", ORIGIN)
    text = render(page)
    assert "<img " not in text
    assert text.count('class="no-picture"') >= 2 * 2 * 24


def test_no_report_where_none_is_wanted(untrained: Path, faces: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"workers": 0, "device": "cpu"}
    without = evaluate(untrained, data=str(faces), out=tmp_path / "out", report=False, **options)
    assert not (tmp_path / "out" / "report.html").exists()
    assert "report at" not in evaluation_text(without)
    with_it = evaluate(untrained, data=str(faces), out=tmp_path / "out", **options)
    assert f"report at {tmp_path / 'out' / 'report.html'}" in evaluation_text(with_it)
