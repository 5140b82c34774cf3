"""The fused kernels, by Triton's interpreter on a CPU: what the tiles find, they find; and they compile for CUDA."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import reference_mining
import torch
from torch.nn import functional

from facemetric.mining import batch_all, batch_hard, semihard
from facemetric.mining.kernels import gpu
from facemetric.mining.record import Mined

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels serve on the CPU too, by Triton's interpreter. Gives the names of those that ran."""
    monkeypatch.setattr(gpu, "BLOCK", 32)
    monkeypatch.setattr(gpu, "WIDTH", 16)
    monkeypatch.setattr("facemetric.mining.mine.SMALL_ROWS", 0)
    ran: list[str] = []

    def serves(ops: Any) -> bool:
        wanted = ops.left_MD.dtype == torch.float32
        ran.append("fused" if wanted else "tiles")
        return wanted

    monkeypatch.setattr(gpu, "serves", serves)
    return ran


def batch(kind: str, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows (B, 24) and labels: even identities, uneven ones, singles among them, copies, a collapse."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"even": [4] * 9, "uneven": [1, 7, 2, 5, 3, 1, 11, 4, 6], "many": [11, 1, 13, 9]}.get(
        kind, [4] * 9
    )
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    own = torch.randn(len(sizes), 24, generator=generator)[labels]
    rows = functional.normalize(own * 0.5 + torch.randn(len(labels), 24, generator=generator), dim=1)
    if kind == "copies":
        rows[5] = rows[17]
        rows[8] = rows[9]
    if kind == "collapse":
        rows = functional.normalize(rows[:1] + 1e-4 * rows, dim=1)
    mixed = torch.randperm(len(labels), generator=generator)
    return rows[mixed], labels[mixed]


def mined(miner: Any, rows: torch.Tensor, labels: torch.Tensor, **options: Any) -> tuple[Mined, torch.Tensor]:
    """What a miner finds, and its gradient."""
    rows = rows.clone().requires_grad_()
    found = miner(rows, labels, **options)
    found.loss.backward()
    assert rows.grad is not None
    return found, rows.grad


@pytest.mark.parametrize("kind", ["even", "uneven", "many", "copies", "collapse"])
@pytest.mark.parametrize(
    ("name", "miner"), [("all", batch_all), ("hard", batch_hard), ("semihard", semihard)]
)
@pytest.mark.parametrize("distance", ["squared", "euclidean"])
def test_they_find_what_a_slow_twin_finds(
    kind: str, name: str, miner: Any, distance: str, interpreted: list[str]
) -> None:
    rows, labels = batch(kind)
    found, grad = mined(miner, rows, labels, distance=distance)
    assert "fused" in interpreted
    interpreted.clear()
    exact, exact_grad = mined(miner, rows.double(), labels, distance=distance)
    assert set(interpreted) == {"tiles"}
    loss, *_ = reference_mining.twin(name, rows.double(), labels, 0.2, distance)
    assert float(exact.loss.detach()) == pytest.approx(float(loss), rel=1e-9)
    assert float(found.loss.detach()) == pytest.approx(float(loss), rel=2e-5, abs=1e-7)
    assert float(found.active) == float(exact.active)
    scale = float(exact_grad.abs().max())
    torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("miner", [batch_all, batch_hard, semihard])
@pytest.mark.parametrize("options", [{"anchors": slice(5, 19)}, {"weights": torch.linspace(0, 2, 40)}])
def test_they_find_what_the_tiles_find_for_some_anchors_and_with_weights(
    miner: Any, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, labels = batch("uneven", seed=3)
    assert len(rows) == 40
    fused, fused_grad = mined(miner, rows, labels, **options)
    monkeypatch.setattr(gpu, "serves", lambda ops: False)
    tiled, tiled_grad = mined(miner, rows, labels, **options)
    torch.testing.assert_close(fused.loss, tiled.loss, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(fused_grad, tiled_grad, rtol=1e-4, atol=1e-6)
    assert fused.valid == tiled.valid
    assert float(fused.active) == pytest.approx(float(tiled.active))


def test_a_cpu_takes_the_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    rows, labels = batch("even")
    monkeypatch.setattr("facemetric.mining.mine.SMALL_ROWS", 0)
    monkeypatch.setattr(gpu, "sweep", None)  # a call would raise
    monkeypatch.setattr(gpu, "weigh", None)
    for miner in (batch_all, batch_hard, semihard):
        mined(miner, rows, labels)


def test_they_compile_for_cuda_without_a_device() -> None:
    code = (
        "from facemetric.mining.kernels import gpu\n"
        "made = gpu.compiled_for(80)\n"
        "assert len(made) == 8 and all(len(one.asm['cubin']) > 1000 for one in made.values())\n"
        "print('compiled')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    if "compiled" not in ran.stdout and "cuda" in ran.stderr and "backend" in ran.stderr:
        pytest.skip("this Triton has no CUDA backend")
    assert "compiled" in ran.stdout, ran.stderr[-2000:]
