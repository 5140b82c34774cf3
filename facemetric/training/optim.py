"""The optimizer and the learning rate's schedule of both stages: timm's, by their names."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from facemetric.config import StageConfig
from facemetric.errors import ConfigError, did_you_mean


class Amp:
    """Mixed precision by the option of this name; float16 has a loss scaler, whose state is in the checkpoint.

    Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2."""

    def __init__(self, device: torch.device, wanted: str) -> None:
        if wanted == "auto" and device.type == "cuda":
            wanted = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        self.enabled = wanted in ("bfloat16", "float16")
        self.dtype = torch.float16 if wanted == "float16" else torch.bfloat16
        self.scaler = torch.amp.GradScaler(device.type, enabled=wanted == "float16")
        self.device_type = device.type

    def autocast(self) -> torch.autocast:
        """The context for the forward pass."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.enabled)

    def backward(self, loss: Tensor) -> None:
        """Backward of the scaled loss, outside of autocast."""
        with torch.autocast(self.device_type, enabled=False):
            self.scaler.scale(loss).backward()


SCHEDULERS = ("cosine", "tanh", "step", "multistep", "poly", "constant", "wsd", "rsqrt")  # to choose from


SECOND_ORDER = ("adahessian",)  # needs second derivatives, which the loop does not take


STEPS, MILESTONES = 3, (0.5, 0.75)  # where `step` and `multistep` fall to a tenth, in shares of the run


def make_optimizer(config: StageConfig, parts: list[tuple[nn.Module, float]]) -> torch.optim.Optimizer:
    """timm's optimizer over modules with a learning rate each; vectors (biases, norms) have no weight decay.

    Raises ConfigError for a name that timm does not know."""
    known = [str(name) for name in list_optimizers() if name not in SECOND_ORDER]
    if config.optimizer not in known:
        raise ConfigError(f"unknown optimizer {config.optimizer!r}{did_you_mean(config.optimizer, known)}")
    groups = []
    for module, lr in parts:
        trained = [p for p in module.parameters() if p.requires_grad]
        groups.append(
            {"params": [p for p in trained if p.ndim > 1], "lr": lr, "weight_decay": config.weight_decay}
        )
        groups.append({"params": [p for p in trained if p.ndim <= 1], "lr": lr, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    name = config.optimizer
    if name in ("sgd", "nesterov") and config.momentum == 0:
        name = "momentum"  # Nesterov's needs one
    try:
        return create_optimizer_v2(
            groups,
            opt=name,
            lr=parts[0][1],
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        )
    except (ValueError, TypeError, AssertionError, ImportError, RuntimeError) as error:
        raise ConfigError(
            f"timm cannot make the optimizer {name} ({str(error).strip()}); choose another --optimizer"
        ) from error


def make_scheduler(config: Any, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Scheduler:
    """timm's schedule, stepped after every batch. Raises ConfigError for a name that timm does not know.

    timm's own numbers for `step` and `multistep` are meant for 300 epochs, and its one rate is a factor for these
    two and the power for `poly`: here they follow the length of the run, and `poly` is a straight line to 0."""
    name, warmup = config.scheduler, min(config.warmup_epochs, config.epochs / 2)
    # An older timm has not all of them.
    hint = did_you_mean(name, [known for known in SCHEDULERS if known != name])
    if name == "plateau":
        raise ConfigError(
            "--scheduler plateau waits for the validation, and timm does not keep how long it has waited, so a "
            "resumed run would go another way; choose a schedule of the steps, such as cosine"
        )
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=name,
            num_epochs=max(1, config.epochs),
            warmup_epochs=warmup,  # type: ignore[arg-type]
            warmup_lr=1e-6,
            warmup_prefix=False,
            min_lr=0.0,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
            decay_rate=1.0 if name == "poly" else 0.1,
            decay_milestones=[share * config.epochs for share in MILESTONES],  # type: ignore[misc]
            **({"decay_epochs": max(1, config.epochs) / STEPS} if name == "step" else {}),
        )
    except (AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"timm cannot make the schedule {name!r} ({error}){hint}") from error
    if scheduler is None:
        raise ConfigError(f"unknown scheduler {name!r}{hint}")
    return scheduler
