"""What both stages need before the loop: data, optimizer, schedule, validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from facemetric.config import FinetuneConfig, PretrainConfig, StageConfig, config_dict
from facemetric.data.batches import places_within
from facemetric.data.identities import apply_lists, check_identities, read_identity_list, unknown_note
from facemetric.data.index import ImageIndex, read_index
from facemetric.data.loader import BadImageLog
from facemetric.data.transforms import Augment
from facemetric.errors import ConfigError, DataError, did_you_mean
from facemetric.evaluation.allpairs import verify_all_pairs
from facemetric.evaluation.inference import embed_index
from facemetric.evaluation.neighbours import leave_one_out
from facemetric.model.embedder import Embedder, check_backbone
from facemetric.model.weights import load_weights, save_weights
from facemetric.training import distributed
from facemetric.training.distributed import say
from facemetric.training.run import Run, provenance
from facemetric.training.task import Settings

FARS = (1e-2, 1e-3)
SCHEDULERS = ("cosine", "tanh", "step", "multistep", "poly", "constant", "wsd", "rsqrt")  # to choose from
SECOND_ORDER = ("adahessian",)  # needs second derivatives, which the loop does not take
STEPS, MILESTONES = 3, (0.5, 0.75)  # where `step` and `multistep` fall to a tenth, in shares of the run
# What read_split reads: with these of a training's options its images can be split again.
SPLIT_OPTIONS = (
    "data",
    "merge",
    "leave_out",
    "leave_out_images",
    "case_twins",
    "val_identities",
    "val_fraction",
    "val_by",
    "seed",
)
CHANGED = {
    "split": "a list of this run (--merge, --leave-out, --leave-out-images or --val-identities) names others: its "
    "people or images"
}


@dataclass(frozen=True)
class Split:
    """Images to train on, and images to validate on, never trained on (None where there are none)."""

    train: ImageIndex
    val: ImageIndex | None
    fingerprint: str  # of everything that was read, before it was split
    closed: bool = False  # the validation images are of identities that are trained on

    @cached_property
    def origin(self) -> dict[str, str]:
        """What a run that goes on must find again: what was read, and what the lists made of it."""
        parts = [part.fingerprint for part in (self.train, self.val) if part is not None]
        return {"data": self.fingerprint, "split": hashlib.sha256(" ".join(parts).encode()).hexdigest()}


def read_split(config: StageConfig) -> Split:
    """Read DATA, merge, leave out, and split off the validation identities; says what it did in one line each."""
    index = read_index(config.data)
    for note in index.notes:
        say(note)
    fingerprint = index.fingerprint
    index = apply_lists(index, config.merge, config.leave_out, config.leave_out_images, say)
    check_identities(index, allow_case_twins=config.case_twins)
    val = None
    if config.val_identities:
        parted = index.split_identities(read_identity_list(config.val_identities), skip_unknown=True)
        index, val = parted.rest, parted.picked
        if parted.unknown:
            say(f"validation identities{unknown_note(parted.unknown, config.val_identities)}")
        if len(val) == 0:
            raise DataError(
                f"none of the identities of {config.val_identities} is in the data; mend the names"
            )
    elif config.val_fraction > 0 and config.val_by == "images":
        held = hold_back(index, config.val_fraction, config.seed)
        index, val = index.select(~held), index.select(held)
    elif config.val_fraction > 0:
        index, val = split_fraction(index, config.val_fraction, config.seed)
    check_identities(index, allow_case_twins=True)
    if val is not None:
        check_validation(val)
    say(f"training on {len(index):,} images of {len(index.identities):,} identities")
    if val is not None:
        whose = "of these" if config.val_by == "images" else "other"
        say(f"validating on {len(val):,} images of {len(val.identities):,} {whose} identities")
    return Split(index, val, fingerprint, closed=config.val_by == "images")


def load_start(config: PretrainConfig | FinetuneConfig, device: torch.device | str = "cpu") -> Embedder:
    """The embedder of --weights, with the crop and the size of picture that the options ask for."""
    embedder = load_weights(config.weights)
    pre, side = embedder.preprocess, config.image_size
    embedder.preprocess = replace(
        pre, crop=config.crop if any(config.crop) else pre.crop, size=(side, side) if side else pre.size
    )
    if embedder.preprocess.size != pre.size:
        check_backbone(embedder.backbone, embedder.arch, embedder.preprocess.size)
    return embedder.to(device)


def split_fraction(index: ImageIndex, fraction: float, seed: int) -> tuple[ImageIndex, ImageIndex]:
    """(train, validation): a share of the identities, drawn from the seed; at least two, and two stay."""
    total = len(index.identities)
    if total < 4:
        raise DataError(
            f"{total} identities cannot be split into training and validation (2 + 2 are needed); "
            "add identities, or set --val-fraction 0"
        )
    count = min(max(2, round(fraction * total)), total - 2)
    picked = np.zeros(total, bool)
    # Identities with two images and more first: verification needs genuine pairs.
    order = np.random.default_rng([seed, 7]).permutation(total)
    order = order[np.argsort(index.counts()[order] < 2, kind="stable")]
    picked[order[:count]] = True
    mask = picked[index.identity]
    return index.select(~mask), index.select(mask)


def hold_back(index: ImageIndex, fraction: float, seed: int) -> np.ndarray:
    """Mask (N,) of images kept from training, at most half of an identity's."""
    rng = np.random.default_rng([seed, 11])
    order = rng.permutation(len(index))
    identity = index.identity[order]
    allowed = order[places_within(identity) < index.counts()[identity] // 2]
    held = np.zeros(len(index), bool)
    held[rng.permutation(allowed)[: round(fraction * len(index))]] = True
    return held


def check_validation(val: ImageIndex) -> None:
    """Raise DataError unless there are genuine and impostor pairs to validate on."""
    if len(val.identities) < 2 or val.counts().max() < 2:
        raise DataError(
            f"the {len(val.identities)} validation identities have {len(val)} images; at least two identities, one "
            "with two images, are needed: name others with --val-identities, or set --val-fraction 0"
        )


def note_bad(log: BadImageLog, index: ImageIndex, bad: Iterable[tuple[int, str]]) -> None:
    """List the bad rows of an index; raises DataError above the share that the log allows."""
    for row, reason in bad:
        log.add(index.name(row), reason)


def same_origin(state: dict[str, Any], **now: str) -> None:
    """Raise ConfigError where a run began with other data, lists or weights than it has now (`data="a1b2..."`)."""
    for what, mark in now.items():
        if state.get(what, mark) != mark:
            raise ConfigError(
                f"{CHANGED.get(what, f'the {what} of this run')} changed since it began; resume with those it was "
                "started with, or name another --out"
            )


def save_best(
    run: Run, embedder: Embedder, split: Split, config: StageConfig, metrics: dict[str, float]
) -> None:
    """Write an embedder as the run's best weights, with where they come from; process 0 alone does."""
    if distributed.rank() > 0:
        return
    origin = provenance(
        data=split.fingerprint,
        images=len(split.train),
        identities=len(split.train.identities),
        options=config_dict(config),
    )
    save_weights(run.best, embedder, provenance=origin, metrics=metrics)


class OpenSet:
    """Validation by identities never trained on: verification over all pairs, and nearest neighbours."""

    def __init__(self, val: ImageIndex | None, *, workers: int, bad_images: BadImageLog) -> None:
        self.val, self.workers, self.bad_images = val, workers, bad_images

    def __call__(self, embedder: Embedder) -> dict[str, float]:
        """TAR at FAR 1e-2 and 1e-3, EER and leave-one-out 1-NN accuracy, all 0..1; {} without validation data."""
        if self.val is None:
            return {}
        return open_set_figures(*self.embeddings(embedder))

    def embeddings(self, embedder: Embedder) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (N, D) and identities (N,) of the validation images that can be read."""
        assert self.val is not None
        embedded = embed_index(embedder, self.val, workers=self.workers, progress="validating")
        note_bad(self.bad_images, self.val, embedded.bad)
        return embedded.table.embeddings, embedded.table.identities


def open_set_figures(embeddings: np.ndarray, identities: np.ndarray) -> dict[str, float]:
    """The validation figures of embeddings (N, D) and identities (N,); no TAR at a FAR that they cannot support."""
    found = verify_all_pairs(embeddings, identities, fars=FARS)
    figures = {f"val_tar_at_far_{p.wanted:g}": float(p.tar) for p in found.points if p.supported}
    figures["val_eer"] = float(found.eer)
    figures["val_auc"] = float(found.auc)
    figures["val_knn_accuracy"] = leave_one_out(embeddings, identities, knn=(1,), recall=(1,)).knn[1]
    return figures


def augment_of(config: StageConfig) -> Augment:
    """The augmentation that the options describe."""
    return Augment(
        crop_scale=(max(config.crop_scale, 1e-3), 1.0),
        hflip=config.hflip,
        color_jitter=config.color_jitter,
        auto_augment=config.auto_augment,
        grayscale=config.grayscale,
        blur=config.blur,
        low_resolution=config.low_resolution,
    )


def settings_of(config: Any) -> Settings:
    """The loop's numbers among a stage's options."""
    return Settings(
        epochs=config.epochs,
        clip_grad=config.clip_grad,
        ema=config.ema,
        amp=config.amp,
        seed=config.seed,
        checkpoint_minutes=config.checkpoint_minutes,
        validate_every=config.validate_every,
    )


def make_optimizer(config: StageConfig, parts: list[tuple[nn.Module, float]]) -> torch.optim.Optimizer:
    """timm's optimizer over modules with a learning rate each; vectors (biases, norms) have no weight decay.

    Raises ConfigError for a name that timm does not know."""
    known = [str(name) for name in list_optimizers() if name not in SECOND_ORDER]
    if config.optimizer not in known:
        raise ConfigError(f"unknown optimizer {config.optimizer!r}{did_you_mean(config.optimizer, known)}")
    groups = []
    for module, lr in parts:
        trained = [p for p in module.parameters() if p.requires_grad]
        groups.append(
            {"params": [p for p in trained if p.ndim > 1], "lr": lr, "weight_decay": config.weight_decay}
        )
        groups.append({"params": [p for p in trained if p.ndim <= 1], "lr": lr, "weight_decay": 0.0})
    groups = [group for group in groups if group["params"]]
    name = config.optimizer
    if name in ("sgd", "nesterov") and config.momentum == 0:
        name = "momentum"  # Nesterov's needs one
    try:
        return create_optimizer_v2(
            groups,
            opt=name,
            lr=parts[0][1],
            weight_decay=config.weight_decay,
            momentum=config.momentum,
        )
    except (ValueError, TypeError, AssertionError, ImportError, RuntimeError) as error:
        raise ConfigError(
            f"timm cannot make the optimizer {name} ({str(error).strip()}); choose another --optimizer"
        ) from error


def make_scheduler(config: Any, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Scheduler:
    """timm's schedule, stepped after every batch. Raises ConfigError for a name that timm does not know.

    timm's own numbers for `step` and `multistep` are meant for 300 epochs, and its one rate is a factor for these
    two and the power for `poly`: here they follow the length of the run, and `poly` is a straight line to 0."""
    name, warmup = config.scheduler, min(config.warmup_epochs, config.epochs / 2)
    # An older timm has not all of them.
    hint = did_you_mean(name, [known for known in SCHEDULERS if known != name])
    if name == "plateau":
        raise ConfigError(
            "--scheduler plateau waits for the validation, and timm does not keep how long it has waited, so a "
            "resumed run would go another way; choose a schedule of the steps, such as cosine"
        )
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=name,
            num_epochs=max(1, config.epochs),
            warmup_epochs=warmup,  # type: ignore[arg-type]
            warmup_lr=1e-6,
            warmup_prefix=False,
            min_lr=0.0,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
            decay_rate=1.0 if name == "poly" else 0.1,
            decay_milestones=[share * config.epochs for share in MILESTONES],  # type: ignore[misc]
            **({"decay_epochs": max(1, config.epochs) / STEPS} if name == "step" else {}),
        )
    except (AssertionError, ValueError, TypeError) as error:
        raise ConfigError(f"timm cannot make the schedule {name!r} ({error}){hint}") from error
    if scheduler is None:
        raise ConfigError(f"unknown scheduler {name!r}{hint}")
    return scheduler
