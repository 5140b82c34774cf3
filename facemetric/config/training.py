"""Options of the training stages, and of the demo that runs them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal, get_args

from facemetric.config.build import check_least, require

Amp = Literal["auto", "bfloat16", "float16", "off"]
Head = Literal["softmax", "arcface", "cosface"]
Freeze = Literal["backbone", "batchnorm", "none"]
ValBy = Literal["identities", "images"]
Init = Literal["identity", "pca", "lda", "random"]
Distance = Literal["squared", "euclidean", "cosine"]


@dataclass(frozen=True)
class StageConfig:
    """What both training stages share."""

    data: tuple[str, ...] = ()
    """Images: a folder of identity folders, a csv (path,identity) or .tar files; NAME=PATH names a source."""
    _: KW_ONLY
    val_identities: Path | None = None
    """Text file of the identities to validate on, one a line; they are never trained on."""
    val_fraction: float = 0.1
    """Share of the identities to validate on where no file names them, 0..1; 0 validates on none."""
    val_by: ValBy = "identities"
    """What --val-fraction is a share of: identities, or each identity's images (a closed set, such as digits)."""
    leave_out: Path | None = None
    """Text file of identities to leave out."""
    leave_out_images: Path | None = None
    """Text file of images to leave out, by their names in the data (`identity/image.jpg`)."""
    merge: Path | None = None
    """Text or csv file of identities that are one person, `a,b` a line."""
    case_twins: bool = False
    """Identities that differ in letter case alone (aB1, Ab1) are different people: one typed twice is an error else."""
    max_bad: float = 0.01
    """Share of unreadable images above which the job stops, 0..1; they are listed in bad_images.csv."""

    batch_size: int = 64
    """Images in a step."""
    optimizer: str = "sgd"
    """Any optimizer of timm, by its name there."""
    weight_decay: float = 5e-4
    """Weight decay of weight matrices; biases and norms have none."""
    momentum: float = 0.9
    """Momentum, where the optimizer has one."""
    scheduler: str = "cosine"
    """Any scheduler of timm but plateau, by its name there, stepped after every batch: step falls to a tenth after
    each third of the run, multistep after its half and its third quarter, poly in a straight line."""
    warmup_epochs: float = 1.0
    """Epochs of linear warm-up of the learning rate."""
    clip_grad: float = 5.0
    """Largest L2 norm of the gradient; 0 does not clip."""
    ema: float = 0.0
    """Decay of the moving average of the weights that is validated and kept, 0..1; 0 keeps the weights."""
    amp: Amp = "auto"
    """Mixed precision: bfloat16, float16 with a loss scaler, or off (float32); auto is bfloat16 on CUDA where the
    device has it, float16 elsewhere on CUDA, and off on a CPU."""

    image_size: int = 0
    """Side of the square picture that the network sees, pixels; 0 takes that of --weights, or else 96."""
    crop: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    """Shares of each picture's width and height cut off at the left, top, right and bottom; all 0 take those of
    --weights."""
    hflip: float = 0.5
    """Chance of a horizontal flip, 0..1."""
    crop_scale: float = 0.8
    """Smallest share of the picture's area that a random crop keeps, 0..1; 1 does not crop."""
    color_jitter: float = 0.2
    """Strength of brightness, contrast and saturation changes, 0..1."""
    grayscale: float = 0.1
    """Chance of a grey picture, 0..1."""
    blur: float = 0.0
    """Chance of a Gaussian blur, 0..1."""
    low_resolution: float = 0.0
    """Chance of a picture scaled down and up again, 0..1."""
    auto_augment: str = ""
    """A policy of timm, such as rand-m5-mstd0.5; empty for none."""

    seed: int = 0
    """Seed of everything random; the same seed gives the same numbers on one machine."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int = -1
    """Processes that read images; 0 reads in the training process, -1 takes half the cores (none of two), up to 8."""
    checkpoint_minutes: float = 5.0
    """Minutes between checkpoints inside an epoch; each epoch ends with one."""
    validate_every: int = 1
    """Epochs from one validation to the next; the last epoch is always validated."""
    resume: bool = False
    """Go on from the checkpoint in `out`."""


@dataclass(frozen=True)
class PretrainConfig(StageConfig):
    """Stage one: a backbone learns identities with cross-entropy."""

    _: KW_ONLY
    out: Path = Path("runs/pretrain")
    """Run folder: config.toml, log.jsonl, TensorBoard events, checkpoint, the best weights."""
    arch: str = "mobilenetv4_conv_small"
    """Any backbone of timm, by its name there."""
    arch_args: str = ""
    """Arguments for timm's backbone, as TOML: `channels = [16, 32, 64, 128], layers = [1, 1, 1, 1]`."""
    weights: str = ""
    """Weights to start from: a weights folder, a run folder or a shipped name; the classifier is new."""
    pretrained: bool = False
    """Start from timm's own weights for the architecture (downloads them)."""
    start_size: int = 0
    """Side in the first epoch; it grows to image_size in steps over 3/5 of the epochs. 0 starts with image_size."""
    embedding_size: int = 0
    """Size of a linear projection trained with the backbone; 0 takes the backbone's features as they are, or what
    --weights have."""

    teacher: tuple[str, ...] = ()
    """Another model, whose embeddings the student's follow: tables of DATA's images (.npz; NAME=PATH for NAME=DATA),
    or weights, which embed them once."""
    unlabelled: tuple[str, ...] = ()
    """Images that only the teacher speaks of: their folders are nobody's names. NAME=PATH names a source."""
    teacher_weight: float = 1.0
    """Weight of 1 - cosine between the student's and the teacher's embedding of an image."""
    relation_weight: float = 0.0
    """Weight of the mean squared difference between student's and teacher's cosines of a batch's pairs."""
    label_weight: float = 1.0
    """Weight of the cross-entropy of the labels beside the teacher; 0 learns from the teacher alone."""

    head: Head = "softmax"
    """Cross-entropy on plain logits, or with an additive angular (arcface) or cosine (cosface) margin."""
    margin: float = 0.2
    """Margin of arcface (radians) or cosface (cosine); it grows from 0 over the first third of training."""
    scale: float = 24.0
    """Length of the logits of arcface and cosface."""
    label_smoothing: float = 0.0
    """Share of the target spread over all identities, 0..1."""
    dropout: float = 0.0
    """Dropout of the features before the projection or the head, 0..1."""
    drop_path: float = 0.0
    """Stochastic depth of the backbone, where it has it, 0..1."""
    random_erasing: float = 0.0
    """Chance of an erased rectangle in a training image, 0..1."""
    max_per_identity: int = 0
    """Most images of an identity in an epoch, others each epoch, so that a few rich ones do not rule; 0 takes all."""
    closed_set_fraction: float = 0.02
    """Share of the training identities' images held back for closed-set accuracy, 0..1."""
    epochs: int = 30
    """Passes over the training images."""
    lr: float = 0.1
    """Highest learning rate."""


