"""`facemetric cluster`: its files, its figures, and folders without labels."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.font_manager import findfont
from photographs import album, pair
from PIL import Image, ImageFont

from facemetric import calibrate, cluster, load_embedder, show_progress
from facemetric.commands.clustering.cluster import cluster_records
from facemetric.data.index import read_index
from facemetric.errors import ConfigError, DataError, WeightsError
from facemetric.evaluation.clustering.agreement import agreement
from facemetric.evaluation.clustering.clusters import find_clusters
from facemetric.evaluation.table import EmbeddingTable
from facemetric.model.weights.folder import amend_config
from facemetric.report.pictures import CELL, GAP, LINE, MARK, Pictures, draw_sheet, fitting, rows_shown

FAST: dict[str, Any] = {"workers": 0, "device": "cpu"}


def lines_of(out: Path) -> list[dict[str, str]]:
    with open(out / "clusters.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_files_and_figures(
    own_weights: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    found = cluster(str(faces), weights=own_weights, threshold=0.995, out=out, sheets=3, **FAST)
    table = EmbeddingTable.load(out / "embeddings.npz")
    wanted = find_clusters(table.embeddings, 0.995)
    assert 3 < len(wanted.sizes()) < 96
    lines = lines_of(out)
    assert [int(line["cluster"]) for line in lines] == sorted(wanted.number.tolist())
    for line in lines:
        row = table.find(line["path"])
        assert row is not None
        assert int(line["cluster"]) == wanted.number[row]
        assert float(line["distance_to_centre"]) == pytest.approx(float(wanted.distance[row]), abs=1e-6)
    record = json.loads((out / "clusters.json").read_text())
    assert record["clustering"] == wanted.to_dict()
    peer = agreement(wanted.number, table.identities)
    assert found.agreement == peer
    assert record["agreement"] == peer.to_dict()
    assert record["options"]["threshold"] == 0.995
    assert sorted(p.name for p in (out / "sheets").iterdir()) == [f"cluster_0000{i}.jpg" for i in range(3)]
    said = found.text() + capsys.readouterr().out
    assert f"96 images in {len(wanted.sizes())} clusters (agglomerative, cosine 0.9950)" in said
    assert f"against 16 identities: B-cubed precision {peer.precision.value:.4f} [" in said
    several = (wanted.sizes() >= 2).sum()
    assert f"sheets of 3 of {several} clusters of two images or more" in said


def test_a_call_is_quiet(
    table: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = show_progress(False)
    cluster(str(faces), embeddings=table, threshold=0.99, out=tmp_path / "a", sheets=1)
    cluster(embeddings=table, threshold=0.99, out=tmp_path / "b")
    show_progress(before)
    assert capsys.readouterr() == ("", "")


def test_a_flat_folder_without_labels(own_weights: Path, faces: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for path in sorted(faces.rglob("*"))[:40]:
        if path.is_file():
            shutil.copy(path, tmp_path / "photos" / f"{path.parent.name}_{path.name}")
    found = cluster(
        str(tmp_path / "photos"), weights=own_weights, threshold=0.99, out=tmp_path / "out", **FAST
    )
    assert found.agreement is None
    assert not found.labelled.any()
    assert "agreement" not in json.loads((tmp_path / "out" / "clusters.json").read_text())
    assert {line["path"] for line in lines_of(tmp_path / "out")} == {
        path.name for path in (tmp_path / "photos").iterdir()
    }
    for record in found.records(5):
        assert (record.identity, record.purity, any(record.others)) == ("", None, False)
    assert (tmp_path / "out" / "sheets" / "cluster_00000.jpg").exists()


def test_folders_that_are_no_people_and_some_loose_images(
    own_weights: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "photos"
    for folder in sorted(faces.iterdir())[:3]:
        shutil.copytree(folder, root / folder.name)
    loose = next((root / folder.name).iterdir())
    loose.rename(root / loose.name)
    options: dict[str, Any] = {"weights": own_weights, "threshold": 0.99, "sheets": 0} | FAST
    some = cluster(str(root), out=tmp_path / "one", **options)
    assert some.agreement is not None
    assert (some.agreement.images, some.agreement.identities) == (17, 3)
    assert "1 of 18 images have no identity" in some.text()
    none = cluster(str(root), out=tmp_path / "two", labels=False, **options)
    assert none.agreement is None
    np.testing.assert_array_equal(none.clusters.number, some.clusters.number)
    assert not (tmp_path / "two" / "sheets").exists()


def test_the_stored_threshold_and_an_earlier_runs_embeddings(
    own_weights: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WeightsError, match=r"holds no threshold for FAR 0\.05; make one with"):
        cluster(str(faces), weights=own_weights, far=0.05, out=tmp_path / "out", **FAST)
    assert not (tmp_path / "out").exists()
    calibrated = calibrate(str(faces), weights=own_weights, far=0.05, flip=True, out=tmp_path / "cal", **FAST)
    first = cluster(str(faces), weights=own_weights, far=0.05, out=tmp_path / "out", sheets=2, **FAST)
    assert first.clusters.threshold == calibrated.thresholds[0].threshold.value
    # The threshold was chosen with mirror images, so the images are embedded with them.
    flipped = EmbeddingTable.load(tmp_path / "cal" / "embeddings.npz")
    np.testing.assert_allclose(first.table.embeddings, flipped.embeddings, atol=1e-6)
    assert json.loads((tmp_path / "out" / "clusters.json").read_text())["threshold"]["flip"] is True
    embeddings = tmp_path / "out" / "embeddings.npz"
    capsys.readouterr()
    again = cluster(embeddings=embeddings, weights=own_weights, far=0.05, out=tmp_path / "again", **FAST)
    np.testing.assert_array_equal(again.clusters.number, first.clusters.number)
    assert "\n" not in repr(again)
    assert repr(again.clusters).startswith(f"Clusters(96 images in {len(again.clusters.sizes())} cluster")
    frame = again.to_frame()
    written = csv.DictReader((tmp_path / "again" / "clusters.csv").read_text().splitlines())
    rows = [(row["path"], int(row["cluster"])) for row in written]
    assert list(zip(frame["path"], frame["cluster"], strict=True)) == rows
    assert "no sheets: name the images" in capsys.readouterr().out
    foreign = EmbeddingTable(
        first.table.embeddings, first.table.identities, first.table.paths, weights="5" * 64
    )
    shorter = EmbeddingTable(first.table.embeddings[:, 1:], first.table.identities, first.table.paths)
    unknown = EmbeddingTable(first.table.embeddings, first.table.identities, first.table.paths)
    for name, table, message in (
        ("foreign", foreign, r"the embeddings were made by other weights \(sha256 555555555555..., its own"),
        ("shorter", shorter, r"the embeddings have \d+ numbers, its own have \d+: a threshold of"),
    ):
        file = table.save(tmp_path / f"{name}.npz")
        with pytest.raises(DataError, match=message):
            cluster(embeddings=file, weights=own_weights, far=0.05, out=tmp_path / "no", **FAST)
        cluster(embeddings=file, threshold=0.9, out=tmp_path / f"own_{name}", **FAST)
    file = unknown.save(tmp_path / "unknown.npz")
    by_size = cluster(embeddings=file, weights=own_weights, far=0.05, out=tmp_path / "by_size", **FAST)
    np.testing.assert_array_equal(by_size.clusters.number, first.clusters.number)
    for method in ("components", "dbscan"):
        other = cluster(embeddings=embeddings, threshold=0.99, method=method, out=tmp_path / method, **FAST)
        peer = find_clusters(first.table.embeddings, 0.99, method=method)
        np.testing.assert_array_equal(other.clusters.number, peer.number)


def test_only_sheets_of_a_run_before_are_removed(untrained: Path, faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    table = cluster(str(faces), weights=untrained, threshold=0.99, out=out, sheets=3, **FAST).table
    own = out / "sheets" / "music.pdf"
    own.write_bytes(b"the user's")
    embeddings = table.save(tmp_path / "e.npz")
    options: dict[str, Any] = {"embeddings": embeddings, "threshold": 0.99, "onto": out, "out": out} | FAST
    cluster(str(faces), sheets=1, **options)
    assert {path.name for path in (out / "sheets").iterdir()} == {"cluster_00000.jpg", "music.pdf"}
    cluster(**options)
    assert [path.name for path in (out / "sheets").iterdir()] == ["music.pdf"]


def test_faults_of_the_user(own_weights: Path, faces: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"out": tmp_path / "out"} | FAST
    with pytest.raises(ConfigError, match="nothing to group: name images, or give embeddings="):
        cluster(weights=own_weights, threshold=0.5, **options)
    for threshold in (None, 0.5):
        with pytest.raises(
            ConfigError, match=r"no weights were given, .*: give weights=, a weights folder, a run"
        ):
            cluster(str(faces), threshold=threshold, **options)
    with pytest.raises(
        ConfigError, match=r"no threshold: give weights=, which .* such as faces-112\), or threshold=$"
    ):
        cluster(embeddings="faces.npz", **options)
    with pytest.raises(ConfigError, match=r"^threshold is 1\.2; choose -1\.\.1"):
        cluster(str(faces), weights=own_weights, threshold=1.2, **options)
    with pytest.raises(ConfigError, match="unknown method 'dbscn': did you mean 'dbscan'"):
        cluster(str(faces), weights=own_weights, threshold=0.5, method="dbscn", **options)
    with pytest.raises(ConfigError, match=r"^sheets is -1"):
        cluster(str(faces), weights=own_weights, threshold=0.5, sheets=-1, **options)
    with pytest.raises(DataError, match="no such file or folder"):
        cluster(str(tmp_path / "nowhere"), weights=own_weights, threshold=0.5, **options)
    calibrate(str(faces), weights=own_weights, far=0.05, out=tmp_path / "calibrated", **FAST)
    with pytest.raises(ConfigError, match=r"FAR 0\.05 was chosen without flip=True: leave it out"):
        cluster(str(faces), weights=own_weights, far=0.05, flip=True, **options)
    shutil.copytree(faces, tmp_path / "faces")
    bad = next(path for path in sorted((tmp_path / "faces").rglob("*")) if path.is_file())
    bad.write_bytes(b"")
    with pytest.raises(DataError, match="1 of 96 images are bad"):
        cluster(str(tmp_path / "faces"), weights=own_weights, threshold=0.9, **options)
    found = cluster(str(tmp_path / "faces"), weights=own_weights, threshold=0.9, max_bad=0.1, **options)
    assert len(found.table) == 95
    assert bad.name in (tmp_path / "out" / "bad_images.csv").read_text()


# Records and sheets


def test_records_name_the_most_frequent_identity_and_mark_the_others() -> None:
    emb = np.repeat(np.eye(4), [5, 3, 2, 1], axis=0)
    clusters = find_clusters(emb, 0.9)
    names = np.array(["a", "b", "a", "a", "c", "b", "b", "b", "", "", "d"])
    labelled = names != ""
    records = cluster_records(clusters, names, labelled, most=9)
    assert [(r.number, r.images, r.identity, r.purity) for r in records] == [
        (0, 5, "a", 0.6),
        (1, 3, "b", 1.0),
        (2, 2, "", None),
    ]
    assert {row for row, other in zip(records[0].rows, records[0].others, strict=True) if other} == {1, 4}
    assert records[0].title() == "cluster 0: 5 images, 60% a"
    assert records[2].title() == "cluster 2: 2 images"
    short = cluster_records(clusters, names, labelled, most=1, images=3)
    assert len(short) == 1
    assert len(short[0].rows) == 3
    assert short[0].title().endswith("; the 1 nearest to the centre, then the 2 farthest")


def test_rows_shown_are_all_or_both_ends() -> None:
    assert rows_shown(range(5), 5) == [0, 1, 2, 3, 4]
    assert rows_shown(range(9), 4) == [0, 1, 7, 8]
    assert rows_shown(range(9), 5) == [0, 1, 6, 7, 8]
    assert rows_shown([], 4) == []


def test_a_sheet_shows_each_picture_in_its_place(tmp_path: Path) -> None:
    colours = [(200, 30, 30), (30, 200, 30), (30, 30, 200)] * 4
    for i, colour in enumerate(colours):
        path = tmp_path / "people" / "anna" / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), colour).save(path)
    (tmp_path / "people" / "anna" / "11.png").write_bytes(b"")
    index = read_index(tmp_path / "people")
    names = np.array([index.name(i) for i in range(12)])
    table = EmbeddingTable(np.ones((12, 2), np.float32), np.array(["anna"] * 12), names)
    rows, marked = list(range(11, -1, -1)), [i == 1 for i in range(12)]
    title = "cluster 7: <b>Анна</b>\n" + "x" * 400
    file = draw_sheet(tmp_path / "s.jpg", Pictures(table, index), rows, title=title, marked=marked)
    sheet = Image.open(file)
    assert sheet.size == (10 * (CELL + GAP) + GAP, LINE + 2 * (CELL + GAP) + GAP)
    for place, row in enumerate(rows):
        left, top = GAP + place % 10 * (CELL + GAP), LINE + place // 10 * (CELL + GAP)
        centre = sheet.getpixel((left + CELL // 2, top + CELL // 2))
        wanted = (128, 128, 128) if row == 11 else colours[row]
        np.testing.assert_allclose(centre, wanted, atol=12)
        frame = sheet.getpixel((left, top + CELL // 2))
        np.testing.assert_allclose(frame, MARK if marked[place] else wanted, atol=40)
    font = ImageFont.truetype(findfont("DejaVu Sans"), 14)
    short = fitting(title, font, 300)
    assert font.getlength(short) <= 300
    assert short.startswith("cluster 7: <b>Анна</b>?x")
    assert short.endswith("…")


# Photographs


def test_the_faces_of_photographs_are_grouped(
    own_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    amend_config(own_weights, pictures="faces")
    photos = album(tmp_path / "photos", people=1)
    pair().resize((512, 300)).save(photos / "party.jpg")
    Image.new("RGB", (200, 200), (90, 140, 220)).save(photos / "sky.png")
    out = tmp_path / "out"
    found = cluster(str(photos), weights=own_weights, threshold=-1.0, out=out, **FAST)
    names = ["party.jpg", "party.jpg#face2", "person0/0.jpg", "person0/1.jpg"]
    lines = lines_of(out)
    assert sorted(line["path"] for line in lines) == names
    assert all(0 < float(line["quality"]) <= 1 for line in lines)
    assert sorted(found.to_frame()["quality"]) == sorted(float(line["quality"]) for line in lines)
    shown = capsys.readouterr().out
    assert (
        f"4 faces cut from photographs, 1 picture without a face left out: {out / 'faces' / 'aligned.csv'}"
        in shown
    )
    embedder = load_embedder(own_weights)
    table = EmbeddingTable.load(out / "embeddings.npz")
    row = table.find("person0/1.jpg")
    assert row is not None
    np.testing.assert_allclose(
        table.embeddings[row], embedder.embed(photos / "person0" / "1.jpg")[0], atol=1e-5
    )
    # The sheet shows the faces, not the photographs.
    assert len(list((out / "sheets").glob("*.jpg"))) == 1
    off = cluster(str(photos), weights=own_weights, threshold=-1.0, out=tmp_path / "off", faces="off", **FAST)
    assert len(off.table) == 4
    assert all(line["quality"] == "" for line in lines_of(tmp_path / "off"))
