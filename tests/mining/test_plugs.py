"""Losses from elsewhere: functions and classes of one's own, and those of pytorch-metric-learning."""

import re
import sys
import types

import pytest
import torch
from mined_batches import batch
from torch import nn

from facemetric.errors import ConfigError
from facemetric.mining import LossOptions, resolve_loss


class Centres(nn.Module):
    """A class of one's own that learns a centre an identity."""

    def __init__(self, identities, embedding_size, pull=1.0):
        super().__init__()
        self.centres, self.pull = nn.Parameter(torch.ones(identities, embedding_size)), pull

    def forward(self, emb, labels):
        return self.pull * (emb - self.centres[labels]).square().mean()


class Plain:
    def __init__(self, power=2):
        self.power = power

    def __call__(self, emb, labels):
        return emb.abs().pow(self.power).mean()


class Unfit:
    def __init__(self, identities):
        raise ValueError("too hot")


@pytest.fixture(autouse=True)
def module(monkeypatch):
    made = types.ModuleType("my_losses")
    made.Centres, made.Plain, made.Unfit, made.Dumb = Centres, Plain, Unfit, type("Dumb", (), {})
    made.scaled = lambda emb, labels, times=1.0: emb.norm() * times
    monkeypatch.setitem(sys.modules, "my_losses", made)


def resolve(name, **arguments):
    return resolve_loss(name, LossOptions(arguments=arguments))


def test_a_function_takes_its_arguments():
    emb, labels = batch(10, 3)
    assert resolve("my_losses:scaled", times=3.0)(emb, labels).loss == emb.norm() * 3
    assert resolve("my_losses:scaled")(emb, labels).loss == emb.norm()
    with pytest.raises(ConfigError, match=r"has no argument 'tines': did you mean 'times'\?"):
        resolve("my_losses:scaled", tines=3.0)


def test_a_class_is_made_with_the_sizes_of_the_data():
    emb, labels = batch(10, 3)
    loss = resolve("my_losses:Centres", pull=2.0)
    loss.prepare(3, 4)
    assert loss.trained_only
    assert isinstance(loss.weights, Centres)
    found = loss(emb, labels)
    torch.testing.assert_close(found.loss, 2 * (emb - 1).square().mean())
    found.loss.backward()
    assert loss.weights.centres.grad.any()
    with pytest.raises(ConfigError, match="has no argument 'push'"):
        resolve("my_losses:Centres", push=1)


def test_a_class_without_weights():
    emb, labels = batch(10, 3)
    loss = resolve("my_losses:Plain", power=3)
    loss.prepare(3, 4)
    assert (loss.weights, loss.trained_only) == (None, False)
    torch.testing.assert_close(loss(emb, labels).loss, emb.abs().pow(3).mean())


def test_classes_that_cannot_be_made():
    loss = resolve("my_losses:Unfit")
    with pytest.raises(
        ConfigError, match=r"^loss 'my_losses:Unfit' cannot be made: too hot; give what it needs"
    ):
        loss.prepare(3, 4)
    with pytest.raises(ConfigError, match="loss 'my_losses:Dumb' is not callable; needed is __call__"):
        resolve("my_losses:Dumb")


def test_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.losses", None)
    with pytest.raises(
        ConfigError, match=r"losses pml:NAME need pytorch-metric-learning .*facemetric\[losses\]"
    ):
        resolve("pml:SupConLoss")


def test_a_loss_of_the_library_with_its_miner():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    from pytorch_metric_learning import distances, miners

    emb, labels = batch(20, 5)
    assert resolve("pml:SupConLoss", temperature=0.2)(emb, labels).loss == losses.SupConLoss(temperature=0.2)(
        emb, labels
    )
    table = {"class": "BatchHardMiner", "distance": {"class": "LpDistance", "power": 2}}
    loss = resolve("pml:TripletMarginLoss", margin=0.3, miner=table, reducer={"class": "MeanReducer"})
    mine = miners.BatchHardMiner(distance=distances.LpDistance(power=2))
    from pytorch_metric_learning.reducers import MeanReducer

    expected = losses.TripletMarginLoss(margin=0.3, reducer=MeanReducer())(emb, labels, mine(emb, labels))
    assert loss(emb, labels).loss == expected
    assert (loss.weights, loss.splits, loss.remembers, loss.trained_only) == (None, False, False, False)


def test_a_loss_of_the_library_that_learns():
    pytest.importorskip("pytorch_metric_learning")
    emb, labels = batch(20, 5)
    loss = resolve("pml:ProxyAnchorLoss", alpha=16)
    loss.prepare(5, 4)
    assert loss.trained_only
    assert [tuple(weight.shape) for weight in loss.weights.parameters()] == [(5, 4)]
    loss(emb, labels).loss.backward()
    assert next(loss.weights.parameters()).grad.any()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("pml:SupConLos", {}, "pytorch-metric-learning has no losse 'SupConLos': did you mean 'SupConLoss'?"),
        ("pml:SupConLoss", {"temprature": 1}, "loss 'pml:SupConLoss' cannot be made: "),
        ("pml:SupConLoss", {"miner": "BatchHardMiner"}, "miner is 'BatchHardMiner'; needed is a table"),
        ("pml:SupConLoss", {"miner": {"epsilon": 1}}, "miner is {'epsilon': 1}; a table needs a class"),
        (
            "pml:SupConLoss",
            {"miner": {"class": "BatchHard"}},
            "pytorch-metric-learning has no miner 'BatchHard'",
        ),
        (
            "pml:SupConLoss",
            {"miner": {"class": "BatchHardMiner", "x": 1}},
            "miner BatchHardMiner cannot be made",
        ),
        ("pml:CrossBatchMemory", {}, "loss 'pml:CrossBatchMemory' wraps another loss; name that one"),
    ],
)
def test_what_the_library_lacks(name, arguments, message):
    pytest.importorskip("pytorch_metric_learning")
    message = message.replace("losse", "loss")
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        resolve(name, **arguments)
