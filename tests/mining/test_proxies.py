"""Proxy-anchor against its paper and pytorch-metric-learning, with the gradient of the proxies."""

import re

import pytest
import reference_losses
import torch
from mined_batches import batch

from facemetric.errors import ConfigError, DataError
from facemetric.mining import LossOptions, ProxyAnchor, proxy_anchor, resolve_loss
from facemetric.mining.tiles import MIB


def case(rows=18, classes=7, seed=0):
    emb, labels = batch(rows, classes - 2, seed=seed)  # two proxies without an image
    proxies = torch.randn(classes, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    return emb * 3, labels, proxies


def grads(function, emb, labels, proxies):
    emb, proxies = emb.clone().requires_grad_(), proxies.clone().requires_grad_()
    loss = function(emb, labels, proxies)
    loss.backward()
    return loss.detach(), emb.grad, proxies.grad


@pytest.mark.parametrize("options", [{}, {"alpha": 10.0, "delta": 0.0}, {"alpha": 120.0, "delta": 0.5}])
@pytest.mark.parametrize("budget_mib", [None, 8 * 50 / MIB])
def test_as_the_paper_has_it(options, budget_mib):
    for seed in range(3):
        emb, labels, proxies = case(seed=seed)
        emb[2] = proxies[0]  # a copy
        emb[5] = 0
        found = grads(
            lambda e, y, p: proxy_anchor(e, y, p, budget_mib=budget_mib, **options).loss, emb, labels, proxies
        )
        expected = grads(
            lambda e, y, p: reference_losses.proxy_anchor(e, y, p, **options), emb, labels, proxies
        )
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
        assert not found[1][5].any()


def test_gradcheck_and_figure():
    emb, labels, proxies = case(rows=6)
    inputs = (emb.requires_grad_(), proxies.requires_grad_())
    assert torch.autograd.gradcheck(
        lambda e, p: proxy_anchor(e, labels, p, alpha=4.0).loss, inputs, atol=1e-5
    )
    own = torch.nn.functional.cosine_similarity(emb, proxies[labels])
    torch.testing.assert_close(proxy_anchor(emb, labels, proxies).figures["mean_own_proxy"], own.mean())


def test_as_pytorch_metric_learning_has_it():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    emb, labels, proxies = case(rows=30)
    peer = losses.ProxyAnchorLoss(7, 4, margin=0.1, alpha=32).double()

    def theirs(emb, labels, proxies):
        peer.proxies.data.copy_(proxies.detach())
        return peer(emb, labels)

    loss, grad, _ = grads(lambda e, y, p: theirs(e, y, p) + 0 * p.sum(), emb, labels, proxies)
    found = grads(lambda e, y, p: proxy_anchor(e, y, p).loss, emb, labels, proxies)
    torch.testing.assert_close(found[0], loss, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found[1], grad, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found[2], peer.proxies.grad, rtol=1e-6, atol=1e-8)


def test_half_precision_and_autocast():
    emb, labels, proxies = case()
    expected = grads(lambda e, y, p: proxy_anchor(e, y, p).loss, emb, labels, proxies)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = grads(lambda e, y, p: proxy_anchor(e, y, p).loss, emb.float(), labels, proxies.float())
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-5)
    empty = proxy_anchor(emb[:0], labels[:0], proxies)
    assert empty.loss == 0
    assert empty.figures["mean_own_proxy"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda e, y, p: (e, y, p[:, :3]),
            r"proxies are (7, 3), embeddings (18, 4): needed are (C, D), (B, D)",
        ),
        (lambda e, y, p: (e, y.double(), p), "labels are torch.float64, needed are integers"),
        (lambda e, y, p: (e, y - 1, p), "a label is -1, and there are 7 proxies"),
        (lambda e, y, p: (e, y + 9, p), "and there are 7 proxies, one an identity: labels must be 0 to 6"),
        (lambda e, y, p: (e, y, p * torch.nan), "7 of 7 proxies are NaN or infinite"),
    ],
)
def test_data_that_cannot_be(change, message):
    with pytest.raises(DataError, match=re.escape(message)):
        proxy_anchor(*change(*case()))


def test_the_loss_of_a_training_learns_its_proxies():
    emb, labels, proxies = case()
    loss = resolve_loss("proxy-anchor", LossOptions(arguments={"alpha": 16, "delta": 0.2}))
    assert (loss.weights, loss.trained_only, loss.remembers, loss.splits) == (None, True, False, False)
    torch.manual_seed(0)
    loss.prepare(7, 4)
    assert isinstance(loss.weights, ProxyAnchor)
    assert repr(loss.weights) == "ProxyAnchor((7, 4), alpha=16, delta=0.2)"
    drawn = loss.weights.proxies.detach().clone()
    assert float(drawn.std()) == pytest.approx((2 / 7) ** 0.5, rel=0.3)
    means = proxies.clone()
    means[3] = 0  # an identity without an image that can be read
    loss.weights.start_from(means)
    torch.testing.assert_close(loss.weights.proxies[3], drawn[3])
    torch.testing.assert_close(loss.weights.proxies[:3], proxies[:3].float())
    found = loss(emb, labels, anchors=None, seed=1)
    expected = proxy_anchor(emb, labels, loss.weights.proxies, alpha=16, delta=0.2)
    assert found.loss == expected.loss
    found.loss.backward()
    assert loss.weights.proxies.grad.any()


def test_options_that_cannot_be():
    with pytest.raises(ConfigError, match="--loss-args of proxy-anchor: alpha is 0; it must be a number"):
        resolve_loss("proxy-anchor", LossOptions(arguments={"alpha": 0}))
    with pytest.raises(
        ConfigError, match=r"loss 'proxy-anchor' has no argument 'alfa': did you mean 'alpha'\?"
    ):
        resolve_loss("proxy-anchor", LossOptions(arguments={"alfa": 1}))
    with pytest.raises(ConfigError, match="0 proxies of 4 numbers: both must be at least 1"):
        ProxyAnchor(identities=0, embedding_size=4)
