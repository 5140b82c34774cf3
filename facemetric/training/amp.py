"""Mixed precision: where it is computed in, and the scaler of losses that float16 needs."""

from __future__ import annotations

import torch
from torch import Tensor


class Amp:
    """Mixed precision by the option of this name; float16 has a loss scaler, whose state is in the checkpoint.

    Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2."""

    def __init__(self, device: torch.device, wanted: str) -> None:
        if wanted == "auto" and device.type == "cuda":
            wanted = "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
        self.enabled = wanted in ("bfloat16", "float16")
        self.dtype = torch.float16 if wanted == "float16" else torch.bfloat16
        self.scaler = torch.amp.GradScaler(device.type, enabled=wanted == "float16")
        self.device_type = device.type

    def autocast(self) -> torch.autocast:
        """The context for the forward pass."""
        return torch.autocast(self.device_type, dtype=self.dtype, enabled=self.enabled)

    def backward(self, loss: Tensor) -> None:
        """Backward of the scaled loss, outside of autocast."""
        with torch.autocast(self.device_type, enabled=False):
            self.scaler.scale(loss).backward()
