"""`torchrun ... finetune` leaves the weights that one process leaves."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from commands_typed import Ran
from safetensors.torch import load_file

from facemetric.data.images import Preprocess
from facemetric.model.embedder import build_embedder
from facemetric.model.weights.save_load import save_weights


def test_two_processes_leave_the_weights_of_one(
    faces: Path, tmp_path: Path, command: Callable[..., Ran]
) -> None:
    torch.manual_seed(0)
    embedder = build_embedder("lcnet_035", preprocess=Preprocess(size=(32, 32)), embedding_size=16)
    with torch.no_grad():
        for _ in range(30):  # running statistics under which features are of ordinary size
            embedder(torch.randn(16, 3, 32, 32))
    save_weights(tmp_path / "start", embedder, provenance={}, metrics={})
    tune = ["finetune", str(faces), "--weights", str(tmp_path / "start"), "--batch-size", "32"]
    tune += ["--epochs", "2", "--workers", "0", "--device", "cpu", "--val-fraction", "0"]
    tune += ["--cache", str(tmp_path / "cache")]
    assert command(*tune, "--out", tmp_path / "one").status == 0
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = [*launch, "-m", "facemetric.cli", *tune, "--out", str(tmp_path / "two")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, two, start = (
        load_file(tmp_path / name / "model.safetensors") for name in ("one/best", "two/best", "start")
    )
    moved = (one["classifier.weight"] - start["classifier.weight"]).abs().max()
    assert moved > 1e-3
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=float(moved) * 1e-2)
    lines = (tmp_path / "two" / "log.jsonl").read_text().splitlines()
    assert len(lines) == len((tmp_path / "one" / "log.jsonl").read_text().splitlines())
