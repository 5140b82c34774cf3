import csv

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from facemetric.errors import DataError
from facemetric.evaluation.curves import histogram, roc, split_scores
from facemetric.report.plots import draw_det, draw_map, draw_roc, draw_scores, write_roc_csv

SCORE = np.random.default_rng(0).normal(np.repeat([1.0, 0.0], 500))
SAME = np.arange(1000) < 500


def curve(score):
    return roc(*split_scores(score, SAME))


def dark(file):
    """Share of pixels that are not white."""
    with Image.open(file) as image:
        assert image.format == "PNG"
        return float((np.asarray(image.convert("L")) < 200).mean())


def test_curves_differ_by_what_they_show(tmp_path):
    one = draw_roc(tmp_path / "deep" / "one.png", {"model": roc(*split_scores(SCORE, SAME))})
    two = draw_roc(
        tmp_path / "two.png",
        {"model": roc(*split_scores(SCORE, SAME)), "other": roc(*split_scores(SCORE[::-1], SAME))},
    )
    assert 0.005 < dark(one) < dark(two) < 0.5
    assert [p.name for p in one.parent.iterdir()] == ["one.png"]


def test_curve_of_a_perfect_model_and_of_ties(tmp_path):
    assert dark(draw_roc(tmp_path / "p.png", {"p": roc(*split_scores(SAME.astype(float), SAME))})) > 0.005
    assert dark(draw_roc(tmp_path / "c.png", {"c": roc(*split_scores(np.zeros(1000), SAME))})) > 0.005


def test_error_trade_off(tmp_path):
    one = draw_det(tmp_path / "one.png", {"model": curve(SCORE)})
    two = draw_det(tmp_path / "two.png", {"model": curve(SCORE), "other": curve(SCORE[::-1])})
    assert 0.005 < dark(one) < dark(two) < 0.5
    assert dark(draw_det(tmp_path / "p.png", {"perfect": curve(SAME.astype(float))})) > 0.005
    with pytest.raises(DataError, match="no curve"):
        draw_det(tmp_path / "x.png", {})


def test_score_histogram(tmp_path):
    counts = histogram(*split_scores(SCORE / 4, SAME))
    plain = draw_scores(tmp_path / "plain.png", counts)
    lined = draw_scores(tmp_path / "lined.png", counts, thresholds={"FAR 0.01": 0.5, "none": np.inf})
    assert 0.005 < dark(plain) < dark(lined)
    with pytest.raises(DataError, match="no curve"):
        draw_roc(tmp_path / "x.png", {})
    assert not (tmp_path / "x.png").exists()


def test_any_name_is_a_label(tmp_path, monkeypatch):
    shown = []
    legend = Axes.legend

    def seen(axes, *args, **options):
        made = legend(axes, *args, **options)
        shown.append([text.get_text() for text in made.get_texts()])
        return made

    monkeypatch.setattr(Axes, "legend", seen)
    names = ["runs/$a_{$b", "_mine", "caf\udce9", "plain"]
    wanted = [r"runs/\$a_{\$b", " _mine", r"caf\udce9", "plain"]
    curves = dict.fromkeys(names, curve(SCORE))
    draw_roc(tmp_path / "roc.png", curves)
    draw_det(tmp_path / "det.png", curves)
    draw_map(tmp_path / "map.png", np.zeros((4, 2)), names, title="t")
    assert shown[:2] == [wanted, wanted]
    assert sorted(shown[2]) == sorted(wanted)
    with open(write_roc_csv(tmp_path / "roc.csv", curves), newline="", encoding="utf-8") as file:
        assert {row["curve"] for row in csv.DictReader(file)} == {*names[:2], r"caf\udce9", "plain"}


def test_roc_csv_reads_back(tmp_path):
    whole = curve(SCORE)
    with open(write_roc_csv(tmp_path / "roc.csv", {"a, b": whole}), newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["curve"] for row in rows} == {"a, b"}
    for name in ("far", "tar", "threshold"):
        np.testing.assert_array_equal([float(row[name]) for row in rows], getattr(whole, name))


def test_drawing_leaves_the_callers_matplotlib_alone(tmp_path):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    draw_roc(tmp_path / "one.png", {"model": roc(*split_scores(SCORE, SAME))})
    assert plt.get_fignums() == before
