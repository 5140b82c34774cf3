"""Options of the training stages, and of the demo that runs them."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from facemetric.config.fields import (
    AT_LEAST_0,
    AT_LEAST_1,
    AT_LEAST_2,
    AUGMENTATION,
    COMMON,
    DATA,
    FOLDER,
    MODEL,
    OPTIMISATION,
    POSITIVE,
    POSITIVE_SHARE,
    RATE,
    RUN,
    SEED,
    SHARE,
    VALIDATION,
    WORKERS,
    Range,
)

Amp = Literal["auto", "bfloat16", "float16", "off"]
AugmentOn = Literal["cpu", "device"]
Freeze = Literal["backbone", "batchnorm", "none"]
ValBy = Literal["identities", "images"]
BestBy = Literal["tar@0.01", "tar@0.001", "eer", "auc", "knn", "last"]
Init = Literal["identity", "refit", "pca", "lda", "random"]
Track = Literal["off", "wandb", "mlflow", "trackio"]
Distance = Literal["squared", "euclidean", "cosine"]


@dataclass(frozen=True)
class StageConfig:
    """What both training stages share."""

    data: Annotated[tuple[str, ...], COMMON] = ()
    """Images: a folder of identity folders, a csv (path,identity) or .tar files; NAME=PATH names a source."""
    _: KW_ONLY
    val_identities: Annotated[Path | None, VALIDATION] = None
    """Text file of the identities to validate on, one a line; they are never trained on."""
    val_fraction: Annotated[float, VALIDATION, SHARE] = 0.1
    """Share of the identities to validate on where no file names them, 0..1; 0 validates on none."""
    val_by: Annotated[ValBy, VALIDATION] = "identities"
    """What --val-fraction is a share of: identities, or each identity's images (a closed set, such as digits)."""
    unlabelled: Annotated[tuple[str, ...], DATA] = ()
    """Images without identities: both stages learn them from --teacher; in stage two each is a person of its own."""
    teacher: Annotated[tuple[str, ...], DATA] = ()
    """Another model to follow: .npz tables of its embeddings of DATA's images (NAME=PATH for NAME=DATA), or weights."""
    teacher_weight: Annotated[float, OPTIMISATION, AT_LEAST_0] = 1.0
    """Weight of 1 - cosine between the student's and the teacher's embedding of an image."""
    relation_weight: Annotated[float, OPTIMISATION, AT_LEAST_0] = 0.0
    """Weight of the mean squared difference between student's and teacher's cosines of a batch's pairs."""
    label_weight: Annotated[float, OPTIMISATION, AT_LEAST_0] = 1.0
    """Weight of the labels (the cross-entropy, stage two's --loss) beside the teacher; 0 learns from it alone."""
    leave_out: Annotated[Path | None, DATA] = None
    """Text file of identities to leave out."""
    leave_out_images: Annotated[Path | None, DATA] = None
    """Text file of images to leave out, by their names in the data (`identity/image.jpg`)."""
    merge: Annotated[Path | None, DATA] = None
    """Text or csv file of identities that are one person, `a,b` a line."""
    case_twins: Annotated[bool, DATA] = False
    """Identities that differ in letter case alone (aB1, Ab1) are different people: one typed twice is an error else."""
    align: Annotated[bool, DATA] = False
    """Find the faces of photographs first, once, into `faces` in the run folder; aligned crops stay where they are."""
    max_bad: Annotated[float, DATA, SHARE] = 0.01
    """Share of unreadable images above which the job stops, 0..1; they are listed in bad_images.csv."""

    batch_size: Annotated[int, COMMON, AT_LEAST_2] = 64
    """Images in a step."""
    optimizer: Annotated[str, OPTIMISATION] = "sgd"
    """Any optimizer of timm, by its name there."""
    weight_decay: Annotated[float, OPTIMISATION, AT_LEAST_0] = 5e-4
    """Weight decay of weight matrices; biases and norms have none."""
    momentum: Annotated[float, OPTIMISATION, AT_LEAST_0] = 0.9
    """Momentum, where the optimizer has one."""
    scheduler: Annotated[str, OPTIMISATION] = "cosine"
    """Any scheduler of timm but plateau: cosine, step (a tenth each third of the run), multistep, poly (a line)."""
    warmup_epochs: Annotated[float, OPTIMISATION, AT_LEAST_0] = 1.0
    """Epochs of linear warm-up of the learning rate."""
    clip_grad: Annotated[float, OPTIMISATION, AT_LEAST_0] = 5.0
    """Largest L2 norm of the gradient; 0 does not clip."""
    ema: Annotated[float, OPTIMISATION, SHARE] = 0.0
    """Decay of the moving average of the weights that is validated and kept, 0..1; 0 keeps the weights."""
    amp: Annotated[Amp, OPTIMISATION] = "auto"
    """Mixed precision; off is float32, auto is off on a CPU, and on CUDA bfloat16, or float16 where it has none."""

    image_size: Annotated[int, MODEL, AT_LEAST_0] = 0
    """Side of the square picture that the network sees, pixels; 0 takes that of --weights, or else 96."""
    crop: Annotated[tuple[float, float, float, float], MODEL] = (0.0, 0.0, 0.0, 0.0)
    """Shares of a picture cut off at the left, top, right and bottom; all 0 take those of --weights."""
    hflip: Annotated[float, AUGMENTATION, SHARE] = 0.5
    """Chance of a horizontal flip, 0..1."""
    crop_scale: Annotated[float, AUGMENTATION, SHARE] = 0.8
    """Smallest share of the picture's area that a random crop keeps, 0..1; 1 does not crop."""
    color_jitter: Annotated[float, AUGMENTATION, SHARE] = 0.2
    """Strength of brightness, contrast and saturation changes, 0..1."""
    grayscale: Annotated[float, AUGMENTATION, SHARE] = 0.1
    """Chance of a grey picture, 0..1."""
    blur: Annotated[float, AUGMENTATION, SHARE] = 0.0
    """Chance of a Gaussian blur, 0..1."""
    low_resolution: Annotated[float, AUGMENTATION, SHARE] = 0.0
    """Chance of a picture scaled down and up again, 0..1."""
    auto_augment: Annotated[str, AUGMENTATION] = ""
    """A policy of timm, such as rand-m5-mstd0.5; empty for none."""
    augment_on: Annotated[AugmentOn, AUGMENTATION] = "cpu"
    """Where pictures are varied: as they are read (cpu), or whole batches on a GPU (device), by the same numbers."""

    seed: Annotated[int, RUN, SEED] = 0
    """Seed of everything random; the same seed gives the same numbers on one machine."""
    device: Annotated[str, COMMON] = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: Annotated[int, RUN, WORKERS] = -1
    """Processes that read images; 0 reads in the training process, -1 takes half the cores (none of two), up to 8."""
    microbatch: Annotated[int, RUN, AT_LEAST_0] = 0
    """Images in memory with their graph at once, at least two: the batch's gradient in less memory; 0: all of them."""
    checkpoint_activations: Annotated[bool, RUN] = False
    """Compute the backbone's activations again in backward instead of keeping them: the same gradient, less memory."""
    compile: Annotated[bool, RUN] = False
    """Compile the backbone with torch.compile: faster steps after a minute; checkpoints and weights are the same."""
    checkpoint_minutes: Annotated[float, RUN, AT_LEAST_0] = 5.0
    """Minutes between checkpoints inside an epoch; each epoch ends with one."""
    validate_every: Annotated[int, VALIDATION, AT_LEAST_1] = 1
    """Epochs from one validation to the next; the last epoch is always validated."""
    best_by: Annotated[BestBy, VALIDATION] = "tar@0.01"
    """Picks the epoch to keep: TAR at a FAR (AUC where pairs are few), eer, auc, knn; last: the last one."""
    max_steps: Annotated[int, RUN, AT_LEAST_0] = 0
    """End after so many steps, with a validation, as a trial: loss, memory and the time of the whole; 0 for no end."""
    resume: Annotated[bool, COMMON] = False
    """Go on from the checkpoint in `out`."""
    track: Annotated[Track, RUN] = "off"
    """Send the figures of log.jsonl to wandb, mlflow or trackio too, whose package is an extra."""


