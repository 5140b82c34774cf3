"""`facemetric verify` and `Verifier`: a threshold used."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photographs import HOPPER, hopper, pair
from PIL import Image

from facemetric import Verifier, calibrate, cli, verify
from facemetric.commands.verify import NO_FACE_CHECK, why_no_face
from facemetric.errors import ConfigError, DataError, WeightsError
from facemetric.evaluation.answers import Probability
from facemetric.evaluation.table import EmbeddingTable
from facemetric.faces.finder import FaceFinder
from facemetric.model.weights.folder import amend_config

FAST: dict[str, Any] = {"workers": 0, "device": "cpu"}


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


@pytest.fixture
def calibrated(own_weights: Path, faces: Path, tmp_path: Path) -> Path:
    calibrate(str(faces), weights=own_weights, far=[0.2, 0.01], out=tmp_path / "out", **FAST)
    return own_weights


def images_in(faces: Path) -> list[Path]:
    return sorted(path for path in faces.rglob("*") if path.is_file())


def test_every_pair_gets_the_verdict_of_its_score(calibrated: Path, faces: Path, tmp_path: Path) -> None:
    table = EmbeddingTable.load(tmp_path / "out" / "embeddings.npz")
    images = images_in(faces)
    seen = set()
    for other in (*images[1:12], images[-1]):
        found = verify(images[0], other, weights=calibrated, far=0.2, device="cpu")
        row_a, row_b = (table.find(f"{path.parent.name}/{path.name}") for path in (images[0], other))
        assert row_a is not None
        assert row_b is not None
        cosine = float(table.embeddings[row_a] @ table.embeddings[row_b])
        assert found.score == pytest.approx(cosine, abs=1e-4)
        assert found.same is (found.score >= found.stored.threshold.threshold.value)
        assert found.threshold == found.stored.threshold.threshold.value
        assert found.far == 0.2
        assert found.notes == (NO_FACE_CHECK,)
        seen.add(found.same)
    assert seen == {True, False}


def test_what_is_printed_and_the_json(
    calibrated: Path, faces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = images_in(faces)[:2]
    found = verify(one, one, weights=calibrated, far=0.01, device="cpu")
    assert capsys.readouterr().out == ""
    options = ["--weights", str(calibrated), "--far", "0.01", "--device", "cpu"]
    with pytest.raises(SystemExit):
        cli.main(["verify", str(one), str(one), *options])
    said = capsys.readouterr().out
    assert said == found.text() + "\n"
    threshold = found.stored.threshold
    assert said.startswith(f"same person: cosine 1.0000 >= threshold {threshold.threshold.value:.4f} [")
    assert f"at FAR 0.01 [{threshold.far.low:.2g}, {threshold.far.high:.2g}]" in said
    assert "chosen on 96 images of 16 people" in said
    found = verify(one, two, weights=calibrated, far=0.01, device="cpu")
    with pytest.raises(SystemExit):
        cli.main(["verify", str(one), str(two), *options, "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record == found.to_dict()
    assert record["same"] is found.same
    assert record["threshold"] == config_of(calibrated)["facemetric"]["thresholds"]["0.01"]["threshold"]


def test_the_mirror_image_counts_where_the_threshold_says_so(
    own_weights: Path, faces: Path, tmp_path: Path
) -> None:
    one, two = images_in(faces)[0], images_in(faces)[-1]
    scores = []
    for flip in (False, True):
        out = tmp_path / f"flip-{flip}"
        calibrate(str(faces), weights=own_weights, far=0.1, flip=flip, out=out, **FAST)
        found = verify(one, two, weights=own_weights, far=0.1, device="cpu")
        scores.append(found.score)
        table = EmbeddingTable.load(out / "embeddings.npz")
        assert found.score == pytest.approx(float(table.embeddings[0] @ table.embeddings[-1]), abs=1e-4)
        assert found.stored.flip is flip
    assert scores[0] != pytest.approx(scores[1], abs=1e-5)


def test_an_image_of_another_size_gets_a_note(calibrated: Path, faces: Path, tmp_path: Path) -> None:
    image = Image.open(images_in(faces)[0]).convert("RGB")
    notes = {}
    for name, size in (("same", (32, 32)), ("near", (40, 40)), ("large", (320, 320)), ("wide", (40, 32))):
        image.resize(size).save(tmp_path / f"{name}.png")
        found = verify(
            tmp_path / "same.png", tmp_path / f"{name}.png", weights=calibrated, far=0.2, device="cpu"
        )
        notes[name] = found.notes[1:]
        assert ("cosine" in found.text().splitlines()[0]) is (
            not notes[name]
        )  # a note comes above the answer
    assert notes["same"] == notes["near"] == ()
    assert "large.png is 320 x 320 pixels, the threshold was chosen on images of 32 x 32" in notes["large"][0]
    assert len(notes["wide"]) == 1


def test_faults_of_verify(calibrated: Path, faces: Path, tmp_path: Path) -> None:
    one = images_in(faces)[0]
    (tmp_path / "no.jpg").write_bytes(b"no picture")
    options: dict[str, Any] = {"weights": calibrated, "far": 0.2, "device": "cpu"}
    with pytest.raises(DataError, match=r"no\.jpg cannot be read: no image of a known kind; give an image"):
        verify(one, tmp_path / "no.jpg", **options)
    with pytest.raises(DataError, match=r"nowhere\.jpg: no such file; give an image"):
        verify(tmp_path / "nowhere.jpg", one, **options)
    with pytest.raises(ConfigError, match="verify needs two images"):
        verify(one, **options)
    with pytest.raises(
        WeightsError, match=r"has those for FAR 0\.2, 0\.01: choose one of these, or make one"
    ):
        verify(one, one, weights=calibrated, device="cpu")


def test_scores_do_not_depend_on_the_order(calibrated: Path, faces: Path) -> None:
    one, two = images_in(faces)[3], images_in(faces)[40]
    scores = [
        verify(*pair, weights=calibrated, far=0.2, device="cpu").score for pair in ((one, two), (two, one))
    ]
    np.testing.assert_allclose(*scores, atol=1e-6)


def test_the_weights_are_looked_up_once(calibrated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from facemetric.model.weights import folder as weights_folder
    from facemetric.model.weights import opened
    from facemetric.model.weights import save_load as weights

    found: list[object] = []

    def counted(name: str | Path, *, fetch: bool = True) -> Path:
        found.append(name)
        return weights_folder.find_weights(name, fetch=fetch)

    for module in (opened, weights):
        monkeypatch.setattr(module, "find_weights", counted)
    Verifier(calibrated, far=0.2, device="cpu")
    assert found == [calibrated]


def test_a_verifier_takes_pictures_in_every_form_and_loads_once(
    calibrated: Path, faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = Verifier(calibrated, far=0.2, device="cpu")
    monkeypatch.setattr("facemetric.model.weights.opened.Weights.load", None)  # not called any more
    one, two = images_in(faces)[3], images_in(faces)[40]
    image = Image.open(two).convert("RGB")
    expected = verifier(str(one), str(two))
    array = np.asarray(image)
    for other in (two, image, array, torch.from_numpy(array.copy()).permute(2, 0, 1)):
        assert verifier(one, other).score == pytest.approx(expected.score, abs=1e-6)
    assert repr(expected) == (
        f"Verdict(same={expected.same}, score={expected.score!r}, threshold={verifier.threshold!r}, far=0.2)"
    )
    assert "\n" not in repr(verifier)
    with pytest.raises(DataError, match=r"the second picture is a float32 array of shape"):
        verifier(one, array.astype(np.float32) / 255)  # type: ignore[arg-type]


def test_pictures_of_one_colour_are_told(calibrated: Path, faces: Path, tmp_path: Path) -> None:
    for name, colour in (("sky", (90, 140, 220)), ("wall", (200, 200, 190))):
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{name}.png")
    found = verify(tmp_path / "sky.png", tmp_path / "wall.png", weights=calibrated, far=0.2, device="cpu")
    assert found.notes[0] == NO_FACE_CHECK
    assert [note.split("/")[-1] for note in found.notes[1:]] == [
        f"{name}.png is nearly of one colour: it shows no face, and the answer means nothing"
        for name in ("sky", "wall")
    ]
    assert found.faceless
    assert found.text().startswith(f"note: {NO_FACE_CHECK}\nnote: ")
    assert "cosine" in found.text().splitlines()[3]
    face = images_in(faces)[0]
    one = verify(tmp_path / "sky.png", face, weights=calibrated, far=0.2, device="cpu")
    assert not one.faceless
    lines = one.text().splitlines()
    assert "it shows no face" in lines[0]
    assert "cosine" in lines[1]
    assert lines[-1] == f"note: {NO_FACE_CHECK}"


def test_noise_is_told(calibrated: Path, faces: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / f"{name}.png")
    found = verify(tmp_path / "a.png", tmp_path / "b.png", weights=calibrated, far=0.2, device="cpu")
    assert found.faceless
    assert found.notes[1].endswith("a.png is noise: it shows no face, and the answer means nothing")
    assert found.text().startswith("note: ")
    assert not [path.name for path in images_in(faces) if why_no_face(Image.open(path))]
    assert why_no_face(Image.open(HOPPER)) == ""


def test_the_remedy_names_the_weights_as_the_user_does(
    own_weights: Path, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(own_weights, tmp_path / "shipped" / "faces-9")
    monkeypatch.setattr("facemetric.model.weights.folder.SHIPPED", (tmp_path / "shipped",))
    one = images_in(faces)[0]
    wanted = r"^faces-9 holds no threshold for FAR 0\.2; make one with `facemetric calibrate DATA --weights faces-9 "
    with pytest.raises(WeightsError, match=wanted):
        verify(one, one, weights="faces-9", far=0.2, device="cpu")


# Photographs, three answers


@pytest.fixture
def of_faces(calibrated: Path) -> Path:
    """Weights that expect faces; they learned nothing."""
    amend_config(calibrated, pictures="faces")
    return calibrated


def test_the_faces_of_two_photographs_are_compared(of_faces: Path, tmp_path: Path) -> None:
    hopper().rotate(15, expand=True).save(tmp_path / "turned.png")
    verifier = Verifier(of_faces, far=0.2, device="cpu")
    found = verifier(HOPPER, tmp_path / "turned.png")
    crops = [FaceFinder().one(picture).crop for picture in (HOPPER, tmp_path / "turned.png")]  # type: ignore[union-attr]
    emb = verifier.embedder.embed(crops, faces="off")
    assert found.score == pytest.approx(float(emb[0] @ emb[1]), abs=1e-5)
    whole = verifier.embedder.embed([HOPPER, tmp_path / "turned.png"], faces="off")
    assert abs(found.score - float(whole[0] @ whole[1])) > 1e-4
    assert found.notes == ()
    assert [face.was_crop for face in found.faces] == [False, False]
    assert found.faces[0].box[0] == pytest.approx(173, abs=5)
    assert 0.5 < found.faces[0].quality <= 1
    crops[0].save(tmp_path / "crop.png")
    again = verifier(tmp_path / "crop.png", tmp_path / "turned.png")
    assert [face.was_crop for face in again.faces] == [True, False]
    assert again.score == pytest.approx(found.score, abs=1e-5)


def test_a_picture_without_a_face_is_no_answer(
    of_faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, colour in (("sky", (90, 140, 220)), ("grass", (60, 160, 50))):
        Image.new("RGB", (200, 150), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "film.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(99))
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.7 ...")
    options = ["--weights", str(of_faces), "--far", "0.2", "--device", "cpu"]
    cases = {
        ("sky.png", "grass.png"): "sky.png: no face found; verify compares faces",
        (str(HOPPER), "grass.png"): "grass.png: no face found; verify compares faces",
        (str(HOPPER), "film.mp4"): "film.mp4 cannot be read: a video; save a frame of it as a picture",
        (str(HOPPER), "paper.pdf"): "paper.pdf cannot be read: a PDF document; save its page as a picture",
    }
    for names, message in cases.items():
        with pytest.raises(SystemExit) as end:
            cli.main(["verify", *(str(tmp_path / name) for name in names), *options])
        shown = capsys.readouterr()
        assert end.value.code == 2
        assert shown.out == ""
        assert message in shown.err
        assert shown.err.count("\n") == 1


def test_of_several_faces_the_one_taken_is_said(of_faces: Path) -> None:
    found = Verifier(of_faces, far=0.2, device="cpu")(HOPPER, pair())
    assert [face.faces for face in found.faces] == [1, 2]
    (note,) = found.notes
    assert note.startswith("the second picture shows 2 faces: compared is the most prominent, ")
    left, top, right, bottom = (round(edge) for edge in found.faces[1].box)
    assert note.endswith(
        f"{right - left} x {bottom - top} pixels at {left} from the left and {top} from the top"
    )


def test_a_face_of_low_quality_is_refused_where_asked(of_faces: Path) -> None:
    with pytest.raises(DataError, match=r"the face is of quality 0\.\d\d, below the 1 asked for"):
        verify(HOPPER, HOPPER, weights=of_faces, far=0.2, min_quality=1.0, device="cpu")


def test_off_takes_pictures_as_they_are(of_faces: Path, faces: Path) -> None:
    one, two = images_in(faces)[:2]  # drawn: no detector takes them for faces
    assert verify(one, two, weights=of_faces, far=0.2, faces="off", device="cpu").notes == (NO_FACE_CHECK,)
    with pytest.raises(DataError, match="no face found"):
        verify(one, two, weights=of_faces, far=0.2, device="cpu")
    with pytest.raises(DataError, match="no face found in the crop"):
        verify(one, two, weights=of_faces, far=0.2, faces="crops", device="cpu")


def test_between_the_two_thresholds_it_cannot_tell(calibrated: Path, faces: Path) -> None:
    verifier = Verifier(calibrated, far=0.01, frr=0.01, device="cpu")
    lower = config_of(calibrated)["facemetric"]["answers"]["different_below"]["0.01"]
    assert lower["threshold"] < verifier.threshold
    images, answers = images_in(faces), set()
    emb = verifier.embedder.embed(images)
    score = emb[0] @ emb.T
    places = [int(np.argmin(score)), int(np.argmax(score[1:])) + 1]
    places += np.flatnonzero((score > lower["threshold"]) & (score < verifier.threshold))[:1].tolist()
    for place in places:
        found = verifier(images[0], images[place])
        expected = "same person" if found.score >= verifier.threshold else "different people"
        if lower["threshold"] <= found.score < verifier.threshold:
            expected = "cannot tell"
        assert found.answer == found.to_dict()["answer"] == expected
        assert found.text().startswith(expected + ": cosine ")
        assert f"this share of true pairs is below {lower['threshold']:.4f}" in found.text()
        answers.add(found.answer)
    assert "cannot tell" in answers
    assert len(answers) >= 2


def test_what_the_threshold_means_is_said_in_plain_words(calibrated: Path, faces: Path) -> None:
    one = images_in(faces)[0]
    found = verify(one, one, weights=calibrated, far=0.01, device="cpu")
    missed = 1 - found.stored.threshold.tar.value
    assert f"at this strictness {missed:.0%} [" in found.text()
    assert "of true pairs are missed" in found.text()
    assert found.probability is None  # 16 people are too few
    known = Probability(20.0, -10.0, 0.02, ())
    certain = replace(found, probability=float(known.at(1.0)), error=0.02)
    assert "probability above 0.999 that it is one person" in certain.text()
    doubtful = replace(found, probability=float(known.at(0.5)), error=0.02)
    assert "probability 0.500 that it is one person" in doubtful.text()
    assert doubtful.to_dict()["probability"] == pytest.approx(0.5)


def test_answers_of_other_people_than_the_threshold_are_not_used(calibrated: Path, faces: Path) -> None:
    answers = config_of(calibrated)["facemetric"]["answers"]
    one = images_in(faces)[0]
    assert verify(one, one, weights=calibrated, far=0.01, device="cpu").lower is not None
    for other in ({"flip": True}, {"data_fingerprint": "others"}):
        amend_config(calibrated, answers=answers | other)
        assert verify(one, one, weights=calibrated, far=0.01, device="cpu").lower is None
