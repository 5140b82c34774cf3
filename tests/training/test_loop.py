"""The loop: a run that goes on has the same bits as one that was never stopped."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_trainings import same
from torch import Tensor

from facemetric.config import PretrainConfig
from facemetric.errors import ConfigError, TrainingError
from facemetric.training import loop
from facemetric.training.loop import Progress, fit, stop_signals
from facemetric.training.run.run import Run
from facemetric.training.step.optim import make_optimizer, make_scheduler
from facemetric.training.task import Settings


def train(
    task: Any, folder: Path, *, resume: bool = False, ema: float = 0.0, minutes: float = 60.0, **options: Any
) -> Progress:
    """fit() a task as the stages do; `options` are those of stage one."""
    config = PretrainConfig(**({"epochs": 3, "lr": 0.05, "optimizer": "sgd"} | options))
    settings = Settings(
        config.epochs,
        config.clip_grad,
        ema,
        config.amp,
        config.seed,
        minutes,
        config.validate_every,
        config.max_steps,
    )
    run = Run(folder, config_toml=f"epochs = {config.epochs}\n", resume=resume)
    try:
        optimizer = make_optimizer(config, [(task.model, config.lr)])
        scheduler = make_scheduler(config, optimizer, task.steps_per_epoch)
        return fit(task, run, optimizer, scheduler, settings, resume=resume)
    finally:
        run.close()


def state_of(folder: Path) -> dict[str, Any]:
    """The checkpoint, without the length of the log: its lines hold times."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state.pop("log") > 0
    return state


def log_of(folder: Path, event: str = "") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if event in ("", line["event"])]


def stopper(number: int) -> Callable[[int, int], float]:
    """Send ourselves a signal in step 2 of epoch 1."""

    def at_step(epoch: int, step: int) -> float:
        if (epoch, step) == (1, 2):
            signal.raise_signal(number)
        return 1.0

    return at_step


def crash(epoch: int, step: int) -> float:
    """The power goes in step 3 of epoch 1."""
    if (epoch, step) == (1, 3):
        raise InterruptedError
    return 1.0


@pytest.fixture(params=[("sgd", 0.0), ("adamw", 0.9)], ids=["sgd", "adamw and ema"])
def how(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"optimizer": request.param[0], "ema": request.param[1]}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_goes_on_with_the_same_bits(
    toy: Any, tmp_path: Path, how: dict[str, Any], number: int
) -> None:
    whole = toy()
    train(whole, tmp_path / "whole", **how)
    with pytest.raises(TrainingError, match="after step 3 of epoch 2; the same command with --resume"):
        train(toy(stopper(number)), tmp_path / "parts", **how)
    assert log_of(tmp_path / "parts")[-1]["event"] == "stopped"
    rest = toy()
    train(rest, tmp_path / "parts", resume=True, **how)
    assert rest.seen[0] == (1, 3)
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))
    assert same(whole.saved[-1], rest.saved[-1])