@dataclass(frozen=True)
class PretrainConfig(StageConfig):
    """Stage one: a backbone learns identities with cross-entropy."""

    _: KW_ONLY
    out: Annotated[Path, COMMON, FOLDER] = Path("runs/pretrain")
    """Run folder: config.toml, log.jsonl, TensorBoard events, checkpoint, the best weights."""
    arch: Annotated[str, COMMON] = "mobilenetv4_conv_small"
    """Any backbone of timm, by its name there."""
    arch_args: Annotated[str, MODEL] = ""
    """Arguments for timm's backbone, as TOML: `channels = [16, 32, 64, 128], layers = [1, 1, 1, 1]`."""
    weights: Annotated[str, COMMON] = ""
    """Weights to start from: a weights folder, a run folder or a shipped name; the classifier is new."""
    pretrained: Annotated[bool, MODEL] = False
    """Start from timm's own weights for the architecture (downloads them)."""
    start_size: Annotated[int, MODEL, AT_LEAST_0] = 0
    """Side in the first epoch; it grows to image_size in steps over 3/5 of the epochs. 0 starts with image_size."""
    embedding_size: Annotated[int, MODEL, AT_LEAST_0] = 0
    """Size of a projection trained with the backbone; 0: that of --teacher, or of --weights, or the plain features."""

    head: Annotated[str, MODEL] = "softmax"
    """Cross-entropy on plain logits (softmax), or with a margin, such as arcface; `facemetric heads` lists them."""
    head_args: Annotated[str, MODEL] = ""
    """Further arguments of a head, as TOML: `centres = 3` of subcentre-arcface, `shift = 0.2` of combined."""
    margin: Annotated[float, MODEL, AT_LEAST_0] = 0.2
    """Margin of arcface (radians), cosface (cosine) and their kin; it grows from 0 over the first third of training."""
    scale: Annotated[float, MODEL, POSITIVE] = 24.0
    """Length of the logits of a head with a margin."""
    label_smoothing: Annotated[float, OPTIMISATION, SHARE] = 0.0
    """Share of the target spread over all identities, 0..1."""
    head_shards: Annotated[bool, MODEL] = False
    """Share the head's identities out over the processes of torchrun, for more than one of them holds."""
    head_sample: Annotated[float, MODEL, POSITIVE_SHARE] = 1.0
    """Share of the identities that a step sees, those of its batch and others at random (--head-shards); 1 sees all."""
    dropout: Annotated[float, MODEL, SHARE] = 0.0
    """Dropout of the features before the projection or the head, 0..1."""
    drop_path: Annotated[float, MODEL, SHARE] = 0.0
    """Stochastic depth of the backbone, where it has it, 0..1."""
    random_erasing: Annotated[float, AUGMENTATION, SHARE] = 0.0
    """Chance of an erased rectangle in a training image, 0..1."""
    max_per_identity: Annotated[int, DATA, AT_LEAST_0] = 0
    """Most images of an identity in an epoch, others each epoch, so that a few rich ones do not rule; 0 takes all."""
    closed_set_fraction: Annotated[float, VALIDATION, SHARE] = 0.02
    """Share of the training identities' images held back for closed-set accuracy, 0..1."""
    epochs: Annotated[int, COMMON, AT_LEAST_1] = 30
    """Passes over the training images."""
    lr: Annotated[float, COMMON, RATE] = 0.1
    """Highest learning rate."""


