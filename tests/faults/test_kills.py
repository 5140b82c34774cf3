"""kill -9 at any moment, then --resume: the same bits as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from child_processes import in_a_child
from safetensors.torch import load_file
from small_trainings import same

from facemetric import finetune, load_embedder, pretrain
from facemetric.config import PretrainConfig
from facemetric.data.index import read_index
from facemetric.errors import ConfigError
from facemetric.files import Lock, is_locked
from facemetric.model.embedder import build_embedder
from facemetric.model.weights.save_load import save_weights
from facemetric.training import loop
from facemetric.training.loop import fit
from facemetric.training.run.folder import read_log
from facemetric.training.run.run import Run
from facemetric.training.step.optim import make_optimizer, make_scheduler
from facemetric.training.task import Settings
from facemetric.training.tasks.classification import Classification
from facemetric.training.tasks.on_features import OnFeatures
from facemetric.training.tasks.on_images import OnImages

CALLS = ("replace", "fsync", "truncate", "unlink")  # what changes names and makes bytes last


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(call: int) -> None:
    """Let this process be killed before its nth call that changes files."""
    count = [0]

    def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == call:
                die()
            return real(*arguments, **options)

        return run

    for name in CALLS:
        setattr(os, name, guarded(getattr(os, name)))


def train(task: Any, folder: Path, *, resume: bool = False) -> None:
    """An epoch with a moving average, and a checkpoint after every step."""
    config = PretrainConfig(epochs=1, lr=0.05, optimizer="adamw")
    run = Run(folder, config_toml="epochs = 1\n", resume=resume)
    try:
        optimizer = make_optimizer(config, [(task.model, config.lr)])
        scheduler = make_scheduler(config, optimizer, task.steps_per_epoch)
        settings = Settings(1, 5.0, 0.9, "off", 0, 0.0)
        fit(task, run, optimizer, scheduler, settings, resume=run.resume, validate_first=True)
    finally:
        run.close()


def state_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def test_killed_at_any_change_of_a_file(toy: Any, tmp_path: Path) -> None:
    class Short(toy):  # type: ignore[misc]
        steps_per_epoch = 2

    train(Short(), tmp_path / "whole")
    whole = state_of(tmp_path / "whole")
    events = [(line["event"], line["step"]) for line in read_log(tmp_path / "whole" / "log.jsonl")]
    call = 0
    while True:
        call += 1
        folder = tmp_path / f"{call}"

        def begin(folder: Path = folder, call: int = call) -> None:
            die_at(call)
            train(Short(), folder)

        if in_a_child(begin) == 0:
            break
        begun = (folder / "config.toml").exists()
        train(Short(), folder, resume=begun)  # before that there is nothing to resume
        state = state_of(folder)
        assert same({**state, "log": 0}, {**whole, "log": 0}), call
        assert [(line["event"], line["step"]) for line in read_log(folder / "log.jsonl")] == events, call
        assert state["log"] <= (folder / "log.jsonl").stat().st_size
        left = {path.name for path in folder.iterdir() if not path.name.startswith("events")}
        assert left >= {"checkpoint.pt", "checkpoint.previous", "config.toml", "log.jsonl"}
    assert call > 20  # it was killed in all of them


PRETRAIN = {"arch": "test_resnet", "image_size": 32, "epochs": 2, "batch_size": 16, "device": "cpu"}
PRETRAIN |= {"checkpoint_minutes": 0.0, "ema": 0.9, "head": "arcface", "random_erasing": 0.5, "workers": 1}
PRETRAIN |= {"amp": "float16"}
TUNE = {"epochs": 2, "batch_size": 32, "device": "cpu", "checkpoint_minutes": 0.0, "lr": 0.01}
STAGES = {
    "stage one": (pretrain, Classification, PRETRAIN),
    "stage two on features": (
        finetune,
        OnFeatures,
        TUNE | {"views": 2, "memory": 64, "workers": 0, "amp": "bfloat16"},
    ),
    "stage two on images": (
        finetune,
        OnImages,
        TUNE
        | {"freeze": "none", "microbatch": 10, "memory": 64, "ema": 0.9, "workers": 1, "amp": "bfloat16"},
    ),
}


@pytest.mark.parametrize("stage", list(STAGES))
def test_killed_in_a_step(
    stage_one: Any, faces: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, task, options = STAGES[stage]
    if run is finetune:
        options = options | {"weights": str(stage_one.run), "cache": tmp_path / "features"}
    monkeypatch.setattr(loop, "LOG_STEPS", 1)
    whole = run(str(faces), **options, out=tmp_path / "whole")
    step, fatal, count = task.step, [0], [0]

    def counting(self: Any, batch: Any, progress: float, backward: Any) -> dict[str, float]:
        count[0] += 1
        if count[0] == fatal[0]:
            die()
        return step(self, batch, progress, backward)

    monkeypatch.setattr(task, "step", counting)
    for resume, number in ((False, 2), (True, 3)):  # in the first epoch, and in the second
        fatal[0] = number
        killed = in_a_child(
            lambda resume=resume: run(str(faces), **options, out=tmp_path / "parts", resume=resume)
        )
        assert killed == signal.SIGKILL
    fatal[0] = 0
    parts = run(str(faces), **options, out=tmp_path / "parts", resume=True)
    assert count[0] == state_of(whole.run)["steps_per_epoch"] * 2 - 3  # no step was taken twice
    one, other = (load_file(run.weights / "model.safetensors") for run in (whole, parts))
    assert same(one, other)
    one, other = state_of(whole.run), state_of(parts.run)
    assert same({**one, "log": 0}, {**other, "log": 0})
    logs = [read_log(run.run / "log.jsonl") for run in (whole, parts)]
    moving = {"seconds", "steps_per_second", "minutes_left", "memory_mib"}
    plain = [[{k: v for k, v in line.items() if k not in moving} for line in log] for log in logs]
    assert plain[0] == plain[1]
    assert plain[0][-1]["event"] == "finished"


def test_a_second_run_is_refused_while_the_first_lives(tmp_path: Path) -> None:
    """And not after it was killed, though a reader of its images lives on."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        Lock(tmp_path / "run.lock")
        if os.fork() == 0:  # a reader of images
            os.write(writer, f"{os.getpid():10}".encode())
        signal.pause()
    orphan = int(os.read(reader, 10))
    try:
        assert is_locked(tmp_path / "run.lock")
        with pytest.raises(ConfigError, match=rf"written by another run \(process {child} on .*name another"):
            Run(tmp_path, config_toml="", resume=False)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run.lock"]
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.kill(orphan, 0)  # it is there
        assert not is_locked(tmp_path / "run.lock")
        run = Run(tmp_path, config_toml="", resume=False)
        assert is_locked(tmp_path / "run.lock")
        with pytest.raises(ConfigError, match="another run"):  # in the same process too
            Run(tmp_path, config_toml="", resume=False)
        run.close()
        assert not is_locked(tmp_path / "run.lock")
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_a_run_killed_before_its_first_step_begins_anew(toy: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text("epochs = 1\n")
    (tmp_path / "run" / "log.jsonl").write_text(json.dumps({"event": "before", "step": 0}) + "\n")
    train(toy(), tmp_path / "run", resume=True)
    train(toy(), tmp_path / "whole")
    one, other = (state_of(tmp_path / name) for name in ("run", "whole"))
    assert same({**one, "log": 0}, {**other, "log": 0})
    assert not [line for line in read_log(tmp_path / "run" / "log.jsonl") if line["event"] == "before"]


def test_a_lost_checkpoint_is_no_new_run(toy: Any, tmp_path: Path) -> None:
    train(toy(), tmp_path / "run")
    for name in ("checkpoint.pt", "checkpoint.previous"):
        (tmp_path / "run" / name).unlink()
    for resume in (False, True):
        with pytest.raises(ConfigError, match=r"remove it"):
            train(toy(), tmp_path / "run", resume=resume)


def test_other_data_or_weights_are_refused(stage_one: Any, small: Any, faces: Path, tmp_path: Path) -> None:
    people = tmp_path / "people"
    shutil.copytree(faces, people)
    started = Path(shutil.copytree(stage_one.weights, tmp_path / "start"))
    tune = TUNE | {"weights": str(started), "workers": 0, "epochs": 1}
    runs = (pretrain, small | {"out": tmp_path / "one"}), (finetune, tune | {"out": tmp_path / "two"})
    for run, options in runs:
        run(str(people), **options)
    other = build_embedder("test_resnet", preprocess=load_embedder(started).preprocess)
    save_weights(started, other, provenance={}, metrics={})
    with pytest.raises(ConfigError, match="the weights of this run changed since it began"):
        finetune(str(people), **tune, out=tmp_path / "two", resume=True)
    image = next(people.rglob("*.jpg"))
    image.write_bytes(image.read_bytes() + b"!")
    with pytest.raises(ConfigError, match="the data of this run changed since it began"):
        pretrain(str(people), **small, out=tmp_path / "one", resume=True)


def test_a_list_that_changed_is_refused(stage_one: Any, small: Any, faces: Path, tmp_path: Path) -> None:
    """The path stays, what stands in the list does not. A checkpoint from before the split was kept goes on."""
    names = read_index(str(faces)).identities
    val, out = tmp_path / "val.txt", tmp_path / "out.txt"
    val.write_text("\n".join(names[:4]))
    out.write_text(names[5])
    lists = {"val_identities": val, "leave_out": out, "workers": 0, "epochs": 1}
    tune = TUNE | {"weights": str(stage_one.weights)} | lists | {"out": tmp_path / "two"}
    runs = (pretrain, small | lists | {"out": tmp_path / "one"}), (finetune, tune)
    for run, options in runs:
        run(str(faces), **options)
    for changed, text in ((val, "\n".join(names[1:5])), (val, "\n".join(names[:5])), (out, names[6])):
        before = changed.read_text()
        changed.write_text(text)
        for run, options in runs:
            with pytest.raises(
                ConfigError,
                match=r"a list or the people or images that it names of this run changed .* another out=",
            ):
                run(str(faces), **options, resume=True)
        changed.write_text(before)
    val.write_text("\n".join(names[1:5]))
    for run, options in runs:
        kept = tmp_path / Path(options["out"]).name / "checkpoint.pt"
        state = torch.load(kept, weights_only=True)
        del state["extra"]["split"]
        torch.save(state, kept)
        run(str(faces), **options, resume=True)
