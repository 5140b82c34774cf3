"""Several processes under torchrun: the batch is one, each process computes its part of it.

Every process embeds its share of the global batch and mines its own anchors against the embeddings of all.
The gradient of each process's loss reaches every embedding, wherever it was made, and the gradients of the
weights are summed, so that losses and gradients are those of one process with the whole batch. Without
torchrun everything here does nothing.

Shapes: B rows of this process, A rows of all processes, D embedding.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from facemetric import machine

TIMEOUT = timedelta(hours=24)  # others wait while process 0 caches features or validates: that can take hours


def start(device: str) -> str:
    """Join the processes of torchrun, where there are several; the device of this one (`cuda` -> `cuda:1`)."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    if rank() > 0:  # process 0 speaks for all
        machine.show_progress(False)
    return device


def together() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """The number of this process, 0 for the one that writes."""
    return dist.get_rank() if together() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if together() else 1


def say(text: str) -> None:
    """A line for the user where progress is shown (machine.show_progress), from process 0 alone."""
    if rank() == 0:
        machine.say(text)


def barrier() -> None:
    """Wait for all processes."""
    if together():
        dist.barrier()


def from_first(value: Any) -> Any:
    """The value that process 0 has, on every process."""
    if not together():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any process."""
    if not together():
        return flag
    found = torch.tensor(int(flag), device=device)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found.item())


def total(value: Tensor) -> Tensor:
    """The sum over processes, without gradient."""
    value = value.detach().clone()
    if together():
        dist.all_reduce(value)
    return value


def same_weights(model: nn.Module) -> None:
    """Give every process the weights and buffers of process 0."""
    if together():
        for tensor in [*model.parameters(), *model.buffers()]:
            dist.broadcast(tensor.data, src=0)


def gather_rows(rows_BD: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor, slice]:
    """(rows of all processes (A, D), their labels (A,), where this process's rows are among them).

    Processes may have different numbers of rows. The gradient of the sum of all processes' losses flows back to
    each process's rows."""
    if not together():
        return rows_BD, labels_B, slice(0, len(rows_BD))
    count = torch.tensor(len(rows_BD), device=rows_BD.device)
    counts_list = [torch.zeros_like(count) for _ in range(world_size())]
    dist.all_gather(counts_list, count)
    counts = [int(c) for c in counts_list]
    first = sum(counts[: rank()])
    own = slice(first, first + counts[rank()])
    labels_A = torch.cat(_gathered(labels_B, counts))
    return _GatherRows.apply(rows_BD, counts, own), labels_A, own


def _gathered(rows: Tensor, counts: list[int]) -> list[Tensor]:
    """The rows of each process; all are padded to the longest on the way."""
    padded = rows.new_zeros((max(counts), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return [part[:count] for part, count in zip(parts, counts, strict=True)]


class _GatherRows(torch.autograd.Function):
    """all_gather whose backward sums the gradients that every process has for the rows of this one."""

    @staticmethod
    def forward(ctx: Any, rows_BD: Tensor, counts: list[int], own: slice) -> Tensor:
        ctx.own = own
        return torch.cat(_gathered(rows_BD.detach(), counts))

    @staticmethod
    def backward(ctx: Any, grad_AD: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        grad_AD = grad_AD.contiguous().clone()
        dist.all_reduce(grad_AD)
        return grad_AD[ctx.own], None, None
