"""`facemetric eval`: its figures against scikit-learn on the embeddings it wrote, and its files."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from facemetric import cluster, evaluate, load_embedder, visualize
from facemetric.cli import main
from facemetric.commands.evaluating import inputs
from facemetric.commands.run import figures_of_eval
from facemetric.data.index import read_index
from facemetric.data.pair_images import make_pairs, name_pairs, resolve
from facemetric.data.pairs import write_pairs
from facemetric.errors import ConfigError, DataError
from facemetric.evaluation.audit.seen import keep_training_images
from facemetric.evaluation.embed import images_of
from facemetric.evaluation.intervals.records import Interval
from facemetric.evaluation.table import EmbeddingTable
from facemetric.machine import show_progress
from facemetric.report.figures import evaluation_text
from facemetric.report.page import Origin
from facemetric.report.page_sections import page_of

OPTIONS: dict[str, Any] = {"workers": 0, "device": "cpu", "batch_size": 16}
NO_REPORT: dict[str, Any] = OPTIONS | {"report": False}


@pytest.fixture(scope="module")
def pairs(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 pairs of the drawn faces in four folds, named from the folder that holds them."""
    index = read_index([str(faces)])
    drawn = make_pairs(index.identity, count=240, folds=4, seed=0)
    file = faces.parent / f"pairs_of_{faces.name}.csv"
    write_pairs(file, name_pairs(drawn, [f"{faces.name}/{index.name(i)}" for i in range(len(index))]))
    return file


