"""Disks that are full or read-only, images that go or change, readers that die: nothing is lost, each has its line."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from facemetric import finetune, pretrain
from facemetric.errors import DataError
from facemetric.files import Lock, write_whole
from facemetric.model.weights.save_load import load_embedder
from facemetric.training.run.folder import read_log
from facemetric.training.tasks import feature_cache as room
from facemetric.training.tasks.classification import Classification
from facemetric.training.tasks.feature_cache import cached_features

CALLS = ("fsync", "replace", "mkdir")


def full_at(call: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the disk be full at the nth call that changes it; a list that then names the call."""
    count, met = [0], []

    def guarded(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] >= call:  # and stays so
                met.append(name)
                named = [] if name == "fsync" else [str(arguments[-1])]
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *named)
            return real(*arguments, **options)

        return run

    for name in CALLS:
        monkeypatch.setattr(os, name, guarded(name, getattr(os, name)))
    return met


def test_full_at_any_write_the_run_goes_on_later(faces: Path, tmp_path: Path, small: dict[str, Any]) -> None:
    options = small | {"checkpoint_minutes": 0.0}
    whole = pretrain(str(faces), **options, out=tmp_path / "whole")
    right = load_file(whole.weights / "model.safetensors")
    call = 1
    while True:
        out = tmp_path / f"{call}"
        with pytest.MonkeyPatch.context() as patch:
            met = full_at(call, patch)
            try:
                pretrain(str(faces), **options, out=out)
            except OSError as caught:
                error = caught
        if not met:
            break
        assert error.errno == errno.ENOSPC
        assert error.filename is not None, met
        assert not {"best.new", "checkpoint.new"} & {path.name for path in out.rglob("*")}
        resume = (out / "checkpoint.pt").exists() or (out / "checkpoint.previous").exists()
        run = pretrain(str(faces), **options, out=out, resume=resume)
        found = load_file(run.weights / "model.safetensors")
        assert all(np.array_equal(found[name], right[name]) for name in right), call
        call += 7
    assert call > 15


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")

    def fill(path: Path) -> None:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space") as caught:
        write_whole(tmp_path / "file", fill)
    assert caught.value.filename == str(tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"
    write_whole(tmp_path / "file", lambda path: path.write_text("new"), durable=True)
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("change", ["gone", "other"])
def test_images_that_go_or_change_while_training(
    faces: Path, tmp_path: Path, small: dict[str, Any], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = Path(shutil.copytree(faces, tmp_path / "people"))
    step = Classification.step

    def harming(self: Any, batch: Any, progress: float, backward: Any) -> dict[str, float]:
        for path in list(people.rglob("*.jpg"))[::9]:
            if change == "gone":
                path.unlink()
            else:
                path.write_bytes(path.read_bytes() + b"!")
        return step(self, batch, progress, backward)

    monkeypatch.setattr(Classification, "step", harming)
    reason = "No such file" if change == "gone" else "it was changed since it was indexed"
    with pytest.raises(DataError, match=rf"images are bad, above the share of 0.01 allowed.*{reason}"):
        pretrain(str(people), **small | {"epochs": 2}, out=tmp_path / "run")
    lines = (tmp_path / "run" / "bad_images.csv").read_text().splitlines()
    assert len(lines) > 1
    assert all(reason in line for line in lines[1:])


def test_a_reader_that_dies_ends_the_run_and_resume_goes_on(
    faces: Path, tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from facemetric.data.loader import _Batches

    options = small | {"workers": 1, "epochs": 2}
    whole = pretrain(str(faces), **options, out=tmp_path / "whole")
    make = _Batches.make

    def dying(self: Any, step: int, mapped: Any) -> Any:
        if self.stream[1] == 1 and step == 1:
            os.kill(os.getpid(), signal.SIGKILL)  # as the system does when memory runs out
        return make(self, step, mapped)

    with monkeypatch.context() as patch:
        patch.setattr(_Batches, "make", dying)
        with pytest.raises(DataError, match=r"a process that loads images died.*lower workers="):
            pretrain(str(faces), **options, out=tmp_path / "run")
    run = pretrain(str(faces), **options, out=tmp_path / "run", resume=True)
    one, other = (load_file(each.weights / "model.safetensors") for each in (whole, run))
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert read_log(run.run / "log.jsonl")[-1]["event"] == "finished"


def test_a_cache_cut_short_is_made_anew(stage_one: Any, faces: Path, tmp_path: Path) -> None:
    options = {"weights": str(stage_one.run), "epochs": 1, "batch_size": 32, "workers": 0, "device": "cpu"}
    whole = finetune(str(faces), **options, out=tmp_path / "a" / "run")
    cache = tmp_path / "a" / "features"
    for path in cache.glob("*.npy"):
        os.truncate(path, path.stat().st_size // 2)
    for path in cache.glob("*.json"):
        path.write_text(path.read_text()[:7])
    again = finetune(str(faces), **options, cache=cache, out=tmp_path / "b" / "run")
    one, other = (load_file(each.weights / "model.safetensors") for each in (whole, again))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_what_a_killed_process_left_in_the_cache_is_removed(
    stage_one: Any, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from facemetric.data.index import read_index

    embedder, index = load_embedder(stage_one.run), read_index(str(faces))
    child = os.fork()
    if child == 0:
        room.fill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        cached_features(embedder, index, tmp_path)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert len(list(tmp_path.glob("*.part"))) == 1
    cached_features(embedder, index, tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".npy"]


def test_what_a_living_process_makes_in_the_cache_stays(stage_one: Any, faces: Path, tmp_path: Path) -> None:
    from facemetric.data.index import read_index

    part = tmp_path / "0123.7.part"
    part.write_bytes(b"half")
    lock = Lock(part.with_suffix(".lock"))
    cached_features(load_embedder(stage_one.run), read_index(str(faces)), tmp_path)
    assert part.read_bytes() == b"half"
    lock.release()
    cached_features(load_embedder(stage_one.run), read_index(str(faces)), tmp_path, views=2)
    assert not part.exists()
