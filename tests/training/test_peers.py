"""Processes under torchrun: other versions, options or data are refused; where one dies, the others end."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from child_processes import fork, in_processes

from facemetric import distributed, finetune, pretrain
from facemetric.config import PretrainConfig
from facemetric.errors import ConfigError, DataError, FacemetricError, TrainingError
from facemetric.training import peers


@pytest.mark.parametrize("what", ["version", "data"])
def test_another_version_or_other_data_is_refused_by_all(tmp_path: Path, what: str) -> None:
    def process(rank: int) -> None:
        distributed.start("cpu")
        if what == "version" and rank == 1:
            peers.metadata = SimpleNamespace(version=lambda name: "0.1")  # type: ignore[assignment]

        def check() -> None:
            peers.same_program(PretrainConfig(("x",)))
            peers.same_data({"data": "abc"[rank], "split": ""})

        with pytest.raises(ConfigError) as caught:
            check()
        print(caught.value)

    ended = in_processes(2, process, tmp_path / "said")
    said = (tmp_path / "said").read_text()
    assert ended == [0, 0], said
    name = "the version of torch" if what == "version" else "the data"
    assert said.count(f"process 1 has another value of {name} than process 0 (") == 2
    assert ("(b, not a)" in said) == (what == "data")


def test_other_options_are_refused_but_for_places(tmp_path: Path) -> None:
    def process(rank: int) -> None:
        distributed.start("cpu")
        peers.same_program(PretrainConfig((f"/disk{rank}",), out=Path(f"run{rank}"), workers=rank))
        with pytest.raises(ConfigError, match="another value of --lr than process 0"):
            peers.same_program(PretrainConfig(("x",), lr=0.1 + rank))

    ended = in_processes(2, process, tmp_path / "said")
    assert ended == [0, 0], (tmp_path / "said").read_text()


def test_alone_nothing_is_asked() -> None:
    peers.same_program(PretrainConfig(("x",)))
    with peers.joined("cpu") as device:
        assert device == "cpu"


def two(work: Callable[[int], None], said: Path) -> tuple[list[int], float]:
    """The exit status of two processes that work in a watch, and how long the first outlived the second."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def begin(rank: int) -> Callable[[], None]:
        def run() -> None:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
            sys.stdout = sys.stderr = open(f"{said}{rank}", "a", buffering=1)  # noqa: SIM115
            peers.SILENCE, peers.GRACE, peers.BEAT = 4.0, 2.0, 0.2
            try:
                with peers.joined("cpu"):
                    work(rank)
            except FacemetricError as error:
                print(f"told: {error}")
                os._exit(2)

        return run

    children = [fork(begin(rank)) for rank in (0, 1)]
    last = os.waitpid(children[1], 0)[1]
    began = time.monotonic()
    first = os.waitpid(children[0], 0)[1]
    return [first, last], time.monotonic() - began


def add_up_for_ever(rank: int) -> None:
    for _ in range(1000):
        torch.distributed.all_reduce(torch.ones(1))
        time.sleep(0.05)


def test_one_that_is_killed_takes_the_other_along(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        if rank == 1:
            torch.distributed.all_reduce(torch.ones(1))
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        add_up_for_ever(rank)

    ended, seconds = two(work, tmp_path / "said")
    assert os.WTERMSIG(ended[1]) == signal.SIGKILL
    assert os.WEXITSTATUS(ended[0]) == 2, (tmp_path / "said0").read_text()
    assert "process 1 died without a word (killed, out of memory" in (tmp_path / "said0").read_text()
    assert seconds < 60


def test_one_that_is_stuck_ends_by_itself(tmp_path: Path) -> None:
    """It waits for something that no broken connection ends."""

    def work(rank: int) -> None:
        if rank == 1:
            raise DataError("the disk is gone")
        time.sleep(600)

    ended, seconds = two(work, tmp_path / "said")
    assert [os.WEXITSTATUS(status) for status in ended] == [2, 2]
    assert (tmp_path / "said0").read_text() == "facemetric: process 1 ended: the disk is gone\n"
    assert seconds < 60


def test_one_that_fails_tells_the_other_why(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        if rank == 1:
            torch.distributed.all_reduce(torch.ones(1))
            raise DataError("a batch has 1 readable images")
        add_up_for_ever(rank)

    ended, _ = two(work, tmp_path / "said")
    assert [os.WEXITSTATUS(status) for status in ended] == [2, 2]
    assert "process 1 ended: a batch has 1 readable images" in (tmp_path / "said0").read_text()
    assert "told: a batch has 1 readable images" in (tmp_path / "said1").read_text()


def test_those_that_end_well_are_no_dead(tmp_path: Path) -> None:
    """One is done long before the other."""

    def work(rank: int) -> None:
        time.sleep(7 if rank == 0 else 0)

    ended, _ = two(work, tmp_path / "said")
    assert ended == [0, 0], (tmp_path / "said0").read_text()


def told_at_start(world: int, command: Callable[[int], object], said: Path) -> list[str]:
    """The error of each process, where one of them has something wrong before the work begins."""

    def process(rank: int) -> None:
        peers.BEAT = 0.2
        with pytest.raises(FacemetricError) as caught:
            command(rank)
        (said / str(rank)).write_text(str(caught.value))

    said.mkdir()
    ended = in_processes(world, process, said / "all")
    assert ended == [0] * world, (said / "all").read_text()
    return [(said / str(rank)).read_text() for rank in range(world)]


@pytest.mark.parametrize("command", [pretrain, finetune])
@pytest.mark.parametrize("bad", [0, 1])
def test_what_is_wrong_on_one_machine_is_told_on_all(
    command: Callable[..., object], bad: int, tmp_path: Path
) -> None:
    """A folder that is taken, as on a machine that does not share the disk: found before anything is shared."""
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
    (tmp_path / str(bad) / "config.toml").write_text("")
    (tmp_path / str(bad) / "checkpoint.pt").write_text("")
    errors = told_at_start(
        2, lambda rank: command("x", weights="y", out=tmp_path / str(rank), device="cpu"), tmp_path / "said"
    )
    assert "already holds a run" in errors[bad]
    assert errors[1 - bad] == f"process {bad} ended: {errors[bad]}"


def test_one_that_does_not_come_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "JOIN", timedelta(seconds=1))
    with pytest.raises(TrainingError, match=r"process 0 of 2 cannot join the others .*see what these said"):
        distributed.start("cpu")
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(TrainingError, match=r"MASTER_ADDR expected, but not set.*start all with torchrun"):
        distributed.start("cpu")


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match="finds no CUDA; use cpu"):
        distributed.start("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="machine, which has 1 GPU; start no more than that, or choose"):
        distributed.start("cuda")


def test_a_store_with_what_those_before_wrote(tmp_path: Path) -> None:
    """As after a restart by torchrun: the store goes on, and has addresses of processes that are gone."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def join_and_add(rank: int, round_: int) -> None:
        os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": str(store.port)}
        time.sleep(2 * round_ * (rank == 0))  # process 1 first finds what those before wrote
        distributed.start("cpu")
        assert distributed.total(torch.ones(1)) == 2
        os._exit(0)  # as one that is killed: nothing is tidied up

    for round_ in (0, 1):
        ended = in_processes(2, lambda rank: join_and_add(rank, round_), tmp_path / "said")  # noqa: B023
        assert ended == [0, 0], (tmp_path / "said").read_text()
