"""How long something took, and the most memory it held."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from facemetric.training.heap import give_back_freed_memory

MIB = 2**20


@dataclass
class Measured:
    """Wall time in seconds; the peak in MiB: of a CUDA device where one was used, else of the process (0: unknown)."""

    seconds: float = 0.0
    peak_mib: float = 0.0


@contextlib.contextmanager
def measuring(found: Measured) -> Iterator[None]:
    """Fill `found` with what the body takes, when it ends, even by an error."""
    start, cuda = time.monotonic(), torch.cuda.is_available()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    give_back_freed_memory()  # else the body would seem to need what the one before it held
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the process's peak is from now on that of the body
    try:
        yield
    finally:
        found.seconds = time.monotonic() - start
        on_device = torch.cuda.max_memory_allocated() if cuda else 0
        found.peak_mib = (on_device or resident_peak()) / MIB


def resident_peak() -> int:
    """Bytes of memory that this process held at most since the peak was last reset; 0 where it is not Linux."""
    try:
        with open("/proc/self/status") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM")), 0)
    except OSError:
        return 0
