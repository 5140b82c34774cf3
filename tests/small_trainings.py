"""Stage one on drawn faces, once for all tests of the training room; and a task small enough to watch."""

from __future__ import annotations

import copy
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from child_processes import in_processes
from safetensors.torch import load_file
from torch import Tensor, nn

from facemetric import distributed
from facemetric.model.weights.save_load import classifier_key
from facemetric.training.pretrain import pretrain
from facemetric.training.run.best import Judge
from facemetric.training.run.run import Trained

SMALL = {"arch": "test_resnet", "image_size": 32, "epochs": 1, "batch_size": 16}
SMALL |= {"workers": 0, "device": "cpu"}
FAST = {"epochs": 1, "batch_size": 32, "workers": 0, "device": "cpu"}  # of stage two
KEY = classifier_key("test_resnet")


def same(one: Any, other: Any) -> bool:
    """The same bits all the way down."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Options of a stage one that takes a second."""
    return dict(SMALL)


@pytest.fixture(scope="session")
def stage_one(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of stage one on the drawn faces. Nobody writes into it."""
    return pretrain(str(faces), **SMALL, out=tmp_path_factory.mktemp("stage_one") / "run")


def tensors(run: Trained | Path) -> dict[str, torch.Tensor]:
    """The weights file of a run, or of a weights folder."""
    return load_file((run.weights if isinstance(run, Trained) else run) / "model.safetensors")


def numbers(figures: Mapping[str, Tensor | float]) -> dict[str, float]:
    """The figures of a step, read from the device."""
    return {name: float(value) for name, value in figures.items()}


def stop_in_step(monkeypatch: pytest.MonkeyPatch, kind: type, number: int) -> list[int]:
    """Have the `number`-th step of a kind of task begin with SIGTERM. A list of one number: the steps so far."""
    step, count = kind.step, [0]  # type: ignore[attr-defined]

    def stopping(self: Any, *arguments: Any) -> dict[str, float]:
        count[0] += 1
        if count[0] == number:
            signal.raise_signal(signal.SIGTERM)
        return step(self, *arguments)

    monkeypatch.setattr(kind, "step", stopping)
    return count


def shares_agree(
    alone: dict[str, Any], share_of: Callable[[int], dict[str, Any]], folder: Path
) -> list[dict[str, Any]]:
    """Run `share_of(rank)` in two processes, whose figures must be those of one, up to rounding; what they returned."""

    def process(rank: int) -> None:
        distributed.start("cpu")
        torch.save(share_of(rank), folder / f"{rank}.pt")

    ended = in_processes(2, process, folder / "told")
    assert ended == [0, 0], (folder / "told").read_text()
    found = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for part in found:
        assert part["figures"] == pytest.approx(alone["figures"], rel=1e-4)
    return found


def changed(one: Trained, other: Trained) -> set[str]:
    """The backbone's tensors that differ in any bit."""
    left, right = tensors(one), tensors(other)
    names = {name for name in left if not name.startswith(KEY)}
    assert names == {name for name in right if not name.startswith(KEY)}
    return {name for name in names if not torch.equal(left[name], right[name])}


@pytest.fixture
def some_single(faces: Path, tmp_path: Path) -> Path:
    """Six identities, two of which have one image."""
    names = sorted(path.name for path in faces.iterdir())[:6]
    for name in names:
        shutil.copytree(faces / name, tmp_path / "some" / name)
    for name in names[1:3]:
        for image in sorted((tmp_path / "some" / name).iterdir())[1:]:
            image.unlink()
    return tmp_path / "some"


class ByScore(Judge):
    """Epochs of `Toy` are compared by the figure that it is given."""

    def score(self, figures: Mapping[str, Any]) -> float | None:
        return figures.get("score")


class Toy:
    """A task of the loop (see task.Task): a regression with batch norm, dropout, numpy's random numbers and a
    memory of the last batch's mean."""

    judge = ByScore()
    steps_per_epoch = 5

    def __init__(
        self, at_step: Callable[[int, int], float] = lambda epoch, step: 1.0, scores: Sequence[float] = ()
    ) -> None:
        """`at_step(epoch, step)` multiplies the loss of a step; each validation takes one of the `scores`."""
        torch.manual_seed(3)
        self.model: nn.Module = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1)
        )
        self.at_step, self.scores = at_step, list(scores)
        self.saved: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []
        self.seen: list[tuple[int, int]] = []
        self.memory = torch.zeros(4)

    def batches(self, epoch: int, start: int) -> Iterator[tuple[int, int, Tensor]]:
        for step in range(start, self.steps_per_epoch):
            values = np.random.default_rng([epoch, step]).normal(size=(6, 4))
            yield epoch, step, torch.from_numpy(values).float()

    def train_mode(self, epoch: int) -> None:
        self.model.train()

    def step(
        self, batch: tuple[int, int, Tensor], progress: float, backward: Callable[[Tensor], None]
    ) -> dict[str, float]:
        epoch, step, values = batch
        self.seen.append((epoch, step))
        noise = torch.randn(6, 1) + np.random.random()
        loss = (self.model(values + 0.1 * self.memory) - values.sum(1, keepdim=True) - noise).square().mean()
        loss = loss * self.at_step(epoch, step)
        backward(loss)
        self.memory = values.mean(0)
        return {"loss": loss.item()}

    def watch(self, figures: dict[str, float]) -> dict[str, float]:
        return figures

    def validate(self, model: nn.Module) -> dict[str, float]:
        model.eval()
        self.validated.append(copy.deepcopy(model.state_dict()))
        with torch.no_grad():
            figures = {"output": float(model(torch.ones(2, 4)).sum())}
        return figures | ({"score": self.scores.pop(0)} if self.scores else {})

    def save(self, model: nn.Module, metrics: dict[str, float]) -> None:
        self.saved.append(copy.deepcopy(model.state_dict()))

    def extra_state(self) -> dict[str, Any]:
        return {"memory": self.memory}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.memory = state["memory"]


@pytest.fixture
def toy() -> type[Toy]:
    """The class, as tests cannot import a conftest."""
    return Toy
