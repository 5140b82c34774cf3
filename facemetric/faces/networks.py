"""The three networks of MTCNN by torch: they propose squares, refine them, and give score, box and landmarks.

Source: Zhang et al. 2016, arXiv:1604.02878, figure 2. Pixels are (value - 127.5) / 128. Shapes: N photographs, C
candidates, H and W of a level of the pyramid, h and w of its marks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from facemetric.errors import WeightsError


def _body(*widths: int, kernels: Sequence[int], pools: Sequence[tuple[int, int] | None]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, width, kernel, pool in zip(widths, widths[1:], kernels, pools, strict=False):
        layers += [nn.Conv2d(before, width, kernel), nn.PReLU(width)]
        layers += [nn.MaxPool2d(*pool, ceil_mode=True)] if pool else []
    return layers


class ProposalNet(nn.Module):
    """Pixels (N, 3, H, W) -> score (N, 2, h, w) and box (N, 4, h, w) of squares of 12 pixels, 2 apart."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*_body(3, 10, 16, 32, kernels=(3, 3, 3), pools=((2, 2), None, None)))
        self.score, self.box = nn.Conv2d(32, 2, 1), nn.Conv2d(32, 4, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.body(pixels)
        return self.score(seen).softmax(1), self.box(seen)


class RefinementNet(nn.Module):
    """Pixels (C, 3, 24, 24) -> score (C,) and box (C, 4)."""

    def __init__(self) -> None:
        super().__init__()
        body = _body(3, 28, 48, 64, kernels=(3, 3, 2), pools=((3, 2), (3, 2), None))
        self.body = nn.Sequential(*body, nn.Flatten(), nn.Linear(576, 128), nn.PReLU(128))
        self.score, self.box = nn.Linear(128, 2), nn.Linear(128, 4)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.body(pixels)
        return self.score(seen).softmax(1)[:, 1], self.box(seen)


class OutputNet(nn.Module):
    """Pixels (C, 3, 48, 48) -> score (C,), box (C, 4) and landmarks (C, 10): the five x, then the five y."""

    def __init__(self) -> None:
        super().__init__()
        pools = ((3, 2), (3, 2), (2, 2), None)
        body = _body(3, 32, 64, 64, 128, kernels=(3, 3, 3, 2), pools=pools)
        self.body = nn.Sequential(*body, nn.Flatten(), nn.Linear(1152, 256), nn.PReLU(256))
        self.score, self.box, self.landmarks = nn.Linear(256, 2), nn.Linear(256, 4), nn.Linear(256, 10)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = self.body(pixels)
        return self.score(seen).softmax(1)[:, 1], self.box(seen), self.landmarks(seen)


class TorchNetworks:
    """The networks with the weights of a file. WeightsError where it does not read.

    Each takes normalised pixels, float32 (N, 3, H, W), and gives what the module of its name gives; torch takes its
    time over the channels, so pixels that lie channel beside channel are the faster ones."""

    together = (100_000, 100_000)  # pixels that the proposal network, and the other two, take at once

    def __init__(self, weights: Path) -> None:
        try:
            tensors = load_file(weights)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{weights} cannot be read ({error}); install facemetric again") from error
        nets: dict[str, nn.Module] = {
            "proposal": ProposalNet(),
            "refinement": RefinementNet(),
            "output": OutputNet(),
        }
        for name, net in nets.items():
            own = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
            net.load_state_dict(own)
            # Pooling over whole lines of channels takes an eighth of the time of one channel after the other.
            net.eval().requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.nets = nets

    @torch.inference_mode()
    def __call__(self, name: str, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        """What the network of a name gives for some pixels."""
        seen = torch.from_numpy(pixels).contiguous(memory_format=torch.channels_last)
        return tuple(part.numpy() for part in self.nets[name](seen))
