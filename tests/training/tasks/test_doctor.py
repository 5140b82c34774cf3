"""Each illness is caused, and the doctor names it; a healthy run hears nothing."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from small_trainings import numbers
from torch.nn import functional

from facemetric.config import FinetuneConfig
from facemetric.errors import DataError
from facemetric.training.stage import check_training
from facemetric.training.tasks.doctor import WINDOW, Doctor, Seen, spread
from facemetric.training.tasks.objective import Objective


class Log:
    """A run that keeps what the doctor says."""

    def __init__(self) -> None:
        self.findings: list[str] = []

    def log(self, event: str, step: int, **values: Any) -> None:
        assert event == "doctor"
        self.findings.append(values["finding"])
        assert "\n" not in values["text"]


def objective_of(config: FinetuneConfig, log: Log) -> Objective:
    loss = check_training(config).loss
    assert loss is not None
    return Objective(config, loss, log)  # type: ignore[arg-type]


def step_of(objective: Objective, emb_BD: torch.Tensor, labels_B: torch.Tensor) -> None:
    """A step, whose figures are read at once."""
    _, figures = objective(emb_BD, labels_B)
    objective.watch(numbers(figures))


def train(
    emb_of: Any, labels: torch.Tensor, *, miner: str = "semihard", margin: float = 0.2, soft: bool = False
) -> list[str]:
    return trained(FinetuneConfig(("x",), miner=miner, margin=margin, soft_margin=soft), emb_of, labels)


def trained(config: FinetuneConfig, emb_of: Any, labels: torch.Tensor) -> list[str]:
    log = Log()
    objective = objective_of(config, log)
    for step in range(WINDOW + 5):
        torch.manual_seed(step)
        step_of(objective, functional.normalize(emb_of(), dim=1), labels)
    return log.findings


LABELS = torch.arange(32) // 4
CENTRES = functional.normalize(torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), dim=1)


def healthy() -> torch.Tensor:
    return CENTRES[LABELS] + 0.25 * torch.randn(32, 16)


@pytest.mark.parametrize("miner", ["all", "semihard", "hard"])
def test_a_healthy_run_hears_nothing(miner: str) -> None:
    assert train(healthy, LABELS, miner=miner, margin=0.5) == []


@pytest.mark.parametrize("miner", ["all", "semihard", "hard"])
def test_collapse(miner: str) -> None:
    point = torch.ones(16)
    assert train(lambda: point + 0.01 * torch.randn(32, 16), LABELS, miner=miner) == ["collapse"]


@pytest.mark.parametrize("soft", [False, True])
def test_stuck_at_the_margin(soft: bool) -> None:
    # Directions at random in a high dimension: all distances are 2, whoever it is.
    found = train(lambda: torch.randn(32, 16384), LABELS, miner="distance-weighted", margin=1.0, soft=soft)
    assert found == ["stuck"]


def test_a_few_that_are_not_told_apart_are_not_the_whole() -> None:
    # Two of eight people are scattered: only their triplets violate the margin, by all of it.
    noise = torch.where(LABELS < 2, 1.0, 1e-3)[:, None]
    centres = functional.normalize(torch.randn(8, 16384, generator=torch.Generator().manual_seed(0)), dim=1)
    found = train(
        lambda: centres[LABELS] * (noise < 1) + noise * torch.randn(32, 16384),
        LABELS,
        miner="all",
        margin=1.0,
    )
    assert found == []


def test_dead_miner() -> None:
    found = train(lambda: CENTRES[LABELS] + 1e-3 * torch.randn(32, 16), LABELS, miner="all", margin=0.05)
    assert found == ["dead miner"]


def test_hard_mining_is_not_told_to_mine_hard() -> None:
    """It finds only triplets without a loss where all are far apart: neither is there anything harder."""
    said: list[str] = []
    doctor = Doctor(margin=0.2, soft=False, miner="hard", say=lambda name, text: said.append(text))
    for _ in range(WINDOW):
        doctor.watch(Seen(loss=0.0, active=0, valid=100, d_ap=0.1, d_an=1.9, spread=0.9))
    assert len(said) == 1
    assert "mine with hard" not in said[0]


def test_one_class() -> None:
    assert train(healthy, torch.zeros(32, dtype=torch.long)) == ["one class"]
    assert train(healthy, torch.arange(32)) == ["one class"]


def test_nan_is_an_error_at_once() -> None:
    with pytest.raises(DataError, match="NaN or infinite"):
        train(lambda: torch.full((32, 16), float("nan")), LABELS)


PAIRS = ["supcon", "multi-similarity", "circle", "contrastive"]


@pytest.mark.parametrize("loss", PAIRS)
def test_losses_of_pairs(loss: str) -> None:
    config = FinetuneConfig(("x",), loss=loss)
    assert trained(config, healthy, LABELS) == []
    assert trained(config, lambda: torch.ones(16) + 0.01 * torch.randn(32, 16), LABELS) == ["collapse"]
    assert trained(config, lambda: torch.randn(32, 16384), LABELS) == ["stuck"]
    for labels in (torch.zeros(32, dtype=torch.long), torch.arange(32)):
        assert trained(config, healthy, labels) == ["one class"]


def test_pairs_without_a_loss() -> None:
    """Impostor pairs that are farther than every genuine pair by more than epsilon: none is kept."""
    config = FinetuneConfig(("x",), loss="multi-similarity", loss_args="epsilon = 0.0")
    assert trained(config, lambda: CENTRES[LABELS] + 1e-3 * torch.randn(32, 16), LABELS) == ["dead miner"]


def test_spread() -> None:
    assert spread(torch.eye(4)[[0, 0, 0]]) == pytest.approx(0.0)
    assert spread(torch.cat([torch.eye(4), -torch.eye(4)])) == pytest.approx(1.0)


def test_a_resumed_run_hears_what_an_unbroken_one_hears() -> None:
    """The window and what was said go through a checkpoint: nothing comes later, and nothing twice."""

    def objective() -> tuple[Objective, Log]:
        log = Log()
        return objective_of(FinetuneConfig(("x",)), log), log

    point, labels = functional.normalize(torch.ones(8, 4), dim=1), torch.arange(4).repeat(2)
    whole, heard = objective()
    for _ in range(WINDOW):
        step_of(whole, point, labels)
    assert heard.findings == ["collapse"]
    parts, _ = objective()
    for _ in range(WINDOW - 1):
        step_of(parts, point, labels)
    rest, heard = objective()
    rest.load_state_dict(parts.state_dict())
    assert heard.findings == []
    step_of(rest, point, labels)
    assert heard.findings == ["collapse"]
    again, heard = objective()
    again.load_state_dict(rest.state_dict())
    step_of(again, point, labels)
    assert heard.findings == []


def mean_of_squares(emb_BD: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
    """A loss of one's own, which names no triplets."""
    return emb_BD.square().mean()


def test_of_a_loss_of_ones_own_only_the_collapse_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{__name__}:mean_of_squares"
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    for emb_of, findings in ((healthy, []), (lambda: torch.ones(32, 16), ["collapse"])):
        log = Log()
        objective = objective_of(FinetuneConfig(("x",), loss=name), log)
        for _ in range(WINDOW):
            step_of(objective, functional.normalize(emb_of(), dim=1), LABELS)
        assert log.findings == findings
