"""The registry of losses, functions of one's own, and a miner as a module."""

import copy
import io
import pickle
import re
import sys
import types
from typing import NamedTuple

import pytest
import torch

from facemetric.errors import ConfigError
from facemetric.mining import (
    LOSSES,
    CrossBatchMemory,
    LossOptions,
    LossRecord,
    TripletLoss,
    batch_hard,
    distance_weighted,
    resolve_loss,
    semihard,
)
from facemetric.mining.losses import RESERVED


def batch(rows=40, classes=8, seed=9):
    generator = torch.Generator().manual_seed(seed)
    emb = torch.nn.functional.normalize(torch.randn(rows, 4, generator=generator, dtype=torch.float64))
    return emb, torch.randint(classes, (rows,), generator=generator)


def norms(emb, labels):
    return emb.norm(dim=1).mean() + labels.sum()


class Found(NamedTuple):
    loss: torch.Tensor
    figures: dict


@pytest.fixture
def module(monkeypatch):
    made = types.ModuleType("my_losses")
    made.norms = norms
    made.record = lambda emb, labels: Found(norms(emb, labels), {"labels": len(labels), "mean": emb.mean()})
    made.weighty = lambda emb, labels: types.SimpleNamespace(loss=norms(emb, labels), weight=7.0)
    made.mined = lambda emb, labels: batch_hard(emb, labels)
    made.vector = lambda emb, labels: emb.norm(dim=1)
    made.number = lambda emb, labels: 1.5
    made.whole = lambda emb, labels: labels.sum()
    made.pairs = lambda emb, labels: Found(norms(emb, labels), [("a", 1)])
    made.wide = lambda emb, labels: Found(norms(emb, labels), {"norm": emb.norm(dim=1)})
    monkeypatch.setitem(sys.modules, "my_losses", made)


def test_the_built_in_loss_is_the_miner():
    emb, labels = batch()
    found = resolve_loss("triplet", LossOptions("hard", margin=0.5, distance="cosine"))(emb, labels)
    mined = batch_hard(emb, labels, margin=0.5, distance="cosine")
    assert found.loss == mined.loss
    assert found.weight == mined.weight
    assert {k: float(v) for k, v in found.figures.items()} == {
        "fraction_positive": float(mined.fraction_positive),
        "mean_d_ap": float(mined.d_ap),
        "mean_d_an": float(mined.d_an),
    }
    assert torch.equal(found.mined.triplets, mined.triplets)
    assert resolve_loss("triplet")(emb, labels).loss == semihard(emb, labels).loss
    part = resolve_loss("triplet")(emb, labels, anchors=slice(3, 9))
    assert part.loss == semihard(emb, labels, anchors=slice(3, 9)).loss


def test_a_miner_that_draws_is_given_the_seed_of_the_step():
    emb, labels = batch()
    loss = resolve_loss("triplet", LossOptions("distance-weighted", seed=4))
    assert loss(emb, labels).loss == distance_weighted(emb, labels, seed=4).loss
    assert loss(emb, labels, seed=9).loss == distance_weighted(emb, labels, seed=9).loss


