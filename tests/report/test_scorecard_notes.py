"""What `facemetric eval` says of what it cannot measure, and refuses: notes, bad images, options."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facemetric import cluster, evaluate, visualize
from facemetric.errors import ConfigError, DataError
from facemetric.evaluation.table import EmbeddingTable

OPTIONS: dict[str, Any] = {"workers": 0, "device": "cpu", "batch_size": 16, "report": False}


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
    evaluate(embeddings=grouped, pairs=file, fars=[0.5], out=tmp_path / "out", report=False)
    assert metrics(tmp_path / "out")["notes"] == [
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


def test_too_few_images_for_an_svm_are_a_note(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    t = EmbeddingTable.load(table)
    pairs_of_each = np.flatnonzero(np.arange(len(t)) % 6 < 2)
    few = t.rows(pairs_of_each).save(tmp_path / "few.npz")
    found = evaluate(embeddings=few, svm=True, out=tmp_path / "out")
    (note,) = metrics(tmp_path / "out")["notes"]
    assert note == "no linear SVM: 0 of 16 people have 5 images or more; an SVM needs two people"
    assert found.svm is None
    assert found.neighbours is not None
    assert note in capsys.readouterr().out
    assert note in (tmp_path / "out" / "report.html").read_text()
    one = t.rows(np.arange(6)).save(tmp_path / "one.npz")  # a gallery of one person
    found = evaluate(embeddings=few, gallery=one, svm=True, out=tmp_path / "out", report=False)
    assert found.notes == (
        "no linear SVM: an SVM needs a gallery of two people, and images of people who are in it",
    )


def test_what_a_second_model_is_not_compared_by_is_said(table: Path, tmp_path: Path) -> None:
    found = evaluate(embeddings=table, compare=table, svm=True, out=tmp_path, report=False)
    assert found.notes == (
        "identification and linear SVM: of the first model alone, the second is not compared by them",
    )
    t = EmbeddingTable.load(table)
    few = t.rows(np.unique(t.identities, return_index=True)[1]).save(tmp_path / "few.npz")
    found = evaluate(embeddings=few, compare=few, all_pairs=False, out=tmp_path, report=False)
    assert not any("of the first model alone" in note for note in found.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": "p.csv", "all_pairs": True, "data": "x"}, "give one of --pairs and --all-pairs"),
        ({"pairs": "p.csv", "gallery": "g"}, "--gallery needs images: give --data or --embeddings"),
        ({"pairs": "p.csv", "svm": True}, "--svm needs images"),
        ({"all_pairs": True}, "nothing to score"),
        ({"data": "x", "fars": (0.1, 0)}, "--fars has 0; needed shares above 0"),
        ({"data": "x", "max_bad": 1.5}, r"--max-bad is 1\.5; it is a share"),
        ({"data": "x", "gallery": ("a.npz", "b.npz")}, "--gallery names 2 things, one of them embeddings"),
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
        evaluate(untrained, out=tmp_path / "out", **options, **OPTIONS)


def test_flip_changes_only_images_that_are_embedded_now(
    untrained: Path, table: Path, faces: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"embeddings": table, "flip": True, "out": tmp_path, "report": False}
    for second in ("", table):
        with pytest.raises(ConfigError, match="--flip has no effect on --embeddings"):
            evaluate(compare=second, **options)
    for look in (cluster, visualize):
        with pytest.raises(ConfigError, match="--flip has no effect on --embeddings"):
            look(embeddings=table, flip=True, out=tmp_path)
    evaluate(compare=untrained, data=faces, **options | OPTIONS)
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
    options: dict[str, Any] = {"data": tmp_path / "data", "gallery": tmp_path / "gallery"} | OPTIONS
    out = tmp_path / "out"
    found = evaluate(untrained, compare=untrained, max_bad=0.06, out=out, **options)  # 1 of 96, 1 of 18
    assert (len(found.table), len(found.gallery_table)) == (95, 17)
    assert "gallery: 1 of 18 images cannot be read and are not scored" in capsys.readouterr().out
    lists = {of: (out / f"{of}bad_images.csv").read_text() for of in ("", "gallery_", "second_")}
    assert all(len(text.splitlines()) == 2 for text in lists.values())
    assert lists[""] == lists["second_"] != lists["gallery_"]
    with pytest.raises(DataError, match="1 of 18 images are bad"):
        evaluate(untrained, max_bad=0.03, out=out, **options)
    assert not (out / "second_bad_images.csv").exists()  # of the evaluation before
