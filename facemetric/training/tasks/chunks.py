"""A batch in micro-batches: its gradient in the memory of one of them.

A loss that is a sum over images takes them one after another (`one_by_one`): gradient accumulation. A loss of the whole
batch, as of triplets, first sees all embeddings without their graphs, and each micro-batch then goes through the
network once more (`backward_in_chunks`). Source: Gao et al. 2021, arXiv:2101.06983 (gradient cache)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from facemetric.model.freezing import batch_norms
from facemetric.training.task import Backward


def one_by_one(
    embed: Callable[[Tensor], Tensor],
    loss_of: Callable[[Tensor, slice], Tensor],
    chunks: Sequence[Tensor],
    backward: Backward,
) -> None:
    """Accumulate the gradient of the sum of `loss_of(embed(chunk), its rows of the batch)` over chunks."""
    start = 0
    for number, chunk in enumerate(chunks, 1):
        loss = loss_of(embed(chunk), slice(start, start + len(chunk)))
        if number == len(chunks):
            backward(loss)
        else:
            backward(loss, last=False)
        start += len(chunk)


def backward_in_chunks(
    model: nn.Module,
    embed: Callable[[Tensor], Tensor],
    loss_of: Callable[[Tensor], Tensor],
    chunks: Sequence[Tensor],
    backward: Backward,
    learned: Callable[[], Sequence[nn.Parameter]] = tuple,
) -> None:
    """Accumulate the gradient of `loss_of(cat(embed(chunk) for chunk in chunks))` in the weights of `model`, and in
    those that the loss has `learned` itself; asked for when the loss was computed, as a head may draw what it uses.

    `embed` maps a chunk to embeddings (b, D) by `model`; `backward` is called with scalars whose gradients add
    up to it. One chunk is the ordinary single pass; more go through the model twice."""
    if len(chunks) == 1:
        backward(loss_of(embed(chunks[0])))
        return
    states, parts = [], []
    with torch.no_grad(), still_statistics(model):
        for chunk in chunks:
            states.append(random_state())
            parts.append(embed(chunk))
    torch.clear_autocast_cache()  # older ones keep weights that were cast without a graph, and use them below
    with torch.enable_grad():
        emb_BD = torch.cat(parts).requires_grad_()
        loss = loss_of(emb_BD)
        weights = list(learned())
        grad_BD, *grads = torch.autograd.grad(loss, [emb_BD, *weights], allow_unused=True)
        for weight, grad in zip(weights, grads, strict=True):
            if grad is not None:
                backward((weight * grad).sum(), last=False)
        grads_bD = grad_BD.split([len(part) for part in parts])
        for number, (chunk, state, grad) in enumerate(zip(chunks, states, grads_bD, strict=True), 1):
            set_random_state(state)
            backward((embed(chunk) * grad).sum(), last=number == len(chunks))


def even_chunks(images: Tensor, most: int) -> tuple[Tensor, ...]:
    """Images in as few chunks as hold at most `most`, alike in size; one more where a chunk had but one image,
    of which a batch norm has no variance. `most` 0 is one chunk."""
    count = len(images)
    return images.tensor_split(max(1, min(-(-count // (most or count)), count // 2)))


@contextlib.contextmanager
def still_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norms in training mode still normalise by the batch, but their running statistics do not move."""
    norms = [norm for norm in batch_norms(model) if norm.training]
    kept = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])


State = tuple[Tensor, list[Tensor]]


def random_state() -> State:
    """The state of torch's generators, on the CPU and on every CUDA device in use."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def set_random_state(state: State) -> None:
    """Put the generators back."""
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])
