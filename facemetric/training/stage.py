"""What both stages need beside the loop: where they start, augmentation, validation, and what they leave."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from typing import Any

import timm
import torch
from torch import nn

from facemetric.config import FinetuneConfig, PretrainConfig, StageConfig, check_stage, config_dict
from facemetric.data.images import Preprocess
from facemetric.data.transforms import Augment, train_transform
from facemetric.errors import ConfigError
from facemetric.mining.miners import resolve_miner
from facemetric.model.embedder import Embedder, build_embedder, check_arch, check_backbone
from facemetric.model.weights import load_weights, save_weights
from facemetric.model.weights_folder import provenance
from facemetric.training import distributed
from facemetric.training.distributed import say
from facemetric.training.optim import make_optimizer, make_scheduler
from facemetric.training.run import Run
from facemetric.training.split import Split
from facemetric.training.task import Settings

IMAGE_SIZE = 96  # pixels, where neither an option nor weights name it


def start_embedder(config: PretrainConfig) -> Embedder:
    """A new embedder, or that of --weights: then architecture, projection and, where no other are asked for, the
    picture's size and crop are theirs. Raises ConfigError where another architecture or projection is asked for."""
    if not config.weights:
        return build_embedder(
            config.arch,
            preprocess=new_preprocess(config),
            arch_args=parse_arch_args(config.arch_args),
            embedding_size=config.embedding_size,
            dropout=config.dropout,
            drop_path=config.drop_path,
            pretrained=config.pretrained,
            neck=True,
        )
    embedder = load_start(config)
    check_same_network(config, embedder)
    embedder.dropout.p = config.dropout
    say(
        f"starting from {config.weights}: {embedder.arch}, {embedder.preprocess.size[0]} px, "
        f"embeddings of {embedder.embedding_size}; its classifier is replaced by a new one"
    )
    return embedder


def new_preprocess(config: PretrainConfig) -> Preprocess:
    """How a new network sees pictures: as ours do, or with --pretrained as those that its weights were trained on."""
    side = config.image_size or IMAGE_SIZE
    plain = Preprocess(size=(side, side), crop=config.crop)
    known = timm.get_pretrained_cfg(config.arch) if config.pretrained else None
    if known is None:
        return plain
    seen = {"mean": known.mean, "std": known.std, "interpolation": known.interpolation}
    return Preprocess.from_dict(plain.to_dict() | seen)


def check_same_network(config: PretrainConfig, embedder: Embedder) -> None:
    """Raise ConfigError where the options ask for a network that the embedder of --weights is not."""
    args, embedding = parse_arch_args(config.arch_args), embedder.embedding_size
    known = {
        "arch": (embedder.arch, config.arch in (embedder.arch, PretrainConfig.arch)),
        "arch_args": (embedder.model_args or "none", args.items() <= embedder.model_args.items()),
        "embedding_size": (embedding, config.embedding_size in (0, embedding)),
    }
    for name in ("drop_path", "pretrained"):
        if getattr(config, name):
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} is for a new network; leave it out, or --weights {config.weights}")
    for name, (has, fits) in known.items():
        if not fits:
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{option} is {getattr(config, name)}, but {config.weights} has {has}; leave out {option}, or --weights"
            )


def parse_arch_args(text: str) -> dict[str, Any]:
    """The arguments in `a = 1, b = [2, 3]`. Raises ConfigError where it is not TOML."""
    try:
        return tomllib.loads(f"args = {{{text}}}")["args"]
    except (ValueError, RecursionError) as error:  # tomllib's own, or a number too long
        raise ConfigError(
            f"--arch-args {text!r} is not TOML ({error}); needed is such as 'layers = [1, 1, 1, 1]'"
        ) from error


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


def check_training(config: StageConfig) -> None:
    """Raise ConfigError for a number out of its range, or a name of something that is not there."""
    check_stage(config)
    train_transform(Preprocess(crop=config.crop), augment_of(config))
    make_scheduler(config, make_optimizer(config, [(nn.Linear(1, 1), 1.0)]), 1)
    if isinstance(config, FinetuneConfig):
        resolve_miner(config.miner)
    elif isinstance(config, PretrainConfig):
        parse_arch_args(config.arch_args)
        check_arch(config.arch)
