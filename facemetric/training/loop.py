"""fit(): the one training loop. It knows batches, steps and epochs, and no loss."""

from __future__ import annotations

import contextlib
import math
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3
from torch import nn

from facemetric import distributed
from facemetric.distributed import say
from facemetric.errors import ConfigError, TrainingError
from facemetric.machine import keep_freed_memory, progress_bar
from facemetric.training.peers import writing
from facemetric.training.run.checkpoint import load_checkpoint, save_checkpoint, set_aside
from facemetric.training.run.folder import CHECKPOINT, Meter, Pace, figures_line, in_words
from facemetric.training.run.run import Run
from facemetric.training.shards import drawn_columns, shards_of
from facemetric.training.step.gradients import Gradients
from facemetric.training.step.optim import Amp
from facemetric.training.step.precision import set_precision
from facemetric.training.step.readings import Readings, reads_late
from facemetric.training.task import Settings, Task


@contextlib.contextmanager
def stop_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second Ctrl-C interrupts at once."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def request_stop(number: int, frame: Any) -> None:
        stopped.set()
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, request_stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Options of the optimizer that a resumed run takes as they are now; --lr is the schedule's.
GROUP_OPTIONS = ("weight_decay", "momentum")
LOG_STEPS = 20  # steps averaged into one line of the log, and on a GPU read in one transfer


@dataclass
class Progress:
    """How far a run is: its next step, and the best epoch's figures so far."""

    epoch: int = 0
    step: int = 0  # within the epoch
    best: dict[str, float] | None = None
    best_epoch: int = -1


def fit(
    task: Task,
    run: Run,
    optimizer: torch.optim.Optimizer,
    scheduler: Scheduler,
    settings: Settings,
    *,
    resume: bool = False,
    validate_first: bool = False,
) -> Progress:
    """Train `task.model`; validate, save the best and write a checkpoint each epoch, and one before the first.

    With `validate_first` the start counts as an epoch of its own, number 0. `settings.max_steps` ends the training
    early, with a validation; a later call with `resume` and more steps goes on.
    Ctrl-C and SIGTERM finish the step, write a checkpoint and raise TrainingError. A loss or gradient that is
    not finite raises TrainingError: on a CPU before the weights are touched; on a GPU, whose figures are read every
    LOG_STEPS steps, at most so many steps later, and before a checkpoint."""
    device = next(task.model.parameters()).device
    if device.type == "cpu":
        keep_freed_memory()
    distributed.same_weights(task.model)
    ema = ModelEmaV3(task.model, decay=settings.ema, use_warmup=True) if settings.ema else None
    amp = Amp(device, settings.amp)
    precision = set_precision(device, amp)
    if precision is not None:
        say(precision.text)
        run.log("device", 0, **precision._asdict())
    trainer = Trainer(task, run, optimizer, scheduler, settings, ema, amp)
    if resume:
        trainer.load(device)
    else:
        if validate_first or settings.epochs == 0:
            trainer.validate()
        trainer.save()
    trainer.pace.start(trainer.done)
    with stop_signals() as stopped:
        while trainer.at.epoch < settings.epochs and not trainer.limited:
            trainer.epoch(stopped)
    if trainer.done < trainer.total:
        trainer.say_limit()
    return trainer.at


def check_loss(loss: float, where: str) -> None:
    """Raise TrainingError for a loss that is not finite."""
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} {where}; lower --lr or raise --warmup-epochs")


def check_gradient(norm: float, where: str) -> None:
    """Raise TrainingError for a gradient whose norm is not finite."""
    if not math.isfinite(norm):
        raise TrainingError(f"the gradient is {norm} {where}; lower --lr or set --clip-grad 1")


