"""A GPU's way in plain torch, run on the CPU: what the CPU's own ways are tested on, it is tested on."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest

from facemetric.mining.kernels import choice

# Every test of these files is run once more, with batches in panels.
FILES = ("test_ties", "test_corners", "test_miners", "test_weights", "test_record")

# These are about the CPU's ways: their budgets, tiles and random numbers, and which of two equal negatives they take.
LEFT_OUT = {
    "test_a_whole_batch_costs_half_the_products",
    "test_only_equal_rows_have_no_gradient",
    "test_many_negatives_at_the_distance_of_the_positive",
    "test_many_positives_whose_bounds_are_searched",
    "test_a_filter_sees_equal_rows_at_equal_distances",
}

for file in FILES:
    module = importlib.import_module(f"mining.{file}")
    for name, test in vars(module).items():
        if name.startswith("test_") and name not in LEFT_OUT:
            globals()[f"{name}_of_{file.removeprefix('test_')}"] = test


@pytest.fixture(autouse=True, scope="module")
def panels() -> Iterator[None]:
    """Batches on the CPU are mined as on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "is_gpu", lambda device: True)
        yield