@pytest.fixture(scope="module")
def scored(untrained: Path, faces: Path, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An evaluation with pairs and neighbours."""
    out = tmp_path_factory.mktemp("eval") / "out"
    return evaluate(untrained, pairs=pairs, data=faces, out=out, **OPTIONS)


def scores_of(out: Path, pairs: Path) -> tuple[np.ndarray, np.ndarray]:
    """(cosines, labels) of the pairs by hand, from embeddings.npz and the csv."""
    table = EmbeddingTable.load(out / "embeddings.npz")
    row = {str(path): i for i, path in enumerate(table.paths)}
    score, same = [], []
    with open(pairs, newline="") as file:
        for line in csv.DictReader(file):
            one, other = (row[line[name].split("/", 1)[1]] for name in ("image1_path", "image2_path"))
            score.append(float(table.embeddings[one] @ table.embeddings[other]))
            same.append(int(line["label"]))
    return np.array(score), np.array(same)


def test_verification_is_scikit_learns(scored: Any, pairs: Path) -> None:
    score, same = scores_of(scored.out, pairs)
    found = json.loads((scored.out / "metrics.json").read_text())["verification"]
    assert (found["genuine_pairs"], found["impostor_pairs"]) == (120, 120)
    assert found["auc"] == pytest.approx(sk.roc_auc_score(same, score), abs=1e-9)
    far, tar, _ = sk.roc_curve(same, score, drop_intermediate=False)
    assert found["eer"] == pytest.approx(float(np.min(np.maximum(far, 1 - tar))), abs=0.01)
    assert found["tar_at_far"]["0.1"]["tar"] == pytest.approx(tar[far <= 0.1].max())
    assert found["tar_at_far"]["0.1"]["supported"] is True
    assert found["tar_at_far"]["0.001"]["supported"] is False
    assert found["tar_at_far"]["0.001"]["tar"] is None
    low, high = found["intervals_95"]["auc"]["low"], found["intervals_95"]["auc"]["high"]
    assert low < found["auc"] < high


def test_the_folds_of_the_file_are_used(scored: Any, pairs: Path) -> None:
    found = json.loads((scored.out / "metrics.json").read_text())["verification"]["accuracy"]
    assert found["folds_drawn_at_random"] is False
    score, same = scores_of(scored.out, pairs)
    with open(pairs, newline="") as file:
        fold = np.array([int(line["fold"]) for line in csv.DictReader(file)])
    assert len(found["folds"]) == len(set(fold.tolist())) == 4
    for i, number in enumerate(sorted(set(fold.tolist()))):
        here, threshold = fold == number, found["thresholds"][i] - 1e-6  # rounding
        assert found["folds"][i] == pytest.approx(np.mean((score[here] >= threshold) == same[here]))
        # Chosen on the other folds: no threshold does better there.
        best = max(np.mean((score[~here] >= t) == same[~here]) for t in score[~here])
        assert np.mean((score[~here] >= threshold) == same[~here]) == pytest.approx(best)
    assert found["mean"] == pytest.approx(np.mean(found["folds"]))


def test_neighbours_by_hand(scored: Any) -> None:
    table = EmbeddingTable.load(scored.out / "embeddings.npz")
    cosine = table.embeddings @ table.embeddings.T
    np.fill_diagonal(cosine, -2)
    right = table.identities[cosine.argmax(1)] == table.identities
    assert scored.neighbours.knn[1] == pytest.approx(right.mean())
    assert json.loads((scored.out / "metrics.json").read_text())["neighbours"]["queries"] == 96


def test_the_files_are_there(scored: Any, untrained: Path) -> None:
    assert (scored.out / "roc.png").read_bytes().startswith(b"\x89PNG")
    with open(scored.out / "roc.csv", newline="") as file:
        points = list(csv.DictReader(file))
    assert [float(points[0]["far"]), float(points[0]["tar"])] == [0, 0]
    assert [float(points[-1]["far"]), float(points[-1]["tar"])] == [1, 1]
    record = json.loads((scored.out / "metrics.json").read_text())
    assert record["weights"]["architecture"] == "test_resnet"
    assert record["weights"]["sha256"] == json.loads((untrained / "config.json").read_text())["sha256"]
    assert record["options"]["weights"] == str(untrained)
    assert not list(scored.out.glob("*.new"))


def test_the_text_says_what_was_measured(scored: Any) -> None:
    lines = evaluation_text(scored).splitlines()
    v, near = scored.verification, scored.neighbours

    def value(name: str) -> str:
        (line,) = (line.strip() for line in lines if line.strip().startswith(f"{name}  "))
        return line.removeprefix(name).strip()

    first = ("TAR at FAR = 0.01", "Accuracy", "kNN accuracy, k = 1")  # 120 impostor pairs support no 1e-3
    assert [line[:20].strip() for line in lines[:3]] == list(first)
    for line in lines[:3]:
        assert re.search(r" \d\.\d{4} \[\d\.\d{4}, \d\.\d{4}\]", line)
    size = "240 pairs of pairs_of_faces0.csv: 120 genuine, 120 impostor; 96 images of 16 identities"
    assert lines[3].startswith(re.sub(r"pairs_of_\S+:", f"{Path(scored.verified.pairs).name}:", size))
    assert value("TAR at FAR = 0.01").startswith(f"{v.tar(0.01):.4f} [")
    assert value("AUC").startswith(f"{v.auc:.4f} [")
    assert value("EER").startswith(f"{v.eer:.4f} [")
    assert value("Accuracy").startswith(f"{v.accuracy.mean:.4f} [")
    assert f"over folds: deviation {v.accuracy.deviation_sample:.4f} (population" in value("Accuracy")
    assert value("kNN accuracy, k = 1").startswith(f"{near.knn[1]:.4f} [")
    assert not any("Recall at 1 " in line for line in lines)  # kNN with k = 1 by another name
    (lacking,) = (line for line in lines if "not measured" in line)
    assert lacking.startswith(
        "not measured: TAR at FAR <= 0.001 (has 120 of 1,000 impostor pairs); TPIR at FPIR <= "
    )
    assert all(len(line) <= 120 for line in lines if str(scored.out) not in line)
    assert f"written to {scored.out}" in lines


def test_a_call_is_quiet_and_the_command_prints(
    untrained: Path, faces: Path, pairs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    show_progress(False)  # as in a script: conftest.py turns it on for the tests
    found = evaluate(untrained, pairs=pairs, data=faces, out=tmp_path / "out", **NO_REPORT)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(SystemExit, match="0"):
        main(
            [
                *[
                    "eval",
                    "--weights",
                    str(untrained),
                    "--pairs",
                    str(pairs),
                    "--data",
                    str(faces),
                    "--no-report",
                ],
                *["--out", str(tmp_path / "out"), "--workers", "0", "--device", "cpu", "--batch-size", "16"],
            ]
        )
    assert capfd.readouterr().out.endswith(evaluation_text(found) + "\n")


def test_the_pairs_are_looked_up_once(
    untrained: Path, faces: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an image that no pair names cannot be read, so that rows of images are no rows of embeddings."""
    table = tmp_path / "copy"
    shutil.copytree(faces, table)
    shutil.copytree(
        faces / sorted(p.name for p in faces.iterdir())[0], table / "0000"
    )  # the first in the index
    for image in (table / "0000").iterdir():
        image.write_bytes(b"")
    text = pairs.read_text().replace(f"{faces.name}/", "")
    (tmp_path / "pairs.csv").write_text(text)
    calls = []
    monkeypatch.setattr(inputs, "resolve", lambda *a, **o: calls.append(a) or resolve(*a, **o))
    options = NO_REPORT | {"pairs": tmp_path / "pairs.csv", "max_bad": 0.1}
    found = evaluate(untrained, data=table, compare=untrained, out=tmp_path / "out", **options)
    assert len(calls) == 1
    whole = evaluate(untrained, data=faces, out=tmp_path / "whole", **options)
    assert len(found.images) == 102
    assert found.verification.auc == pytest.approx(whole.verification.auc, abs=1e-9)
    assert found.verification.accuracy.mean == whole.verification.accuracy.mean
    rows = found.verification.hardest.genuine
    for a, b in zip(rows.rows_a.tolist(), rows.rows_b.tolist(), strict=True):
        assert found.table.identities[a] == found.table.identities[b]


def test_a_frame_holds_every_figure(scored: Any) -> None:
    frame = scored.to_frame()
    assert list(frame) == ["key", "label", "value", "low", "high", "note"]
    assert frame["key"].is_unique
    by_key = frame.set_index("key")
    auc, interval = by_key.loc["verification.auc"], scored.intervals["auc"]
    assert (auc["value"], auc["low"], auc["high"]) == (scored.verification.auc, interval.low, interval.high)
    assert np.isnan(by_key.loc["verification.tar_at_far_0.001", "value"])
    assert by_key.loc["verification.tar_at_far_0.001", "note"] == "has 120 of 1,000 impostor pairs"
    assert by_key.loc["neighbours.map_at_r", "value"] == scored.neighbours.map_at_r
    assert scored.figure("neighbours.map_at_r").label == "MAP@R"
    with pytest.raises(ConfigError, match=r"did you mean 'verification\.auc'"):
        scored.figure("verification.acu")
    assert repr(scored).startswith("Evaluation(96 images of 16 identities, TAR at FAR = 0.01 0.")
    assert "\n" not in repr(scored)


def test_a_new_figure_of_retrieval_is_shown_everywhere(scored: Any) -> None:
    """One more name among the queries' figures is all that a new one needs."""
    near = scored.families["neighbours"]
    each = near.retrieval.each
    seventh = each._replace(figures=each.figures | {"seventh_right": np.full(96, 7 / 8)})
    intervals = {**near.intervals, "seventh_right": Interval(7 / 8, 0.75, 1.0)}
    more = near._replace(retrieval=replace(near.retrieval, each=seventh), intervals=intervals)
    found = replace(scored, families=scored.families | {"neighbours": more})
    assert found.to_dict()["neighbours"]["seventh_right"] == 7 / 8
    assert found.to_dict()["neighbours"]["intervals_95"]["seventh_right"] == {"low": 0.75, "high": 1.0}
    assert re.search(r"\n  seventh_right +0\.8750 \[0\.7500, 1\.0000\]", evaluation_text(found))
    rows = {row[0].text: row[1] for grid in page_of(found, "m", Origin("", ())).figures for row in grid.rows}
    assert (rows["seventh_right"].text, rows["seventh_right"].bounds) == ("0.8750", "0.7500 to 1.0000")
    assert found.to_frame().set_index("key").loc["neighbours.seventh_right", "value"] == 7 / 8
    assert figures_of_eval(found)["neighbours_seventh_right"] == 7 / 8


def test_pairs_alone_read_their_images_beside_the_file(
    scored: Any, untrained: Path, pairs: Path, tmp_path: Path
) -> None:
    found = evaluate(untrained, pairs=pairs, out=tmp_path / "out", **OPTIONS)
    assert found.neighbours is None
    assert found.verification.auc == pytest.approx(scored.verification.auc, abs=1e-4)
    assert "neighbours" not in json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_embeddings_in_place_of_weights(scored: Any, pairs: Path, tmp_path: Path) -> None:
    found = evaluate(embeddings=scored.out / "embeddings.npz", pairs=pairs, out=tmp_path / "out")
    assert found.verification.to_dict() == scored.verification.to_dict()
    assert found.neighbours == scored.neighbours


def test_flip_is_the_mean_with_the_mirror_image(untrained: Path, faces: Path, tmp_path: Path) -> None:
    evaluate(untrained, data=faces, out=tmp_path / "out", flip=True, **OPTIONS)
    table = EmbeddingTable.load(tmp_path / "out" / "embeddings.npz")
    embedder, index = load_embedder(untrained), read_index([str(faces)])
    with torch.no_grad():
        for rows, images, _ in images_of(embedder, index, 16, 0, ""):
            expected = embedder(images) + embedder(torch.flip(images, dims=[3]))
            expected = expected / expected.norm(dim=1, keepdim=True)
            np.testing.assert_allclose(table.embeddings[rows], expected, atol=1e-5)


def test_folds_are_drawn_where_the_pairs_have_none(
    untrained: Path, faces: Path, pairs: Path, tmp_path: Path
) -> None:
    with open(pairs, newline="") as file:
        lines = [[line["image1_path"], line["image2_path"], line["label"]] for line in csv.DictReader(file)]
    plain = pairs.with_name("plain.csv")
    plain.write_text("\n".join(",".join(line) for line in [["path_a", "path_b", "same"], *lines]) + "\n")
    runs = [
        evaluate(untrained, pairs=plain, out=tmp_path / str(i), folds=5, seed=seed, **OPTIONS)
        for i, seed in enumerate((1, 1, 2))
    ]
    plain.unlink()
    accuracies = [run.verification.accuracy for run in runs]
    assert accuracies[0].drawn
    assert len(accuracies[0].accuracies) == 5
    assert accuracies[0].accuracies.tolist() == accuracies[1].accuracies.tolist()
    assert accuracies[0].accuracies.tolist() != accuracies[2].accuracies.tolist()
    assert "folds drawn at random" in " ".join(evaluation_text(runs[0]).split())


def test_no_neighbours_where_all_are_alone(untrained: Path, faces: Path, tmp_path: Path) -> None:
    for folder in sorted(faces.iterdir())[:3]:
        (tmp_path / "single" / folder.name).mkdir(parents=True)
        shutil.copy(sorted(folder.iterdir())[0], tmp_path / "single" / folder.name)
    found = evaluate(untrained, data=tmp_path / "single", out=tmp_path / "out", **OPTIONS)
    assert found.neighbours is None
    assert "no nearest neighbours" in evaluation_text(found)


def test_a_mended_image_is_no_longer_listed(untrained: Path, faces: Path, tmp_path: Path) -> None:
    for folder in sorted(faces.iterdir())[:3]:
        shutil.copytree(folder, tmp_path / "some" / folder.name)
    image = sorted((tmp_path / "some").rglob("*.*"))[0]
    whole = image.read_bytes()
    image.write_bytes(b"")
    with pytest.raises(DataError, match="1 of 18 images are bad"):
        evaluate(untrained, data=tmp_path / "some", out=tmp_path / "out", **OPTIONS)
    assert image.name in (tmp_path / "out" / "bad_images.csv").read_text()
    image.write_bytes(whole)
    evaluate(untrained, data=tmp_path / "some", out=tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out" / "bad_images.csv").exists()


def test_what_cannot_be_scored(untrained: Path, faces: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give one of weights= and embeddings="):
        evaluate(data=faces, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="nothing to score"):
        evaluate(untrained, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="folds is 1"):
        evaluate(untrained, data=faces, folds=1, out=tmp_path / "out")


def metrics(out: Path) -> Any:
    return json.loads((out / "metrics.json").read_text())


def test_pairs_that_contradict_each_other_have_no_intervals(table: Path, tmp_path: Path) -> None:
    t = EmbeddingTable.load(table)
    a, b, c, d = t.paths[[0, 1, 2, 90]].tolist()
    lines = [(a, b, 1), (b, c, 1), (a, c, 0), (a, d, 0)]
    file = tmp_path / "pairs.csv"
    file.write_text("image1_path,image2_path,label\n" + "".join(f"{x},{y},{z}\n" for x, y, z in lines))
    found = evaluate(embeddings=table, pairs=file, fars=[0.5], out=tmp_path / "out", report=False)
    assert found.intervals == {}
    misfit = f"the identities do not fit 1 of 4 pairs (first {a} and {c})"
    wanted = [f"no intervals: {misfit}, and 1 pairs contradict others about who is who"]
    assert metrics(tmp_path / "out")["notes"] == wanted
    halves = np.where(np.arange(len(t)) % 2, "odd", "even")
    grouped = EmbeddingTable(t.embeddings, t.identities, t.paths, {"half": halves}).save(tmp_path / "g.npz")
    evaluate(embeddings=grouped, pairs=file, fars=[0.5], out=tmp_path / "by_group", report=False)
    assert metrics(tmp_path / "by_group")["notes"] == [
        wanted[0].replace("no intervals", "no intervals, and nothing by group")
    ]


def test_pairs_that_do_not_fit_the_identities_are_counted_and_the_first_named(
    table: Path, tmp_path: Path
) -> None:
    a, b, c, d = EmbeddingTable.load(table).paths[[0, 1, 2, 90]].tolist()
    lines = [(a, b, 1), (c, d, 1), (a, d, 0), (b, d, 0)]
    file = tmp_path / "pairs.csv"
    file.write_text("image1_path,image2_path,label\n" + "".join(f"{x},{y},{z}\n" for x, y, z in lines))
    found = evaluate(embeddings=table, pairs=file, fars=[0.5], out=tmp_path / "out", report=False)
    assert found.notes == (
        f"the identities do not fit 1 of 4 pairs (first {c} and {d}): for the intervals, people are what genuine "
        "pairs link",
    )
    assert found.intervals


def test_too_few_images_for_an_svm_are_a_note(table: Path, tmp_path: Path) -> None:
    t = EmbeddingTable.load(table)
    pairs_of_each = np.flatnonzero(np.arange(len(t)) % 6 < 2)
    few = t.rows(pairs_of_each).save(tmp_path / "few.npz")
    found = evaluate(embeddings=few, svm=True, out=tmp_path / "out")
    (note,) = metrics(tmp_path / "out")["notes"]
    assert note == "no linear SVM: 0 of 16 people have 5 images or more; an SVM needs two people"
    assert found.svm is None
    assert found.neighbours is not None
    assert note in evaluation_text(found)
    assert note in (tmp_path / "out" / "report.html").read_text()
    one = t.rows(np.arange(6)).save(tmp_path / "one.npz")  # a gallery of one person
    found = evaluate(embeddings=few, gallery=one, svm=True, out=tmp_path / "one", report=False)
    assert found.notes[0].startswith("2 of 32 images are in the gallery too: none finds itself there")
    assert found.notes[-1] == (
        "no linear SVM: an SVM needs a gallery of two people, and images of people who are in it"
    )


def test_what_a_second_model_is_not_compared_by_is_said(table: Path, tmp_path: Path) -> None:
    found = evaluate(embeddings=table, compare=table, svm=True, out=tmp_path / "a", report=False)
    assert found.notes == (
        "identification and linear SVM: of the first model alone, the second is not compared by them",
    )
    t = EmbeddingTable.load(table)
    few = t.rows(np.unique(t.identities, return_index=True)[1]).save(tmp_path / "few.npz")
    found = evaluate(embeddings=few, compare=few, all_pairs=False, out=tmp_path / "b", report=False)
    assert not any("of the first model alone" in note for note in found.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": "p.csv", "all_pairs": True, "data": "x"}, "give one of pairs= and all_pairs=True"),
        ({"pairs": "p.csv", "gallery": "g"}, "gallery= needs images: give data= or embeddings="),
        ({"pairs": "p.csv", "svm": True}, "svm=True needs images"),
        ({"all_pairs": True}, "nothing to score"),
        ({"data": "x", "fars": (0.1, 0)}, r"fars is 0\.0; it is a share above 0"),
        ({"data": "x", "max_bad": 1.5}, r"max_bad is 1\.5; it is a share"),
        ({"data": "x", "gallery": ("a.npz", "b.npz")}, "gallery= names 2 things, one of them embeddings"),
        ({"data": "x", "gallery": ("faces", "b.npz")}, "give images, or one file of embeddings"),
        ({"data": "x", "compare": "nowhere"}, "no weights at 'nowhere'"),
        ({"data": "x", "compare": "nowhere.npz"}, "x: no such file or folder"),
    ],
)
def test_options_that_do_not_go_together(
    untrained: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    (tmp_path / "p.csv").write_text("image1_path,image2_path,label\na.jpg,b.jpg,1\n")
    if "pairs" in options:
        options = options | {"pairs": tmp_path / "p.csv"}
    with pytest.raises((ConfigError, DataError, Exception), match=message):
        evaluate(untrained, out=tmp_path / "out", **options, **NO_REPORT)


def test_flip_changes_only_images_that_are_embedded_now(
    untrained: Path, table: Path, faces: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"embeddings": table, "flip": True, "out": tmp_path, "report": False}
    for second in ("", table):
        with pytest.raises(ConfigError, match="flip=True has no effect on embeddings="):
            evaluate(compare=second, **options)
    for look in (cluster, visualize):
        with pytest.raises(ConfigError, match="flip=True has no effect on embeddings="):
            look(embeddings=table, flip=True, out=tmp_path)
    evaluate(compare=untrained, data=faces, **options | NO_REPORT)
    second = EmbeddingTable.load(tmp_path / "embeddings_second.npz")
    assert np.abs(second.embeddings - EmbeddingTable.load(table).embeddings).max() > 1e-3


def test_each_set_has_its_own_list_of_bad_images(
    untrained: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(faces, tmp_path / "data")
    for folder in sorted(faces.iterdir())[:3]:
        shutil.copytree(folder, tmp_path / "gallery" / folder.name)
    for name, number in (("data", -1), ("gallery", 0)):
        sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())[number].write_bytes(b"")
    options: dict[str, Any] = {"data": tmp_path / "data", "gallery": tmp_path / "gallery"} | NO_REPORT
    out = tmp_path / "out"
    found = evaluate(untrained, compare=untrained, max_bad=0.06, out=out, **options)  # 1 of 96, 1 of 18
    assert (len(found.table), len(found.gallery_table)) == (95, 17)
    assert "gallery: 1 of 18 images cannot be read and are not scored" in capsys.readouterr().out
    lists = {of: (out / f"{of}bad_images.csv").read_text() for of in ("", "gallery_", "second_")}
    assert all(len(text.splitlines()) == 2 for text in lists.values())
    assert lists[""] == lists["second_"] != lists["gallery_"]
    with pytest.raises(DataError, match="1 of 96 images are bad"):
        evaluate(untrained, compare=untrained, max_bad=0.005, out=out, **options)
    assert not (out / "second_bad_images.csv").exists()  # of the evaluation before


def test_images_that_the_weights_were_trained_on_are_told_first(
    own_weights: Path, untrained: Path, faces: Path, tmp_path: Path
) -> None:
    index = read_index([str(faces)])
    keep_training_images(own_weights, index.select(np.arange(48)))
    found = evaluate(own_weights, data=faces, out=tmp_path / "out", **OPTIONS)
    warning = f"warning: 48 of 96 images looked at (50% of the data) are training images of {own_weights}, or copies"
    assert found.notes[0].startswith(warning)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["notes"][0] == found.notes[0]
    text = evaluation_text(found)
    assert text.startswith("warning: 48 of 96 images looked at (50% of the data)")
    assert text.count("warning:") == 1
    assert "48 of 96 images looked at" in (tmp_path / "out" / "report.html").read_text()
    compared = evaluate(untrained, data=faces, compare=str(own_weights), out=tmp_path / "two", **NO_REPORT)
    assert compared.notes[0].startswith(warning)
    # The same weights on people whom they never saw.
    for name in sorted(path.name for path in faces.iterdir())[8:]:
        shutil.copytree(faces / name, tmp_path / "new" / name)
    unseen = evaluate(own_weights, data=tmp_path / "new", out=tmp_path / "three", **NO_REPORT)
    assert "warning" not in evaluation_text(unseen)
    stored = evaluate(embeddings=tmp_path / "out" / "embeddings.npz", out=tmp_path / "four", **NO_REPORT)
    assert "warning" not in evaluation_text(stored)
