"""Stage one on drawn faces: same seed same numbers, identities apart, weights that open again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photographs import album
from PIL import Image
from safetensors.torch import load_file
from small_trainings import stop_in_step
from torch import Tensor

from facemetric import cli, evaluate, finetune, load_embedder, pretrain
from facemetric.config import PretrainConfig
from facemetric.config.build import read_toml
from facemetric.data.index import read_index
from facemetric.errors import ConfigError, DataError, TrainingError
from facemetric.evaluation.embed import embed_index
from facemetric.model import faster
from facemetric.model.heads import HEADS, MarginHead
from facemetric.training.run.folder import LOG, read_log
from facemetric.training.run.run import Run, Trained
from facemetric.training.split import read_split
from facemetric.training.tasks.classification import Classification
from facemetric.training.validation import open_set_figures


def weights_of(run: Trained) -> dict[str, torch.Tensor]:
    return load_file(run.weights / "model.safetensors")


def same_weights(one: Trained, other: Trained) -> bool:
    left, right = weights_of(one), weights_of(other)
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_the_run_folder_is_complete(stage_one: Trained) -> None:
    names = {path.name.split(".1")[0] for path in stage_one.run.iterdir()}
    assert {"config.toml", "log.jsonl", "checkpoint.pt", "best", "events.out.tfevents"} <= names
    config = json.loads((stage_one.weights / "config.json").read_text())["facemetric"]
    assert config["metrics"] == stage_one.metrics
    assert config["provenance"]["identities"] == 14
    assert len(config["provenance"]["data_fingerprint"]) >= 16
    assert {"val_eer", "val_auc", "val_knn_accuracy", "closed_set_accuracy"} <= set(stage_one.metrics)
    assert all(0 <= value <= 1 for value in stage_one.metrics.values())


def test_same_seed_same_numbers_for_any_number_of_workers(
    faces: Path, stage_one: Trained, small: dict[str, Any], tmp_path: Path
) -> None:
    again = pretrain(str(faces), **small | {"workers": 1}, out=tmp_path / "again")
    assert again.metrics == stage_one.metrics
    assert same_weights(again, stage_one)
    other = pretrain(str(faces), **small, seed=1, out=tmp_path / "other")
    assert not same_weights(other, stage_one)


def test_everything_random_follows_the_seed(faces: Path, small: dict[str, Any], tmp_path: Path) -> None:
    options = small | {
        "random_erasing": 0.5,
        "dropout": 0.2,
        "drop_path": 0.1,
        "blur": 0.3,
        "low_resolution": 0.3,
        "auto_augment": "rand-m5-mstd0.5",
        "val_fraction": 0.0,
        "closed_set_fraction": 0.0,
    }
    runs = [pretrain(str(faces), **options, out=tmp_path / name) for name in "ab"]
    assert same_weights(*runs)


def test_a_run_stopped_in_an_epoch_goes_on_with_the_same_bits(
    faces: Path, small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = small | {
        "epochs": 2,
        "ema": 0.9,
        "head": "arcface",
        "random_erasing": 0.5,
        "augment_on": "device",
    }
    whole = pretrain(str(faces), **options, out=tmp_path / "whole")
    count = stop_in_step(monkeypatch, Classification, 7)
    with pytest.raises(TrainingError, match="after step 2 of epoch 2"):
        pretrain(str(faces), **options, out=tmp_path / "parts")
    parts = pretrain(str(faces), **options, out=tmp_path / "parts", resume=True)
    assert count == [10]
    assert parts.metrics == whole.metrics
    assert same_weights(parts, whole)
    states = [torch.load(run.run / "checkpoint.pt", weights_only=True) for run in (whole, parts)]
    for name in states[0]["model"]:
        assert torch.equal(states[0]["model"][name], states[1]["model"][name])


def test_the_config_of_a_run_makes_it_again(stage_one: Trained, tmp_path: Path) -> None:
    before = stage_one.run  # the bits are compared of two runs made here, with one number of threads
    for name in ("one", "two"):
        out = tmp_path / name
        with pytest.raises(SystemExit, match="0"):
            cli.main(["pretrain", "--config", str(before / "config.toml"), "--out", str(out)])
        mine, theirs = (read_toml(run / "config.toml") for run in (before, out))
        assert mine | {"out": ""} == theirs | {"out": ""}
        before = out
    one, two = (Trained(tmp_path / name, tmp_path / name / "best", {}) for name in ("one", "two"))
    assert same_weights(one, two)


def test_best_weights_give_the_figures_they_say(stage_one: Trained, faces: Path, tmp_path: Path) -> None:
    embedder = load_embedder(stage_one.run)
    split = read_split(PretrainConfig((str(faces),)))
    assert split.val is not None
    table = embed_index(embedder, split.val).table
    figures = open_set_figures(table.embeddings, table.identities)
    for name, value in figures.items():
        assert stage_one.metrics[name] == pytest.approx(value, abs=1e-3)


def test_a_closed_set_validates_on_other_images_of_the_same_identities(
    faces: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    options = small | {"val_by": "images", "val_fraction": 0.25}
    split = read_split(PretrainConfig((str(faces),), **options))
    assert split.val is not None
    assert split.train.identities == read_index([str(faces)]).identities
    assert (len(split.train), len(split.val)) == (72, 24)
    names = [{part.name(i) for i in range(len(part))} for part in (split.train, split.val)]
    assert not names[0] & names[1]
    run = pretrain(str(faces), **options, out=tmp_path / "run")
    record = json.loads((run.weights / "config.json").read_text())["facemetric"]
    assert 0 <= run.metrics["closed_set_accuracy"] <= 1
    chosen = {kept["chosen_on"] for kept in record["thresholds"].values()}
    assert all("identities that the weights were trained on" in text for text in chosen)


def test_too_little_to_train_on(faces: Path, small: dict[str, Any], tmp_path: Path) -> None:
    names = read_index([str(faces)]).identities
    three = tmp_path / "three"
    for name in names[:3]:
        shutil.copytree(faces / name, three / name)
    with pytest.raises(DataError, match=r"3 identities cannot be split.*val_fraction=0"):
        pretrain(str(three), **small, out=tmp_path / "run")
    run = pretrain(str(three), **small, val_fraction=0.0, out=tmp_path / "run")
    assert run.weights.is_dir()
    for name in names[:3]:
        for image in sorted((three / name).iterdir())[1:]:
            image.unlink()
    (tmp_path / "val.txt").write_text(names[0])
    with pytest.raises(DataError, match=r"validation has 1 image of 1 identity; .*val_fraction=0"):
        pretrain(str(three), **small, val_identities=tmp_path / "val.txt", out=tmp_path / "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg': did you mean 'sgd'"),
        ({"scheduler": "cosin"}, "'cosin'.*: did you mean 'cosine'"),
        ({"scheduler": "plateau"}, "scheduler='plateau' waits for the validation.*such as cosine"),
        ({"head": "arcfase"}, "unknown head 'arcfase': did you mean 'arcface'"),
        ({"arch": "lcnet_036"}, "timm has no architecture 'lcnet_036': did you mean 'lcnet_035'"),
        ({"auto_augment": "rnd"}, "auto_augment is 'rnd'"),
        ({"batch_size": 1}, "batch_size is 1; it must be at least 2"),
        ({"ema": 1.5}, "ema is 1.5; it is a share"),
        ({"start_size": 64}, "start_size is 64, above the full size of 32"),
        ({"validate_every": 0}, "validate_every is 0; it must be at least 1"),
        ({"max_per_identity": -1}, "max_per_identity is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"device": "gpu"}, "unknown device 'gpu': did you mean 'cpu'"),
    ],
)
def test_options_that_cannot_be_are_named(
    faces: Path, small: dict[str, Any], tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        pretrain(str(faces), **small | options, out=tmp_path / "run")
    # What failed leaves no run behind: the mended command works in the same folder.
    config = PretrainConfig((str(faces),), **small, out=tmp_path / "run")
    Run(config.out, config_toml="", resume=False).close()


def test_a_run_goes_on_with_the_pictures_it_began_with(faces: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"arch": "test_resnet", "image_size": 32, "epochs": 1, "workers": 0}
    run = pretrain(str(faces), **options, out=tmp_path / "run")
    with pytest.raises(ConfigError, match="the picture of this run changed since it began"):
        pretrain(str(faces), **options | {"epochs": 2, "image_size": 48}, out=run.run, resume=True)


def test_max_steps_ends_early_with_weights_and_the_rest_can_follow(
    faces: Path, small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = small | {"epochs": 2}
    whole = pretrain(str(faces), **options, out=tmp_path / "whole")
    capsys.readouterr()
    early = pretrain(str(faces), **options, max_steps=3, out=tmp_path / "early")
    assert "--max-steps: 3 of 10 steps are done; the rest would take about" in capsys.readouterr().out
    log = read_log(early.run / LOG)
    assert (log[-1]["event"], log[-1]["step"]) == ("stopped", 3)
    assert [line["step"] for line in log if line["event"] == "validation"] == [3]
    assert "val_auc" in early.metrics
    assert load_embedder(early.weights).preprocess.size == (32, 32)
    rest = pretrain(str(faces), **options, out=tmp_path / "early", resume=True)
    assert read_log(rest.run / LOG)[-1]["event"] == "finished"
    states = [torch.load(run.run / "checkpoint.pt", weights_only=True)["model"] for run in (whole, rest)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


class HalvedHead(MarginHead):
    """Half the cosine for the image's own identity."""

    def harder(self, cosine_B: Tensor, margin: float, emb_BD: Tensor | None) -> Tensor:
        """Half the cosine."""
        CALLS.append(len(cosine_B))
        return cosine_B / 2


