"""The memory that is promised: what a miner holds in tiles fits the budget, and uses it."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from facemetric.errors import ConfigError
from facemetric.mining import MINERS, CrossBatchMemory, TripletLoss, batch_select, distance_weighted
from facemetric.mining.tiles import MIB

ROWS = 1200
SIDE = 150  # of a tile: R >= 128 is what argmin_columns reads without a copy


class Peak(TorchDispatchMode):
    """The most bytes that lay at one time in tensors of at least `least` bytes, made since it began."""

    def __init__(self, least):
        super().__init__()
        self.least, self.peak = least, 0
        self.living = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() >= self.least:
                storage = tensor.untyped_storage()
                self.living[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.living = {k: v for k, v in self.living.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.living.values()))
        return out


def peak(miner, bytes_of_budget, **options):
    generator = torch.Generator().manual_seed(0)
    emb = torch.nn.functional.normalize(torch.randn(ROWS, 2, generator=generator, dtype=torch.float64))
    labels = torch.arange(ROWS) // 3
    watch = Peak(bytes_of_budget // 8)
    with torch.no_grad(), watch:
        miner(emb, labels, budget_mib=bytes_of_budget / MIB, **options)
    return watch.peak / bytes_of_budget


@pytest.mark.parametrize("anchors", [None, slice(0, ROWS)])
@pytest.mark.parametrize(("kind", "buffers", "used"), [("all", 3, 3), ("semihard", 2, 2), ("hard", 2, 1)])
def test_square_tiles(kind, buffers, used, anchors):
    share = peak(MINERS[kind], buffers * SIDE * SIDE * 8, anchors=anchors)
    assert share == pytest.approx(used / buffers, abs=0.02)


def test_whole_rows():
    budget = 8 * 20 * ROWS * 8  # 20 rows at a time, eight such panels
    assert 0.75 < peak(MINERS["all"], budget, margin="soft") <= 1
    assert 0.75 < peak(batch_select, budget, select=lambda d_ap, d_an: (d_an > d_ap).double()) <= 1
    assert peak(distance_weighted, 2 * 20 * ROWS * 8, seed=0) == pytest.approx(1, abs=0.02)


MINE = {
    **MINERS,
    "distance-weighted": lambda *args, **options: distance_weighted(*args, seed=0, **options),
    "select": lambda *args, **options: batch_select(*args, select=lambda p, n: torch.ones_like(n), **options),
    "module": lambda *args, budget_mib: TripletLoss("hard", budget_mib=budget_mib)(*args),
    "memory": lambda *args, **options: CrossBatchMemory(4, dim=2, miner="hard")(*args, **options),
}


@pytest.mark.parametrize("kind", MINE)
@pytest.mark.parametrize("budget_mib", [0.0, -1.0, float("nan"), float("inf")])
def test_no_budget_is_an_error_of_every_miner(kind, budget_mib):
    emb, labels = torch.eye(4)[:, :2], torch.tensor([0, 0, 1, 1])
    with pytest.raises(ConfigError, match=r"budget is .* MiB, it must be above 0: 4 suits a CPU, 512 a GPU"):
        MINE[kind](emb, labels, budget_mib=budget_mib)
