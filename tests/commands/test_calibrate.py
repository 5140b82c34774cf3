"""`facemetric calibrate`: a threshold chosen and kept."""

from __future__ import annotations

import json
import shlex
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from facemetric import Verifier, calibrate, cli, load_embedder, pretrain, show_progress
from facemetric.data.index import read_index
from facemetric.errors import ConfigError, DataError, WeightsError
from facemetric.evaluation.audit.seen import keep_training_images
from facemetric.evaluation.embed import embed_index
from facemetric.evaluation.table import EmbeddingTable
from facemetric.evaluation.thresholds import choose_thresholds

FAST: dict[str, Any] = {"workers": 0, "device": "cpu"}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def test_the_threshold_is_that_of_the_embeddings_and_goes_into_the_weights(
    own_weights: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = config_of(own_weights)
    found = calibrate(str(faces), weights=own_weights, far=[0.1, 0.01], out=tmp_path / "out", **FAST)
    table = EmbeddingTable.load(tmp_path / "out" / "embeddings.npz")
    assert len(table) == 96
    assert found.thresholds == choose_thresholds(table.embeddings, table.identities, (0.1, 0.01))
    after = config_of(own_weights)
    kept = after["facemetric"].pop("thresholds")
    answers = after["facemetric"].pop("answers")
    assert answers["data_fingerprint"] == kept["0.1"]["data_fingerprint"]
    assert list(answers["different_below"]) == ["0.05", "0.01"]
    lower = answers["different_below"]["0.01"]["threshold"]
    assert f"FRR 0.01: different people below a cosine of {lower:.4f}, with FRR " in found.text()
    assert "no probability: it takes 20 people" in found.text()  # here are 16
    assert after == before
    load_embedder(own_weights)
    assert list(kept) == ["0.1", "0.01"]
    assert kept["0.01"]["threshold"] == found.thresholds[1].threshold.value
    assert kept["0.01"]["flip"] is False
    assert kept["0.01"]["data_fingerprint"] == read_index(faces).fingerprint
    assert kept["0.01"]["image_size"] == [32, 32]
    assert capsys.readouterr().out == ""
    message = found.text()
    assert f"FAR 0.01: accept a cosine of {found.thresholds[1].threshold.value:.4f} [" in message
    assert "chosen on 96 images of 16 people: faces0, which the weights do not name" in message
    assert found.config == own_weights / "config.json"


def test_only_the_listed_identities(own_weights: Path, faces: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in faces.iterdir())[:5]
    (tmp_path / "some.txt").write_text("\n".join(names))
    options = {"weights": own_weights, "identities": tmp_path / "some.txt"}
    found = calibrate(str(faces), far=0.1, out=tmp_path / "out", **options, **FAST)
    assert (found.thresholds[0].identities, found.thresholds[0].images) == (5, 30)
    (tmp_path / "one.csv").write_text(f"{names[0]},{names[1]}\nnobody,{names[2]}\n")
    merged = {"merge": tmp_path / "one.csv", "out": tmp_path / "merged"}
    found = calibrate(str(faces), far=0.1, **merged, **options, **FAST)
    assert (found.thresholds[0].identities, found.thresholds[0].images) == (4, 30)
    (tmp_path / "some.txt").write_text("nobody\n")
    with pytest.raises(DataError, match="1 listed identity not in the data"):
        calibrate(str(faces), far=0.1, out=tmp_path / "none", **options, **FAST)


def test_a_merge_says_what_it_did_and_whom_it_did_not_find(
    own_weights: Path, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(path.name for path in faces.iterdir())
    pairs = [*pairwise(names[:6]), ("nobody", names[8])]
    show_progress()
    (tmp_path / "one.csv").write_text("".join(f"{a},{b}\n" for a, b in pairs))
    calibrate(
        str(faces), weights=own_weights, far=0.1, merge=tmp_path / "one.csv", out=tmp_path / "out", **FAST
    )
    show_progress(False)
    said = capsys.readouterr().out
    assert f"merged 5 identities into others, at most 6 into one ({names[0]!r}; only 33% of the pairs" in said
    assert "1 name of" in said
    assert "first 'nobody'" in said


def test_faults_of_the_user(own_weights: Path, faces: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"weights": own_weights, "out": tmp_path / "out"} | FAST
    with pytest.raises(DataError, match="FAR 1e-06 needs 1,000,000 impostor pairs, these images have 4,320"):
        calibrate(str(faces), far=1e-6, **options)
    with pytest.raises(ConfigError, match=r"far is 2\.0; it is a share above 0"):
        calibrate(str(faces), far=[0.1, 2.0], **options)
    with pytest.raises(ConfigError, match="no FAR was given"):
        calibrate(str(faces), far=(), **options)
    with pytest.raises(ConfigError, match="no DATA was given"):
        calibrate(**options)
    assert "thresholds" not in config_of(own_weights)["facemetric"]
    shutil.copytree(faces, tmp_path / "faces")
    bad = next((tmp_path / "faces").rglob("*.png"), None) or next((tmp_path / "faces").rglob("*.jpg"))
    bad.write_bytes(b"no picture")
    with pytest.raises(DataError, match="1 of 96 images are bad"):
        calibrate(str(tmp_path / "faces"), far=0.1, **options)
    calibrate(str(tmp_path / "faces"), far=0.1, max_bad=0.1, **options)
    assert bad.name in (tmp_path / "out" / "bad_images.csv").read_text()


@pytest.fixture(scope="module")
def trained(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage one of one epoch; nobody changes it."""
    out = tmp_path_factory.mktemp("trained") / "run"
    options: dict[str, Any] = {"epochs": 1, "batch_size": 16, "val_fraction": 0.4} | FAST
    pretrain(str(faces), arch="test_resnet", image_size=32, out=out, **options)
    return out


def test_a_stage_leaves_thresholds_of_its_validation_identities(trained: Path, faces: Path) -> None:
    config = config_of(trained / "best")["facemetric"]
    assert list(config["thresholds"]) == ["0.1", "0.01"]  # 6 people with 6 images: 540 impostor pairs
    record = config["thresholds"]["0.1"]
    assert record["chosen_on"] == "the training's validation identities, which also chose its best epoch"
    assert (record["identities"], record["images"]) == (6, 36)
    val = [line for line in (trained / "log.jsonl").read_text().splitlines() if '"validation"' in line]
    assert record["tar"] >= 0
    assert val
    # The same threshold as from the weights' own embeddings of these people.
    index = read_index(faces)
    from facemetric.training.split import split_fraction

    held = split_fraction(index, 0.4, 0)[1]
    table = embed_index(load_embedder(trained), held).table
    assert record["data_fingerprint"] == held.fingerprint
    again = choose_thresholds(table.embeddings, table.identities, (0.1,))[0]
    assert record["threshold"] == pytest.approx(again.threshold.value, abs=1e-5)


def test_training_data_are_called_so(trained: Path, faces: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "best", tmp_path / "w")

    def chosen_on(data: Path | str, **options: Any) -> str:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return calibrate(
            str(data), weights=tmp_path / "w", far=0.2, out=tmp_path / "out", **options, **FAST
        ).chosen_on

    said = "the data that the weights were trained on: on new people expect a higher FAR and a lower TAR"
    assert chosen_on(faces) == said
    shutil.copytree(faces, tmp_path / "copy")
    assert chosen_on(tmp_path / "copy") == said  # by its fingerprint
    people = sorted((tmp_path / "copy").iterdir())
    shutil.rmtree(people[0])
    assert "do not name as their training data" in chosen_on(tmp_path / "copy")
    names = tmp_path / "names.txt"
    names.write_text("\n".join(path.name for path in people[1:9]))
    assert "see that they were not" in chosen_on(faces, identities=names)
    config = config_of(tmp_path / "w")
    config["facemetric"]["provenance"]["options"]["val_identities"] = str(names)
    (tmp_path / "w" / "config.json").write_text(json.dumps(config))
    assert "validation identities" in chosen_on(faces, identities=names)
    # Stage two's weights name stage one's, which were trained on the folder.
    config["facemetric"]["provenance"] = {"options": {"weights": str(trained), "data": ["elsewhere"]}}
    (tmp_path / "w" / "config.json").write_text(json.dumps(config))
    assert chosen_on(faces) == said
    # A teacher taught these without their names, all of them, whatever list the labelled ones were split by.
    options = {"data": ["elsewhere"], "unlabelled": [f"more={faces}"], "val_identities": str(names)}
    config["facemetric"]["provenance"] = {"options": options}
    (tmp_path / "w" / "config.json").write_text(json.dumps(config))
    assert chosen_on(faces) == said
    assert "see that they were not" in chosen_on(faces, identities=names)


def test_shipped_weights_are_copied_and_stay_as_they_are(
    own_weights: Path,
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(own_weights, tmp_path / "shipped" / "faces-9")
    monkeypatch.setattr("facemetric.model.weights.folder.SHIPPED", (tmp_path / "shipped",))
    before = (tmp_path / "shipped" / "faces-9" / "config.json").read_bytes()
    options: dict[str, Any] = {"weights": "faces-9", "out": tmp_path / "out"} | FAST
    found = calibrate(str(faces), far=(0.5, 0.1), **options)  # the nearer to verify's own is named
    assert (tmp_path / "shipped" / "faces-9" / "config.json").read_bytes() == before
    assert found.weights == tmp_path / "out" / "faces-9"
    *_, command = found.text().splitlines()
    assert command == f"use: facemetric verify A.jpg B.jpg --weights {tmp_path / 'out' / 'faces-9'} --far 0.1"
    picture = str(next(path for path in faces.rglob("*") if path.is_file()))
    words = shlex.split(command.replace("A.jpg", picture).replace("B.jpg", picture))
    with pytest.raises(SystemExit, match="0"):
        cli.main([*words[2:], "--device", "cpu"])
    assert "at FAR 0.1 [" in capsys.readouterr().out
    with pytest.raises(WeightsError, match=r"faces-9 holds no threshold for FAR 0\.1; make one with"):
        Verifier("faces-9", far=0.1, device="cpu")
    calibrate(str(faces), far=0.01, **options)
    assert list(config_of(found.weights)["facemetric"]["thresholds"]) == ["0.5", "0.1", "0.01"]
    assert load_embedder(found.weights).embedding_size == load_embedder("faces-9").embedding_size
    image = str(next(path for path in faces.rglob("*") if path.is_file()))
    assert Verifier(found.weights, far=0.01, device="cpu")(image, image).same
    config = config_of(found.weights)
    (found.weights / "config.json").write_text(json.dumps(config | {"sha256": "other"}))
    with pytest.raises(WeightsError, match=r"holds other weights than .*; name another out="):
        calibrate(str(faces), far=0.1, **options)


@pytest.mark.parametrize(
    ("inside", "name"),
    [("", "shipped/faces-9"), ("shipped", "faces-9"), ("shipped/faces-9", "."), ("", "link"), ("", "path")],
)
def test_shipped_weights_stay_as_they_are_by_any_path(
    inside: str, name: str, own_weights: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "shipped" / "faces-9"
    shutil.copytree(own_weights, shipped)
    (tmp_path / "link").symlink_to(shipped)
    monkeypatch.setattr("facemetric.model.weights.folder.SHIPPED", (tmp_path / "shipped",))
    monkeypatch.chdir(tmp_path / inside)
    before = (shipped / "config.json").read_bytes()
    weights = str(shipped) if name == "path" else name
    found = calibrate(str(faces), weights=weights, far=0.1, out=tmp_path / "out", **FAST)
    assert (shipped / "config.json").read_bytes() == before
    assert found.weights == tmp_path / "out" / "faces-9"
    assert list(config_of(found.weights)["facemetric"]["thresholds"]) == ["0.1"]
    with pytest.raises(ConfigError, match="holds the shipped weights themselves; name another"):
        calibrate(str(faces), weights=weights, far=0.1, out=tmp_path / "shipped", **FAST)
    assert (shipped / "config.json").read_bytes() == before


def test_a_threshold_cannot_be_taken_over_by_other_weights(
    own_weights: Path, faces: Path, tmp_path: Path
) -> None:
    """Thresholds lie in the config.json that names the weights' hash."""
    shutil.copytree(own_weights, tmp_path / "other")
    model = tmp_path / "other" / "model.safetensors"
    content = bytearray(model.read_bytes())
    content[-1] ^= 1
    model.write_bytes(content)
    calibrate(str(faces), weights=own_weights, far=0.1, out=tmp_path / "out", **FAST)
    shutil.copy(own_weights / "config.json", tmp_path / "other" / "config.json")
    with pytest.raises(WeightsError, match=r"is not the file that config\.json describes"):
        Verifier(tmp_path / "other", far=0.1, device="cpu")


def test_thresholds_of_training_images_come_with_a_warning(
    own_weights: Path, faces: Path, tmp_path: Path
) -> None:
    keep_training_images(own_weights, read_index([str(faces)]).select(np.arange(48)))
    found = calibrate(str(faces), weights=own_weights, far=0.1, out=tmp_path / "out", **FAST)
    warning = f"warning: 48 of 96 images looked at (50% of the data) are training images of {own_weights}, or copies"
    assert found.text().startswith(warning)
    assert found.notes[0].startswith(warning)
    kept = config_of(own_weights)["facemetric"]["thresholds"]["0.1"]
    told = "; but 48 of 96 images looked at are training images of theirs, or copies"
    assert kept["chosen_on"].endswith(told)
    for name in sorted(path.name for path in faces.iterdir())[8:]:
        shutil.copytree(faces / name, tmp_path / "new" / name)
    unseen = calibrate(str(tmp_path / "new"), weights=own_weights, far=0.1, out=tmp_path / "unseen", **FAST)
    assert unseen.notes == ()
    assert "warning" not in unseen.text()
    assert "images looked at" not in unseen.chosen_on
