"""A run that goes on with another number of processes sees the images that it would have seen."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import watched_steps as room
from child_processes import in_a_child, in_processes

from facemetric import distributed, finetune, pretrain
from facemetric.training.run.folder import read_log

OPTIONS = {"epochs": 2, "device": "cpu", "workers": 0, "lr": 0.01}
TUNE = OPTIONS | {"batch_size": 32, "checkpoint_minutes": 0.0}
MESSAGE = "resumed on {} processes, before 2: every step sees the same images"


def test_torchrun_is_stopped_and_goes_on_with_three_and_with_one(faces: Path, tmp_path: Path) -> None:
    """Batches of 16 on 3 processes: 5, 5 and 6 images."""
    options = OPTIONS | {"arch": "test_resnet", "image_size": 32, "batch_size": 16, "random_erasing": 0.5}
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]

    def train(name: str, out: str, *, resume: bool = False) -> None:
        room.watch(tmp_path / name)
        pretrain(str(faces), **options, out=tmp_path / out, resume=resume)

    assert in_a_child(lambda: train("whole", "run whole")) == 0
    whole = room.seen(tmp_path / "whole")
    steps = len(whole) // 2
    assert steps >= 4
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    watched = [str(Path(room.__file__)), str(tmp_path / "two"), str(steps + 1)]
    command = ["pretrain", str(faces), *words, "--out", str(tmp_path / "three")]
    stopped = subprocess.run([*launch, *watched, *command], capture_output=True, text=True)
    assert stopped.returncode != 0
    assert "stopped after step 2 of epoch 2; the same command with --resume goes on" in stopped.stderr
    assert read_log(tmp_path / "three" / "log.jsonl")[-1]["event"] == "stopped"
    shutil.copytree(tmp_path / "three", tmp_path / "one")
    said = tmp_path / "said"
    ended = in_processes(3, lambda rank: train("then three", "three", resume=True), said)
    assert ended == [0] * 3, said.read_text()
    assert MESSAGE.format(3) in said.read_text()
    assert in_a_child(lambda: train("then one", "one", resume=True)) == 0
    for rest in ("then three", "then one"):
        assert room.seen(tmp_path / "two", tmp_path / rest) == whole
    assert [len(list((tmp_path / name).iterdir())) for name in ("two", "then three", "then one")] == [2, 3, 1]


KINDS: dict[str, dict[str, Any]] = {
    "features": {"views": 3, "memory": 64},
    "images": {"freeze": "none", "microbatch": 5, "memory": 64, "ema": 0.9},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_killed_on_two_processes_and_resumed_on_others(
    stage_one: Any, faces: Path, tmp_path: Path, kind: str
) -> None:
    options = TUNE | KINDS[kind] | {"weights": str(stage_one.run), "cache": tmp_path / "cache"}

    def die_together() -> None:
        distributed.barrier()  # the checkpoint is written
        time.sleep(distributed.rank())  # process 0 first, that no other can take it along
        os.kill(os.getpid(), signal.SIGKILL)

    def tune(name: str, at: int = -1, out: str = "", *, resume: bool = False) -> Any:
        room.watch(tmp_path / "seen" / name, at, die_together)
        return finetune(str(faces), **options, out=tmp_path / (out or name), resume=resume)

    assert in_a_child(lambda: tune("whole")) == 0
    whole = room.seen(tmp_path / "seen" / "whole")
    at = len(whole) // 2 + 1  # in the second epoch
    ended = in_processes(2, lambda rank: tune("two", at), tmp_path / "said two")
    assert os.WTERMSIG(ended[0]) == signal.SIGKILL
    runs = ["whole"]
    for world in (1, 3):
        shutil.copytree(tmp_path / "two", tmp_path / f"parts {world}")
        name, said = f"parts {world}", tmp_path / f"said {world}"
        ended = in_processes(world, lambda rank: tune(name, resume=True), said)  # noqa: B023
        assert ended == [0] * world, said.read_text()
        assert MESSAGE.format(world) in said.read_text()
        assert room.seen(tmp_path / "seen" / "two", tmp_path / "seen" / name) == whole
        assert read_log(tmp_path / name / "log.jsonl")[-1]["event"] == "finished"
        runs.append(name)
    if kind == "features":  # no batch norm: the same weights but for rounding
        states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in runs]
        one, *others = (state["model"]["weight"] for state in states)
        moved = float((one - torch.eye(len(one))).abs().max())
        assert 1e-3 < moved < 0.5
        for other in others:
            torch.testing.assert_close(other, one, rtol=0, atol=moved * 1e-2)
