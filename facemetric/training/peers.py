"""The other processes under torchrun: the same program and data on all of them, and what to do when one dies.

A process waits for the others in every sum, for as long as they may validate or read: hours. So each tells the others
every second that it lives, or why it ends; where one is gone, the others end too, with its reason."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import fields
from importlib import metadata
from pathlib import Path
from typing import Any

import torch.distributed as dist

import facemetric
from facemetric import distributed
from facemetric.config import config_dict
from facemetric.errors import FacemetricError, TrainingError

BEAT = 1.0  # seconds between two signs of life
SILENCE = 20.0  # seconds without one after which a process is dead
GRACE = 10.0  # seconds to end by itself, for a process that another one left
PACKAGES = ("torch", "torchvision", "timm", "numpy")
# Options that may differ between machines: where things lie, and what reads them.
OF_A_MACHINE = ("out", "cache", "device", "workers", "weights", "teacher", "data", "unlabelled")
writing = threading.Lock()  # held while a file is written: no process ends itself meanwhile


def same_program(config: Any) -> None:
    """Raise ConfigError, on all processes, where one runs other versions, or was given other options."""
    if not distributed.together():
        return  # nobody to compare the sources with
    versions = {f"the version of {name}": metadata.version(name) for name in PACKAGES}
    distributed.check_alike(versions | {"facemetric's code": code_hash()[:12]})
    paths = {each.name for each in fields(config) if "Path" in str(each.type)}
    options = {
        f"--{name.replace('_', '-')}": str(value)
        for name, value in config_dict(config).items()
        if name not in OF_A_MACHINE and name not in paths
    }
    distributed.check_alike(options)


def same_data(origin: Mapping[str, str]) -> None:
    """Raise ConfigError, on all processes, where one sees other data, lists, weights or pictures."""
    distributed.check_alike({f"the {name}": mark for name, mark in origin.items()})


@functools.cache
def code_hash() -> str:
    """SHA-256 of the package's sources, hex."""
    digest = hashlib.sha256()
    folder = Path(facemetric.__file__).parent
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def joined(device: str) -> Iterator[str]:
    """Join the processes of torchrun; the device of this one. Within it they look after each other. Alone nothing
    happens.

    An error is told to the others. Where one of them died, this process ends in a TrainingError that names it and
    its reason, or, where it is stuck in a sum, by itself with that line and exit status 2."""
    device = distributed.start(device)
    if not distributed.together():
        yield device
        return
    watch = _Watch()
    watch.thread.start()
    try:
        yield device
    except BaseException as error:
        reason = watch.reason_of(error)
        watch.leave("" if reason else told(error))
        if reason:
            raise TrainingError(reason) from error
        raise
    watch.leave(None)


def told(error: BaseException) -> str:
    """An error in one line, for the other processes."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, FacemetricError) else f"{type(error).__name__}: {text}"


class _Watch:
    """Signs of life through torchrun's store, over a connection of its own: others may block theirs."""

    def __init__(self) -> None:
        self.rank, self.world = distributed.rank(), distributed.world_size()
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.store = dist.TCPStore(host, port, is_master=False, timeout=distributed.TIMEOUT)
        self.ended = threading.Event()
        self.gone = ""  # which process is gone, and why
        self.seen = {other: (0, time.monotonic()) for other in range(self.world) if other != self.rank}
        self.thread = threading.Thread(target=self.run, daemon=True)
        run = distributed.from_first(os.urandom(4).hex())  # a process may train more than once
        self.name = f"facemetric/{run}"

    def key(self, what: str, rank: int) -> str:
        """The name of a counter in the store."""
        return f"{self.name}/{what}/{rank}"

    def run(self) -> None:
        """Until this process has ended: say that it lives, and look at the others."""
        while not self.ended.wait(BEAT):
            try:
                self.store.add(self.key("alive", self.rank), 1)
                self.gone = self.gone or self.look()
            except (RuntimeError, OSError):  # the store is kept by process 0, or by torchrun
                self.gone = self.gone or "the process that keeps torchrun's store is gone"
            if self.gone and not self.ended.wait(GRACE):
                with writing:
                    sys.stderr.write(f"facemetric: {self.gone}\n")
                    sys.stderr.flush()
                    os._exit(2)

    def look(self) -> str:
        """Which process is gone, and why; "" while all are at work, or have come to their end."""
        for other, (count, when) in list(self.seen.items()):
            if self.store.add(self.key("ended", other), 0):
                del self.seen[other]
            elif self.store.add(self.key("failed", other), 0):
                return f"process {other} ended: {self.store.get(self.key('reason', other)).decode()}"
            elif (now := self.store.add(self.key("alive", other), 0)) != count:
                self.seen[other] = now, time.monotonic()
            elif time.monotonic() - when > SILENCE:
                return f"process {other} died without a word (killed, out of memory, or its machine is gone)"
        return ""

    def reason_of(self, error: BaseException) -> str:
        """Which process is gone, where the error is that a sum with it broke off; "" for an error of this process."""
        if isinstance(error, FacemetricError) or not isinstance(error, RuntimeError):
            return ""
        if not re.search("gloo|nccl|connection|store|peer", str(error), re.IGNORECASE):
            return ""
        until = time.monotonic() + SILENCE + 2 * BEAT
        while not self.gone and time.monotonic() < until:
            time.sleep(BEAT / 10)
        return self.gone

    def leave(self, reason: str | None) -> None:
        """Tell the others that this process comes to its end; with a reason where it failed."""
        self.ended.set()
        with contextlib.suppress(RuntimeError, OSError):  # the store may be gone before
            if reason is None:
                self.store.add(self.key("ended", self.rank), 1)
            elif reason:
                self.store.set(self.key("reason", self.rank), reason)
                self.store.add(self.key("failed", self.rank), 1)
                if self.rank == 0:  # it may keep the store, where the others read why
                    time.sleep(2 * BEAT)
        self.thread.join(2 * BEAT)
