"""DATA to embeddings, for the commands that only look at them: bad images are listed, the table is kept."""

from __future__ import annotations

from facemetric.config import DataConfig, check_least, require
from facemetric.data.index import ImageIndex
from facemetric.data.loader import BadImageLog
from facemetric.evaluation.embed import EmbeddingTable
from facemetric.evaluation.inference import embed_index
from facemetric.machine import pick_device, pick_workers
from facemetric.model.weights import load_weights
from facemetric.training.folder import BAD_IMAGES


def check_config(config: DataConfig) -> None:
    """Raise ConfigError for what every such command needs, before any file is read."""
    check_least(config, {"batch_size": 1, "seed": 0, "workers": -1})
    require(0 <= config.max_bad <= 1, f"--max-bad is {config.max_bad}; it is a share, choose 0..1")


def announced(index: ImageIndex, of: str = "") -> ImageIndex:
    """The index, after its notes were printed; `of` stands before each."""
    for note in index.notes:
        print(of + note)
    return index


def embed_data(config: DataConfig, index: ImageIndex, *, flip: bool) -> EmbeddingTable:
    """Embed every readable image; the table and the list of bad images go into the out folder.

    Raises DataError where more are bad than --max-bad allows."""
    config.out.mkdir(parents=True, exist_ok=True)
    (config.out / BAD_IMAGES).unlink(missing_ok=True)  # of a run before
    embedded = embed_index(
        load_weights(config.weights, pick_device(config.device)),
        index,
        batch_size=config.batch_size,
        workers=pick_workers(config.workers),
        flip=flip,
        progress="embedding",
    )
    log = BadImageLog(config.out / BAD_IMAGES, len(index), config.max_bad)
    for row, reason in embedded.bad:
        log.add(index.name(row), reason)
    if embedded.bad:
        print(f"{len(embedded.bad)} of {len(index)} images cannot be read and are left out: {log.path}")
    embedded.table.save(config.out / "embeddings.npz")
    return embedded.table
