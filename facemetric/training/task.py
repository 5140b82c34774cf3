"""What a stage gives the loop: a task, and some numbers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from facemetric.training.run.best import Judge
from facemetric.training.step.readings import Figure


class Backward(Protocol):
    """Backward of a loss, whose gradients are added to those of the weights."""

    def __call__(self, loss: Tensor, last: bool = True) -> None:
        """`last`: no other part of this step's loss follows, so that processes may add up their gradients."""


class Task(Protocol):
    """What a stage gives the loop."""

    steps_per_epoch: int  # known after `prepare`

    def prepare(self) -> None:
        """Do what takes long before the first step (features of a frozen backbone, means of identities)."""

    @property
    def model(self) -> nn.Module:
        """All that trains, and what checkpoints hold."""

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """The batches of an epoch from step `start` on: a pure function of the seed and the epoch."""

    def train_mode(self, epoch: int) -> None:
        """Put into training mode what trains in this epoch."""

    def step(self, batch: Any, progress: float, backward: Backward) -> dict[str, Figure]:
        """Compute the loss of a batch, hand it to `backward`, in parts or whole, return figures, "loss" among them.

        `progress` is the share of the training that is done, 0..1. Figures may be tensors on the device: to read one
        here would make the host wait for it."""

    def watch(self, figures: dict[str, float]) -> dict[str, float]:
        """Take note of a step's figures, in the order of the steps, once they are read; return those for the log.

        On a CPU that is after each step, on a GPU some steps later, but before a checkpoint and a validation."""

    def validate(self, model: nn.Module) -> dict[str, float]:
        """Figures of the model on held-out data; {} where there is none."""

    @property
    def judge(self) -> Judge:
        """By which figure of the validations the best epoch is picked."""

    def save(self, model: nn.Module, metrics: dict[str, float]) -> None:
        """Write the weights folder of the best epoch."""

    def extra_state(self) -> dict[str, Any]:
        """What a resumed run needs besides model and optimizer."""

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore it. Raises ConfigError where the run began with something else."""


@dataclass(frozen=True)
class Settings:
    """Numbers of the loop: see the options of the same names."""

    epochs: int
    clip_grad: float
    ema: float
    amp: str
    seed: int
    checkpoint_minutes: float
    validate_every: int = 1
    max_steps: int = 0
    batch_size: int = 0  # for messages
    microbatch: int | None = 0  # None: the task has no use for it
    recomputed: bool = False  # activations, in backward
