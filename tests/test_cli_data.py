"""Images, archives, weights and pairs that are damaged: one line, or listed while the command goes on."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from commands_typed import FAST, TUNE, Ran, images_in


def damage(people: Path) -> dict[str, str]:
    """Damage three images; returns what is to be said of each."""
    empty, cut, text = images_in(people)[2:9:3]
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    text.write_text("this is no picture")
    return {f"{path.parent.name}/{path.name}": path.name for path in (empty, cut, text)}


def listed(out: Path) -> dict[str, str]:
    with open(out / "bad_images.csv", newline="") as file:
        return {row["name"]: row["reason"] for row in csv.DictReader(file)}


def test_bad_images_are_listed_and_the_training_goes_on(
    command: Callable[..., Ran], people: Path, weights: Path, tmp_path: Path
) -> None:
    bad = damage(people)
    options = ["--max-bad", 0.5, "--val-fraction", 0, "--closed-set-fraction", 0]
    ran = command("pretrain", people, "--out", tmp_path / "one", *FAST, *options)
    assert ran.status == 0
    assert listed(tmp_path / "one").keys() <= bad.keys()  # one may be in no batch
    assert len(listed(tmp_path / "one")) >= 2
    tune = ["--weights", weights, "--out", tmp_path / "two", *TUNE, "--max-bad", 0.5, "--val-fraction", 0]
    assert command("finetune", people, *tune).status == 0
    reasons = listed(tmp_path / "two")
    assert reasons.keys() == bad.keys()
    assert len(set(reasons.values())) == 3
    score = ["--weights", weights, "--out", tmp_path / "eval", "--max-bad", 0.5]
    ran = command("eval", "--data", people, *score)
    assert ran.status == 0
    assert listed(tmp_path / "eval") == reasons
    assert "3 of 48 images cannot be read" in ran.out


@pytest.mark.parametrize("stage", ["pretrain", "finetune", "finetune none", "eval"])
def test_above_the_share_of_bad_images_the_job_stops(
    command: Callable[..., Ran], people: Path, weights: Path, tmp_path: Path, stage: str
) -> None:
    bad, out = damage(people), ["--out", tmp_path / "out"]
    if stage == "pretrain":
        ran = command("pretrain", people, *out, *FAST)
    elif stage == "eval":
        ran = command("eval", "--data", people, "--weights", weights, *out)
    else:
        freeze = ["--freeze", "none"] if stage.endswith("none") else []
        ran = command("finetune", people, *out, "--weights", weights, *TUNE, *freeze)
    assert "48 images are bad, above the share of" in ran.fault
    assert "raise --max-bad" in ran.fault
    assert listed(tmp_path / "out").keys() <= bad.keys()


def test_layouts_that_cannot_be_trained_on(command: Callable[..., Ran], people: Path, tmp_path: Path) -> None:
    def fault(*data: object) -> str:
        return command("pretrain", *data, "--out", tmp_path / "out", *FAST).fault

    (tmp_path / "empty").mkdir()
    assert "holds no image of an identity; needed is identity/image.jpg" in fault(tmp_path / "empty")
    one = sorted(people.iterdir())[0]
    shutil.copytree(one, tmp_path / "one" / one.name)
    assert "1 identity with images" in fault(tmp_path / "one")
    shutil.copytree(one, people / one.name.swapcase())
    assert "1 pair of identities that differ in letter case alone" in fault(people)
    (tmp_path / "a.txt").write_text("x")
    assert "unknown kind of data" in fault(tmp_path / "a.txt")
    (tmp_path / "columns.csv").write_text("file,person\na.jpg,b\n")
    assert "path" in fault(tmp_path / "columns.csv")
    (tmp_path / "paths.csv").write_text("path,identity\nnowhere/1.png,a\nnowhere/2.png,b\n")
    assert "nowhere/1.png" in fault(tmp_path / "paths.csv")


def test_tars_that_cannot_be_trained_on(command: Callable[..., Ran], people: Path, tmp_path: Path) -> None:
    def fault(data: Path) -> str:
        return command("pretrain", data, "--out", tmp_path / "out", *FAST).fault

    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        tar.add(people, arcname=".")
    assert command("pretrain", tmp_path / "whole.tar", "--out", tmp_path / "good", *FAST).status == 0
    whole = (tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    assert "cut" in fault(tmp_path / "cut.tar")
    (tmp_path / "text.tar").write_text("this is no archive")
    assert "text.tar" in fault(tmp_path / "text.tar")
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        for name in ("a/1.png", "../../b/2.png"):
            member = tarfile.TarInfo(name)
            data = images_in(people)[0].read_bytes()
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert "../../b/2.png" in fault(tmp_path / "evil.tar")
    assert not (tmp_path.parent / "b").exists()


def test_weights_that_do_not_open(
    command: Callable[..., Ran], faces: Path, weights: Path, tmp_path: Path
) -> None:
    def fault() -> str:
        one = command("finetune", faces, "--weights", tmp_path / "w", "--out", tmp_path / "out", *TUNE).fault
        two = command("eval", "--weights", tmp_path / "w", "--data", faces, "--out", tmp_path / "out").fault
        assert one == two
        return one

    shutil.copytree(weights / "best", tmp_path / "w")
    model, config = tmp_path / "w" / "model.safetensors", tmp_path / "w" / "config.json"
    os.truncate(model, model.stat().st_size - 1000)
    assert "cut short or changed" in fault()
    text = json.loads(config.read_text())
    del text["sha256"]
    config.write_text(json.dumps(text))
    assert "cannot be read" in fault()
    shutil.copy(weights / "best" / "model.safetensors", model)
    config.write_text(json.dumps(text | {"architecture": "resnet10t"}))
    assert "does not hold resnet10t" in fault()
    config.write_text(json.dumps(text | {"architecture": "resnet10tt"}))
    assert "did you mean 'resnet10t'" in fault()
    config.write_text("{")
    assert "config.json cannot be read" in fault()


def test_a_pair_without_its_image_is_an_error_that_lists_it(
    command: Callable[..., Ran], people: Path, weights: Path, tmp_path: Path
) -> None:
    names = [f"people/{path.parent.name}/{path.name}" for path in images_in(people)]
    lines = [f"{names[0]},{names[1]},1", f"{names[0]},people/nobody/1.png,0", f"nowhere.png,{names[9]},0"]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("\n".join(["image1_path,image2_path,label", *lines]) + "\n")
    words = ["eval", "--weights", weights, "--pairs", pairs, "--out", tmp_path / "out"]
    for data in ([], ["--data", people]):
        fault = command(*words, *data).fault
        assert "nobody/1.png" in fault
        assert "nowhere.png" in fault
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_a_pair_whose_image_is_bad_is_an_error_too(
    command: Callable[..., Ran], people: Path, weights: Path, tmp_path: Path
) -> None:
    images = images_in(people)
    images[1].write_bytes(b"")
    names = [f"people/{path.parent.name}/{path.name}" for path in images]
    pairs = tmp_path / "pairs.csv"
    pairs.write_text(f"path_a,path_b,same\n{names[0]},{names[1]},1\n{names[0]},{names[9]},0\n")
    fault = command("eval", "--weights", weights, "--pairs", pairs, "--out", tmp_path / "out").fault
    assert "1 of 3 images that the pairs name cannot be read" in fault
    assert images[1].name in fault
