"""DATA to embeddings, for all commands that embed it: bad images are listed, judged and counted in one way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from facemetric.config import DataConfig, EvalConfig, check_least, require
from facemetric.data.bad_images import BadImageLog, note_bad
from facemetric.data.index import ImageIndex
from facemetric.errors import DataError
from facemetric.evaluation.embed import embed_index
from facemetric.evaluation.table import EmbeddingTable
from facemetric.machine import pick_device, pick_workers
from facemetric.model.embedder import Embedder
from facemetric.model.weights import load_weights
from facemetric.training.run_folder import BAD_IMAGES

# Sets of images beside the first that a command reads: each has a list of bad images of its own.
GALLERY, SECOND, TEST, TRAIN, VALIDATION = "gallery", "second", "test", "train", "validation"


def check_config(config: DataConfig | EvalConfig) -> None:
    """Raise ConfigError for what every such command needs, before any file is read."""
    check_least(config, {"batch_size": 1, "seed": 0, "workers": -1})
    require(0 <= config.max_bad <= 1, f"--max-bad is {config.max_bad}; it is a share, choose 0..1")
    second = getattr(config, "compare", "")
    require(
        not (config.flip and getattr(config, "embeddings", None)) or bool(second and not is_stored(second)),
        "--flip has no effect on --embeddings, which are made already: leave it out, or give --weights",
    )


def is_stored(name: str) -> bool:
    """Whether a name stands for embeddings on disk, not for weights or images."""
    return name.lower().endswith((".npz", ".parquet"))


def announced(index: ImageIndex, of: str = "") -> ImageIndex:
    """The index, after its notes were printed; `of` stands before each."""
    for note in index.notes:
        print(of + note)
    return index


def bad_images_of(out: Path, of: str = "") -> Path:
    """The list of bad images of a set: bad_images.csv, or test_bad_images.csv and so on."""
    return out / (f"{of}_{BAD_IMAGES}" if of else BAD_IMAGES)


def remove_lists(out: Path) -> None:
    """Remove the lists of bad images of a run before."""
    for of in ("", GALLERY, SECOND, TEST, TRAIN, VALIDATION):
        bad_images_of(out, of).unlink(missing_ok=True)


def list_bad(
    index: ImageIndex, bad: list[tuple[int, str]], path: Path, *, max_bad: float, outcome: str, of: str = ""
) -> None:
    """List the rows that cannot be read, say how many they are, and what becomes of them.

    Raises DataError where they are more than the share `max_bad` of the index."""
    path.unlink(missing_ok=True)  # of a run before
    if bad:
        note_bad(BadImageLog(path, len(index), max_bad), index, bad)
        whose = f"{of}: " if of else ""
        print(f"{whose}{len(bad)} of {len(index)} images cannot be read and are {outcome}: {path}")


def embed_listed(
    config: DataConfig | EvalConfig,
    embedder: Embedder,
    index: ImageIndex,
    *,
    outcome: str = "left out",
    of: str = "",
    needed: Sequence[int] = (),
) -> EmbeddingTable:
    """Embed every readable image; the others are listed in the out folder. `of`: which set, "" for the first.

    Raises DataError where one of the `needed` rows, which pairs name, cannot be read, or more than --max-bad allows."""
    embedded = embed_index(
        embedder,
        index,
        batch_size=config.batch_size,
        workers=pick_workers(config.workers),
        flip=config.flip,
        progress=f"embedding {of}".rstrip(),
    )
    named = set(needed)
    broken = [f"{index.name(row)} ({reason})" for row, reason in embedded.bad if row in named]
    if broken:
        shown = ", ".join(broken[:10]) + (", ..." if len(broken) > 10 else "")
        raise DataError(
            f"{len(broken)} of {len(named)} images that the pairs name cannot be read: {shown}; "
            "mend the images or take their pairs out"
        )
    path = bad_images_of(config.out, of)
    list_bad(index, embedded.bad, path, max_bad=config.max_bad, outcome=outcome, of=of)
    return embedded.table


def embed_data(config: DataConfig, index: ImageIndex) -> EmbeddingTable:
    """The table of DATA, which goes into the out folder, as does the list of bad images."""
    config.out.mkdir(parents=True, exist_ok=True)
    table = embed_listed(config, load_weights(config.weights, pick_device(config.device)), index)
    table.save(config.out / "embeddings.npz")
    return table
