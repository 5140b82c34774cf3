"""The fused kernels, by Triton's interpreter on a CPU: what a slow twin finds, they find; and they compile for CUDA.

On a machine with a GPU, `TRITON_INTERPRET=0` runs the same tests compiled (tools/check_gpu.sh)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import reference_mining
import torch
import triton_interpreter
from compare_picking import Emulated, by_miner, drawn
from mined_batches import drawn_shares
from torch.nn import functional

from facemetric.mining import MINERS, batch_all, batch_hard, semihard
from facemetric.mining.kernels import choice
from facemetric.mining.record import Mined

pytest.importorskip("triton", reason="Triton is not installed")

COMPILED = os.environ.get("TRITON_INTERPRET") == "0"
DEVICE = "cuda" if COMPILED else "cpu"
TRIO = {"all": batch_all, "hard": batch_hard, "semihard": semihard}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels serve on the CPU too, by Triton's interpreter, in blocks that leave a rest of these batches."""
    if not COMPILED:
        triton_interpreter.serve(monkeypatch)


def batch(kind: str, seed: int = 0, dim: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows (B, D) and labels: even identities, uneven ones, singles among them, copies, a collapse."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [4] * 9 if kind == "even" else [1, 7, 2, 5, 3, 1, 11, 4, 6]
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    own = torch.randn(len(sizes), dim, generator=generator)[labels]
    rows = functional.normalize(own * 0.5 + torch.randn(len(labels), dim, generator=generator), dim=1)
    if kind == "copies":
        rows[5] = rows[17]
        rows[8] = rows[9]
        rows[20:32] = rows[19]  # more negatives of one distance than are listed
    if kind == "collapse":
        rows = functional.normalize(rows[:1] + 1e-4 * rows, dim=1)
    mixed = torch.randperm(len(labels), generator=generator)
    return rows[mixed].to(DEVICE), labels[mixed].to(DEVICE)


def mined(miner: Any, rows: torch.Tensor, labels: torch.Tensor, **options: Any) -> tuple[Mined, torch.Tensor]:
    """What a miner finds, and its gradient."""
    rows = rows.clone().requires_grad_()
    found = miner(rows, labels, **options)
    found.loss.backward()
    assert rows.grad is not None
    return found, rows.grad


def in_float64(
    miner: Any, rows: torch.Tensor, labels: torch.Tensor, **options: Any
) -> tuple[Mined, torch.Tensor]:
    """The same by the CPU's tiles."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "is_gpu", lambda device: False)
        return mined(miner, rows.double().cpu(), labels.cpu(), **options)


@pytest.mark.parametrize("kind", ["uneven", "copies", "collapse"])
@pytest.mark.parametrize("name", TRIO)
@pytest.mark.parametrize(
    ("distance", "margin"),
    [("squared", 0.2), ("cosine", 0.1), ("euclidean", 0.2), ("euclidean", "soft"), ("cosine", "soft")],
)
def test_they_find_what_a_slow_twin_finds(kind: str, name: str, distance: str, margin: Any) -> None:
    rows, labels = batch(kind)
    found, grad = mined(TRIO[name], rows, labels, distance=distance, margin=margin)
    loss, active, _, (exact,) = reference_mining.cube(
        name, rows.double().cpu(), labels.cpu(), margin, distance
    )
    assert float(found.loss.detach()) == pytest.approx(float(loss), rel=2e-5, abs=1e-7)
    assert float(found.active) == active
    if (kind, distance) == ("collapse", "cosine"):
        return  # to bring rows to length 1 in float32 moves them by a thousandth of what lies between them
    same = torch.unique(rows.cpu(), dim=0, return_inverse=True)[1]  # which of two copies takes it is open
    added, wanted = (torch.zeros_like(exact).index_add_(0, same, g.double().cpu()) for g in (grad, exact))
    torch.testing.assert_close(added, wanted, rtol=1e-3, atol=1e-5 * float(exact.abs().max()))


@pytest.mark.parametrize("name", TRIO)
@pytest.mark.parametrize("margin", [0.2, "soft"])
@pytest.mark.parametrize("anchors", [slice(5, 19), "apart"])
def test_some_anchors_with_weights(name: str, margin: Any, anchors: Any) -> None:
    rows, labels = batch("uneven", seed=3)
    weights = torch.linspace(0, 2, len(rows)).to(DEVICE)
    exact = anchors
    if anchors == "apart":
        anchors, weights = (rows[:9] * 1.01, labels[:9]), weights[:9]
        exact = (anchors[0].double().cpu(), anchors[1].cpu())
    found, grad = mined(TRIO[name], rows, labels, anchors=anchors, weights=weights, margin=margin)
    twin, wanted = in_float64(
        TRIO[name], rows, labels, anchors=exact, weights=weights.double().cpu(), margin=margin
    )
    assert float(found.loss.detach()) == pytest.approx(float(twin.loss.detach()), rel=1e-5)
    torch.testing.assert_close(grad.double().cpu(), wanted, rtol=1e-3, atol=1e-6)
    assert found.valid == twin.valid
    for figure in ("active", "d_ap", "d_an", "weight"):
        assert float(getattr(found, figure)) == pytest.approx(float(getattr(twin, figure)), rel=1e-5)


@pytest.mark.parametrize("name", TRIO)
@pytest.mark.parametrize("dim", [1, 33])
def test_any_number_of_dimensions_and_identities_far_apart(name: str, dim: int) -> None:
    rows, labels = batch("even", dim=dim)
    rows = rows + 0.1 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    found, grad = mined(TRIO[name], rows, labels * 2**40)
    twin, wanted = in_float64(TRIO[name], rows, labels)
    assert float(found.loss.detach()) == pytest.approx(float(twin.loss.detach()), rel=1e-5)
    torch.testing.assert_close(grad.double().cpu(), wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", MINERS)
@pytest.mark.parametrize("labels", [[0], [0, 1, 2], [5, 5, 5, 5], [0, 0, 1]])
def test_batches_with_next_to_nothing_in_them(name: str, labels: list[int]) -> None:
    rows = functional.normalize(
        torch.randn(len(labels), 3, generator=torch.Generator().manual_seed(0)), dim=1
    )
    options = {"seed": 1} if name == "distance-weighted" else {}
    found, grad = mined(MINERS[name], rows.to(DEVICE), torch.tensor(labels).to(DEVICE), **options)
    assert torch.isfinite(found.loss)
    assert torch.isfinite(grad).all()
    assert (found.valid > 0) == (labels == [0, 0, 1])
    assert bool(grad.any()) <= (found.valid > 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_mined_in_float32(dtype: torch.dtype) -> None:
    rows, labels = batch("even")
    found, grad = mined(semihard, rows.to(dtype), labels)
    same, _ = mined(semihard, rows.to(dtype).float(), labels)
    assert found.loss.dtype == torch.float32
    assert grad.dtype == dtype
    assert found.loss == same.loss


def test_draws_come_by_inverse_density() -> None:
    share, expected, room = drawn_shares("cosine", DEVICE)
    assert ((share - expected).abs() < room).all(), (share, expected)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_what_is_picked_in_less_precision_is_paid_in_float32(precision: str) -> None:
    rows, labels = batch("even")
    with choice.picking(precision):
        found, grad = mined(batch_hard, rows, labels)
    from facemetric.mining import triplet_losses

    again = rows.clone().requires_grad_()
    losses = triplet_losses(again, found.triplets).mean()
    losses.backward()
    torch.testing.assert_close(found.loss, losses, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(grad, again.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("precision", "bit"), [("tf32", 2.0**-11), ("bfloat16", 2.0**-8)])
def test_operands_are_rounded_to_the_nearest(precision: str, bit: float) -> None:
    """Two negatives 0.4 and 0.6 of the last bit past 0.5. Rounded, the second, which is farther by a tenth of the bit,
    comes out as the nearer; cut, as in float32, the first does."""
    first, second = (0.5 + 0.4 * bit, 0.5**0.5), (0.5 + 0.6 * bit, (0.5 + 0.3 * bit) ** 0.5)
    rows = torch.tensor([(1, 0), (1, 0.1), first, second])
    rows = torch.cat([rows, -rows]).to(DEVICE)  # the mean, which is taken off before, is 0
    labels = torch.tensor([0, 0, 1, 2, 3, 3, 4, 5], device=DEVICE)
    picked = {name: by_miner("hard", (rows, labels), name)[0].tolist() for name in ("float32", precision)}
    assert picked == {"float32": [0, 1, 2], precision: [0, 1, 3]}


@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_picks_in_less_precision_are_those_of_rounded_operands(precision: str) -> None:
    """As `tools/compare_picking.py` emulates them, which has measured what they change: but for sums in another order,
    which are a thousand times nearer than the rounding of an operand. Cut operands, or whole ones, pick otherwise."""
    rows, labels = drawn("random", 192, 4, 40, torch.Generator().manual_seed(0))
    found = by_miner("semihard", (rows.to(DEVICE), labels.to(DEVICE)), precision).cpu()
    missed = {
        name: int((Emulated((rows, labels), name).triplets("semihard") != found).any(1).sum())
        for name in ("float32", "tf32-cut", "tf32", "bfloat16")
    }
    few = missed.pop(precision)
    assert few <= len(found) // 200
    assert min(missed.values()) > 3 * few, missed


TOOLS = Path(__file__).resolve().parents[3] / "tools"
COMPILE = """
from compile_kernels import compiled_for
own = {"OWN": True, "DOWN": True, "ROOT": True, "SOFT": True}
listing = {"GAP": True, "LIST": True, "CAP": 8, "PRECISION": "ieee"}
only = {"pick": [listing], "settle": [{"GAP": True, "CAP": 8}], "draw": [{"PRECISION": "ieee"}], "weigh": [own]}
made = compiled_for(80, only)
assert len(made) == 4 and all(len(one.asm["cubin"]) > 1000 for one in made.values())
assert max(one.metadata.shared for one in made.values()) <= 99 * 1024  # what a block has on 8.6 and 8.9
print("compiled")
"""


def test_they_compile_for_cuda_without_a_device() -> None:
    paths = os.pathsep.join([str(TOOLS), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": paths}
    ran = subprocess.run(
        [sys.executable, "-c", COMPILE], capture_output=True, text=True, env=environment, check=False
    )
    if "compiled" not in ran.stdout and "cuda" in ran.stderr and "backend" in ran.stderr:
        pytest.skip("this Triton has no CUDA backend")
    assert "compiled" in ran.stdout, ran.stderr[-2000:]
