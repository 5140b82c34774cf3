"""A checkpoint appears whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from facemetric.errors import ConfigError
from facemetric.training.run import checkpoint
from facemetric.training.run.checkpoint import load_checkpoint, save_checkpoint, set_aside

CPU = torch.device("cpu")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint with the number 1."""
    save_checkpoint(tmp_path / "checkpoint.pt", {"number": 1})
    return tmp_path / "checkpoint.pt"


def test_the_last_is_read_and_the_one_before_is_kept(path: Path) -> None:
    save_checkpoint(path, {"number": 2})
    assert load_checkpoint(path, CPU) == ({"number": 2}, "")
    assert torch.load(path.with_suffix(".previous"), weights_only=True) == {"number": 1}
    assert sorted(file.name for file in path.parent.iterdir()) == ["checkpoint.previous", "checkpoint.pt"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files are read from /proc")
def test_the_bytes_are_on_the_disk_before_the_name_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        sync(descriptor)

    def note_replace(source: Path, target: Path) -> None:
        done.append(f"{source.name} -> {target.name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    save_checkpoint(path, {"number": 2})
    assert done == [
        "sync checkpoint.new",
        "checkpoint.pt -> checkpoint.previous",
        "checkpoint.new -> checkpoint.pt",
        f"sync {path.parent.name}",
    ]


class FullDisk:
    """A file that takes some bytes and then has no room for more."""

    def __init__(self, file: Any, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


@pytest.mark.parametrize("room", [0, 500, 3000])
def test_a_full_disk_keeps_the_last_one(path: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "open", lambda *args: FullDisk(open(*args), room), raising=False)  # noqa: SIM115
    with pytest.raises(OSError, match="No space left") as caught:
        save_checkpoint(path, {"number": torch.arange(1000)})
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    monkeypatch.undo()
    assert load_checkpoint(path, CPU) == ({"number": 1}, "")
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("moment", [1, 2], ids=["before it is moved away", "before the new one is there"])
def test_a_crash_between_the_renames_loses_nothing(
    path: Path, moment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, calls = os.replace, []

    def crash(source: Any, target: Any) -> None:
        calls.append(target)
        if len(calls) == moment:
            raise InterruptedError
        replace(source, target)

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(InterruptedError):
        save_checkpoint(path, {"number": 2})
    state, note = load_checkpoint(path, CPU)
    assert state == {"number": 1}
    assert note == ("" if moment == 1 else "checkpoint.pt is missing; going on from checkpoint.previous")


def test_a_flipped_bit_anywhere_is_noticed_or_does_not_matter(path: Path) -> None:
    state = {"weight": torch.arange(64.0), "step": 3}
    save_checkpoint(path, state)
    good, silent = path.read_bytes(), 0
    at = good.find(state["weight"].numpy().tobytes())
    assert at > 0
    for place in [*range(0, len(good), 7), at, at + 17]:
        path.write_bytes(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
        found, note = load_checkpoint(path, CPU)
        if note:
            assert "checkpoint.pt is damaged" in note
            assert found == {"number": 1}
        else:  # padding, or a date
            silent += 1
            assert torch.equal(found["weight"], state["weight"])
            assert found["step"] == 3
        assert note or place not in (at, at + 17)
    assert silent < 0.9 * len(good) / 7


def test_a_checkpoint_cut_at_any_byte_is_not_read(path: Path) -> None:
    save_checkpoint(path, {"number": 2})
    good = path.read_bytes()
    for length in range(0, len(good), 11):
        path.write_bytes(good[:length])
        state, note = load_checkpoint(path, CPU)
        assert state == {"number": 1}
        assert "checkpoint.pt is damaged" in note


def test_what_is_not_read_back_as_written_is_not_kept(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.save

    def bad_memory(state: Any, file: Any) -> None:
        real(state, file)
        file.seek(file.tell() // 2)
        file.write(b"?")

    monkeypatch.setattr(torch, "save", bad_memory)
    with pytest.raises(OSError, match="not read back as it was written") as caught:
        save_checkpoint(path, {"number": torch.arange(1000)})
    assert caught.value.filename == str(path)
    monkeypatch.undo()
    assert load_checkpoint(path, CPU) == ({"number": 1}, "")
    assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_damaged_one_never_pushes_out_the_good_one(path: Path) -> None:
    save_checkpoint(path, {"number": 2})
    path.write_bytes(b"damaged")
    assert load_checkpoint(path, CPU)[0] == {"number": 1}
    set_aside(path)
    save_checkpoint(path, {"number": 3})
    assert torch.load(path.with_suffix(".previous"), weights_only=True) == {"number": 1}
    assert load_checkpoint(path, CPU) == ({"number": 3}, "")


class Evil:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("owned",)


def test_nothing_in_a_checkpoint_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    torch.save({"number": Evil()}, path)
    with pytest.raises(ConfigError, match="damaged"):
        load_checkpoint(path, CPU)
    assert not Path("owned").exists()


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="name another --out"):
        load_checkpoint(tmp_path / "checkpoint.pt", CPU)
