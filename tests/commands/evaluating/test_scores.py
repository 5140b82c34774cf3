"""`facemetric eval` beyond listed pairs of one model: all pairs, two models, a gallery, groups, InsightFace's .bin."""

from __future__ import annotations

import csv
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from facemetric import evaluate
from facemetric.data.index import read_index
from facemetric.errors import ConfigError, DataError
from facemetric.evaluation.table import EmbeddingTable
from facemetric.report.figures import evaluation_text

OPTIONS: dict[str, Any] = {"workers": 0, "device": "cpu", "batch_size": 16, "report": False}


def text_of(found: Any) -> str:
    """What eval prints, without its line breaks."""
    return " ".join(evaluation_text(found).split())


def metrics(out: Path) -> Any:
    return json.loads((out / "metrics.json").read_text())


def worse(table: Path, file: Path, noise: float = 1.0) -> Path:
    """Another model's embeddings: those of the table with noise, in another order, of fewer numbers."""
    first = EmbeddingTable.load(table)
    rng = np.random.default_rng(0)
    emb = first.embeddings + noise * rng.normal(size=first.embeddings.shape) / 10
    order = rng.permutation(len(first))
    second = EmbeddingTable(emb[:, :-3], first.identities, first.paths).rows(order)
    return second.save(file)


def test_all_pairs_is_scikit_learns(table: Path, tmp_path: Path) -> None:
    found = evaluate(embeddings=table, all_pairs=True, out=tmp_path, report=False)
    t = EmbeddingTable.load(table)
    i, j = np.triu_indices(len(t), 1)
    same = t.identities[i] == t.identities[j]
    score = (t.embeddings[i] * t.embeddings[j]).sum(1)
    record = metrics(tmp_path)["verification"]
    assert (record["pairs"], record["genuine_pairs"], record["impostor_pairs"]) == ("all", 240, 4320)
    assert record["auc"] == pytest.approx(sk.roc_auc_score(same, score), abs=1e-6)
    far, tar, _ = sk.roc_curve(same, score, drop_intermediate=False)
    for wanted in ("0.1", "0.01", "0.001"):
        assert record["tar_at_far"][wanted]["tar"] == pytest.approx(tar[far <= float(wanted)].max(), abs=1e-9)
        bounds = record["intervals_95"][f"tar_at_far_{wanted}"]
        assert bounds["low"] <= record["tar_at_far"][wanted]["tar"] <= bounds["high"]
    assert record["tar_at_far"]["0.0001"]["supported"] is False
    assert record["tar_at_far"]["0.0001"]["tar"] is None
    assert record["lowest_supported_far"] == 1 / 4320
    assert set(record["intervals_95"]) == {
        "auc",
        "eer",
        *(f"tar_at_far_{f}" for f in ("0.1", "0.01", "0.001")),
    }
    assert found.band is not None
    assert found.verification is not None
    assert found.verification.hardest is not None
    assert (tmp_path / "det.png").read_bytes().startswith(b"\x89PNG")


def test_what_too_few_pairs_cannot_say(table: Path, tmp_path: Path) -> None:
    found = evaluate(embeddings=table, all_pairs=True, fars=(1e-2, 1e-5), out=tmp_path, report=False)
    assert "TAR at FAR <= 1e-05 (has 4,320 of 100,000 impostor pairs)" in text_of(found)
    assert set(metrics(tmp_path)["verification"]["tar_at_far"]) == {"0.01", "1e-05"}