@dataclass(frozen=True)
class FinetuneConfig(StageConfig):
    """Stage two: a projection, or everything, learns distances from online triplets, or another loss."""

    _: KW_ONLY
    out: Annotated[Path, COMMON, FOLDER] = Path("runs/finetune")
    """Run folder: config.toml, log.jsonl, TensorBoard events, checkpoint, the better weights of start and end."""
    weights: Annotated[str, COMMON] = ""
    """Weights to start from: a weights folder, a run folder or a shipped name."""
    freeze: Annotated[tuple[Freeze, ...], COMMON] = ("backbone",)
    """What is not trained: backbone (its features are cached), batchnorm (all but these), none; several take turns."""
    freeze_epochs: Annotated[tuple[int, ...], MODEL] = ()
    """Epochs of each of several --freeze but the last, which has the rest of --epochs."""
    embedding_size: Annotated[int, MODEL, AT_LEAST_0] = 128
    """Numbers in an embedding; with --projection-init identity or refit the weights decide."""
    projection_init: Annotated[Init, MODEL] = "identity"
    """Start of the projection: identity (the weights' own embedding), refit (its least squares), pca, lda or random."""
    refit_penalty: Annotated[float, MODEL, POSITIVE] = 0.1
    """Ridge penalty of --projection-init refit, in units of the features' mean variance."""
    refit_teacher: Annotated[float, MODEL, Range(0, 1e3)] = 0.0
    """Weight of --teacher's embedding in --projection-init refit: 1 is as much as the own, 0 none."""
    refit_constant: Annotated[float, MODEL, Range(0, 1e3)] = 0.0
    """Length of a part that --projection-init refit adds to all embeddings: pairs unlike the training score low."""
    loss: Annotated[str, COMMON] = "triplet"
    """triplet, contrastive, supcon, multi-similarity, circle, proxy-anchor, pml:NAME, or your package.module:name."""
    loss_args: Annotated[str, OPTIMISATION] = ""
    """Arguments of a loss that is not triplet, as TOML: `temperature = 0.07`, or `margin = 0.4, gamma = 80`."""
    loss_lr: Annotated[float, OPTIMISATION, RATE] = 0.1
    """Highest learning rate of what a loss learns itself, such as the proxies of proxy-anchor."""
    miner: Annotated[str, COMMON] = "semihard"
    """all, semihard, hard, distance-weighted, or your own as package.module:function."""
    margin: Annotated[float, OPTIMISATION, AT_LEAST_0] = 0.2
    """Margin between positive and negative distance, in units of --distance (squared: 0..4)."""
    soft_margin: Annotated[bool, OPTIMISATION] = False
    """log(1 + exp(d_ap - d_an)) in place of the hinge; --margin is then not used."""
    distance: Annotated[Distance, OPTIMISATION] = "squared"
    """Squared Euclidean distance of unit vectors (0..4), Euclidean (0..2) or cosine (0..2)."""
    images_per_identity: Annotated[int, OPTIMISATION, AT_LEAST_2] = 4
    """Images of each identity in a batch."""
    alike: Annotated[int, OPTIMISATION, AT_LEAST_0] = 0
    """Identities of a batch come in groups of so many that look alike, found again each epoch; 0 draws them all."""
    families: Annotated[Path | None, OPTIMISATION] = None
    """Text or csv file of identities that are relatives, `a,b[,c...]` a line: with --alike they come in one group."""
    views: Annotated[int, AUGMENTATION, AT_LEAST_1] = 1
    """Cached copies of each image with --freeze backbone: the plain and views - 1 augmented; 3 of --unlabelled ones."""
    cache: Annotated[Path | None, RUN] = None
    """Folder of the cached features; `features` beside the run folder where none is named."""
    memory: Annotated[int, OPTIMISATION, AT_LEAST_0] = 0
    """Embeddings of past batches to compare with as well (cross-batch memory); 0 for none."""
    batch_size: Annotated[int, COMMON, AT_LEAST_2] = 512
    """Images in a step: batch_size / images_per_identity identities."""
    optimizer: Annotated[str, OPTIMISATION] = "adamw"
    """Any optimizer of timm, by its name there."""
    weight_decay: Annotated[float, OPTIMISATION, AT_LEAST_0] = 1e-4
    """Weight decay of weight matrices; biases and norms have none."""
    epochs: Annotated[int, COMMON, AT_LEAST_1] = 20
    """Passes over the training images."""
    lr: Annotated[float, COMMON, RATE] = 1e-3
    """Highest learning rate of the projection."""
    backbone_lr: Annotated[float, OPTIMISATION, RATE] = 1e-4
    """Highest learning rate of the backbone's part that trains."""


@dataclass(frozen=True)
class DemoConfig:
    """The whole story on faces drawn by facemetric itself."""

    out: Annotated[Path, FOLDER] = Path("runs/demo")
    """Folder for the drawn faces, the runs and the result."""
    _: KW_ONLY
    identities: Annotated[int, Range(20)] = 300
    """People to draw; a fifth is only for the evaluation."""
    images: Annotated[int, AT_LEAST_2] = 12
    """Pictures of each."""
    epochs: Annotated[int, AT_LEAST_1] = 16
    """Passes of stage one."""
    seed: Annotated[int, SEED] = 0
    """Seed of the faces and of the training."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    resume: bool = False
    """Go on with a demo that was stopped."""