CALLS: list[int] = []


def test_a_head_of_ones_own_trains_by_its_name(
    faces: Path, small: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is a class and a line in HEADS: nothing else knows the names of heads."""
    with pytest.raises(ConfigError, match="unknown head 'halved'"):
        pretrain(str(faces), **small, head="halved", out=tmp_path / "run")
    monkeypatch.setitem(HEADS, "halved", HalvedHead)
    run = pretrain(str(faces), **small, head="halved", max_steps=2, out=tmp_path / "run")
    assert CALLS == [16]  # in the second step: the margin grows from 0
    assert read_log(run.run / LOG)[-1]["step"] == 2
    with pytest.raises(ConfigError, match="unknown head 'halfed': did you mean 'halved'"):
        pretrain(str(faces), **small, head="halfed", out=tmp_path / "other")


def test_photographs_are_aligned_once_and_trained_on(
    small: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = album(tmp_path / "photos", people=3), tmp_path / "run"
    Image.new("RGB", (200, 200), (90, 140, 220)).save(photos / "person1" / "sky.png")
    options = small | {"val_fraction": 0.0, "closed_set_fraction": 0.0, "batch_size": 4, "align": True}
    run = pretrain(str(photos), **options, out=out)
    shown = capsys.readouterr().out
    assert f"6 faces cut from photographs, 1 picture without a face left out: {out / 'faces'}" in shown
    assert "training on 6 images of 3 identities" in shown
    assert load_embedder(run.weights).pictures == "faces"
    crops = {file: file.stat().st_mtime_ns for file in (out / "faces").glob("*.png")}
    assert len(crops) == 6
    pretrain(str(photos), **options | {"epochs": 2}, out=out, resume=True)
    assert "7 of 7 photographs are in " in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (out / "faces").glob("*.png")} == crops
    # Stage two and eval find them for themselves.
    two = finetune(
        str(photos), weights=out, out=tmp_path / "two", align=True, val_fraction=0.0, epochs=1,
        batch_size=6, images_per_identity=2, workers=0, device="cpu",
    )  # fmt: skip
    assert load_embedder(two.weights).pictures == "faces"
    quiet = {"report": False, "workers": 0, "device": "cpu"}
    found = evaluate(out, data=str(photos), align=True, out=tmp_path / "eval", **quiet)
    assert len(found.table) == 6
    direct = load_embedder(out).embed(photos / "person2" / "0.jpg")[0]
    row = found.table.find("person2/0.jpg")
    assert row is not None
    np.testing.assert_allclose(found.table.embeddings[row], direct, atol=1e-5)


def test_a_compiled_network_computes_no_activations_again(
    faces: Path, small: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="compile=True and checkpoint_activations=True do not go together"):
        pretrain(str(faces), **small, out=tmp_path / "run", compile=True, checkpoint_activations=True)


def test_compiled_and_plain_runs_go_on_from_each_other(
    faces: Path,
    small: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Compiled by a backend that runs the graph as it is, so that the bits are those of a plain run."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(faster, "BACKEND", backend)
    options = small | {"val_fraction": 0.0}
    whole = pretrain(str(faces), **options, out=tmp_path / "whole", max_steps=5)
    assert not graphs
    assert "compiling" not in capsys.readouterr().out
    pretrain(str(faces), **options, out=tmp_path / "parts", max_steps=2, compile=True)
    assert "compiling the backbone" in capsys.readouterr().out
    compiled = len(graphs)
    assert compiled >= 2  # a sum, to see whether it works, and the backbone
    pretrain(str(faces), **options, out=tmp_path / "parts", max_steps=4, resume=True)
    assert len(graphs) == compiled
    parts = pretrain(str(faces), **options, out=tmp_path / "parts", max_steps=5, compile=True, resume=True)
    for name, value in weights_of(whole).items():
        torch.testing.assert_close(weights_of(parts)[name], value, rtol=1e-4, atol=1e-6)
