"""Figures of steps: read in one transfer, the same ones as if each were read at once."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import counting_device
import pytest
import torch
from child_processes import in_a_child

from facemetric.config import FinetuneConfig, PretrainConfig
from facemetric.data.images import Preprocess
from facemetric.errors import TrainingError
from facemetric.mining.losses import Loss
from facemetric.model.embedder import build_embedder
from facemetric.training import loop
from facemetric.training.run.run import Run
from facemetric.training.split import read_split
from facemetric.training.stage import check_training
from facemetric.training.step.optim import make_optimizer, make_scheduler
from facemetric.training.step.readings import Readings
from facemetric.training.tasks.classification import Classification
from facemetric.training.tasks.on_features import OnFeatures
from facemetric.training.tasks.on_images import OnImages

EVERY = 3  # steps
SHARED = {"image_size": 16, "workers": 0, "val_fraction": 0.0, "amp": "off", "epochs": 1, "lr": 0.01}
PRETRAIN = SHARED | {"arch": "test_resnet", "batch_size": 16, "closed_set_fraction": 0.0}
VARIED = {"augment_on": "device", "blur": 0.3, "low_resolution": 0.3}
FINETUNE = SHARED | {"batch_size": 16, "images_per_identity": 2}
KINDS: dict[str, dict[str, Any]] = {
    "softmax": PRETRAIN | VARIED | {"random_erasing": 0.5},
    "adaface": PRETRAIN | {"head": "adaface"},
    "features": FINETUNE | {"miner": "hard"},
    "images": FINETUNE | VARIED | {"miner": "hard", "freeze": ("none",), "microbatch": 8},
}


def train(kind: str, faces: Path, out: Path, device: torch.device) -> None:
    """A short training as the stages do it."""
    options = KINDS[kind]
    stage = PretrainConfig if "arch" in options else FinetuneConfig
    config: Any = stage((str(faces),), out=out, **options)
    setup: Any = check_training(config)
    run = Run(out, config_toml="", resume=False)
    torch.manual_seed(0)
    split = read_split(config)
    task: Any
    if isinstance(config, PretrainConfig):
        task = Classification(setup, split, run, device)
        parts = [(task.model, config.lr)]
    else:
        embedder = build_embedder("test_resnet", preprocess=Preprocess(size=(16, 16)), embedding_size=8)
        kinds = {"features": OnFeatures, "images": OnImages}
        task = kinds[kind](setup, embedder.to(device), split, run, device)
    task.prepare()
    parts = [(task.model, config.lr)] if isinstance(config, PretrainConfig) else task.parts()
    optimizer = make_optimizer(config, parts)
    scheduler = make_scheduler(config, optimizer, task.steps_per_epoch)
    loop.fit(task, run, optimizer, scheduler, setup.settings)
    run.close()


def lines(out: Path) -> list[dict[str, Any]]:
    """The log, without what the clock says."""
    timed = ("seconds", "steps_per_second", "minutes_left", "memory_mib")
    found = [json.loads(text) for text in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in timed} for line in found]


def test_a_gpu_is_waited_for_seldom() -> None:
    counting_device.run_alone(f"{__file__}::test_a_gpu_is_waited_for_once_every_so_many_steps")


@counting_device.alone
@pytest.mark.parametrize("kind", list(KINDS))
def test_a_gpu_is_waited_for_once_every_so_many_steps(faces: Path, tmp_path: Path, kind: str) -> None:
    """Counted on a device that pretends; and its log is the CPU's, but for rounding: a GPU picks in float64."""

    def on_the_cpu() -> None:
        loop.LOG_STEPS = EVERY
        train(kind, faces, tmp_path / "cpu", torch.device("cpu"))

    def pretending() -> None:
        loop.LOG_STEPS = EVERY
        counts: list[tuple[str, dict[str, int]]] = []

        def counted(owner: Any, name: str) -> None:
            method = getattr(owner, name)

            def run(self: Any, *arguments: Any, **options: Any) -> Any:
                before = counting_device.now.waited_for.copy()
                try:
                    return method(self, *arguments, **options)
                finally:
                    counts.append((name, dict(counting_device.now.waited_for - before)))

            setattr(owner, name, run)

        counted(loop.Trainer, "step")
        counted(loop.Trainer, "read")
        counted(Loss, "__call__")
        with counting_device.counting():
            train(kind, faces, tmp_path / "gpu", counting_device.DEVICE)
        (tmp_path / "counts").write_text(json.dumps(counts))

    assert in_a_child(on_the_cpu) == in_a_child(pretending) == 0
    counts = json.loads((tmp_path / "counts").read_text())
    steps = [sum(waits.values()) for name, waits in counts if name == "step"]
    miners = [sum(waits.values()) for name, waits in counts if name == "__call__"] or [0] * len(steps)
    own = [step - miner for step, miner in zip(steps, miners, strict=True)]
    assert len(own) >= 2 * EVERY
    assert own[1:] == [0] * (len(own) - 1), counts  # the first makes constants
    reads = [sum(waits.values()) for name, waits in counts if name == "read"]
    assert max(reads) == 1
    assert sum(reads) == math.ceil(len(steps) / EVERY)
    on_gpu, on_cpu = lines(tmp_path / "gpu"), lines(tmp_path / "cpu")
    assert len(on_gpu) == len(on_cpu)
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        assert list(ours) == list(theirs)
        for name, value in theirs.items():
            assert ours[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4)), name