@dataclass(frozen=True)
class FinetuneConfig(StageConfig):
    """Stage two: a projection, or everything, learns distances from online triplets."""

    _: KW_ONLY
    out: Path = Path("runs/finetune")
    """Run folder: config.toml, log.jsonl, TensorBoard events, checkpoint, the better weights of start and end."""
    weights: str = ""
    """Weights to start from: a weights folder, a run folder or a shipped name."""
    freeze: tuple[Freeze, ...] = ("backbone",)
    """What keeps still: the backbone (its features are computed once), all but batchnorm layers, or none.
    Several take turns: batchnorm none trains the projection and batch norms first, then everything."""
    freeze_epochs: tuple[int, ...] = ()
    """Epochs of each of several --freeze but the last, which has the rest of --epochs."""
    embedding_size: int = 128
    """Numbers in an embedding; with --projection-init identity the weights decide."""
    projection_init: Init = "identity"
    """Start of the projection: identity (the weights' own embedding), pca or lda of the features, or random."""
    miner: str = "semihard"
    """all, semihard, hard, distance-weighted, or your own as package.module:function."""
    margin: float = 0.2
    """Margin between positive and negative distance, in units of --distance (squared: 0..4)."""
    soft_margin: bool = False
    """log(1 + exp(d_ap - d_an)) in place of the hinge; --margin is then not used."""
    distance: Distance = "squared"
    """Squared Euclidean distance of unit vectors (0..4), Euclidean (0..2) or cosine (0..2)."""
    images_per_identity: int = 4
    """Images of each identity in a batch."""
    views: int = 1
    """Cached copies of each image with --freeze backbone: the plain one and views - 1 augmented ones."""
    cache: Path | None = None
    """Folder of the cached features; `features` beside the run folder where none is named."""
    memory: int = 0
    """Embeddings of past batches to mine against as well (cross-batch memory); 0 for none."""
    microbatch: int = 0
    """Images in memory with their graph at once, at least two (--freeze batchnorm|none); 0: the whole batch."""
    batch_size: int = 512
    """Images in a step: batch_size / images_per_identity identities."""
    optimizer: str = "adamw"
    """Any optimizer of timm, by its name there."""
    weight_decay: float = 1e-4
    """Weight decay of weight matrices; biases and norms have none."""
    epochs: int = 20
    """Passes over the training images."""
    lr: float = 1e-3
    """Highest learning rate of the projection."""
    backbone_lr: float = 1e-4
    """Highest learning rate of the backbone's part that trains."""


