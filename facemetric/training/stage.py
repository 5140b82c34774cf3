"""What both stages need beside the loop: where they start, augmentation, validation, and what they leave."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import timm
import torch

from facemetric import distributed
from facemetric.config import FinetuneConfig, PretrainConfig, StageConfig, check_stage, config_dict, require
from facemetric.data.images import Preprocess
from facemetric.data.index import ImageIndex
from facemetric.data.transforms import Augment, Transform, train_transform
from facemetric.distributed import say
from facemetric.errors import ConfigError
from facemetric.evaluation.audit.seen import (
    keep_training_images,
    read_training_images,
    training_images_seen,
)
from facemetric.machine import pick_workers
from facemetric.mining.losses import Loss, LossOptions, resolve_loss
from facemetric.mining.mine import Margin
from facemetric.model.embedder import Embedder, build_embedder, check_arch, check_backbone
from facemetric.model.faster import checkpoint_activations, compile_backbone
from facemetric.model.heads import check_head
from facemetric.model.sharded_head import check_by_columns
from facemetric.model.weights.folder import FACES, find_weights, provenance
from facemetric.model.weights.save_load import load_embedder, save_weights
from facemetric.training.run.run import Run
from facemetric.training.shards import check_rows_apart
from facemetric.training.split import SPLIT_OPTIONS, Split
from facemetric.training.step.optim import check_optimizer, check_scheduler
from facemetric.training.task import Settings

IMAGE_SIZE = 96  # pixels, where neither an option nor weights name it
Config = TypeVar("Config", PretrainConfig, FinetuneConfig)


@dataclass(frozen=True)
class Setup(Generic[Config]):
    """What the options of a stage ask for, checked and resolved once, before any image is read."""

    config: Config
    settings: Settings
    augment: Augment
    arch_args: dict[str, Any]  # of a new network
    head_args: dict[str, Any] = field(default_factory=dict)  # of stage one
    loss: Loss | None = None  # of stage two

    def transform(self, preprocess: Preprocess) -> Transform:
        """The training transform for pictures of this kind."""
        return train_transform(preprocess, self.augment)


def check_training(config: Config) -> Setup[Config]:
    """Resolve the options. Raises ConfigError for a number out of its range, or a name of something that is not
    there."""
    check_stage(config)
    check_optimizer(config.optimizer)
    check_scheduler(config.scheduler)
    augment = augment_of(config)
    train_transform(Preprocess(crop=config.crop), augment)  # timm reads the policy of --auto-augment
    arch_args: dict[str, Any] = {}
    head_args: dict[str, Any] = {}
    loss = None
    if isinstance(config, PretrainConfig):
        head_args = parse_arguments("--head-args", config.head_args, "centres = 3")
        check_head(config.head, head_args)
        if config.head_shards:
            check_by_columns(config.head)
            check_rows_apart(config)
        arch_args = parse_arguments("--arch-args", config.arch_args, "layers = [1, 1, 1, 1]")
        check_arch(config.arch)
    else:
        margin: Margin = "soft" if config.soft_margin else config.margin
        arguments = parse_arguments("--loss-args", config.loss_args, "temperature = 0.07")
        options = LossOptions(config.miner, margin, config.distance, config.seed, arguments=arguments)
        loss = resolve_loss(config.loss, options)
        require(
            loss.remembers or config.memory == 0,
            f"--memory mines triplets against past batches, or pairs, and --loss is {config.loss}, which sees one "
            "batch; leave out one of the two",
        )
    return Setup(config, settings_of(config), augment, arch_args, head_args, loss)


def start_embedder(setup: Setup[PretrainConfig]) -> Embedder:
    """A new embedder, or that of --weights: then architecture, projection and, where no other are asked for, the
    picture's size and crop are theirs. Raises ConfigError where another architecture or projection is asked for."""
    config = setup.config
    if not config.weights:
        embedder = build_embedder(
            config.arch,
            preprocess=new_preprocess(config),
            arch_args=setup.arch_args,
            embedding_size=config.embedding_size,
            dropout=config.dropout,
            drop_path=config.drop_path,
            pretrained=config.pretrained,
            neck=True,
        )
        embedder.pictures = FACES if config.align else ""
        return faster(config, embedder)
    embedder = load_start(config)
    check_same_network(config, setup.arch_args, embedder)
    embedder.dropout.p = config.dropout
    say(
        f"starting from {config.weights}: {embedder.arch}, {embedder.preprocess.size[0]} px, "
        f"embeddings of {embedder.embedding_size}; its classifier is replaced by a new one"
    )
    return embedder


def faster(config: StageConfig, embedder: Embedder) -> Embedder:
    """The embedder with its backbone compiled, or its activations computed again, where the options ask for it."""
    if config.checkpoint_activations:
        checkpoint_activations(embedder)
    if config.compile:
        say("compiling the backbone: the first step of each picture size waits, for minutes on few cores")
        compile_backbone(embedder)
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


