"""`facemetric data check` on drawn faces with faults put in, and what becomes of its lists."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photographs import album
from PIL import Image, ImageOps

from facemetric import pretrain, show_progress
from facemetric.cli import main
from facemetric.commands.checking import findings as kinds
from facemetric.commands.checking.check import check_data, embed_sides
from facemetric.commands.checking.findings import Side, close_of
from facemetric.config import CheckConfig, PretrainConfig, make_config
from facemetric.data.drawn.draw import draw_faces
from facemetric.data.index import ImageIndex, read_index
from facemetric.errors import ConfigError, DataError
from facemetric.evaluation.audit import hashes as duplicates
from facemetric.evaluation.audit.hashes import Pairs
from facemetric.model.weights.folder import amend_config
from facemetric.training.split import read_split


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 drawn people, 5 pictures of each, 64 px."""
    out = tmp_path_factory.mktemp("check")
    return draw_faces(out / "faces", identities=24, images=5, size=64, seed=5, workers=1, progress=False)


@pytest.fixture(scope="module")
def weights(clean: Path) -> Path:
    options: dict[str, Any] = {"batch_size": 20, "workers": 0, "device": "cpu", "image_size": 32, "lr": 0.05}
    out = clean.parent / "run"
    return pretrain(clean, arch="test_resnet", epochs=12, out=out, val_fraction=0.0, **options).weights


@pytest.fixture
def faulty(clean: Path, tmp_path: Path) -> Path:
    """A copy, a mirrored small copy, a copy with another name, a person with two names, two pictures exchanged."""
    data = tmp_path / "faces"
    shutil.copytree(clean, data)
    one, two, three, four, five = (data / f"drawn_{i:04d}" for i in range(1, 6))
    shutil.copy(one / "0001.jpg", one / "copy.jpg")
    with Image.open(two / "0002.jpg") as picture:
        ImageOps.mirror(picture).resize((48, 48)).save(two / "mirrored.png")
    shutil.copy(three / "0003.jpg", four / "strange.jpg")
    shutil.copytree(five, data / "somebody")
    for i, picture in enumerate(sorted((data / "somebody").iterdir())):
        with Image.open(picture) as image:  # other photographs of the same person: not found by their hashes
            width = image.width
            shift = (i % 3 + 2) * width // 20
            image.rotate(12 - 6 * i, Image.Resampling.BICUBIC).crop((shift, 0, width, width - shift)).save(
                picture
            )
    six, seven = data / "drawn_0006" / "0001.jpg", data / "drawn_0007" / "0001.jpg"
    shutil.move(six, tmp_path / "six.jpg")
    shutil.move(seven, six)
    shutil.move(tmp_path / "six.jpg", seven)
    (data / "drawn_0008" / "broken.jpg").write_bytes(b"no picture")
    return data


def lines(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "findings.csv").read_text().splitlines()))


def test_with_flip_a_person_and_the_mirror_image_are_one(clean: Path, weights: Path, tmp_path: Path) -> None:
    data = tmp_path / "faces"
    shutil.copytree(clean, data)
    (data / "mirrored").mkdir()
    for picture in (clean / "drawn_0003").iterdir():
        with Image.open(picture) as image:
            ImageOps.mirror(image.convert("RGB")).save(data / "mirrored" / f"{picture.stem}.png")
    index = read_index([str(data)])
    far = []
    for flip in (False, True):
        config = CheckConfig((str(data),), weights=str(weights), workers=0, device="cpu", flip=flip)
        emb = embed_sides(config, Side(index, np.zeros((len(index), 1))), None)[0].embeddings
        assert emb is not None
        rows = [
            np.flatnonzero(index.identity == index.identities.index(n)) for n in ("drawn_0003", "mirrored")
        ]
        far.append(np.abs(emb[rows[0]] - emb[rows[1]]).max())
    assert far[0] > 0.05
    assert far[1] < 1e-3


