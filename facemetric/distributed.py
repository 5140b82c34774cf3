"""Several processes under torchrun: the batch is one, each process computes its part of it.

Every process embeds its share of the global batch and mines its own anchors against the embeddings of all.
The gradient of each process's loss reaches every embedding, wherever it was made, and the gradients of the
weights are summed, so that losses and gradients are those of one process with the whole batch. Without
torchrun everything here does nothing.

Shapes: B rows of this process, A rows of all processes, D embedding.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from facemetric import machine
from facemetric.errors import ConfigError, TrainingError, plural

T = TypeVar("T")

JOIN = timedelta(minutes=5)  # from one process's start to that of the last: torchrun begins them together
TIMEOUT = timedelta(hours=24)  # others wait while process 0 caches features or validates: that can take hours


def start(device: str) -> str:
    """Join the processes of torchrun, where there are several; the device of this one (`cuda` -> `cuda:1`).

    Raises ConfigError where the machine has no GPU for it, TrainingError where the others do not come (JOIN)."""
    if machine.processes() == 1:
        return device
    cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if cuda:
        device = own_gpu()
    if not dist.is_initialized():
        # gloo for what lies on the CPU, such as embeddings that are evaluated
        join("cpu:gloo,cuda:nccl" if cuda else "gloo")
    if rank() > 0:  # process 0 speaks for all
        machine.show_progress(False)
    return device


def own_gpu() -> str:
    """The GPU of this process: each on a machine has one of its own."""
    number, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if 0 < gpus <= number:
        raise ConfigError(
            f"there are more processes than GPUs on this machine, which has {plural(gpus, 'GPU')}; start no more than "
            "that, or choose --device cpu"
        )
    device = machine.pick_device(f"cuda:{number}")
    torch.cuda.set_device(device)
    return str(device)


def join(backend: str) -> None:
    """Wait for the other processes, JOIN at most, and connect with them; in later sums they may take TIMEOUT."""
    try:
        store, number, world = next(dist.rendezvous("env://", timeout=JOIN))
        own = met(store, number, world)
        dist.init_process_group(backend, store=own, rank=number, world_size=world, timeout=TIMEOUT)
    except (RuntimeError, ValueError, TimeoutError) as error:
        who = f"process {os.environ.get('RANK', '?')} of {machine.processes()}"
        raise TrainingError(
            f"{who} cannot join the others ({str(error).splitlines()[0]}); see what these said, and start all with "
            "torchrun"
        ) from error


def met(store: dist.Store, number: int, world: int) -> dist.Store:
    """A part of torchrun's store for these processes alone, once all are there: after a restart the store still has
    what those before wrote, addresses too.

    Process 0 makes up a name for it, and lists whom it met there: who read a name of before is not on its list."""
    own, until = os.urandom(8).hex(), time.monotonic() + JOIN.total_seconds()
    if number == 0:
        store.set("facemetric", own)
        others = [store.get(f"{own}/{other}").decode() for other in range(1, world)]
        store.set(f"{own}/met", " ".join(others))
        return dist.PrefixStore(own, store)
    while time.monotonic() < until:
        name = store.get("facemetric").decode()
        store.set(f"{name}/{number}", own)
        if store.check([f"{name}/met"]) and own in store.get(f"{name}/met").decode().split():
            return dist.PrefixStore(name, store)
        time.sleep(0.05)
    raise TimeoutError(f"process 0 did not come within {JOIN}")


def together() -> bool:
    """Whether there are several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """The number of this process, 0 for the one that writes."""
    return dist.get_rank() if together() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if together() else 1


_shared = False


@contextlib.contextmanager
def work_shared() -> Iterator[None]:
    """Inside, what is done for many images, pairs or queries is shared out over the processes, which all call it
    with the same arguments and all get the whole result. Outside, every process works for itself."""
    global _shared
    before, _shared = _shared, True
    try:
        yield
    finally:
        _shared = before


def workers() -> int:
    """Between how many processes work is shared out here: 1 outside of `work_shared`."""
    return world_size() if _shared and together() else 1


def own_share(items: Sequence[T]) -> Sequence[T]:
    """This process's part of some items: every so many, so that long and short ones are spread."""
    if workers() == 1:
        return items
    return [items[i] for i in range(rank(), len(items), workers())]  # a lazy sequence has no slices


