"""`facemetric eval` of templates, of several models, and of normalized and calibrated scores, on embeddings."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_metrics as slow
from scipy.io import savemat

from facemetric import evaluate
from facemetric.data.pair_images import make_pairs, name_pairs
from facemetric.data.pairs import write_pairs
from facemetric.errors import ConfigError, DataError
from facemetric.evaluation.table import EmbeddingTable
from facemetric.report.figures import evaluation_text
from facemetric.report.page import Origin
from facemetric.report.page_sections import page_of

PEOPLE, EACH = 30, 6


def table_of(folder: Path, name: str, noise: float, seed: int = 1) -> Path:
    """Embeddings of six images of each of thirty people; more noise is a worse model."""
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(PEOPLE), EACH)
    emb = rng.normal(size=(PEOPLE, 12))[who] + 0.8 * rng.normal(size=(len(who), 12))
    emb += noise * np.random.default_rng(seed).normal(size=emb.shape)
    paths = [f"Probe/{w}_{i % EACH}.jpg" for i, w in enumerate(who.tolist())]
    return EmbeddingTable(emb, np.array([f"p{w}" for w in who]), np.array(paths)).save(folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models, pairs of their images, a cohort, and lists of templates in IJB's form."""
    made = tmp_path_factory.mktemp("templates")
    for name, noise in (("good.npz", 0.0), ("fair.npz", 0.7), ("bad.npz", 3.0)):
        table_of(made, name, noise)
    table = EmbeddingTable.load(made / "good.npz")
    write_pairs(
        made / "pairs.csv", name_pairs(make_pairs(table.identities, count=240, folds=4), table.paths.tolist())
    )
    cohort = np.random.default_rng(5).normal(size=(60, 12))
    EmbeddingTable(cohort, np.arange(60), np.arange(60).astype(str)).save(made / "cohort.npz")
    head = "TEMPLATE_ID,SUBJECT_ID,FILENAME\n"
    rows = [(1000 * (k >= 3) + w, w, f"Probe/{w}_{k}.jpg") for w in range(PEOPLE) for k in range(EACH)]
    lines = [f"{t},{s},{f}\n" for t, s, f in rows]
    (made / "all.csv").write_text(head + "".join(lines))
    (made / "gallery.csv").write_text(head + "".join(line for line in lines if int(line.split(",")[0]) < 20))
    (made / "probes.csv").write_text(
        head + "".join(line for line in lines if int(line.split(",")[0]) >= 1000)
    )
    pairs = [(a, 1000 + b) for a in range(PEOPLE) for b in range(PEOPLE)]
    (made / "matches.csv").write_text("".join(f"{a},{b}\n" for a, b in pairs))
    return made


def metrics(out: Path) -> Any:
    return json.loads((out / "metrics.json").read_text())


