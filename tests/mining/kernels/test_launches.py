"""How many launches a miner takes on a device without Triton, and how often the host waits: counted, not timed."""

from __future__ import annotations

import counting_device
import pytest
import torch
from torch.nn import functional

from facemetric.mining import MINERS, miners


def test_in_a_process_of_its_own() -> None:
    counting_device.run_alone(__file__)


MOST_LAUNCHES = 60  # forward and backward
# A batch of 4096 rows of 128 numbers in 2048 MiB, each side of it by 8: the same panels.
ROWS, DIM, BUDGET_MIB = 4096 // 8, 128 // 8, 2048 / 64


@pytest.fixture(autouse=True)
def generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pretended device has no random numbers of its own."""
    monkeypatch.setattr(miners, "make_generator", lambda device: torch.Generator())


def batch(kind: str, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows, and labels of `K` images each, or of 1 to 15."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows)
    if kind == "uneven":
        count = torch.randint(1, 16, (rows,), generator=generator)
        labels = torch.repeat_interleave(torch.arange(rows), count)[:rows]
    else:
        labels = labels // int(kind)
    emb = functional.normalize(torch.randn(rows, DIM, generator=generator), dim=1)
    return emb, labels[torch.randperm(rows, generator=generator)]


def count(
    name: str, kind: str, rows: int, margin: float | str, distance: str, budget_mib: float
) -> tuple[int, int]:
    """Launches and waits of a call and its backward, whose loss and gradient are the CPU's."""
    emb, labels = batch(kind, rows)
    options = {"margin": margin, "distance": distance} | ({"seed": 3} if name in miners.SEEDED_MINERS else {})
    with counting_device.counting() as counted:
        on_device, device_labels = counting_device.put(emb).requires_grad_(), counting_device.put(labels)
        counted.operations.clear()
        mined = MINERS[name](on_device, device_labels, budget_mib=budget_mib, **options)
        mined.loss.backward()
        found = counted.launches, counted.waits
        loss, grad = mined.loss.detach().cpu(), on_device.grad.cpu()
        assert mined.active.cpu() > 0
    if name not in miners.SEEDED_MINERS:  # which draw their own
        on_cpu = emb.double().requires_grad_()  # as a GPU picks, where float32 could not tell two negatives
        expected = MINERS[name](on_cpu, labels, **options)
        expected.loss.backward()
        torch.testing.assert_close(loss.double(), expected.loss.detach(), rtol=1e-5, atol=1e-7)
        assert (grad - on_cpu.grad).norm() <= 1e-4 * on_cpu.grad.norm()
    return found


@counting_device.alone
@pytest.mark.parametrize("kind", ["2", "4", "32", "uneven"])
@pytest.mark.parametrize("name", MINERS)
def test_a_call_takes_few_launches_and_waits_once(name: str, kind: str) -> None:
    for margin in (0.2, "soft"):
        for distance in ("squared", "euclidean", "cosine"):
            launches, waits = count(name, kind, ROWS, margin, distance, BUDGET_MIB)
            assert launches <= MOST_LAUNCHES, (margin, distance, launches)
            assert waits <= 1, (margin, distance, waits)


@counting_device.alone
def test_labels_on_the_host_are_not_waited_for_twice() -> None:
    emb, labels = batch("4", 64)
    with counting_device.counting() as counted:
        on_device = counting_device.put(emb)
        counted.operations.clear()
        MINERS["all"](on_device, labels)
        assert counted.waits == 1  # whether the rows are finite


@counting_device.alone
def test_the_count_would_notice_a_loop_and_a_wait() -> None:
    with counting_device.counting() as counted:
        rows = counting_device.put(torch.ones(4, 3))
        before = counted.launches
        for row in rows:
            row.mul_(2)
        assert counted.launches == before + 4
        assert float(rows.sum()) == 24
        assert counted.waits == 1
        rows[rows > 1] = 0
        assert counted.waits == 2
        rows.nonzero()
        rows.cpu()
        assert counted.waits == 4
        with pytest.raises(RuntimeError, match="same device"):
            rows + torch.ones(4, 3)
