"""Which kernels mine: by device, size and what is installed."""

from __future__ import annotations

import torch


def is_gpu(device: torch.device) -> bool:
    """Whether calls cost more than arithmetic there."""
    return device.type != "cpu"
