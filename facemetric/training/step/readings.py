"""The figures of steps: they stay on the device that computed them, until many are read in one transfer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Figure = Tensor | float
Figures = Mapping[str, Figure]


def reads_late(device: torch.device) -> bool:
    """Whether to read a figure is to wait for a device that computes apart from the host."""
    return device.type != "cpu"


class Step(NamedTuple):
    """Where a step was, and its figures by name."""

    where: str  # "in epoch 1, step 7"
    figures: dict[str, float]


class _Packed(NamedTuple):
    """A step whose figures are not read yet: names in their order, one vector (k,) float64 of those on the device."""

    where: str
    figures: dict[str, float]  # nan of those on the device
    names: list[str]  # in the order of the vector
    values_K: Tensor | None


class Readings:
    """Collects the figures of steps and reads all of them at once.

    A figure is copied when it comes: what the step after it overwrites does not matter. Every step costs some small
    launches, and no synchronisation; `read` costs one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._waiting: list[_Packed] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, where: str, figures: Figures) -> None:
        """Keep the figures of a step: scalars on any device."""
        on_device: dict[torch.dtype, dict[str, Tensor]] = {}
        found: dict[str, float] = {}
        for name, value in figures.items():
            if isinstance(value, Tensor) and value.device.type != "cpu":
                on_device.setdefault(value.dtype, {})[name] = value.detach().reshape(())
                found[name] = float("nan")
            else:
                found[name] = float(value)
        parts = [torch.stack(list(group.values())).double() for group in on_device.values()]
        names = [name for group in on_device.values() for name in group]
        self._waiting.append(_Packed(where, found, names, torch.cat(parts) if parts else None))

    def read(self) -> list[Step]:
        """The steps that were added since the last reading, in their order."""
        waiting, self._waiting = self._waiting, []
        parts = [packed.values_K for packed in waiting if packed.values_K is not None]
        values = iter(torch.cat(parts).tolist() if parts else [])
        steps = []
        for packed in waiting:
            for name in packed.names:
                packed.figures[name] = next(values)
            steps.append(Step(packed.where, packed.figures))
        return steps
