"""Processes under torchrun: other versions, options or data are refused; where one dies, the others end."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from child_processes import fork, in_processes

from facemetric import distributed
from facemetric.config import PretrainConfig
from facemetric.errors import ConfigError, DataError, FacemetricError
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
    with peers.watching():
        pass


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
            distributed.start("cpu")
            try:
                with peers.watching():
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
