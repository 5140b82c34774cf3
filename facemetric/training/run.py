"""The run folder: config.toml, log.jsonl, TensorBoard events, checkpoint.pt, the best weights."""

from __future__ import annotations

import json
import math
import platform
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

import facemetric
from facemetric.errors import ConfigError
from facemetric.model.weights import BEST
from facemetric.training import distributed
from facemetric.training.checkpoint import has_checkpoint

CONFIG, LOG, CHECKPOINT, BAD_IMAGES = "config.toml", "log.jsonl", "checkpoint.pt", "bad_images.csv"


class Run:
    """One training run on disk.

    Raises ConfigError where the folder holds another run and `resume` is not set, or no checkpoint and it is.
    A start that failed before its first step leaves no run behind."""

    def __init__(self, folder: Path, *, config_toml: str, resume: bool) -> None:
        self.folder = Path(folder)
        self.started = time.time()
        self._config = config_toml
        self.writes = distributed.rank() == 0
        if not self.writes:  # process 0 keeps the folder
            return
        log, checkpoint = self.folder / LOG, self.folder / CHECKPOINT
        begun = log.exists() and log.stat().st_size > 0
        saved = has_checkpoint(checkpoint)
        if resume and not saved:
            remedy = "name another --out, or remove it" if begun else "start without --resume"
            raise ConfigError(f"{self.folder} holds no checkpoint to resume; {remedy}")
        if (begun or saved) and not resume:
            remedy = "go on with it by --resume" if saved else "remove it"
            raise ConfigError(f"{self.folder} already holds a run; {remedy}, or name another --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        if not resume:
            self.write_config()
            (self.folder / BAD_IMAGES).unlink(missing_ok=True)  # of a start that failed
        self._log = open(self.folder / LOG, "a")  # noqa: SIM115 (closed by close)
        self._board = SummaryWriter(str(self.folder))

    def write_config(self) -> None:
        """config.toml; a path that is no text is written with escapes, and cannot be read back."""
        (self.folder / CONFIG).write_bytes(self._config.encode("utf-8", "backslashreplace"))

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
        self._log.write(json.dumps(line) + "\n")
        self._log.flush()
        for name, value in line.items():
            if isinstance(value, float) and name != "seconds":
                self._board.add_scalar(f"{event}/{name}", value, step)

    def go_on(self, step: int) -> None:
        """Go on from a step: keep the options given now; drop the log's lines after it, which come again."""
        if not self.writes:
            return
        self.write_config()
        path = self.folder / LOG
        kept = []
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except ValueError:  # the line that a crash cut
                continue
            if line.get("step", 0) <= step and line.get("event") not in ("stopped", "kept", "gain"):
                kept.append(text + "\n")
        self._log.close()
        path.write_text("".join(kept))
        self._log = open(path, "a")  # noqa: SIM115

    def close(self) -> None:
        """Flush and close the files."""
        if self.writes:
            self._log.close()
            self._board.close()


def plain(value: Any) -> Any:
    """A value for JSON: numbers rounded to 7 digits, what is not finite as text, the rest as it is."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else str(value)
    return value


def provenance(*, data: str, images: int, identities: int, options: dict[str, Any]) -> dict[str, Any]:
    """Where weights come from: data fingerprint, commit, package versions, seed and every option."""
    return {
        "data_fingerprint": data,
        "images": images,
        "identities": identities,
        "seed": options.get("seed"),
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy", "pillow")},
        "facemetric": facemetric.__version__,
        "options": options,
    }


def git_commit() -> str | None:
    """The commit of the source checkout, with `+` where it has changes; None outside one."""
    root = Path(facemetric.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True, timeout=10
        )
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() + ("+" if status.stdout.strip() else "")
