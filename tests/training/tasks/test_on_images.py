"""The task on images: what trains end to end, and in turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_trainings import FAST, KEY, changed, tensors

from facemetric import finetune
from facemetric.training.run.run import Trained
from facemetric.training.tasks.on_images import OnImages


@pytest.mark.parametrize("microbatch", [0, 10])
@pytest.mark.parametrize("how", ["batchnorm", "none"])
def test_what_trains_end_to_end(
    stage_one: Trained, faces: Path, tmp_path: Path, how: str, microbatch: int
) -> None:
    options = FAST | {"freeze": how, "microbatch": microbatch, "val_fraction": 0.0, "lr": 0.01}
    run = finetune(str(faces), weights=str(stage_one.run), **options, out=tmp_path / "run")
    names = changed(stage_one, run)
    norms = {name.rsplit(".", 1)[0] for name in tensors(run) if name.endswith("running_mean")}
    inside = {name for name in names if name.rsplit(".", 1)[0] in norms}
    assert any(name.endswith("running_mean") for name in inside)
    assert any(name.endswith("weight") for name in inside)
    outside = names - inside
    assert bool(outside) == (how == "none")
    assert not torch.equal(tensors(run)[f"{KEY}.weight"], torch.eye(96))


def test_turns_of_freezing_train_what_they_say(
    stage_one: Trained, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One epoch of batch norms and projection, then everything: seen at each validation."""
    seen: list[dict[str, torch.Tensor]] = []
    validate = OnImages.validate

    def watching(self: OnImages, model: Any) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in self.model.state_dict().items()})
        return validate(self, model)

    monkeypatch.setattr(OnImages, "validate", watching)
    options = FAST | {"epochs": 2, "freeze": ["batchnorm", "none"], "freeze_epochs": 1, "backbone_lr": 1e-3}
    finetune(str(faces), weights=str(stage_one.run), **options, out=tmp_path / "run")
    _, start, one, two = seen  # the first is of stage one's own embedding

    def moved(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
        return {name for name, value in a.items() if value.ndim == 4 and not torch.equal(value, b[name])}

    filters = {name for name, value in start.items() if value.ndim == 4}
    assert moved(start, one) == set()
    assert moved(one, two) == filters
    assert not torch.equal(start["projection.weight"], one["projection.weight"])
    assert not torch.equal(start["backbone.bn1.weight"], one["backbone.bn1.weight"])
