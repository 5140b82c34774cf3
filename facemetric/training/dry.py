"""What `facemetric run --dry` finds before hours are spent: does it learn a few images by heart, memory, time.

Nothing is left behind. Two small trainings for each stage: 20 steps on a handful of identities without
augmentation, whose loss must fall; and some steps of the full batch, for memory and time.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from facemetric.config import FinetuneConfig, PretrainConfig
from facemetric.data.batches import IdentityBatches, ShuffledBatches, places_within
from facemetric.data.index import ImageIndex
from facemetric.data.lists import with_at_least
from facemetric.errors import TrainingError
from facemetric.evaluation.embed import embed_index
from facemetric.machine import Measured, measuring, pick_device
from facemetric.model.embedder import Embedder
from facemetric.model.freezing import widest
from facemetric.model.weights import load_weights
from facemetric.training.finetune import task_of
from facemetric.training.loop import Trainer
from facemetric.training.optim import Amp, make_optimizer, make_scheduler
from facemetric.training.run import Run
from facemetric.training.split import Split, read_split
from facemetric.training.stage import load_start, settings_of
from facemetric.training.tasks.distillation import read_unlabelled, stage_one, with_others

STEPS = 20
HANDFUL, IMAGES = 8, 8  # identities, and images of each
TIMED = 3  # steps of the full batch, after one that warms up
# The loss after STEPS is at most this share of the first; a sign or a label that is wrong leaves it where it was.
LEARNED, LEARNED_FROZEN = 0.8, 0.95  # a projection alone learns little in so few steps
PLAIN: dict[str, Any] = {
    "hflip": 0.0,
    "crop_scale": 1.0,
    "color_jitter": 0.0,
    "grayscale": 0.0,
    "blur": 0.0,
    "low_resolution": 0.0,
    "auto_augment": "",
    "epochs": STEPS,
    "warmup_epochs": 0.0,
    "ema": 0.0,
    "resume": False,
}
OF_STAGE: dict[type, dict[str, Any]] = {
    PretrainConfig: {
        "dropout": 0.0,
        "drop_path": 0.0,
        "random_erasing": 0.0,
        "label_smoothing": 0.0,
        "start_size": 0,
        "closed_set_fraction": 0.0,
        "unlabelled": (),
    },
    FinetuneConfig: {"views": 1, "freeze_epochs": (), "cache": None},
}


@dataclass(frozen=True)
class DryRun:
    """What a stage did on a handful of identities, and what the whole of it will need."""

    images: int
    identities: int
    first_loss: float
    last_loss: float
    learned: bool  # the loss fell as it should on images that it sees in every step
    memory_mib: float
    seconds_a_step: float
    steps: int
    minutes: float  # of all steps and validations

    def text(self, stage: str) -> str:
        """Two sentences."""
        how = "falls as it should" if self.learned else "does NOT fall as it should"
        remedy = "" if self.learned else "; try another --lr, and look at the data (facemetric data check)"
        return (
            f"{stage}: the loss on {self.images} images of {self.identities} identities {how} in {STEPS} steps: "
            f"{self.first_loss:.3f} -> {self.last_loss:.3f}{remedy}\n"
            f"{stage}: {self.memory_mib:,.0f} MiB; {self.steps:,} steps of {self.seconds_a_step:.3f} s, with the "
            f"validation about {self.minutes:,.1f} minutes"
        )


def dry_run(config: PretrainConfig | FinetuneConfig, keep: Path) -> DryRun:
    """Try a stage; its weights after 20 steps go to the folder `keep`, for the stage after it to start from."""
    device = pick_device(config.device)
    split = read_split(config)
    train = with_at_least(split.train, 2)[0] if isinstance(config, FinetuneConfig) else split.train
    per_identity = config.images_per_identity if isinstance(config, FinetuneConfig) else IMAGES
    few = handful(train, HANDFUL * per_identity, per_identity, most=HANDFUL)
    losses, embedder = learn(plain(config, len(few)), few, keep, device)
    filling = handful(train, config.batch_size, per_identity)
    found = Measured()
    with tempfile.TemporaryDirectory() as folder, measuring(found):
        seconds = timed(replace(plain(config, config.batch_size), out=Path(folder) / "run"), filling, device)
    start = time.monotonic()
    embed_index(embedder, few)
    an_image = (time.monotonic() - start) / len(few)
    steps = steps_of(config, train) * config.epochs
    looks = config.epochs // config.validate_every + 1
    seen = len(split.val) * looks if split.val is not None else 0
    frozen = isinstance(config, FinetuneConfig) and config.freeze == ("backbone",)
    if isinstance(config, FinetuneConfig) and frozen:  # each image once, then its features
        seen = len(train) * config.views + (len(split.val) if split.val is not None else 0)
    first, last = losses[0], float(np.mean(losses[-3:]))
    return DryRun(
        len(few),
        len(few.identities),
        first,
        last,
        last <= (LEARNED_FROZEN if frozen else LEARNED) * first,
        found.peak_mib,
        seconds,
        steps,
        (steps * seconds + seen * an_image) / 60,
    )


def plain(config: Any, batch_size: int) -> Any:
    """The options without augmentation and other noise, on batches of this size."""
    chosen = PLAIN | OF_STAGE[type(config)] | {"batch_size": batch_size}
    if isinstance(config, FinetuneConfig):
        chosen["freeze"] = (widest(config.freeze),)  # the turn that takes most time and memory
    return replace(config, **chosen)


def handful(index: ImageIndex, images: int, per_identity: int, *, most: int = 0) -> ImageIndex:
    """At least so many images where there are so many, of the fewest identities (at most `most`) with at most
    `per_identity` of each; more of each where all identities together have fewer."""
    counts = index.counts()
    per_identity = max(per_identity, -(-images // (most or len(counts))))
    order = np.argsort(-np.minimum(counts, per_identity), kind="stable")
    total = np.minimum(counts[order], per_identity).cumsum()
    taken = order[: max(2, int(np.searchsorted(total, images)) + 1)][: most or None]
    rows = np.isin(index.identity, taken) & (places_within(index.identity) < per_identity)
    return index.select(rows)


def steps_of(config: PretrainConfig | FinetuneConfig, train: ImageIndex) -> int:
    """Steps of an epoch of the whole data."""
    if isinstance(config, FinetuneConfig):
        per_batch = min(config.batch_size // config.images_per_identity, len(train.identities))
        return IdentityBatches(train.identity, per_batch, config.images_per_identity, config.seed).steps
    labels = with_others(train, read_unlabelled(config))
    batch_size = min(config.batch_size, len(labels))
    return ShuffledBatches(labels, batch_size, config.seed, cap=config.max_per_identity).steps


def trainer_of(config: Any, index: ImageIndex, run: Run, device: torch.device) -> Trainer:
    """A training of the stage on these images alone, without validation."""
    split = Split(index, None, {"data": "", "split": ""})
    task: Any
    if isinstance(config, PretrainConfig):
        task = stage_one(config, split, run, device)
        parts = [(task.model, config.lr)]
    else:
        task = task_of(config, load_start(config, device), split, run, device)
        parts = task.parts()
    optimizer = make_optimizer(config, parts)
    scheduler = make_scheduler(config, optimizer, task.steps_per_epoch)
    return Trainer(task, run, optimizer, scheduler, settings_of(config), None, Amp(device, config.amp))


def over_all(figures: dict[str, float]) -> float:
    """The loss with the triplets that cost nothing in the mean: that over the others alone need not fall."""
    return figures["loss"] * figures.get("fraction_positive", 1.0)


def learn(config: Any, index: ImageIndex, keep: Path, device: torch.device) -> tuple[list[float], Embedder]:
    """The losses of STEPS steps on the same images, and the embedder after them, which `keep` holds then."""
    losses: list[float] = []
    run = Run(keep, config_toml="", resume=False)
    try:
        torch.manual_seed(config.seed)
        trainer = trainer_of(replace(config, out=keep), index, run, device)
        each_step(trainer, STEPS, lambda figures: losses.append(over_all(figures)))
        trainer.task.save(trainer.task.model, {})
    except TrainingError as error:
        raise TrainingError(f"the dry run stopped: {error}") from error
    finally:
        run.close()
    return losses, load_weights(run.best, device)


def timed(config: Any, index: ImageIndex, device: torch.device) -> float:
    """Seconds of a step of the full batch, the reading of its images included."""
    run = Run(config.out, config_toml="", resume=False)
    times: list[float] = []
    try:
        trainer = trainer_of(config, index, run, device)
        times.append(time.monotonic())
        each_step(trainer, TIMED + 1, lambda figures: times.append(time.monotonic()))
    finally:
        run.close()
    return float(np.median(np.diff(times)[1:]))


def each_step(trainer: Trainer, steps: int, after: Callable[[dict[str, float]], None]) -> None:
    """Take so many steps, over as many epochs as that needs."""
    taken = 0
    while taken < steps:
        trainer.task.train_mode(trainer.at.epoch)
        for batch in trainer.task.batches(trainer.at.epoch, 0):
            after(trainer.step(batch))
            taken += 1
            if taken == steps:
                return
        trainer.at.epoch, trainer.at.step = trainer.at.epoch + 1, 0