def test_a_second_model(table: Path, pairs: Path, tmp_path: Path) -> None:
    other = worse(table, tmp_path / "other.npz")
    alone = evaluate(embeddings=other, pairs=pairs, out=tmp_path / "alone", report=False)
    found = evaluate(embeddings=table, compare=other, pairs=pairs, out=tmp_path / "both", report=False)
    both = metrics(tmp_path / "both")
    one, two = both["verification"], both["comparison"]
    assert two["second"] == str(other)
    assert two["verification"]["auc"] == pytest.approx(metrics(tmp_path / "alone")["verification"]["auc"])
    changes = two["second_minus_first_95"]
    assert changes["auc"]["difference"] == pytest.approx(two["verification"]["auc"] - one["auc"])
    assert changes["auc"]["low"] < changes["auc"]["difference"] < changes["auc"]["high"]
    right = alone.verification.accuracy.mean - found.verification.accuracy.mean
    assert changes["accuracy"]["difference"] == pytest.approx(right)
    near = two["neighbours"]["knn_accuracy_1"] - both["neighbours"]["knn_accuracy_1"]
    assert changes["knn_accuracy_1"]["difference"] == pytest.approx(near)
    assert f"Comparison: {other} minus this model" in text_of(found)
    shown = f"EER {changes['eer']['difference']:+.4f} [{changes['eer']['low']:+.4f}"
    assert shown in text_of(found)
    with open(tmp_path / "both" / "roc.csv", newline="") as file:
        assert {row["curve"] for row in csv.DictReader(file)} == {str(table), str(other)}


def test_a_second_model_over_all_pairs_and_itself(table: Path, tmp_path: Path) -> None:
    found = evaluate(embeddings=table, compare=table, all_pairs=True, out=tmp_path, report=False)
    assert {"auc", "eer", "tar_at_far_0.01", "knn_accuracy_1", "map_at_r"} <= set(
        found.comparison.differences
    )
    assert all(tuple(d)[:3] == (0, 0, 0) for d in found.comparison.differences.values())


def test_two_weights_embed_the_same_images(untrained: Path, faces: Path, pairs: Path, tmp_path: Path) -> None:
    found = evaluate(untrained, compare=untrained, data=faces, pairs=pairs, out=tmp_path, **OPTIONS)
    assert all(d.value == 0 for d in found.comparison.differences.values())
    first, second = (EmbeddingTable.load(tmp_path / f"embeddings{n}.npz") for n in ("", "_second"))
    np.testing.assert_array_equal(first.embeddings, second.embeddings)
    assert metrics(tmp_path)["second_weights"]["architecture"] == "test_resnet"


def test_a_second_model_without_some_images(table: Path, untrained: Path, tmp_path: Path) -> None:
    some = EmbeddingTable.load(table).rows(np.arange(90)).save(tmp_path / "some.npz")
    with pytest.raises(DataError, match="6 of 96 images have no embedding of the second model"):
        evaluate(embeddings=table, compare=some, out=tmp_path / "no", report=False)
    with pytest.raises(ConfigError, match="compare= with weights needs their images"):
        evaluate(embeddings=table, compare=untrained, out=tmp_path / "no", report=False)


def test_a_gallery(table: Path, tmp_path: Path) -> None:
    t = EmbeddingTable.load(table)
    first = np.unique(t.identities, return_index=True)[1]
    enrolled = t.rows(first[:10]).save(tmp_path / "gallery.npz")
    probes = t.rows(np.setdiff1d(np.arange(96), first)).save(tmp_path / "probes.npz")
    found = evaluate(embeddings=probes, gallery=enrolled, out=tmp_path / "out", report=False)
    record = metrics(tmp_path / "out")
    assert record["gallery"]["queries"] == 50
    assert record["gallery"]["queries_left_out"] == 30
    p = EmbeddingTable.load(probes)
    g = EmbeddingTable.load(enrolled)
    cosine = p.embeddings @ g.embeddings.T
    known = np.isin(p.identities, g.identities)
    right = g.identities[cosine.argmax(1)] == p.identities
    assert record["gallery"]["knn_accuracy_1"] == pytest.approx(right[known].mean())
    assert record["gallery"]["recall_at_5"] == pytest.approx(
        np.mean(
            [
                n in g.identities[np.argsort(-c)[:5]]
                for n, c in zip(p.identities[known], cosine[known], strict=True)
            ]
        )
    )
    identified = record["identification"]
    assert (identified["known_probes"], identified["unknown_probes"]) == (50, 30)
    assert identified["rank_1"] == pytest.approx(right[known].mean())
    threshold = np.sort(cosine.max(1)[~known])[-4]  # 3 of 30 strangers may be taken for somebody
    tpir = (right & (cosine.max(1) > threshold))[known].mean()
    assert identified["tpir_at_fpir"]["0.1"]["tpir"] == pytest.approx(tpir)
    assert identified["tpir_at_fpir"]["0.01"]["supported"] is False
    bounds = identified["intervals_95"]["rank_1"]
    assert bounds["low"] <= identified["rank_1"] <= bounds["high"]
    assert found.gallery_table is not None


