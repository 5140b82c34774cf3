"""Micro-batches: the gradient of the whole batch, whatever the loss."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from facemetric.mining.miners import semihard
from facemetric.mining.proxies import proxy_anchor
from facemetric.training.step.optim import Amp
from facemetric.training.tasks.chunks import backward_in_chunks, even_chunks

LABELS = torch.arange(12) % 4


def plain(loss: Tensor, last: bool = True) -> None:
    """Backward as one process has it."""
    loss.backward()


def net(dropout: float = 0.0) -> nn.Sequential:
    """A small network in float64, its batch norm with statistics that are not the first ones."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(216, 5)
    ).double()
    with torch.no_grad():
        model[1].running_mean.normal_()
        model[1].running_var.uniform_(0.5, 2.0)
    return model


def run(
    model: nn.Module, chunk: int, loss_of: Callable[[Tensor], Tensor] | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """(gradients, embeddings that the loss saw) of a batch in chunks of so many images."""
    images = torch.randn(12, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    seen = []

    def watched(emb_BD: Tensor) -> Tensor:
        seen.append(emb_BD.detach().clone())
        return semihard(emb_BD, LABELS, margin=0.5).loss if loss_of is None else loss_of(emb_BD)

    model.zero_grad()
    backward_in_chunks(
        model,
        lambda part: functional.normalize(model(part), dim=1),
        watched,
        images.split(chunk),
        plain,
    )
    assert len(seen) == 1
    return gradients(model), seen[0]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("chunk", [1, 3, 5, 11])
def test_with_a_still_batch_norm_it_is_the_gradient_of_one_pass(chunk: int) -> None:
    model = net().eval()
    whole, parts = run(model, 12), run(model, chunk)
    torch.testing.assert_close(parts[1], whole[1], rtol=0, atol=1e-12)
    assert whole[0].keys() == parts[0].keys()
    assert max(float(grad.abs().max()) for grad in whole[0].values()) > 1e-3
    for name, grad in whole[0].items():
        torch.testing.assert_close(parts[0][name], grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("chunk", [3, 12])
def test_what_a_loss_learns_gets_the_gradient_of_one_pass(chunk: int) -> None:
    model = net().eval()
    images = torch.randn(12, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    size = model(images[:1]).shape[1]
    proxies = nn.Parameter(
        torch.randn(4, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    )
    unused = nn.Parameter(torch.ones(1))
    labels = LABELS % 4

    def embed(part: Tensor) -> Tensor:
        return functional.normalize(model(part), dim=1)

    def loss_of(emb_BD: Tensor) -> Tensor:
        return proxy_anchor(emb_BD, labels, proxies).loss

    expected = torch.autograd.grad(loss_of(embed(images)), [proxies, *model.parameters()], allow_unused=True)
    backward_in_chunks(model, embed, loss_of, images.split(chunk), plain, lambda: [proxies, unused])
    for weight, grad in zip([proxies, *model.parameters()], expected, strict=True):
        torch.testing.assert_close(weight.grad, grad, rtol=0, atol=1e-10)
    assert unused.grad is None


@pytest.mark.parametrize("chunk", [3, 5])
def test_dropout_draws_the_same_in_both_passes(chunk: int) -> None:
    model = net(dropout=0.4).eval()
    model[3].train()
    torch.manual_seed(7)
    grads, emb = run(model, chunk)

    def plain() -> dict[str, Tensor]:
        """One pass with a graph over everything, dropout drawn chunk by chunk."""
        torch.manual_seed(7)
        images = torch.randn(12, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        model.zero_grad()
        found = torch.cat([functional.normalize(model(part), dim=1) for part in images.split(chunk)])
        torch.testing.assert_close(found, emb, rtol=0, atol=1e-12)
        semihard(found, LABELS, margin=0.5).loss.backward()
        return gradients(model)

    for name, grad in plain().items():
        torch.testing.assert_close(grads[name], grad, rtol=0, atol=1e-10)


def test_mixed_precision_gives_every_part_its_gradient() -> None:
    """What the first pass casts without a graph is not what the second one learns by."""
    grads = []
    for chunk in (12, 3):
        model = net().eval().float()
        images = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        amp = Amp(torch.device("cpu"), "bfloat16")

        def embed(part: Tensor, model: nn.Module = model) -> Tensor:
            return functional.normalize(model(part).float(), dim=1)

        with amp.autocast():
            backward_in_chunks(
                model,
                embed,
                lambda emb_BD: semihard(emb_BD, LABELS, margin=0.5).loss,
                images.split(chunk),
                amp.backward,
            )
        grads.append(gradients(model))
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=0.1, atol=0.02)


def test_the_random_numbers_go_on_as_after_one_pass() -> None:
    model = net(dropout=0.4).eval()
    model[3].train()
    after = []
    for _ in range(2):
        torch.manual_seed(7)
        run(model, 3)
        after.append(torch.rand(3))
    torch.manual_seed(7)
    with torch.no_grad():
        for part in torch.zeros(12, 3, 8, 8, dtype=torch.float64).split(3):
            model(part)
    assert torch.equal(after[0], after[1])
    assert torch.equal(after[0], torch.rand(3))


def test_running_statistics_move_once() -> None:
    model = net().train()
    twin = copy.deepcopy(model)
    run(model, 4)
    images = torch.randn(12, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for part in images.split(4):
            twin(part)
    assert int(model[1].num_batches_tracked) == 3
    torch.testing.assert_close(model[1].running_mean, twin[1].running_mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(model[1].running_var, twin[1].running_var, rtol=0, atol=1e-12)


def test_a_training_batch_norm_gives_the_gradient_of_chunks() -> None:
    model = net().train()
    twin = copy.deepcopy(model)
    grads, emb = run(model, 4)
    images = torch.randn(12, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = torch.cat([functional.normalize(twin(part), dim=1) for part in images.split(4)])
    torch.testing.assert_close(found, emb, rtol=0, atol=1e-12)
    semihard(found, LABELS, margin=0.5).loss.backward()
    for name, value in twin.named_parameters():
        assert value.grad is not None
        torch.testing.assert_close(grads[name], value.grad, rtol=0, atol=1e-10)


def test_an_error_in_the_loss_leaves_the_statistics_as_they_were() -> None:
    model = net().train()
    before = copy.deepcopy(model.state_dict())

    def fail(emb_BD: Tensor) -> Tensor:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        run(model, 4, fail)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_chunks_are_even_and_none_is_a_single_image() -> None:
    """The last chunk of 65 images in chunks of 64 would be one, and a batch norm in training mode refuses it."""
    for count in range(2, 40):
        assert [len(chunk) for chunk in even_chunks(torch.zeros(count), 0)] == [count]
        for most in range(1, 45):
            sizes = [len(chunk) for chunk in even_chunks(torch.zeros(count), most)]
            assert sum(sizes) == count
            assert min(sizes) >= 2
            assert max(sizes) - min(sizes) <= 1
            assert max(sizes) <= max(most, 3)
            assert len(sizes) == -(-count // most) or most < 3
    assert even_chunks(torch.arange(7), 3)[0].tolist() == [0, 1, 2]
