"""What of the machine is used: the device that computes, the processes that read."""

from __future__ import annotations

import os

import torch

from facemetric.errors import ConfigError, did_you_mean


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