class Trainer:
    """The state of a fit in progress."""

    def __init__(
        self,
        task: Task,
        run: Run,
        optimizer: torch.optim.Optimizer,
        scheduler: Scheduler,
        settings: Settings,
        ema: ModelEmaV3 | None,
        amp: Amp,
    ) -> None:
        self.task, self.run, self.optimizer, self.scheduler = task, run, optimizer, scheduler
        self.settings, self.ema, self.amp = settings, ema, amp
        self.at = Progress()
        self.shards = shards_of(task.model, optimizer, run.folder)
        self.device = next(task.model.parameters()).device
        self.saved = time.monotonic()
        self.pace = Pace()
        self.last: dict[str, float] = {}  # the figures of the last line of the log
        self.readings = Readings(self.device)
        self.late = reads_late(self.device)
        self.gradients = Gradients(task.model, amp, recomputed=settings.recomputed)

    @property
    def kept(self) -> nn.Module:
        """The model that is validated and saved: the moving average where there is one."""
        return self.ema.module if self.ema else self.task.model

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return self.settings.epochs * self.task.steps_per_epoch

    @property
    def done(self) -> int:
        """Steps taken so far."""
        return self.at.epoch * self.task.steps_per_epoch + self.at.step

    @property
    def limited(self) -> bool:
        """Whether --max-steps ends the training here."""
        return 0 < self.settings.max_steps <= self.done

    @property
    def where(self) -> str:
        """The step that is being taken, in words."""
        return f"in epoch {self.at.epoch + 1}, step {self.at.step + 1}"

    def too_large(self, error: Exception) -> str:
        """What to change where a batch does not fit into the memory of the device."""
        size, microbatch = self.settings.batch_size, self.settings.microbatch
        now = f" in micro-batches of {microbatch}" if microbatch else ""
        text = f"{self.device} ran out of memory {self.where}, with --batch-size {size}{now}"
        if microbatch is None:
            return f"{text}; lower --batch-size"
        share = microbatch or -(-size // distributed.world_size())
        if share < 4:
            return f"{text}; set --checkpoint-activations, or choose a smaller --image-size or backbone"
        return (
            f"{text}; set --microbatch {share // 2}, which keeps the gradient of the whole batch, or "
            "--checkpoint-activations, or lower --batch-size"
        )

    def epoch(self, stopped: threading.Event) -> None:
        """The rest of the current epoch, its validation and its checkpoint."""
        at, settings = self.at, self.settings
        meter = Meter()
        self.pace.resume()
        self.task.train_mode(at.epoch)
        self.gradients.follow()
        name = f"epoch {at.epoch + 1}/{settings.epochs}"
        bar = progress_bar(total=self.task.steps_per_epoch, desc=name, unit="step", delay=0)
        bar.update(at.step)
        with bar, contextlib.closing(self.task.batches(at.epoch, at.step)) as batches:  # type: ignore[type-var]
            for batch in batches:
                try:
                    self.step(batch)
                except torch.OutOfMemoryError as error:
                    raise TrainingError(self.too_large(error)) from error
                bar.update()
                stopping, due = self.asked(stopped)
                if not self.late or len(self.readings) == LOG_STEPS or due or stopping:
                    self.read(meter)
                # The log is complete up to each checkpoint: a resumed run goes on with both.
                if meter.count == LOG_STEPS or due or stopping:
                    means = self.log_train(meter)
                    bar.set_postfix({name: f"{value:.3g}" for name, value in list(means.items())[:4]})
                if stopping:
                    self.stop()
                if self.limited:
                    break
                if due:
                    self.save()
        self.read(meter)
        if meter.count:
            self.log_train(meter)
        if not self.limited or at.step == self.task.steps_per_epoch:
            at.epoch, at.step = at.epoch + 1, 0
        if self.limited or at.epoch % settings.validate_every == 0 or at.epoch == settings.epochs:
            self.validate()
        self.save()
        if distributed.any_of(stopped.is_set()) and at.epoch < settings.epochs:
            self.stop()

    def log_train(self, meter: Meter) -> dict[str, float]:
        """Log the means of the steps since the last line; returns them."""
        means = self.last = meter.flush()
        pace = self.pace.line(self.done, self.total)
        self.run.log("train", self.done, lr=self.optimizer.param_groups[0]["lr"], **means, **pace)
        return means

    def asked(self, stopped: threading.Event) -> list[bool]:
        """Whether to stop here, and whether a checkpoint is due, the same on all processes; on GPUs these ask each
        other every LOG_STEPS steps alone."""
        due = time.monotonic() - self.saved > 60 * self.settings.checkpoint_minutes
        if self.late and distributed.together() and self.at.step % LOG_STEPS:
            return [False, False]
        return distributed.any_of_each(stopped.is_set(), due)

    def read(self, meter: Meter) -> None:
        """Read the figures of the steps since the last reading, in one transfer.

        Raises TrainingError for the first of them whose loss or gradient is not finite."""
        for where, figures in self.readings.read():
            check_loss(figures["loss"], where)
            if not self.amp.scaler.is_enabled():  # the scaler skips such steps, and halves its scale
                check_gradient(figures["grad_norm"], where)
            norm = figures.pop("grad_norm")
            meter.add(self.task.watch(figures) | {"grad_norm": norm})

    def step(self, batch: Any) -> None:
        """One optimizer step. Random layers draw from (seed, step) alone, so a resumed run draws the same.

        On a CPU a loss or a gradient that is not finite raises TrainingError before the weights are touched."""
        seed = (self.settings.seed * 1_000_003 + self.done) * 1024 + distributed.rank()
        torch.manual_seed(seed)
        random.seed(seed)  # timm's random erasing draws from it
        np.random.seed(seed & 0xFFFFFFFF)
        self.optimizer.zero_grad(set_to_none=True)
        with self.amp.autocast():
            figures = self.task.step(batch, self.done / max(1, self.total), self.gradients)
        where = self.where
        if not self.late:
            check_loss(float(figures["loss"]), where)
        with drawn_columns(self.task.model, self.optimizer) as parameters:
            if self.amp.scaler.is_enabled():
                distributed.same_overflow(parameters)
            self.amp.scaler.unscale_(self.optimizer)
            norm = distributed.gradient_norm(parameters)
            if not self.late and not self.amp.scaler.is_enabled():
                check_gradient(float(norm), where)
            if self.settings.clip_grad:
                nn.utils.clip_grads_with_norm_(parameters, self.settings.clip_grad, norm)
            self.scheduler.step_update(self.done)
            self.amp.scaler.step(self.optimizer)
            self.amp.scaler.update()
        self.at.step += 1
        if self.ema:
            self.ema.update(self.task.model, step=self.done)
        self.readings.add(where, figures | {"grad_norm": norm})

    def validate(self) -> None:
        """Validate, and save the weights where they are the best so far (the last, without validation data)."""
        distributed.same_buffers(self.kept)
        with distributed.work_shared():
            metrics = distributed.from_first(self.task.validate(self.kept))  # all agree on the best epoch
        epoch = self.at.epoch + (self.at.step > 0)  # that of --max-steps may be cut; 0 is the start
        self.run.log("validation", self.done, epoch=epoch, **metrics)
        better = self.task.judge.better(metrics, self.at.best)
        if better:
            self.at.best, self.at.best_epoch = metrics, epoch
            if distributed.rank() == 0:
                self.task.save(self.kept, metrics)
        self.say_epoch(epoch, metrics, better)

    def say_epoch(self, epoch: int, metrics: dict[str, float], better: bool) -> None:
        """One line, of the validation's figures, or the last ones of the training where there is no validation."""
        shown = metrics or {f"train_{name}": value for name, value in self.last.items()}
        if shown:
            star = " *" if metrics and better and self.task.judge.by != "last" else ""
            end = star + self.pace.left(self.done, self.total)
            say(figures_line(f"epoch {epoch}/{self.settings.epochs}", shown, end))

    def say_limit(self) -> None:
        """That --max-steps ended the training, and how long the rest would take."""
        rest = in_words(self.pace.minutes(self.done, self.total))
        say(f"--max-steps: {self.done:,} of {self.total:,} steps are done; the rest would take about {rest}")

    def stop(self) -> None:
        """Write a checkpoint and end the run in the words the user needs to go on."""
        self.save()
        self.run.log("stopped", self.done)
        raise TrainingError(
            f"stopped after step {self.at.step} of epoch {self.at.epoch + 1}; the same command with --resume goes on"
        )

    def save(self) -> None:
        """Write the checkpoint; the log is on the disk before it."""
        state = {
            "model": self.task.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "optimizer_name": type(self.optimizer).__name__,
            "scaler": self.amp.scaler.state_dict(),
            "progress": vars(self.at),
            "steps_per_epoch": self.task.steps_per_epoch,
            "extra": self.task.extra_state(),
            "log": self.run.mark(),
            "processes": distributed.world_size(),
        }
        if self.shards:
            self.shards.save(state, self.done)
        if distributed.rank() == 0:
            with writing:
                save_checkpoint(self.run.folder / CHECKPOINT, state)
        if self.shards:
            self.shards.clean()
        self.saved = time.monotonic()
        self.pace.resume()

    def load(self, device: torch.device) -> None:
        """Go on from the checkpoint. Raises ConfigError where it belongs to another model or batch size."""
        path = self.run.folder / CHECKPOINT
        whole = self.shards.fault if self.shards else lambda state: ""
        state, note = load_checkpoint(path, device, whole)
        if note:
            say(note)
            distributed.barrier()  # all have read
            if distributed.rank() == 0:
                set_aside(path)
        try:
            self.restore(state)
        except ConfigError:
            raise
        except (RuntimeError, ValueError, AttributeError, TypeError, KeyError) as error:
            raise ConfigError(
                f"the checkpoint in {self.run.folder} is of another model or optimizer "
                f"({str(error).strip().splitlines()[-1].strip()}); resume with the options it was started with"
            ) from error
        before, now = state.get("processes", 1), distributed.world_size()
        if before != now:
            say(
                f"resumed on {now} processes, before {before}: every step sees the same images, but batch norms and "
                "random layers see each process's share, and sums are rounded in another order, so the weights "
                "will not be the same bits"
            )
        self.run.go_on(self.done, state.get("log", 1 << 62))

    def restore(self, state: dict[str, Any]) -> None:
        """Take the state of a checkpoint, but for what the options say now."""
        self.task.load_extra_state(
            state["extra"]
        )  # first: other identities are other steps, and other classes
        if state["steps_per_epoch"] != self.task.steps_per_epoch:
            raise ConfigError(
                f"the checkpoint has {state['steps_per_epoch']} steps an epoch, this run {self.task.steps_per_epoch}; "
                "resume with the data and --batch-size that it was started with"
            )
        name = type(self.optimizer).__name__
        if state.get("optimizer_name", name) != name:  # its state would load, and fail in the first step
            raise ConfigError(
                f"the checkpoint has the optimizer {state['optimizer_name']}, this run {name}; "
                "resume with the --optimizer that it was started with"
            )
        if self.shards:
            self.shards.load(state, self.device)
        elif state.get("shards"):
            raise ConfigError(
                "the checkpoint has a head that is shared out over processes; resume with --head-shards"
            )
        if self.ema and state["ema"] is None:
            raise ConfigError(
                "the checkpoint has no moving average; resume without --ema, or name another --out"
            )
        self.task.model.load_state_dict(state["model"])
        # The groups of a checkpoint have the options of its time.
        chosen = [
            {key: group[key] for key in GROUP_OPTIONS if key in group}
            for group in self.optimizer.param_groups
        ]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, options in zip(self.optimizer.param_groups, chosen, strict=True):
            group.update(options)
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        if state["scaler"]:  # a run in another precision has none: the scale starts again
            self.amp.scaler.load_state_dict(state["scaler"])
        self.at = Progress(**state["progress"])
