"""Forked processes: one that may be killed, or several that train together as torchrun's do."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

# autograd looks for devices at its first backward: where an export to ONNX came before it finds one more, starts a
# thread for it, and refuses every backward of a fork. Where a pretended device is to be found, it is not done.
if "FACEMETRIC_COUNTING" not in os.environ:
    torch.zeros(1, requires_grad=True).sum().backward()


def in_a_child(work: Callable[[], object]) -> int:
    """Run `work` in a forked process; the signal that ended it, 0 where it came to its end."""
    status = os.waitpid(fork(work), 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed"
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def in_processes(world: int, work: Callable[[int], object], said: Path) -> list[int]:
    """Run `work(rank)` in forked processes with torchrun's environment; the status of each, as `wait` has it.

    Where one fails the others, which may wait for it, are killed. What they print goes to `said`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def begin(rank: int) -> Callable[[], object]:
        def run() -> object:
            os.environ.update(
                MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world)
            )
            sys.stdout = sys.stderr = open(said, "a", buffering=1)  # noqa: SIM115
            os.dup2(sys.stderr.fileno(), 2)  # what torch's C++ says, too
            return work(rank)

        return run

    children = [fork(begin(rank)) for rank in range(world)]
    ended: dict[int, int] = {}
    while len(ended) < world:
        for child in set(children) - set(ended):
            number, status = os.waitpid(child, os.WNOHANG)
            if number:
                ended[child] = status
        if any(ended.values()):
            for child in set(children) - set(ended):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [ended[child] for child in children]


def fork(work: Callable[[], object]) -> int:
    """Start `work` in a forked process with one thread: a fork has none of torch's pool. Its number."""
    child = os.fork()
    if child == 0:
        try:
            gc.freeze()  # a collection walks what the child makes, not all that the tests before it left
            torch.set_num_threads(1)
            tqdm.set_lock(
                threading.RLock()
            )  # its own is shared by all forks, and one that was killed may hold it
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(3)
        os._exit(0)
    return child
