"""What tiles on a device need there: bytes of living tensors, on the CPU by the path of a device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from synthetic_people import exact_people
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.intervals.all_pairs import _Tail, count_by_person
from facemetric.evaluation.nearest import nearest
from facemetric.evaluation.ranks import own_ranks
from facemetric.mining import tiles

BUDGET_MIB = 2.0
CPU = torch.device("cpu")
IMAGES = 2400


class Living(TorchDispatchMode):
    """Bytes of the tensors that operations made and nobody has let go of, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in pytree.tree_leaves(out):
            if isinstance(made, torch.Tensor) and made.untyped_storage()._cdata not in self.sizes:
                storage = made.untyped_storage()
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata, None)
        self.most = max(self.most, sum(self.sizes.values()))
        return out


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "CPU_BUDGET_MIB", BUDGET_MIB)
    # A mode is a thread's own; what leaves a GPU is a copy.
    monkeypatch.setattr(tiles, "in_threads", lambda works, *_: [work() for work in works])
    add = _Tail.add_listed
    monkeypatch.setattr(_Tail, "add_listed", lambda tail, *listed: add(tail, *(x.copy() for x in listed)))


def budgets_of(work: Callable[[], object]) -> float:
    """The most that lives at once, beside the embeddings (once) and counts, in budgets."""
    with Living() as living:
        work()
    return (living.most / 2**20 - IMAGES * 64 * 4 / 2**20) / BUDGET_MIB


@pytest.mark.usefixtures("budget")
@pytest.mark.parametrize("k", [1, 5, 100, 1200])
def test_neighbours(k: int) -> None:
    emb, _ = exact_people(IMAGES, 100, 1)
    assert 0.2 < budgets_of(lambda: nearest(emb[:1200], emb, k, device=CPU)) < 1.2


@pytest.mark.usefixtures("budget")
@pytest.mark.parametrize("kind", ["some", "one image each", "one person has most"])
def test_ranks(kind: str) -> None:
    emb, label = exact_people(IMAGES, 100, 1)
    label = {
        "some": label,
        "one image each": np.arange(IMAGES) % 1200,
        "one person has most": np.where(np.arange(IMAGES) % 10, 0, label + 1),
    }[kind]
    sides = emb[:1200], label[:1200], emb[1200:], label[1200:]
    assert 0.2 < budgets_of(lambda: own_ranks(*sides, device=CPU)) < 1.2


@pytest.mark.usefixtures("budget")
@pytest.mark.parametrize("lowest", [-1.0, 0.5])
def test_counts_of_people(lowest: float) -> None:
    """From -1 up every impostor pair is listed."""
    emb, label = exact_people(IMAGES, 100, 1)
    threshold = np.arange(int(lowest * 16), 17) / 16
    assert 0.2 < budgets_of(lambda: count_by_person(emb, label, threshold, device=CPU)) < 1.2


@pytest.mark.usefixtures("budget")
@pytest.mark.parametrize("alike", [False, True])
def test_all_pairs(alike: bool) -> None:
    emb, label = exact_people(IMAGES, 100, 1)
    if alike:
        emb[:] = emb[0]
    assert 0.2 < budgets_of(lambda: verify_all_pairs(emb, label, keep=2000, device=CPU)) < 4
