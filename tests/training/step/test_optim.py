"""timm's optimizers and schedules, as the options ask for them."""

from __future__ import annotations

import math

import pytest
import torch

from facemetric.config import PretrainConfig, StageConfig
from facemetric.errors import ConfigError
from facemetric.training.step.optim import Amp, make_optimizer, make_scheduler


@pytest.mark.parametrize(("name", "momentum"), [("sgd", 0.0), ("nesterov", 0.0), ("sgd", 0.9)])
def test_sgd_with_and_without_momentum(name: str, momentum: float) -> None:
    """Two steps down the same slope: the second is longer by what the momentum keeps."""
    module = torch.nn.Linear(1, 1, bias=False)
    config = StageConfig(optimizer=name, momentum=momentum, weight_decay=0.0)
    optimizer = make_optimizer(config, [(module, 0.1)])
    moved = []
    for _ in range(2):
        before = module.weight.item()
        module.weight.grad = torch.ones(1, 1)
        optimizer.step()
        moved.append(before - module.weight.item())
    first, second = (0.1 * (1 + momentum), 0.1 * (1 + momentum + momentum**2))
    assert moved == pytest.approx([first, second], rel=1e-5)


def test_an_optimizer_that_needs_second_derivatives() -> None:
    with pytest.raises(ConfigError, match="unknown optimizer 'adahessian'"):
        make_optimizer(StageConfig(optimizer="adahessian"), [(torch.nn.Linear(1, 1), 0.1)])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("step", [1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01, 0.01]),
        ("multistep", [1, 1, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01]),
        ("poly", [1 - epoch / 12 for epoch in range(12)]),
        ("cosine", [(1 + math.cos(math.pi * epoch / 12)) / 2 for epoch in range(12)]),
    ],
)
def test_the_schedule_follows_the_length_of_the_run(name: str, expected: list[float]) -> None:
    config = PretrainConfig(scheduler=name, epochs=12, warmup_epochs=0, lr=0.5)
    optimizer = make_optimizer(config, [(torch.nn.Linear(2, 2), config.lr)])
    scheduler = make_scheduler(config, optimizer, 7)
    found = []
    for epoch in range(12):
        scheduler.step_update(7 * epoch)
        found.append(optimizer.param_groups[0]["lr"] / config.lr)
    assert found == pytest.approx(expected)


def test_multistep_falls_at_its_milestone_and_not_a_step_early() -> None:
    config = PretrainConfig(scheduler="multistep", epochs=12, warmup_epochs=0, lr=0.5)
    optimizer = make_optimizer(config, [(torch.nn.Linear(2, 2), config.lr)])
    scheduler = make_scheduler(config, optimizer, 7)
    found = []
    for step in range(12 * 7):
        scheduler.step_update(step)
        found.append(optimizer.param_groups[0]["lr"] / config.lr)
    assert found == pytest.approx([1.0] * 42 + [0.1] * 21 + [0.01] * 21)


def test_which_precision_a_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [Amp(cpu, name).enabled for name in ("auto", "off", "bfloat16", "float16")] == [0, 0, 1, 1]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has: has)
        found = Amp(cuda, "auto")
        assert (found.enabled, found.dtype, found.scaler.is_enabled()) == (True, dtype, not has)
    assert not Amp(cuda, "off").enabled
    with Amp(cpu, "bfloat16").autocast():
        assert torch.nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == torch.bfloat16