def test_a_gallery_of_images_and_strangers_only(untrained: Path, faces: Path, tmp_path: Path) -> None:
    for n, folder in enumerate(sorted(faces.iterdir())[:6]):
        target = tmp_path / ("gallery" if n < 3 else "others") / folder.name
        shutil.copytree(folder, target)
    found = evaluate(
        untrained, data=tmp_path / "gallery", gallery=tmp_path / "gallery", out=tmp_path / "a", **OPTIONS
    )
    printed = text_of(found)
    assert found.gallery.to_dict() == found.neighbours.to_dict()  # no image finds itself
    assert found.identification is None
    assert "18 of 18 images are in the gallery too: none finds itself there" in printed
    assert "every image is of a person in the gallery" in printed
    with pytest.raises(DataError, match="none of 18 probes is of a person in the gallery"):
        evaluate(
            untrained, data=tmp_path / "others", gallery=tmp_path / "gallery", out=tmp_path / "b", **OPTIONS
        )


def test_a_gallery_that_holds_some_of_the_images(table: Path, tmp_path: Path) -> None:
    """Of ten enrolled people one image each is among the probes too: it is no probe of anything."""
    t = EmbeddingTable.load(table)
    first = np.unique(t.identities, return_index=True)[1]
    enrolled = t.rows(np.sort(np.concatenate([first[:10], first[:10] + 1])))
    renamed = EmbeddingTable(3 * enrolled.embeddings, enrolled.identities, np.char.add("x/", enrolled.paths))
    gallery = renamed.save(tmp_path / "gallery.npz")
    rest = np.setdiff1d(np.arange(96), first[:10] + 1)
    apart = t.rows(np.setdiff1d(rest, first[:10])).save(tmp_path / "apart.npz")
    some = t.rows(rest).save(tmp_path / "some.npz")
    options = {"gallery": gallery, "svm": True, "report": False}
    one, other = (evaluate(embeddings=e, out=tmp_path / e.stem, **options) for e in (apart, some))
    assert "10 of 86 images are in the gallery too: none finds itself there" in text_of(other)
    assert one.identification.to_dict() == other.identification.to_dict()
    assert one.svm.to_dict() == other.svm.to_dict()
    assert (
        other.gallery.queries == one.gallery.queries + 10
    )  # each still looks for the other image of its person
    extra = (
        other.gallery.each.figures["knn_accuracy_1"].sum() - one.gallery.each.figures["knn_accuracy_1"].sum()
    )
    unit = t.embeddings / np.linalg.norm(t.embeddings, axis=1, keepdims=True)
    rows = np.sort(np.concatenate([first[:10], first[:10] + 1]))
    cosine = unit[first[:10]] @ unit[rows].T
    cosine[cosine > 1 - 1e-6] = -1
    assert extra == (t.identities[rows][cosine.argmax(1)] == t.identities[first[:10]]).sum()