def test_a_function_of_ones_own(module):
    emb, labels = batch()
    rows = emb.clone().requires_grad_()
    found = resolve_loss("my_losses:norms")(rows, labels)
    assert isinstance(found, LossRecord)
    assert (found.loss, found.weight, dict(found.figures)) == (norms(emb, labels), 1.0, {})
    found.loss.backward()
    assert rows.grad.any()
    found = resolve_loss("my_losses:record")(emb, labels, anchors=slice(0, 3), seed=1)
    assert found.loss == norms(emb, labels)
    assert found.figures == {"labels": 40, "mean": emb.mean()}
    assert resolve_loss("my_losses:weighty")(emb, labels).weight == 1.0  # each process has the whole batch
    found = resolve_loss("my_losses:mined")(emb, labels)
    assert found.mined is not None
    assert found.weight == found.mined.weight
    assert list(found.figures) == ["fraction_positive", "mean_d_ap", "mean_d_an"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "vector",
            "loss 'my_losses:vector' returned a tensor (40,) of torch.float64: needed is a scalar floating",
        ),
        (
            "number",
            "loss 'my_losses:number' returned a float: needed is a scalar floating tensor, or a record",
        ),
        ("whole", "loss 'my_losses:whole' returned a tensor () of torch.int64: needed is a scalar floating"),
        ("pairs", "loss 'my_losses:pairs': .figures is a list, needed is a dict from names to numbers"),
        ("wide", "loss 'my_losses:wide': figure 'norm' is no number with a name; take its mean"),
    ],
)
def test_what_a_function_may_not_return(module, name, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        resolve_loss(f"my_losses:{name}")(*batch())


@pytest.mark.parametrize("figure", [*RESERVED, "tar_at_far_0.01"])
def test_figures_by_a_name_that_is_taken(module, figure):
    """They would take the place of the training's own loss, or of the figure that picks the best epoch."""
    sys.modules["my_losses"].own = lambda emb, labels: Found(norms(emb, labels), {"mine": 1.0, figure: 2.0})
    with pytest.raises(ConfigError, match=f"^loss 'my_losses:own': .* by the name of {figure}; rename them"):
        resolve_loss("my_losses:own")(*batch())


def test_names_that_are_not_there():
    with pytest.raises(ConfigError, match=r"^unknown loss 'tripplet': did you mean 'triplet'\?, or package"):
        resolve_loss("tripplet")
    with pytest.raises(ConfigError, match="loss 'no_such:f': no_such does not import"):
        resolve_loss("no_such:f")
    with pytest.raises(ConfigError, match="loss 'math:sqr': no function 'sqr' there: did you mean 'sqrt'"):
        resolve_loss("math:sqr")
    for options in (LossOptions("hrd"), LossOptions(margin="hard"), LossOptions(distance="cosin")):
        with pytest.raises(ConfigError):
            resolve_loss("triplet", options)


def test_a_loss_is_a_function_and_a_line(monkeypatch):
    def spread(options):
        return lambda emb, labels, *, anchors=None, seed=None: LossRecord(emb.var() * options.margin)

    monkeypatch.setitem(LOSSES, "spread", spread)
    emb, labels = batch()
    assert resolve_loss("spread", LossOptions(margin=2.0))(emb, labels).loss == 2 * emb.var()


def test_module_counts_its_draws_and_keeps_the_record():
    emb, labels = batch()
    loss = TripletLoss("distance-weighted", seed=5)
    first, second = loss(emb, labels), loss(emb, labels)
    assert first == distance_weighted(emb, labels, seed=5).loss
    assert second == distance_weighted(emb, labels, seed=6).loss
    other = TripletLoss("distance-weighted", seed=5)
    other.load_state_dict(loss.state_dict())
    assert other(emb, labels) == distance_weighted(emb, labels, seed=7).loss
    module = TripletLoss("hard", margin="soft", distance="cosine")
    assert repr(module) == "TripletLoss(hard, margin=soft, distance=cosine)"
    value = module(emb.requires_grad_(), labels)
    value.backward()
    assert module.mined is not None
    assert not module.mined.loss.requires_grad
    assert value == batch_hard(emb, labels, margin="soft", distance="cosine").loss


@pytest.mark.parametrize("kind", ["all", "semihard", "hard", "distance-weighted"])
@pytest.mark.parametrize("rows", [40, 600])
def test_a_module_that_was_used_is_saved_and_copied(kind, rows):
    """A record holds what is yet to be added up, and the rows of its batch: neither goes into a file."""
    emb, labels = batch(rows, classes=rows // 5)
    module = TripletLoss(kind)
    module(emb.requires_grad_(), labels).backward()
    file = io.BytesIO()
    torch.save(module, file)
    assert file.tell() < 8000
    file.seek(0)
    copies = (
        torch.load(file, weights_only=False),
        pickle.loads(pickle.dumps(module)),
        copy.deepcopy(module),
    )
    before, again = module.mined, module(emb, labels)
    for restored in copies:
        for name in ("loss", "weight", "active", "d_ap", "d_an", "fraction_positive"):
            assert getattr(restored.mined, name) == getattr(before, name)
        with pytest.raises(ConfigError, match="mine the batch again"):
            restored.mined.triplets  # noqa: B018
        assert restored(emb, labels) == again
    memory = CrossBatchMemory(8, dim=4, miner=kind)
    memory(emb, labels)
    assert torch.equal(pickle.loads(pickle.dumps(memory)).embeddings, memory.embeddings)