def templates_by_hand(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The mean of the unit vectors of each person's first and last three images."""
    emb = EmbeddingTable.load(file).embeddings.reshape(PEOPLE, 2, 3, -1)
    first, last = (np.stack([slow.pooled(emb[w, half], [""] * 3) for w in range(PEOPLE)]) for half in (0, 1))
    return first, last


def test_one_to_one_templates_as_slow_loops(folder: Path, tmp_path: Path) -> None:
    found = evaluate(
        embeddings=folder / "good.npz",
        templates=folder / "all.csv",
        pairs=folder / "matches.csv",
        compare=folder / "fair.npz",
        out=tmp_path,
        report=False,
    )
    first, last = templates_by_hand(folder / "good.npz")
    score, same = (first @ last.T).ravel(), np.eye(PEOPLE, dtype=bool).ravel()
    record = metrics(tmp_path)
    made = {"pool": "media", "templates": 60, "images": 180, "media": 180, "lists": [str(folder / "all.csv")]}
    assert record["templates"] == made
    assert record["verification"]["auc"] == pytest.approx(slow.auc(score, same), abs=1e-12)
    assert record["verification"]["eer"] == pytest.approx(slow.eer(score, same), abs=1e-12)
    tar = slow.tar_at_far(score, same, 0.01)[0]
    assert record["verification"]["tar_at_far"]["0.01"]["tar"] == pytest.approx(tar, abs=1e-12)
    bounds = record["verification"]["intervals_95"]["tar_at_far_0.01"]
    assert bounds["low"] <= tar <= bounds["high"]
    other_first, other_last = templates_by_hand(
        folder / "fair.npz"
    )  # the other model's templates, not its images
    other = slow.auc((other_first @ other_last.T).ravel(), same)
    assert record["comparison"]["verification"]["auc"] == pytest.approx(other, abs=1e-12)
    assert "60 templates of 180 images, pooled by media, of 30 identities" in " ".join(
        evaluation_text(found).split()
    )
    assert "each template against all others" in evaluation_text(found)


def test_one_to_n_templates_as_slow_loops(folder: Path, tmp_path: Path) -> None:
    found = evaluate(
        embeddings=folder / "bad.npz",
        templates=folder / "probes.csv",
        gallery_templates=folder / "gallery.csv",
        out=tmp_path,
        report=False,
    )
    first, last = templates_by_hand(folder / "bad.npz")
    known, unknown = slow.search(first[:20], np.arange(20), last, np.arange(PEOPLE))
    record = metrics(tmp_path)["identification"]
    assert (record["known_probes"], record["unknown_probes"]) == (20, 10)
    for k in (1, 5, 10, 20):
        assert record[f"rank_{k}"] == np.mean([rank <= k for rank, _ in known])
    assert record["rank_1"] < 1
    best = 0.0
    for threshold in {score for _, score in known} | set(unknown):
        if np.mean([s >= threshold for s in unknown]) <= 0.1:
            best = max(best, np.mean([rank == 1 and score >= threshold for rank, score in known]))
    assert record["tpir_at_fpir"]["0.1"]["tpir"] == pytest.approx(best, abs=1e-12)
    page = page_of(found, "bad", Origin("", ()))
    assert page.search is not None
    assert "of the templates, the most similar one in the gallery is of the same person" in page.sentence
    with open(tmp_path / "identification.csv", newline="") as file:
        points = list(csv.DictReader(file))
    assert set(points[0]) == {"curve", "fpir", "tpir_any_rank", "threshold"}
    assert (tmp_path / "identification.png").read_bytes().startswith(b"\x89PNG")


def test_a_closed_set_in_tinyface_s_form(folder: Path, tmp_path: Path) -> None:
    for name, images in (
        ("gallery", [f"{w}_0.jpg" for w in range(20)]),
        ("probe", [f"{w}_1.jpg" for w in range(20)]),
    ):
        cells = np.empty((20, 1), dtype=object)
        cells[:, 0] = images
        savemat(tmp_path / f"{name}.mat", {f"{name}_set": cells, f"{name}_ids": np.arange(20)[:, None]})
    found = evaluate(
        embeddings=folder / "good.npz",
        templates=tmp_path / "probe.mat",
        gallery_templates=[str(tmp_path / "gallery.mat"), "Probe/2[0-9]_*"],
        out=tmp_path / "out",
        report=False,
    )
    emb = EmbeddingTable.load(folder / "good.npz").embeddings.reshape(PEOPLE, EACH, -1)
    gallery = np.concatenate([emb[:20, 0], emb[20:].reshape(-1, 12)])
    labels = [*range(20), *range(100, 160)]  # a distractor is a person of its own
    known, _ = slow.search(gallery, labels, emb[:20, 1], range(20))
    record = metrics(tmp_path / "out")["identification"]
    assert record["unknown_probes"] == 0
    assert record["rank_5"] == np.mean([rank <= 5 for rank, _ in known])
    assert "Closed-set identification" in evaluation_text(found)


def test_the_column_template_of_the_images(folder: Path, tmp_path: Path) -> None:
    t = EmbeddingTable.load(folder / "good.npz")
    half = np.array([f"{who}{'ab'[i % EACH >= 3]}" for i, who in enumerate(t.identities)])
    quality = np.tile(["1", "0", "0.5"], len(t) // 3)
    own = EmbeddingTable(t.embeddings, t.identities, t.paths, {"template": half, "quality": quality})
    file = own.save(tmp_path / "own.npz")
    evaluate(
        embeddings=file,
        templates="column",
        pool="quality",
        all_pairs=True,
        out=tmp_path / "out",
        report=False,
    )
    emb = t.embeddings.reshape(2 * PEOPLE, 3, -1)
    pooled = [slow.pooled(each, [""] * 3, [1, 0, 0.5]) for each in emb]
    score, same = slow.all_pairs(pooled, np.repeat(np.arange(PEOPLE), 2))
    assert metrics(tmp_path / "out")["verification"]["auc"] == pytest.approx(slow.auc(score, same), abs=1e-6)
    with pytest.raises(DataError, match="the images have no column template"):
        evaluate(embeddings=folder / "good.npz", templates="column", out=tmp_path / "none", report=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gallery_templates": "g.csv"}, "--gallery-templates are searched for those of --templates"),
        (
            {"templates": "a.csv", "gallery": "g.npz", "gallery_templates": "g.csv"},
            "give one of --gallery and",
        ),
        ({"templates": "a.csv", "data": "x"}, "give one of them"),
        ({"cohort": "c.npz"}, "work on the scores of listed pairs: give --pairs"),
        ({"calibration": "people"}, "work on the scores of listed pairs: give --pairs"),
        ({"pairs": "p.csv", "cohort": "c.npz", "calibration": "stored"}, "leave --cohort out"),
        ({"pairs": "p.csv", "cohort": ["c.npz", "d.npz"]}, "--cohort names 2 things, one of them embeddings"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        evaluate(embeddings="e.npz", out=tmp_path, **options)
    from facemetric.config import EvalConfig
    from facemetric.config.calls import in_python

    assert in_python(EvalConfig, message) in str(caught.value)


def test_three_models_in_one_table(folder: Path, tmp_path: Path) -> None:
    names = [folder / name for name in ("good.npz", "fair.npz", "bad.npz")]
    found = evaluate(
        embeddings=names[0], compare=names[1:], pairs=folder / "pairs.csv", out=tmp_path, report=False
    )
    record = metrics(tmp_path)
    side = record["models"]
    assert side["models"] == [str(name) for name in names]
    assert [model["second"] for model in record["comparison"]["models"]] == side["models"][1:]
    for number, name in enumerate(names):
        alone = evaluate(
            embeddings=name, pairs=folder / "pairs.csv", out=tmp_path / str(number), report=False
        )
        cell = side["figures"]["auc"][number]
        assert cell["value"] == alone.verification.auc
        assert cell["interval_95"] == metrics(alone.out)["verification"]["intervals_95"]["auc"]
        assert ("minus_first" in cell) == (number > 0)
        knn = side["figures"]["knn_accuracy_1"][number]
        assert knn["value"] == alone.neighbours.knn[1]
    worst = side["figures"]["auc"][2]
    assert worst["minus_first"] == pytest.approx(worst["value"] - side["figures"]["auc"][0]["value"])
    assert worst["minus_first_interval_95"]["high"] < 0
    text = evaluation_text(found)
    assert "TAR at FAR = 0.01, by model" in text
    assert "bad.npz" in text
    assert text.count("by model") == 3  # the figures that lead
    with open(tmp_path / "roc.csv", newline="") as file:
        assert {row["curve"] for row in csv.DictReader(file)} == set(side["models"])
    page = page_of(found, str(names[0]), Origin("", ()))
    assert [curve.name for curve in page.curves] == ["good.npz", "fair.npz", "bad.npz"]
    assert page.models[0].title == "TAR at FAR = 0.1, by model"
    assert [row[0].text for row in page.models[0].rows] == ["good.npz", "fair.npz", "bad.npz"]
    assert not any("by model" in grid.title or grid.title == "Comparison" for grid in page.figures)
    assert "Beside it: " in page.sentence
    assert "bad.npz" in page.sentence.partition("worse")[0]


def test_normalized_and_calibrated_scores(folder: Path, tmp_path: Path) -> None:
    found = evaluate(
        embeddings=folder / "good.npz",
        pairs=folder / "pairs.csv",
        cohort=folder / "cohort.npz",
        cohort_top=20,
        calibration="people",
        out=tmp_path,
        report=False,
    )
    table, cohort = EmbeddingTable.load(folder / "good.npz"), EmbeddingTable.load(folder / "cohort.npz")
    score, same = [], []
    with open(folder / "pairs.csv", newline="") as file:
        for line in csv.DictReader(file):
            rows = [table.find(line[name]) for name in ("image1_path", "image2_path")]
            score.append(slow.s_norm(*(table.embeddings[row] for row in rows), cohort.embeddings, 20))
            same.append(line["label"] == "1")
    record = metrics(tmp_path)
    assert record["normalized"]["auc"] == pytest.approx(slow.auc(score, same), abs=1e-12)
    change = record["normalized"]["normalized_minus_plain_95"]["auc"]
    assert change["difference"] == pytest.approx(record["normalized"]["auc"] - record["verification"]["auc"])
    calibrated = record["calibration"]
    assert calibrated["how"] == "people"
    assert calibrated["scores"] == "cosines after adaptive s-norm with 60 images"
    assert calibrated["min_cllr"] == pytest.approx(
        slow.min_cllr(score, same), abs=0.1
    )  # ratios of several curves
    assert calibrated["min_cllr"] < calibrated["cllr"] < 1
    assert {"cllr", "min_dcf_0.01"} <= set(calibrated["intervals_95"])
    assert [curve.name for curve in page_of(found, "m", Origin("", ())).curves] == [
        "m",
        "s-norm, top 20 of 60",
    ]
    with pytest.raises(DataError, match="180 of the 180 images are in the cohort too"):
        evaluate(
            embeddings=folder / "good.npz",
            pairs=folder / "pairs.csv",
            cohort=folder / "good.npz",
            out=tmp_path / "own",
            report=False,
        )
    with pytest.raises(ConfigError, match="these weights keep no probability"):
        evaluate(
            embeddings=folder / "good.npz",
            pairs=folder / "pairs.csv",
            calibration="stored",
            out=tmp_path / "s",
        )
