"""What a run on CUDA computes with: set, said and kept; on a CPU nothing is touched."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from facemetric.training.step.optim import Amp
from facemetric.training.step.precision import set_precision


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The name of a CUDA device, and its properties."""
    known = SimpleNamespace(name="NVIDIA H200", total_memory=141 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: known)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    return torch.device("cuda", 0)


def products_in_tf32() -> bool:
    return torch.get_float32_matmul_precision() != "highest"


def test_products_stay_exact_and_convolutions_need_not(
    a_gpu: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    found = set_precision(a_gpu, Amp(a_gpu, "auto"))
    assert found is not None
    assert found.text.startswith(
        "NVIDIA H200, 141 GiB: the network in bfloat16, its other convolutions in TF32"
    )
    assert "heads and distances in float32" in found.text
    assert torch.backends.cudnn.benchmark
    assert not products_in_tf32()
    found = set_precision(a_gpu, Amp(a_gpu, "off"))
    assert found is not None
    assert found.network == "float32"


def test_a_cpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    assert set_precision(torch.device("cpu"), Amp(torch.device("cpu"), "auto")) is None
    assert not torch.backends.cudnn.benchmark
