"""A head that is shared out: its checkpoints go on with any number of processes, its sample leaves the rest alone."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from child_processes import in_processes
from small_trainings import same
from torch import Tensor, nn

from facemetric import distributed, pretrain
from facemetric.config import PretrainConfig
from facemetric.config.checks import check_shards
from facemetric.errors import ConfigError, TrainingError
from facemetric.model.heads import HEADS
from facemetric.model.sharded_head import ShardedHead
from facemetric.training import shards
from facemetric.training.loop import fit
from facemetric.training.run.best import Judge
from facemetric.training.run.folder import read_log
from facemetric.training.run.run import Run
from facemetric.training.shards import check_rows_apart, drawn_columns
from facemetric.training.step.optim import make_optimizer, make_scheduler
from facemetric.training.task import Settings

C, D, STEPS = 13, 4, 3


class Model(nn.Module):
    """A linear embedding and a shared out head."""

    def __init__(self, sample: float, kind: str) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embedder = nn.Linear(5, D)
        self.head = ShardedHead(kind, D, C, scale=8.0, margin=0.2, sample=sample, seed=1)


class Small:
    """A task of the loop (see task.Task) whose batches of 12 rows are shared out over processes."""

    judge = Judge("last")
    steps_per_epoch = STEPS

    def __init__(self, sample: float = 1.0, *, kind: str = "arcface", smoothing: float = 0.0) -> None:
        self.model, self.smoothing = Model(sample, kind).double(), smoothing

    def batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(start, STEPS):
            rng = np.random.default_rng([epoch, step])
            values = torch.from_numpy(rng.normal(size=(12, 5)) * 3).to(self.model.embedder.weight.dtype)
            labels = torch.from_numpy(rng.integers(C, size=12))
            own = slice(distributed.rank(), None, distributed.world_size())
            yield values[own], labels[own]

    def train_mode(self, epoch: int) -> None:
        self.model.train()

    def step(
        self, batch: tuple[Tensor, Tensor], progress: float, backward: Callable[[Tensor], None]
    ) -> dict[str, float]:
        emb_BD = self.model.embedder(batch[0])
        loss = self.model.head.cross_entropy(emb_BD, batch[1], smoothing=self.smoothing).loss / 12
        backward(loss)
        return {"loss": float(distributed.total(loss))}

    def validate(self, model: nn.Module) -> dict[str, float]:
        return {}

    def save(self, model: nn.Module, metrics: dict[str, float]) -> None:
        pass

    def watch(self, figures: dict[str, float]) -> dict[str, float]:
        return figures

    def extra_state(self) -> dict[str, Any]:
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        pass


def train(
    folder: Path,
    *,
    resume: bool = False,
    steps: int = 0,
    sample: float = 1.0,
    optimizer: str = "adamw",
    kind: str = "arcface",
    smoothing: float = 0.0,
) -> Small:
    """Two epochs with a moving average, ended early after some `steps`, with a checkpoint after each."""
    distributed.start("cpu")
    config = PretrainConfig(epochs=2, lr=0.05, optimizer=optimizer, weight_decay=0.01)
    task = Small(sample, kind=kind, smoothing=smoothing)
    with Run(folder, config_toml="epochs = 2\n", resume=resume) as run:
        made = make_optimizer(config, [(task.model, config.lr)])
        settings = Settings(2, 0.5, 0.9, "off", 0, 0.0, max_steps=steps)
        fit(task, run, made, make_scheduler(config, made, STEPS), settings, resume=run.resume)
    return task


def in_worlds(world: int, folder: Path, **options: Any) -> None:
    """`train` in so many processes."""
    said = folder.with_name(f"said {folder.name} {world}")
    ended = in_processes(world, lambda rank: train(folder, **options), said)
    assert ended == [0] * world, said.read_text()


def head_of(folder: Path) -> dict[str, Tensor]:
    """All rows that the files of the newest checkpoint have, by name."""
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert not {"head.columns.weight", "head.columns.bias"} & set(state["model"])
    parts = [torch.load(folder / "shards" / name, weights_only=True) for name in state["shards"]["files"]]
    return {name: torch.cat([part["rows"][name] for part in parts]) for name in parts[0]["rows"]}


@pytest.mark.parametrize("sample", [1.0, 0.8])
def test_a_run_goes_on_with_any_number_of_processes(sample: float, tmp_path: Path) -> None:
    """Two processes, then one, then three: as one process that is never stopped. On two the very bits."""
    options: dict[str, Any] = {"sample": sample}
    in_worlds(1, tmp_path / "whole", **options)
    in_worlds(2, tmp_path / "parts", steps=2, **options)
    shutil.copytree(tmp_path / "parts", tmp_path / "two")
    in_worlds(1, tmp_path / "parts", steps=4, resume=True, **options)
    in_worlds(3, tmp_path / "parts", resume=True, **options)
    expected, found = head_of(tmp_path / "whole"), head_of(tmp_path / "parts")
    assert set(found) == set(expected)
    assert {len(value) for value in found.values()} == {C}
    assert any(name.startswith("optimizer") for name in found)
    assert any(name.startswith("ema") for name in found)
    first = ShardedHead("arcface", D, C, scale=8.0, margin=0.2, seed=1).columns.weight.double()
    for name, value in expected.items():
        assert not torch.equal(value, first)
        torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10)
    assert len(list((tmp_path / "parts" / "shards").iterdir())) <= 3 + 3  # of the last two checkpoints
    in_worlds(2, tmp_path / "two", resume=True, **options)
    in_worlds(2, tmp_path / "never stopped", **options)
    assert same(head_of(tmp_path / "two"), head_of(tmp_path / "never stopped"))
    log = [line for line in read_log(tmp_path / "parts" / "log.jsonl") if line["event"] == "train"]
    assert log[-1]["step"] == 2 * STEPS


def test_every_head_goes_on_with_other_processes(tmp_path: Path) -> None:
    """With label smoothing: two processes, then three, as one that is never stopped."""

    def train_all(name: str, **options: Any) -> None:
        for kind in HEADS:
            train(tmp_path / name / kind, kind=kind, smoothing=0.1, **options)

    for name, world, options in (
        ("whole", 1, {}),
        ("parts", 2, {"steps": 2}),
        ("parts", 3, {"resume": True}),
    ):
        said = tmp_path / f"said {world}"
        ended = in_processes(world, lambda rank: train_all(name, **options), said)  # noqa: B023
        assert ended == [0] * world, said.read_text()
    for kind in HEADS:
        expected, found = head_of(tmp_path / "whole" / kind), head_of(tmp_path / "parts" / kind)
        assert set(found) == set(expected)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-8, atol=1e-10, msg=f"{kind} {name}")
        states = [torch.load(tmp_path / name / kind / "checkpoint.pt") for name in ("whole", "parts")]
        whole, parts = (state["model"] for state in states)
        assert {"embedder.weight", "head.steps"} < set(whole)
        for name, value in whole.items():
            torch.testing.assert_close(parts[name], value, rtol=1e-8, atol=1e-10, msg=f"{kind} {name}")


def test_what_was_not_drawn_neither_moves_nor_decays() -> None:
    torch.manual_seed(0)
    task = Small(sample=0.7)
    config = PretrainConfig(lr=0.1, weight_decay=0.1, momentum=0.9)
    optimizer = make_optimizer(config, [(task.model, config.lr)])
    weight = task.model.head.columns.weight
    task.model.train()
    before_state: dict[str, Tensor] = {}
    for batch in task.batches(0, 0):
        before = weight.detach().clone()
        task.step(batch, 0.0, lambda loss: loss.backward())
        drawn = task.model.head.drawn[0]
        with drawn_columns(task.model, optimizer) as parameters:
            assert any(p is drawn.part for p in parameters)
            optimizer.step()
        moved = (weight != before).any(1)
        assert set(moved.nonzero()[:, 0].tolist()) == set(drawn.rows.tolist())
        momentum = optimizer.state[weight]["momentum_buffer"]
        kept = before_state.get("momentum", torch.zeros_like(momentum))
        assert set((momentum != kept).any(1).nonzero()[:, 0].tolist()) == set(drawn.rows.tolist())
        before_state["momentum"] = momentum.clone()
        assert drawn.part not in optimizer.state
        assert any(p is weight for group in optimizer.param_groups for p in group["params"])


def test_a_drawn_step_is_the_step_of_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """With everybody drawn each step, momentum, Adam's numbers and clipping are those without a sample."""
    found = []
    for sample in (1.0, 0.999999):
        task = Small(sample)
        config = PretrainConfig(lr=0.1, weight_decay=0.1, optimizer="adamw")
        optimizer = make_optimizer(config, [(task.model, config.lr)])
        task.model.train()
        for batch in task.batches(0, 0):
            optimizer.zero_grad()
            task.step(batch, 0.0, lambda loss: loss.backward())
            assert bool(task.model.head.drawn) == (sample < 1)
            with drawn_columns(task.model, optimizer) as parameters:
                norm = distributed.gradient_norm(parameters)
                nn.utils.clip_grads_with_norm_(parameters, 0.1, norm)
                optimizer.step()
        found.append(task.model.state_dict())
    for name in ("embedder.weight", "head.columns.weight"):
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-12, atol=1e-14)