@dataclass(frozen=True)
class DemoConfig:
    """The whole story on faces drawn by facemetric itself."""

    out: Path = Path("runs/demo")
    """Folder for the drawn faces, the runs and the result."""
    _: KW_ONLY
    identities: int = 300
    """People to draw; a fifth is only for the evaluation."""
    images: int = 12
    """Pictures of each."""
    epochs: int = 16
    """Passes of stage one."""
    seed: int = 0
    """Seed of the faces and of the training."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def check_stage(config: StageConfig) -> None:
    """Raise ConfigError for a number out of its range, before any file is read."""
    shares = [
        "val_fraction",
        "max_bad",
        "ema",
        "hflip",
        "crop_scale",
        "color_jitter",
        "grayscale",
        "blur",
        "low_resolution",
        "random_erasing",
        "label_smoothing",
        "dropout",
        "drop_path",
        "closed_set_fraction",
    ]
    for name in shares:
        value = getattr(config, name, 0.0)
        require(0 <= value <= 1, f"--{name.replace('_', '-')} is {value}; it is a share, choose 0..1")
    none = ("embedding_size", "microbatch", "memory", "margin", "clip_grad", "warmup_epochs", "weight_decay")
    least = dict.fromkeys((*none, "momentum", "checkpoint_minutes", "seed"), 0)
    least |= dict.fromkeys(("image_size", "start_size", "max_per_identity"), 0)
    least |= dict.fromkeys(("epochs", "views", "validate_every"), 1)
    least |= dict.fromkeys(("batch_size", "images_per_identity"), 2)  # batch norm and triplets need two
    check_least(config, least | {"workers": -1})
    for name in ("lr", "backbone_lr"):
        value = getattr(config, name, 1.0)
        require(
            0 < value < float("inf"), f"--{name.replace('_', '-')} is {value}; it must be above 0, and finite"
        )
    require(
        config.val_by == "identities" or config.val_identities is None,
        "give one of --val-identities and --val-by images",
    )
    if isinstance(config, PretrainConfig):
        check_teacher(config)
    if isinstance(config, FinetuneConfig):
        check_freeze(config)
        check_batch(config)
    require(bool(config.data), "no DATA was given; name an image folder, a csv or .tar files")


def check_teacher(config: PretrainConfig) -> None:
    """Raise ConfigError for options of a teacher that is not there, and where there is nothing to learn from."""
    for name in ("teacher_weight", "relation_weight", "label_weight"):
        value = getattr(config, name)
        require(
            0 <= value < float("inf"),
            f"--{name.replace('_', '-')} is {value}; it must be at least 0, and finite",
        )
    if not config.teacher:
        require(not config.unlabelled, "--unlabelled needs --teacher, who alone speaks of such images")
        require(config.relation_weight == 0, "--relation-weight needs --teacher, whose cosines are followed")
        require(config.label_weight > 0, "--label-weight is 0, and no --teacher was given; name one, or raise it")
    weights = config.teacher_weight + config.relation_weight + config.label_weight
    require(weights > 0, "there is nothing to learn from: raise --teacher-weight, or another of the weights")


def check_batch(config: FinetuneConfig) -> None:
    """Raise ConfigError where a batch holds no triplet, or a micro-batch nothing that a batch norm can use."""
    size, images = config.batch_size, config.images_per_identity
    require(
        size // images >= 2,
        f"--batch-size {size} holds {size // images} identities of {images} images; two are needed: raise --batch-size",
    )
    require(
        config.projection_init == "identity" or config.embedding_size > 0,
        f"--embedding-size is 0, and --projection-init {config.projection_init} needs one: choose such as 128",
    )
    require(
        config.microbatch != 1,
        "--microbatch is 1; a batch norm needs two images: choose 2 or more, or 0 for the whole batch",
    )


def check_freeze(config: FinetuneConfig) -> None:
    """Raise ConfigError where the epochs do not fit what is frozen in turn."""
    turns, given = config.freeze, config.freeze_epochs
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