def test_figures_keep_their_digits_and_their_order() -> None:
    """Tensors of the host and plain numbers are read at once; those of a device in one vector."""
    readings = Readings(torch.device("cpu"))
    third = torch.tensor(1 / 3, dtype=torch.float64)
    readings.add("in step 1", {"loss": torch.tensor(0.1), "share": third, "count": 7})
    readings.add("in step 2", {"loss": torch.tensor([2.0]), "share": third * 2, "count": 8.5})
    assert len(readings) == 2
    one, two = readings.read()
    assert one == ("in step 1", {"loss": float(torch.tensor(0.1)), "share": 1 / 3, "count": 7.0})
    assert two == ("in step 2", {"loss": 2.0, "share": 2 / 3, "count": 8.5})
    assert list(two.figures) == ["loss", "share", "count"]
    assert readings.read() == []


@pytest.mark.parametrize("minutes", [60.0, 0.0], ids=["by the epoch", "by the step"])
def test_what_is_not_finite_stops_the_run_before_a_checkpoint(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minutes: float
) -> None:
    """Where figures are read late, the message is the same, some steps later, and the checkpoint is of before."""
    monkeypatch.setattr(loop, "reads_late", lambda device: True)
    monkeypatch.setattr(loop, "LOG_STEPS", EVERY)
    task = toy(lambda epoch, step: math.nan if (epoch, step) == (1, 1) else 1.0)
    config = PretrainConfig(("x",), epochs=3, lr=0.05, checkpoint_minutes=minutes)
    run = Run(tmp_path / "run", config_toml="", resume=False)
    optimizer = make_optimizer(config, [(task.model, config.lr)])
    scheduler = make_scheduler(config, optimizer, task.steps_per_epoch)
    settings = check_training(config).settings
    with run, pytest.raises(TrainingError, match=r"the loss is nan in epoch 2, step 2; lower --lr"):
        loop.fit(task, run, optimizer, scheduler, settings)
    assert task.seen[-1] == ((1, 2) if minutes else (1, 1))
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert (state["progress"]["epoch"], state["progress"]["step"]) == ((1, 0) if minutes else (1, 1))
    assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_the_log_is_the_same_where_figures_are_read_late(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_of(name: str) -> list[dict[str, Any]]:
        task, config = toy(), PretrainConfig(("x",), epochs=3, lr=0.05)
        optimizer = make_optimizer(config, [(task.model, config.lr)])
        scheduler = make_scheduler(config, optimizer, task.steps_per_epoch)
        with Run(tmp_path / name, config_toml="", resume=False) as run:
            loop.fit(task, run, optimizer, scheduler, check_training(config).settings)
        return lines(tmp_path / name)

    monkeypatch.setattr(loop, "LOG_STEPS", EVERY)
    at_once = run_of("at once")
    monkeypatch.setattr(loop, "reads_late", lambda device: True)
    assert run_of("late") == at_once


def test_a_gpu_out_of_memory_names_the_batch_and_what_to_set(toy: Any, tmp_path: Path) -> None:
    def fail(epoch: int, step: int) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    def message(**options: Any) -> str:
        config = PretrainConfig(("x",), epochs=1, batch_size=512, **options)
        task = toy(fail)
        optimizer = make_optimizer(config, [(task.model, config.lr)])
        scheduler = make_scheduler(config, optimizer, task.steps_per_epoch)
        name = tmp_path / str(len(list(tmp_path.iterdir())))
        with Run(name, config_toml="", resume=False) as run, pytest.raises(TrainingError) as caught:
            loop.fit(task, run, optimizer, scheduler, check_training(config).settings)
        return str(caught.value)

    assert message() == (
        "cpu ran out of memory in epoch 1, step 1, with --batch-size 512; set --microbatch 256, which keeps the "
        "gradient of the whole batch, or --checkpoint-activations, or lower --batch-size"
    )
    assert "--batch-size 512 in micro-batches of 64; set --microbatch 32," in message(microbatch=64)
    assert "set --checkpoint-activations, or choose a smaller" in message(microbatch=2)
