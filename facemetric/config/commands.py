"""Options of the commands that score weights and show what they do."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from facemetric.config.fields import (
    AT_LEAST_0,
    AT_LEAST_1,
    AT_LEAST_2,
    COMMON,
    DATA,
    FIGURES,
    FOLDER,
    POSITIVE_SHARE,
    RUN,
    SEED,
    SHARE,
    TEMPLATES,
    WORKERS,
    Range,
)
from facemetric.config.photographs import FacesConfig, NetworkRuntime

Method = Literal["components", "dbscan", "agglomerative"]
Runtime = Literal["onnx", "openvino"]
Pool = Literal["media", "mean", "quality"]
Calibration = Literal["off", "people", "stored"]


@dataclass(frozen=True)
class EvalConfig:
    """Verification of listed or of all pairs, nearest neighbours, identification; of one model or several."""

    weights: Annotated[str, COMMON] = ""
    """What to evaluate: a weights folder, a run folder, a shipped name, or anybody's model as an .onnx file."""
    _: KW_ONLY
    pairs: Annotated[Path | None, COMMON] = None
    """Pairs: csv (image1_path,image2_path,label), LFW pairs.txt, the two-line CPLFW form, or InsightFace .bin."""
    all_pairs: Annotated[bool, COMMON] = False
    """Verification of every pair of the images of `data`, in place of listed pairs."""
    data: Annotated[tuple[str, ...], COMMON] = ()
    """Images that the pairs name, as for pretrain; also scored by nearest neighbours."""
    gallery: Annotated[tuple[str, ...], COMMON] = ()
    """Images of known people, as `data`, among whom the images of `data` are looked for; or one .npz of theirs."""
    embeddings: Annotated[Path | None, COMMON] = None
    """Embeddings in place of weights: .npz or .parquet with embeddings, identities and paths."""
    compare: Annotated[tuple[str, ...], COMMON] = ()
    """Other models on the same images, in one table: weights, .onnx files, or embeddings as .npz or .parquet."""
    fars: Annotated[tuple[float, ...], FIGURES, POSITIVE_SHARE] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    """False accept rates at which the true accept rate is given; those that need more pairs are named."""
    align: Annotated[bool, DATA] = False
    """Find the faces of photographs of DATA and --gallery first, into `faces` in `out`; crops stay where they are."""
    svm: Annotated[bool, FIGURES] = False
    """Also a linear SVM, in folds or learned from --gallery; 200 people with 30 images each are drawn at most."""
    out: Annotated[Path, COMMON, FOLDER] = Path("runs/eval")
    """Folder for metrics.json, report.html, embeddings.npz, the curve and its pictures."""
    report: Annotated[bool, FIGURES] = True
    """Write report.html: figures, curves and mistakes in one file, the pictures of the images inside."""
    flip: Annotated[bool, RUN] = False
    """Average each image's embedding with its mirror image's: better by a little, at twice the cost."""
    folds: Annotated[int, FIGURES, AT_LEAST_2] = 10
    """Folds of the accuracy where the pairs do not name theirs."""
    max_bad: Annotated[float, DATA, SHARE] = 0.0
    """Share of unreadable images above which the job stops, 0..1, of `data` and of `gallery`; a pair's always does."""
    batch_size: Annotated[int, RUN, AT_LEAST_1] = 256
    """Images embedded at once."""
    runtime: Annotated[NetworkRuntime, RUN] = "torch"
    """What computes embeddings: torch, ONNX Runtime, or auto as for embed; figures move in their last digits."""
    templates: Annotated[tuple[str, ...], TEMPLATES] = ()
    """Lists of images that stand for one person together: csv, IJB's, TinyFace's .mat; `column`: DATA's own."""
    gallery_templates: Annotated[tuple[str, ...], TEMPLATES] = ()
    """Lists, as `templates`, of the templates among which those are looked for; in place of --gallery."""
    pool: Annotated[Pool, TEMPLATES] = "media"
    """How the images of a template become one: by media as IJB does, their mean, or weighted by their quality."""
    cohort: Annotated[tuple[str, ...], FIGURES] = ()
    """Images of other people, as `data`, or one .npz of theirs: the scores of --pairs are normalized by them too."""
    cohort_top: Annotated[int, FIGURES, AT_LEAST_2] = 300
    """Highest scores with the cohort, of each image, that normalize its scores (adaptive s-norm)."""
    calibration: Annotated[Calibration, FIGURES] = "off"
    """Cllr and DCF of --pairs: by curves fitted across `people` of the pairs, or by that `stored` with the weights."""
    seed: Annotated[int, FIGURES, SEED] = 0
    """Seed of what is drawn: intervals, the people of open-set identification, folds that are not named."""
    device: Annotated[str, RUN] = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: Annotated[int, RUN, WORKERS] = -1
    """Processes that read images; 0 reads in the main process, -1 takes half the cores (none of two), up to 8."""

    def __post_init__(self) -> None:
        # Before there were several, one was a text, and "" was none.
        names = (self.compare,) if isinstance(self.compare, str) else self.compare
        object.__setattr__(self, "compare", tuple(filter(None, names)))


