"""What a training does with a head that is shared out over processes: its columns in the optimizer and on the disk.

    checkpoint.pt                        all that every process has alike, and the names of the shards
    shards/000120-3f9a2c-0-500.pt        rows 0..500 of the head: weights, moving average, the optimizer's numbers

A shard is written whole and read back before the checkpoint that names it; those that neither `checkpoint.pt` nor
`checkpoint.previous` names are removed. A run goes on with any number of processes: each reads the rows it needs.
"""

from __future__ import annotations

import contextlib
import copy
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from facemetric import distributed
from facemetric.config import PretrainConfig
from facemetric.distributed import Shard
from facemetric.errors import ConfigError, TrainingError, given, plural
from facemetric.model.sharded_head import Drawn, ShardedHead
from facemetric.training.run.checkpoint import damage, write_whole_checkpoint
from facemetric.training.step.optim import make_optimizer

FOLDER = "shards"
TRIAL = (320, 160)  # of a matrix by which an optimizer is tried; some treat smaller ones in another way


def sharded_head(model: nn.Module) -> ShardedHead | None:
    """The head of a model where it is shared out over processes."""
    head = getattr(model, "head", None)
    return head if isinstance(head, ShardedHead) else None


def check_rows_apart(config: PretrainConfig) -> None:
    """Raise ConfigError for an optimizer that looks at more than a row of a matrix at a time, or keeps for it what is
    neither a number nor of its shape: two processes with halves of a matrix must do what one does with all of it."""
    half = TRIAL[0] // 2
    whole = torch.randn(TRIAL, generator=torch.Generator().manual_seed(0)) * 0.1
    halves = [whole[:half].clone(), whole[half:].clone()]
    layers = [nn.ParameterList([nn.Parameter(each)]) for each in (whole.clone(), *halves)]
    optimizers = [make_optimizer(config, [(layer, 0.1)]) for layer in layers]
    for step in range(3):
        grad = torch.randn(TRIAL, generator=torch.Generator().manual_seed(step + 1))
        for layer, optimizer, own in zip(layers, optimizers, (grad, grad[:half], grad[half:]), strict=True):
            layer[0].grad = own.clone()
            optimizer.step()
    apart = torch.allclose(layers[0][0], torch.cat([layers[1][0], layers[2][0]]), rtol=1e-5, atol=1e-7)
    state = optimizers[0].state[layers[0][0]]
    if not apart or not all(is_of(value, TRIAL) or is_number(value) for value in state.values()):
        raise ConfigError(
            f"{given('--optimizer', config.optimizer)} looks at a weight matrix as a whole, and with "
            "--head-shards no process has all of the head's; choose another, such as sgd or adamw"
        )


def is_of(value: Any, shape: tuple[int, ...]) -> bool:
    """Whether an entry of an optimizer's state has a number for each of a parameter."""
    return isinstance(value, Tensor) and value.shape == shape


def is_number(value: Any) -> bool:
    """Whether an entry of an optimizer's state is one for the whole parameter."""
    return not isinstance(value, Tensor) or value.numel() == 1


