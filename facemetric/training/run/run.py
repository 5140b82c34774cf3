"""The run folder: config.toml, log.jsonl, TensorBoard events, checkpoint.pt, the best weights."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.tensorboard import SummaryWriter

from facemetric import distributed
from facemetric.config import FinetuneConfig, PretrainConfig
from facemetric.config.build import config_dict
from facemetric.distributed import say
from facemetric.errors import ConfigError, writing
from facemetric.files import Lock, write_bytes_whole
from facemetric.model.weights.folder import BEST, mend_folder
from facemetric.training.run.folder import (
    BAD_IMAGES,
    CHECKPOINT,
    CONFIG,
    LOCK,
    LOG,
    check_run_folder,
    has_checkpoint,
)
from facemetric.training.run.tracking import Tracker


class Trained(NamedTuple):
    """What a stage leaves: the run folder, the weights folder, and the best epoch's figures."""

    run: Path
    weights: Path
    metrics: dict[str, float]


class Run:
    """One training run on disk, in a folder that no other process writes into meanwhile.

    Raises ConfigError where the folder holds another run and `resume` is not set, where its checkpoint is lost,
    or where another process is at work in it. A start that failed before its first step leaves no run behind:
    with `resume` it then starts again (`resume` of the run says which it is). `changed` has the options that differ
    from those that a resumed run had before: `{"lr": "0.1, before 0.05"}`."""

    def __init__(self, folder: Path, *, config_toml: str, resume: bool, track: str = "off") -> None:
        self.folder = Path(folder)
        self.started = time.time()
        self.resume = resume
        self.changed: dict[str, str] = {}
        self._config = config_toml
        self._board: SummaryWriter | None = None
        self._tracker: Tracker | None = None
        self.writes = distributed.rank() == 0
        if self.writes:  # process 0 keeps the folder
            if resume and not self.folder.is_dir():
                raise ConfigError(f"{self.folder} holds no checkpoint to resume; start without --resume")
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.folder / LOCK)
            try:
                self._begin()
            except BaseException:
                self._lock.release()
                raise
        self.resume, self.changed = distributed.from_first((self.resume, self.changed))
        if self.writes and track != "off":
            self._tracker = Tracker(track, self.folder, config_toml, resume=self.resume)

    def _begin(self) -> None:
        """Look at what the folder holds, and open its files."""
        log, checkpoint = self.folder / LOG, self.folder / CHECKPOINT
        checkpoints = [checkpoint, checkpoint.with_suffix(".previous")]
        check_run_folder(self.folder, self.resume)
        if self.resume and not has_checkpoint(checkpoint):
            say(f"{self.folder} was stopped before its first step: it starts from there")
            self.resume = False
        if self.resume:
            self.changed = changed_options(self.folder / CONFIG, self._config)
            # Every random number follows the seed; the epoch in `best/` was picked by one figure.
            for name in ("seed", "best_by"):
                if name in self.changed:
                    raise ConfigError(
                        f"--{name.replace('_', '-')} is {self.changed[name]}; resume with the one that it was started "
                        "with, or name another --out"
                    )
            mend_folder(self.best)
        else:
            self.write_config()
            for path in (log, self.folder / BAD_IMAGES, *checkpoints):  # of a start that failed
                path.unlink(missing_ok=True)
            self._board = SummaryWriter(str(self.folder))
        self._log = open(log, "a")  # noqa: SIM115 (closed by close)

    def write_config(self) -> None:
        """config.toml; a path that is no text is written with escapes, and cannot be read back."""
        write_bytes_whole(self.folder / CONFIG, self._config.encode("utf-8", "backslashreplace"))

    @property
    def bad_images(self) -> Path:
        """The list of bad images; each process keeps its own."""
        rank = distributed.rank()
        return self.folder / (f"bad_images.{rank}.csv" if rank else BAD_IMAGES)

    @property
    def best(self) -> Path:
        """The weights folder of the best epoch."""
        return self.folder / BEST

    def log(self, event: str, step: int, **values: Any) -> None:
        """A line of log.jsonl, and for each number a point in TensorBoard under `event/name`."""
        if not self.writes:
            return
        line = {"event": event, "step": step, "seconds": round(time.time() - self.started, 2)}
        line |= {name: plain(value) for name, value in values.items()}
        with writing(self.folder / LOG):
            self._log.write(json.dumps(line) + "\n")
            self._log.flush()
        if self._tracker:
            self._tracker.log(event, step, line)
        for name, value in line.items():
            if self._board and isinstance(value, float) and name != "seconds":
                self._board.add_scalar(f"{event}/{name}", value, step)

    def mark(self) -> int:
        """Bring the log to the disk; its bytes so far, for the checkpoint that now follows."""
        if not self.writes:
            return 0
        with writing(self.folder / LOG):
            os.fsync(self._log.fileno())
        return os.fstat(self._log.fileno()).st_size

    def go_on(self, step: int, mark: int) -> None:
        """Go on from a checkpoint: keep the options given now; drop the log's lines behind its mark, which come
        again."""
        if not self.writes:
            return
        for name, text in self.changed.items():
            say(f"going on with other options: {name} {text}")
        self.write_config()
        path = self.folder / LOG
        with open(path, "rb") as file:
            kept = file.read(mark)
        os.truncate(path, kept.rfind(b"\n") + 1)  # a power cut may have taken the end before the mark
        self._board = SummaryWriter(str(self.folder), purge_step=step + 1)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self.close(finished=error[0] is None)

    def close(self, *, finished: bool = True) -> None:
        """Flush and close the files, and let go of the folder; a tracker hears whether the run `finished`."""
        if not self.writes:
            return
        if self._tracker:
            self._tracker.close(finished=finished)
        try:
            with contextlib.closing(self._log):
                if self._board:
                    self._board.close()
        finally:  # a full disk stops both
            self._lock.release()


def changed_options(path: Path, config: str) -> dict[str, str]:
    """`{"lr": "0.1, before 0.05"}` for the options that differ from those that the run folder holds."""
    try:
        before, now = tomllib.loads(path.read_text(encoding="utf-8")), tomllib.loads(config)
    except (OSError, ValueError):  # a path that is no text
        return {}
    # An option that is younger than the run was at its default.
    usual = config_dict((PretrainConfig if "arch" in now else FinetuneConfig)())
    before = {name: usual[name] for name in now if name in usual} | before
    names = [name for name in {**before, **now} if (before.get(name) or None) != (now.get(name) or None)]
    return {name: f"{now.get(name, 'none')}, before {before.get(name, 'none')}" for name in names}


def plain(value: Any) -> Any:
    """A value for JSON: numbers rounded to 7 digits, what is not finite as text, the rest as it is."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else str(value)
    return value
