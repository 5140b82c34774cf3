"""What both stages need beside the loop: where they start, augmentation, validation, and what they leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from facemetric.config import FinetuneConfig, PretrainConfig, StageConfig, config_dict
from facemetric.data.bad_images import BadImageLog, note_bad
from facemetric.data.index import ImageIndex
from facemetric.data.transforms import Augment
from facemetric.errors import ConfigError
from facemetric.evaluation.all_pairs import verify_all_pairs
from facemetric.evaluation.embed import embed_index
from facemetric.evaluation.retrieval import leave_one_out
from facemetric.model.embedder import Embedder, check_backbone
from facemetric.model.weights import load_weights, save_weights
from facemetric.model.weights_folder import provenance
from facemetric.training import distributed
from facemetric.training.run import Run
from facemetric.training.split import Split
from facemetric.training.task import Settings

VAL_FARS = (1e-2, 1e-3)


CHANGED = {
    "split": "a list of this run (--merge, --leave-out, --leave-out-images or --val-identities) names others: its "
    "people or images"
}


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
        data=split.origin["data"],
        split=split.origin["split"],
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
    found = verify_all_pairs(embeddings, identities, fars=VAL_FARS)
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
