"""Rules between options: what cannot work together, told before torch is imported."""

from __future__ import annotations

from importlib.util import find_spec
from typing import get_args

from facemetric.config.build import require
from facemetric.config.commands import ClusterConfig, VerifyConfig
from facemetric.config.fields import check_ranges
from facemetric.config.training import FinetuneConfig, Freeze, PretrainConfig, StageConfig
from facemetric.errors import ConfigError, plural


def check_stage(config: StageConfig) -> None:
    """Raise ConfigError for a number out of its range and for options that do not go together, before any file is
    read."""
    check_ranges(config)
    require(
        config.track == "off" or find_spec(config.track) is not None,
        f"--track {config.track} needs its package: pip install 'facemetric[{config.track}]'",
    )
    require(
        config.val_by == "identities" or config.val_identities is None,
        "give one of --val-identities and --val-by images",
    )
    require(
        config.microbatch != 1,
        "--microbatch is 1; a batch norm needs two images: choose 2 or more, or 0 for the whole batch",
    )
    require(
        not (config.compile and config.checkpoint_activations),
        "--compile and --checkpoint-activations do not go together: a compiled network counts its batches where "
        "activations are computed again; leave out one of the two",
    )
    require(
        config.augment_on == "cpu" or not config.auto_augment,
        f"--auto-augment is for single pictures of the CPU, and --augment-on is {config.augment_on}; leave out one of "
        "the two",
    )
    check_teacher(config)
    if isinstance(config, PretrainConfig):
        check_shards(config)
    if isinstance(config, FinetuneConfig):
        check_loss(config)
        check_freeze(config)
        require(
            not config.unlabelled or config.freeze == ("backbone",),
            "--unlabelled needs --freeze backbone in stage two: its positives are cached views of one image",
        )
        check_batch(config)
    require(bool(config.data), "no DATA was given; name an image folder, a csv or .tar files")


def check_teacher(config: StageConfig) -> None:
    """Raise ConfigError for options of a teacher that is not there, and where there is nothing to learn from."""
    for name in ("teacher_weight", "relation_weight", "label_weight"):
        value = getattr(config, name)
        require(
            0 <= value < float("inf"),
            f"--{name.replace('_', '-')} is {value}; it must be at least 0, and finite",
        )
    if not config.teacher:
        alone = isinstance(config, PretrainConfig) and bool(config.unlabelled)
        require(not alone, "--unlabelled needs --teacher, which alone knows such images")
        require(config.relation_weight == 0, "--relation-weight needs --teacher, whose cosines are followed")
        require(
            config.label_weight > 0, "--label-weight is 0, and no --teacher was given; name one, or raise it"
        )
    weights = config.teacher_weight + config.relation_weight + config.label_weight
    require(weights > 0, "there is nothing to learn from: raise --teacher-weight, or another of the weights")


def check_shards(config: PretrainConfig) -> None:
    """Raise ConfigError for a sample of a head that is not shared out, or with what needs all identities."""
    if config.head_sample < 1:
        require(
            config.head_shards,
            f"--head-sample is {config.head_sample}, and needs --head-shards, on one process too",
        )
        require(
            config.label_smoothing == 0,
            f"--label-smoothing is {config.label_smoothing}: it spreads the target over all identities, and with "
            f"--head-sample {config.head_sample} a step sees some; leave out one of the two",
        )
    require(
        not config.head_shards or config.label_weight > 0,
        "--head-shards is of the head, and with --label-weight 0 there is none; leave out one of the two",
    )


TRIPLET_OPTIONS = ("miner", "margin", "soft_margin", "distance")


def check_loss(config: FinetuneConfig) -> None:
    """Raise ConfigError for options of triplets where another loss of ours, or of a library, is asked for."""
    if config.loss == "triplet" or (":" in config.loss and not config.loss.startswith("pml:")):
        return
    for name in TRIPLET_OPTIONS:
        if getattr(config, name) != getattr(FinetuneConfig, name):
            raise ConfigError(
                f"--{name.replace('_', '-')} is an option of --loss=triplet, and --loss is {config.loss}; leave out "
                "one of the two (other losses have --loss-args)"
            )


