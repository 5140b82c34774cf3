"""Stage two on drawn faces: what is frozen stays, the better of start and end is kept, options count."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_trainings import FAST, KEY, changed, same, stop_in_step, tensors

from facemetric import finetune, load_embedder
from facemetric.commands.listings import standing
from facemetric.config import FinetuneConfig
from facemetric.data.index import read_index
from facemetric.errors import ConfigError, DataError, TrainingError
from facemetric.evaluation.audit.seen import read_training_images
from facemetric.evaluation.embed import embed_index
from facemetric.mining.losses import RESERVED
from facemetric.model.weights.folder import amend_config
from facemetric.training.run.best import TAR
from facemetric.training.run.run import Run, Trained
from facemetric.training.split import read_split
from facemetric.training.tasks import triplets as stage_two
from facemetric.training.tasks.on_features import OnFeatures
from facemetric.training.tasks.on_images import OnImages
from facemetric.training.validation import open_set_figures


def log_of(run: Trained, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run.run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def test_a_frozen_backbone_stays_the_same_bits(stage_one: Trained, faces: Path, tmp_path: Path) -> None:
    before = (stage_one.weights / "model.safetensors").read_bytes()
    run = finetune(
        str(faces),
        weights=str(stage_one.run),
        projection_init="random",
        embedding_size=8,
        views=2,
        val_fraction=0.0,  # keeps the last epoch
        lr=0.01,
        **FAST | {"epochs": 2},
        out=tmp_path / "run",
    )
    assert any("running_mean" in name for name in tensors(run))
    assert changed(stage_one, run) == set()
    weight = tensors(run)[f"{KEY}.weight"]
    assert weight.shape == (8, 96)
    # It did train: the rows began orthogonal.
    assert (weight @ weight.T - torch.eye(8)).abs().max() > 1e-3
    assert (stage_one.weights / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("freeze", ["backbone", "none"])
def test_weights_of_faces_give_weights_of_faces(
    freeze: str, stage_one: Trained, faces: Path, tmp_path: Path
) -> None:
    shutil.copytree(stage_one.weights, tmp_path / "start")
    amend_config(tmp_path / "start", pictures="faces")
    options = FAST | {"epochs": 1, "freeze": freeze, "val_fraction": 0.0}
    run = finetune(str(faces), weights=tmp_path / "start", **options, out=tmp_path / "run")
    assert load_embedder(run.weights).pictures == "faces"
    assert load_embedder(stage_one.weights).pictures == ""


@pytest.mark.parametrize("freeze", ["backbone", "batchnorm"])
def test_another_crop_and_size_of_picture(
    stage_one: Trained, faces: Path, tmp_path: Path, freeze: str
) -> None:
    crop = (0.1, 0.2, 0.1, 0.0)
    options = {"freeze": freeze, "val_fraction": 0.25, "image_size": 48, "crop": crop} | FAST | {"epochs": 1}
    run = finetune(str(faces), weights=str(stage_one.run), **options, out=tmp_path / "run")
    picture = load_embedder(run.weights).preprocess
    assert (picture.size, picture.crop) == ((48, 48), crop)
    assert load_embedder(stage_one.run).preprocess.size == (32, 32)
    # Stage one's own embedder, shown the same pictures, stands where this run says it began.
    split = read_split(FinetuneConfig((str(faces),), val_fraction=0.25))
    assert split.val is not None
    embedder = load_embedder(stage_one.run)
    embedder.preprocess = picture
    table = embed_index(embedder, split.val).table
    expected = open_set_figures(table.embeddings, table.identities)
    before = log_of(run, "before")[0]
    assert {name: before[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ConfigError, match="the picture of this run changed since it began"):
        finetune(
            str(faces),
            weights=str(stage_one.run),
            **options | {"crop": (0.0, 0.0, 0.0, 0.1)},
            resume=True,
            out=run.run,
        )


def script(monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
    """Validation gives these scores, one after the other: before, the start of the projection, the epochs."""
    left = list(scores)
    monkeypatch.setattr(stage_two, "open_set_figures", lambda *args: {TAR: left.pop(0)})


@pytest.mark.parametrize(
    ("scores", "kept", "said"),
    [
        ([0.5, 0.5, 0.6, 0.8], 2, f"kept epoch 2: {TAR} 0.8000, before stage two 0.5000"),
        ([0.5, 0.5, 0.7, 0.6], 1, f"kept epoch 1: {TAR} 0.7000, before stage two 0.5000"),
        ([0.5, 0.5, 0.5, 0.4], 0, "kept the start of the projection"),
        ([0.9, 0.4, 0.6, 0.5], -1, f"stage two did not help ({TAR} 0.6000, before 0.9000)"),
    ],
    ids=["the end", "the middle", "the start", "stage one"],
)
def test_the_better_of_start_and_end_is_kept(
    stage_one: Trained,
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    scores: list[float],
    kept: int,
    said: str,
) -> None:
    script(monkeypatch, scores)
    epochs: list[torch.Tensor] = []
    validate = OnFeatures.validate

    def watch(self: OnFeatures, model: Any) -> dict[str, float]:
        epochs.append(model.weight.detach().clone())
        return validate(self, model)

    monkeypatch.setattr(OnFeatures, "validate", watch)
    run = finetune(
        str(faces), weights=str(stage_one.run), lr=0.01, **FAST | {"epochs": 2}, out=tmp_path / "run"
    )
    assert said in capsys.readouterr().out
    assert run.metrics[TAR] == (scores[0] if kept < 0 else scores[kept + 1])
    assert log_of(run, "kept")[0]["epoch"] == kept
    config = json.loads((run.weights / "config.json").read_text())["facemetric"]
    assert config["metrics"] == run.metrics
    found = tensors(run)
    if kept < 0:
        assert found.keys() == tensors(stage_one).keys()
        assert all(torch.equal(value, found[name]) for name, value in tensors(stage_one).items())
    else:
        assert torch.equal(found[f"{KEY}.weight"], epochs[kept])
        assert len({float(weight.sum()) for weight in epochs}) == 3


@pytest.mark.parametrize(
    ("best_by", "kept", "said"),
    [
        ("tar@0.01", -1, "stage two did not help (val_tar_at_far_0.01 0.8000, before 0.9000)"),
        ("eer", 1, "kept epoch 1: val_eer 0.1000, before stage two 0.3000"),
        ("auc", 0, "kept the start of the projection: val_auc 0.9000, before stage two 0.7000"),
        ("last", 2, "kept the last epoch, as --best-by last asks"),
    ],
)
def test_the_figure_that_is_asked_for_picks_what_is_kept(
    stage_one: Trained,
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    best_by: str,
    kept: int,
    said: str,
) -> None:
    # before, the start of the projection, two epochs
    figures = [
        {TAR: tar, "val_eer": eer, "val_auc": auc}
        for tar, eer, auc in [(0.9, 0.3, 0.7), (0.5, 0.4, 0.9), (0.8, 0.1, 0.8), (0.6, 0.2, 0.6)]
    ]
    left = list(figures)
    monkeypatch.setattr(stage_two, "open_set_figures", lambda *args: left.pop(0))
    options = FAST | {"epochs": 2, "weights": str(stage_one.run), "best_by": best_by}
    run = finetune(str(faces), **options, out=tmp_path / "run")
    assert said in capsys.readouterr().out
    metrics = json.loads((run.weights / "config.json").read_text())["facemetric"]["metrics"]
    assert run.metrics.items() >= figures[kept + 1].items()
    assert metrics == run.metrics
    assert log_of(run, "kept")[0]["epoch"] == kept
    if kept >= 0:  # where stage one is kept, the list shows the best epoch of the run all the same
        assert standing(run.run).best_epoch == kept


def test_weights_of_an_epoch_that_was_cut_are_not_called_the_start(
    stage_one: Trained,
    faces: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    script(monkeypatch, [0.1, 0.2, 0.3])
    options = FAST | {"weights": str(stage_one.run), "max_steps": 1, "lr": 0.01}
    run = finetune(str(faces), **options, out=tmp_path / "run")
    assert "kept epoch 1: " in capsys.readouterr().out
    assert [line["epoch"] for line in log_of(run, "validation")] == [0, 1]
    assert log_of(run, "kept")[0]["epoch"] == 1


@pytest.mark.parametrize("freeze", ["backbone", "none"])
def test_the_gain_is_said_with_its_interval(
    stage_one: Trained,
    faces: Path,
    freeze: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = iter(
        [0.1, 0.2, 0.3, 0.4]
    )  # each validation is better than the one before: the last epoch is kept
    monkeypatch.setattr(
        stage_two, "open_set_figures", lambda *args: open_set_figures(*args) | {TAR: next(scores)}
    )
    options = FAST | {"freeze": freeze, "epochs": 2, "val_fraction": 0.5, "lr": 0.03, "seed": 1}
    run = finetune(str(faces), weights=str(stage_one.run), **options, out=tmp_path / "run")
    before, gain = log_of(run, "before")[0], log_of(run, "gain")[0]
    assert log_of(run, "kept")[0]["epoch"] == 2
    for name in ("auc", "eer"):
        value, low, high, level = gain[name]
        assert value == pytest.approx(run.metrics[f"val_{name}"] - before[f"val_{name}"], abs=1e-6)
        assert low <= value <= high
        assert high - low > 1e-4
        assert level == 0.95
    assert f"auc {gain['auc'][0]:+.4f} [{gain['auc'][1]:+.4f}," in capsys.readouterr().out


def test_without_validation_the_last_epoch_is_kept(
    stage_one: Trained, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finetune(str(faces), weights=str(stage_one.run), val_fraction=0.0, **FAST, out=tmp_path / "run")
    assert "no validation identities: kept the weights of the last epoch" in capsys.readouterr().out
    assert run.metrics == {}
    assert not torch.equal(tensors(run)[f"{KEY}.weight"], torch.eye(96))


@pytest.mark.parametrize("how", ["backbone", "none"])
def test_identities_with_one_image_are_left_out_and_listed(
    stage_one: Trained,
    some_single: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    how: str,
) -> None:
    options = FAST | {"freeze": how, "val_fraction": 0.0}
    run = finetune(str(some_single), weights=str(stage_one.run), **options, out=tmp_path / "run")
    path = run.run / "identities_with_one_image.txt"
    assert f"left out 2 of 6 identities, which have one image: {path}" in capsys.readouterr().out
    assert path.read_text().splitlines() == list(read_index([str(some_single)]).identities[1:3])
    provenance = json.loads((run.weights / "config.json").read_text())["facemetric"]["provenance"]
    assert (provenance["identities"], provenance["images"]) == (4, 24)


def test_odd_names_are_listed_too(stage_one: Trained, some_single: Path, tmp_path: Path) -> None:
    names = sorted(path.name for path in some_single.iterdir())
    (some_single / names[1]).rename(some_single / "Zoë 😀")
    os.rename(os.fsencode(some_single / names[2]), os.fsencode(some_single / "caf") + b"\xe9")
    run = finetune(
        str(some_single), weights=str(stage_one.run), val_fraction=0.0, **FAST, out=tmp_path / "run"
    )
    listed = (run.run / "identities_with_one_image.txt").read_text(encoding="utf-8").splitlines()
    assert set(listed) == {"Zoë 😀", "caf\\udce9"}


def test_only_identities_with_one_image(stage_one: Trained, some_single: Path, tmp_path: Path) -> None:
    for folder in some_single.iterdir():
        for image in sorted(folder.iterdir())[1:]:
            image.unlink()
    with pytest.raises(
        DataError, match="of 6 identities to train on 0 have two images or more; a triplet needs"
    ):
        finetune(str(some_single), weights=str(stage_one.run), val_fraction=0.0, out=tmp_path / "run")


def spread_out(emb_BD: torch.Tensor, labels_B: torch.Tensor) -> SimpleNamespace:
    """A loss of one's own: positives near, all others far, and how many pairs of a batch are positive."""
    same = labels_B[:, None] == labels_B[None, :]
    loss = torch.where(same, -1.0, 1.0).to(emb_BD).mul(emb_BD @ emb_BD.T).mean()
    return SimpleNamespace(loss=loss, figures={"positive_pairs": float(same.sum())})


