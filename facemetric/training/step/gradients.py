"""Backward of a step: of a scaled loss in mixed precision, and over the processes of torchrun into one gradient."""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from facemetric import distributed
from facemetric.training.step.optim import Amp
from facemetric.training.tasks.chunks import still_statistics


class Gradients:
    """What the loop hands a task as `backward`: it leaves the gradient of all processes' losses, added up.

    torch's own DistributedDataParallel sums it in buckets, while backward computes the others. A weight that a process
    does not use counts as zero there; one that no process uses keeps no gradient, as in one process. With `recomputed`
    activations are computed again in backward, where batch norms must not count a batch twice."""

    def __init__(self, model: nn.Module, amp: Amp, *, recomputed: bool = False) -> None:
        self.model, self.amp, self.recomputed = model, amp, recomputed
        # Sums inside a backward, such as those of gather_rows, may come between the buckets: each has its own channel.
        self.group = dist.new_group(timeout=distributed.TIMEOUT) if distributed.together() else None
        self.summed: DistributedDataParallel | None = None
        self.trained: list[int] = []

    def follow(self) -> None:
        """Look again at what trains: to be called where something was frozen or thawed, on all processes."""
        if self.group is None:
            return
        trained = [id(parameter) for parameter in self.model.parameters() if parameter.requires_grad]
        if trained == self.trained:
            return
        self.trained, self.summed = trained, None
        gc.collect()  # the buckets of before, and their hooks
        whole = PassedOn(self.model)
        shards = [name for name, each in whole.named_parameters() if distributed.is_shard(each)]
        # a process's own rows of a head have their whole gradient already
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(whole, shards)
        with silent():
            self.summed = DistributedDataParallel(
                whole,
                process_group=self.group,
                init_sync=False,  # `same_weights` did it; running statistics are each process's own
                broadcast_buffers=False,
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
            )
        # torch looks at a hook's annotations, which are text here: a lambda has none
        hook = lambda group, bucket: add_up(group, bucket)  # noqa: E731
        self.summed.register_comm_hook(self.group, hook)  # type: ignore[no-untyped-call]

    def __call__(self, loss: Tensor, last: bool = True) -> None:
        """Backward of a part of the step's loss; `last` of all its parts, with which the processes add up theirs."""
        with still_statistics(self.model) if self.recomputed else contextlib.nullcontext():
            if self.summed is None:
                self.amp.backward(loss)
                return
            with contextlib.nullcontext() if last else self.summed.no_sync():
                self.amp.backward(passed_on(self.summed, loss))


class PassedOn(nn.Module):
    """Passes a loss on. DistributedDataParallel finds in its graph which weights of the model a process used."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss: Tensor) -> Tensor:
        """The loss."""
        return loss


def passed_on(summed: DistributedDataParallel, loss: Tensor) -> Tensor:
    """The loss, once torch knows which weights it uses; where it uses all, without torch's advice not to look.

    That comes from C++, and onto stderr, but for what is called inside an operation of torch, such as `apply_`: there
    it becomes a warning of Python. (A weight that is never used would silence it too, and have the host wait for the
    GPU in each step.)"""
    found = []

    def look(number: float) -> float:
        found.append(summed(loss))
        return number

    with silent():
        torch.zeros(1).apply_(look)
    return found[0]


def add_up(group: dist.ProcessGroup, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """The sum of a bucket over processes, where DistributedDataParallel would take the mean."""
    future = dist.all_reduce(bucket.buffer(), group=group, async_op=True).get_future()
    return future.then(lambda done: done.value()[0])  # type: ignore[no-any-return]


@contextlib.contextmanager
def silent() -> Iterator[Any]:
    """Without torch's advice not to look for unused weights, where a batch used all, and on the new name of
    `broadcast_buffers`, which does not yet do what the old one does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")
        warnings.filterwarnings("ignore", message="find_unused_parameters=True was specified")
        yield