@dataclass(frozen=True)
class DataConfig:
    """What the commands share that embed DATA with weights."""

    data: tuple[str, ...] = ()
    """Images, as for pretrain: a folder, a csv or .tar files."""
    _: KW_ONLY
    weights: str = ""
    """A weights folder, a run folder or a shipped name."""
    out: Annotated[Path, FOLDER] = Path("runs/embeddings")
    """Folder for embeddings.npz and bad_images.csv."""
    flip: bool = False
    """Average each image's embedding with its mirror image's: better by a little, at twice the cost."""
    max_bad: Annotated[float, SHARE] = 0.0
    """Share of unreadable images above which the job stops, 0..1; they are listed in bad_images.csv."""
    batch_size: Annotated[int, AT_LEAST_1] = 256
    """Images embedded at once."""
    seed: Annotated[int, SEED] = 0
    """Seed of the resamples behind the confidence intervals."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: Annotated[int, WORKERS] = -1
    """Processes that read images; 0 reads in the main process, -1 takes half the cores (none of two), up to 8."""


@dataclass(frozen=True)
class CalibrateConfig(DataConfig):
    """A threshold for a wanted FAR, from identities that the weights were not trained on."""

    _: KW_ONLY
    far: Annotated[tuple[float, ...], POSITIVE_SHARE] = (1e-3,)
    """Wanted share of pairs of two people that are taken for one, above 0; a threshold is stored for each."""
    identities: Path | None = None
    """Text file of the identities of DATA to take, one a line; all where none is named."""
    merge: Path | None = None
    """Text or csv file of identities that are one person, `a,b` a line."""
    case_twins: bool = False
    """Identities that differ in letter case alone (aB1, Ab1) are different people: one typed twice is an error else."""
    out: Annotated[Path, FOLDER] = Path("runs/calibrate")
    """Folder for embeddings.npz and bad_images.csv; the thresholds go into the weights' config.json."""


@dataclass(frozen=True)
class TwoPictures:
    """Two pictures, by position."""

    image1: str = ""
    """A photograph, or a crop of a face."""
    image2: str = ""
    """Another one."""


@dataclass(frozen=True)
class VerifyConfig(FacesConfig, TwoPictures):
    """Two pictures: one person or two?"""

    _: KW_ONLY
    weights: str = ""
    """A weights folder, a run folder or a shipped name."""
    far: Annotated[float, POSITIVE_SHARE] = 1e-3
    """FAR of the stored threshold to judge by; `facemetric calibrate` stores them."""
    frr: Annotated[float, POSITIVE_SHARE] = 0.01
    """FRR of the stored threshold below which people differ, 0.05 or 0.01; from there to that of --far: cannot tell."""
    json: bool = False
    """Print one JSON object."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    runtime: NetworkRuntime = "auto"
    """torch, onnx, or auto: onnx where the weights carry a file for it, which needs no torch; onnx makes one."""


@dataclass(frozen=True)
class ClusterConfig(FacesConfig, DataConfig):
    """Images grouped by person, without labels."""

    _: KW_ONLY
    embeddings: Path | None = None
    """Embeddings to group in place of DATA's, such as an earlier run's embeddings.npz; DATA is for the sheets."""
    threshold: Annotated[float | None, Range(-1, 1)] = None
    """Cosine similarity from which two images count as alike, -1..1; where none is given, that of --far."""
    far: Annotated[float, POSITIVE_SHARE] = 1e-3
    """FAR of the stored threshold to group by; `facemetric calibrate` stores them."""
    method: Method = "agglomerative"
    """Join by average similarity, by chains of alike images (components), or by chains of crowded ones (dbscan)."""
    min_images: Annotated[int, AT_LEAST_1] = 3
    """Images alike to one, itself counted, that make it part of a chain of dbscan."""
    onto: Path | None = None
    """An earlier run's out folder or clusters.csv: its groups keep numbers, names and images. DATA: old and new."""
    corrections: Path | None = None
    """Images that a person put into groups, `path,cluster,name` a line: groups.html saves such a csv."""
    must_link: Path | None = None
    """Pairs of images of one person, `path_a,path_b` a line, that are never parted."""
    cannot_link: Path | None = None
    """Pairs of images of two people, `path_a,path_b` a line, that are never in one group."""
    labels: bool = True
    """Whether folders, or the csv's identities, are people to measure the clusters against."""
    sheets: Annotated[int, AT_LEAST_0] = 50
    """Picture sheets to draw, one a cluster of two images or more, the largest first; 0 draws none."""
    page: bool = True
    """Write groups.html: a page in which groups are named, joined and parted, and which saves --corrections."""
    out: Annotated[Path, FOLDER] = Path("runs/cluster")
    """Folder for clusters.csv, clusters.json, groups.html, sheets/, embeddings.npz and bad_images.csv."""


