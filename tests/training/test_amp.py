"""Mixed precision: which numbers are taken where."""

from __future__ import annotations

import pytest
import torch

from facemetric.training.optim import Amp


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