def test_odd_pairs_are_said_and_counted_once(table: Path, tmp_path: Path) -> None:
    t = EmbeddingTable.load(table)
    rng = np.random.default_rng(0)
    a, b = rng.integers(96, size=(2, 200))
    apart = a != b
    key = np.minimum(a, b) * 96 + np.maximum(a, b)
    keep = np.isin(np.arange(200), np.unique(key, return_index=True)[1]) & apart
    a, b = a[keep], b[keep]
    fold = np.arange(len(a)) % 3

    def written(name: str, rows: list[int], swapped: bool = False) -> Path:
        lines = [f"{t.name(a[i])},{t.name(b[i])}" for i in range(len(a))]
        extra = [(b[i], a[i]) if swapped else (a[i], b[i]) for i in rows]
        lines += [f"{t.name(i)},{t.name(j)}" for i, j in extra]
        both = [*zip(a.tolist(), b.tolist(), strict=True), *extra]
        same = [int(t.identities[i] == t.identities[j]) for i, j in both]
        folds = [*fold.tolist(), *((fold[rows] + 1) % 3).tolist()] if rows else fold.tolist()
        file = tmp_path / name
        file.write_text(
            "path_a,path_b,same,fold\n"
            + "".join(f"{line},{y},{f}\n" for line, y, f in zip(lines, same, folds, strict=True))
            + (f"{t.name(3)},{t.name(3)},1,0\n" * 5 if rows else "")
        )
        return file

    records = []
    for name, rows, swapped in (("clean.csv", [], False), ("odd.csv", [1, 4, 4, 7], True)):
        file = written(name, rows, swapped)
        found = evaluate(embeddings=table, pairs=file, out=tmp_path / name[:-4], report=False)
        records.append(metrics(tmp_path / name[:-4]))
    printed = text_of(found)
    listed = len(a) + 9
    assert f"5 of {listed} listed pairs hold an image with itself: left out" in printed
    assert (
        f"4 of {listed} listed pairs repeat one before, as it is or the other way round, 4 of them in"
        in printed
    )
    for record in records:
        record["verification"].pop("pairs")
    assert records[0]["verification"] == records[1]["verification"]
    assert "notes" not in records[0]
    assert len(records[1]["notes"]) == 2


def test_groups_of_the_pairs(table: Path, pairs: Path, tmp_path: Path) -> None:
    scored = evaluate(embeddings=table, pairs=pairs, out=tmp_path, report=False)
    (found,) = metrics(tmp_path)["slices"]
    assert found["column"] == "light"
    assert found["groups"]["dusk"]["too_small"].startswith("4 genuine and 0 impostor pairs")
    day = found["groups"]["day"]
    threshold = metrics(tmp_path)["verification"]["tar_at_far"]["0.1"]["threshold"]
    t, row = EmbeddingTable.load(table), {}
    row = {str(path): i for i, path in enumerate(t.paths)}
    hits = []
    with open(pairs, newline="") as file:
        for line in csv.DictReader(file):
            if line["light"] == "day" and line["label"] == "1":
                one, other = row[line["image1_path"]], row[line["image2_path"]]
                hits.append(float(t.embeddings[one] @ t.embeddings[other]) >= threshold - 1e-7)
    assert day["genuine_pairs"] == len(hits) > 50
    assert day["at_overall_far"]["0.1"]["tar"] == pytest.approx(np.mean(hits))
    assert [gap["rate"] for gap in found["largest_gaps"]][:2] == ["tar", "far"]
    text = text_of(scored)
    assert "By light, at overall FAR = 0.01: Largest gap in TAR: " in text
    assert "dusk not measured 4 genuine and 0 impostor pairs of 1 person" in text
    assert re.search(r"day TAR 0\.\d{4} \[[^]]*\] FAR 0\.\d{4} \[", text)
    assert "at overall FAR = 0.1:" not in text  # in the report
    assert {"slices.light.day.tar_at_far_0.1", "slices.light.far_gap_at_far_0.1"} <= set(
        scored.to_frame()["key"]
    )