def test_a_shard_that_is_missing_or_damaged(tmp_path: Path) -> None:
    """The checkpoint before serves; where it does not either, one line says which file is missing."""
    folder = tmp_path / "run"
    train(folder, steps=2, optimizer="sgd")
    newest = torch.load(folder / "checkpoint.pt", weights_only=True)["shards"]["files"]
    older = torch.load(folder / "checkpoint.previous", weights_only=True)["shards"]["files"]
    assert newest != older
    assert {path.name for path in (folder / "shards").iterdir()} == {*newest, *older}
    bytes_before = (folder / "shards" / newest[0]).read_bytes()
    (folder / "shards" / newest[0]).write_bytes(bytes_before[:-200] + bytes(200))
    train(folder, steps=3, resume=True, optimizer="sgd")
    assert (folder / "checkpoint.damaged").exists()
    for path in (folder / "shards").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match=r"no checkpoint in .*run is whole \(.*shards/.*\.pt is missing"):
        train(folder, resume=True, optimizer="sgd")


def test_a_disk_that_is_full_on_one_process_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards, "write_whole_checkpoint", full)
    with pytest.raises(TrainingError, match=r"a part of the head was not written: No space left .*--resume"):
        train(tmp_path / "run")


def test_a_checkpoint_of_the_other_kind_is_refused(
    tmp_path: Path, small: dict[str, Any], faces: Path
) -> None:
    options = small | {"head": "arcface"}
    for first in (False, True):
        out = tmp_path / f"first {first}"
        pretrain(str(faces), **options, head_shards=first, out=out, max_steps=1)
        wanted = "is shared out over processes; resume with " if first else "is not shared out"
        with pytest.raises(ConfigError, match=wanted):
            pretrain(str(faces), **options, head_shards=not first, out=out, resume=True)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw", "adam", "lion", "rmsprop"])
