"""Pixels from row numbers: the same for any number of workers, and whatever happens on the way."""

from __future__ import annotations

import dataclasses
import io
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from facemetric.data import loader
from facemetric.data.batches import ShuffledBatches, chunks
from facemetric.data.eval_transform import Plan
from facemetric.data.images import Preprocess
from facemetric.data.index import ImageIndex, read_index
from facemetric.data.loader import Batch, load_batches, sample_seed, seed_everything
from facemetric.data.transforms import Augment, eval_transform, train_transform
from facemetric.errors import DataError

PRE = Preprocess(size=(12, 16))
STRONG = Augment(
    crop_scale=(0.3, 1.0), color_jitter=0.4, auto_augment="rand-m5-n1", blur=0.3, low_resolution=0.3
)


def picture(n: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(n).integers(0, 256, (14, 18, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def index(tmp_path: Path) -> ImageIndex:
    for n in range(20):
        path = tmp_path / f"data/p{n // 4}/{n:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(n))
    return read_index(tmp_path / "data")


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.rows, b.rows)
        and a.bad == b.bad
        for a, b in zip(one, other, strict=True)
    )


def test_batches_hold_what_was_asked_for(index: ImageIndex) -> None:
    transform = eval_transform(PRE)
    batches = list(load_batches(index, chunks(20, 6), transform))
    assert [len(batch.images) for batch in batches] == [6, 6, 6, 2]
    assert torch.cat([batch.rows for batch in batches]).tolist() == list(range(20))
    assert torch.cat([batch.labels for batch in batches]).tolist() == index.identity.tolist()
    assert batches[0].images.dtype == torch.uint8
    assert batches[0].labels.dtype == batches[0].rows.dtype == torch.int64
    expected = transform(Image.open(io.BytesIO(picture(7))).convert("RGB"))
    np.testing.assert_array_equal(batches[1].images[1].numpy(), expected)
    own = np.arange(100, 120)
    assert next(load_batches(index, chunks(20, 6), transform, labels=own)).labels.tolist() == list(
        range(100, 106)
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(index: ImageIndex, workers: int) -> None:
    rows = ShuffledBatches(index.identity, 5, 0).epoch(1)
    transform = train_transform(PRE, STRONG)
    alone = list(load_batches(index, rows, transform, seed=3, epoch=1))
    assert same(alone, list(load_batches(index, rows, transform, seed=3, epoch=1, workers=workers)))
    rest = list(load_batches(index, rows, transform, seed=3, epoch=1, workers=workers, start=2))
    assert same(alone[2:], rest)
    assert list(load_batches(index, rows, transform, workers=workers, start=4)) == []


@pytest.mark.parametrize("policy", ["", "rand-m9-mstd0.5"])  # timm's draw while they work
def test_threads_change_nothing(index: ImageIndex, policy: str) -> None:
    transform = train_transform(PRE, dataclasses.replace(STRONG, auto_augment=policy))
    rows = ShuffledBatches(index.identity, 7, 0).epoch(0)
    before = torch.get_num_threads()
    try:
        made = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            made += [list(load_batches(index, rows, transform, seed=3)) for _ in range(3)]
    finally:
        torch.set_num_threads(before)
    assert all(same(made[0], other) for other in made[1:])


def test_ranks_change_nothing(index: ImageIndex) -> None:
    transform = train_transform(PRE, STRONG)
    whole = ShuffledBatches(index.identity, 6, 0)
    (first, *_) = load_batches(index, whole.epoch(0), transform, seed=3)
    parts = [
        next(
            load_batches(
                index, ShuffledBatches(index.identity, 6, 0, rank=r, world_size=2).epoch(0), transform, seed=3
            )
        )
        for r in range(2)
    ]
    assert torch.equal(torch.cat([part.images for part in parts]), first.images)


def test_augmentation_follows_seed_epoch_and_step(index: ImageIndex) -> None:
    transform = train_transform(PRE, STRONG)
    twice = [np.arange(5), np.arange(5)]

    def images(**stream: int) -> torch.Tensor:
        return torch.stack([batch.images for batch in load_batches(index, twice, transform, **stream)])

    base = images(seed=1, epoch=1)
    assert torch.equal(images(seed=1, epoch=1), base)
    assert not torch.equal(images(seed=2, epoch=1), base)
    assert not torch.equal(images(seed=1, epoch=2), base)
    assert not torch.equal(base[0], base[1])


def test_equal_pictures_are_varied_apart(index: ImageIndex, tmp_path: Path) -> None:
    (tmp_path / "data/p0/01.png").write_bytes(picture(0))
    index = read_index(tmp_path / "data")
    (batch,) = load_batches(index, [np.array([0, 1])], train_transform(PRE, STRONG))
    assert not torch.equal(batch.images[0], batch.images[1])


def test_sample_seed_is_well_spread() -> None:
    seeds = {sample_seed(a, b, c, d) for a in range(6) for b in range(6) for c in range(6) for d in range(60)}
    assert len(seeds) == 6**3 * 60
    bits = np.array([[s >> k & 1 for k in range(64)] for s in sorted(seeds)])
    assert np.abs(bits.mean(0) - 0.5).max() < 0.03
    assert len({s & 0xFFFFFFFF for s in seeds}) > len(seeds) - 5


def test_seed_everything_is_torchs() -> None:
    seed_everything(1234567890123456789)
    found = random.random(), np.random.rand(), torch.rand(3)
    random.seed(1234567890123456789)
    torch.manual_seed(1234567890123456789)
    assert found[0] == random.random()
    assert torch.equal(found[2], torch.rand(3))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_callers_random_numbers_are_left_alone(index: ImageIndex, workers: int) -> None:
    def drawn(load: bool) -> list[object]:
        seed_everything(5)
        out: list[object] = []
        batches = load_batches(index, chunks(20, 6), train_transform(PRE, STRONG), workers=workers)
        for _ in range(3):
            if load:
                next(batches)
            out += [random.random(), np.random.rand(), torch.rand(1).item()]
        return out

    assert drawn(load=True) == drawn(load=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_images_are_named_and_left_out(index: ImageIndex, tmp_path: Path, workers: int) -> None:
    data = tmp_path / "data"
    (data / "p0/00.png").write_bytes(b"")
    (data / "p0/02.png").write_bytes(b"no image")
    for n in (8, 9):
        (data / f"p2/{n:02}.png").write_bytes(picture(n)[:200])
    index = read_index(data)
    (data / "p1/05.png").unlink()
    (clean,) = load_batches(index, [np.array([1, 3, 4])], train_transform(PRE, STRONG))
    rows = [np.array([0, 1, 2, 3, 4, 5]), np.array([8, 9])]
    first, second = load_batches(index, rows, train_transform(PRE, STRONG), workers=workers)
    assert first.rows.tolist() == [1, 3, 4]
    assert torch.equal(first.images, clean.images)
    assert first.labels.tolist() == [0, 0, 1]
    assert [row for row, _ in first.bad] == [0, 2, 5]
    assert [reason for _, reason in first.bad] == [
        "zero bytes",
        "no image of a known kind",
        "cannot be read: No such file or directory",
    ]
    assert second.images.shape == (0, 12, 16, 3)
    assert second.labels.shape == (0,)
    assert len(second.bad) == 2


@pytest.mark.parametrize("source", ["folder", "tar"])
def test_what_is_written_to_while_it_is_read_is_no_image(tmp_path: Path, source: str) -> None:
    for n in range(3):
        path = tmp_path / f"data/p{n}/0.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(picture(n))
    file = tmp_path / "data/p1/0.png"
    if source == "tar":
        file = tmp_path / "data.tar"
        with tarfile.open(file, "w") as tar:
            tar.add(tmp_path / "data", arcname=".")
    index = read_index(tmp_path / ("data.tar" if source == "tar" else "data"))
    steps, rows = [np.arange(3)], [1] if source == "folder" else [0, 1, 2]
    state = file.stat()
    for change, reason in (("other bytes", "changed"), ("longer", "changed"), ("cut", "cut short")):
        data = file.read_bytes()
        file.write_bytes({"other bytes": data, "longer": data + b"!", "cut": data[:100]}[change])
        (batch,) = load_batches(index, steps, eval_transform(PRE))
        assert [row for row, _ in batch.bad] == rows
        assert all(f"{reason} since it was indexed" in why for _, why in batch.bad)
        file.write_bytes(data)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    (batch,) = load_batches(index, steps, eval_transform(PRE))
    assert not batch.bad


def test_workers_hand_over_pinned_memory_where_it_is_asked_for(
    index: ImageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    plain = loader.DataLoader

    def made(*arguments: object, pin_memory: bool, **options: object) -> object:
        asked.append(pin_memory)
        return plain(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loader, "DataLoader", made)
    for pin in (False, True):
        list(load_batches(index, chunks(4, 2), eval_transform(PRE), workers=1, pin=pin))
    assert asked == [False, True]


def test_a_file_too_large_to_read(index: ImageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "MAX_BYTES", 10)
    (batch,) = load_batches(index, [np.array([0])], eval_transform(PRE))
    assert "at most 10 are read" in batch.bad[0][1]


class Dies:
    """A transform that takes its process with it at one picture."""

    height, width, enough, draws, draws_late = 12, 16, 0, True, False

    def draw(self, image: Image.Image) -> Plan:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


class Stumbles(Dies):
    def draw(self, image: Image.Image) -> Plan:
        raise ZeroDivisionError("a bug of ours")


def test_a_worker_that_dies_is_a_clear_error(index: ImageIndex) -> None:
    with pytest.raises(DataError, match=r"a process that loads images died.*lower --workers") as caught:
        list(load_batches(index, chunks(20, 6), Dies(), workers=1))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


class TellsMask(Dies):
    """A transform that tells, by its error, whether its process can be interrupted."""

    def draw(self, image: Image.Image) -> Plan:
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        raise ZeroDivisionError(f"held: {signal.SIGINT in blocked}")


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="of forked workers")
def test_a_worker_is_never_interrupted_not_even_as_it_begins(index: ImageIndex) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with pytest.raises(ZeroDivisionError, match="held: True"):
        list(load_batches(index, chunks(20, 6), TellsMask(), workers=1))  # type: ignore[arg-type]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="of forked workers")
def test_an_interrupt_as_the_workers_begin_ends_them(
    index: ImageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes once they are there; whoever keeps the traceback does not keep them."""
    before = set(multiprocessing.active_children())
    begin = loader.DataLoader.__iter__

    def interrupted(self: Any) -> Any:
        signal.pthread_kill(
            threading.get_ident(), signal.SIGINT
        )  # this thread's, or another would take it at once
        return begin(self)

    monkeypatch.setattr(loader.DataLoader, "__iter__", interrupted)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            list(load_batches(index, chunks(20, 1), eval_transform(PRE), workers=2))
    finally:
        signal.signal(signal.SIGINT, handler)
    assert caught.traceback
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bug_keeps_its_traceback(index: ImageIndex, workers: int) -> None:
    with pytest.raises(ZeroDivisionError, match="a bug of ours"):
        list(load_batches(index, chunks(20, 6), Stumbles(), workers=workers))  # type: ignore[arg-type]


def test_a_fault_of_whoever_takes_the_batches_is_theirs(index: ImageIndex) -> None:
    """A RuntimeError that comes in from outside is no dead worker."""
    batches = load_batches(index, chunks(20, 5), eval_transform(PRE), workers=1)
    next(batches)
    with pytest.raises(RuntimeError, match=r"^the loss is not finite$"):
        batches.throw(RuntimeError("the loss is not finite"))  # type: ignore[attr-defined]


def test_leaving_early_ends_the_workers(index: ImageIndex) -> None:
    before = set(multiprocessing.active_children())
    batches = load_batches(index, chunks(20, 1), eval_transform(PRE), workers=2)
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 2
    batches.close()  # type: ignore[attr-defined]
    assert set(multiprocessing.active_children()) <= before


def test_interrupt_ends_all_processes(index: ImageIndex, tmp_path: Path) -> None:
    """Ctrl-C goes to the whole group: one KeyboardInterrupt, nothing from the workers, nobody left."""
    script = textwrap.dedent(
        f"""
        import signal, sys, time
        from facemetric.data.batches import chunks
        from facemetric.data.images import Preprocess
        from facemetric.data.index import read_index
        from facemetric.data.loader import load_batches
        from facemetric.data.transforms import eval_transform
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job starts without
        index = read_index({str(tmp_path / "data")!r})
        try:
            for batch in load_batches(index, chunks(20, 1), eval_transform(Preprocess()), workers=2):
                print("ready", flush=True)
                while True:  # not one long sleep: a signal between the line and the sleep would not end that
                    time.sleep(0.01)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-W",
            "ignore:This DataLoader will create",
            "-c",
            script,
        ],  # on one core torch advises
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)  # one that hung would wait for ever, not for two minutes
    assert out == "interrupted\n"
    assert err == ""
    assert process.returncode == 0
