"""The gradients of several processes, added up by torch's own buckets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from child_processes import in_processes
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from facemetric import distributed
from facemetric.mining.miners import semihard
from facemetric.training.step.gradients import Gradients
from facemetric.training.step.optim import Amp
from facemetric.training.tasks.chunks import backward_in_chunks

NAMES = ("used", "frozen", "of_one", "of_none", "alone")


class Parts(nn.Module):
    """Layers that take part on all processes, on one, on none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name in NAMES:
            setattr(self, name, nn.Linear(4, 4).double())
        self.frozen.requires_grad_(False)  # type: ignore[operator]


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {
        name: None if value.grad is None else value.grad.clone() for name, value in model.named_parameters()
    }


def steps(rank: int, world: int, amp: str = "off") -> list[dict[str, Tensor | None]]:
    """The gradients of three steps: what is frozen changes before the last one, which comes in two parts."""
    model = Parts()
    backward = Gradients(model, Amp(torch.device("cpu"), amp))
    rows = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    shares = rows.split([4, 2]) if world == 2 else [rows]
    found = []
    for step in range(3):
        if step == 2:
            model.frozen.requires_grad_(True)
            model.used.requires_grad_(False)
        backward.follow()
        model.zero_grad(set_to_none=True)
        losses = []
        for number, own in enumerate(shares):
            if world == 2 and number != rank:
                continue
            loss = model.frozen(torch.tanh(model.used(own))).square().sum()
            if number == 0:  # of the first process alone
                loss = loss + model.of_one(rows[:4]).square().sum()
            losses.append(loss)
        if step < 2:
            backward(sum(losses))  # type: ignore[arg-type]
        else:
            backward(model.alone(torch.ones(4).double()).sum() / world, last=False)
            backward(sum(losses))  # type: ignore[arg-type]
        found.append(gradients(model))
    return found


def test_nothing_is_said_where_every_weight_is_used(tmp_path: Path) -> None:
    def process(rank: int) -> None:
        distributed.start("cpu")
        model = nn.Linear(4, 2)
        backward = Gradients(model, Amp(torch.device("cpu"), "off"))
        for _ in range(3):
            backward.follow()
            backward(model(torch.ones(2, 4)).sum())
        assert model.weight.grad is not None

    assert in_processes(2, process, tmp_path / "said") == [0, 0]
    assert "Warning" not in (tmp_path / "said").read_text()


class Copies(TorchDispatchMode):
    """How often torch copies its map of the used weights, one int32 for each: to the device, and where a weight of this
    process is unused back again, for which the host waits."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default and args[0].dtype == torch.int32 and args[0].dim() == 1:
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_no_step_waits_where_every_weight_is_used(tmp_path: Path) -> None:
    def process(rank: int) -> None:
        distributed.start("cpu")
        found = []
        for used in ((0, 1), (0,)):
            layers = nn.ModuleList([nn.Linear(4, 2), nn.Linear(4, 2)])
            backward = Gradients(layers, Amp(torch.device("cpu"), "off"))
            for _ in range(3):
                backward.follow()
                with Copies() as seen:
                    backward(sum(layers[at](torch.ones(2, 4)).sum() for at in used))  # type: ignore[arg-type]
                found.append(seen.count)
        torch.save(found, tmp_path / f"{rank}.pt")

    ended = in_processes(2, process, tmp_path / "said")
    assert ended == [0, 0], (tmp_path / "said").read_text()
    assert [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)] == [[1, 1, 1, 2, 2, 2]] * 2


def test_two_processes_have_the_sum_of_their_gradients(tmp_path: Path) -> None:
    def process(rank: int) -> None:
        distributed.start("cpu")
        torch.save(steps(rank, 2), tmp_path / f"{rank}.pt")

    ended = in_processes(2, process, tmp_path / "said")
    assert ended == [0, 0], (tmp_path / "said").read_text()
    whole = steps(0, 1)
    for rank in range(2):
        for step, (found, wanted) in enumerate(zip(torch.load(tmp_path / f"{rank}.pt"), whole, strict=True)):
            for name, grad in wanted.items():
                assert (found[name] is None) == (grad is None), (step, name)
                if grad is not None:
                    torch.testing.assert_close(found[name], grad, rtol=0, atol=1e-12)
    assert whole[0]["frozen.weight"] is None  # a gradient of zeros would let weight decay move it
    assert whole[0]["of_none.weight"] is None
    assert whole[0]["of_one.weight"] is not None
    assert whole[2]["frozen.weight"] is not None
    assert whole[2]["used.weight"] is None
    assert whole[2]["alone.weight"] is not None


class Net(nn.Module):
    """A layer with a batch norm that is still, and what a loss learns."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).double().eval()
        self.proxies = nn.Parameter(torch.randn(3, 4).double())


def in_micro_batches(rank: int, world: int, most: int) -> dict[str, Tensor | None]:
    """The gradient of a loss of triplets of all processes, and of proxies, in chunks of so many rows."""
    model, labels = Net(), torch.arange(12) % 3
    backward = Gradients(model, Amp(torch.device("cpu"), "off"))
    backward.follow()
    rows = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    own = slice(0, 12) if world == 1 else (slice(0, 8), slice(8, 12))[rank]

    def loss_of(emb_BD: Tensor) -> Tensor:
        all_AD, labels_A, mine = distributed.gather_rows(emb_BD, labels[own])
        mined = semihard(all_AD, labels_A, margin=0.5, anchors=mine if world > 1 else None)
        part = mined.loss * mined.weight / distributed.total(mined.weight)
        return part + (model.proxies[labels[own]] * emb_BD).sum()

    backward_in_chunks(
        model.net,
        lambda chunk: functional.normalize(model.net(chunk), dim=1),
        loss_of,
        rows[own].split(most),
        backward,
        lambda: [model.proxies],
    )
    return gradients(model)


@pytest.mark.parametrize("most", [2, 12])
def test_micro_batches_are_summed_once(most: int, tmp_path: Path) -> None:
    def process(rank: int) -> None:
        distributed.start("cpu")
        torch.save(in_micro_batches(rank, 2, most), tmp_path / f"{rank}.pt")

    ended = in_processes(2, process, tmp_path / "said")
    assert ended == [0, 0], (tmp_path / "said").read_text()
    wanted = in_micro_batches(0, 1, 12)
    for rank in range(2):
        found: dict[str, Any] = torch.load(tmp_path / f"{rank}.pt")
        for name, grad in wanted.items():
            assert grad is not None
            torch.testing.assert_close(found[name], grad, rtol=0, atol=1e-12)
