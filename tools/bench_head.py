"""Time and memory of a head on several gloo processes: copied to each, shared out, shared out with a sample.

    python tools/bench_head.py                                             # 100,000 identities, times side by side
    python tools/bench_head.py --identities 1000000 --heads sampled        # what one of them needs
    python tools/bench_head.py --identities 1000000 --heads sampled --processes 1
    python tools/bench_head.py --identities 1000000 --heads sampled --processes 1 --device cuda

A step is forward, backward, the sum of gradients over processes, the norm of all and SGD with momentum, for `--batch`
random embeddings of all processes. Where several heads are named they take turns in the same processes, so that a busy
machine slows all alike: read the ratios of the medians. Memory is the peak of what each process held, in MiB (torch and
Python alone: some 300), on a GPU what was allocated there; it is told where one head alone is named.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from facemetric import distributed
from facemetric.machine import MIB, resident_peak
from facemetric.model.heads import make_head
from facemetric.model.sharded_head import ShardedHead
from facemetric.training.shards import drawn_columns

HEADS = ("copied", "shared", "sampled")
SCALE, MARGIN = 64.0, 0.5


class Net(torch.nn.Module):
    """A head in the place that a training's model has it."""

    head: Any

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = head


def step_of(name: str, options: argparse.Namespace) -> Callable[[torch.Tensor, torch.Tensor], float]:
    """One training step of a head on this process's embeddings and labels; it returns the loss."""
    size, identities = options.dim, options.identities
    if name == "copied":
        torch.manual_seed(0)
        net = Net(make_head("arcface", size, identities, scale=SCALE, margin=MARGIN))
    else:
        sample = options.sample if name == "sampled" else 1.0
        net = Net(ShardedHead("arcface", size, identities, scale=SCALE, margin=MARGIN, sample=sample))
    net.to(options.device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def step(emb_BD: torch.Tensor, label_B: torch.Tensor) -> float:
        optimizer.zero_grad(set_to_none=True)
        emb_BD = emb_BD.clone().requires_grad_()
        if isinstance(net.head, ShardedHead):
            loss = net.head.cross_entropy(emb_BD, label_B).loss / options.batch
        else:
            harder = net.head.with_margin(net.head(emb_BD), label_B, emb_BD=emb_BD)
            loss = functional.cross_entropy(harder, label_B, reduction="sum") / options.batch
            del harder
        loss.backward()
        with drawn_columns(net, optimizer) as parameters:
            for parameter in parameters:
                if not distributed.is_shard(parameter):
                    assert parameter.grad is not None
                    parameter.grad = distributed.total(parameter.grad)
            norm = distributed.gradient_norm(parameters)
            torch.nn.utils.clip_grads_with_norm_(parameters, 5.0, norm)
            optimizer.step()
        return float(distributed.total(loss))

    return step


def work(options: argparse.Namespace) -> None:
    """What each process does; process 0 prints what was measured."""
    device = distributed.start(options.device)
    torch.set_num_threads(1)
    steps = {name: step_of(name, options) for name in options.heads}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    losses: dict[str, float] = {}
    share = options.batch // distributed.world_size()
    for number in range(options.steps + 1):
        generator = torch.Generator().manual_seed(number * 1000 + distributed.rank())
        emb = torch.randn(share, options.dim, generator=generator).to(device)
        label = torch.randint(options.identities, (share,), generator=generator).to(device)
        for name, step in steps.items():
            wait(device)
            began = time.perf_counter()
            losses[name] = step(emb, label)  # a number: the device has come to its end
            if number:  # the first one makes the optimizer's numbers
                seconds[name].append(time.perf_counter() - began)
    on_gpu = device != "cpu"
    peaks = distributed.from_all((torch.cuda.max_memory_allocated() if on_gpu else resident_peak()) / MIB)
    if distributed.rank() == 0:
        print(json.dumps({"seconds": seconds, "losses": losses, "peaks": peaks}), flush=True)


def wait(device: str) -> None:
    """Until all processes are here, and their devices have nothing left to do."""
    if device != "cpu":
        torch.cuda.synchronize()
    distributed.barrier()


def launch(options: argparse.Namespace) -> dict:
    """Start the processes, and read what the first one prints."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    environment["WORLD_SIZE"] = str(options.processes)
    children = [
        subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--work"],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(options.processes)
    ]
    said = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        sys.exit(f"a process ended with {[child.returncode for child in children]}: too little memory?")
    return json.loads(said[0].splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--identities", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--batch", type=int, default=128, help="images of all processes")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--sample", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    found = launch(options)
    print(
        f"{options.identities:,} identities x {options.dim}, {options.batch} images, {options.processes} processes"
    )
    medians = {name: statistics.median(times) for name, times in found["seconds"].items()}
    first = next(iter(medians.values()))
    if len(medians) == 1:
        print(f"peak of each process: {', '.join(f'{peak:,.0f} MiB' for peak in found['peaks'])}")
    for name, median in medians.items():
        print(f"{name:>8}  {median:7.2f} s a step  x {median / first:.2f}  loss {found['losses'][name]:.3f}")


if __name__ == "__main__":
    main()