def merged_rows(whole: npt.NDArray[Any], own: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Fill into `whole` (N, ...) what the other processes have in the rows that are theirs, this one's being `own`;
    the rows of all, rising. Alone it changes nothing."""
    if workers() == 1:
        return np.sort(own)
    rows = from_all(own)
    values = torch.from_numpy(np.ascontiguousarray(whole[own]))
    for theirs, part in zip(rows, _gathered(values, [len(r) for r in rows]), strict=True):
        whole[theirs] = part.numpy()
    return np.sort(np.concatenate(rows))


def summed(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Whole numbers summed over the processes that share the work."""
    return counts if workers() == 1 else total(torch.from_numpy(counts)).numpy()


def of_workers(value: T) -> list[T]:
    """The value of each process that shares the work; of this one where nobody does."""
    return [value] if workers() == 1 else from_all(value)


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


def any_of(flag: bool) -> bool:
    """Whether the flag is set on any process."""
    return any_of_each(flag)[0]


def any_of_each(*flags: bool) -> list[bool]:
    """Whether each flag is set on any process; asked by the hosts, so that no device is waited for."""
    if not together():
        return list(flags)
    found = torch.tensor([int(flag) for flag in flags])
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return [bool(flag) for flag in found.tolist()]


def total(value: Tensor) -> Tensor:
    """The sum over processes, without gradient."""
    value = value.detach().clone()
    if together():
        dist.all_reduce(value)
    return value


def highest(value: Tensor) -> Tensor:
    """The maximum over processes of each number, without gradient."""
    value = value.detach().clone()
    if together():
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return value


def from_all(value: Any) -> list[Any]:
    """The value of each process, on every process."""
    if not together():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def check_alike(facts: Mapping[str, str]) -> None:
    """Raise ConfigError, on every process, where one has other data or another version than process 0:
    `check_alike({"the data": fingerprint})`."""
    first, *others = from_all(dict(facts))
    for number, other in enumerate(others, 1):
        for name in first | other:
            theirs, ours = other.get(name, "none"), first.get(name, "none")
            if theirs != ours:
                raise ConfigError(
                    f"process {number} has another value of {name} than process 0 ({theirs}, not {ours}); "
                    "start all processes with the same options, files and versions"
                )


class Shard(NamedTuple):
    """The rows [first, stop) of `total` that this process has of something that is shared out over processes."""

    first: int
    stop: int
    total: int

    @property
    def size(self) -> int:
        """How many rows it has."""
        return self.stop - self.first


def shard_of(count: int) -> Shard:
    """This process's rows of `count`: one run of them, the same number on each process but for one."""
    return Shard(count * rank() // world_size(), count * (rank() + 1) // world_size(), count)


def mark_shard(parameter: nn.Parameter) -> None:
    """Note that each process has rows of its own of this parameter: its gradient is whole as it is."""
    parameter.is_shard = True  # type: ignore[attr-defined]


def is_shard(parameter: Tensor) -> bool:
    """Whether each process has rows of its own of this parameter."""
    return getattr(parameter, "is_shard", False)


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The L2 norm of all gradients, with those of every process's shards."""
    shards = [p.grad for p in parameters if p.grad is not None and is_shard(p)]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None and not is_shard(p)])
    if not shards:
        return norm
    return (norm.square() + total(nn.utils.get_total_norm(shards).square())).sqrt()


def same_overflow(parameters: Iterable[nn.Parameter]) -> None:
    """Where a shard's gradient overflowed on one process, let it on all: a loss scaler then skips the step on all."""
    shards = [p.grad for p in parameters if p.grad is not None and is_shard(p)]
    if not shards or not together():
        return
    finite = torch.stack([torch.isfinite(grad).all() for grad in shards]).all()
    if any_of(not bool(finite)):
        shards[0].fill_(torch.inf)


def same_weights(model: nn.Module) -> None:
    """Give every process the weights and buffers of process 0; each keeps its own shards."""
    if together():
        for tensor in [*model.parameters(), *model.buffers()]:
            if not is_shard(tensor):
                dist.broadcast(tensor.data, src=0)


def same_buffers(model: nn.Module) -> None:
    """Give every process the buffers of process 0, such as the statistics of batch norms, before all use them."""
    if together():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def gather_rows(rows_BD: Tensor, labels_B: Tensor) -> tuple[Tensor, Tensor, slice]:
    """(rows of all processes (A, D), their labels (A,), where this process's rows are among them).

    Processes may have different numbers of rows. The gradient of the sum of all processes' losses flows back to
    each process's rows."""
    if not together():
        return rows_BD, labels_B, slice(0, len(rows_BD))
    count = torch.tensor(len(rows_BD))  # of the hosts: no device is waited for
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
