"""Full disks, signals and bugs in a command: what is said, and what is left behind."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands_typed import FAST, TUNE, Ran

from facemetric import cli
from facemetric.errors import DataError


@pytest.fixture
def file_limit() -> Iterator[Callable[[int], None]]:
    """Let the system refuse writes past so many bytes of a file, as a full disk or a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [500_000, 2_000_000], ids=["at the start", "after an epoch"])
def test_a_full_disk_in_stage_one(
    command: Callable[..., Ran],
    faces: Path,
    tmp_path: Path,
    file_limit: Callable[[int], None],
    size: int,
) -> None:
    file_limit(size)
    fault = command("pretrain", faces, "--out", tmp_path / "out", *FAST).fault
    assert "out/checkpoint.pt" in fault
    assert "free some of the disk" in fault
    left = {path.name for path in (tmp_path / "out").rglob("*")}
    assert not {"best.new", "checkpoint.new"} & left
    assert ("best" in left) == ("checkpoint.pt" in left) == (size > 1_000_000)


def test_a_full_disk_in_stage_two(
    command: Callable[..., Ran],
    faces: Path,
    weights: Path,
    tmp_path: Path,
    file_limit: Callable[[int], None],
) -> None:
    file_limit(10_000)
    tune = ["--weights", weights, "--out", tmp_path / "out", *TUNE]
    fault = command("finetune", faces, *tune).fault
    assert str(tmp_path / "features") in fault
    assert "free some of the disk" in fault
    assert list((tmp_path / "features").iterdir()) == []
    file_limit(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert command("finetune", faces, *tune).status == 0


def test_a_folder_that_cannot_be_written(command: Callable[..., Ran], faces: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        assert f"({out}" in command("pretrain", faces, "--out", out, *FAST).fault


def test_an_interrupt_before_the_first_step(
    command: Callable[..., Ran], faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facemetric.training import pretrain as room

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "split_for", interrupt)
    assert "interrupted" in command("pretrain", faces, "--out", tmp_path / "out", *FAST).fault
    monkeypatch.undo()
    assert command("pretrain", faces, "--out", tmp_path / "out", *FAST).status == 0


def test_a_bug_keeps_its_traceback(faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from facemetric.training import pretrain as room

    for error in (RuntimeError("a bug"), OSError("a bug that names no file and no reason")):

        def fail(config: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(room, "pretrain", fail)
        with pytest.raises(type(error), match="a bug"):
            cli.main(["pretrain", str(faces)])


def test_a_gpu_without_memory_left_is_told(
    command: Callable[..., Ran], faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from facemetric.training import pretrain as room

    def fail(config: Any) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has more to say"
        )

    monkeypatch.setattr(room, "pretrain", fail)
    fault = command("pretrain", faces).fault
    assert "the GPU ran out of memory (CUDA out of memory. Tried to allocate 20.00 GiB.); free some" in fault


def test_a_full_disk_in_a_thread_is_left_to_the_main_one(
    command: Callable[..., Ran], faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facemetric.training import pretrain as room

    def fail(config: Any) -> None:
        for error in (OSError(errno.ENOSPC, "No space left on device"), RuntimeError("a bug")):

            def raise_it(error: Exception = error) -> None:
                raise error

            thread = threading.Thread(target=raise_it)
            thread.start()
            thread.join()

    monkeypatch.setattr(room, "pretrain", fail)
    before = threading.excepthook
    ran = command("pretrain", faces)
    assert threading.excepthook is before
    assert "No space left" not in ran.err
    assert ran.err.count("Traceback") == 1  # a bug keeps its own
    assert "RuntimeError: a bug" in ran.err


def test_a_message_of_many_lines_is_one_line(
    command: Callable[..., Ran], faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facemetric.training import pretrain as room

    def fail(config: Any) -> None:
        raise DataError("first\n  second\n\nthird")

    monkeypatch.setattr(room, "pretrain", fail)
    assert command("pretrain", faces).fault == "facemetric: first second third"


def test_ctrl_c_writes_a_checkpoint_and_resume_goes_on(
    command: Callable[..., Ran], faces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["pretrain", str(faces), "--out", str(out), *FAST]
    words[words.index("--epochs") + 1], words[words.index("--workers") + 1] = "6", "1"
    job = subprocess.Popen(
        [sys.executable, "-m", "facemetric.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        patience = time.monotonic() + 600  # no clock: one that hung would wait for ever
        while not ((out / "log.jsonl").exists() and "validation" in (out / "log.jsonl").read_text()):
            assert job.poll() is None, job.communicate()
            assert time.monotonic() < patience
            time.sleep(0.01)
        os.killpg(job.pid, signal.SIGINT)  # as a terminal does: the readers of images get it too
        ran = Ran(job.returncode, *job.communicate(timeout=600))
    finally:
        if job.poll() is None:
            job.kill()
    ran = ran._replace(status=job.returncode)
    assert "the same command with --resume goes on" in ran.fault
    assert (out / "checkpoint.pt").exists()
    assert "already holds a run" in command(*words).fault
    words[words.index("--workers") + 1] = "0"
    assert command(*words, "--resume").status == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["event"] == "validation"] == list(range(1, 7))


@pytest.mark.parametrize(("words", "status"), [("--help", 1), ("weights", 128 + signal.SIGPIPE)])
def test_a_reader_that_has_enough_ends_a_command_quietly(words: str, status: int) -> None:
    """As before `| head`: no traceback, and nothing of a path to mend."""
    ours, theirs = os.pipe()
    os.close(ours)
    line = [sys.executable, "-m", "facemetric", words]
    done = subprocess.run(line, stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (status, "")
