"""What a user of the miners is told, word for word."""

import re

import numpy as np
import pytest
import torch

from facemetric.errors import ConfigError, DataError
from facemetric.mining import CrossBatchMemory, TripletLoss, batch_select, resolve_miner, semihard
from facemetric.mining.tiles import product_tiles, tile_shape

EMB, LABELS = torch.eye(4)[:, :3], torch.tensor([0, 0, 1, 1])
BAD = torch.tensor([[1.0, 0.0, 0.0], [0.0, torch.nan, 0.0], [torch.inf, 0.0, 0.0], [0.0, 1.0, 0.0]])
LONG = torch.tensor([1.0, 1.0, 1e20, 1.0])[:, None]
INTEGERS = "embeddings are torch.int64, they must be floating point; convert them with .float()"

DATA_ERRORS = {
    "embeddings are (4, 3), labels (3,): needed are (B, D) and (B,)": lambda: semihard(EMB, LABELS[:3]),
    "embeddings are (3,), labels (4,): needed are (B, D) and (B,)": lambda: semihard(EMB[0], LABELS),
    "embeddings are (4, 3), labels (4, 1): needed are (B, D) and (B,)": lambda: semihard(
        EMB, LABELS[:, None]
    ),
    "anchors are (4, 3), labels (2,): needed are (B, D) and (B,)": lambda: semihard(
        EMB, LABELS, anchors=(EMB, LABELS[:2])
    ),
    "anchors have 2 dimensions, embeddings 3": lambda: semihard(EMB, LABELS, anchors=(EMB[:, :2], LABELS)),
    "2 of 4 embeddings are NaN or infinite, the first is row 1: look at that image, or lower the learning rate": (
        lambda: semihard(BAD, LABELS)
    ),
    "1 of 3 anchors are NaN or infinite, the first is row 2: look at that image, or lower the learning rate": (
        lambda: semihard(EMB, LABELS, anchors=(BAD[[0, 3, 2]], LABELS[:3]))
    ),
    INTEGERS: lambda: semihard(EMB.long(), LABELS),
    (
        "1 of 4 embeddings are longer than 5e+17, the first is row 2 of length 1.0e+20: their squared distances do not "
        "fit torch.float32; normalise them, or take distance='cosine'"
    ): lambda: semihard(EMB * LONG, LABELS),
    "x is (4, 3), y is (4, 2): needed are (M, D) and (N, D)": lambda: next(product_tiles(EMB, EMB[:, :2])),
    "x is (4, 3), y is (3,): needed are (M, D) and (N, D)": lambda: next(product_tiles(EMB, EMB[0])),
    "x is (3,), y is (4, 3): needed are (M, D) and (N, D)": lambda: next(product_tiles(EMB[0], EMB)),
    "embeddings are (4, 3), needed are (B, 2)": lambda: CrossBatchMemory(4, dim=2)(EMB, LABELS),
    "embeddings are (3,), needed are (B, 3)": lambda: CrossBatchMemory(4, dim=3)(EMB[0], LABELS),
    "labels are torch.float32, a memory keeps integers: convert them with .long()": (
        lambda: CrossBatchMemory(4, dim=3)(EMB, LABELS.float())
    ),
}
CONFIG_ERRORS = {
    "distance is a function, it must be one of squared, euclidean, cosine: ": lambda: semihard(
        EMB, LABELS, distance=lambda x, y: (x - y).norm()
    ),
    "distance is a builtin_function_or_method, it must be one of squared, euclidean, cosine: ": lambda: (
        TripletLoss(distance=abs)
    ),
    "margin is a NoneType, it must be a number or 'soft'": lambda: semihard(EMB, LABELS, margin=None),
    "margin is nan, it must be a number within 1e+36 or 'soft'": lambda: semihard(
        EMB, LABELS, margin=float("nan")
    ),
    "margin is 1e+19, it must be a number within 1e+18 or": lambda: semihard(
        EMB, LABELS, margin=1e19, distance="euclidean"
    ),
    "margin is 'hard', it must": lambda: TripletLoss(margin=np.str_("hard")),
    "unknown distance 'cosin': ": lambda: semihard(EMB, LABELS, distance=np.str_("cosin")),
    "unknown miner 'hrd': ": lambda: CrossBatchMemory(4, dim=3, miner=np.str_("hrd")),
    "unknown distance 'cosin': did you mean 'cosine'?": lambda: semihard(EMB, LABELS, distance="cosin"),
    "margin is 'hard', it must be a number or 'soft'": lambda: TripletLoss(margin="hard"),
    "unknown miner 'hrd': did you mean 'hard'?, or package.module:function": lambda: resolve_miner("hrd"),
    "miner 'no.such:f': no.such does not import (No module named 'no')": lambda: resolve_miner("no.such:f"),
    "miner 'math:sqr': no function 'sqr' there: did you mean 'sqrt'?": lambda: resolve_miner("math:sqr"),
    "miner 'math:pi': no function 'pi' there: choose from acos, acosh, ": lambda: resolve_miner("math:pi"),
    "select returned (4, 1), needed is one weight a triplet: (4, 4)": (
        lambda: batch_select(EMB, LABELS, select=lambda d_ap, d_an: d_ap)
    ),
    "select returned float, needed is one weight a triplet: (4, 4)": (
        lambda: batch_select(EMB, LABELS, select=lambda d_ap, d_an: 1.0)
    ),
    "a memory of 0 rows of 3 numbers holds nothing: both must be at least 1": lambda: CrossBatchMemory(
        0, dim=3
    ),
    "a memory of 3 rows of 0 numbers holds nothing: both must be at least 1": lambda: CrossBatchMemory(
        3, dim=0
    ),
    "x has 4 rows and y 3, the triangle walk needs one number: leave y out": lambda: next(
        product_tiles(EMB, EMB[:3], triangle=True)
    ),
    "the tile budget is 0 MiB, it must be above 0: 4 suits a CPU, 512 a GPU": lambda: tile_shape(
        4, 4, budget_mib=0
    ),
}


@pytest.mark.parametrize("message", DATA_ERRORS)
def test_data(message):
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        DATA_ERRORS[message]()


@pytest.mark.parametrize("message", CONFIG_ERRORS)
def test_config(message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        CONFIG_ERRORS[message]()


def test_integers_on_either_side():
    for x, y in ((EMB.long(), EMB), (EMB, EMB.long())):
        with pytest.raises(DataError, match=re.escape(INTEGERS)):
            next(product_tiles(x, y))


def test_a_name_that_is_none_of_the_functions_own():
    """What begins with an underscore is no suggestion, and no function is one that is no function."""
    with pytest.raises(ConfigError) as caught:
        resolve_miner("math:__doc")
    assert "__doc__" not in str(caught.value)
    assert CrossBatchMemory(1, dim=1).size == 1