@pytest.mark.parametrize(("minutes", "first"), [(0.0, (1, 3)), (60.0, (1, 0))], ids=["steps", "epochs"])
def test_a_crash_loses_the_steps_since_the_checkpoint(
    toy: Any, tmp_path: Path, how: dict[str, Any], minutes: float, first: tuple[int, int]
) -> None:
    train(toy(), tmp_path / "whole", **how)
    with pytest.raises(InterruptedError):
        train(toy(crash), tmp_path / "parts", minutes=minutes, **how)
    rest = toy()
    train(rest, tmp_path / "parts", resume=True, minutes=minutes, **how)
    assert rest.seen[0] == first
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_mixed_precision_goes_on_with_the_same_bits(toy: Any, tmp_path: Path, amp: str) -> None:
    """A loss so large that float16 overflows: the scaler skips steps and halves its scale, which must be kept."""

    factor = 20.0 if amp == "float16" else 1.0

    def task(*, dies: bool = False) -> Any:
        return toy(lambda epoch, step: factor * (crash(epoch, step) if dies else 1.0))

    train(task(), tmp_path / "whole", amp=amp)
    whole = state_of(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        train(task(dies=True), tmp_path / "parts", minutes=0.0, amp=amp)
    scaler = state_of(tmp_path / "parts")["scaler"]
    assert scaler.get("scale", 0) < 65536  # what it starts with
    assert bool(scaler) == (amp == "float16")
    train(task(), tmp_path / "parts", resume=True, amp=amp)
    assert same(whole, state_of(tmp_path / "parts"))
    train(task(), tmp_path / "plain", amp="off")
    assert not same(whole["model"], state_of(tmp_path / "plain")["model"])


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_mixed_precision_trains_as_float32_does(toy: Any, tmp_path: Path, amp: str) -> None:
    """The scale is out of the gradient before its norm is clipped, and before the step."""
    states, norms = [], []
    for name in (amp, "off"):
        train(toy(lambda epoch, step: 0.01), tmp_path / name, amp=name, epochs=1, clip_grad=0.02)
        norms.append(log_of(tmp_path / name, "train")[0]["grad_norm"])
        states.append(state_of(tmp_path / name)["model"])
    assert norms[1] > 0.02  # it is clipped
    assert norms[0] == pytest.approx(norms[1], rel=0.05)
    start = toy().model.state_dict()["0.weight"]
    moved = float((states[1]["0.weight"] - start).abs().max())
    torch.testing.assert_close(states[0]["0.weight"], states[1]["0.weight"], rtol=0, atol=0.1 * moved)
    assert not torch.equal(states[0]["0.weight"], states[1]["0.weight"])


@pytest.mark.parametrize("damage", ["cut", "noise", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    toy: Any, tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(toy(), tmp_path / "whole", ema=0.9)
    with pytest.raises(TrainingError):
        train(toy(stopper(signal.SIGTERM)), tmp_path / "parts", ema=0.9)
    checkpoint = tmp_path / "parts" / "checkpoint.pt"
    if damage == "cut":
        os.truncate(checkpoint, checkpoint.stat().st_size // 2)
    elif damage == "noise":
        checkpoint.write_bytes(b"\x80\x02" + bytes(range(256)))
    else:
        checkpoint.unlink()
    capsys.readouterr()
    rest = toy()
    train(rest, tmp_path / "parts", resume=True, ema=0.9)
    said = capsys.readouterr().out
    assert f"checkpoint.pt is {'missing' if damage == 'missing' else 'damaged'}" in said
    assert "going on from checkpoint.previous" in said
    assert rest.seen[0] == (1, 0)
    assert same(state_of(tmp_path / "whole"), state_of(tmp_path / "parts"))
    assert (tmp_path / "parts" / "checkpoint.damaged").exists() == (damage != "missing")


def test_other_options_and_other_processes_are_said(
    toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingError):
        train(toy(stopper(signal.SIGTERM)), tmp_path / "run")
    capsys.readouterr()
    monkeypatch.setattr(loop.distributed, "world_size", lambda: 2)
    train(toy(), tmp_path / "run", resume=True, epochs=4)
    said = capsys.readouterr().out
    assert "going on with other options: epochs 4, before 3" in said
    assert "resumed on 2 processes, before 1: every step sees the same images" in said
    assert "will not be the same bits" in said
    train(toy(), tmp_path / "run", resume=True, epochs=4)
    said = capsys.readouterr().out
    assert "another" not in said
    assert "resumed on" not in said


def test_without_a_whole_checkpoint_there_is_nothing_to_resume(toy: Any, tmp_path: Path) -> None:
    train(toy(), tmp_path / "run")
    for name in ("checkpoint.pt", "checkpoint.previous"):
        (tmp_path / "run" / name).write_bytes(b"")
    with pytest.raises(ConfigError, match=r"checkpoint.pt is damaged.*checkpoint.previous is damaged"):
        train(toy(), tmp_path / "run", resume=True)


def test_the_log_of_a_stopped_run_is_whole(toy: Any, tmp_path: Path) -> None:
    train(toy(), tmp_path / "whole")
    with pytest.raises(TrainingError):
        train(toy(stopper(signal.SIGTERM)), tmp_path / "parts")
    with open(tmp_path / "parts" / "log.jsonl", "a") as file:
        file.write('{"event": "train", "st')  # a crash in the middle of a line
    train(toy(), tmp_path / "parts", resume=True)

    def validations(folder: str) -> list[dict[str, Any]]:
        lines = log_of(tmp_path / folder, "validation")
        return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]

    assert validations("whole") == validations("parts")
    assert not log_of(tmp_path / "parts", "stopped")
    steps = [line["step"] for line in log_of(tmp_path / "parts", "train")]
    assert steps == [5, 8, 10, 15]  # 8: the checkpoint of the stop

    def summed(folder: str) -> float:
        lines = log_of(tmp_path / folder, "train")
        before = [0, *(line["step"] for line in lines)]
        return sum(line["loss"] * (line["step"] - last) for line, last in zip(lines, before, strict=False))

    assert summed("parts") == pytest.approx(summed("whole"), rel=1e-5)


def test_a_crash_leaves_no_line_twice(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "LOG_STEPS", 1)
    with pytest.raises(InterruptedError):
        train(toy(crash), tmp_path / "run")
    train(toy(), tmp_path / "run", resume=True)
    keys = [(line["event"], line["step"]) for line in log_of(tmp_path / "run")]
    assert len(keys) == len(set(keys)) == 15 + 3


def test_each_step_draws_its_own_numbers(toy: Any, tmp_path: Path) -> None:
    seen: list[tuple[float, ...]] = []

    def look(epoch: int, step: int) -> float:
        seen.append((float(torch.rand(())), random.random(), np.random.random()))
        return 1.0

    train(toy(look), tmp_path / "a")
    assert all(len(set(numbers)) == 15 for numbers in zip(*seen, strict=True))
    train(toy(look), tmp_path / "b", seed=1)
    assert all(len(set(numbers)) == 30 for numbers in zip(*seen, strict=True))


@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(
    toy: Any, tmp_path: Path, factor: float
) -> None:
    last: dict[str, Tensor] = {}

    def at_step(epoch: int, step: int) -> float:
        if (epoch, step) == (1, 2):
            last.update({name: value.detach().clone() for name, value in task.model.named_parameters()})
            return factor
        return 1.0

    task = toy(at_step)
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) in epoch 2, step 3; lower --lr"):
        train(task, tmp_path / "run")
    assert same(last, dict(task.model.named_parameters()))


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(toy: Any, tmp_path: Path) -> None:
    task = toy()
    task.model[3].weight.register_hook(lambda grad: grad / 0)
    before = {name: value.detach().clone() for name, value in task.model.named_parameters()}
    with pytest.raises(TrainingError, match=r"the gradient is (nan|inf) in epoch 1, step 1"):
        train(task, tmp_path / "run")
    assert same(before, dict(task.model.named_parameters()))


def test_the_best_epoch_is_kept_and_ties_keep_the_first(toy: Any, tmp_path: Path) -> None:
    task = toy(scores=[0.2, 0.5, 0.5, 0.1])
    at = train(task, tmp_path / "run", epochs=4)
    assert len(task.saved) == 2
    assert at.best_epoch == 2
    assert at.best is not None
    assert at.best["score"] == 0.5
    assert same(task.saved[-1], task.validated[1])
    assert not same(task.saved[-1], task.validated[3])


def test_the_best_epoch_survives_a_stop(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingError):
        train(toy(stopper(signal.SIGTERM), scores=[0.9]), tmp_path / "run")
    rest = toy(scores=[0.5, 0.6])
    at = train(rest, tmp_path / "run", resume=True)
    assert (at.best_epoch, rest.saved) == (1, [])


def test_validation_every_few_epochs_and_after_the_last(toy: Any, tmp_path: Path) -> None:
    task = toy(scores=[0.2, 0.5, 0.1])
    at = train(task, tmp_path / "run", epochs=5, validate_every=2)
    assert [line["epoch"] for line in log_of(tmp_path / "run", "validation")] == [2, 4, 5]
    assert at.best_epoch == 4


def test_without_a_score_the_last_epoch_is_kept(toy: Any, tmp_path: Path) -> None:
    task = toy()
    at = train(task, tmp_path / "run")
    assert (len(task.saved), at.best_epoch) == (3, 3)
    assert same(task.saved[-1], state_of(tmp_path / "run")["model"])


def test_the_moving_average_is_what_is_kept(toy: Any, tmp_path: Path) -> None:
    task = toy()
    train(task, tmp_path / "run", ema=0.9)
    state = state_of(tmp_path / "run")
    assert same(task.saved[-1], state["ema"])
    assert not same(state["ema"], state["model"])


def test_a_resume_with_other_options_is_refused_and_keeps_the_old_ones(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingError):
        train(toy(stopper(signal.SIGTERM)), tmp_path / "run")
    other = toy()
    other.steps_per_epoch = 4
    with pytest.raises(ConfigError, match="5 steps an epoch, this run 4; resume with the data"):
        train(other, tmp_path / "run", resume=True, epochs=9)
    assert (tmp_path / "run" / "config.toml").read_text() == "epochs = 3\n"
    wider = toy()
    wider.model[3] = torch.nn.Linear(8, 2)
    with pytest.raises(ConfigError, match="of another model or optimizer"):
        train(wider, tmp_path / "run", resume=True)
    train(toy(), tmp_path / "run", resume=True, epochs=4)
    assert (tmp_path / "run" / "config.toml").read_text() == "epochs = 4\n"


def test_another_optimizer_or_average_is_refused_before_a_step(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(TrainingError):
        train(toy(stopper(signal.SIGTERM)), tmp_path / "run")
    kept = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with pytest.raises(
        ConfigError, match=r"has the optimizer SGD\w*, this run AdamW\w*; resume with the --optimizer"
    ):
        train(toy(), tmp_path / "run", resume=True, optimizer="adamw")
    with pytest.raises(ConfigError, match="no moving average; resume without --ema"):
        train(toy(), tmp_path / "run", resume=True, ema=0.9)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == kept
    for alien in ({"model": {}}, {"steps_per_epoch": 5, "ema": None, "model": 3}, {}):
        torch.save(alien, tmp_path / "run" / "checkpoint.pt")
        with pytest.raises(ConfigError, match="is of another model or optimizer"):
            train(toy(), tmp_path / "run", resume=True)


def test_a_run_goes_on_with_the_options_given_now(toy: Any, tmp_path: Path) -> None:
    """Those of the optimizer too, whose checkpoint holds the old ones."""
    with pytest.raises(TrainingError):
        train(toy(stopper(signal.SIGTERM)), tmp_path / "run")
    train(toy(), tmp_path / "run", resume=True, weight_decay=0.25, momentum=0.5, lr=0.01, scheduler="cosine")
    groups = state_of(tmp_path / "run")["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.25, 0.0]
    assert [group["momentum"] for group in groups] == [0.5, 0.5]
    assert all(0 < group["lr"] < 0.01 for group in groups)


@pytest.mark.parametrize(("before", "now"), [("off", "float16"), ("float16", "off"), ("bfloat16", "float16")])
def test_a_run_goes_on_in_another_precision(toy: Any, tmp_path: Path, before: str, now: str) -> None:
    with pytest.raises(TrainingError):
        train(toy(stopper(signal.SIGTERM)), tmp_path / "run", amp=before)
    train(toy(), tmp_path / "run", resume=True, amp=now)
    assert bool(state_of(tmp_path / "run")["scaler"]) == (now == "float16")


@pytest.fixture
def python_s_own_sigint() -> Iterator[Any]:
    """The handler of Ctrl-C that Python starts with; a shell's background jobs begin without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_the_second_ctrl_c_interrupts_at_once(python_s_own_sigint: Any) -> None:
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012, SIM117
        with stop_signals() as stopped:
            signal.raise_signal(signal.SIGINT)
            assert stopped.is_set()
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is python_s_own_sigint


def test_a_thread_leaves_the_signals_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def in_thread() -> None:
        with stop_signals() as stopped:
            seen.append((stopped.is_set(), signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    assert seen == [(False, True)]


@pytest.mark.parametrize("steps", [8, 10])
def test_max_steps_ends_a_training_early_and_more_of_them_go_on(
    toy: Any, tmp_path: Path, how: dict[str, Any], steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = toy()
    train(whole, tmp_path / "whole", **how)
    capsys.readouterr()
    first = toy()
    at = train(first, tmp_path / "parts", max_steps=steps, **how)
    assert len(first.seen) == steps
    assert (at.epoch, at.step) == divmod(steps, 5)
    assert f"--max-steps: {steps} of 15 steps are done; the rest would take about" in capsys.readouterr().out
    assert len(first.validated) == 2  # after the first epoch, and at the end
    rest = toy()
    train(rest, tmp_path / "parts", resume=True, **how)
    assert rest.seen[0] == divmod(steps, 5)
    ends = [state_of(tmp_path / name) for name in ("whole", "parts")]
    for part in ("model", "ema", "optimizer"):
        assert same(ends[0][part], ends[1][part])


def test_an_epoch_that_was_cut_counts_by_its_number(
    toy: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = train(toy(scores=[0.5]), tmp_path / "run", max_steps=3)
    assert at.best_epoch == 1
    assert "epoch 1/3 " in capsys.readouterr().out
    at = train(toy(scores=[0.4, 0.3, 0.6]), tmp_path / "run", resume=True)
    assert at.best_epoch == 3
    assert [line["epoch"] for line in log_of(tmp_path / "run", "validation")] == [1, 1, 2, 3]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert ["*" in line for line in lines] == [False, False, True]  # the whole first epoch was worse


def test_a_figure_of_some_steps_is_averaged_over_these(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = toy.step

    def with_some(self: Any, batch: Any, *rest: Any) -> dict[str, float]:
        some = {"some": 4.0} if batch[1] in (1, 3) else {}
        return step(self, batch, *rest) | some | {"all": float(batch[1])}

    monkeypatch.setattr(toy, "step", with_some)
    train(toy(), tmp_path / "run")
    assert [(line["some"], line["all"]) for line in log_of(tmp_path / "run", "train")] == [(4.0, 2.0)] * 3


def test_without_validation_an_epoch_says_what_it_trained(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(toy, "validate", lambda self, model: {})
    train(toy(), tmp_path / "run")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 3
    assert all(" train loss " in line and "*" not in line for line in lines)


def test_another_seed_is_refused_by_its_name(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", config_toml="seed = 0\n", resume=False)
    run.log("train", 1, loss=1.0)
    run.close()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"a run")
    with pytest.raises(
        ConfigError, match="--seed is 1, before 0; resume with the one that it was started with"
    ):
        Run(tmp_path / "run", config_toml="seed = 1\n", resume=True)
    Run(tmp_path / "run", config_toml="seed = 0\nmax_steps = 0\n", resume=True).close()


def test_another_figure_that_picks_the_epoch_is_refused(tmp_path: Path) -> None:
    """The best epoch by it may be gone; a run older than the option is one at its default."""
    run = Run(tmp_path / "run", config_toml="seed = 0\n", resume=False)
    run.log("train", 1, loss=1.0)
    run.close()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"a run")
    with pytest.raises(ConfigError, match=r"--best-by is eer, before tar@0\.01; resume with the one that"):
        Run(tmp_path / "run", config_toml='seed = 0\nbest_by = "eer"\n', resume=True)
    again = Run(tmp_path / "run", config_toml='seed = 0\nbest_by = "tar@0.01"\n', resume=True)
    assert again.changed == {}
    again.close()
