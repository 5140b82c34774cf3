"""`facemetric visualize`: from weights, from embeddings, of the data they were trained on."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from facemetric import evaluate, pretrain, visualize
from facemetric.config import PretrainConfig, make_config
from facemetric.errors import ConfigError, DataError
from facemetric.evaluation.table import EmbeddingTable
from facemetric.training.split import read_split

OPTIONS: dict[str, Any] = {"workers": 0, "device": "cpu"}


def metadata(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metadata.tsv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_a_folder_and_weights(untrained: Path, faces: Path, tmp_path: Path) -> None:
    out = visualize(str(faces), weights=untrained, out=tmp_path / "out", **OPTIONS)
    lines = metadata(out)
    assert len(lines) == 96
    assert {line["part"] for line in lines} == {"all"}
    evaluate(untrained, data=str(faces), out=tmp_path / "eval", report=False, **OPTIONS)
    table = EmbeddingTable.load(tmp_path / "eval" / "embeddings.npz")
    row = {path: i for i, path in enumerate(table.paths.tolist())}
    numbers = np.loadtxt(out / "tensors.tsv", delimiter="\t")
    expected = table.embeddings[[row[line["image"]] for line in lines]]
    np.testing.assert_allclose(numbers, expected, atol=1e-5)
    with Image.open(out / "sprite.jpg") as sprite, Image.open(faces / lines[11]["image"]) as image:
        assert sprite.size == (640, 640)
        place = sprite.crop((64, 64, 128, 128))  # the twelfth of ten in a line
        gap = np.asarray(place, float) - np.asarray(image.convert("RGB").resize((64, 64)), float)
        assert np.abs(gap).mean() < 12
    assert Image.open(out / "tsne.png").size[0] > 800
    assert not list(out.glob(".*"))


def test_fewer_images_are_said(
    untrained: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = visualize(str(faces), weights=untrained, out=tmp_path / "out", images=30, **OPTIONS)
    lines = metadata(out)
    assert len(lines) == 30
    assert len({line["identity"] for line in lines}) == 5
    assert "30 of 96 images are shown, people drawn with seed 0" in capsys.readouterr().out


def test_the_data_of_the_run(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = pretrain(
        str(faces),
        arch="test_resnet",
        image_size=32,
        epochs=1,
        batch_size=16,
        out=tmp_path / "run",
        **OPTIONS,
    )
    capsys.readouterr()
    out = visualize(weights=run.weights, out=tmp_path / "out", **OPTIONS)
    people = {
        part: {x["identity"] for x in metadata(out) if x["part"] == part} for part in ("train", "validation")
    }
    assert len(people["train"]) == 14
    assert len(people["validation"]) == 2
    assert not people["train"] & people["validation"]
    assert (out / "tsne_train.png").is_file()
    assert (out / "tsne_validation.png").is_file()
    assert "has changed" not in capsys.readouterr().out


def test_the_images_of_the_run_are_split_as_it_split_them(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "faces"
    shutil.copytree(faces, data)
    (data / "list.txt").write_text("no image")
    names = sorted(str(path.relative_to(data)) for path in data.rglob("*") if path.is_file())
    (tmp_path / "out.txt").write_text("\n".join(name for name in names if "/0001." in name))
    small: dict[str, Any] = {"arch": "test_resnet", "image_size": 32, "epochs": 1, "batch_size": 16}
    options = small | {"val_by": "images", "val_fraction": 0.3}
    options |= {"leave_out_images": tmp_path / "out.txt"} | OPTIONS
    run = pretrain(str(data), out=tmp_path / "run", **options)
    split = read_split(make_config(PretrainConfig, str(data), out=tmp_path / "run", **options))
    assert split.val is not None
    assert len(split.train) + len(split.val) == 80
    out = visualize(weights=run.weights, out=tmp_path / "out", **OPTIONS)
    for name, index in (("train", split.train), ("validation", split.val)):
        shown = {line["image"] for line in metadata(out) if line["part"] == name}
        assert shown == {index.name(row) for row in range(len(index))}
    (note,) = split.train.notes
    capsys.readouterr()
    visualize(str(data), weights=run.weights, out=tmp_path / "all", **OPTIONS)
    assert note in capsys.readouterr().out


def test_two_numbers_are_a_scatter(tmp_path: Path) -> None:
    angle = np.linspace(0, 6, 50)
    names = np.array([f"p{i % 5}" for i in range(50)])
    table = EmbeddingTable(np.stack([np.cos(angle), np.sin(angle)], 1), names, np.arange(50).astype(str))
    out = visualize(embeddings=table.save(tmp_path / "e.npz"), out=tmp_path / "out")
    names_of = sorted(path.name for path in out.iterdir())
    assert names_of == [
        "made_by.json",
        "metadata.tsv",
        "projector_config.pbtxt",
        "scatter.png",
        "tensors.tsv",
    ]


def test_a_single_image(tmp_path: Path) -> None:
    table = EmbeddingTable(np.ones((1, 8), np.float32), np.array(["a"]), np.array(["a/1.jpg"]))
    out = visualize(embeddings=table.save(tmp_path / "e.npz"), out=tmp_path / "out")
    assert Image.open(out / "tsne.png").size[0] > 800
    assert len(metadata(out)) == 1


def test_what_cannot_be_shown(untrained: Path, faces: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="give one of weights= and embeddings="):
        visualize(str(faces), out=tmp_path / "out")
    with pytest.raises(ConfigError, match="does not say what it was trained on; name images as DATA"):
        visualize(weights=untrained, out=tmp_path / "out")
    with pytest.raises(ConfigError, match="images is 1"):
        visualize(str(faces), weights=untrained, images=1, out=tmp_path / "out")
    broken = tmp_path / "people" / "someone"
    broken.mkdir(parents=True)
    shutil.copy(sorted(faces.rglob("*.*"))[0], broken)
    (broken / "2.png").write_bytes(b"")
    with pytest.raises(DataError, match="1 of 2 images are bad"):
        visualize(str(tmp_path / "people"), weights=untrained, out=tmp_path / "out", **OPTIONS)