def check_same_network(config: PretrainConfig, args: dict[str, Any], embedder: Embedder) -> None:
    """Raise ConfigError where the options ask for a network that the embedder of --weights is not."""
    embedding = embedder.embedding_size
    known = {
        "arch": (embedder.arch, config.arch in (embedder.arch, PretrainConfig.arch)),
        "arch_args": (embedder.model_args or "none", args.items() <= embedder.model_args.items()),
        "embedding_size": (embedding, config.embedding_size in (0, embedding)),
    }
    for name in ("drop_path", "pretrained"):
        if getattr(config, name):
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} is for a new network; leave it out, or --weights")
    for name, (has, fits) in known.items():
        if not fits:
            option = "--" + name.replace("_", "-")
            raise ConfigError(
                f"{option} is {getattr(config, name)}, but {config.weights} has {has}; leave out {option}, or --weights"
            )


def parse_arguments(option: str, text: str, example: str) -> dict[str, Any]:
    """The arguments in `a = 1, b = [2, 3]`. Raises ConfigError where it is not TOML."""
    try:
        return tomllib.loads(f"args = {{{text}}}")["args"]
    except (ValueError, RecursionError) as error:  # tomllib's own, or a number too long
        raise ConfigError(
            f"{option} {text!r} is not TOML ({error}); needed is such as '{example}'"
        ) from error


def load_start(config: PretrainConfig | FinetuneConfig, device: torch.device | str = "cpu") -> Embedder:
    """The embedder of --weights, with the crop and the size of picture that the options ask for."""
    embedder = load_embedder(config.weights)
    pre, side = embedder.preprocess, config.image_size
    embedder.preprocess = replace(
        pre, crop=config.crop if any(config.crop) else pre.crop, size=(side, side) if side else pre.size
    )
    if embedder.preprocess.size != pre.size:
        check_backbone(embedder.backbone, embedder.arch, embedder.preprocess.size)
    embedder.pictures = FACES if config.align else embedder.pictures
    return faster(config, embedder).to(device)


def same_origin(run: Run, state: dict[str, Any], origin: dict[str, str]) -> None:
    """Raise ConfigError where a run began with other data, lists or weights than it has now (`data="a1b2..."`)."""
    for what, mark in origin.items():
        if state.get(what, mark) == mark:
            continue
        names = [name for name in run.changed if name in SPLIT_OPTIONS] if what == "split" else []
        if names:
            flags = ", ".join(f"--{name.replace('_', '-')} ({run.changed[name]})" for name in names)
            raise ConfigError(
                f"{flags} of this run changed, and with it the images that it trains on; resume with the options it "
                "was started with, or name another --out"
            )
        subject = "a list or the people or images that it names" if what == "split" else f"the {what}"
        raise ConfigError(
            f"{subject} of this run changed since it began; resume with those it was started with, or name "
            "another --out"
        )


def save_best(
    run: Run,
    embedder: Embedder,
    split: Split,
    config: StageConfig,
    metrics: dict[str, float],
    *,
    unlabelled: int = 0,
) -> None:
    """Write an embedder as the run's best weights, with where they come from; process 0 alone does. `unlabelled`:
    images that it was trained on beside those of the split."""
    if distributed.rank() > 0:
        return
    origin = provenance(
        data=split.origin.data,
        split=split.origin.split,
        images=len(split.train) + unlabelled,
        identities=len(split.train.identities),
        options=config_dict(config),
    )
    save_weights(run.best, embedder, provenance=origin, metrics=metrics)


def warn_of_seen(weights: str, index: ImageIndex, workers: int) -> None:
    """Say how much of the images the weights were trained on, where they keep hashes of their training images."""
    if distributed.rank() == 0:
        seen = training_images_seen(find_weights(weights), index, workers=pick_workers(workers))
        if seen is None:
            say(f"no hashes of training images are kept with {weights}: whether they saw these is not known")
        elif warning := seen.text(weights):
            say(warning)


def keep_hashes(run: Run, index: ImageIndex, weights: str, workers: int) -> None:
    """Write hashes of the training images beside the run's best weights, with those of the weights it began with."""
    if distributed.rank() == 0:
        before = read_training_images(find_weights(weights)) if weights else None
        keep_training_images(run.best, index, before=before, workers=pick_workers(workers))


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
        on_device=config.augment_on == "device",
    )


def settings_of(config: PretrainConfig | FinetuneConfig) -> Settings:
    """The loop's numbers among a stage's options."""
    return Settings(
        epochs=config.epochs,
        clip_grad=config.clip_grad,
        ema=config.ema,
        amp=config.amp,
        seed=config.seed,
        checkpoint_minutes=config.checkpoint_minutes,
        validate_every=config.validate_every,
        max_steps=config.max_steps,
        batch_size=config.batch_size,
        microbatch=None
        if isinstance(config, FinetuneConfig) and config.freeze == ("backbone",)
        else config.microbatch,
        recomputed=config.checkpoint_activations,
    )