OWN = f"{__name__}:spread_out"


@pytest.mark.parametrize("freeze", ["backbone", "none"])
def test_a_loss_of_ones_own_trains_logs_its_figures_and_resumes(
    stage_one: Trained, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, freeze: str
) -> None:
    options = FAST | {"epochs": 2, "freeze": freeze, "microbatch": 12, "loss": OWN, "lr": 0.01}
    options |= {"weights": str(stage_one.run)}
    whole = finetune(str(faces), **options, out=tmp_path / "whole")
    lines = log_of(whole, "train")
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert lines[0]["positive_pairs"] == 8 * 4 * 4  # 8 identities of 4 images
    assert "fraction_positive" not in lines[0]
    validated = log_of(whole, "validation")[-1]
    assert {"val_loss", "val_positive_pairs"} <= validated.keys()
    names = {*lines[0], *(name.removeprefix("val_") for name in validated)} - {"positive_pairs"}
    assert {name for name in names if not name.startswith("tar_at_far_")} <= set(RESERVED)
    parts = finetune(str(faces), **options, max_steps=4, out=tmp_path / "parts")
    assert log_of(parts, "stopped")[-1]["step"] == 4
    assert read_training_images(parts.weights) is None  # a trial reads no image for their hashes
    finetune(str(faces), **options, out=tmp_path / "parts", resume=True)
    assert read_training_images(parts.weights) is not None
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts")]
    assert all(torch.equal(value, states[1]["model"][name]) for name, value in states[0]["model"].items())
    with pytest.raises(ConfigError, match="memory= mines triplets against past batches"):
        finetune(str(faces), **options, memory=64, out=tmp_path / "other")