@dataclass(frozen=True)
class CheckConfig(FacesConfig, DataConfig):
    """Doubles, wrong labels and leaks of a set; nothing is deleted."""

    _: KW_ONLY
    weights: str = ""
    """Weights that compare people: a weights folder, a run folder or a shipped name; without, images alone are."""
    against: tuple[str, ...] = ()
    """A test set, as `data`: which images, names and people of `data` are in it."""
    merge: Path | None = None
    """Text or csv file of identities that are one person, as for pretrain: to check again what was mended."""
    leave_out: Path | None = None
    """Text file of identities to leave out, as for pretrain."""
    leave_out_images: Path | None = None
    """Text file of images to leave out, as for pretrain."""
    out: Annotated[Path, FOLDER] = Path("runs/check")
    """Folder for findings.csv, the lists made of it, check.json and the picture sheets."""
    chance: Annotated[float, SHARE] = 0.01
    """Pairs of identities listed by chance for each identity, 0..1; more of them, and more of the true ones."""
    mislabelled: Annotated[float, SHARE] = 0.2
    """Images are listed that more than this share of the other identities are nearer to than the rest of their own."""
    sheets: Annotated[int, AT_LEAST_0] = 5
    """Picture sheets of each kind of finding, at most; 0 draws none."""
    max_bad: Annotated[float, SHARE] = 0.01
    """Share of unreadable images above which the job stops, 0..1; they are listed in bad_images.csv."""
    seed: Annotated[int, SEED] = 0
    """Seed of the samples that thresholds are taken from."""


@dataclass(frozen=True)
class ConvertConfig:
    """Images of any source to tar shards, their bytes as they are."""

    data: tuple[str, ...] = ()
    """Images, as for pretrain: a folder, a csv, .tar, .rec, .parquet or .mdb files, or a pattern of shards."""
    _: KW_ONLY
    out: Annotated[Path, FOLDER] = Path("runs/shards")
    """Folder for shard-000000.tar, ...; the same command goes on with it, and nothing in it is overwritten."""
    shard_mib: Annotated[int, AT_LEAST_1] = 1024
    """Most MiB of images in a shard."""
    webdataset: bool = False
    """Write a .cls with the identity beside each image, as WebDataset and timm read it."""
    max_bad: Annotated[float, SHARE] = 0.01
    """Share of unreadable images above which the job stops, 0..1; they are listed in bad_images.csv."""


@dataclass(frozen=True)
class VisualizeConfig(DataConfig):
    """Embeddings to look at: TensorBoard's projector, and t-SNE."""

    data: tuple[str, ...] = ()
    """Images, as for pretrain; where none are named, those that the weights were trained and validated on."""
    _: KW_ONLY
    embeddings: Path | None = None
    """Embeddings to show in place of weights, as eval writes them; DATA then only lends the pictures."""
    images: Annotated[int, AT_LEAST_2] = 5000
    """Most images in the projector: people are drawn, those with two images first, 30 of one unless people are few."""
    map_images: Annotated[int, AT_LEAST_2] = 2000
    """Most images in a t-SNE picture, drawn in the same way."""
    out: Annotated[Path, FOLDER] = Path("runs/visualize")
    """Folder for the projector's files and the png; give it to tensorboard --logdir."""


@dataclass(frozen=True)
class RunsConfig:
    """A list of training runs."""

    folder: Path = Path("runs")
    """Folder that holds run folders, at any depth."""


@dataclass(frozen=True)
class ExportConfig:
    """Weights as one file for other runtimes."""

    weights: str = ""
    """A weights folder, a run folder or a shipped name."""
    _: KW_ONLY
    to: Runtime = "onnx"
    """ONNX for ONNX Runtime and the browser, or OpenVINO."""
    out: Annotated[Path, FOLDER] = Path("runs/export")
    """Folder for the file and export.json, which says how near it is to torch."""
    side: Annotated[int, Range(8)] = 112
    """Side in pixels of the aligned crops that the file takes."""
    flip: bool = False
    """Average each crop's embedding with its mirror image's: better by a little, at twice the cost."""
    int8: bool = False
    """Also a file in int8, whose ranges come from images of --data: a third of the size, a little less accurate."""
    data: tuple[str, ...] = ()
    """Aligned crops on which the file is compared with torch, as for pretrain; drawn faces where none are named."""
    pairs: Path | None = None
    """Pairs of images of --data: the accuracy of torch and of each file is measured on them."""


@dataclass(frozen=True)
class PushConfig:
    """Weights and their card to the Hugging Face Hub."""

    weights: str = ""
    """A weights folder, a run folder or a shipped name."""
    repo: str = ""
    """OWNER/NAME on the Hub; made where there is none."""
    _: KW_ONLY
    private: bool = False
    """Make it private: only its owner can read it. Of a repository that is public already, an error."""
    replace: bool = False
    """Put your files in the place of others of their names; without, that is an error."""
    dry_run: bool = False
    """Show what would be sent, and send nothing."""
