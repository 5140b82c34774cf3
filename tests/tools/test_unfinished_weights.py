"""The weights in a checkpoint: those of the run's best epoch where that was its last."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import unfinished_weights
from small_trainings import FAST, SMALL, tensors

from facemetric import finetune, pretrain


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_checkpoints_weights_open_as_a_folder(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float
) -> None:
    options: dict[str, Any] = SMALL | {"embedding_size": 8, "ema": ema}
    run = pretrain(str(faces), **options, out=tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["unfinished_weights", str(run.run), "--out", str(tmp_path / "out")])
    unfinished_weights.main()
    found, best = tensors(tmp_path / "out"), tensors(run)
    assert found.keys() == best.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, best[name], rtol=1e-5, atol=1e-6)
    record = json.loads((tmp_path / "out" / "config.json").read_text())["facemetric"]
    steps = [json.loads(line)["step"] for line in (run.run / "log.jsonl").read_text().splitlines()]
    assert record["provenance"]["steps"] == steps[-1]


def test_a_run_of_stage_two_is_told(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = pretrain(str(faces), **SMALL, out=tmp_path / "one")
    run = finetune(str(faces), **FAST, weights=start.run, freeze="backbone", out=tmp_path / "two")
    monkeypatch.setattr("sys.argv", ["unfinished_weights", str(run.run), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        unfinished_weights.main()
    assert "no run of stage one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
