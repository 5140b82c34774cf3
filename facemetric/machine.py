"""What of the machine is used: the device that computes, the processes that read."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from facemetric.errors import ConfigError, did_you_mean

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


TRIM_THRESHOLD, MMAP_MAX = -1, -4  # names of mallopt(3) in glibc's malloc.h


MOST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep large blocks that it frees, to use them again; False where the C library is not glibc.

    glibc gives blocks above 32 MiB back to the kernel at once. The activations of a training step are such
    blocks, so that every layer would wait for new pages, filled with zeros: measured, a step of hgnetv2_b0 with
    128 images of 88 pixels takes an eighth less time without that, and no more memory at its peak."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    return bool(mallopt(MMAP_MAX, 0)) and bool(mallopt(TRIM_THRESHOLD, MOST))


def give_back_freed_memory() -> None:
    """Hand what this process has freed back to the kernel now, so that its peak from here on is that of new work."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` is CUDA where there is one. Raises ConfigError where it is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"unknown device {name!r}{did_you_mean(name, ['auto', 'cpu', 'cuda', 'cuda:0'])}"
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            f"--device {name} was asked for, but torch {torch.__version__} finds no CUDA; use --device cpu"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"--device {name} was asked for, but there are {torch.cuda.device_count()} CUDA devices"
        )
    return device


def pick_workers(workers: int) -> int:
    """The number of reading processes: as asked for, or half the cores, 1 to 8; none where two cores train.

    There a second process takes from the training what it gives: measured on two cores, reading in place
    adds 10 % to a step of lcnet_050, a worker 0 to 5 % and a process more (tools/bench_loader.py --wall)."""
    if workers >= 0:
        return workers
    cores = os.cpu_count() or 1
    if cores <= 2 and not torch.cuda.is_available():
        return 0
    return max(1, min(8, cores // 2))
