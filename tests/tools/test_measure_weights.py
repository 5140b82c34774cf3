"""Weights that are shipped: half the size, no paths of the machine, and the hashes of their training images."""

from __future__ import annotations

from pathlib import Path

import measure_weights
import numpy as np
import pytest
import torch
from measure_weights import keep_answers, ship
from untrained_weights import own_weights, untrained

from facemetric import load_embedder
from facemetric.data.index import read_index
from facemetric.errors import DataError
from facemetric.evaluation.answers import stored_answers
from facemetric.evaluation.audit.seen import (
    FILE,
    keep_training_images,
    read_training_images,
    training_images_seen,
)
from facemetric.model.weights.folder import MODEL, amend_config, find_weights, read_config

__all__ = ["own_weights", "untrained"]


@pytest.fixture
def trained(own_weights: Path, faces: Path) -> Path:
    """Weights with the options of a training, and hashes of half the drawn faces."""
    options = {"data": ["faces=/home/somebody/faces112.tar"], "lr": 0.1}
    amend_config(own_weights, provenance={"options": options}, metrics={"val_auc": 0.9})
    keep_training_images(own_weights, read_index([str(faces)]).select(np.arange(48)))
    return own_weights


def test_shipped_weights_know_their_training_images(trained: Path, faces: Path, tmp_path: Path) -> None:
    target = tmp_path / "shipped" / "name"
    ship(trained, target)
    before, after = read_training_images(trained), read_training_images(target)
    assert before is not None
    assert after is not None
    assert np.array_equal(before.hashes, after.hashes)
    assert np.array_equal(before.medians, after.medians)
    assert before.images == after.images == 48
    seen = training_images_seen(target, read_index([str(faces)]))
    assert seen is not None
    assert (seen.found, seen.looked_at) == (48, 96)


def test_shipped_weights_are_half_the_size_and_name_no_folders(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "name"
    ship(trained, target)
    assert (target / MODEL).stat().st_size < 0.6 * (trained / MODEL).stat().st_size
    ours = read_config(target)["facemetric"]
    assert ours["provenance"]["options"] == {"data": ["faces=faces112.tar"], "lr": 0.1}
    assert ours["metrics"] == {"val_auc": 0.9}
    image = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        one, other = (load_embedder(folder)(image) for folder in (trained, target))
    assert torch.nn.functional.cosine_similarity(one, other).min() > 0.999


def test_hashes_of_weights_that_were_shipped_before_do_not_stay(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "name"
    ship(trained, target)
    (trained / FILE).unlink()
    ship(trained, target)
    assert read_training_images(target) is None
    assert not (target / FILE).exists()


def test_shipped_weights_expect_faces_and_hold_what_verify_answers_by(
    trained: Path, faces: Path, tmp_path: Path
) -> None:
    target, index = tmp_path / "name", read_index([str(faces)])
    ship(trained, target)
    embedder = load_embedder(target)
    assert embedder.pictures == "faces"
    keep_answers(target, embedder, index)
    first = read_config(target)["facemetric"]
    assert first["thresholds"]["0.1"]["data_fingerprint"] == index.fingerprint
    answers = stored_answers(target)
    assert answers is not None
    assert answers.data_fingerprint == index.fingerprint
    assert [each.wanted_frr for each in answers.lower] == [0.05, 0.01]
    # Thresholds of these images stay, with the mirror image as they were chosen.
    kept = {"0.1": first["thresholds"]["0.1"] | {"flip": True, "chosen_on": "kept"}}
    amend_config(target, thresholds=kept)
    keep_answers(target, embedder, index)
    assert read_config(target)["facemetric"]["thresholds"] == kept
    again = stored_answers(target)
    assert again is not None
    assert again.flip
    assert again.lower != answers.lower


def test_the_speed_measured_alone_leaves_the_other_figures(
    own_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_config(find_weights("faces-96"))["facemetric"]["metrics"]
    assert before["flip"]
    amend_config(own_weights, metrics=before)
    monkeypatch.setattr(measure_weights, "images_per_second", lambda embedder, flip: 5.0 if flip else 10.0)
    monkeypatch.setattr("sys.argv", ["measure_weights.py", str(own_weights), "--data", "data", "--speed"])
    measure_weights.main()
    after = read_config(own_weights)["facemetric"]["metrics"]
    assert after == before | {"images_per_second": 10.0, "images_per_second_flip": 5.0}


def test_a_card_outlives_a_measurement_that_fails(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "name"
    target.mkdir()
    (target / "README.md").write_text("a card")
    monkeypatch.setattr(measure_weights, "images_per_second", lambda embedder, flip: 1.0)
    options = ["measure_weights.py", str(trained), "--data", str(tmp_path / "none"), "--ship", str(target)]
    monkeypatch.setattr("sys.argv", options)
    with pytest.raises(DataError):
        measure_weights.main()
    assert (target / "README.md").read_text() == "a card"
    assert (target / MODEL).is_file()


def test_a_card_says_where_impostors_are_too_few() -> None:
    figures = dict(read_config(find_weights("faces-96"))["facemetric"]["metrics"])
    at = [f"{figures[f'val_tar_at_far_{far}']:.3f}" for far in ("0.01", "0.001", "0.0001")]
    eer, whole = f"{figures['val_eer']:.3f}", measure_weights.card_table(figures)
    assert f"read the interval) | {figures['lfw_tar_at_far_0.001']:.3f} [" in whole
    assert f"| {', '.join(at)}; {eer} |" in whole
    for name in ("lfw_tar_at_far_0.001", "val_tar_at_far_0.0001"):
        del figures[name]
    few = measure_weights.card_table(figures)
    assert "read the interval) | too few impostors |" in few
    assert f"| {at[0]}, {at[1]}, too few impostors; {eer} |" in few
