"""The two-level minimum against the plain one."""

import pytest
import torch

from facemetric.mining.kernels import argmin
from facemetric.mining.kernels.argmin import argmin_columns, argmin_rows


@pytest.mark.parametrize("rows", [1, 127, 128, 131, 160, 300])
@pytest.mark.parametrize("cols", [1, 129, 200])
@pytest.mark.parametrize("numpy_entries", [0, 10**6])
def test_minimum_in_two_levels(rows, cols, numpy_entries, monkeypatch):
    monkeypatch.setattr(argmin, "NUMPY_ENTRIES", numpy_entries)
    bits = torch.randint(-(10**9), 10**9, (rows, cols), generator=torch.Generator().manual_seed(0))
    assert torch.equal(argmin_rows(bits), bits.argmin(1))
    assert torch.equal(argmin_columns(bits), bits.argmin(0))