@contextlib.contextmanager
def drawn_columns(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[list[nn.Parameter]]:
    """The optimizer's parameters, where a head drew a sample its drawn rows in place of the whole; put back after.

    The optimizer's numbers of these rows go along, so that what was not drawn neither moves nor decays."""
    head = sharded_head(model)
    drawn = head.drawn if head is not None else []
    kept = [lend(optimizer, each) for each in drawn]
    try:
        yield [p for group in optimizer.param_groups for p in group["params"]]
    finally:
        for each, state in zip(drawn, kept, strict=True):
            put_back(optimizer, each, state)
        if head is not None:
            head.drawn = []


def lend(optimizer: torch.optim.Optimizer, drawn: Drawn) -> dict[str, Any]:
    """Let the optimizer have the rows that were drawn, with its numbers of them, in the place of the whole; returns
    its numbers of the whole."""
    swap(optimizer, drawn.whole, drawn.part)
    kept = optimizer.state.pop(drawn.whole, {})
    of_rows = {name: value for name, value in kept.items() if is_of(value, drawn.whole.shape)}
    if kept:
        optimizer.state[drawn.part] = kept | {name: value[drawn.rows] for name, value in of_rows.items()}
    return kept


@torch.no_grad()
def put_back(optimizer: torch.optim.Optimizer, drawn: Drawn, kept: dict[str, Any]) -> None:
    """Write the rows that were drawn, and the optimizer's numbers of them, into the whole."""
    swap(optimizer, drawn.part, drawn.whole)
    drawn.whole[drawn.rows] = drawn.part
    for name, value in optimizer.state.pop(drawn.part, {}).items():
        if not is_of(value, drawn.part.shape):
            kept[name] = value
            continue
        if name not in kept:
            kept[name] = torch.zeros_like(drawn.whole, dtype=value.dtype)
        kept[name][drawn.rows] = value
    if kept:
        optimizer.state[drawn.whole] = kept


def swap(optimizer: torch.optim.Optimizer, old: nn.Parameter, new: nn.Parameter) -> None:
    """Let the optimizer have another parameter in the place of one."""
    for group in optimizer.param_groups:
        group["params"] = [new if p is old else p for p in group["params"]]


class HeadShards:
    """Takes the shards out of a checkpoint's state, and puts them back in."""

    def __init__(
        self, head: ShardedHead, model: nn.Module, optimizer: torch.optim.Optimizer, run: Path
    ) -> None:
        self.shard, self.folder = head.shard, run / FOLDER
        places = {id(p): i for i, p in enumerate(p for g in optimizer.param_groups for p in g["params"])}
        shards = {name: p for name, p in model.named_parameters() if distributed.is_shard(p)}
        self.names = list(shards)
        self.places = {name: places[id(p)] for name, p in shards.items()}
        self.shapes = {name: tuple(p.shape) for name, p in shards.items()}
        self.kept: list[list[str]] = []  # the files of the last checkpoints, the newest last

    def save(self, state: dict[str, Any], done: int) -> None:
        """Write this process's rows, and leave their files' names in the state instead. All processes do."""
        own: dict[str, Tensor] = {}
        for part in ("model", "ema"):
            if state[part] is not None:
                state[part] = dict(state[part])
                own |= {f"{part} {name}": state[part].pop(name) for name in self.names}
        optimizer = state["optimizer"] = copy.copy(state["optimizer"])
        optimizer["state"] = dict(optimizer["state"])
        for name, place in self.places.items():
            values = optimizer["state"].get(place, {})
            whole = {key: value for key, value in values.items() if is_of(value, self.shapes[name])}
            own |= {f"optimizer {name} {key}": value for key, value in whole.items()}
            optimizer["state"][place] = {key: value for key, value in values.items() if key not in whole}
        token = distributed.from_first(secrets.token_hex(3))
        file = f"{done:06d}-{token}-{self.shard.first}-{self.shard.stop}.pt"
        files = distributed.from_all(file)
        state["shards"] = {"total": self.shard.total, "files": files}
        self._write(self.folder / file, own)
        self.kept = [*self.kept[-1:], files]

    def _write(self, file: Path, own: dict[str, Tensor]) -> None:
        """Write one file; what fails on one process is raised on all."""
        fault = ""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole_checkpoint(file, {"first": self.shard.first, "stop": self.shard.stop, "rows": own})
        except OSError as error:
            fault = f"{error.strerror or error} ({file})"
        faults = [fault for fault in distributed.from_all(fault) if fault]
        if faults:
            raise TrainingError(
                f"a part of the head was not written: {faults[0]}; make room, and go on with --resume"
            )

    def clean(self) -> None:
        """Remove the files that no checkpoint names any more; process 0 does."""
        distributed.barrier()  # the checkpoint that names the new ones is there
        if distributed.rank() == 0:
            names = {name for files in self.kept for name in files}
            for path in self.folder.iterdir():
                if path.name not in names:
                    path.unlink(missing_ok=True)

    def fault(self, state: dict[str, Any]) -> str:
        """Why the shards that a checkpoint names cannot be read, "" where they can. All processes ask together."""
        found = state.get("shards")
        if not found:
            return ""  # said by `load`
        fault = ""
        for file, shard in self._files(found):
            path = self.folder / file
            if not path.is_file():
                fault = fault or f"{FOLDER}/{file} is missing"
            elif shard.first < self.shard.stop and self.shard.first < shard.stop and (reason := damage(path)):
                fault = fault or f"{FOLDER}/{file} is damaged ({reason})"
        return next(filter(None, distributed.from_all(fault)), "")

    def load(self, state: dict[str, Any], device: torch.device) -> None:
        """Put this process's rows into the state, from whatever files have them."""
        found = state.get("shards")
        if not found:
            raise ConfigError(
                "the checkpoint has a head that is not shared out over processes; resume without --head-shards"
            )
        if found["total"] != self.shard.total:
            raise ConfigError(
                f"the checkpoint's head has {plural(found['total'], 'identity')}, this run {self.shard.total:,}; "
                "resume with the data that it was started with"
            )
        pieces: dict[str, list[Tensor]] = {}
        for file, shard in self._files(found):
            low, high = max(shard.first, self.shard.first), min(shard.stop, self.shard.stop)
            if low >= high:
                continue
            rows = torch.load(self.folder / file, map_location="cpu", mmap=True, weights_only=True)["rows"]
            for name, value in rows.items():
                each = len(value) // shard.size
                piece = value[(low - shard.first) * each : (high - shard.first) * each]
                pieces.setdefault(name, []).append(piece)
        for name, parts in pieces.items():
            self._put(state, name, torch.cat(parts).to(device))
        self.kept = [found["files"]]

    def _put(self, state: dict[str, Any], name: str, value: Tensor) -> None:
        """One parameter's rows into their place in the state."""
        part, parameter, *key = name.split(" ")
        if part == "optimizer":
            state["optimizer"]["state"].setdefault(self.places[parameter], {})[key[0]] = value
        elif state[part] is not None:
            state[part][parameter] = value

    @staticmethod
    def _files(found: dict[str, Any]) -> list[tuple[str, Shard]]:
        """The files of a checkpoint in the order of their rows, which their names have."""
        files = []
        for file in found["files"]:
            first, stop = (int(number) for number in Path(file).stem.split("-")[-2:])
            files.append((Path(file).name, Shard(first, stop, found["total"])))
        return sorted(files, key=lambda each: each[1].first)


def shards_of(model: nn.Module, optimizer: torch.optim.Optimizer, run: Path) -> HeadShards | None:
    """The shards of a model's head, where it is shared out over processes."""
    head = sharded_head(model)
    return HeadShards(head, model, optimizer, run) if head is not None else None
