"""The fixtures of small_trainings.py, and one thread for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from small_trainings import small, stage_one, toy

__all__ = ["small", "stage_one", "toy"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These tests fork, and a fork has none of the threads that torch's pool waits for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