PML = "pml:MultiSimilarityLoss"


@pytest.mark.parametrize(
    ("loss", "freeze", "options"),
    [
        ("supcon", "backbone", {"memory": 64, "alike": 3, "loss_args": "temperature = 0.2"}),
        ("multi-similarity", "none", {"memory": 64, "microbatch": 12}),
        ("circle", "backbone", {"alike": 4, "views": 2}),
        ("contrastive", "backbone", {"memory": 40, "loss_args": "margin = 0.8"}),
        ("proxy-anchor", "backbone", {"ema": 0.9, "alike": 2}),
        ("proxy-anchor", "none", {"microbatch": 12, "loss_args": "alpha = 16"}),
        (
            PML,
            "backbone",
            {"loss_args": 'beta = 40, miner = {class = "MultiSimilarityMiner", epsilon = 0.2}'},
        ),
        ("pml:ProxyAnchorLoss", "none", {"microbatch": 12}),
    ],
)
def test_every_loss_trains_stops_and_goes_on_with_the_same_bits(
    stage_one: Trained, faces: Path, tmp_path: Path, loss: str, freeze: str, options: dict[str, Any]
) -> None:
    if loss.startswith("pml:"):
        pytest.importorskip("pytorch_metric_learning")
    options = FAST | {"epochs": 2, "freeze": freeze, "loss": loss, "lr": 0.01} | options
    options |= {"weights": str(stage_one.run), "cache": tmp_path / "features"}
    whole = finetune(str(faces), **options, out=tmp_path / "whole")
    lines = log_of(whole, "train")
    assert all(math.isfinite(line["loss"]) for line in lines)
    validated = log_of(whole, "validation")[-1]
    assert ("val_loss" in validated) == ("proxy" not in loss.lower())
    if ":" not in loss and loss != "proxy-anchor":
        assert {"mean_positive", "mean_negative"} <= lines[0].keys()
    parts = finetune(str(faces), **options, max_steps=4, out=tmp_path / "parts")
    finetune(str(faces), **options, out=tmp_path / "parts", resume=True)
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts")]
    assert same(states[0]["model"], states[1]["model"])
    assert same(states[0]["extra"], states[1]["extra"])
    assert any("proxies" in name for name in states[0]["model"]) == ("proxy" in loss.lower())
    assert not any("prox" in name for name in tensors(parts))  # what a loss learns is no part of the weights
    embedder = load_embedder(parts.weights)
    assert embedder.embedding_size == load_embedder(stage_one.weights).embedding_size