def test_an_image_that_can_no_longer_be_read_stops_the_check(
    clean: Path, weights: Path, tmp_path: Path
) -> None:
    data = tmp_path / "faces"
    shutil.copytree(clean, data)
    index = read_index([str(data)])
    (data / index.name(7)).write_bytes(b"")
    config = CheckConfig((str(data),), weights=str(weights), workers=0, device="cpu")
    with pytest.raises(DataError, match=f"{index.name(7)} could be read at first and then not"):
        embed_sides(config, Side(index, np.zeros((len(index), 1))), None)


def test_nothing_is_found_where_nothing_is(clean: Path, tmp_path: Path) -> None:
    checked = check_data(clean, out=tmp_path / "out", workers=0)
    assert checked.findings == []
    assert lines(tmp_path / "out") == []


def test_images_are_compared_without_weights(
    faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    checked = check_data(faulty, out=out, workers=0)
    found = {(line["kind"], line["image_a"], line["image_b"], line["note"]) for line in lines(out)}
    assert found == {
        ("duplicate", "drawn_0001/0001.jpg", "drawn_0001/copy.jpg", ""),
        ("duplicate", "drawn_0002/0002.jpg", "drawn_0002/mirrored.png", "mirrored"),
        ("duplicate across identities", "drawn_0003/0003.jpg", "drawn_0004/strange.jpg", ""),
    }
    said = capsys.readouterr().out + checked.text()
    assert "1 of 129 images cannot be read and are not checked" in said
    assert re.search("checked +128 images of 25 identities", said)
    assert re.search("duplicate +2 pairs", said)
    assert "one person, mislabelled" in said
    assert (out / "bad_images.csv").read_text().splitlines()[1].startswith("drawn_0008/broken.jpg,")
    for name in ("sheet_duplicate_1.jpg", "sheet_duplicate_across_identities_1.jpg"):
        assert Image.open(out / name).size[0] > 300
    # The list is an option of training: of 129 images one cannot be read, four are left out.
    options = make_config(PretrainConfig, faulty, leave_out_images=out / "duplicates.txt", val_fraction=0.0)
    split = read_split(options)
    assert len(split.train) == 129 - 4
    assert "left out 4 images" in capsys.readouterr().out
    assert split.train.find("drawn_0001/copy.jpg") is None or split.train.find("drawn_0001/0001.jpg") is None
    # Nothing was deleted, and a check of what is left finds nothing.
    assert sum(1 for path in faulty.rglob("*.*") if path.is_file()) == 129
    again = check_data(faulty, leave_out_images=out / "duplicates.txt", out=tmp_path / "again", workers=0)
    assert again.findings == []
    assert not list((tmp_path / "again").glob("sheet_*"))


def test_weights_find_people_and_labels(
    faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With weights that are there: what a small training finds hangs on how the processor rounds."""
    out = tmp_path / "out"
    checked = check_data(
        faulty,
        weights="faces-112",
        faces="off",
        out=out,
        workers=0,
        device="cpu",
        mislabelled=0.5,
        chance=0.2,
    )
    pairs = [(f.identity_a, f.identity_b) for f in checked.findings if f.kind == kinds.ONE_PERSON]
    assert ("drawn_0005", "somebody") in pairs[:3]
    wrong = {f.image_a for f in checked.findings if f.kind == kinds.MISLABELLED}
    assert {"drawn_0006/0001.jpg", "drawn_0007/0001.jpg"} & wrong
    record = json.loads((out / "check.json").read_text())
    assert record["options"]["mislabelled"] == 0.5
    assert record["figures"]["found"] == dict(Counter(line["kind"] for line in lines(out)))
    assert record["figures"]["one_person"]["expected_by_chance"] == pytest.approx(0.2 * 25)
    assert 0 < record["figures"]["cosine_of_duplicates"] < 1
    # Among 25 people some are always the nearest: shown, and no list is ready to use.
    assert (out / "merge.csv").read_text() == '"identity_a","identity_b","score"\n'
    assert (out / "mislabelled.txt").read_text() == ""
    weak = [line for line in lines(out) if line["kind"] in (kinds.ONE_PERSON, kinds.MISLABELLED)]
    assert weak
    assert all("25 identities are too few to tell from chance" in line["note"] for line in weak)
    assert set(record["figures"]["in_no_list"]) == {kinds.ONE_PERSON, kinds.MISLABELLED}
    assert "weak" in checked.text()


def test_a_test_set_is_compared(clean: Path, weights: Path, tmp_path: Path) -> None:
    test = tmp_path / "test"
    shutil.copytree(clean / "drawn_0003", test / "Drawn_0003")
    (test / "stranger").mkdir()
    with Image.open(clean / "drawn_0009" / "0002.jpg") as picture:
        ImageOps.mirror(picture).save(test / "stranger" / "x.png")
    out = tmp_path / "out"
    checked = check_data(clean, against=test, weights=weights, out=out, workers=0, device="cpu")
    of_kind = {
        k: {(f.identity_a, f.identity_b) for f in checked.findings if f.kind == k} for k in kinds.KINDS
    }
    assert of_kind[kinds.TEST_NAME] == {("drawn_0003", "Drawn_0003")}
    assert of_kind[kinds.TEST_IMAGE] == {("drawn_0003", "Drawn_0003"), ("drawn_0009", "stranger")}
    assert ("drawn_0003", "Drawn_0003") in of_kind[kinds.TEST_PERSON]
    images = [f for f in checked.findings if f.kind == kinds.TEST_IMAGE]
    assert len(images) == 6
    assert [f.note for f in images if f.identity_b == "stranger"] == ["mirrored"]
    rest = read_split(
        make_config(PretrainConfig, clean, leave_out=out / "leave_out.txt", val_fraction=0.0)
    ).train
    assert not {"drawn_0003", "drawn_0009"} & set(rest.identities)
    assert (out / "sheet_image_in_test_1.jpg").is_file()


def test_a_call_is_quiet(faulty: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gone.txt").write_text("drawn_0001\n")
    before = show_progress(False)
    checked = check_data(faulty, leave_out=tmp_path / "gone.txt", out=tmp_path / "out", workers=0)
    show_progress(before)
    assert capsys.readouterr() == ("", "")
    assert checked.text().splitlines()[-1].endswith(str(tmp_path / "out"))


def test_what_is_undefined_is_null_in_the_json(
    clean: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_json(what: str) -> None:
        raise AssertionError(f"{what} is no JSON")

    some = tmp_path / "some"
    for person in sorted(clean.iterdir())[:12]:
        shutil.copytree(person, some / person.name)
        for picture in sorted((some / person.name).iterdir())[2:]:  # nobody can be cut in halves
            picture.unlink()
    checked = check_data(some, weights=weights, chance=0.0, out=tmp_path / "out", workers=0, device="cpu")
    record = json.loads((tmp_path / "out" / "check.json").read_text(), parse_constant=no_json)
    assert record["figures"]["one_person"] == {
        "threshold": None,
        "expected_by_chance": 0.0,
        "share_of_halves_found": None,
    }
    assert "0 pairs  (nearer than their neighbours by any score: chance brings 0.0)" in checked.text()


def test_pairs_that_are_not_kept_are_counted_in_both_walks(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "faces"
    shutil.copytree(clean, data)
    for picture in (data / "drawn_0001").iterdir():
        shutil.copy(picture, picture.with_name(f"copy_{picture.name}"))
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 2)
    checked = check_data(data, against=clean, out=tmp_path / "out", workers=0)
    # 5 pairs within the set; with the test set each of its 120 images, and the 5 copies again.
    assert checked.figures.copies.pairs_cut == (5 - 2) + (125 - 2)
    assert "126 pairs of images less alike than those listed" in checked.text()


def test_names_that_are_no_text_and_names_like_comments(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, odd = tmp_path / "faces", b"caf\xe9".decode("utf-8", "surrogateescape")
    for name, person in (("#tag", "drawn_0001"), (odd, "drawn_0002"), ("plain", "drawn_0003")):
        try:
            shutil.copytree(clean / person, data / name)
        except OSError:
            pytest.skip("this file system takes UTF-8 names alone")
        (data / name / f"{odd}.txt").write_text("no image")
        shutil.copy(data / name / "0001.jpg", data / name / "copy.jpg")
    shutil.copy(data / odd / "0002.jpg", data / "plain" / "strange.jpg")
    out = tmp_path / "out"
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # a terminal's: strict
    monkeypatch.setattr(sys, "stdout", printed)
    with pytest.raises(SystemExit, match="0"):
        main(["data", "check", str(data), "--out", str(out), "--workers", "0"])
    printed.flush()
    assert rb"caf\udce9.txt" in printed.buffer.getvalue()  # type: ignore[attr-defined]
    monkeypatch.undo()
    options: dict[str, Any] = {"leave_out_images": out / "duplicates.txt", "val_fraction": 0.0}
    kept = read_split(make_config(PretrainConfig, data, **options)).train
    assert kept.counts().tolist() == [5, 4, 5]
    shutil.copytree(data / "#tag", tmp_path / "test" / "#tag")
    check_data(data, against=tmp_path / "test", out=tmp_path / "against", workers=0)
    options = {"leave_out": tmp_path / "against" / "leave_out.txt", "val_fraction": 0.0}
    assert read_split(make_config(PretrainConfig, data, **options)).train.identities == (odd, "plain")


def test_faults_of_the_user_are_said(clean: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no DATA was given"):
        check_data(out=tmp_path)
    with pytest.raises(ConfigError, match=r"mislabelled is 2; it is a share, choose 0\.\.1"):
        check_data(clean, mislabelled=2, out=tmp_path)
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        check_data(clean, against="nowhere", out=tmp_path, workers=0)
    with pytest.raises(ConfigError, match="unknown option 'agianst': did you mean 'against'"):
        make_config(CheckConfig, clean, agianst="x")


def test_a_pair_found_straight_and_mirrored_stands_once_as_the_nearer() -> None:
    straight = Pairs(np.array([4, 0, 2]), np.array([5, 1, 3]), np.array([7, 30, 31]), 2)
    turned = Pairs(np.array([0, 2]), np.array([1, 3]), np.array([10, 31]), 1)
    side = Side(
        ImageIndex.__new__(ImageIndex), np.zeros((6, 255)), np.eye(6, dtype=np.float32)[[0, 0, 1, 2, 3, 3]]
    )
    close = close_of(straight, turned, side, side)
    found = zip(
        close.pairs.first, close.pairs.second, close.pairs.bits, close.mirrored, close.cosine, strict=True
    )
    assert list(found) == [(4, 5, 7, False, 1), (0, 1, 10, True, 1), (2, 3, 31, False, 0)]
    assert close.pairs.cut == 3
    assert np.isnan(close_of(straight, turned, side, side._replace(embeddings=None)).cosine).all()


def test_photographs_are_checked_by_their_faces(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(weights, tmp_path / "w")
    amend_config(tmp_path / "w", pictures="faces")
    photos = album(tmp_path / "photos")
    Image.new("RGB", (200, 200), (90, 140, 220)).save(photos / "person1" / "sky.png")
    shutil.copyfile(photos / "person0" / "0.jpg", photos / "person1" / "again.jpg")
    found = check_data(str(photos), weights=tmp_path / "w", out=tmp_path / "out", workers=0, device="cpu")
    assert found.figures.images == 5
    assert "5 faces cut from photographs, 1 picture without a face left out" in capsys.readouterr().out
    across = [f for f in found.findings if f.kind == kinds.ACROSS]
    assert ("person0/0.jpg", "person1/again.jpg") in [(f.image_a, f.image_b) for f in across]
    with open(tmp_path / "out" / "findings.csv", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["kind"] == kinds.ACROSS]
    assert [line["quality_a"] for line in lines] == [line["quality_b"] for line in lines]  # one photograph
    assert all(0.5 < float(line["quality_a"]) <= 1 for line in lines)
    plain = check_data(
        str(photos), out=tmp_path / "plain", workers=0
    )  # without weights no face is looked for
    assert plain.figures.images == 6
    assert {(f.quality_a, f.quality_b) for f in plain.findings} <= {("", "")}
