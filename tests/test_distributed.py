"""Two and three processes give the loss, the gradients and the weights of one process with the whole batch."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from child_processes import in_processes
from small_trainings import numbers
from torch.nn import functional

from facemetric import distributed
from facemetric.config import FinetuneConfig
from facemetric.mining import MINERS
from facemetric.training.stage import check_training
from facemetric.training.step.gradients import Gradients
from facemetric.training.step.optim import Amp
from facemetric.training.tasks.objective import Objective

D = 8


class Silent:
    """A run that keeps nothing."""

    def log(self, *_: Any, **__: Any) -> None:
        pass


def batch(uneven: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(24, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 5, (24,), generator=generator) if uneven else torch.arange(24) // 4
    return images, labels


def parts(count: int, world: int) -> list[slice]:
    """Uneven shares: the first process gets the most."""
    cuts = {1: [0, 24], 2: [0, 15, 24], 3: [0, 13, 20, 24]}[world]
    assert cuts[-1] == count
    return [slice(a, b) for a, b in itertools.pairwise(cuts)]


OWN = f"{__name__}:contrast"


def contrast(emb_BD: torch.Tensor, labels_B: torch.Tensor) -> Any:
    """A loss of one's own, over all pairs of the batch, with a figure."""
    same = labels_B[:, None] == labels_B[None, :]
    loss = torch.where(same, -1.0, 1.0).to(emb_BD).mul(emb_BD @ emb_BD.T).mean()
    return SimpleNamespace(loss=loss, figures={"pairs": float(same.sum())})


def objective(miner: str, memory: int) -> Objective:
    options = {"loss": OWN} if miner == "own" else {"loss": miner}
    if miner in MINERS:
        options = {"miner": miner, "margin": 0.5}
    config = FinetuneConfig(("x",), memory=memory, **options)  # type: ignore[arg-type]
    loss = check_training(config).loss
    assert loss is not None
    torch.manual_seed(5)
    loss.prepare(5, D)
    return Objective(config, loss, Silent())  # type: ignore[arg-type]


def two_steps(miner: str, uneven: bool, memory: int, world: int) -> dict[str, Any]:
    """Losses, figures and the weight's gradient of two steps on this process's share of the batch."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(5, D).double()
    images, labels = batch(uneven)
    own = parts(len(labels), world)[distributed.rank()]
    mine = objective(miner, memory)
    model = torch.nn.ModuleList([layer, mine.loss.weights or torch.nn.Identity()])
    backward = Gradients(model, Amp(torch.device("cpu"), "off"))
    backward.follow()
    found: dict[str, Any] = {"figures": []}
    for _ in range(2):
        model.zero_grad()
        emb = functional.normalize(layer(images[own]), dim=1)
        loss, figures = mine(emb, labels[own])
        backward(loss)
        assert layer.weight.grad is not None
        if mine.loss.weights is not None:
            found["learned"] = next(mine.loss.weights.parameters()).grad.clone()
        found["figures"].append(numbers(figures))
        found["grad"] = layer.weight.grad.clone()
        with torch.no_grad():
            layer.weight -= 0.1 * layer.weight.grad
    return found


CASES = [
    ("all", False, 0),
    ("semihard", True, 0),
    ("hard", True, 0),
    ("semihard", True, 16),
    ("own", True, 0),
    ("supcon", True, 0),
    ("multi-similarity", True, 16),
    ("circle", False, 16),
    ("contrastive", True, 16),
    ("proxy-anchor", True, 0),
]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_processes_agree_with_one(world: int, case: tuple[str, bool, int], tmp_path: Path) -> None:
    def process(rank: int) -> None:
        distributed.start("cpu")
        torch.save(two_steps(*case, world), tmp_path / f"{rank}.pt")

    ended = in_processes(world, process, tmp_path / "said")
    assert ended == [0] * world, (tmp_path / "said").read_text()
    expected = two_steps(*case, 1)
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["grad"], expected["grad"], rtol=1e-10, atol=1e-12)
        if "learned" in expected:
            assert expected["learned"].any()
            torch.testing.assert_close(found["learned"], expected["learned"])
        for got, wanted in zip(found["figures"], expected["figures"], strict=True):
            assert got == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_alone_nothing_is_gathered() -> None:
    rows, labels = torch.randn(4, D), torch.arange(4)
    gathered, all_labels, own = distributed.gather_rows(rows, labels)
    assert gathered is rows
    assert all_labels is labels
    assert own == slice(0, 4)
    assert distributed.start("cpu") == "cpu"