def test_proxies_begin_at_the_mean_embeddings(stage_one: Trained, faces: Path, tmp_path: Path) -> None:
    options = FAST | {"weights": str(stage_one.run), "loss": "proxy-anchor", "max_steps": 1, "lr": 1e-9}
    starts = []
    for freeze in ("backbone", "none"):
        out = tmp_path / freeze
        finetune(str(faces), **options, loss_lr=1e-9, weight_decay=0.0, freeze=freeze, out=out)
        state = torch.load(out / "checkpoint.pt", weights_only=True)["model"]
        starts.append(next(value for name, value in state.items() if "proxies" in name))
    torch.testing.assert_close(starts[0], starts[1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(starts[0].norm(dim=1), torch.ones(len(starts[0])))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "supcon", "margin": 0.5}, "margin is an option of loss='triplet', and loss is supcon"),
        ({"loss": "circle", "miner": "hard"}, "miner is an option of loss='triplet'"),
        ({"loss": PML, "distance": "cosine"}, "distance is an option of loss='triplet'"),
        (
            {"loss": "proxy-anchor", "memory": 9},
            "memory= mines triplets against past batches, or pairs, and loss is",
        ),
        ({"loss": "supcon", "loss_args": "temperature"}, "loss_args='temperature' is not TOML"),
        ({"loss_args": "margin = 0.5"}, "loss_args= has margin, and loss='triplet' has options of its own"),
        ({"loss": "supcon", "loss_args": "temperature = -1"}, "loss_args= of supcon: temperature is -1"),
        ({"alike": 1}, "alike is 1, and a batch has 8 identities: choose 2..8, or 0"),
        ({"alike": 9}, "alike is 9, and a batch has 8 identities"),
        ({"alike": 4, "freeze": "none"}, "alike= finds who looks alike from cached features"),
        (
            {"families": Path("f.csv")},
            "families= says who comes in one group, and alike is 0: give the groups' size",
        ),
        ({"loss_lr": 0.0}, "loss_lr is 0.0; it must be above 0"),
    ],
)
def test_options_of_losses_that_do_not_go_together(
    faces: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        finetune(str(faces), weights="nowhere", **FAST | options, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_batch_that_is_no_multiple_says_what_it_trains_on(
    stage_one: Trained, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune(str(faces), weights=str(stage_one.run), **FAST | {"batch_size": 30}, out=tmp_path / "run")
    said = capsys.readouterr().out
    assert "batches of 28 images, 7 identities x 4: --batch-size 30 is no multiple of" in said
    assert f"in {tmp_path / 'features'}, which stays for the next run" in said


TURNS = ["batchnorm", "none"]


@pytest.mark.parametrize("how", ["backbone", "none", TURNS])
def test_a_stopped_run_goes_on_with_the_same_bits(
    stage_one: Trained, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    options = FAST | {"epochs": 2, "views": 2, "freeze": how, "memory": 64, "ema": 0.9, "microbatch": 20}
    options |= {"freeze_epochs": 1} if how == TURNS else {}
    options |= {"weights": str(stage_one.run), "projection_init": "lda", "embedding_size": 8}
    whole = finetune(str(faces), **options, out=tmp_path / "whole")
    kind = OnFeatures if how == "backbone" else OnImages
    count = stop_in_step(monkeypatch, kind, 4)
    with pytest.raises(TrainingError, match="after step 1 of epoch 2"):
        finetune(str(faces), **options, out=tmp_path / "parts")
    parts = finetune(str(faces), **options, out=tmp_path / "parts", resume=True)
    assert count == [6]
    states = [torch.load(run.run / "checkpoint.pt", weights_only=True) for run in (whole, parts)]
    for part in ("model", "ema"):
        for name, value in states[0][part].items():
            assert torch.equal(value, states[1][part][name])
    assert parts.metrics == whole.metrics
    assert all(torch.equal(value, tensors(parts)[name]) for name, value in tensors(whole).items())
    for event in ("before", "kept", "gain", "validation"):
        assert len(log_of(parts, event)) == len(log_of(whole, event))
    # Once more, after the end: nothing is trained, the same is kept.
    again = finetune(str(faces), **options, out=tmp_path / "parts", resume=True)
    assert count == [6]
    assert again.metrics == whole.metrics
    assert all(len(log_of(again, event)) == 1 for event in ("before", "kept", "gain"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"miner": "semi-hard"}, "unknown miner 'semi-hard': did you mean 'semihard'"),
        ({"distance": "euclid"}, "unknown distance 'euclid': did you mean 'euclidean'"),
        ({"freeze": "bakbone"}, "unknown freeze 'bakbone': did you mean 'backbone'"),
        ({"projection_init": "lada"}, "unknown projection init 'lada': did you mean 'lda'"),
        ({"projection_init": "lda"}, "lda gives at most 13 directions"),
        ({"refit_penalty": 0.5}, "refit_penalty is for projection_init='refit', and that is identity"),
        ({"projection_init": "refit", "refit_penalty": 0.0}, "refit_penalty is 0"),
        ({"refit_teacher": 0.5}, "refit_teacher is for projection_init='refit', and that is identity"),
        ({"refit_constant": 0.5}, "refit_constant is for projection_init='refit', and that is identity"),
        ({"projection_init": "refit", "refit_teacher": 0.5}, "refit_teacher= needs teacher="),
        ({"batch_size": 4}, "batch_size=4 holds 1 identity of 4 images; two are needed"),
        ({"images_per_identity": 1}, "images_per_identity is 1; it must be at least 2"),
        ({"margin": -0.1}, "margin is -0.1"),
        ({"views": 0}, "views is 0"),
    ],
)
def test_options_that_cannot_be_are_named(
    stage_one: Trained, faces: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        finetune(str(faces), weights=str(stage_one.run), **FAST | options, out=tmp_path / "run")
    Run(tmp_path / "run", config_toml="", resume=False).close()  # no run was left behind


def test_validation_on_images_that_the_weights_were_trained_on_is_told(
    stage_one: Trained, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stage one's own validation people are new to its weights; people that it trained on are not."""
    weights = tmp_path / "weights"
    shutil.copytree(stage_one.weights, weights)
    options = FAST | {"weights": str(weights), "max_steps": 1}

    def told(name: str, **changed: Any) -> str:
        capsys.readouterr()
        finetune(str(faces), **options | changed, out=tmp_path / name)
        return capsys.readouterr().out

    same_people = told("same")
    assert "training images" not in same_people
    trained_on = set(read_split(FinetuneConfig((str(faces),))).train.identities)
    (tmp_path / "val.txt").write_text("\n".join(sorted(trained_on)[:2]))
    text = told("other", val_identities=tmp_path / "val.txt")
    assert f"warning: 12 of 12 images looked at (100% of the data) are training images of {weights}" in text
    (weights / "training_images.npz").unlink()
    unknown = told("unknown", val_identities=tmp_path / "val.txt")
    assert (
        f"no hashes of training images are kept with {weights}: whether they saw these is not known"
        in unknown
    )
    assert "images looked at" not in unknown
