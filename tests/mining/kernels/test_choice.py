"""Which kernels mine where, by stand-ins for GPUs that are not here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from facemetric.errors import ConfigError
from facemetric.mining import batch_all, batch_hard, mine
from facemetric.mining.kernels import choice, panels_every_triplet

CUDA = torch.device("cuda", 0)


@pytest.fixture
def gpu_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what torch says of a GPU's compute capability, and whether Triton is installed."""

    def set_up(capability: tuple[int, int], *, triton: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(choice, "has_triton", lambda: triton)

    return set_up


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (12, 0)])
def test_fused_kernels_serve_on_new_gpus(gpu_of: Any, capability: tuple[int, int]) -> None:
    gpu_of(capability)
    assert choice.fused(CUDA, torch.float32)
    assert choice.why_not_fused(CUDA, torch.float64) == "they compute in float32, the rows are torch.float64"


def test_old_gpus_and_those_without_triton_have_plain_torch(gpu_of: Any) -> None:
    gpu_of((7, 5))
    assert choice.why_not_fused(CUDA, torch.float32) == "they need compute capability 8.0, this GPU has 7.5"
    gpu_of((9, 0), triton=False)
    assert "pip install triton" in str(choice.why_not_fused(CUDA, torch.float32))
    assert choice.is_gpu(CUDA)


def test_a_cpu_has_its_own() -> None:
    assert not choice.is_gpu(torch.device("cpu"))
    assert not choice.fused(torch.device("cpu"), torch.float32)
    assert not choice.is_gpu(torch.device("mps"))


@pytest.fixture
def matmul() -> Iterator[Any]:
    """Where torch keeps whether products on CUDA round to TF32; put back afterwards."""
    matmul = torch.backends.cuda.matmul
    newer, older = matmul.fp32_precision, torch.get_float32_matmul_precision()
    yield matmul
    torch.set_float32_matmul_precision(older)
    matmul.fp32_precision = newer


def words(matmul: Any) -> list[Any]:
    """What each of torch's three words for it says; an error where it is at odds with another."""
    said = [matmul.fp32_precision]
    for read in (torch.get_float32_matmul_precision, lambda: matmul.allow_tf32):
        try:
            said.append(read())
        except RuntimeError:
            said.append("at odds")
    return said


@pytest.mark.parametrize(
    "switch",
    [
        lambda matmul: setattr(matmul, "allow_tf32", True),
        lambda matmul: setattr(matmul, "fp32_precision", "tf32"),
        lambda matmul: torch.set_float32_matmul_precision("high"),
        lambda matmul: torch.set_float32_matmul_precision("medium"),
    ],
    ids=["allow_tf32", "fp32_precision", "high", "medium"],
)
def test_products_are_exact_however_tf32_was_switched_on(matmul: Any, switch: Any) -> None:
    switch(matmul)
    before = words(matmul)
    assert before[0] == "tf32"
    with choice.exact_products(CUDA):
        assert matmul.fp32_precision == "ieee"
        assert matmul.allow_tf32 is False
    assert words(matmul) == before
    with choice.exact_products(torch.device("cpu")):
        assert matmul.fp32_precision == "tf32"


def test_products_that_are_exact_are_left_alone(matmul: Any) -> None:
    matmul.fp32_precision = "none"
    before = words(matmul)
    with choice.exact_products(CUDA):
        assert words(matmul) == before
    assert words(matmul) == before


def test_no_memory_left_names_the_batch_and_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    def out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3.00 GiB.\nmore")

    monkeypatch.setattr(choice, "is_gpu", lambda device: True)
    monkeypatch.setattr(panels_every_triplet, "every_triplet", out)
    with pytest.raises(
        ConfigError, match=r"a batch of 6 images \(CUDA out of memory. Tried to allocate 3.00 GiB.\)"
    ) as error:
        batch_all(torch.eye(6), torch.arange(6) // 2)
    assert "--microbatch" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_budget_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    budgets: list[float] = []
    monkeypatch.setattr(choice, "is_gpu", lambda device: True)
    real = panels_every_triplet.every_triplet

    def noted(given: Any, rule: Any, budget: float) -> Any:
        budgets.append(budget)
        return real(given, rule, budget)

    monkeypatch.setattr(panels_every_triplet, "every_triplet", noted)
    batch_all(torch.eye(6), torch.arange(6) // 2)
    assert budgets == [mine.GPU_MINING_MIB]


def test_a_precision_that_cannot_be_had_is_refused() -> None:
    rows, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
    with (
        pytest.raises(ConfigError, match="'half'; it must be one of float32, tf32, bfloat16"),
        choice.picking("half"),
    ):
        pass
    with (
        choice.picking("tf32"),
        pytest.raises(ConfigError, match="tf32 is for the fused kernels, and they need CUDA"),
    ):
        batch_hard(rows, labels)
    batch_hard(rows, labels)
