"""The three networks of MTCNN: they propose squares, refine them, and give score, box and landmarks.

Source: Zhang et al. 2016, arXiv:1604.02878, figure 2. Pixels are (value - 127.5) / 128. Shapes: N photographs, C
candidates, H and W of a level of the pyramid, h and w of its marks.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


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
