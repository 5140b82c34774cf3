"""What both stages share: how DATA is split, optimizer and schedule."""

from __future__ import annotations

import inspect
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from facemetric.config import PretrainConfig, StageConfig
from facemetric.data.index import read_index
from facemetric.errors import ConfigError, DataError
from facemetric.training.folder import judged_by
from facemetric.training.setup import (
    SPLIT_OPTIONS,
    hold_back,
    make_optimizer,
    make_scheduler,
    open_set_figures,
    read_split,
)


def test_identities_of_validation_are_never_trained_on(faces: Path) -> None:
    config = StageConfig((str(faces),), val_fraction=0.25, seed=3)
    split = read_split(config)
    assert split.val is not None
    assert len(split.val.identities) == 4
    assert not set(split.train.identities) & set(split.val.identities)
    assert len(split.train) + len(split.val) == 96
    again = read_split(config)
    assert again.train.identities == split.train.identities
    other = read_split(StageConfig((str(faces),), val_fraction=0.25, seed=4))
    assert other.train.identities != split.train.identities


def test_codes_that_differ_in_letter_case_are_people_where_that_is_said(faces: Path, tmp_path: Path) -> None:
    people = Path(shutil.copytree(faces, tmp_path / "people"))
    names = read_index(str(faces)).identities
    (people / names[0]).rename(people / "aB1")
    (people / names[1]).rename(people / "Ab1")
    with pytest.raises(DataError, match="say so with --case-twins"):
        read_split(StageConfig((str(people),)))
    split = read_split(StageConfig((str(people),), case_twins=True, val_fraction=0))
    assert {"aB1", "Ab1"} < set(split.train.identities)


def test_every_option_that_a_split_reads_is_named() -> None:
    assert set(re.findall(r"\bconfig\.(\w+)", inspect.getsource(read_split))) == set(SPLIT_OPTIONS)


def test_named_lists_split_merge_and_leave_out(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = read_index([str(faces)]).identities
    (tmp_path / "val.txt").write_text(f"{names[0]}\n{names[1]}\nnobody\n")
    (tmp_path / "out.txt").write_text(f"{names[2]}\nnobody\n")
    (tmp_path / "merge.csv").write_text(f"{names[3]},{names[4]}\n{names[5]},nobody\n")
    split = read_split(
        StageConfig(
            (str(faces),),
            val_identities=tmp_path / "val.txt",
            leave_out=tmp_path / "out.txt",
            merge=tmp_path / "merge.csv",
        )
    )
    assert split.val is not None
    assert split.val.identities == names[:2]
    assert split.train.identities == (names[3], *names[5:])
    assert split.train.counts()[0] == 12
    said = capsys.readouterr().out
    assert said.count("1 names of") == 3
    assert "first 'nobody'" in said


@pytest.mark.parametrize(("name", "momentum"), [("sgd", 0.0), ("nesterov", 0.0), ("sgd", 0.9)])
def test_sgd_with_and_without_momentum(name: str, momentum: float) -> None:
    """Two steps down the same slope: the second is longer by what the momentum keeps."""
    module = torch.nn.Linear(1, 1, bias=False)
    config = StageConfig(optimizer=name, momentum=momentum, weight_decay=0.0)
    optimizer = make_optimizer(config, [(module, 0.1)])
    moved = []
    for _ in range(2):
        before = module.weight.item()
        module.weight.grad = torch.ones(1, 1)
        optimizer.step()
        moved.append(before - module.weight.item())
    first, second = (0.1 * (1 + momentum), 0.1 * (1 + momentum + momentum**2))
    assert moved == pytest.approx([first, second], rel=1e-5)


def test_an_optimizer_that_needs_second_derivatives() -> None:
    with pytest.raises(ConfigError, match="unknown optimizer 'adahessian'"):
        make_optimizer(StageConfig(optimizer="adahessian"), [(torch.nn.Linear(1, 1), 0.1)])


def test_epochs_are_judged_by_auc_where_the_pairs_are_too_few() -> None:
    random = np.random.default_rng(0)
    emb_ND = random.normal(size=(8, 4))
    emb_ND /= np.linalg.norm(emb_ND, axis=1, keepdims=True)
    few = open_set_figures(emb_ND, np.repeat(["a", "b", "c", "d"], 2))
    assert not [name for name in few if "tar" in name]
    assert judged_by(few) == "val_auc"
    many = open_set_figures(random.normal(size=(200, 4)), np.arange(200) // 4)
    assert judged_by(many) == "val_tar_at_far_0.01"
    assert many["val_tar_at_far_0.01"] != many["val_auc"]


def test_held_back_images_leave_half_of_each_identity(faces: Path) -> None:
    index = read_index([str(faces)])
    held = hold_back(index, 0.3, seed=0)
    assert held.sum() == round(0.3 * len(index))
    assert np.bincount(index.identity[held], minlength=16).max() <= 3
    assert hold_back(index, 0.9, seed=0).sum() == 48  # never more than half
    assert (hold_back(index, 0.3, seed=0) == held).all()
    assert (hold_back(index, 0.3, seed=1) != held).any()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("step", [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01]),
        ("multistep", [1, 1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01]),
        ("poly", [1 - epoch / 12 for epoch in range(12)]),
        ("cosine", [(1 + math.cos(math.pi * epoch / 12)) / 2 for epoch in range(12)]),
    ],
)
def test_the_schedule_follows_the_length_of_the_run(name: str, expected: list[float]) -> None:
    config = PretrainConfig(scheduler=name, epochs=12, warmup_epochs=0, lr=0.5)
    optimizer = make_optimizer(config, [(torch.nn.Linear(2, 2), config.lr)])
    scheduler = make_scheduler(config, optimizer, 7)
    found = []
    for epoch in range(12):
        scheduler.step_update(7 * epoch)
        found.append(optimizer.param_groups[0]["lr"] / config.lr)
    assert found == pytest.approx(expected)
