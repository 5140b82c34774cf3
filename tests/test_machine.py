"""What of the machine is used."""

from __future__ import annotations

import pytest

from facemetric.errors import ConfigError
from facemetric.machine import pick_device, pick_workers


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert (pick_device("cuda").index, pick_device("cuda:1").index) == (None, 1)
    with pytest.raises(ConfigError, match="--device cuda:2 was asked for, but there are 2 CUDA devices"):
        pick_device("cuda:2")


def test_reading_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for cores, expected in ((1, 0), (2, 0), (4, 2), (64, 8)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert pick_workers(-1) == expected
        assert pick_workers(3) == 3
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert pick_workers(-1) == 1
