"""In which precision, and by which kernels, a CUDA device computes: chosen here, said, and kept with the run."""

from __future__ import annotations

from typing import NamedTuple

import torch

from facemetric.machine import MIB
from facemetric.training.step.optim import Amp


class Precision(NamedTuple):
    """What a run on CUDA computes with; a line of its log."""

    name: str  # of the device
    memory_mib: int
    network: str  # autocast's dtype, or float32
    products: str  # float32 matrix products: of heads, distances
    convolutions: str  # float32 convolutions, without autocast
    benchmark: bool  # cudnn tries its kernels for each size of picture, and takes the fastest

    @property
    def text(self) -> str:
        """One line for the user."""
        return (
            f"{self.name}, {self.memory_mib / 1024:.0f} GiB: the network in {self.network}, its other convolutions in "
            f"{self.convolutions}, heads and distances in {self.products}; cudnn takes the fastest kernel for each "
            "size of picture, so that last bits change from run to run"
        )


def set_precision(device: torch.device, amp: Amp) -> Precision | None:
    """Set what torch computes with on a CUDA device; None of another one.

    Matrix products stay in float32, as thresholds and margins are read off cosines; convolutions may round to TF32,
    as torch has it; sizes of pictures repeat, so that it pays to try kernels."""
    if device.type != "cuda":
        return None
    conv = getattr(torch.backends.cudnn, "conv", None)
    if conv is not None and hasattr(
        conv, "fp32_precision"
    ):  # torch 2.9 and later; both ways must not be mixed
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        conv.fp32_precision = "tf32"
    else:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    known = torch.cuda.get_device_properties(device)
    network = str(amp.dtype).removeprefix("torch.") if amp.enabled else "float32"
    return Precision(known.name, known.total_memory // MIB, network, "float32", "TF32", benchmark=True)
