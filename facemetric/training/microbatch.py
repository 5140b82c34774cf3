"""Exact gradients of a huge batch in the memory of a small one: embed without a graph, mine, replay.

The whole batch is embedded chunk by chunk without a graph; the loss over all embeddings gives their gradient;
then each chunk is embedded once more with its graph, which takes that gradient to the weights. The sum over
chunks is the gradient of the whole batch, as the loss depends on the weights through the embeddings alone.
Source of the idea: Gao et al. 2021, arXiv:2101.06983.

Both passes of a chunk draw the same random numbers (dropout, stochastic depth). A batch norm in training mode
normalises by the chunk's statistics and not by the batch's: the gradient is then exactly that of a network whose
batch norms see chunks, and the running statistics move once, in the second pass. A batch norm that is in
evaluation mode makes no difference at all.

Shapes: B batch, D embedding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from facemetric.model.freezing import batch_norms


def backward_in_chunks(
    model: nn.Module,
    embed: Callable[[Tensor], Tensor],
    loss_of: Callable[[Tensor], Tensor],
    chunks: Sequence[Tensor],
    backward: Callable[[Tensor], None],
) -> None:
    """Accumulate the gradient of `loss_of(cat(embed(chunk) for chunk in chunks))` in the weights of `model`.

    `embed` maps a chunk to embeddings (b, D) by `model`; `backward` is called with scalars whose gradients add
    up to it. One chunk is the ordinary single pass."""
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
        (grad_BD,) = torch.autograd.grad(loss_of(emb_BD), emb_BD)
        for chunk, state, grad in zip(
            chunks, states, grad_BD.split([len(part) for part in parts]), strict=True
        ):
            set_random_state(state)
            backward((embed(chunk) * grad).sum())


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
