"""The door of the commands that embed images: images are found here, once, and handed down with the weights.

Images that cannot be read are listed, judged and counted in one way for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from facemetric import distributed
from facemetric.config import CheckConfig, ClusterConfig, DataConfig, EvalConfig, check_least, require
from facemetric.data.bad_images import BadImageLog, note_bad
from facemetric.data.eval_transform import eval_transform
from facemetric.data.index import ImageIndex, read_index
from facemetric.data.loader import load_batches
from facemetric.errors import DataError, first_few
from facemetric.evaluation.audit.seen import Seen, training_images_seen
from facemetric.evaluation.embed import Embedded, embed_index
from facemetric.evaluation.table import EmbeddingTable
from facemetric.faces.align import AlignOptions, cut_faces
from facemetric.faces.finder import face_finder
from facemetric.machine import pick_workers, progress_shown, say
from facemetric.model.embedder import Embedder
from facemetric.model.onnx.colour_check import CROPS
from facemetric.model.onnx.embedder import OnnxEmbedder
from facemetric.model.weights.opened import Weights, open_weights
from facemetric.training.run.folder import BAD_IMAGES

# Sets of images beside the first that a command reads: each has a list of bad images of its own.
GALLERY, SECOND, TEST, TRAIN, VALIDATION = "gallery", "second", "test", "train", "validation"
COHORT = "cohort"


Network = Embedder | OnnxEmbedder


def seen_in_training(weights: Weights, index: ImageIndex) -> Seen | None:
    """How much of the images is of the weights' training, from a sample; None where they keep no hashes."""
    return training_images_seen(weights.folder, index)


def open_images(sources: Sequence[str] | str, *, loose: bool = False) -> ImageIndex:
    """The images of DATA; what was skipped is printed. `loose`: no folder for each identity."""
    index = announced(read_index(sources, loose=loose))
    if distributed.together():
        distributed.check_alike({"the images": index.fingerprint})
    return index


def suspicions_in(model: OnnxEmbedder | None, index: ImageIndex) -> list[str]:
    """Warnings where anybody's model seems to take the images in another range, or colours the wrong way round."""
    if model is None or model.metadata:
        return []
    rows = np.unique(np.linspace(0, len(index) - 1, min(CROPS, len(index))).astype(int))
    (batch,) = load_batches(index, [rows], eval_transform(model.preprocess))
    return [f"warning: {suspicion}" for suspicion in model.suspicions(batch.images.numpy())]


def check_config(config: DataConfig | EvalConfig) -> None:
    """Raise ConfigError for what every such command needs, before any file is read."""
    check_least(config, {"batch_size": 1, "seed": 0, "workers": -1})
    require(0 <= config.max_bad <= 1, f"--max-bad is {config.max_bad}; it is a share, choose 0..1")
    embedded = [name for name in getattr(config, "compare", ()) if not is_stored(name)]
    require(
        not (config.flip and getattr(config, "embeddings", None)) or bool(embedded),
        "--flip has no effect on --embeddings, which are made already: leave it out, or give --weights",
    )


def is_stored(name: str) -> bool:
    """Whether a name is that of embeddings on disk, not of weights or images."""
    return name.lower().endswith((".npz", ".parquet"))


def announced(index: ImageIndex, of: str = "") -> ImageIndex:
    """The index, after its notes were printed, each with `of` before it."""
    for note in index.notes:
        say(of + note)
    return index


def bad_images_of(out: Path, of: str = "") -> Path:
    """The list of bad images of a set: bad_images.csv, or test_bad_images.csv and so on."""
    return out / (f"{of}_{BAD_IMAGES}" if of else BAD_IMAGES)


def list_bad(
    index: ImageIndex, bad: list[tuple[int, str]], path: Path, *, max_bad: float, outcome: str, of: str = ""
) -> None:
    """List the rows that cannot be read, say how many they are, and what becomes of them.

    Raises DataError where they are more than the share `max_bad` of the index."""
    path.unlink(missing_ok=True)  # of an earlier run
    if bad:
        note_bad(BadImageLog(path, len(index), max_bad), index, bad)
        whose = f"{of}: " if of else ""
        say(f"{whose}{len(bad)} of {len(index)} images cannot be read and are {outcome}: {path}")


def faces_of_data(
    config: ClusterConfig | CheckConfig, index: ImageIndex, out: Path, *, every: bool = False
) -> tuple[ImageIndex, dict[str, float]]:
    """The faces of DATA, cut into the folder `out` where they are photographs (`cut_faces`), and their quality by
    name; the index as it is, and nothing, where the weights know no faces or --faces is off."""
    weights = open_weights(config.weights)
    finder = face_finder(
        config.faces,
        pictures=weights.pictures,
        detector=config.detector,
        min_quality=config.min_quality,
        size=weights.crop_side,
    )
    if finder is None:
        return index, {}
    options = AlignOptions(
        size=finder.options.size,
        given=finder.options.given,
        detector=config.detector,
        min_quality=config.min_quality,
    )
    found = cut_faces(index, out, options, every=every, workers=config.workers)
    say(*filter(None, [found.text()]))
    return found.index, found.quality


def embed_images(
    config: DataConfig | EvalConfig,
    embedder: Network,
    index: ImageIndex,
    *,
    outcome: str = "left out",
    of: str = "",
    needed: Sequence[int] = (),
) -> Embedded:
    """Embed every readable image; the others are listed in the out folder. `of`: which set, "" for the first.

    Raises DataError where one of the `needed` rows, which pairs name, cannot be read, or more than --max-bad allows."""
    embedded = embed_index(
        embedder,
        index,
        batch_size=config.batch_size,
        workers=pick_workers(config.workers),
        flip=config.flip,
        progress=f"embedding {of}".rstrip() if progress_shown() else "",
    )
    named = set(needed)
    broken = [f"{index.name(row)} ({reason})" for row, reason in embedded.bad if row in named]
    if broken:
        raise DataError(
            f"{len(broken)} of {len(named)} images that the pairs name cannot be read: {first_few(broken, 10)}; "
            "mend the images or take their pairs out"
        )
    path = bad_images_of(config.out, of)
    list_bad(index, embedded.bad, path, max_bad=config.max_bad, outcome=outcome, of=of)
    return embedded


def embed_data(config: DataConfig, index: ImageIndex, weights: Weights | None = None) -> EmbeddingTable:
    """The table of DATA, which goes into the out folder, as does the list of bad images."""
    weights = weights or open_weights(config.weights)
    table = embed_images(config, weights.load(config.device), index).table
    table.save(config.out / "embeddings.npz")
    return table
