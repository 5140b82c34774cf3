"""The optimizer and the learning rate's schedule of both stages: timm's, by their names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.optim import create_optimizer_v2, get_optimizer_class, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn

from facemetric.config import FinetuneConfig, PretrainConfig, StageConfig
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

    def backward(self, loss: Tensor, last: bool = True) -> None:
        """Backward of the scaled loss, outside of autocast."""
        with torch.autocast(self.device_type, enabled=False):
            self.scaler.scale(loss).backward()


# Those of timm 1.0.26 and later, but `plateau`.
SCHEDULERS = ("cosine", "tanh", "step", "multistep", "poly", "constant", "wsd", "rsqrt")
SECOND_ORDER = ("adahessian",)  # needs second derivatives, which the loop does not take
STEPS, MILESTONES = 3, (0.5, 0.75)  # where `step` and `multistep` fall to a tenth, in shares of the run
NO_OPTIMIZER = (ValueError, TypeError, AssertionError, ImportError, RuntimeError)  # what timm raises


def check_optimizer(name: str) -> None:
    """Raise ConfigError for an optimizer that timm does not know, or that this machine lacks the packages of."""
    known = [str(known) for known in list_optimizers() if known not in SECOND_ORDER]
    if name not in known:
        raise ConfigError(f"unknown optimizer {name!r}{did_you_mean(name, known)}")
    try:
        get_optimizer_class(name)
    except NO_OPTIMIZER as error:
        raise no_optimizer(name, error) from error


def no_optimizer(name: str, error: Exception) -> ConfigError:
    """timm's reason, and the remedy."""
    return ConfigError(
        f"timm cannot make the optimizer {name} ({str(error).strip()}); choose another --optimizer"
    )


def check_scheduler(name: str) -> None:
    """Raise ConfigError for a schedule that timm does not know, or that a run could not resume."""
    if name == "plateau":
        raise ConfigError(
            "--scheduler=plateau waits for the validation, and timm does not keep how long it has waited, so a "
            "resumed run would go another way; choose a schedule of the steps, such as cosine"
        )
    if name not in SCHEDULERS:
        raise ConfigError(f"unknown scheduler {name!r}{did_you_mean(name, SCHEDULERS)}")


def make_optimizer(config: StageConfig, parts: Sequence[tuple[nn.Module, float]]) -> torch.optim.Optimizer:
    """timm's optimizer over modules with a learning rate each; vectors (biases, norms) have no weight decay.

    Raises ConfigError for a name that timm does not know."""
    check_optimizer(config.optimizer)
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
    except NO_OPTIMIZER as error:
        raise no_optimizer(name, error) from error


def make_scheduler(
    config: PretrainConfig | FinetuneConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> Scheduler:
    """timm's schedule, stepped after every batch. Raises ConfigError for a name that timm does not know.

    timm's own numbers for `step` and `multistep` are meant for 300 epochs, and its one rate is a factor for these
    two and the power for `poly`: here they follow the length of the run, and `poly` is a straight line to 0."""
    name, warmup = config.scheduler, min(config.warmup_epochs, config.epochs / 2)
    check_scheduler(name)
    # timm compares a milestone with the step + 1, so that the rate would fall one step early.
    milestones = [share * config.epochs + 1 / steps_per_epoch for share in MILESTONES]
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
            decay_milestones=milestones,  # type: ignore[arg-type]
            **({"decay_epochs": max(1, config.epochs) / STEPS} if name == "step" else {}),  # type: ignore[arg-type]
        )
    except (AssertionError, ValueError, TypeError) as error:
        raise ConfigError(
            f"timm cannot make the schedule {name!r} ({error}); choose another --scheduler"
        ) from error
    assert scheduler is not None
    return scheduler