def test_groups_of_the_images(untrained: Path, faces: Path, tmp_path: Path) -> None:
    index = read_index(faces)
    lines = [("path", "identity", "half")]
    lines += [
        (
            str(faces / index.name(i)),
            index.identities[index.identity[i]],
            "left" if index.identity[i] < 8 else "right",
        )
        for i in range(len(index))
    ]
    with open(tmp_path / "index.csv", "w", newline="") as file:
        csv.writer(file).writerows(lines)
    evaluate(untrained, data=tmp_path / "index.csv", all_pairs=True, out=tmp_path / "a", **OPTIONS)
    (found,) = metrics(tmp_path / "a")["slices"]
    assert found["groups"]["left"]["genuine_pairs"] == 120
    assert found["groups"]["left"]["impostor_pairs"] == 48 * 47 // 2 - 120
    assert "needed 30 of each, of 10 people" in found["groups"]["left"]["too_small"]
    # The groups travel with the embeddings.
    again = evaluate(
        embeddings=tmp_path / "a" / "embeddings.npz", all_pairs=True, out=tmp_path / "b", report=False
    )
    assert [s.to_dict() for s in again.slices] == metrics(tmp_path / "a")["slices"]


def test_insightfaces_bin(untrained: Path, table: Path, pairs: Path, faces: Path, tmp_path: Path) -> None:
    images, same = [], []
    with open(pairs, newline="") as file:
        for line in csv.DictReader(file):
            images += [(faces / line[name]).read_bytes() for name in ("image1_path", "image2_path")]
            same.append(line["label"] == "1")
    (tmp_path / "drawn.bin").write_bytes(pickle.dumps((images, same), 4))
    found = evaluate(untrained, pairs=tmp_path / "drawn.bin", out=tmp_path / "a", **OPTIONS)
    by_csv = evaluate(embeddings=table, pairs=pairs, out=tmp_path / "b", report=False)
    assert found.verification.auc == pytest.approx(by_csv.verification.auc, abs=1e-6)
    assert len(found.verification.accuracy.accuracies) == 10  # InsightFace's ten parts
    assert not found.verification.accuracy.drawn
    assert len(found.table) == len(set(images)) < len(images)  # each picture is embedded once
    assert found.neighbours is None
    assert found.images.read(0) in images


def test_an_svm(table: Path, tmp_path: Path) -> None:
    found = evaluate(embeddings=table, svm=True, out=tmp_path, report=False)
    record = metrics(tmp_path)["svm"]
    assert record["accuracy"] == found.svm.mean > 1 / 16
    assert (record["people"], record["images"], record["folds"]) == (16, 96, 5)
    assert record["intervals_95"]["accuracy"]["low"] <= record["accuracy"]
    assert f"Accuracy of a linear SVM {found.svm.mean:.4f} [" in text_of(found)


def test_an_svm_learns_from_the_gallery(faces: Path, table: Path, tmp_path: Path) -> None:
    """Nearly the same embeddings on both sides: what it learned by heart it knows. Of the same it judges none."""
    t = EmbeddingTable.load(table)
    noise = 0.003 * np.random.default_rng(0).normal(size=t.embeddings.shape)
    again = EmbeddingTable(t.embeddings + noise, t.identities, t.paths).save(tmp_path / "again.npz")
    options = {"embeddings": table, "gallery": str(again), "svm": True, "out": tmp_path / "a"}
    found = evaluate(**options)
    record = found.to_dict()["svm"]
    assert (record["people"], record["images"], record["folds"]) == (16, 96, 0)
    folds = evaluate(embeddings=table, svm=True, out=tmp_path / "b", report=False).svm
    assert record["accuracy"] > folds.mean
    assert "learned from the gallery" in text_of(found)
    assert "16 people, learned from the gallery" in (tmp_path / "a" / "report.html").read_text()
    itself = evaluate(embeddings=table, gallery=str(table), svm=True, out=tmp_path / "c", report=False)
    assert itself.svm is None
    assert itself.notes[-1] == "no linear SVM: every image is in the gallery that it learns from"


def test_a_gallery_of_another_model(table: Path, tmp_path: Path) -> None:
    other = worse(table, tmp_path / "other.npz")
    with pytest.raises(DataError, match=r"the gallery has embeddings of \d+ numbers, the images of"):
        evaluate(embeddings=table, gallery=other, out=tmp_path / "out", report=False)
    with pytest.raises(ConfigError, match="gallery= of images needs weights="):
        evaluate(embeddings=table, gallery=tmp_path, out=tmp_path / "out", report=False)
