"""What of the machine is used."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

from facemetric.errors import ConfigError
from facemetric.machine import pick_device, pick_workers, progress_bar, progress_shown, say, show_progress


def test_progress_is_shown_only_where_it_is_switched_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    show_progress(False)  # as it is when facemetric is imported: conftest.py turns it on for the tests
    assert not progress_shown()
    say("a line")
    assert list(progress_bar([1, 2], desc="embedding", delay=0)) == [1, 2]
    assert capsys.readouterr() == ("", "")
    assert show_progress() is False
    try:
        say("a line", "and another")
        assert list(progress_bar([1, 2], desc="embedding", delay=0)) == [1, 2]
    finally:
        assert show_progress(False) is True
    out, err = capsys.readouterr()
    assert out == "a line\nand another\n"
    assert "embedding: " in err


def test_bars_stay_out_of_a_log_file(capsys: pytest.CaptureFixture[str]) -> None:
    show_progress()
    try:
        assert list(progress_bar([1, 2], desc="embedding", delay=0)) == [1, 2]
    finally:
        show_progress(False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mps", "in float64, which Apple's GPUs do not have; use cpu"),
        ("xpu:1", "xpu:1 is not supported"),
    ],
)
def test_a_device_that_cannot_compute_what_is_needed(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pick_device(name)


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert (pick_device("cuda").index, pick_device("cuda:1").index) == (None, 1)
    with pytest.raises(ConfigError, match="the device cuda:2 was asked for, but there are 2 CUDA devices"):
        pick_device("cuda:2")


def test_reading_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for cores, expected in ((1, 0), (2, 0), (4, 2), (64, 8)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert pick_workers(-1) == expected
        assert pick_workers(3) == 3
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert pick_workers(-1) == 1
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")  # each process of torchrun has a share of the cores
    assert pick_workers(-1) == 4


CODE = """
import json, torch
from facemetric.machine import keep_freed_memory
from facemetric.machine import Measured, measuring

def take(pieces):  # of 16 MiB
    found = Measured()
    with measuring(found):
        held = [torch.ones(2**22) for _ in range(pieces)]
        del held
    return found.peak_mib

keep_freed_memory()
take(1)
print(json.dumps([take(1), take(20), take(5), take(1)]))
"""


def test_each_peak_is_its_own() -> None:
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    small, large, middle, again = json.loads(ran.stdout)
    assert 280 < large - small < 340
    assert 40 < middle - small < 100
    assert abs(again - small) < 20


FAULTS = """
import resource, sys
import torch
from facemetric.machine import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
for _ in range(16):  # aligned blocks settle after some turns
    torch.ones(16 << 20)  # 64 MiB, freed at once
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.ones(16 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc, whose heap it sets")
def test_a_freed_block_is_used_again_without_new_pages() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)
        for how in ("kept", "given back")
    }
    assert faults["kept"] < 64 < faults["given back"]