def check_batch(config: FinetuneConfig) -> None:
    """Raise ConfigError where a batch holds no triplet, or a micro-batch nothing that a batch norm can use."""
    size, images = config.batch_size, config.images_per_identity
    require(
        size // images >= 2,
        f"--batch-size {size} holds {plural(size // images, 'identity', 'identities')} of {images} images; two "
        "are needed: raise --batch-size",
    )
    require(
        config.alike == 0 or 2 <= config.alike <= size // images,
        f"--alike is {config.alike}, and a batch has {size // images} identities: choose 2..{size // images}, or 0",
    )
    require(
        config.alike == 0 or config.freeze == ("backbone",),
        "--alike finds who looks alike from cached features, which need --freeze backbone; leave out one of the two",
    )
    require(
        config.families is None or config.alike > 0,
        "--families says who comes in one group, and --alike is 0: give the groups' size, such as --alike 8",
    )
    require(
        config.projection_init in ("identity", "refit") or config.embedding_size > 0,
        f"--embedding-size is 0, and --projection-init {config.projection_init} needs one: choose such as 128",
    )
    for name in ("penalty", "teacher", "constant"):
        option = f"refit_{name}"
        require(
            config.projection_init == "refit" or getattr(config, option) == getattr(FinetuneConfig, option),
            f"--refit-{name} is for --projection-init refit, and that is {config.projection_init}; leave out one",
        )
    require(
        config.refit_teacher == 0 or bool(config.teacher),
        "--refit-teacher needs --teacher: give a table of its embeddings, or leave it out",
    )


def check_freeze(config: FinetuneConfig) -> None:
    """Raise ConfigError where the epochs do not fit what is frozen in turn."""
    turns, given = config.freeze, config.freeze_epochs
    for name in ("compile", "checkpoint_activations"):
        require(
            not getattr(config, name) or turns != ("backbone",),
            f"--{name.replace('_', '-')} is for a backbone that trains, and --freeze backbone runs it once for its "
            "features; leave out one of the two",
        )
    require(bool(turns), f"--freeze is empty; choose from {', '.join(get_args(Freeze))}")
    require(
        len(given) == len(turns) - 1,
        f"--freeze has {len(turns)} turns and --freeze-epochs {len(given)} numbers; needed is one for each turn "
        "but the last",
    )
    require(all(n >= 1 for n in given), f"--freeze-epochs is {list(given)}; each must be at least 1")
    require(
        sum(given) < config.epochs,
        f"--freeze-epochs adds up to {sum(given)} of {config.epochs} --epochs; leave some to the last turn",
    )


def check_verify(config: VerifyConfig) -> None:
    """Raise ConfigError unless there are two images."""
    images = bool(config.image1 and config.image2)
    require(images, "verify needs two images: `facemetric verify A.jpg B.jpg --weights W`")


def check_cluster(config: ClusterConfig) -> None:
    """Raise ConfigError unless there is something to group, what embeds it, and a threshold."""
    require(bool(config.data or config.embeddings), "nothing to group: name images, or give --embeddings")
    wanted = "a weights folder, a run folder or a shipped name, such as faces-112"
    require(
        bool(config.weights or config.embeddings),
        f"no weights were given, which embed the images and hold a threshold for a FAR: give --weights, {wanted}",
    )
    require(
        bool(config.weights) or config.threshold is not None,
        f"no threshold: give --weights, which hold them by FAR ({wanted}), or --threshold",
    )
    if config.threshold is not None:
        require(
            -1 <= config.threshold <= 1, f"--threshold is {config.threshold}; it is a cosine, choose -1..1"
        )