def test_optimizers_that_work_on_rows(name: str) -> None:
    check_rows_apart(PretrainConfig(optimizer=name))


@pytest.mark.parametrize("name", ["lamb", "lars", "adafactor", "muon"])
def test_optimizers_that_need_the_whole_matrix_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--optimizer={name} looks at a weight matrix as a whole"):
        check_rows_apart(PretrainConfig(optimizer=name))


def test_options_that_do_not_go_together() -> None:
    for options, message in (
        ({"head_sample": 0.1}, "--head-sample is 0.1, and needs --head-shards"),
        (
            {"head_sample": 0.1, "head_shards": True, "label_smoothing": 0.1},
            "--label-smoothing is 0.1: it spreads the target over all identities",
        ),
        ({"head_shards": True, "label_weight": 0.0, "teacher": ("x",)}, "--label-weight 0 there is none"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_shards(PretrainConfig(**options))  # type: ignore[arg-type]
    check_shards(PretrainConfig(head_sample=0.1, head_shards=True))


def test_an_overflow_on_one_process_is_one_on_all(tmp_path: Path) -> None:
    def process(rank: int) -> None:
        distributed.start("cpu")
        shard, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        distributed.mark_shard(shard)
        for bad, wanted in ((1, False), (5, True)):
            shard.grad, other.grad = torch.ones(2), torch.ones(2)
            if rank == bad:
                shard.grad[1] = torch.inf
            distributed.same_overflow([shard, other])
            assert bool(torch.isfinite(shard.grad).all()) == wanted

    ended = in_processes(2, process, tmp_path / "said")
    assert ended == [0, 0], (tmp_path / "said").read_text()


def test_stage_one_on_two_processes_with_centres_and_a_sample(faces: Path, tmp_path: Path) -> None:
    """Everything that looks at the head: closed-set accuracy, the list of noisy images, the moving average."""
    options = {"arch": "test_resnet", "image_size": 32, "batch_size": 16, "epochs": 1, "workers": 0}
    options |= {"head": "subcentre-arcface", "head_shards": True, "head_sample": 0.5, "ema": 0.9}
    options |= {"device": "cpu", "closed_set_fraction": 0.1, "lr": 0.01}

    def run(name: str, **more: Any) -> None:
        pretrain(str(faces), **(options | more), out=tmp_path / name)

    for world in (1, 2):
        ended = in_processes(world, lambda rank: run(f"{world}"), tmp_path / "said")  # noqa: B023
        assert ended == [0] * world, (tmp_path / "said").read_text()
    logs = [read_log(tmp_path / name / "log.jsonl") for name in ("1", "2")]
    figures = [next(line for line in log if line["event"] == "validation") for log in logs]
    assert all(0 <= each["closed_set_accuracy"] <= 1 for each in figures)
    # batch norms see each process's share, so the figures are near and not the same
    losses = [next(line["loss"] for line in log if line["event"] == "train") for log in logs]
    assert losses[0] == pytest.approx(losses[1], rel=0.2)
    for name in ("1", "2"):
        with open(tmp_path / name / "noisy_images.csv") as file:
            assert next(csv.reader(file)) == ["path", "identity", "cosine", "degrees", "nearer_elsewhere"]
